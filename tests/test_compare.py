"""Settings are compared like for like: the same rows, each fold judged by what did not see it, nothing done twice."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from fixtures.tiny_recipe import guess, rows

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.data.splits import assign_folds
from sensorium.errors import SensoriumError
from sensorium.io.run_config import RunConfig
from sensorium.loading import load
from sensorium.training.loop import Interrupted
from sensorium.training.metrics_log import read_metrics
from sensorium.tuning import compare as compare_module
from sensorium.tuning.compare import compare
from sensorium.tuning.comparison import Comparison, RunResult

QUIET = {"say": lambda text: None}


def table(folder: Path, n: int = 90) -> Path:
    """Rows of a pair of numbers whose sum decides, in groups of three."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n))
    lines = [
        f"{x:.4f},{y:.4f},thing {i // 3},{'yes' if x + y > 0 else 'no'}"
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    (folder / "table.csv").write_text("a,b,group,label\n" + "\n".join(lines) + "\n")
    return folder / "table.csv"


def made(
    values: dict[str, list[float]], folds: int = 0, mode: Literal["min", "max"] = "min"
) -> Comparison:
    """A comparison in which each setting came to these losses."""
    results = [
        ({"way": way}, f"fold={i}", RunResult("x", {"loss": loss}, len(way), 1.0))
        for way, losses in values.items()
        for i, loss in enumerate(losses)
    ]
    return Comparison("r", ["d"], "loss", mode, folds, {"dim": 8}, results, Path("out"))


class TestFolds:
    def test_what_shows_the_same_stays_together_and_test_is_not_touched(
        self, tmp_path: Path
    ) -> None:
        data = Dataset.open(table(tmp_path))
        train, groups = data.splits["train"], data.groups()
        folds = data.folds(4)
        assert sorted(np.concatenate([f.splits["fold"] for f in folds])) == sorted(train)
        for fold in folds:
            there, held = fold.splits["train"], fold.splits["fold"]
            assert sorted([*there, *held]) == sorted(train)
            assert not set(groups[there]) & set(groups[held])
            assert all(
                np.array_equal(fold.splits[name], data.splits[name]) for name in ("val", "test")
            )
        assert len({len(set(groups[f.splits["fold"]])) for f in folds}) <= 2, (
            "as many things in each, but for one"
        )
        assert "fold" not in data.splits

    def test_by_a_stated_hash(self) -> None:
        keys = [f"thing {i % 11}" for i in range(40)]
        fold = assign_folds(keys, 3)
        assert np.array_equal(fold, assign_folds(keys, 3))
        assert sorted(Counter(fold[:11].tolist()).values()) == [3, 4, 4]
        stated = sorted(
            set(keys), key=lambda key: hashlib.md5(f"sensorium:fold:{key}".encode()).digest()[:8]
        )
        assert [fold[keys.index(key)] for key in stated] == [i % 3 for i in range(11)]
        for n in (1, 12):
            with pytest.raises(SensoriumError, match="choose from 2 to 11"):
                assign_folds(keys, n)


def test_each_setting_is_trained_once_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], dropout=0.0, epochs=2, **QUIET)
    assert {s.name for s in found.settings} == {"dim=4", "dim=8"}
    assert found.best is found.settings[0]
    kept = {at: RunConfig.load(tmp_path / "out" / at) for at in ("dim=4", "dim=8")}
    assert {c.data["sha256"] for c in kept.values()} == {kept["dim=4"].data["sha256"]}
    assert [kept[at].keywords["dim"] for at in kept] == [4, 8]
    assert {
        (c.keywords["epochs"], c.keywords["seed"], c.keywords["dropout"]) for c in kept.values()
    } == {(2, 0, 0.0)}
    for setting in found.settings:  # the figure is that of the run's validation
        run = setting.runs[""]
        at = tmp_path / "out" / run.folder
        written = [
            e["evaluation"]["fit"] for e in read_metrics(at / "metrics.jsonl") if "evaluation" in e
        ]
        assert run.metrics["fit"] == pytest.approx(max(written), abs=1e-6)
        assert run.num_parameters == sum(
            p.numel() for p in load(at, recipe=guess).module.parameters()
        )
        assert run.cpu_seconds > 0
    again = compare_without_training(monkeypatch, tmp_path / "out")
    assert again.table_rows() == found.table_rows()
    assert again.recommendation() == found.recommendation()
    assert (tmp_path / "out" / "comparison.md").read_text() == found.to_markdown()


def compare_without_training(monkeypatch: pytest.MonkeyPatch, out: Path) -> Comparison:
    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "train", lambda *a, **k: pytest.fail("trained again"))
        return compare(guess, rows(), out=out, dim=[4, 8], dropout=0.0, epochs=2, **QUIET)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(guess, rows(), out=tmp_path / "whole", dim=[4, 8], epochs=2, **QUIET)
    real, calls = compare_module.train, []

    def stops(*given: object, **named: object) -> object:
        calls.append(named["resume"])
        if len(calls) == 2:
            raise Interrupted("stopped", 130)
        return real(*given, **named)

    monkeypatch.setattr(compare_module, "train", stops)
    with pytest.raises(Interrupted, match="goes on from here"):
        compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=2, **QUIET)
    found = compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=2, **QUIET)
    assert len(calls) == 3
    assert [r[:-1] for r in found.table_rows()] == [r[:-1] for r in whole.table_rows()]
    assert compare(guess, rows(), out=tmp_path / "out", dim=[4, 8, 16], epochs=2, **QUIET).settings
    assert len(calls) == 4


