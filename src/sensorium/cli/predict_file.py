"""Predict a whole file, one chunk of rows at a time: no row is lost."""

from __future__ import annotations

import csv
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.bad_samples import summarize_bad_samples
from sensorium.data.cell_parsing import parse_number
from sensorium.data.dataset import Dataset
from sensorium.data.open import open_rows_to_predict
from sensorium.errors import SensoriumError
from sensorium.inference.base import load_value
from sensorium.inference.predict import Prediction, Predictor, Unreadable
from sensorium.inference.prediction_table import (
    Headings,
    confidence,
    name_headings,
    prediction_fields,
)
from sensorium.io import atomic
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category
from sensorium.pretrained.classifier import ImageClassifier
from sensorium.pretrained.load import PretrainedModel
from sensorium.training.checkpoint import Model

CHUNK_ROWS = 4096  # rows whose raw values are in memory at a time
OUTPUT_FORMATS = (".csv", ".jsonl")
CLASS_HEADING = "class"  # output column of a pretrained classifier
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of a cell that a spreadsheet would compute
MAX_EXAMPLES = 3  # values or rows named in a summary
PredictRows = Callable[[Sequence[Mapping[str, Any]], list[Unreadable]], dict[str, Prediction]]


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written beside the predictions.

    Attributes:
        keep_columns: write all input columns before the predictions.
        id_column: the input column that names a row, instead of its line ("products.csv:17").
        max_unreadable: the largest fraction of rows that may have a value that cannot be read.
    """

    keep_columns: bool = False
    id_column: str | None = None
    max_unreadable: float = 1.0


@dataclass
class _Findings:
    """What was masked or never seen in training, by column."""

    unreadable: dict[int, dict[str, str]] = field(default_factory=dict)  # row -> column -> reason
    unseen: dict[str, Counter[str]] = field(default_factory=dict)  # column -> value -> rows


@dataclass(frozen=True)
class _Job:
    """How the rows of a dataset are predicted and written."""

    dataset: Dataset
    columns: Mapping[str, Modality]  # that the model reads and the data have
    predict: PredictRows
    headings: Headings
    kept: Mapping[str, Any]  # output column -> its raw values
    id_values: Any = None
    findings: _Findings = field(default_factory=_Findings)


def open_table_to_predict(
    model: Model | PretrainedModel, path: str, encoding: str | None = None
) -> Dataset:
    """Open a table to predict. What cannot be read in a column of the model is missing.

    Columns that the model does not read, such as its targets, are not looked at.

    Args:
        model: a run, whose column types are used; or pretrained weights, for which they are
            inferred.
        path: table or folder.
        encoding: of a text table; None: UTF-8.

    Raises:
        SensoriumError: if it cannot be read.
    """
    predictor = model.predict
    names = list(predictor.columns) if isinstance(predictor, Predictor) else []
    schema = model.schema if isinstance(model, Model) else None
    options = {"encoding": encoding} if encoding else {}
    opened = open_rows_to_predict(Path(path), schema, names, options)
    dataset = Dataset(opened.table, opened.schema, opened.name)
    dataset.input_columns = opened.raw_columns
    return dataset


def predict_file(
    model: Model | PretrainedModel,
    dataset: Dataset,
    out: Path,
    log: Callable[[str], object] = print,
    *,
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
    output: OutputOptions | None = None,
) -> int:
    """Write the predictions for each row of a dataset to a .csv or .jsonl file, in its order.

    A row starts with its name ("products.csv:17") and ends with the columns whose value could not
    be read and was masked. These, values never seen in training, and columns that the model reads
    but the data lack, are counted to `log` at the end.

    Args:
        model: a run, or a pretrained image classifier.
        dataset: rows to predict.
        out: output file.
        log: receives warnings, one line each.
        coverage: coverage of prediction intervals.
        min_accuracy: accuracy below which a label is withheld; 0: predict every row.
        output: what is written beside the predictions.

    Returns:
        The number of rows written.

    Raises:
        SensoriumError: if the output format is unknown, or the data have no column that the model
            reads.
    """
    output = output or OutputOptions()
    if out.suffix not in OUTPUT_FORMATS:
        raise SensoriumError(
            f"{out} does not end in {' or '.join(OUTPUT_FORMATS)}. Name such a file with -o."
        )
    predictor = model.predict
    if isinstance(predictor, ImageClassifier):
        columns, targets, predict = _classifier(predictor, dataset)
        missing: list[str] = []
    elif isinstance(predictor, Predictor):
        columns, missing = _input_columns(predictor, dataset)
        targets = predictor.targets
        predict = partial(_predict_rows, predictor, coverage, min_accuracy)
    else:
        raise SensoriumError(f"{model} cannot predict a table.")
    job = _plan_output(dataset, columns, targets, predict, output)
    _note_bad_samples(job, log)
    write = _write_csv if out.suffix == ".csv" else _write_jsonl
    atomic.write_file(out, partial(write, _iter_predictions(job, output, log), job.headings))
    for line in _summarize(job, missing):
        log(line)
    return len(dataset)


def _predict_rows(
    predictor: Predictor,
    coverage: float,
    min_accuracy: float,
    rows: Sequence[Mapping[str, Any]],
    unreadable: list[Unreadable],
) -> dict[str, Prediction]:
    return predictor(rows, coverage=coverage, min_accuracy=min_accuracy, unreadable=unreadable)


def _input_columns(predictor: Predictor, dataset: Dataset) -> tuple[dict[str, Modality], list[str]]:
    """Return the columns that the model reads and the data have, and those that they lack."""
    columns = {
        name: modality
        for name, modality in predictor.columns.items()
        if name in dataset.table.columns
    }
    if not columns:
        raise SensoriumError(
            f"{dataset.name} has none of the columns that the model reads: "
            f"{', '.join(predictor.columns)}."
        )
    return columns, [name for name in predictor.columns if name not in columns]


def _classifier(
    classifier: ImageClassifier, dataset: Dataset
) -> tuple[dict[str, Modality], dict[str, Modality], PredictRows]:
    """Return a classifier's image column, target and prediction function."""
    column = dataset.schema.resolve_column("image", None)
    classes = tuple(dict.fromkeys(classifier.model.labels))

    def predict(
        rows: Sequence[Mapping[str, Any]], unreadable: list[Unreadable]
    ) -> dict[str, Prediction]:
        present: list[int] = []
        for i, row in enumerate(rows):
            try:
                if row[column] is not None:
                    load_value(classifier.image, row[column])
                    present.append(i)
            except (SensoriumError, OSError) as error:
                unreadable.append(Unreadable(i, column, str(error.__cause__ or error)))
        ranked = classifier(image=[rows[i][column] for i in present], top_k=len(classes))
        probability = np.zeros((len(rows), len(classes)), np.float32)
        values: list[str | None] = [None] * len(rows)
        for i, predictions in zip(present, ranked, strict=True):
            values[i] = predictions[0].label
            for prediction in predictions:
                probability[i, classes.index(prediction.label)] += prediction.probability
        return {CLASS_HEADING: Prediction(values, classes=classes, probability=probability)}

    return {column: classifier.image}, {CLASS_HEADING: Category(classes=classes)}, predict


