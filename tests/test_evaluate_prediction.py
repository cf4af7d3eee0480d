"""Evaluation of predictions: every type of target, baselines, and values hidden or imputed."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

import sensorium as sn
from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.missing_values import (
    MISSING_FRACTIONS,
    MissingValuePoint,
    ValueMasking,
    imputation_value,
    keep_columns,
    relative_loss,
)
from sensorium.evaluation.report import EvaluationReport
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.text import Text
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch
from sensorium.recipes.fusion import fusion
from sensorium.training.checkpoint import Model

COLUMNS = {
    "stars": "ordinal",
    "tags": "multilabel",
    "words": "text",
    "label": "category",
    "kind": "category",
}


def write_table(path: Path, n: int = 480) -> Path:
    """Write a table whose targets depend on a number, a class and a text.

    One class is only in the split test; the split flat has rows of one class.
    """
    rng = np.random.default_rng(0)
    x, kind, red = rng.normal(size=n), rng.integers(0, 2, n), rng.integers(0, 2, n)
    z = x + kind + red + 0.3 * rng.normal(size=n)
    lines = ["x,kind,words,price,label,stars,tags,split"]
    for i in range(n):
        split = ("train", "train", "train", "val", "test", "flat")[i % 6]
        label = "high" if z[i] > 1 or split == "flat" else "low"
        if split == "test" and i % 24 == 4:
            label = "never"
        tags = "|".join(tag for tag, on in (("p", kind[i]), ("q", red[i])) if on) or "none"
        price = "" if i % 30 == 4 else f"{100 + 50 * z[i]:.2f}"
        text = "a red thing" if red[i] else "some blue object"
        stars = int(np.clip(np.round(z[i] + 2), 1, 5))
        lines.append(f"{x[i]:.3f},k{kind[i]},{text},{price},{label},{stars},{tags},{split}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(
        write_table(tmp_path_factory.mktemp("data") / "t.csv"), split="split", types=COLUMNS
    )


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sn.train(
        fusion,
        data,
        out=tmp_path_factory.mktemp("run") / "run",
        epochs=8,
        target=("price", "label", "stars", "tags"),
        dim=16,
        quiet=True,
        precision="fp32",
        batch_size=32,
        lr=5e-3,
        ema_decay=0.9,
    )


@pytest.fixture(scope="module")
def report(run: Model, data: Dataset) -> EvaluationReport:
    return sn.evaluate(run, data, splits=["test", "flat"], ablate_columns=True)


def test_every_target_is_better_than_its_baseline(
    report: EvaluationReport,
) -> None:
    metrics = report.metrics["test"]
    assert metrics["price: rows"] == 64
    assert metrics["label: rows"] == 80
    assert metrics["price: R2"] > 0.5
    assert metrics["price: MAE"] < 0.7 * metrics["price: baseline MAE"]
    assert metrics["label: accuracy"] > metrics["label: baseline accuracy"] + 0.1
    assert metrics["stars: MAE"] < metrics["stars: baseline MAE"]
    assert metrics["tags: mAP"] > metrics["tags: baseline mAP"] + 0.2
    assert metrics["price: uncalibrated coverage at 90%"] <= 1
    assert metrics["label: uncalibrated calibration error"] > 0
    assert metrics["label: set size at 90%"] >= 1


def test_higher_accuracy_target_answers_fewer_rows(report: EvaluationReport) -> None:
    metrics = report.metrics["flat"]
    coverage = [metrics[f"label: coverage at {level}% accuracy"] for level in (50, 80, 90, 95)]
    assert coverage == sorted(coverage, reverse=True)
    for level in (50, 80, 90, 95):
        answered = metrics[f"label: coverage at {level}% accuracy"] > 0
        assert answered == (f"label: selective accuracy at {level}%" in metrics)


def test_undefined_metrics_are_left_out_and_noted(report: EvaluationReport) -> None:
    test, flat = report.metrics["test"], report.metrics["flat"]
    assert test["label: rows of unseen classes"] == 20
    assert "label: ROC AUC" not in flat
    assert "label: accuracy" in flat
    assert "flat, label: ROC AUC: all rows are of one class" in report.notes
    assert all(np.isfinite(v) for values in report.metrics.values() for v in values.values())


def test_more_missing_values_are_worse_and_none_change_nothing(
    report: EvaluationReport,
) -> None:
    metrics = report.metrics["test"]
    assert (
        metrics["price: R2 at 0% missing"]
        == metrics["price: R2 at 0% missing, imputed"]
        == pytest.approx(metrics["price: R2"])
    )
    assert (
        metrics["price: R2 at 90% missing"]
        < metrics["price: R2 at 25% missing"]
        < metrics["price: R2"]
    )
    assert {f"tags: mAP at {share:.0%} missing" for share in MISSING_FRACTIONS} <= set(metrics)


def test_single_input_is_worse_than_all(report: EvaluationReport) -> None:
    metrics = report.metrics["test"]
    assert metrics["price: only words R2"] < metrics["price: only row R2"] < metrics["price: R2"]


def test_charts_are_saved_with_the_report(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    charts = sorted(p.name for p in (tmp_path / "evaluation").iterdir())
    assert {
        "test-0-intervals.svg",
        "test-1-confusion.svg",
        "test-1-risk.svg",
        "test-3-reliability.svg",
        "test-3-missing.svg",
    } <= set(charts)
    text = (tmp_path / "evaluation.md").read_text()
    for name in charts:
        assert f"](evaluation/{name})" in text
        assert ET.parse(tmp_path / "evaluation" / name)
    text = " ".join(text.split())
    assert "quadratic kappa: Cohen's kappa" in text
    assert "average precision: for two classes, of the second" in text


def test_absent_input_is_noted_and_absent_target_is_an_error(run: Model, tmp_path: Path) -> None:
    lines = [line.split(",") for line in write_table(tmp_path / "t.csv").read_text().splitlines()]
    for drop, name in ((2, "no-words.csv"), (3, "no-price.csv")):
        (tmp_path / name).write_text(
            "\n".join(",".join(c for i, c in enumerate(cs) if i != drop) for cs in lines)
        )
    columns = {name: kind for name, kind in COLUMNS.items() if name != "words"}
    result = sn.evaluate(
        run, Dataset.open(tmp_path / "no-words.csv", split="split", types=columns), splits=["test"]
    )
    assert "no column words: evaluated without it" in result.notes
    assert result.metrics["test"]["price: rows"] == 64
    with pytest.raises(SensoriumError, match="no column 'price'"):
        sn.evaluate(
            run,
            Dataset.open(tmp_path / "no-price.csv", split="split", types=COLUMNS),
            splits=["test"],
        )


def test_command_prints_json_and_writes_charts(
    run: Model, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        app.run(["evaluate", str(run.folder), "--split", "test", "--max-samples", "60", "--json"])
        == 0
    )
    metrics = json.loads(capsys.readouterr().out)["metrics"]["test"]
    assert metrics["label: rows"] == 60
    assert (run.folder / "evaluation" / "test-0-missing.svg").exists()


# Hiding values


def test_hidden_values_are_masked_or_imputed_and_nothing_else_changes() -> None:
    inputs = {"x": Numeric(), "kind": Category(("a", "b"), (3, 5))}
    batch = Batch(
        {
            "x": torch.tensor([1.0, 2.0]),
            "kind": torch.tensor([0, 0]),
            "y": torch.tensor([5.0, 6.0]),
        },
        {"kind": torch.tensor([True, False])},
        torch.tensor([2, 0]),
    )
    hidden = torch.tensor([[True, True], [False, False], [False, True]])  # rows of the dataset
    masking = ValueMasking(inputs, hidden)
    masked, imputed = masking.mask(batch), masking.impute(batch)
    assert masked.present["x"].tolist() == [True, False]
    assert masked.present["kind"].tolist() == [False, False]
    assert imputed["x"].tolist() == [1.0, 0.0]
    assert "x" not in imputed.present
    assert imputed["kind"].tolist() == [1, 0], "missing values of the data stay missing"
    assert imputed.present["kind"].tolist() == [True, False]
    assert masked["y"] is batch["y"]
    assert masked["x"] is batch["x"]


def test_imputation_values_are_uninformative() -> None:
    rng = torch.Generator().manual_seed(0)
    text = imputation_value(Text(), torch.full((2, 5), 9))
    assert text.tolist() == [Text().start, Text().end, *[Text().pad] * 3]
    assert imputation_value(Multilabel(tags=("p",)), torch.ones(1, 2)).tolist() == [0, 0]
    assert imputation_value(Datetime(mean=1e9), Datetime(mean=1e9).fake(2, rng))[0] == 0
    assert (imputation_value(Image(size=8), torch.ones(1, 3, 8, 8)) == 0).all()
    series = Series(channels=("a", "b"), mean=(0.0, 0.0), std=(1.0, 1.0))
    assert imputation_value(series, series.fake(2, rng))[0].tolist() == [0, 0, 1, 1]


def test_row_without_inputs_gets_the_prior(run: Model, data: Dataset) -> None:
    predictor = run.module
    assert isinstance(predictor, MultimodalPredictor)
    prepared = data.prepare(run.schema, run.recipe.data.columns)
    with torch.inference_mode():
        batch = keep_columns(predictor, [])(prepared.batch(data.splits["test"][:3]))
        outputs, prior = predictor(batch), predictor.predict_targets({}, 3)
    assert outputs.keys() == prior.keys()
    for name, output in outputs.items():
        assert torch.equal(output, prior[name]), name


def test_relative_loss() -> None:
    points = [
        MissingValuePoint(0.0, {"y": 1.0}, {"y": 1.0}),
        MissingValuePoint(0.5, {"y": 0.9}, {"y": 0.6}),
    ]
    assert relative_loss(points, "y") == pytest.approx(0.25)
    assert relative_loss([points[0], MissingValuePoint(0.5, {"y": 0.9}, {"y": 1.0})], "y") is None
