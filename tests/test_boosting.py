"""Tests of boosted trees: parity with LightGBM, missing values, runs, and validation of files."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import tensor_writer
from sensorium.loading import load
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.boosted_trees import (
    Trees,
    num_tabular_features,
    tabular_features,
)
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.recipes import RECIPES, boosting
from sensorium.training.checkpoint import Model
from sensorium.training.loop import train
from sensorium.training.run import TrainingRun

SHORT = {"dim": 16, "layers": 1, "epochs": 2, "quiet": True, "head": "boosting"}


def write_table(folder: Path, n: int = 300) -> Path:
    """Write a table whose targets are step functions of two numbers and a color."""
    rng = np.random.default_rng(0)
    a, b, color = rng.normal(size=n), rng.normal(size=n), rng.integers(0, 3, n)
    price = 10 * (a > 0.3) + 5 * (b > 0) * (color == 1) + 0.1 * rng.normal(size=n)
    is_missing = rng.random((2, n)) < 0.1
    lines: list[str] = []
    for i in range(n):
        a_cell = "" if is_missing[0, i] else round(a[i], 4)
        color_cell = "" if is_missing[1, i] else "xyz"[color[i]]
        level = "high" if price[i] > 5 else "low"
        grade = "abc"[int(price[i] > 3) + int(price[i] > 8)]
        lines.append(f"{a_cell},{round(b[i], 4)},{color_cell},{price[i]:.4f},{level},{grade}")
    path = folder / "table.csv"
    path.write_text("a,b,color,price,level,grade\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write_table(tmp_path_factory.mktemp("boosting")))


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(RECIPES["fusion"], data, out=out, target="price", columns=("a", "b", "color"), **SHORT)
    return out


def load_run(folder: Path) -> Model:
    model = load(folder)
    assert isinstance(model, Model)
    return model


def rows_of(data: Dataset, split: str) -> list[dict[str, Any]]:
    return [
        {c: data.raw(c, [i])[0] for c in ("a", "b", "color")} for i in data.splits[split].tolist()
    ]


class TestTrees:
    @pytest.mark.parametrize("classes", [0, 2, 4])
    def test_outputs_equal_lightgbm_with_missing_values(self, classes: int) -> None:
        rng = np.random.default_rng(classes)
        x = rng.normal(size=(400, 5)).astype(np.float32)
        x[:, 3] = rng.integers(0, 2, 400)
        y = x[:, 0] * (x[:, 1] > 0) + x[:, 3]
        x[rng.random(x.shape) < 0.2] = np.nan
        if classes:
            y = np.digitize(y, np.quantile(y, np.linspace(0, 1, classes + 1)[1:-1]))
        params: dict[str, Any] = {
            "objective": {0: "regression", 2: "binary", 4: "multiclass"}[classes],
            "verbosity": -1,
            "num_threads": 1,
        }
        if classes > 2:
            params["num_class"] = classes
        booster = lightgbm.train(params, lightgbm.Dataset(x, y), 12)
        trees = Trees(5, classes if classes > 2 else 1)
        trees.load_buffers(boosting.from_lightgbm(booster.dump_model()["tree_info"]))
        new = rng.normal(size=(100, 5)).astype(np.float32)
        new[rng.random(new.shape) < 0.3] = np.nan
        new[0] = np.nan
        reference = np.asarray(booster.predict(new, raw_score=True)).reshape(100, -1)
        assert np.abs(trees(torch.from_numpy(new)).numpy() - reference).max() < 1e-9
        assert torch.equal(trees(torch.from_numpy(new))[40:41], trees(torch.from_numpy(new[40:41])))

    def test_new_missing_value_follows_the_majority_branch(self) -> None:
        x = np.concatenate([np.full(80, 5.0), np.full(40, -5.0)])[:, None].astype(np.float32)
        booster = lightgbm.train(
            {"objective": "regression", "verbosity": -1, "min_data_in_leaf": 5},
            lightgbm.Dataset(x, np.sign(x[:, 0])),
            5,
        )
        trees = Trees(1, 1)
        trees.load_buffers(boosting.from_lightgbm(booster.dump_model()["tree_info"]))
        high, low, gap = trees(torch.tensor([[5.0], [-5.0], [math.nan]])).flatten().tolist()
        assert gap == high > low
        assert np.asarray(booster.predict(np.array([[np.nan]])))[0] == pytest.approx(low), (
            "LightGBM itself reads it as zero"
        )

    def test_without_trees_the_output_is_zero(self) -> None:
        assert not Trees(3, 2)(torch.randn(4, 3)).any()


def test_tabular_features_of_all_column_types() -> None:
    columns = {
        "n": Numeric(),
        "c": Category(("x", "y"), (1, 5)),
        "o": Ordinal(("1", "2"), (1, 1)),
        "d": Datetime(),
        "t": Multilabel("|", ("p",), (2,), 4),
        "wide": Category(tuple(map(str, range(99))), tuple(range(99))),
    }
    inputs: dict[ColumnKey, Tensor] = {
        "n": torch.tensor([0.0, 2.0]),
        "c": torch.tensor([0, 2]),
        "o": torch.tensor([1, 2]),
        "d": Datetime().fake(2, torch.Generator().manual_seed(0)),
        "t": torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        "wide": torch.tensor([98, 3]),
    }
    present = {name: torch.ones(2, dtype=torch.bool) for name in columns}
    x = tabular_features(columns, inputs, present)
    assert x.shape[1] == sum(map(num_tabular_features, columns.values())) == 1 + 2 + 1 + 9 + 2 + 64
    assert x[0, :4].tolist() == [0, 0, 1, 1], "the most common class is first"
    assert x[1, :3].tolist() == [2, 0, 0], "an unseen class has no feature"
    assert x[1, 3].isnan(), "an unseen rank is missing"
    assert x[0, 15] == 1
    assert not x[1, 15:].any()
    present["n"][0] = present["t"][1] = False
    present["c"] = torch.zeros(2, dtype=torch.bool)
    x = tabular_features(
        columns, {name: values for name, values in inputs.items() if name != "c"}, present
    )
    assert x[0, :3].isnan().all()
    assert x[1, 13:15].isnan().all()
    assert not x[1, 0].isnan()


def test_run_predicts_well_is_calibrated_and_reloads(run: Path, data: Dataset) -> None:
    model, rows = load_run(run), rows_of(data, "test")
    prediction = model.predict(rows, coverage=0.8)["price"]
    true = np.array(data.raw("price", data.splits["test"]))
    complete = np.array([all(value is not None for value in row.values()) for row in rows])
    assert np.abs(prediction.value - true)[complete].mean() < 0.2 * true.std()
    covered = (prediction.interval[:, 0] <= true) & (true <= prediction.interval[:, 1])
    assert covered.mean() > 0.5
    assert np.isfinite(prediction.interval).all()
    again = load(run).predict(rows, batch_size=7)["price"]
    assert np.allclose(again.value, prediction.value, atol=1e-6)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1][
        "evaluation"
    ]
    assert metrics["boosting R2"] > metrics["network R2"]
    assert metrics["boosting val_loss"] < metrics["network val_loss"]
    assert 0 < metrics["boosting weight"] <= 1
    assert metrics["network weight"] == pytest.approx(1 - metrics["boosting weight"])
    assert "linear weight" not in metrics, "the linear model is a baseline only"
    assert metrics["val_loss"] == pytest.approx(
        min(metrics[name] for name in metrics if "loss" in name), abs=0.2
    )
    card = (run / "README.md").read_text()
    assert "| boosting R2 | " in card
    assert "| linear R2 | " in card
    with torch.no_grad():  # the saved weights are those evaluated
        prepared = data.prepare(model.schema, model.recipe.data.columns, quiet=True)
        assert model.recipe.evaluation.validate is not None
        evaluated = model.recipe.evaluation.validate(
            model.module, prepared, data.splits["val"]
        ).metrics
    assert evaluated["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-6)


def test_missing_values_are_masked_and_empty_rows_get_the_prior(run: Path) -> None:
    model = load_run(run)
    a_column, price_column = model.schema["a"], model.schema["price"]
    assert isinstance(a_column, Numeric)
    assert isinstance(price_column, Numeric)
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        prediction = model.predict(
            [{"a": None, "b": None, "color": None}, {"a": None, "b": 1.0, "color": "x"}]
        )["price"]
    assert prediction.value[0] == pytest.approx(price_column.mean, abs=1e-4)
    zero = model.predict([{"a": a_column.mean, "b": 1.0, "color": "x"}])["price"]
    assert zero.value[0] != pytest.approx(prediction.value[1], abs=1e-3)
    batch = Batch(
        {"a": torch.zeros(3), "b": torch.ones(3)}, {"a": torch.tensor([False, False, True])}
    )
    other = batch.with_columns({"a": torch.tensor([7.0, -7.0, 0.0])})
    with torch.no_grad():
        assert torch.equal(model.module(batch)["price"], model.module(other)["price"])


def test_binary_and_multiclass_targets_together(data: Dataset, tmp_path: Path) -> None:
    model = train(
        RECIPES["fusion"],
        data,
        out=tmp_path / "run",
        target=("level", "grade"),
        columns=("a", "b", "color"),
        **SHORT,
    )
    prediction = model.predict(rows_of(data, "test"))
    for name in ("level", "grade"):
        right = np.array(prediction[name].value) == np.array(data.raw(name, data.splits["test"]))
        assert right.mean() > 0.75
        assert np.allclose(prediction[name].probability.sum(1), 1, atol=1e-5)
    metrics = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ][-1]
    assert {"level boosting val_loss", "grade network accuracy"} <= set(metrics["evaluation"])
    again = load(tmp_path / "run").predict(rows_of(data, "test"))
    assert np.allclose(again["grade"].probability, prediction["grade"].probability, atol=1e-6)


def test_run_interrupted_while_fitting_trees_resumes(
    data: Dataset, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: TrainingRun) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finalize", killed)
        with pytest.raises(KeyboardInterrupt):
            train(
                RECIPES["fusion"],
                data,
                out=tmp_path / "run",
                target="price",
                columns=("a", "b", "color"),
                **SHORT,
            )
    train(RECIPES["fusion"], data, out=tmp_path / "run", resume=True, quiet=True)
    uninterrupted = load_file(run / "model.safetensors")
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert uninterrupted.keys() == resumed.keys()
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


@pytest.mark.parametrize("head", ["network", "linear", "boosting", "auto"])
def test_summary_before_and_after_training(
    data: Dataset, run: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "--columns a --columns b --columns color"
    options = f"--target price {columns} --dim 16 --layers 1 --head {head} --json"
    assert app.run(["summary", "fusion", "--data", data.source["path"], *options.split()]) == 0
    before = json.loads(capsys.readouterr().out)
    assert app.run(["summary", str(run), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert before["flops_forward"] > 1000
    assert after["parameters"] == sum(p.numel() for p in load(run).module.parameters())
    for more in ("--mixup 0.2", "--contrastive-weight 0.1 --fusion attention"):
        assert (
            app.run(
                [
                    "summary",
                    "fusion",
                    "--data",
                    data.source["path"],
                    *options.split(),
                    *more.split(),
                ]
            )
            == 0
        )


INVALID_TREES: dict[str, tuple[dict[str, Tensor], str]] = {
    "unknown feature": ({"feature": torch.tensor([999], dtype=torch.int32)}, "not among the"),
    "negative feature": ({"feature": torch.tensor([-1], dtype=torch.int32)}, "not among the"),
    "loop": ({"left": torch.tensor([0], dtype=torch.int32)}, "does not exist"),
    "unknown leaf": ({"right": torch.tensor([-9], dtype=torch.int32)}, "does not exist"),
    "unknown node": ({"root": torch.tensor([7], dtype=torch.int32)}, "does not exist"),
    "missing thresholds": ({"threshold": torch.zeros(0, dtype=torch.float64)}, "sizes"),
    "wrong dtype": ({"leaf": torch.zeros(2)}, "has dtype"),
    "nan leaf": ({"leaf": torch.tensor([1.0, math.nan], dtype=torch.float64)}, "not finite"),
}


@pytest.mark.parametrize("name", INVALID_TREES)
def test_invalid_trees_in_a_file_are_an_error(run: Path, tmp_path: Path, name: str) -> None:
    stump = {
        "root": [0],
        "feature": [0],
        "left": [-1],
        "right": [-2],
        "missing": [True],
        "threshold": [0.0],
        "leaf": [1.0, 2.0],
    }
    kinds = {"threshold": torch.float64, "leaf": torch.float64, "missing": torch.bool}
    valid_trees = {
        part: torch.tensor(values, dtype=kinds.get(part, torch.int32))
        for part, values in stump.items()
    }
    trees = Trees(19, 1)
    trees.load_buffers(valid_trees)
    assert trees(torch.zeros(1, 19)).item() == 1
    changed, message = INVALID_TREES[name]
    for file in ("config.json", "schema.json"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    saved = load_file(run / "model.safetensors")
    tensor_writer(
        {
            **saved,
            **{f"blended.trees.0.{part}": v for part, v in {**valid_trees, **changed}.items()},
        }
    )(tmp_path / "model.safetensors")
    with pytest.raises(SensoriumError, match=message) as error:
        load(tmp_path)
    assert "model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_changed_bytes_in_a_file_are_an_error(run: Path, tmp_path: Path) -> None:
    for file in ("config.json", "schema.json"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    damaged = bytearray((run / "model.safetensors").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(SensoriumError, match="is damaged"):
        load(tmp_path)


def test_unsupported_target_and_missing_lightgbm_are_errors(
    data: Dataset,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranks = Dataset.open(data.source["path"], types={"grade": 'ordinal:classes=["a","b","c"]'})
    with pytest.raises(SensoriumError, match=r"'grade' is ordinal\. Use --head linear"):
        train(RECIPES["fusion"], ranks, out=tmp_path / "no", target="grade", **SHORT)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "sensorium.recipes.recipe.find_spec",
        lambda name: None if name == "lightgbm" else find_spec(name),
    )
    options = ["train", "fusion", data.source["path"], "--target", "price", "--head", "boosting"]
    assert app.run([*options, "--out", str(tmp_path / "no")]) == 1
    assert 'pip install "sensorium[boosting]"' in capsys.readouterr().err
    assert load(run).predict([{"a": 1.0}])["price"].value, "inference needs no LightGBM"


def test_missing_validation_rows_are_an_error_before_training(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        "a,y,group,split\n1,2,one,train\n2,4,one,train\n3,9,two,test\n"
    )
    data = Dataset.open(tmp_path / "table.csv")
    assert not len(data.splits.get("val", ()))
    with pytest.raises(SensoriumError, match="no validation rows"):
        train(RECIPES["fusion"], data, out=tmp_path / "run", target="y", **SHORT)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
