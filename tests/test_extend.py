"""Resuming a run with more epochs or more rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import tiny_recipe
from fixtures.interruption import call_at_step, crash, run_hashes, send_signal

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.data.tables import Table
from sensorium.errors import SensoriumError
from sensorium.io.run_config import RunConfig
from sensorium.io.tensors import read_tensors
from sensorium.training.interruption import Interrupted
from sensorium.training.loop import train
from sensorium.training.metrics_log import read_metrics
from sensorium.training.optimizers import lr_scale
from sensorium.training.run_setup import resume_run
from sensorium.training.train_step import TrainStep

SHORT: dict[str, Any] = {"epochs": 2, "ema_decay": 0.0, "quiet": True}
STEPS = 7  # of an epoch of 56 training rows


def some_rows(order: Any, **changes: Any) -> Dataset:
    """Return these rows of one table of 128 rows, with other values in some columns."""
    whole = tiny_recipe.rows(128)
    index = np.arange(128)[order]
    columns: dict[str, Any] = {
        name: np.asarray(values)[index] for name, values in whole.table.columns.items()
    }
    columns = {**columns, "split": columns["split"].tolist(), **changes}
    table = Table(columns, [f"tiny_recipe.csv:{i + 2}" for i in index], root=Path())
    return Dataset(table, whole.schema, "tiny")


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [e for e in read_metrics(run / "metrics.jsonl") if "loss" in e]


def best_of(run: Path) -> float:
    state = max((run / "state").glob("step-*")) / "state.json"
    return json.loads(state.read_text(encoding="utf-8"))["progress"]["best_metric"]


def test_more_epochs_extend_a_finished_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **SHORT)
    best = best_of(run)
    capsys.readouterr()
    model = train(
        tiny_recipe.guess,
        tiny_recipe.rows(),
        out=run,
        resume=True,
        **{**SHORT, "epochs": 5, "quiet": False},
    )
    assert "the run now takes 5 epochs, 35 steps in all" in capsys.readouterr().out
    assert model.config.keywords["epochs"] == RunConfig.load(run).keywords["epochs"] == 5
    steps = steps_of(run)
    assert [e["step"] for e in steps] == list(range(1, 5 * STEPS + 1))
    for entry in steps:
        length = (2 if entry["step"] <= 2 * STEPS else 5) * STEPS
        assert entry["lr"] == pytest.approx(1e-2 * lr_scale(entry["step"] - 1, length, 0.05))
    assert best_of(run) >= best  # metric `fit`: the best of both parts
    evaluations = [e for e in read_metrics(run / "metrics.jsonl") if "evaluation" in e]
    assert best_of(run) == max(e["evaluation"]["fit"] for e in evaluations)
    assert (run / "README.md").is_file()


def test_interrupted_extension_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / "whole", tmp_path / "cut", tmp_path / "killed"]
    for run in runs:
        train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **SHORT)
    again: dict[str, Any] = {"resume": True, "quiet": True}
    train(tiny_recipe.guess, tiny_recipe.rows(), out=runs[0], epochs=4, **again)
    call_at_step(monkeypatch, 2 * STEPS + 3, send_signal())
    with pytest.raises(Interrupted):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=runs[1], epochs=4, **again)
    call_at_step(monkeypatch, 2 * STEPS + 3, crash)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=runs[2], epochs=4, **again)
    for run in runs[1:]:
        train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **again)
        assert run_hashes(run) == run_hashes(runs[0])


def test_run_that_stopped_early_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    patient = {**SHORT, "epochs": 30, "early_stopping_patience": 1, "lr": 0.5}
    train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **patient)
    stopped = steps_of(run)[-1]["step"]
    assert stopped < 30 * STEPS
    train(tiny_recipe.guess, tiny_recipe.rows(), out=run, resume=True, quiet=True, epochs=31)
    assert steps_of(run)[-1]["step"] >= stopped + STEPS


def test_only_more_epochs_are_allowed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **SHORT)
    others: list[dict[str, Any]] = [{"epochs": 1}, {"batch_size": 4}, {"seed": 1}]
    for other in others:
        with pytest.raises(SensoriumError, match=r"only --epochs may be raised.*--init"):
            train(tiny_recipe.guess, tiny_recipe.rows(), out=run, resume=True, quiet=True, **other)


@pytest.mark.parametrize("interrupted", [False, True])
def test_new_rows_take_part(
    interrupted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From 56 to 112 training rows: 7 steps of the old rows an epoch, then 14 of all."""
    run = tmp_path / "run"
    begin = {**SHORT, "epochs": 3 if interrupted else 2}
    if interrupted:
        call_at_step(monkeypatch, 10, send_signal())
        with pytest.raises(Interrupted):
            train(tiny_recipe.guess, some_rows(slice(64)), out=run, **begin)
    else:
        train(tiny_recipe.guess, some_rows(slice(64)), out=run, **begin)
    again: dict[str, Any] = {"out": run, "resume": True, "quiet": True}
    whole = some_rows(np.random.default_rng(1).permutation(128))
    with pytest.raises(SensoriumError, match=r"it had 64 rows, now 128.*--new-rows.*--init"):
        train(tiny_recipe.guess, whole, **again)
    if not interrupted:
        with pytest.raises(SensoriumError, match=r"has finished its 2 epochs.*--epochs 7"):
            train(tiny_recipe.guess, whole, new_rows=True, **again)
    first = 10 if interrupted else 14
    seen: list[int] = []
    call_at_step(monkeypatch, first + 2, crash)
    with pytest.raises(KeyboardInterrupt):  # and again from the checkpoint of the old rows
        train(tiny_recipe.guess, whole, new_rows=True, epochs=4, **again)
    monkeypatch.setattr(TrainStep, "__call__", recording_rows(seen))
    capsys.readouterr()
    train(tiny_recipe.guess, whole, **{**again, "quiet": False})
    steps = [e["step"] for e in steps_of(run)]
    left = round((4 - first / STEPS) * 2 * STEPS)
    assert steps == list(range(1, first + left + 1))
    train_rows = whole.splits["train"]
    assert set(seen[: len(train_rows)]) == set(train_rows)  # the first epoch: all rows once
    trained = read_tensors(run / "trained_rows.safetensors")["read"]
    assert len(trained) == 112
    evaluation = [e for e in read_metrics(run / "metrics.jsonl") if "evaluation" in e]
    assert len(evaluation) >= 3


