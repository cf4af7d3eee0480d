"""Trees that LightGBM grew say here what they say there, know no zero that is not one, and are checked before use."""

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
    TreeEnsemble,
    Trees,
    num_tabular_features,
    tabular_features,
)
from sensorium.models.handcrafted_features import HandcraftedFeatures
from sensorium.nn.tokens import Batch
from sensorium.recipes import RECIPES, boosting
from sensorium.training.loop import train
from sensorium.training.run import TrainingRun

SHORT = {"dim": 16, "layers": 1, "epochs": 2, "quiet": True, "head": "boosting"}


def table(folder: Path, n: int = 300) -> Path:
    """Rows in which steps of two numbers and a colour decide: what trees find at once."""
    rng = np.random.default_rng(0)
    a, b, colour = rng.normal(size=n), rng.normal(size=n), rng.integers(0, 3, n)
    price = 10 * (a > 0.3) + 5 * (b > 0) * (colour == 1) + 0.1 * rng.normal(size=n)
    gone = rng.random((2, n)) < 0.1
    lines = [
        f"{'' if gone[0, i] else round(a[i], 4)},{round(b[i], 4)},{'' if gone[1, i] else 'xyz'[colour[i]]},"
        f"{price[i]:.4f},{'high' if price[i] > 5 else 'low'},{'abc'[int(price[i] > 3) + int(price[i] > 8)]}"
        for i in range(n)
    ]
    path = folder / "table.csv"
    path.write_text("a,b,colour,price,level,grade\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(table(tmp_path_factory.mktemp("boosting")))


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train(RECIPES["fusion"], data, out=out, target="price", columns=("a", "b", "colour"), **SHORT)
    return out


def rows_of(data: Dataset, split: str) -> list[dict[str, Any]]:
    return [
        {c: data.raw(c, [i])[0] for c in ("a", "b", "colour")} for i in data.splits[split].tolist()
    ]


class TestTrees:
    @pytest.mark.parametrize("classes", [0, 2, 4])
    def test_they_say_what_lightgbm_says_of_what_is_missing_too(self, classes: int) -> None:
        rng = np.random.default_rng(classes)
        x = rng.normal(size=(400, 5)).astype(np.float32)
        x[:, 3] = rng.integers(0, 2, 400)
        y = x[:, 0] * (x[:, 1] > 0) + x[:, 3]
        x[rng.random(x.shape) < 0.2] = np.nan
        y = (
            y
            if not classes
            else np.digitize(y, np.quantile(y, np.linspace(0, 1, classes + 1)[1:-1]))
        )
        what = {
            "objective": ["regression", "", "binary", "", "multiclass"][classes],
            "verbosity": -1,
            "num_threads": 1,
        }
        if classes > 2:
            what["num_class"] = classes
        made = lightgbm.train(what, lightgbm.Dataset(x, y), 12)
        trees = Trees(5, max(1, classes if classes > 2 else 1))
        trees.load_buffers(boosting.from_lightgbm(made.dump_model()["tree_info"]))
        new = rng.normal(size=(100, 5)).astype(np.float32)
        new[rng.random(new.shape) < 0.3] = np.nan
        new[0] = np.nan
        theirs = made.predict(new, raw_score=True).reshape(100, -1)
        assert np.abs(trees(torch.from_numpy(new)).numpy() - theirs).max() < 1e-9
        assert torch.equal(trees(torch.from_numpy(new))[40:41], trees(torch.from_numpy(new[40:41])))

    def test_a_gap_where_none_was_seen_goes_the_way_of_most_rows_and_is_no_zero(self) -> None:
        x = np.concatenate([np.full(80, 5.0), np.full(40, -5.0)])[:, None].astype(np.float32)
        made = lightgbm.train(
            {"objective": "regression", "verbosity": -1, "min_data_in_leaf": 5},
            lightgbm.Dataset(x, np.sign(x[:, 0])),
            5,
        )
        trees = Trees(1, 1)
        trees.load_buffers(boosting.from_lightgbm(made.dump_model()["tree_info"]))
        high, low, gap = trees(torch.tensor([[5.0], [-5.0], [math.nan]])).flatten().tolist()
        assert gap == high > low
        assert made.predict(np.array([[np.nan]]))[0] == pytest.approx(low), (
            "LightGBM itself takes it for a zero"
        )

    def test_without_any_tree_there_is_nothing_to_add(self) -> None:
        assert not Trees(3, 2)(torch.randn(4, 3)).any()
        second = TreeEnsemble(Numeric(), ["a"], {"a": Numeric()}, HandcraftedFeatures({}), 4)
        linear = torch.randn(3, 2)
        assert torch.equal(
            second(
                linear,
                {"a": torch.randn(3)},
                {"a": torch.ones(3, dtype=torch.bool)},
                torch.randn(3, 4),
            ),
            linear,
        )


def test_columns_as_trees_read_them() -> None:
    columns = {
        "n": Numeric(),
        "c": Category(("x", "y"), (1, 5)),
        "o": Ordinal(("1", "2"), (1, 1)),
        "d": Datetime(),
        "t": Multilabel("|", ("p",), (2,), 4),
        "wide": Category(tuple(map(str, range(99))), tuple(range(99))),
    }
    given = {
        "n": torch.tensor([0.0, 2.0]),
        "c": torch.tensor([0, 2]),
        "o": torch.tensor([1, 2]),
        "d": Datetime().fake(2, torch.Generator().manual_seed(0)),
        "t": torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        "wide": torch.tensor([98, 3]),
    }
    there = {name: torch.ones(2, dtype=torch.bool) for name in columns}
    x = tabular_features(columns, given, there)
    assert x.shape[1] == sum(map(num_tabular_features, columns.values())) == 1 + 2 + 1 + 9 + 2 + 64
    assert x[0, :4].tolist() == [0, 0, 1, 1], "the commonest class first"
    assert x[1, :3].tolist() == [2, 0, 0], "a class never seen is none of them"
    assert x[1, 3].isnan(), "a rank never seen is missing"
    assert x[0, 15] == 1
    assert not x[1, 15:].any()
    there["n"][0] = there["t"][1] = False
    there["c"] = torch.zeros(2, dtype=torch.bool)
    x = tabular_features(
        columns, {name: values for name, values in given.items() if name != "c"}, there
    )
    assert x[0, :3].isnan().all()
    assert x[1, 13:15].isnan().all()
    assert not x[1, 0].isnan()


def test_it_learns_what_trees_learn_is_calibrated_and_comes_back(run: Path, data: Dataset) -> None:
    model, rows = load(run), rows_of(data, "test")
    found, true = (
        model.predict(rows, level=0.8)["price"],
        np.array(data.raw("price", data.splits["test"])),
    )
    whole = np.array([all(value is not None for value in row.values()) for row in rows])
    assert np.abs(found.value - true)[whole].mean() < 0.2 * true.std()
    inside = (found.interval[:, 0] <= true) & (true <= found.interval[:, 1])
    assert inside.mean() > 0.5
    assert np.isfinite(found.interval).all()
    again = load(run).predict(rows, batch_size=7)["price"]
    assert np.allclose(again.value, found.value, atol=1e-6)
    figures = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1][
        "evaluation"
    ]
    assert figures["trees val_loss"] < figures["linear val_loss"]
    assert 0 < figures["tree weight"] <= 1
    assert figures["val_loss"] == pytest.approx(
        min(figures[name] for name in figures if "loss" in name), abs=0.2
    )
    card = (run / "README.md").read_text()
    assert "| trees val_loss | " in card
    assert "| linear val_loss | " in card
    with torch.no_grad():  # what is kept is what was judged
        prepared = data.prepare(model.schema, model.recipe.data.columns, quiet=True)
        judged = model.recipe.evaluation.validate(
            model.module, prepared, data.splits["val"]
        ).metrics
    assert judged["val_loss"] == pytest.approx(figures["val_loss"], abs=1e-6)


