"""The judge of predictions: every kind of target, with what rows cannot tell, with values hidden and filled in."""

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


def written(path: Path, n: int = 480) -> Path:
    """Targets that depend on a number, a class and words; one class is in test alone, "flat" has rows of one class."""
    rng = np.random.default_rng(0)
    x, kind, red = rng.normal(size=n), rng.integers(0, 2, n), rng.integers(0, 2, n)
    z = x + kind + red + 0.3 * rng.normal(size=n)
    lines = ["x,kind,words,price,label,stars,tags,split"]
    for i in range(n):
        split = ("train", "train", "train", "val", "test", "flat")[i % 6]
        label = (
            "never"
            if split == "test" and i % 24 == 4
            else "high"
            if z[i] > 1 or split == "flat"
            else "low"
        )
        tags = "|".join(name for name, on in (("p", kind[i]), ("q", red[i])) if on) or "none"
        price = "" if i % 30 == 4 else f"{100 + 50 * z[i]:.2f}"
        words = "a red thing" if red[i] else "some blue object"
        stars = int(np.clip(np.round(z[i] + 2), 1, 5))
        lines.append(f"{x[i]:.3f},k{kind[i]},{words},{price},{label},{stars},{tags},{split}")
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(
        written(tmp_path_factory.mktemp("data") / "t.csv"), split="split", types=COLUMNS
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
    return sn.evaluate(run, data, splits=["test", "flat"], ablate=True)


def test_every_target_is_judged_beside_what_is_said_where_nothing_is_known(
    report: EvaluationReport,
) -> None:
    found = report.metrics["test"]
    assert found["price: rows"] == 64
    assert found["label: rows"] == 80
    assert found["price: R2"] > 0.5
    assert found["price: MAE"] < 0.7 * found["price: prior MAE"]
    assert found["label: accuracy"] > found["label: prior accuracy"] + 0.1
    assert found["stars: MAE"] < found["stars: prior MAE"]
    assert found["tags: mAP"] > found["tags: prior mAP"] + 0.2
    assert found["price: uncalibrated coverage at 90%"] <= 1
    assert found["label: uncalibrated calibration error"] > 0


def test_what_rows_cannot_tell_is_left_out_and_said(report: EvaluationReport) -> None:
    test, flat = report.metrics["test"], report.metrics["flat"]
    assert test["label: rows of classes never seen"] == 20
    assert "label: ROC AUC" not in flat
    assert "label: accuracy" in flat
    assert any(
        note.startswith("flat, label: ROC AUC: the rows are all of one class")
        for note in report.notes
    )
    assert all(np.isfinite(v) for figures in report.metrics.values() for v in figures.values())


def test_more_missing_is_worse_and_with_nothing_hidden_it_is_what_it_was(
    report: EvaluationReport,
) -> None:
    found = report.metrics["test"]
    assert (
        found["price: R2 at 0% missing"]
        == found["price: R2 at 0% missing, filled"]
        == pytest.approx(found["price: R2"])
    )
    assert (
        found["price: R2 at 90% missing"] < found["price: R2 at 25% missing"] < found["price: R2"]
    )
    assert {f"tags: mAP at {share:.0%} missing" for share in MISSING_FRACTIONS} <= set(found)


def test_each_part_alone_says_less_than_all(report: EvaluationReport) -> None:
    found = report.metrics["test"]
    assert found["price: words alone R2"] < found["price: row alone R2"] < found["price: R2"]


def test_pictures_lie_beside_the_report(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    drawn = sorted(p.name for p in (tmp_path / "evaluation").iterdir())
    assert {
        "test-0-intervals.svg",
        "test-1-confusion.svg",
        "test-1-risk.svg",
        "test-3-reliability.svg",
        "test-3-missing.svg",
    } <= set(drawn)
    text = (tmp_path / "evaluation.md").read_text()
    for name in drawn:
        assert f"](evaluation/{name})" in text
        assert ET.parse(tmp_path / "evaluation" / name)
    text = " ".join(text.split())
    assert "quadratic kappa: agreement" in text
    assert "average precision: of the second" in text


def test_data_without_a_column_are_judged_without_it_but_not_without_a_target(
    run: Model, tmp_path: Path
) -> None:
    lines = [line.split(",") for line in written(tmp_path / "t.csv").read_text().splitlines()]
    for drop, name in ((2, "no-words.csv"), (3, "no-price.csv")):
        (tmp_path / name).write_text(
            "\n".join(",".join(c for i, c in enumerate(cs) if i != drop) for cs in lines)
        )
    columns = {name: kind for name, kind in COLUMNS.items() if name != "words"}
    found = sn.evaluate(
        run, Dataset.open(tmp_path / "no-words.csv", split="split", types=columns), splits=["test"]
    )
    assert "no column words: judged without it" in found.notes
    assert found.metrics["test"]["price: rows"] == 64
    with pytest.raises(SensoriumError, match="no column 'price'"):
        sn.evaluate(
            run,
            Dataset.open(tmp_path / "no-price.csv", split="split", types=COLUMNS),
            splits=["test"],
        )


def test_the_command_says_it_and_writes_it(
    run: Model, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        app.run(["evaluate", str(run.folder), "--split", "test", "--max-samples", "60", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)["figures"]["test"]
    assert found["label: rows"] == 60
    assert (run.folder / "evaluation" / "test-0-missing.svg").exists()


# Hiding ---------------------------------------------------------------------------------------------------------------


def test_what_is_hidden_is_masked_or_filled_and_nothing_else_changes() -> None:
    reads = {"x": Numeric(), "kind": Category(("a", "b"), (3, 5))}
    batch = Batch(
        {
            "x": torch.tensor([1.0, 2.0]),
            "kind": torch.tensor([0, 0]),
            "y": torch.tensor([5.0, 6.0]),
        },
        {"kind": torch.tensor([True, False])},
        torch.tensor([2, 0]),
    )
    gone = torch.tensor([[True, True], [False, False], [False, True]])  # of the data set's rows
    masked, filled = ValueMasking(reads, gone).mask(batch), ValueMasking(reads, gone).impute(batch)
    assert masked.present["x"].tolist() == [True, False]
    assert masked.present["kind"].tolist() == [False, False]
    assert filled["x"].tolist() == [1.0, 0.0]
    assert "x" not in filled.present
    assert filled["kind"].tolist() == [1, 0], "what the data lack stays as it is"
    assert filled.present["kind"].tolist() == [True, False]
    assert masked["y"] is batch["y"]
    assert masked["x"] is batch["x"]


def test_what_is_filled_in_says_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    text = imputation_value(Text(), torch.full((2, 5), 9))
    assert text.tolist() == [Text().start, Text().end, *[Text().pad] * 3]
    assert imputation_value(Multilabel(tags=("p",)), torch.ones(1, 2)).tolist() == [0, 0]
    assert imputation_value(Datetime(mean=1e9), Datetime(mean=1e9).fake(2, rng))[0] == 0
    assert (imputation_value(Image(size=8), torch.ones(1, 3, 8, 8)) == 0).all()
    series = Series(channels=("a", "b"), mean=(0.0, 0.0), std=(1.0, 1.0))
    assert imputation_value(series, series.fake(2, rng))[0].tolist() == [0, 0, 1, 1]


def test_a_row_of_which_all_is_hidden_is_given_the_prior(run: Model, data: Dataset) -> None:
    prepared = data.prepare(run.schema, run.recipe.data.columns)
    with torch.inference_mode():
        batch = keep_columns(run.module, [])(prepared.batch(data.splits["test"][:3]))
        said, prior = run.module(batch), run.module.answer({}, 3)
    assert all(torch.equal(said[name], prior[name]) for name in said)


def test_the_part_of_a_loss() -> None:
    points = [
        MissingValuePoint(0.0, {"y": 1.0}, {"y": 1.0}),
        MissingValuePoint(0.5, {"y": 0.9}, {"y": 0.6}),
    ]
    assert relative_loss(points, "y") == pytest.approx(0.25)
    assert relative_loss([points[0], MissingValuePoint(0.5, {"y": 0.9}, {"y": 1.0})], "y") is None
