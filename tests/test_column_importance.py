"""Tests of permutation importance: every column by itself, with its noise, on the terminal too."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.html_pages import Page, assert_self_contained
from PIL import Image

import sensorium as sn
from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.evaluation.column_importance import (
    ColumnImportance,
    importance_rows,
    importance_table,
    permutation_importance,
)
from sensorium.evaluation.evaluate import evaluate
from sensorium.evaluation.report import MAX_TERMINAL_ROWS, EvaluationReport
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.recipes.fusion import fusion
from sensorium.training.checkpoint import Model

NAMES = ("strong", "weak", "kind", "photo", "a|b <i>")


def write_table(folder: Path, num_rows: int = 300) -> Path:
    """Write a table whose target depends on a number, less on another, and not on the others."""
    rng = np.random.default_rng(0)
    strong, weak, other = rng.normal(size=(3, num_rows))
    lines = [",".join([*NAMES, "price", "split"])]
    for i in range(num_rows):
        photo = folder / f"{i % 7}.png"
        Image.fromarray(np.full((8, 8, 3), 30 * (i % 7), np.uint8)).save(photo)
        split = ("train", "train", "train", "val", "test")[i % 5]
        kind = f"k{rng.integers(3)}"
        price = 100 + 50 * strong[i] + 10 * weak[i] + rng.normal()
        cells = f"{strong[i]:.3f},{weak[i]:.3f},{kind},{photo.name},{other[i]:.3f},{price:.2f}"
        lines.append(f"{cells},{split}")
    path = folder / "t.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(write_table(tmp_path_factory.mktemp("data")), split="split")


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sn.train(
        fusion,
        data,
        out=tmp_path_factory.mktemp("run") / "run",
        target="price",
        epochs=12,
        dim=16,
        lr=5e-3,
        batch_size=32,
        quiet=True,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def report(run: Model, data: Dataset) -> EvaluationReport:
    return evaluate(run, data, splits=["test"], ablate_columns=True)


def test_every_column_has_its_own_importance(report: EvaluationReport) -> None:
    (table,) = report.tables
    assert sorted(str(row["column"]) for row in table.rows) == sorted(NAMES)
    lost = {str(row["column"]): row["R2 lost when shuffled"] for row in table.rows}
    values = [float(value) for value in lost.values() if isinstance(value, float)]
    assert values == sorted(values, reverse=True)
    assert table.rows[0]["column"] == "strong"
    assert values[0] > 0.3
    assert all(abs(values[list(lost).index(name)]) < 0.1 for name in ("kind", "photo"))
    assert all(isinstance(row["±"], float) and row["±"] >= 0 for row in table.rows)
    assert "5 shuffles of each column on 60 rows of test" in table.note


def test_every_column_is_evaluated_alone(report: EvaluationReport) -> None:
    metrics = report.metrics["test"]
    assert {f"only {name} R2" for name in (*NAMES, "row")} <= set(metrics)
    assert metrics["only strong R2"] > metrics["only weak R2"]
    alone = {row["column"]: row["R2 with it alone"] for row in report.tables[0].rows}
    assert alone["weak"] == metrics["only weak R2"]
    assert "only row R2" in report.headline_metrics
    assert "only weak R2" not in report.headline_metrics, "it is in the table of importance"


def test_importance_is_deterministic_for_a_seed(run: Model, data: Dataset) -> None:
    first, second, other = (
        evaluate(run, data, splits=["test"], seed=seed).tables for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


def test_importance_can_be_left_out(run: Model, data: Dataset) -> None:
    report = evaluate(run, data, splits=["test"], importance_repeats=0)
    assert report.tables == []
    assert "tables" not in report.to_dict()


def test_a_shuffled_column_loses_its_rows_only(run: Model, data: Dataset) -> None:
    predictor = run.module
    assert isinstance(predictor, MultimodalPredictor)
    prepared = data.prepare(run.schema, run.recipe.data.columns)
    rows = data.splits["test"]
    seen: list[float] = []

    def score(outputs: object, labels: object) -> dict[str, float]:
        seen.append(labels["price"].sum().item())  # type: ignore[index]
        return {"price": float(len(seen))}

    result = permutation_importance(predictor, prepared, rows, ["weak"], score, repeats=2)
    assert len(set(seen)) == 1, "labels are not shuffled"
    assert result == [ColumnImportance("weak", {"price": [-1.0, -2.0]})]


def test_rows_are_limited(run: Model) -> None:
    predictor = run.module
    assert isinstance(predictor, MultimodalPredictor)
    assert predictor.encoder_columns
    rows = np.arange(5000)
    assert len(importance_rows(predictor, rows, 2, 5)) == 1000
    assert len(importance_rows(predictor, rows, 10, 5)) == 600
    assert len(importance_rows(predictor, rows, 500, 5)) == 200


@pytest.mark.parametrize(
    ("losses", "is_noise"),
    [
        ([0.2, 0.21, 0.19], False),
        ([0.01, -0.01, 0.02], True),
        ([0.0, 0.0, 0.0], True),
        ([-0.2, -0.21], True),
        ([0.01, 0.01, 0.01], False),
    ],
)
def test_noise(losses: list[float], is_noise: bool) -> None:
    assert ColumnImportance("x", {"y": losses}).is_noise("y") == is_noise


def test_columns_within_noise_are_named() -> None:
    columns = [
        ColumnImportance("price", {"y": [0.5, 0.6]}),
        ColumnImportance("photo", {"y": [0.01, -0.01]}),
    ]
    table = importance_table("test", columns, {"y": "R2"}, {}, (200, 4000))
    assert "2 shuffles of each column on 200 of 4,000 rows of test" in table.note
    assert "Shuffling photo costs no more than noise: the model does not use it" in table.note
    assert table.header() == ["column", "R2 lost when shuffled", "±"]
    both = [*columns, ColumnImportance("x", {"y": [0.0, 0.0]})]
    table = importance_table("test", both, {"y": "R2"}, {}, (200, 200))
    assert "Shuffling photo, x costs no more" in table.note
    assert "200 rows" in table.note
    assert "Every column matters" in importance_table("t", both[:1], {"y": "R2"}, {}, (2, 2)).note


def test_terminal_shows_importance_and_alone(
    run: Model, data: Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["evaluate", str(run.folder), "--split", "test", "--out", str(tmp_path)]
    assert app.run([*arguments, "--ablate-columns"]) == 0
    printed = capsys.readouterr().out
    assert "test: importance of the columns" in printed
    assert all(name in printed for name in NAMES)
    assert "shuffled" in printed
    assert app.run([*arguments, "--json", "--importance-repeats", "2"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert "2 shuffles" in table["note"]
    assert len(table["rows"]) == len(NAMES)
    text = (tmp_path / "evaluation.md").read_text()
    assert "| column | R2 lost when shuffled | ± |" in text
    assert "a\\|b" in text


def test_long_tables_are_cut_on_the_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    columns = [ColumnImportance(f"column-{i}", {"y": [1.0]}) for i in range(25)]
    table = importance_table("test", columns, {"y": "R2"}, {}, (9, 9))
    Console(width=200).print(table)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"column-{MAX_TERMINAL_ROWS - 1} " in printed
    assert f"column-{MAX_TERMINAL_ROWS} " not in printed
    assert "5 more columns are in the report" in printed
    assert "column-24" in table.markdown()


# The page of the report


def test_page_of_the_report(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    source = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert_self_contained(source)
    page = Page(source)
    assert page.names.count("title") == 1
    assert "i" not in page.names, "the name of a column is no markup"
    assert "a|b <i>" in page.text
    assert len(page.images) == len(report.charts)
    assert "price: intervals" in [image["alt"] for image in page.images]
    assert page.links == []
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "prefers-color-scheme:dark" in source
    assert "width=device-width" in source
