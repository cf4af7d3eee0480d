"""Tests of the linear model and the trees beside the network, and of how they are blended."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.evaluate import evaluate
from sensorium.io.tensors import tensor_writer
from sensorium.loading import load
from sensorium.modalities.audio import PADDING_VALUE, Audio
from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.blended_heads import BlendedHeads, LinearModel
from sensorium.models.wide_features import (
    WideFeatures,
    WideRows,
    audio_features,
    calendar_features,
    num_dense_features,
)
from sensorium.nn.sparse import SparseRows
from sensorium.nn.tokens import Batch
from sensorium.objectives.supervised import ClassificationTarget
from sensorium.recipes import RECIPES
from sensorium.recipes.blending import choose_weights
from sensorium.recipes.linear import LinearTrainer, squared_error
from sensorium.recipes.text_components import principal_components
from sensorium.training.checkpoint import Model
from sensorium.training.loop import train
from sensorium.training.run import TrainingRun
from sensorium.tuning.compare import compare

SHORT: dict[str, Any] = {"dim": 16, "layers": 1, "epochs": 1, "quiet": True}
COLORS = ("red", "blue", "green")
THINGS = ("shoe", "boot", "hat", "coat")
INPUTS = ("title", "size", "shop")


def write_table(folder: Path, n: int = 400) -> Path:
    """Write titles whose words decide the class, price, grade and tags."""
    rng = np.random.default_rng(0)
    lines = ["title,size,shop,kind,price,grade,tags"]
    for _ in range(n):
        color, thing = rng.integers(0, 3), rng.integers(0, 4)
        size, shop = rng.normal(), "abc"[rng.integers(0, 3)]
        price = 10 * color + 4 * thing + 3 * size + 0.3 * rng.normal()
        words = f"{THINGS[thing]} in {COLORS[color]} number {rng.integers(0, 50)}"
        size_cell = "" if rng.random() < 0.1 else f"{size:.3f}"
        grade = 1 + int(price > 8) + int(price > 18)
        tags = "|".join([COLORS[color], *(["big"] if size > 0 else [])])
        lines.append(f"{words},{size_cell},{shop},{THINGS[thing]}s,{price:.3f},{grade},{tags}")
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    types = {"title": "text", "tags": "multilabel", "grade": "ordinal"}
    return Dataset.open(write_table(tmp_path_factory.mktemp("table")), types=types)


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(RECIPES["fusion"], data, out=out, target="price", columns=INPUTS, **SHORT)
    return out


def load_run(folder: Path) -> Model:
    model = load(folder)
    assert isinstance(model, Model)
    return model


def last_metrics(folder: Path) -> dict[str, float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["evaluation"]


def rows_of(data: Dataset, split: str) -> list[dict[str, Any]]:
    return [{c: data.raw(c, [i])[0] for c in INPUTS} for i in data.splits[split].tolist()]


def wide_rows(x: Tensor) -> WideRows:
    """Return a matrix of which the last columns are sparse."""
    sparse = x[:, 3:]
    row, index = sparse.nonzero().unbind(1)
    return WideRows(x[:, :3], SparseRows(len(x), row, index, sparse[row, index]))


class TestLinearTrainer:
    def test_ridge_regression_equals_that_of_scikit_learn(self) -> None:
        x = torch.randn(80, 7, generator=torch.Generator().manual_seed(0))
        x[:, 3:] *= x[:, 3:] > 0.5
        y = x @ torch.arange(7.0) + 1
        trainer = LinearTrainer(wide_rows(x), y, squared_error, torch.zeros(1), 7)
        for _ in range(3):
            trainer.fit(10.0)
        reference = Ridge(alpha=10.0).fit(x.numpy(), y.numpy())
        assert np.allclose(trainer.weight[:, 0], reference.coef_, atol=1e-3)
        assert float(trainer.bias) == pytest.approx(float(reference.intercept_), abs=1e-3)

    def test_logistic_regression_equals_that_of_scikit_learn(self) -> None:
        x = torch.randn(120, 7, generator=torch.Generator().manual_seed(1))
        x[:, 3:] *= x[:, 3:] > 0.5
        y = (x[:, :3].argmax(1) + (x[:, 4] > 1).long()).clamp(max=2)
        target = ClassificationTarget(Category(("a", "b", "c"), (40, 40, 40)))
        trainer = LinearTrainer(wide_rows(x), y, target.loss, target.prior(), 7)
        for _ in range(3):
            trainer.fit(1.0)
        reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x.numpy(), y.numpy())
        p = (wide_rows(x).matmul(trainer.weight) + trainer.bias).softmax(1)
        assert np.allclose(p, reference.predict_proba(x.numpy()), atol=2e-3)

    def test_strength_with_the_lowest_validation_loss_is_kept(self) -> None:
        x = torch.randn(30, 7, generator=torch.Generator().manual_seed(2))
        y = x[:, 0] + torch.randn(30, generator=torch.Generator().manual_seed(3))
        model, losses = LinearModel(1), iter([3.0, 1.0, 2.0, 2.5])
        weights: list[Tensor] = []

        def val_loss(model: LinearModel) -> float:
            weights.append(model.weight.clone())
            return next(losses)

        trainer = LinearTrainer(wide_rows(x), y, squared_error, torch.zeros(1), 7)
        assert trainer.select_best(model, val_loss) == 1.0
        assert len(weights) == 4, "two strengths without improvement end the search"
        assert torch.equal(model.weight, weights[1])


class TestWideFeatures:
    COLUMNS: ClassVar[dict[str, Modality]] = {
        "n": Numeric(),
        "c": Category(("x", "y"), (3, 5)),
        "o": Ordinal(("1", "2", "3"), (1, 1, 1)),
        "d": Datetime(),
        "t": Multilabel("|", ("p", "q"), (2, 1), 4),
        "i": Image(size=16),
        "s": Series(channels=("a",), mean=(0.0,), std=(1.0,)),
        "a": Audio(),
    }

    def inputs(self) -> dict[Any, Tensor]:
        rng = torch.Generator().manual_seed(0)
        return {name: m.fake(4, rng) for name, m in self.COLUMNS.items()}  # type: ignore[attr-defined]

    def test_missing_values_contribute_nothing(self) -> None:
        features, inputs = WideFeatures(self.COLUMNS), self.inputs()
        assert features.num_dense == sum(map(num_dense_features, self.COLUMNS.values()))
        present = {name: torch.tensor([True, False, True, True]) for name in self.COLUMNS}
        x = features(inputs, present, [])
        assert x.dense[0].any()
        assert not x.dense[1].any()
        assert not (x.sparse.row == 1).any()
        few = {name: values for name, values in inputs.items() if name == "n"}
        hidden = {name: mask & (name == "n") for name, mask in present.items()}
        only = features(few, hidden, [])
        assert only.dense.count_nonzero() == 3
        assert not len(only.sparse.index)

    def test_unseen_classes_and_extreme_values_are_bounded(self) -> None:
        features = WideFeatures({"n": Numeric(), "c": Category(("x",), (1,))})
        present = {name: torch.ones(2, dtype=torch.bool) for name in ("n", "c")}
        x = features({"n": torch.tensor([1e9, 0.0]), "c": torch.tensor([1, 0])}, present, [])
        assert float(x.dense.max()) == 10
        assert x.sparse.row.tolist() == [1]

    def test_calendar_of_dates(self) -> None:
        dates = ["2024-01-15 00:00", "2024-06-16 14:00", "2023-12-17 23:00"]
        column = Datetime().fit(dates)
        x = calendar_features(column.collate([column.load(date) for date in dates]))
        assert x.sum(1).tolist() == [3, 3, 3]
        assert x[:, :24].argmax(1).tolist() == [0, 14, 23]
        assert x[:, 24:31].argmax(1).tolist() == [0, 6, 6], "Monday is 0"
        assert x[:, 31:].argmax(1).tolist() == [0, 5, 11]

    def test_padding_does_not_change_audio_features(self) -> None:
        x = torch.randn(2, 80, 30, generator=torch.Generator().manual_seed(0))
        padded = torch.nn.functional.pad(x, (0, 9), value=PADDING_VALUE)
        assert torch.allclose(audio_features(x), audio_features(padded), atol=1e-5)
        silent = torch.full((1, 80, 3), PADDING_VALUE)
        assert audio_features(silent).isfinite().all()


def test_principal_components_are_the_singular_vectors() -> None:
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) @ torch.rand(3, 20)
    row, index = torch.ones_like(x).nonzero().unbind(1)
    components = principal_components(SparseRows(50, row, index, x.flatten()), 20, 5)
    assert components.shape == (20, 5)
    projected = x @ components[:, :3] @ components[:, :3].T
    assert torch.allclose(projected, x, atol=1e-3)
    assert not principal_components(SparseRows.empty(0), 4, 2).any()


def test_weights_are_convex_and_of_usable_parts() -> None:
    wanted = torch.tensor([0.2, 0.5, 0.3])

    def losses(weights: Tensor) -> Tensor:
        return (weights - wanted).square().sum().expand(9)

    assert torch.allclose(choose_weights([0, 1, 2], losses), wanted)
    assert choose_weights([0, 2], lambda w: -w[1:].sum().expand(4)).tolist() == [0, 0, 1]
    assert choose_weights([0], lambda w: w[:2]).tolist() == [1, 0, 0]


def test_combinations_that_rows_cannot_tell_apart_are_even() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0))

    def losses(weights: Tensor, worse: float) -> Tensor:
        return 1 + weights[1] * (noise - noise.mean()) + worse * weights[1] + 5 * weights[2]

    def chosen(worse: float) -> list[float]:
        return choose_weights([0, 1, 2], lambda w: losses(w, worse), 1.0).tolist()

    assert chosen(0.0)[:2] == [0.5, 0.5]
    assert chosen(1.0) == [1, 0, 0], "clearly worse parts get no weight"


def test_default_is_as_good_as_its_best_part_and_says_so(run: Path, data: Dataset) -> None:
    metrics = last_metrics(run)
    parts = {part: metrics[f"{part} R2"] for part in ("network", "linear", "boosting")}
    assert parts["linear"] > 0.95 > parts["network"]
    assert metrics["R2"] >= max(parts.values()) - 1e-6
    assert sum(metrics[f"{part} weight"] for part in parts) == pytest.approx(1)
    model, rows = load_run(run), rows_of(data, "test")
    true = np.array(data.raw("price", data.splits["test"]))
    prediction = model.predict(rows, coverage=0.8)["price"]
    assert 1 - np.mean((prediction.value - true) ** 2) / true.var() > 0.9
    covered = (prediction.interval[:, 0] <= true) & (true <= prediction.interval[:, 1])
    assert covered.mean() > 0.5
    again = load(run).predict(rows, batch_size=7)["price"]
    assert np.allclose(again.value, prediction.value, atol=1e-5)


def test_report_and_comparison_show_both_baselines_beside_the_prior(
    run: Path, data: Dataset, tmp_path: Path
) -> None:
    model = load_run(run)
    metrics = evaluate(model, data, splits=["val"]).metrics["val"]
    for metric in ("MAE", "R2"):
        assert f"linear baseline {metric}" in metrics
        assert f"boosting baseline {metric}" in metrics
    assert metrics["linear baseline R2"] == pytest.approx(last_metrics(run)["linear R2"], abs=1e-5)
    assert metrics["baseline MAE"] > metrics["linear baseline MAE"]
    options: dict[str, Any] = {
        "target": "kind",
        "columns": INPUTS,
        "dim": 16,
        "layers": 1,
        "epochs": 1,
    }
    comparison = compare(
        RECIPES["fusion"],
        data,
        head=["network", "auto"],
        out=tmp_path,
        log=lambda _: None,
        **options,
    )
    table = comparison.to_markdown()
    for name in ("baseline accuracy", "linear baseline accuracy", "boosting baseline accuracy"):
        assert f"| {name} |" in table
    assert comparison.best is not None
    assert comparison.best.values == {"head": "auto"}


def test_rows_that_lack_a_value_do_not_depend_on_it(run: Path) -> None:
    module = load_run(run).module
    present = {"size": torch.ones(2, dtype=torch.bool), "title": torch.zeros(2, dtype=torch.bool)}
    titles = torch.tensor([[1, 5, 6, 2], [1, 9, 9, 2]])
    batch = Batch({"size": torch.zeros(2), "title": titles}, {**present})
    with torch.no_grad():
        hidden = module(batch)["price"]
        absent = module(Batch({"size": torch.zeros(2)}))["price"]
    assert torch.allclose(hidden[0], hidden[1])
    assert torch.allclose(hidden, absent, atol=1e-5)


def test_hidden_values_cost_no_more_than_with_the_network_alone(
    data: Dataset, tmp_path: Path
) -> None:
    losses = {}
    for head in ("network", "auto"):
        out = tmp_path / head
        options = {**SHORT, "epochs": 4, "head": head}
        train(RECIPES["fusion"], data, out=out, target="price", columns=INPUTS, **options)
        model, errors = load_run(out), []
        for column in INPUTS:
            rows = [{**row, column: None} for row in rows_of(data, "test")]
            true = np.array(data.raw("price", data.splits["test"]))
            errors.append(np.mean((np.array(model.predict(rows)["price"].value) - true) ** 2))
        losses[head] = np.mean(errors)
    assert losses["auto"] <= 1.05 * losses["network"]


def test_several_targets_of_all_types(data: Dataset, tmp_path: Path) -> None:
    targets = ("kind", "price", "grade", "tags")
    out = tmp_path / "run"
    model = train(RECIPES["fusion"], data, out=out, target=targets, columns=INPUTS, **SHORT)
    metrics = last_metrics(out)
    assert metrics["kind linear accuracy"] > 0.9
    assert metrics["tags linear F1"] > 0.6
    assert {"kind boosting weight", "price boosting weight", "grade linear weight"} <= set(metrics)
    assert "grade boosting accuracy" not in metrics, "trees predict classes and numbers only"
    prediction = model.predict(rows_of(data, "test"))
    right = np.array(prediction["kind"].value) == np.array(
        data.raw("kind", data.splits["test"]), dtype=object
    )
    assert right.mean() > 0.9
    report = evaluate(model, data, splits=["test"]).metrics["test"]
    assert "grade: linear baseline MAE" in report
    assert "grade: boosting baseline MAE" not in report
    again = load(out).predict(rows_of(data, "test"))
    assert np.allclose(again["tags"].probability, prediction["tags"].probability, atol=1e-5)


def test_run_interrupted_before_the_parts_are_fitted_resumes_exactly(
    data: Dataset, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: TrainingRun) -> None:
        raise KeyboardInterrupt

    options = {"target": "price", "columns": INPUTS, **SHORT}
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finalize", killed)
        with pytest.raises(KeyboardInterrupt):
            train(RECIPES["fusion"], data, out=tmp_path / "run", **options)
    for _ in range(2):  # the second time the parts are fitted already
        train(RECIPES["fusion"], data, out=tmp_path / "run", resume=True, quiet=True)
        expected = load_file(run / "model.safetensors")
        resumed = load_file(tmp_path / "run" / "model.safetensors")
        assert expected.keys() == resumed.keys()
        assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_without_lightgbm_the_other_parts_are_blended(
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sensorium.recipes.boosting.lightgbm_is_installed", lambda: False)
    monkeypatch.setattr("sensorium.recipes.blending.lightgbm_is_installed", lambda: False)
    options = {"target": "price", "columns": INPUTS, **SHORT, "quiet": False}
    train(RECIPES["fusion"], data, out=tmp_path / "run", **options)
    assert 'pip install "sensorium[boosting]"' in "".join(capsys.readouterr())
    metrics = last_metrics(tmp_path / "run")
    assert "boosting R2" not in metrics
    assert metrics["linear weight"] > 0.5


def test_without_validation_rows_the_network_is_alone(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    lines = [f"{i},{2 * i + i % 3},{'b,test' if i == 7 else 'a,train'}" for i in range(40)]
    path.write_text("a,y,group,split\n" + "\n".join(lines) + "\n")
    data = Dataset.open(path)
    assert not len(data.splits.get("val", ()))
    model = train(RECIPES["fusion"], data, out=tmp_path / "run", target="y", **SHORT)
    assert isinstance(model.module.blended, BlendedHeads)
    assert not model.module.blended.is_used
    assert model.predict([{"a": 3.0}])["y"].value[0] is not None
    with pytest.raises(SensoriumError, match="no validation rows"):
        train(RECIPES["fusion"], data, out=tmp_path / "no", target="y", head="linear", **SHORT)


def test_balanced_classes_weigh_in_all_parts(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=600)
    labels = np.where(a + 0.8 * rng.normal(size=600) > 1.6, "yes", "no")
    lines = [f"{x:.3f},{label}" for x, label in zip(a, labels, strict=True)]
    (tmp_path / "table.csv").write_text("a,y\n" + "\n".join(lines) + "\n")
    data = Dataset.open(tmp_path / "table.csv")
    share = {}
    for class_weight in (None, "balanced"):
        model = train(
            RECIPES["fusion"],
            data,
            out=tmp_path / str(class_weight),
            target="y",
            class_weight=class_weight,
            **SHORT,
        )
        value = model.predict([{"a": x} for x in a[:200]])["y"].value
        share[class_weight] = np.mean([v == "yes" for v in value])
    assert share["balanced"] > share[None]


def test_damaged_weights_are_an_error_of_one_line(run: Path, tmp_path: Path) -> None:
    for file in ("config.json", "schema.json", "tokenizer.json"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    saved = load_file(run / "model.safetensors")
    for name, value in (
        ("blended.linear.0.weight", torch.full((3, 1), math.nan)),
        ("blended.linear.0.weight", saved["blended.linear.0.weight"][:-1]),
        ("blended.wide.texts.0.idf", torch.zeros(3)),
        ("blended.tree_features.text_components.0.weight", torch.zeros(2, 2)),
    ):
        tensor_writer({**saved, name: value})(tmp_path / "model.safetensors")
        with pytest.raises(SensoriumError, match=r"model\.safetensors") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_export_of_a_blend_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--format", "torch", "--out", str(tmp_path / "out")]
    assert app.run(["export", str(run), *options]) == 1
    assert "Train it with --head network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
