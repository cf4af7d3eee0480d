"""Comparing settings: same rows, folds evaluated by models that did not see them, no run twice."""

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from fixtures.tiny_recipe import guess, rows

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.data.splits import assign_folds
from sensorium.errors import SensoriumError
from sensorium.io.run_config import RunConfig
from sensorium.loading import load
from sensorium.modalities.tabular import Numeric
from sensorium.training.checkpoint import load_checkpoint
from sensorium.training.interruption import Interrupted
from sensorium.training.loop import train
from sensorium.training.metrics_log import read_metrics
from sensorium.tuning import compare as compare_module
from sensorium.tuning.compare import compare
from sensorium.tuning.comparison import Comparison, RunResult


def no_log(_: str) -> None:
    """Drop progress messages."""


def table(folder: Path, n: int = 90) -> Path:
    """Write a table of two numbers whose sum decides the label, in groups of three rows."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n))
    lines = [
        f"{x:.4f},{y:.4f},thing {i // 3},{'yes' if x + y > 0 else 'no'}"
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    ]
    (folder / "table.csv").write_text("a,b,group,label\n" + "\n".join(lines) + "\n")
    return folder / "table.csv"


def make_comparison(
    values: dict[str, list[float]], folds: int = 0, mode: Literal["min", "max"] = "min"
) -> Comparison:
    """Return a comparison in which each setting has these losses."""
    results = [
        ({"way": way}, f"fold={i}", RunResult("x", {"loss": loss}, len(way), 1.0))
        for way, losses in values.items()
        for i, loss in enumerate(losses)
    ]
    return Comparison("r", ["d"], "loss", mode, folds, {"dim": 8}, results, Path("out"))


class TestFolds:
    def test_groups_stay_together_and_test_rows_are_untouched(self, tmp_path: Path) -> None:
        data = Dataset.open(table(tmp_path))
        train, groups = data.splits["train"], data.groups()
        folds = data.folds(4)
        assert sorted(np.concatenate([f.splits["fold"] for f in folds])) == sorted(train)
        for fold in folds:
            rest, held_out = fold.splits["train"], fold.splits["fold"]
            assert sorted([*rest, *held_out]) == sorted(train)
            assert not set(groups[rest]) & set(groups[held_out])
            assert all(
                np.array_equal(fold.splits[name], data.splits[name]) for name in ("val", "test")
            )
        assert len({len(set(groups[f.splits["fold"]])) for f in folds}) <= 2, (
            "folds have the same number of groups, give or take one"
        )
        assert "fold" not in data.splits

    def test_assignment_is_the_documented_hash(self) -> None:
        keys = [f"thing {i % 11}" for i in range(40)]
        fold = assign_folds(keys, 3)
        assert np.array_equal(fold, assign_folds(keys, 3))
        assert sorted(Counter(fold[:11].tolist()).values()) == [3, 4, 4]
        ranked = sorted(
            set(keys),
            key=lambda key: hashlib.md5(  # noqa: S324 - not for security
                f"sensorium:fold:{key}".encode()
            ).digest()[:8],
        )
        assert [fold[keys.index(key)] for key in ranked] == [i % 3 for i in range(11)]
        for n in (1, 12):
            with pytest.raises(SensoriumError, match="Choose 2 to 11"):
                assign_folds(keys, n)


def test_each_setting_is_trained_once_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compare(
        guess, rows(), out=tmp_path / "out", dim=[4, 8], dropout=0.0, epochs=2, log=no_log
    )
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
            p.numel() for p in load(at, recipe_fn=guess).module.parameters()
        )
        assert run.cpu_seconds > 0
    again = compare_without_training(monkeypatch, tmp_path / "out")
    assert again.table_rows() == found.table_rows()
    assert again.recommendation() == found.recommendation()
    assert (tmp_path / "out" / "comparison.md").read_text() == found.to_markdown()


def compare_without_training(monkeypatch: pytest.MonkeyPatch, out: Path) -> Comparison:
    with monkeypatch.context() as patch:
        patch.setattr(compare_module, "train", lambda *a, **k: pytest.fail("trained again"))
        return compare(guess, rows(), out=out, dim=[4, 8], dropout=0.0, epochs=2, log=no_log)


def test_interrupted_comparison_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(guess, rows(), out=tmp_path / "whole", dim=[4, 8], epochs=2, log=no_log)
    calls: list[bool] = []

    def interrupt_second(*args: Any, **keywords: Any) -> object:
        calls.append(keywords["resume"])
        if len(calls) == 2:
            raise Interrupted("Interrupted.", 130)
        return train(*args, **keywords)

    monkeypatch.setattr(compare_module, "train", interrupt_second)
    with pytest.raises(Interrupted, match="Resume with the same command"):
        compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=2, log=no_log)
    found = compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=2, log=no_log)
    assert len(calls) == 3
    assert [r[:-1] for r in found.table_rows()] == [r[:-1] for r in whole.table_rows()]
    assert compare(
        guess, rows(), out=tmp_path / "out", dim=[4, 8, 16], epochs=2, log=no_log
    ).settings
    assert len(calls) == 4


def test_fold_is_evaluated_by_a_model_that_did_not_see_it(tmp_path: Path) -> None:
    data = rows()
    found = compare(
        guess, data, out=tmp_path / "out", dim=[4, 8], folds=3, seed=[0, 1], epochs=1, log=no_log
    )
    assert all(len(s.runs) == 6 for s in found.settings)
    assert "6 runs on 3 folds of the training split" in found.recommendation()
    assert "sensorium train guess tiny --epochs 1 --dim" in found.recommendation()
    part = data.folds(3)[1]
    at = tmp_path / "out" / "dim=4,fold=2,seed=1"
    model = load_checkpoint(at, recipe_fn=guess)
    assert RunConfig.load(at).data["splits"] == {name: len(r) for name, r in part.splits.items()}
    x = np.stack([part.raw(c, part.splits["fold"]) for c in "abc"], 1)
    numeric = {name: model.schema[name] for name in (*"abc", "y")}
    stats = {name: (m.mean, m.std) for name, m in numeric.items() if isinstance(m, Numeric)}
    mean, std = (np.array([stats[name][i] for name in "abc"]) for i in (0, 1))
    y = (np.array(part.raw("y", part.splits["fold"])) - stats["y"][0]) / stats["y"][1]
    loss = np.square(model.predict(x=((x - mean) / std).tolist()) - y).mean()
    run = next(s for s in found.settings if s.values["dim"] == 4).runs["fold=2,seed=1"]
    assert run.metrics["val_loss"] == pytest.approx(loss, rel=1e-4)
    without_fold = np.mean(data.raw("a", part.splits["train"]))
    assert stats["a"][0] == pytest.approx(without_fold), "fitted without the held-out fold"


def test_best_setting_and_ties() -> None:
    found = make_comparison(
        {"a": [1.0, 1.2, 1.1, 0.9], "bb": [1.02, 1.18, 1.12, 0.93], "ccc": [2.0, 2.2, 2.1, 1.9]}
    )
    assert [s.name for s in found.settings] == ["way=a", "way=bb", "way=ccc"]
    assert [s.name for s in found.tied] == ["way=bb"], (
        "paired differences remove the difficulty of a fold"
    )
    assert "Best: way=a, loss 1.05 ± 0.13, 4 runs" in found.recommendation()
    assert "way=a has the fewest" in found.recommendation()
    assert (
        make_comparison({"a": [1.0, 1.2], "b": [2.0, 2.2]}, mode="max").settings[0].name == "way=b"
    )
    # differences 1, 2, 3: t = 2 / (1 / sqrt(3)) = 3.46 < 4.30; with less noise it is significant
    assert make_comparison({"a": [0.0, 0.0, 0.0], "b": [1.0, 2.0, 3.0]}).tied
    assert not make_comparison({"a": [0.0, 0.0, 0.0], "b": [1.4, 2.0, 2.6]}).tied  # t = 5.8
    assert make_comparison(
        {"a": [0.0, 0.0, 0.0], "b": [1.4, 2.0, 2.6]}, folds=3
    ).tied  # training rows overlap: t = 3.7
    once = make_comparison({"a": [1.0], "b": [1.1]})
    assert once.tied == []
    assert "One run each" in once.recommendation()


def test_failed_run_is_reported_and_the_others_continue(tmp_path: Path) -> None:
    found = compare(
        guess, rows(), out=tmp_path / "out", lr=[1e-2, 1e30], epochs=1, max_grad_norm=0, log=no_log
    )
    assert found.best is not None
    assert found.best.values == {"lr": 1e-2}
    assert found.settings[-1].error
    assert "lr=1e+30 failed: " in found.recommendation()
    assert found.table_rows()[-1][1] == "failed"
    assert math.isfinite(found.best.mean("fit"))


def test_invalid_comparisons_are_refused(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "nothing to compare"),
        ({"dmi": [1, 2]}, "[Dd]id you mean"),
        ({"dim": []}, "has no value"),
        ({"lr": [1e-3, -1.0]}, "--lr must be at least 0"),
        ({"dim": [4, 8], "folds": 99}, "Choose 2 to"),
    ]
    for keywords, expected in cases:
        with pytest.raises(SensoriumError, match=expected):
            compare(guess, rows(), out=tmp_path / "no", **keywords, log=no_log)
    assert not (tmp_path / "no").exists(), "reported before any work"
    compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=1, log=no_log)
    for keywords, expected in (
        ({"epochs": 2}, "other keywords"),
        ({"epochs": 1, "folds": 2}, "other folds"),
    ):
        with pytest.raises(SensoriumError, match=expected):
            compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], **keywords, log=no_log)
    (tmp_path / "out" / "comparison.json").write_text(
        '{"plan": {}, "cpu_seconds": {}, "runs": {"x": {"figure": 1}}}'
    )
    with pytest.raises(SensoriumError, match="cannot be read"):
        compare(guess, rows(), out=tmp_path / "out", dim=[4, 8], epochs=1, log=no_log)
    (tmp_path / "file").write_text("")
    with pytest.raises(SensoriumError, match="Cannot write"):
        compare(guess, rows(), out=tmp_path / "file", dim=[4, 8], log=no_log)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [
        "compare",
        "fusion",
        str(table(tmp_path)),
        *["--target", "label", "--epochs", "1", "--dim", "16", "--layers", "1"],
    ]
    out = ["--out", str(tmp_path / "out")]
    assert app.run([*base, *out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["settings"]) == 8
    assert {s["setting"]["fusion"] for s in report["settings"]} >= {"concat", "low_rank"}
    assert (
        app.run(
            [
                *base,
                "--fusion",
                "sum",
                "--modality-dropout",
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
    assert "Best: modality_dropout=" in out
    assert err.count("\n[") == 4
    assert "± " in out
    for options, code, expected in (
        (["--fusion", "sum,summ"], 2, 'Did you mean "sum"?'),
        (["--modality-dropout", "x"], 2, "into float"),
        (["--fusion", "sum"], 1, "nothing to compare"),
        (["--dmi", "1"], 2, "Did you mean --dim?"),
    ):
        assert app.run([*base, *options]) == code
        assert expected in capsys.readouterr().err
