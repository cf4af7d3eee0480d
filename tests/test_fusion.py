"""Fusion: missing values are masked, an empty row predicts the prior, targets and mixup."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.inference.predict import decode_prediction
from sensorium.loading import load
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text
from sensorium.models.calibration import Calibration, monotone_logits
from sensorium.models.multimodal_predictor import drop_values
from sensorium.nn.fusion import FUSIONS, CrossAttentionFusion
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, sequence_positions
from sensorium.objectives.supervised import (
    ClassificationTarget,
    MultilabelTarget,
    OrdinalTarget,
    RegressionTarget,
    SupervisedLoss,
    cross_modal_infonce,
    mix_tokens,
)
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import Recipe, build_recipe
from sensorium.training.loop import train

KIND = Category(("a", "b", "c"), (60, 30, 10))
SCHEMA = Schema(
    {
        name: Column(name, modality)
        for name, modality in {
            "photo": Image(size=16),
            "title": Text(length=12, vocab_size=300),
            "size": Numeric(edges=(-1.0, 0.0, 1.0), count=9),
            "weight": Numeric(),
            "colour": Category(("red", "blue"), (5, 4)),
            "tags": Multilabel("|", ("x", "y"), (4, 5), 9),
            "kind": KIND,
            "price": Numeric(10.0, 2.0, (8.0, 12.0), 9),
        }.items()
    }
)
INPUTS = [name for name in SCHEMA.columns if name not in ("kind", "price")]


def build(**keywords: Any) -> Recipe:
    torch.manual_seed(0)
    defaults = {
        "target": ("kind", "price"),
        "dim": 32,
        "layers": 1,
        "dropout": 0.0,
        "modality_dropout": 0.0,
    }
    recipe = build_recipe(RECIPES["fusion"], SCHEMA, {**defaults, **keywords})[0]
    for part in recipe.model.modules():
        if isinstance(part, SubwordBagEmbedding):  # every token is in the vocabulary
            part.fit_on_data([fake(64, seed=seed)["title"] for seed in range(9)])
    with torch.no_grad():
        for p in recipe.model.parameters():  # no weight starts at zero
            p.add_(0.05 * torch.randn_like(p))
    return recipe


def fake(n: int = 6, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    columns: dict[ColumnKey, Tensor] = {}
    for column in SCHEMA.columns.values():
        modality: Any = column.modality
        columns[column.name] = modality.fake(n, rng)
    return Batch(columns, row=torch.arange(n))


def without(batch: Batch, *names: str, rows: slice = slice(None)) -> Batch:
    """Return the batch with these columns missing in `rows`."""
    present: dict[ColumnKey, Tensor] = {
        name: torch.ones(len(batch), dtype=torch.bool) for name in names
    }
    for mask in present.values():
        mask[rows] = False
    return batch.with_columns(present=present)


def predict(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    model.eval()
    with torch.no_grad():
        return model(batch)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], rows: slice = slice(None)) -> bool:
    return all(torch.allclose(a[name][rows], b[name][rows], atol=1e-5) for name in a)


CASES = [
    *({"fusion": name} for name in FUSIONS),
    {"fusion": "sequence", "projection": "multiscale"},
    {"projection": "multiscale"},
]


@pytest.mark.parametrize("keywords", CASES, ids=lambda k: "-".join(k.values()))
class TestMissing:
    @pytest.mark.parametrize("name", INPUTS)
    def test_missing_value_does_not_affect_prediction(self, keywords: dict, name: str) -> None:
        model, batch = build(**keywords).model, fake()
        other = batch.with_columns({name: fake(seed=1)[name]})
        assert not same(predict(model, batch), predict(model, other)), "a present value counts"
        masked, rest = slice(0, 3), slice(3, None)
        missing = without(batch, name, rows=masked)
        other = without(other, name, rows=masked)
        assert same(predict(model, missing), predict(model, other), masked)
        assert not same(predict(model, missing), predict(model, batch), masked), "absence counts"
        assert same(predict(model, missing), predict(model, batch), rest), "rows are independent"

    def test_absent_column_equals_missing_in_every_row(self, keywords: dict) -> None:
        model, batch = build(**keywords).model, fake()
        for name in INPUTS:
            absent = batch.select(set(batch.columns) - {name})
            assert same(predict(model, absent), predict(model, without(batch, name)))

    def test_empty_row_predicts_prior(self, keywords: dict) -> None:
        model, batch = build(**keywords).model, fake()
        prior = torch.tensor([61 / 103, 31 / 103, 11 / 103]).log()  # add-one smoothing
        output = predict(model, without(batch, *INPUTS, rows=slice(0, 2)))
        assert torch.allclose(output["kind"][:2], prior.expand(2, -1))
        assert not output["price"][:2].any()
        assert not torch.allclose(output["kind"][2], prior)
        assert torch.allclose(predict(model, without(batch, *INPUTS))["kind"], prior.expand(6, -1))

    def test_rows_are_independent(self, keywords: dict) -> None:
        model, batch = build(**keywords).model, fake()
        single = [predict(model, batch.take(slice(i, i + 1))) for i in range(6)]
        assert same(
            predict(model, batch),
            {name: torch.cat([s[name] for s in single]) for name in single[0]},
        )


def test_cross_attention_fusion_attends_to_other_modalities_only() -> None:
    torch.manual_seed(0)
    fusion, x = FUSIONS["attention"](["a", "b"], 32, 1, 0.0), torch.randn(2, 3, 32)
    parts = {"a": Tokens(x, sequence_positions(x)), "b": Tokens(x.flip(0), sequence_positions(x))}
    fused = fusion(parts)
    assert isinstance(fusion, CrossAttentionFusion)
    attended: list[Any] = []
    fusion.cross_attention.register_forward_hook(lambda module, args, out: attended.append(out))
    fusion({"a": parts["a"]})
    assert not attended[0].any(), "a single modality has no other to attend to"
    fusion(
        {
            "a": parts["a"],
            "b": Tokens(x, sequence_positions(x), None, torch.tensor([[True, False, False]] * 2)),
        }
    )
    fusion({"a": Tokens(2 * x, sequence_positions(x)), "b": parts["b"]})
    fusion(parts)
    assert fused.isfinite().all()
    assert not torch.allclose(attended[2][:, 0], attended[3][:, 0]), (
        "the query matters with several keys"
    )


def test_drop_values_keeps_at_least_one_value() -> None:
    torch.manual_seed(0)
    present = torch.rand(4000, 5) < 0.6
    for probability in (0.3, 1.0):
        remaining = drop_values(present, probability)
        assert not (remaining & ~present).any()
        assert torch.equal(remaining.any(1), present.any(1))
    assert torch.equal(drop_values(present, 0.0), present)


def test_drop_values_drops_each_number_of_values_equally_often() -> None:
    """Each number of remaining values is equally likely; 0 becomes 1."""
    torch.manual_seed(0)
    remaining = drop_values(torch.ones(40_000, 4, dtype=torch.bool), 0.5).sum(1)
    frequency = torch.bincount(remaining, minlength=5) / len(remaining)
    expected = torch.tensor([0, 0.2, 0.1, 0.1, 0.6])
    assert (frequency - expected).abs().max() < 0.01


class TestTargets:
    def test_prior_minimizes_training_loss(self) -> None:
        """Its gradient over the training rows is zero, up to add-one smoothing."""
        targets = {
            "classes": (ClassificationTarget(KIND), torch.tensor([0] * 60 + [1] * 30 + [2] * 10)),
            "ranks": (
                OrdinalTarget(Ordinal(("1", "2", "3"), (50, 30, 20))),
                torch.tensor([0] * 50 + [1] * 30 + [2] * 20),
            ),
            "tags": (
                MultilabelTarget(Multilabel("|", ("x", "y"), (25, 50), 100)),
                torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]] * 25),
            ),
            "number": (RegressionTarget(), torch.tensor([-1.0, 1.0] * 50)),
        }
        for name, (target, y) in targets.items():
            prior = target.prior().requires_grad_()
            target.loss(prior.expand(len(y), -1), y).mean().backward()
            assert prior.grad is not None
            assert prior.grad.abs().max() < 0.02, name

    def test_unseen_classes_have_no_loss(self) -> None:
        objective = SupervisedLoss({"kind": ClassificationTarget(KIND)})
        raw, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
        batch = Batch({"kind": y}, row=torch.arange(4))
        assert torch.allclose(
            objective.compute_loss({"kind": raw}, batch),
            torch.nn.functional.cross_entropy(raw[:3], y[:3]),
        )
        batch = batch.with_columns(present={"kind": torch.tensor([True, False, True, True])})
        expected = torch.nn.functional.cross_entropy(raw[[0, 2]], y[[0, 2]])
        assert torch.allclose(objective.compute_loss({"kind": raw}, batch), expected)
        batch.present["kind"][:] = False
        assert objective.compute_loss({"kind": raw}, batch) == 0

    def test_class_weight_gives_every_class_the_same_total_loss(self) -> None:
        balanced, plain = ClassificationTarget(KIND, class_weight=True), ClassificationTarget(KIND)
        y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
        raw = torch.zeros(100, 3)
        each = [balanced.loss(raw, y)[y == k].sum() for k in range(3)]
        assert torch.allclose(each[0], each[1])
        assert torch.allclose(each[0], each[2])
        assert torch.allclose(balanced.loss(raw, y).mean(), plain.loss(raw, y).mean())

    def test_ordinal_logits_are_made_monotone(self) -> None:
        raw = torch.tensor([[2.0, -1.0, 3.0, -4.0]])
        assert torch.equal(monotone_logits(raw), torch.tensor([[2.0, -1.0, -1.0, -4.0]]))
        prediction = decode_prediction(Ordinal(("1", "2", "3", "4", "5")), raw, Calibration())
        assert prediction.value == ["2"]
        assert prediction.probability is not None
        assert np.allclose(prediction.probability.sum(1), 1)
        assert (prediction.probability >= 0).all()

    def test_regression_loss_is_minimal_at_true_mean_and_std(self) -> None:
        torch.manual_seed(0)
        y, output = 0.5 + 0.3 * torch.randn(4000), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([output], 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            RegressionTarget().loss(output.expand(4000, -1), y).mean().backward()
            optimizer.step()
        assert abs(output[0].item() - 0.5) < 0.03
        assert abs((output[1] / 2).exp().item() - 0.3) < 0.03


def test_mixup_mixes_only_tokens_valid_in_both_rows() -> None:
    x = torch.randn(3, 2, 4)
    t = Tokens(
        x, sequence_positions(x), None, torch.tensor([[True, True], [True, False], [True, True]])
    )
    other = torch.tensor([1, 2, 0])
    assert torch.equal(mix_tokens(t, other, 1.0).x, x)
    half = mix_tokens(t, other, 0.5).x
    assert torch.allclose(half[0, 0], (x[0, 0] + x[1, 0]) / 2)
    assert torch.equal(half[0, 1], x[0, 1])
    assert torch.equal(half[1, 1], x[1, 1])


def test_cross_modal_infonce_is_small_for_equal_embeddings() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 32)
    a, b = Tokens(x, sequence_positions(x)), Tokens(torch.randn(16, 1, 32), sequence_positions(x))
    assert cross_modal_infonce({"a": a, "b": a}) < 0.1 < cross_modal_infonce({"a": a, "b": b})
    assert cross_modal_infonce({"a": a}) == 0


def write_products(folder: Path, n: int = 160, seed: int = 0) -> Path:
    """Write a table with missing values whose price follows from the other columns."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    with (folder / "products.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["title", "weight", "colour", "made", "tags", "price", "kind", "split"])
        for i in range(n):
            colour, weight = rng.choice(["red", "blue", "green"]), rng.normal(5, 2)
            noun, tags = (
                rng.choice(["shoe", "hat"]),
                [t for t in ("new", "sale", "eco") if rng.random() < 0.5],
            )
            price = 3 * weight + 10 * (colour == "red") + 5 * ("new" in tags) + rng.normal(0, 0.5)
            cells = [
                f"a {colour} {noun} number {i}",
                f"{weight:.3f}",
                colour,
                f"2026-0{rng.integers(1, 9)}-1{i % 9}",
                "|".join(tags),
            ]
            cells = [c if rng.random() > 0.1 else "" for c in cells]
            rows.writerow(
                [*cells, f"{price:.2f}", noun, ["train", "val", "test"][min(2, max(0, i % 8 - 5))]]
            )
    return folder / "products.csv"


