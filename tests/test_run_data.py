"""A run and its data: the task, splits and groups, rows trained on, changed data, whole pairs."""

import csv
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.modalities.tabular import Category, Numeric
from sensorium.recipes import RECIPES
from sensorium.training.checkpoint import load_checkpoint
from sensorium.training.loop import train
from sensorium.training.metrics_log import read_metrics

Row = dict[str, Any]
FUSION = {"target": "survived", "epochs": 1, "dim": 16, "layers": 1, "quiet": True}


def write_table(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def passengers(num_rows: int = 150, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [
        {
            "age": round(rng.gauss(0, 1), 4),
            "ship": rng.choice("xyz"),
            "family": f"f{i // 3}",
            "part": rng.choice(["train"] * 7 + ["val", "test", "test"]),
            "survived": rng.randint(0, 1),
        }
        for i in range(num_rows)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passengers")
    table = write_table(folder / "data.csv", passengers())
    train(
        RECIPES["fusion"],
        Dataset.open(table, split="part", group="family"),
        out=folder / "run",
        **FUSION,
    )
    return folder / "run"


def evaluate(run: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return what `sensorium evaluate` writes on stderr, and its report."""
    out = table.parent / "report"
    assert app.run(["evaluate", str(run), str(table), "--out", str(out)]) == 0
    return capsys.readouterr().err, (out / "evaluation.json").read_text(encoding="utf-8")


def test_target_of_two_numbers_is_classified(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_checkpoint(run)
    target = model.schema["survived"]
    assert isinstance(target, Category)
    assert target.classes == ("0", "1")
    train_rows = [row for row in passengers() if row["part"] == "train"]
    num_survived = sum(row["survived"] for row in train_rows)
    assert target.counts == (len(train_rows) - num_survived, num_survived)
    assert set(model.predict([{"age": 1.0}, {"ship": "x"}])["survived"].value) <= {"0", "1"}
    data = Dataset.open(run.parent / "data.csv", types={"survived": "numeric"})
    capsys.readouterr()
    numeric = train(RECIPES["fusion"], data, out=tmp_path / "run", **{**FUSION, "quiet": False})
    assert isinstance(numeric.schema["survived"], Numeric)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("target survived: regression because: set by the user")
    assert first.endswith("(to change it: --type survived=category)")


def test_first_line_says_the_task(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Dataset.open(run.parent / "data.csv")
    train(RECIPES["fusion"], data, out=tmp_path / "run", **{**FUSION, "quiet": False})
    first = capsys.readouterr().err.splitlines()[0]
    assert first == (
        "target survived: classification into 2 classes (0, 1) because: it has two different "
        "values (to change it: --type survived=numeric)"
    )


def test_evaluation_of_the_same_file_uses_the_split_of_the_run(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["evaluate", str(run), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    expected = (tmp_path / "evaluation.json").read_text(encoding="utf-8")
    log, report = evaluate(run, run.parent / "data.csv", capsys)
    assert report == expected
    assert "left out" not in log
    copy = write_table(tmp_path / "data.csv", passengers())
    assert evaluate(run, copy, capsys) == ("", expected)


def test_rows_trained_on_are_left_out_of_other_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = passengers()
    new = [{**row, "age": 9 + i} for i, row in enumerate(passengers(60, seed=1))]
    swapped = [{**row, "part": "test"} for row in rows if row["part"] == "train"]
    without = [{k: v for k, v in row.items() if k != "part"} for row in swapped + new]
    log, _ = evaluate(run, write_table(tmp_path / "other.csv", without), capsys)
    assert "was trained on rows of other.csv, which are left out" in log
    test_rows = [{**row, "part": "test"} for row in new]
    log, _ = evaluate(run, write_table(tmp_path / "new.csv", test_rows), capsys)
    assert "left out" not in log


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [{**r, "age": r["age"] * 2} for r in rows], "other values in the column age"),
        (lambda rows: [{**r, "survived": 1 - r["survived"]} for r in rows], "column survived"),
        (lambda rows: rows[:1] + rows[:0:-1], "its rows are in another order"),
        (lambda rows: rows[:-1], "it had 150 rows, now 149"),
        (lambda rows: [{**r, "new": 2.5 * i} for i, r in enumerate(rows)], "new column new"),
        (lambda rows: [{**r, "part": "train"} for r in rows[:9]] + rows[9:], "its splits were"),
    ],
)
def test_resume_refuses_changed_data_in_words(
    run: Path, tmp_path: Path, change: Callable[[list[Row]], list[Row]], words: str
) -> None:
    table = write_table(tmp_path / "data.csv", change(passengers()))
    data = Dataset.open(table, split="part", group="family")
    with pytest.raises(SensoriumError, match=words):
        train(RECIPES["fusion"], data, out=run, resume=True, **FUSION)


def test_resume_accepts_moved_data(run: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "data.csv", passengers())
    data = Dataset.open(table, split="part", group="family")
    assert train(RECIPES["fusion"], data, out=run, resume=True, **FUSION)


@pytest.mark.parametrize("size", ["small", "base"])
def test_rows_without_a_whole_pair_are_left_out(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Most rows lack the image or the caption: a batch of them alone would have no pair at all."""
    rows = []
    for i in range(60):
        Image.new("RGB", (16, 16), (4 * i, 255 - 4 * i, 90)).save(tmp_path / f"{i}.png")
        rows.append(
            {
                "image": f"{i}.png" if i % 5 in (0, 1) else "",
                "caption": f"colour number {i}" if i % 5 in (0, 2) else "",
                "part": "val" if i >= 40 else "train",
            }
        )
    table = write_table(tmp_path / "data.csv", rows)
    dataset = Dataset.open(table, split="part", types={"image": "image:size=16", "caption": "text"})
    model = train(
        RECIPES["clip"],
        dataset,
        out=tmp_path / "run",
        size=size,
        dim=32,
        text_layers=1,
        embed_dim=8,
        epochs=2,
        batch_size=2,
        precision="fp32",
    )
    assert "32 rows without image and caption are not trained on" in capsys.readouterr().err
    losses = [e["loss"] for e in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in e]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    assert all(p.isfinite().all() for p in model.module.parameters())