def test_a_fold_is_judged_by_a_model_that_did_not_see_it(tmp_path: Path) -> None:
    data = rows()
    found = compare(
        guess, data, out=tmp_path / "out", dim=[4, 8], folds=3, seed=[0, 1], epochs=1, **QUIET
    )
    assert all(len(s.runs) == 6 for s in found.settings)
    assert "6 runs on 3 folds of train" in found.recommendation()
    assert "sensorium train guess tiny --epochs 1 --dim" in found.recommendation()
    part = data.folds(3)[1]
    at = tmp_path / "out" / "dim=4,fold=2,seed=1"
    model = load(at, recipe=guess)
    assert RunConfig.load(at).data["splits"] == {name: len(r) for name, r in part.splits.items()}
    x = np.stack([part.raw(c, part.splits["fold"]) for c in "abc"], 1)
    mean, std = (
        np.array([getattr(model.schema[c], what) for c in "abc"]) for what in ("mean", "std")
    )
    y = (np.array(part.raw("y", part.splits["fold"])) - model.schema["y"].mean) / model.schema[
        "y"
    ].std
    loss = np.square(model.predict(x=((x - mean) / std).tolist()) - y).mean()
    run = next(s for s in found.settings if s.values["dim"] == 4).runs["fold=2,seed=1"]
    assert run.metrics["val_loss"] == pytest.approx(loss, rel=1e-4)
    assert model.schema["a"].mean == pytest.approx(np.mean(data.raw("a", part.splits["train"]))), (
        "learned without it"
    )


def test_what_is_taken_and_what_is_not_told_apart() -> None:
    found = made(
        {"a": [1.0, 1.2, 1.1, 0.9], "bb": [1.02, 1.18, 1.12, 0.93], "ccc": [2.0, 2.2, 2.1, 1.9]}
    )
    assert [s.name for s in found.settings] == ["way=a", "way=bb", "way=ccc"]
    assert [s.name for s in found.tied] == ["way=bb"], "paired: how hard a fold is does not count"
    assert "Take way=a: loss 1.05 ± 0.13, 4 runs" in found.recommendation()
    assert "way=a has the fewest" in found.recommendation()
    assert made({"a": [1.0, 1.2], "b": [2.0, 2.2]}, mode="max").settings[0].name == "way=b"
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.46 < 4.30; without chance none is near
    assert made({"a": [0.0, 0.0, 0.0], "b": [1.0, 2.0, 3.0]}).tied
    assert not made({"a": [0.0, 0.0, 0.0], "b": [1.4, 2.0, 2.6]}).tied  # t = 5.8
    assert made(
        {"a": [0.0, 0.0, 0.0], "b": [1.4, 2.0, 2.6]}, folds=3
    ).tied  # training rows overlap: t = 3.7
    once = made({"a": [1.0], "b": [1.1]})
    assert once.tied == []
    assert "One run each" in once.recommendation()


def test_a_run_that_fails_is_told_of_and_the_others_go_on(tmp_path: Path) -> None:
    found = compare(
        guess, rows(), out=tmp_path / "out", lr=[1e-2, 1e30], epochs=1, max_grad_norm=0, **QUIET
    )
    assert found.best is not None
    assert found.best.values == {"lr": 1e-2}
    assert found.settings[-1].error
    assert "lr=1e+30 failed: " in found.recommendation()
    assert found.table_rows()[-1][1] == "failed"
    assert math.isfinite(found.best.mean("fit"))


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    for keywords, what in (
        ({}, "nothing is varied"),
        ({"dmi": [1, 2]}, "did you mean 'dim'"),
        ({"dim": []}, "no value"),
        ({"lr": [1e-3, -1.0]}, "lr is -1"),
        ({"dim": [4, 8], "folds": 99}, "choose from 2 to"),
    ):
        with pytest.raises(SensoriumError, match=what):
            compare(guess, rows(), out=tmp_path / "no", **keywords, **QUIET)
    assert not (tmp_path / "no").exists(), "said before any work"
    compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=1, **QUIET)
    for keywords, what in (
        ({"epochs": 2}, "other keywords"),
        ({"epochs": 1, "folds": 2}, "other folds"),
    ):
        with pytest.raises(SensoriumError, match=what):
            compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], **keywords, **QUIET)
    (tmp_path / "out" / "comparison.json").write_text(
        '{"plan": {}, "spent": {}, "runs": {"x": {"figure": 1}}}'
    )
    with pytest.raises(SensoriumError, match="cannot be read"):
        compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=1, **QUIET)
    (tmp_path / "file").write_text("")
    with pytest.raises(SensoriumError, match="cannot write"):
        compare(guess, rows(), out=tmp_path / "file", dim=[4, 8], **QUIET)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "compare",
        "fusion",
        str(table(tmp_path)),
        *"--target label --epochs 1 --dim 16 --depth 1".split(),
    ]
    out = ["--out", str(tmp_path / "out")]
    assert app.run([*asked, *out, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["settings"]) == 8
    assert {s["setting"]["fusion"] for s in told["settings"]} >= {"concat", "low_rank"}
    assert (
        app.run(
            [
                *asked,
                "--fusion",
                "sum",
                "--drop",
                "0,0.2",
                "--type",
                "group=group",
                "--folds",
                "2",
                "--out",
                str(tmp_path / "more"),
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "--type group=group --target label" in " ".join(out.split())
    assert "Take drop=" in out
    assert err.count("\n[") == 4
    assert "± " in out
    for given, code, what in (
        (["--fusion", "sum,summ"], 2, 'Did you mean "sum"?'),
        (["--drop", "x"], 2, "into float"),
        (["--fusion", "sum"], 1, "nothing is varied"),
        (["--dmi", "1"], 2, "Did you mean --dim?"),
    ):
        assert app.run([*asked, *given]) == code
        assert what in capsys.readouterr().err