def recording_rows(seen: list[int]) -> Any:
    """Return the method of a training step that also records the rows of its batch."""
    step = TrainStep.__call__

    def record(self: Any, batch: Any, number: int) -> dict[str, float]:
        seen.extend(batch.row.tolist())
        return step(self, batch, number)

    return record


def test_best_weights_are_measured_on_the_validation_rows_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    model = train(tiny_recipe.guess, some_rows(slice(64)), out=run, **SHORT)
    whole = some_rows(slice(128))
    prepared = whole.prepare(model.schema, list(tiny_recipe.COLUMNS))
    validate = model.recipe.evaluation.validate
    assert validate is not None
    expected = validate(model.module, prepared, whole.splits["val"]).metrics["fit"]
    resumed = resume_run(tiny_recipe.guess, whole, run, {"epochs": 3}, print, new_rows=True)
    assert resumed.progress.best_metric == pytest.approx(expected)
    assert expected != pytest.approx(best_of(run))


def test_rows_that_changed_are_not_new(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe.guess, some_rows(slice(64)), out=run, **SHORT)
    again: dict[str, Any] = {"out": run, "resume": True, "quiet": True, "new_rows": True}
    again["epochs"] = 4
    other_splits = some_rows(slice(128), split=["val"] * 10 + ["train"] * 118)
    with pytest.raises(SensoriumError, match=r"8 of the 56 rows .* in another split.*--init"):
        train(tiny_recipe.guess, other_splits, **again)
    with pytest.raises(SensoriumError, match="28 of the 56 rows that were trained on"):
        train(tiny_recipe.guess, some_rows(slice(32, 128)), **again)


def test_values_that_the_run_does_not_know_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["ship,age,survived"]
    lines += [f"{'xyz'[i % 3]},{i * 37 % 100},{'yn'[i % 7 % 2]}" for i in range(80)]
    table = tmp_path / "data.csv"
    table.write_text("\n".join(lines), encoding="utf-8")
    command = ["train", "fusion", str(table), "--target", "survived", "--out", str(tmp_path / "r")]
    assert app.run([*command, "--dim", "16", "--layers", "1", "--epochs", "1"]) == 0
    lines += [f"w,{i},{'yn'[i % 2]}" for i in range(40)]
    table.write_text("\n".join(lines), encoding="utf-8")
    assert app.run([*command, "--resume", "--epochs", "2"]) == 1
    assert "--new-rows" in capsys.readouterr().err
    assert app.run([*command, "--resume", "--epochs", "2", "--new-rows"]) == 0
    output = capsys.readouterr().out
    assert "data.csv has 120 rows, before 80" in output
    assert "read as unknown: 1 of ship (w). To learn them, start a new run with --init" in output
