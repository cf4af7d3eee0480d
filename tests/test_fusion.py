"""What is missing changes nothing, whatever stands in its place; what is there counts; nothing says the prior."""

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
from sensorium.nn.fusion import FUSIONS
from sensorium.nn.tokens import Batch, Tokens, sequence_positions
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
READ = [name for name in SCHEMA.columns if name not in ("kind", "price")]


def made(**keywords: Any) -> Recipe:
    torch.manual_seed(0)
    given = {
        "target": ("kind", "price"),
        "dim": 32,
        "layers": 1,
        "dropout": 0.0,
        "modality_dropout": 0.0,
    }
    recipe = build_recipe(RECIPES["fusion"], SCHEMA, {**given, **keywords})[0]
    for part in recipe.model.modules():
        if isinstance(part, SubwordBagEmbedding):  # no word is unknown
            part.fit_on_data([fake(64, seed=seed)["title"] for seed in range(9)])
    with torch.no_grad():
        for p in recipe.model.parameters():  # no part starts at zero
            p.add_(0.05 * torch.randn_like(p))
    return recipe


def fake(n: int = 6, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch(
        {c.name: c.modality.fake(n, rng) for c in SCHEMA.columns.values()}, row=torch.arange(n)
    )


def without(batch: Batch, *names: str, rows: slice = slice(None)) -> Batch:
    """The batch in which these columns are not there."""
    flags = {name: torch.ones(len(batch), dtype=torch.bool) for name in names}
    for flag in flags.values():
        flag[rows] = False
    return batch.with_columns(present=flags)


def said(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    model.eval()
    with torch.no_grad():
        return model(batch)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], rows: slice = slice(None)) -> bool:
    return all(torch.allclose(a[name][rows], b[name][rows], atol=1e-5) for name in a)


CASES = [
    *({"fusion": how} for how in FUSIONS),
    {"fusion": "sequence", "projection": "multiscale"},
    {"projection": "multiscale"},
]


@pytest.mark.parametrize("keywords", CASES, ids=lambda k: "-".join(k.values()))
class TestMissing:
    @pytest.mark.parametrize("name", READ)
    def test_what_stands_in_the_place_of_a_missing_value_changes_nothing(
        self, keywords: dict, name: str
    ) -> None:
        model, batch = made(**keywords).model, fake()
        other = batch.with_columns({name: fake(seed=1)[name]})
        assert not same(said(model, batch), said(model, other)), "where it is there it counts"
        some = slice(0, 3)
        lacks, other = without(batch, name, rows=some), without(other, name, rows=some)
        assert same(said(model, lacks), said(model, other), some)
        assert not same(said(model, lacks), said(model, batch), some), (
            "that it is missing is not overlooked"
        )
        assert same(said(model, lacks), said(model, batch), slice(3, None)), (
            "nor do other rows notice"
        )

    def test_a_column_that_is_not_given_is_missing_in_every_row(self, keywords: dict) -> None:
        model, batch = made(**keywords).model, fake()
        for name in READ:
            absent = batch.select(set(batch.columns) - {name})
            assert same(said(model, absent), said(model, without(batch, name)))

    def test_a_row_with_nothing_gets_the_prior(self, keywords: dict) -> None:
        model, batch = made(**keywords).model, fake()
        prior = torch.tensor(
            [61 / 103, 31 / 103, 11 / 103]
        ).log()  # each class once more than it was seen
        found = said(model, without(batch, *READ, rows=slice(0, 2)))
        assert torch.allclose(found["kind"][:2], prior.expand(2, -1))
        assert not found["price"][:2].any()
        assert not torch.allclose(found["kind"][2], prior)
        assert torch.allclose(said(model, without(batch, *READ))["kind"], prior.expand(6, -1))

    def test_rows_do_not_know_each_other(self, keywords: dict) -> None:
        model, batch = made(**keywords).model, fake()
        alone = [said(model, batch.take(slice(i, i + 1))) for i in range(6)]
        assert same(
            said(model, batch), {name: torch.cat([a[name] for a in alone]) for name in alone[0]}
        )


def test_an_attending_part_looks_at_others_and_not_at_itself() -> None:
    torch.manual_seed(0)
    fuse, x = FUSIONS["attention"](["a", "b"], 32, 1, 0.0), torch.randn(2, 3, 32)
    parts = {"a": Tokens(x, sequence_positions(x)), "b": Tokens(x.flip(0), sequence_positions(x))}
    whole = fuse(parts)
    seen: list[Tensor] = []
    fuse.look.register_forward_hook(lambda module, given, out: seen.append(out))
    fuse({"a": parts["a"]})
    assert not seen[0].any(), "alone there is nothing to look at"
    fuse(
        {
            "a": parts["a"],
            "b": Tokens(x, sequence_positions(x), None, torch.tensor([[True, False, False]] * 2)),
        }
    )
    fuse({"a": Tokens(2 * x, sequence_positions(x)), "b": parts["b"]})
    fuse(parts)
    assert whole.isfinite().all()
    assert not torch.allclose(seen[2][:, 0], seen[3][:, 0]), "among several keys the query matters"