def test_what_is_missing_is_missing_and_nothing_gets_the_prior(run: Path) -> None:
    model = load(run)
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        found = model.predict(
            [{"a": None, "b": None, "colour": None}, {"a": None, "b": 1.0, "colour": "x"}]
        )["price"]
    assert found.value[0] == pytest.approx(model.schema["price"].mean, abs=1e-4)
    zero = model.predict([{"a": model.schema["a"].mean, "b": 1.0, "colour": "x"}])["price"]
    assert zero.value[0] != pytest.approx(found.value[1], abs=1e-3)
    batch = Batch(
        {"a": torch.zeros(3), "b": torch.ones(3)}, {"a": torch.tensor([False, False, True])}
    )
    other = batch.with_columns({"a": torch.tensor([7.0, -7.0, 0.0])})
    with torch.no_grad():
        assert torch.equal(model.module(batch)["price"], model.module(other)["price"])


def test_classes_two_and_more_at_once(data: Dataset, tmp_path: Path) -> None:
    model = train(
        RECIPES["fusion"],
        data,
        out=tmp_path / "run",
        target=("level", "grade"),
        columns=("a", "b", "colour"),
        **SHORT,
    )
    found = model.predict(rows_of(data, "test"))
    for name in ("level", "grade"):
        right = np.array(found[name].value) == np.array(data.raw(name, data.splits["test"]))
        assert right.mean() > 0.75
        assert np.allclose(found[name].probability.sum(1), 1, atol=1e-5)
    figures = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ][-1]
    assert {"level trees val_loss", "grade linear val_loss"} <= set(figures["evaluation"])
    again = load(tmp_path / "run").predict(rows_of(data, "test"))
    assert np.allclose(again["grade"].probability, found["grade"].probability, atol=1e-6)