def test_train_and_predict_from_table(tmp_path: Path) -> None:
    path = write_products(tmp_path)
    data = Dataset.open(path)
    types = {name: column.kind for name, column in data.schema.columns.items()}
    assert types == {
        "title": "text",
        "weight": "numeric",
        "colour": "category",
        "made": "datetime",
        "tags": "multilabel",
        "price": "numeric",
        "kind": "category",
    }
    short = {"dim": 32, "epochs": 25, "quiet": True, "lr": 3e-3}
    model = train(RECIPES["fusion"], data, out=tmp_path / "run", target="price", **short)
    test = data.splits["test"]
    rows = [
        {name: data.raw(name, [i])[0] for name in data.schema.columns if name != "price"}
        for i in test.tolist()
    ]
    prediction = model.predict(rows)["price"]
    true = np.array(data.raw("price", test))
    error = np.abs(np.array(prediction.value) - true).mean()
    assert error < 0.6 * np.abs(true - np.mean(data.raw("price", data.splits["train"]))).mean()
    again = load(tmp_path / "run").predict(
        batch_size=7, **dict[str, Any]({name: [row[name] for row in rows] for name in rows[0]})
    )
    assert np.allclose(prediction.value, again["price"].value, atol=1e-4)
    assert prediction.std.min() > 0
    assert (
        app.run(["predict", str(tmp_path / "run"), str(path), "-o", str(tmp_path / "out.csv")]) == 0
    )
    with (tmp_path / "out.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == 160
    assert list(written[0]) == [
        "row",
        "price",
        "price low",
        "price high",
        "price std",
        "unreadable",
    ]
    covered = [
        float(w["price low"]) <= y <= float(w["price high"])
        for w, y in zip(written, data.raw("price", range(160)), strict=True)
        if w["price low"]
    ]
    assert len(covered) in (0, 160)
    assert not covered or np.mean(covered) > 0.6
    assert np.allclose(
        [float(written[i]["price"]) for i in test.tolist()], prediction.value, atol=1e-3
    )


def test_predict_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_products(tmp_path, 80)
    data = Dataset.open(path)
    short = {"dim": 32, "epochs": 1, "quiet": True}
    for target, message in (
        ("prise", "did you mean 'price'"),
        ("title", "--type title=category"),
        ("", "--target"),
    ):
        with pytest.raises(SensoriumError, match=message):
            train(RECIPES["fusion"], data, out=tmp_path / "no", target=target, **short)
    for encoders, message in (
        ("weight=gru", "not an input column with an encoder"),
        ("title=resnet", "transformer, gru"),
        ("titel=gru", "'titel'"),
    ):
        with pytest.raises(SensoriumError, match=message):
            train(
                RECIPES["fusion"],
                data,
                out=tmp_path / "no",
                target="kind",
                encoders=encoders,
                **short,
            )
    model = train(RECIPES["fusion"], data, out=tmp_path / "run", target="kind", **short)
    with pytest.raises(SensoriumError, match=r"'titel'.*title"):
        model.predict(titel=["a red shoe"])
    with pytest.raises(SensoriumError, match="number"):
        model.predict(weight=["heavy"])
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        predictions = model.predict(
            [{"title": "a red shoe", "weight": float("nan"), "colour": "mauve"}, {"title": None}]
        )
    assert predictions["kind"].classes == ("hat", "shoe")
    assert np.allclose(predictions["kind"].probability.sum(1), 1)
    few = tmp_path / "few.csv"
    few.write_text("colour,other\nred,1\nmauve,2\n,3\n")
    assert (
        app.run(["predict", str(tmp_path / "run"), str(few), "-o", str(tmp_path / "few.jsonl")])
        == 0
    )
    command = ["predict", str(tmp_path / "run"), str(few), "-o", str(tmp_path / "selected.csv")]
    assert app.run([*command, "--min-accuracy", "0.99"]) == 0
    selected = list(csv.DictReader((tmp_path / "selected.csv").read_text().splitlines()))
    assert len(selected) == 3
    assert {row["kind"] for row in selected} <= {"", "hat", "shoe"}
    assert app.run([*command, "--coverage", "7"]) == 1
    written = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    assert [row["row"] for row in written] == ["few.csv:2", "few.csv:3", "few.csv:4"]
    assert sum(written[2]["kind probability"].values()) == pytest.approx(1, abs=1e-4)
    err = capsys.readouterr().err
    assert "no column title, weight" in err
    assert "1 of 3 rows" in err
    for header, message in (
        ("other", "none of the columns"),
        ("kind", "none of the columns that the model reads"),
    ):
        (none := tmp_path / "none.csv").write_text(f"{header}\n1\n2\n")
        assert app.run(["predict", str(tmp_path / "run"), str(none)]) == 1
        assert message in capsys.readouterr().err
    assert app.run(["predict", str(tmp_path / "run"), str(few), "-o", str(few)]) == 1
    assert few.read_text().startswith("colour")
    assert "another output file" in capsys.readouterr().err
    with pytest.raises(SensoriumError, match="got no rows"):
        model.predict([])


def test_constant_target_raises(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(
        "a,label,split\n" + "".join(f"{i}.5,yes,train\n" for i in range(9))
    )
    with pytest.raises(SensoriumError, match="only one class, 'yes'"):
        train(
            RECIPES["fusion"],
            Dataset.open(tmp_path / "one.csv"),
            out=tmp_path / "run",
            target="label",
            quiet=True,
        )