def test_some_of_a_row_is_always_kept() -> None:
    torch.manual_seed(0)
    there = torch.rand(4000, 5) < 0.6
    for rows in (0.3, 1.0):
        kept = drop_values(there, rows)
        assert not (kept & ~there).any()
        assert torch.equal(kept.any(1), there.any(1))
    assert torch.equal(drop_values(there, 0.0), there)


def test_every_number_of_values_is_hidden_about_as_often() -> None:
    """A share drawn evenly makes every number of values left equally likely; 0 left becomes 1."""
    torch.manual_seed(0)
    left = drop_values(torch.ones(40_000, 4, dtype=torch.bool), 0.5).sum(1)
    often = torch.bincount(left, minlength=5) / len(left)
    expected = torch.tensor([0, 0.2, 0.1, 0.1, 0.6])
    assert (often - expected).abs().max() < 0.01


class TestTargets:
    def test_a_prior_is_what_learning_would_come_to(self) -> None:
        """Its gradient over the training rows is zero, up to the one row that is added to each count."""
        kinds = {
            "classes": (ClassificationTarget(KIND), torch.tensor([0] * 60 + [1] * 30 + [2] * 10)),
            "ranks": (
                OrdinalTarget(Ordinal(("1", "2", "3"), (50, 30, 20))),
                torch.tensor([0] * 50 + [1] * 30 + [2] * 20),
            ),
            "tags": (
                MultilabelTarget(Multilabel("|", ("x", "y"), (25, 50), 100)),
                torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]] * 25),
            ),
            "amount": (RegressionTarget(), torch.tensor([-1.0, 1.0] * 50)),
        }
        for name, (kind, y) in kinds.items():
            prior = kind.prior().requires_grad_()
            kind.loss(prior.expand(len(y), -1), y).mean().backward()
            assert prior.grad.abs().max() < 0.02, name

    def test_a_class_never_seen_is_not_learned_from(self) -> None:
        objective = SupervisedLoss({"kind": ClassificationTarget(KIND)})
        raw, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
        batch = Batch({"kind": y}, row=torch.arange(4))
        assert torch.allclose(
            objective.compute_loss({"kind": raw}, batch),
            torch.nn.functional.cross_entropy(raw[:3], y[:3]),
        )
        batch = batch.with_columns(present={"kind": torch.tensor([True, False, True, True])})
        few = torch.nn.functional.cross_entropy(raw[[0, 2]], y[[0, 2]])
        assert torch.allclose(objective.compute_loss({"kind": raw}, batch), few)
        batch.present["kind"][:] = False
        assert objective.compute_loss({"kind": raw}, batch) == 0

    def test_balance_gives_every_class_the_same_weight(self) -> None:
        kind, plain = ClassificationTarget(KIND, class_weight=True), ClassificationTarget(KIND)
        y = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
        raw = torch.zeros(100, 3)
        each = [kind.loss(raw, y)[y == k].sum() for k in range(3)]
        assert torch.allclose(each[0], each[1])
        assert torch.allclose(each[0], each[2])
        assert torch.allclose(kind.loss(raw, y).mean(), plain.loss(raw, y).mean())

    def test_cuts_agree_with_each_other(self) -> None:
        raw = torch.tensor([[2.0, -1.0, 3.0, -4.0]])
        assert torch.equal(monotone_logits(raw), torch.tensor([[2.0, -1.0, -1.0, -4.0]]))
        found = decode_prediction(Ordinal(("1", "2", "3", "4", "5")), raw, Calibration())
        assert found.value == ["2"]
        assert np.allclose(found.probability.sum(1), 1)
        assert (found.probability >= 0).all()

    def test_the_best_amount_is_the_truth_with_its_own_spread(self) -> None:
        torch.manual_seed(0)
        y, said = 0.5 + 0.3 * torch.randn(4000), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([said], 0.05)
        for _ in range(300):
            optimizer.zero_grad()
            RegressionTarget().loss(said.expand(4000, -1), y).mean().backward()
            optimizer.step()
        assert abs(said[0].item() - 0.5) < 0.03
        assert abs((said[1] / 2).exp().item() - 0.3) < 0.03


def test_mixing_takes_from_a_row_only_what_both_have() -> None:
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


def test_parts_of_a_row_find_each_other() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 32)
    a, b = Tokens(x, sequence_positions(x)), Tokens(torch.randn(16, 1, 32), sequence_positions(x))
    assert cross_modal_infonce({"a": a, "b": a}) < 0.1 < cross_modal_infonce({"a": a, "b": b})
    assert cross_modal_infonce({"a": a}) == 0


# From a file to predictions ----------------------------------------------------------------------------------------