def _plan_output(
    dataset: Dataset,
    columns: Mapping[str, Modality],
    targets: Mapping[str, Modality],
    predict: PredictRows,
    output: OutputOptions,
) -> _Job:
    """Return how the rows are predicted and written."""
    inputs = dataset.input_columns or dataset.table.columns
    id_column = output.id_column
    if id_column is not None and id_column not in inputs:
        raise SensoriumError(
            f"--id {id_column}: {dataset.name} has no such column. Choose one of "
            f"{', '.join(inputs)}."
        )
    kept = {n: v for n, v in inputs.items() if n != id_column} if output.keep_columns else {}
    taken = [*kept, *([id_column] if id_column is not None else [])]
    headings = name_headings(targets, taken)
    if id_column is not None:
        headings["", "row"] = id_column
    id_values = None if id_column is None else inputs[id_column]
    return _Job(dataset, columns, predict, headings, kept, id_values)


def _note_bad_samples(job: _Job, log: Callable[[str], object]) -> None:
    """Note what could not be read when the table was opened, and name the rows left out then."""
    for line in summarize_bad_samples([bad for bad in job.dataset.bad_samples if bad.row < 0]):
        log(f"skipped {line}")
    for note in job.dataset.notes:
        log(f"unused: {note}")
    for bad in job.dataset.bad_samples:
        if bad.row < 0:
            continue
        columns = [bad.column] if bad.column else list(job.columns)
        job.findings.unreadable.setdefault(bad.row, {}).update(dict.fromkeys(columns, bad.reason))


