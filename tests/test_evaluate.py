"""Evaluation of retrieval on a small trained model: colored squares and their names."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.report import EvaluationReport
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
    """Every colour at every place, seven times with noise; captions depend on colour and place."""
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
    with (root / "metadata.csv").open("w", newline="") as file:
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
        size="base",
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


def test_trained_model_is_far_above_chance(report: EvaluationReport) -> None:
    test = report.metrics["test"]
    assert test["rows"] == 48
    assert test["captions"] == 24
    assert test["image to text recall@1"] > 0.5 > 5 * test["random recall@1"]


def test_repeated_captions_are_one_candidate(report: EvaluationReport) -> None:
    """Each of the 24 captions has two images: random recall@1 is the mean of 1/24 and 2/48."""
    assert report.metrics["test"]["random recall@1"] == pytest.approx(1 / 24)
    assert report.metrics["test"]["random recall@10"] > 10 / 48


def test_pixel_baseline_recognizes_plain_squares(report: EvaluationReport) -> None:
    assert report.metrics["test"]["pixel neighbour recall@1"] > 0.9


def test_zero_shot_accuracy_is_above_the_most_common_class(report: EvaluationReport) -> None:
    test = report.metrics["test"]
    assert test["most common class"] == pytest.approx(1 / 6)
    assert test["zero-shot accuracy"] > test["most common class"]


def test_average_captions_ranks_by_the_mean_of_all_captions(model: Model, data: Dataset) -> None:
    averaged = sn.evaluate(model, data, splits=["test"], average_captions=True)
    assert averaged.metadata["captions"] == "all, averaged"
    rows = data.splits["test"]
    images = model.embed(image=data.raw("file_name", rows))
    first, second = (
        model.embed(text=[captions[i] for captions in data.raw("caption", rows)]) for i in (0, 1)
    )
    mean = first + second
    texts = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    assert averaged.metrics["test"]["image to text recall@1"] == recall_at_1(images, texts, data)
    assert not np.allclose(texts, first, atol=1e-3), "the second caption changes the embedding"


def test_text_column_ranks_by_the_captions_of_that_column(
    model: Model, data: Dataset, report: EvaluationReport
) -> None:
    german = sn.evaluate(model, data, splits=["test"], text_column="german")
    assert german.metadata["text"] == "german"
    rows = data.splits["test"]
    images = model.embed(image=data.raw("file_name", rows))
    texts = model.embed(text=data.raw("german", rows))
    recall = german.metrics["test"]["image to text recall@1"]
    assert recall == recall_at_1(images, texts, data)
    assert recall != report.metrics["test"]["image to text recall@1"]


def recall_at_1(images: np.ndarray, texts: np.ndarray, data: Dataset) -> float:
    """The fraction of test images whose most similar text is of the same group."""
    groups = data.groups()[data.splits["test"]]
    return float((groups[(images @ texts.T).argmax(1)] == groups).mean())


def test_train_split_is_evaluated_only_on_request(
    model: Model, data: Dataset, report: EvaluationReport
) -> None:
    assert set(report.metrics) == {"val", "test"}
    assert set(sn.evaluate(model, data, splits=["train"]).metrics) == {"train"}


def test_report_is_saved_with_definitions(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["metrics"] == report.metrics
    page = (tmp_path / "evaluation.md").read_text()
    assert "duplicates count as correct" in page.replace("\n", " ")
    assert "| recall@1 |" in page
    assert report.table().row_count >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": ["tset"]}, "no split 'tset'"),
        ({"text_column": "colour"}, "is category, not text"),
        ({"text_column": "titel"}, "titel"),
        ({"class_column": "caption"}, "is text, not category"),
    ],
)
def test_unknown_split_or_column_is_named_in_the_error(
    model: Model, data: Dataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        sn.evaluate(model, data, **options)


def test_model_with_nan_in_its_weights_is_refused(model: Model, data: Dataset) -> None:
    weight = model.module.get_parameter("logit_scale")
    value = weight.item()
    with torch.no_grad():
        weight.fill_(torch.nan)
    try:
        with pytest.raises(SensoriumError, match="NaN or infinity in the weight logit_scale"):
            sn.evaluate(model, data)
    finally:
        with torch.no_grad():
            weight.fill_(value)