def products(folder: Path, n: int = 160, seed: int = 0) -> Path:
    """A table whose price follows from what is in it, with holes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    with open(folder / "products.csv", "w", newline="") as file:
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


def test_from_a_table_to_predictions(tmp_path: Path) -> None:
    path = products(tmp_path)
    data = Dataset.open(path)
    kinds = {name: column.kind for name, column in data.schema.columns.items()}
    assert kinds == {
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
    found = model.predict(rows)["price"]
    true = np.array(data.raw("price", test))
    error = np.abs(np.array(found.value) - true).mean()
    assert error < 0.6 * np.abs(true - np.mean(data.raw("price", data.splits["train"]))).mean()
    again = load(tmp_path / "run").predict(
        **{name: [row[name] for row in rows] for name in rows[0]}, batch_size=7
    )
    assert np.allclose(found.value, again["price"].value, atol=1e-4)
    assert found.spread.min() > 0
    assert (
        app.run(["predict", str(tmp_path / "run"), str(path), "-o", str(tmp_path / "out.csv")]) == 0
    )
    with open(tmp_path / "out.csv") as file:
        written = list(csv.DictReader(file))
    assert len(written) == 160
    assert list(written[0]) == ["row", "price", "price low", "price high", "price spread"]
    held = [
        float(w["price low"]) <= y <= float(w["price high"])
        for w, y in zip(written, data.raw("price", range(160)), strict=True)
        if w["price low"]
    ]
    assert len(held) in (0, 160)
    assert not held or np.mean(held) > 0.6
    assert np.allclose([float(written[i]["price"]) for i in test.tolist()], found.value, atol=1e-3)


def test_what_cannot_be_predicted_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = products(tmp_path, 80)
    data = Dataset.open(path)
    short = {"dim": 32, "epochs": 1, "quiet": True}
    for target, what in (
        ("prise", "did you mean 'price'"),
        ("title", "--type title=category"),
        ("", "--target"),
    ):
        with pytest.raises(SensoriumError, match=what):
            train(RECIPES["fusion"], data, out=tmp_path / "no", target=target, **short)
    for encoders, what in (
        ("weight=gru", "no column that an encoder reads"),
        ("title=resnet", "transformer, gru"),
        ("titel=gru", "'titel'"),
    ):
        with pytest.raises(SensoriumError, match=what):
            train(
                RECIPES["fusion"],
                data,
                out=tmp_path / "no",
                target="kind",
                encoders=encoders,
                **short,
            )
    model = train(RECIPES["fusion"], data, out=tmp_path / "run", target="kind", **short)
    with pytest.raises(SensoriumError, match="given .*title"):
        model.predict(titel=["a red shoe"])
    with pytest.raises(SensoriumError, match="number"):
        model.predict(weight=["heavy"])
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        found = model.predict(
            [{"title": "a red shoe", "weight": float("nan"), "colour": "mauve"}, {"title": None}]
        )
    assert found["kind"].classes == ("hat", "shoe")
    assert np.allclose(found["kind"].probability.sum(1), 1)
    few = tmp_path / "few.csv"
    few.write_text("colour,other\nred,1\nmauve,2\n,3\n")
    assert (
        app.run(["predict", str(tmp_path / "run"), str(few), "-o", str(tmp_path / "few.jsonl")])
        == 0
    )
    asked = ["predict", str(tmp_path / "run"), str(few), "-o", str(tmp_path / "sure.csv")]
    assert app.run([*asked, "--min-accuracy", "0.99"]) == 0
    sure = list(csv.DictReader((tmp_path / "sure.csv").read_text().splitlines()))
    assert len(sure) == 3
    assert {row["kind"] for row in sure} <= {"", "hat", "shoe"}
    assert app.run([*asked, "--coverage", "7"]) == 1
    told = [json.loads(line) for line in (tmp_path / "few.jsonl").read_text().splitlines()]
    assert [t["row"] for t in told] == ["few.csv:2", "few.csv:3", "few.csv:4"]
    assert sum(told[2]["kind probability"].values()) == pytest.approx(1, abs=1e-4)
    err = capsys.readouterr().err
    assert "no column title, weight" in err
    assert "1 of 3 rows" in err
    for header, what in (
        ("other", "none of the columns"),
        ("kind", "none of the columns that are read"),
    ):
        (none := tmp_path / "none.csv").write_text(f"{header}\n1\n2\n")
        assert app.run(["predict", str(tmp_path / "run"), str(none)]) == 1
        assert what in capsys.readouterr().err
    assert app.run(["predict", str(tmp_path / "run"), str(few), "-o", str(few)]) == 1
    assert few.read_text().startswith("colour")
    assert "another file" in capsys.readouterr().err
    with pytest.raises(SensoriumError, match="no row"):
        model.predict([])


def test_a_target_that_never_changes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(
        "a,label,split\n" + "".join(f"{i}.5,yes,train\n" for i in range(9))
    )
    with pytest.raises(SensoriumError, match="the one class 'yes'"):
        train(
            RECIPES["fusion"],
            Dataset.open(tmp_path / "one.csv"),
            out=tmp_path / "run",
            target="label",
            quiet=True,
        )
