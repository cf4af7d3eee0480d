"""Evaluation on a small real run: coloured squares and their names, from the folder to the figures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.evaluate import EvaluationReport
from sensorium.training.checkpoint import Model

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 60, 220),
    "black": (20, 20, 20),
    "yellow": (240, 220, 40),
    "pink": (250, 130, 190),
}
PLACES = {"top": (2, 10), "low": (18, 10), "left": (10, 2), "right": (10, 18)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every colour at every place, seven times with noise; the captions of a colour and place are the same."""
    root, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    rows = []
    for colour, rgb in COLOURS.items():
        for place, (top, left) in PLACES.items():
            for i in range(7):
                pixels = rng.integers(225, 256, (32, 32, 3), dtype=np.uint8)
                pixels[top : top + 12, left : left + 12] = rgb
                name = f"{colour}-{place}-{i}.png"
                Image.fromarray(pixels).save(root / name)
                captions = json.dumps([f"a {colour} square, {place}", f"{place} {colour}"])
                rows.append(
                    {
                        "file_name": name,
                        "caption": captions,
                        "german": f"{colour} {place}",
                        "colour": colour,
                        "thing": f"{colour} {place}",
                        "split": "train" if i < 4 else "val" if i == 4 else "test",
                    }
                )
    with open(root / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return Dataset.open(
        folder,
        group="thing",
        types={
            "file_name": "image:size=16",
            "colour": "category",
            "caption": "text",
            "german": "text",
        },
    )


@pytest.fixture(scope="module")
def model(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sn.train(
        sn.recipes.clip,
        data,
        out=tmp_path_factory.mktemp("runs") / "squares",
        quiet=True,
        dim=32,
        image_layers=1,
        text_layers=1,
        embed_dim=16,
        text="caption",
        epochs=60,
        batch_size=24,
        lr=3e-3,
        augment="none",
        precision="fp32",
        eval_interval=60,
        checkpoint_interval=60,
    )


@pytest.fixture(scope="module")
def report(model: Model, data: Dataset) -> EvaluationReport:
    return sn.evaluate(model, data)


def test_it_learned(report: EvaluationReport) -> None:
    """24 things: chance at 1 is 1 in 24 for captions."""
    test = report.metrics["test"]
    assert test["rows"] == 48
    assert test["captions"] == 24
    assert test["image to text recall@1"] > 0.5 > 5 * test["chance recall@1"]


def test_repeated_captions_are_one_candidate(report: EvaluationReport) -> None:
    """Each of the 24 captions has two pictures, so chance at 1 is the mean of 1 in 24 and 2 in 48."""
    assert report.metrics["test"]["chance recall@1"] == pytest.approx(1 / 24)
    assert report.metrics["test"]["chance recall@10"] > 10 / 48


def test_pixels_stand_beside(report: EvaluationReport) -> None:
    assert (
        report.metrics["test"]["pixel neighbour recall@1"] > 0.9
    )  # plain squares: pixels are enough


def test_zero_shot_by_names_of_classes(report: EvaluationReport) -> None:
    test = report.metrics["test"]
    assert test["most common class"] == pytest.approx(1 / 6)
    assert test["zero-shot accuracy"] > test["most common class"]


def test_all_captions_of_a_row(model: Model, data: Dataset) -> None:
    every = sn.evaluate(model, data, splits=["test"], every=True)
    assert every.metrics["test"]["recall@1"] > 0.5
    assert "all" in every.metadata["captions"]


def test_another_caption_column(model: Model, data: Dataset) -> None:
    assert sn.evaluate(model, data, splits=["test"], text="german").metadata["text"] == "german"


def test_train_and_spare_are_left_out_unless_asked_for(
    model: Model, data: Dataset, report: EvaluationReport
) -> None:
    assert set(report.metrics) == {"val", "test"}
    assert set(sn.evaluate(model, data, splits=["train"]).metrics) == {"train"}


def test_a_report_is_written_and_says_what_it_means(
    report: EvaluationReport, tmp_path: Path
) -> None:
    report.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["figures"] == report.metrics
    page = (tmp_path / "evaluation.md").read_text()
    assert "duplicates count as correct" in page.replace("\n", " ")
    assert "| recall@1 |" in page
    assert report.table().row_count >= 8


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"splits": ["tset"]}, "no split 'tset'"),
        ({"text": "colour"}, "is category, not text"),
        ({"text": "titel"}, "titel"),
        ({"classes": "caption"}, "is text, not category"),
    ],
)
def test_wrong_names_are_said(
    model: Model, data: Dataset, asked: dict[str, object], said: str
) -> None:
    with pytest.raises(SensoriumError, match=said):
        sn.evaluate(model, data, **asked)
