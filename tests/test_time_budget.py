"""Tests of `--minutes`: steps that fit, exact resume, and options that contradict it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import InvalidKeywordError, dry_build
from sensorium.training import time_budget
from sensorium.training.loop import train
from sensorium.training.run import TrainingRun

OPTIONS: dict[str, Any] = {"target": "y", "dim": 8, "layers": 1, "precision": "fp32"}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    lines = [f"{i % 17},{i % 5},{i % 17 + 2 * (i % 5)}" for i in range(400)]
    (tmp_path / "table.csv").write_text("a,b,y\n" + "\n".join(lines) + "\n")
    return Dataset.open(tmp_path / "table.csv")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each step look like 0.5 s and each evaluation like 1 s."""
    monkeypatch.setattr(time_budget, "_measure", lambda run, max_seconds: (0.5, 1.0))
    monkeypatch.setattr(time_budget, "_elapsed", lambda start: 2.0)


def steps_taken(folder: Path) -> int:
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max(entry["step"] for entry in entries)


@pytest.mark.usefixtures("slow")
def test_fewer_steps_than_the_recipe_takes_fit(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(RECIPES["fusion"], data, out=tmp_path / "run", minutes=0.5, **OPTIONS)
    steps = steps_taken(tmp_path / "run")
    # 30 s x 0.9 x 0.75 are left for steps; an evaluation of 1 s follows each epoch
    keywords = json.loads((tmp_path / "run" / "config.json").read_text())["keywords"]
    per_epoch = steps / keywords["epochs"]
    assert 10 < steps <= (30 * 0.9 * 0.75 - 2 - 1) / (0.5 + 1 / per_epoch)
    assert keywords["minutes"] == 0.5
    output = "".join(capsys.readouterr())
    assert f"--minutes 0.5: {steps:,} of " in output


@pytest.mark.usefixtures("slow")
def test_run_with_a_budget_resumes_exactly(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**OPTIONS, "minutes": 0.5, "quiet": True}
    train(RECIPES["fusion"], data, out=tmp_path / "whole", **options)

    def killed(self: TrainingRun) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finalize", killed)
        with pytest.raises(KeyboardInterrupt):
            train(RECIPES["fusion"], data, out=tmp_path / "run", **options)
    monkeypatch.setattr(time_budget, "_measure", lambda run, max_seconds: (9.0, 9.0))
    train(RECIPES["fusion"], data, out=tmp_path / "run", resume=True, quiet=True)
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


def test_measuring_changes_neither_weights_nor_batches(data: Dataset, tmp_path: Path) -> None:
    """A budget in which everything fits gives the run without a budget."""
    options = {**OPTIONS, "quiet": True, "head": "network"}
    short = {"early_stopping_patience": 1, "lr": 0.0}
    for name, minutes in (("none", 0.0), ("enough", 30.0)):
        train(RECIPES["fusion"], data, out=tmp_path / name, minutes=minutes, **options, **short)
    none, enough = (load_file(tmp_path / name / "model.safetensors") for name in ("none", "enough"))
    assert all(torch.equal(none[name], enough[name]) for name in none)


@pytest.mark.usefixtures("slow")
def test_too_short_a_budget_is_an_error_that_says_what_is_needed(
    data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SensoriumError, match=r"--minutes 0\.02 is too short.*at least --minutes"):
        train(RECIPES["fusion"], data, out=tmp_path / "run", minutes=0.02, **OPTIONS)
    assert not (tmp_path / "run" / "config.json").exists()


def test_contradicting_options_are_errors(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidKeywordError, match="--minutes and --epochs both"):
        dry_build(RECIPES["fusion"], data.schema, {"target": "y", "minutes": 5, "epochs": 3})
    for minutes in (-1, float("nan"), float("inf")):
        with pytest.raises(SensoriumError, match="--minutes must be"):
            train(RECIPES["fusion"], data, out=tmp_path / "no", minutes=minutes, **OPTIONS)
    command = [
        "train",
        "fusion",
        data.source["path"],
        "--target",
        "y",
        "--out",
        str(tmp_path / "n"),
    ]
    assert app.run([*command, "--minutes", "5", "--epochs", "2"]) == 1
    assert "Leave one of them out" in capsys.readouterr().err