def _iter_predictions(
    job: _Job, output: OutputOptions, log: Callable[[str], object]
) -> Iterator[dict[str, Any]]:
    dataset, headings = job.dataset, job.headings
    for start in range(0, len(dataset), CHUNK_ROWS):
        rows = range(start, min(start + CHUNK_ROWS, len(dataset)))
        raw = {name: dataset.raw(name, rows) for name in job.columns}
        _count_unseen(job, raw)
        inputs = [dict(zip(raw, values, strict=True)) for values in zip(*raw.values(), strict=True)]
        unreadable: list[Unreadable] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predictions = job.predict(inputs, unreadable)
        for warning in caught:
            log(str(warning.message))
        for bad in unreadable:
            job.findings.unreadable.setdefault(start + bad.row, {})[bad.column] = bad.reason
        for i, row in enumerate(rows):
            named = dataset.location(row) if job.id_values is None else job.id_values[row]
            cells: dict[str, Any] = {headings["", "row"]: named}
            cells |= {name: values[row] for name, values in job.kept.items()}
            for name, prediction in predictions.items():
                for part, value in prediction_fields(prediction, i).items():
                    cells[headings[name, part]] = value
            cells[headings["", "unreadable"]] = list(job.findings.unreadable.get(row, ()))
            yield cells
    num_bad = len(job.findings.unreadable)
    if num_bad > output.max_unreadable * len(dataset):
        lines = [f"{num_bad} of {len(dataset)} rows have a value that cannot be read, more than "]
        lines[0] += f"--max-invalid-fraction {output.max_unreadable:g} allows."
        raise SensoriumError("\n".join([*lines, *_summarize(job, [])]))


def _count_unseen(job: _Job, raw: Mapping[str, Sequence[Any]]) -> None:
    """Count the classes and tags that training did not see."""
    for name, modality in job.columns.items():
        present = [value for value in raw[name] if value is not None]
        unseen: list[str] = []
        if isinstance(modality, Category):
            known = len(modality.classes)
            unseen = [str(value) for value in present if int(modality.load(value)) >= known]
        elif isinstance(modality, Multilabel):
            known_tags = set(modality.tags)
            tags = (set(modality.split_tags(value)) - known_tags for value in present)
            unseen = [min(new) for new in tags if new]
        if unseen:
            job.findings.unseen.setdefault(name, Counter()).update(unseen)


def _summarize(job: _Job, missing: Sequence[str]) -> Iterator[str]:
    """Yield a line for each column with values that were masked or never seen, or without any."""
    dataset, findings = job.dataset, job.findings
    if missing:
        yield f"{dataset.name} has no column {', '.join(missing)}: masked as missing in every row"
    for name in job.columns:
        bad = [(row, why[name]) for row, why in sorted(findings.unreadable.items()) if name in why]
        if bad:
            examples = "; ".join(
                f"{dataset.location(row)}: {why}" for row, why in bad[:MAX_EXAMPLES]
            )
            more = f"; and {len(bad) - MAX_EXAMPLES:,} more" if len(bad) > MAX_EXAMPLES else ""
            yield (
                f"column {name}: {len(bad):,} of {len(dataset):,} values cannot be read and are "
                f"masked as missing ({examples}{more})"
            )
        unseen = findings.unseen.get(name)
        if unseen:
            examples = ", ".join(repr(value) for value, _ in unseen.most_common(MAX_EXAMPLES))
            more = ", ..." if len(unseen) > MAX_EXAMPLES else ""
            yield (
                f"column {name}: {unseen.total():,} of {len(dataset):,} values were never seen in "
                f"training ({examples}{more})"
            )


def _write_jsonl(rows: Iterator[dict[str, Any]], headings: Headings, path: Path) -> None:
    del headings
    with path.open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps(row, ensure_ascii=False, default=_plain_json) + "\n" for row in rows
        )


def _plain_json(value: Any) -> Any:
    """Return a kept value that JSON lacks as text; numbers and arrays as they are."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)


def _write_csv(rows: Iterator[dict[str, Any]], headings: Headings, path: Path) -> None:
    """Write labels with their probability, tags joined by a bar; empty where withheld."""
    labels = {
        headings[name, "probability"]: heading
        for (name, part), heading in headings.items()
        if not part and (name, "probability") in headings
    }
    with path.open("w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            cells = {
                name: csv_cell(value, row.get(labels.get(name, ""))) for name, value in row.items()
            }
            if writer is None:
                writer = csv.DictWriter(file, list(cells), lineterminator="\n")
                writer.writeheader()
            writer.writerow(cells)


def csv_cell(value: Any, label: Any = None) -> Any:
    """Return a cell of a CSV file; `label` is the prediction that its probabilities belong to.

    Text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    if isinstance(value, dict):
        value = confidence(value, label)
    if isinstance(value, list):
        value = "|".join(map(str, value))
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if not isinstance(value, str) or not value.startswith(FORMULA_STARTS):
        return value
    return value if parse_number(value) is not None else f"'{value}"