def test_a_run_killed_while_trees_grow_goes_on(
    data: Dataset, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: TrainingRun) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            train(
                RECIPES["fusion"],
                data,
                out=tmp_path / "run",
                target="price",
                columns=("a", "b", "colour"),
                **SHORT,
            )
    train(RECIPES["fusion"], data, out=tmp_path / "run", resume=True, quiet=True)
    whole, found = (
        load_file(run / "model.safetensors"),
        load_file(tmp_path / "run" / "model.safetensors"),
    )
    assert whole.keys() == found.keys()
    assert all(torch.equal(whole[name], found[name]) for name in whole)


@pytest.mark.parametrize("head", ["linear", "boosting"])
def test_what_it_weighs_is_told_before_and_after(
    data: Dataset, run: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = f"--target price --columns a --columns b --columns colour --dim 16 --layers 1 --head {head} --json"
    assert app.run(["summary", "fusion", "--data", data.source["path"], *asked.split()]) == 0
    before = json.loads(capsys.readouterr().out)
    assert app.run(["summary", str(run), "--json"]) == 0
    after = json.loads(capsys.readouterr().out)
    assert before["flops_forward"] > 1000
    assert after["parameters"] == sum(p.numel() for p in load(run).module.parameters())
    for more in ("--mixup 0.2", "--contrastive-weight 0.1 --fusion attention"):
        assert (
            app.run(
                ["show", "fusion", "--data", data.source["path"], *asked.split(), *more.split()]
            )
            == 0
        )


HOSTILE: dict[str, tuple[dict[str, Tensor], str]] = {
    "another feature": ({"feature": torch.tensor([999], dtype=torch.int32)}, "not among the"),
    "a feature below zero": ({"feature": torch.tensor([-1], dtype=torch.int32)}, "not among the"),
    "a loop": ({"left": torch.tensor([0], dtype=torch.int32)}, "leads nowhere"),
    "no such leaf": ({"right": torch.tensor([-9], dtype=torch.int32)}, "leads nowhere"),
    "no such node": ({"root": torch.tensor([7], dtype=torch.int32)}, "leads nowhere"),
    "a half": ({"threshold": torch.zeros(0, dtype=torch.float64)}, "sizes"),
    "another type": ({"leaf": torch.zeros(2)}, "trees have"),
    "not a number": ({"leaf": torch.tensor([1.0, math.nan], dtype=torch.float64)}, "not finite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(run: Path, tmp_path: Path, name: str) -> None:
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
    whole = {
        part: torch.tensor(values, dtype=kinds.get(part, torch.int32))
        for part, values in stump.items()
    }
    (trees := Trees(19, 1)).load_buffers(whole)
    assert trees(torch.zeros(1, 19)).item() == 1
    changed, what = HOSTILE[name]
    for file in ("config.json", "schema.json"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    kept = load_file(run / "model.safetensors")
    tensor_writer(
        {**kept, **{f"boosted.0.trees.{part}": v for part, v in {**whole, **changed}.items()}}
    )(tmp_path / "model.safetensors")
    with pytest.raises(SensoriumError, match=what) as error:
        load(tmp_path)
    assert "model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_bytes_that_were_changed_are_refused(run: Path, tmp_path: Path) -> None:
    for file in ("config.json", "schema.json"):
        (tmp_path / file).write_bytes((run / file).read_bytes())
    damaged = bytearray((run / "model.safetensors").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(damaged))
    with pytest.raises(SensoriumError, match="is damaged"):
        load(tmp_path)


def test_what_it_cannot_do_is_said(
    data: Dataset,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ranks = Dataset.open(data.source["path"], types={"grade": 'ordinal:classes=["a","b","c"]'})
    with pytest.raises(SensoriumError, match=r"'grade' is ordinal\. Use --head linear"):
        train(RECIPES["fusion"], ranks, out=tmp_path / "no", target="grade", **SHORT)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "sensorium.recipes.recipe.find_spec",
        lambda name: None if name == "lightgbm" else found(name),
    )
    asked = ["train", "fusion", data.source["path"], "--target", "price", "--head", "boosting"]
    assert app.run([*asked, "--out", str(tmp_path / "no")]) == 1
    assert 'pip install "sensorium[boosting]"' in capsys.readouterr().err
    assert load(run).predict([{"a": 1.0}])["price"].value, "to answer needs no LightGBM"


def test_without_validation_rows_it_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        "a,y,group,split\n1,2,one,train\n2,4,one,train\n3,9,two,test\n"
    )
    data = Dataset.open(tmp_path / "table.csv")
    assert not len(data.splits.get("val", ()))
    with pytest.raises(SensoriumError, match="no validation rows"):
        train(RECIPES["fusion"], data, out=tmp_path / "run", target="y", **SHORT)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
