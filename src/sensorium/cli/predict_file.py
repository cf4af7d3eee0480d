"""Predict a whole file, one chunk of rows at a time."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.batching import iter_batches
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.predict import Prediction, Predictor
from sensorium.io import atomic
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Category, Numeric
from sensorium.pretrained.classifier import ImageClassifier
from sensorium.pretrained.load import PretrainedModel
from sensorium.training.checkpoint import Model

CHUNK_ROWS = 4096  # rows whose raw values are in memory at a time
OUTPUT_FORMATS = (".csv", ".jsonl")
CLASS_HEADING = "class"  # output column of a pretrained classifier
SUFFIXES = {  # appended to an output column whose name is taken
    "row": "name",
    "low": "bound",
    "high": "bound",
    "std": "deviation",
    "probability": "confidence",
}
Headings = dict[tuple[str, str], str]  # (target, part of its prediction) -> output column
PredictRows = Callable[[Sequence[Mapping[str, Any]]], dict[str, Prediction]]


def open_table_to_predict(
    model: Model | PretrainedModel, path: str, max_invalid_fraction: float
) -> Dataset:
    """Open a table with the column types that the model was trained on.

    Args:
        model: a run, whose schema is used; or pretrained weights, for which types are inferred.
        path: table or folder.
        max_invalid_fraction: largest fraction of rows that may be unreadable.

    Raises:
        SensoriumError: if it cannot be read.
    """
    if isinstance(model, Model):
        return Dataset.open_with_schema(
            path, model.schema, max_invalid_fraction=max_invalid_fraction
        )
    return Dataset.open(path, max_invalid_fraction=max_invalid_fraction)


def predict_file(
    model: Model | PretrainedModel,
    dataset: Dataset,
    out: Path,
    log: Callable[[str], object] = print,
    *,
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
) -> int:
    """Write the predictions for each row of a dataset to a .csv or .jsonl file.

    A row starts with its name ("products.csv:17"). Rows that could not be read, and columns that
    the model reads but the data lack, are named to `log`.

    Args:
        model: a run, or a pretrained image classifier.
        dataset: rows to predict.
        out: output file.
        log: receives warnings, one line each.
        coverage: coverage of prediction intervals.
        min_accuracy: accuracy below which a label is withheld; 0: predict every row.

    Returns:
        The number of rows written.

    Raises:
        SensoriumError: if the output format is unknown, or the data have no column that the model
            reads.
    """
    if out.suffix not in OUTPUT_FORMATS:
        raise SensoriumError(
            f"{out} does not end in {' or '.join(OUTPUT_FORMATS)}. Name such a file with -o."
        )
    predictor = model.predict
    if isinstance(predictor, ImageClassifier):
        columns, targets, predict = _classifier(predictor, dataset)
    elif isinstance(predictor, Predictor):
        columns, targets = _input_columns(predictor, dataset, log), predictor.targets
        predict = partial(predictor, coverage=coverage, min_accuracy=min_accuracy)
    else:
        raise SensoriumError(f"{model} cannot predict a table.")
    for bad in dataset.bad_samples:
        location = f"{bad.location}, {bad.column}" if bad.column else bad.location
        log(f"skipped {location}: {bad.reason}")
    headings = name_headings(targets)
    rows = _iter_predictions(predict, dataset, columns, headings, log)
    write = (
        partial(_write_csv, rows, headings) if out.suffix == ".csv" else partial(_write_jsonl, rows)
    )
    atomic.write_file(out, write)
    return len(dataset)


def name_headings(targets: Mapping[str, Modality]) -> Headings:
    """Return a distinct output column for every part of every prediction.

    Targets keep their names. A part whose column would have a taken name, such as the lower bound
    of `temp` next to a target `temp low`, gets a suffix: `temp low (bound)`.
    """
    headings: Headings = {(name, ""): name for name in targets}
    parts = {
        name: ("low", "high", "std") if isinstance(target, Numeric) else ("probability",)
        for name, target in targets.items()
    }
    part_headings = [
        (name, part, f"{name} {part}")
        for name, target_parts in parts.items()
        for part in target_parts
    ]
    for name, part, heading in [("", "row", "row"), *part_headings]:
        while heading in headings.values():
            heading += f" ({SUFFIXES[part]})"
        headings[name, part] = heading
    return headings


def _input_columns(
    predictor: Predictor, dataset: Dataset, log: Callable[[str], object]
) -> list[str]:
    """Return the columns that the model reads and the data have."""
    columns = [name for name in predictor.columns if name in dataset.table.columns]
    if not columns:
        raise SensoriumError(
            f"{dataset.name} has none of the columns that the model reads: "
            f"{', '.join(predictor.columns)}."
        )
    missing = [name for name in predictor.columns if name not in columns]
    if missing:
        log(f"{dataset.name} has no column {', '.join(missing)}: masked as missing in every row")
    return columns


def _classifier(
    classifier: ImageClassifier, dataset: Dataset
) -> tuple[list[str], dict[str, Modality], PredictRows]:
    """Return a classifier's image column, target and prediction function."""
    column = dataset.schema.resolve_column("image", None)
    classes = tuple(dict.fromkeys(classifier.model.labels))

    def predict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Prediction]:
        present = [i for i, row in enumerate(rows) if row[column] is not None]
        ranked = classifier(image=[rows[i][column] for i in present], top_k=len(classes))
        probability = np.zeros((len(rows), len(classes)), np.float32)
        values: list[str | None] = [None] * len(rows)
        for i, predictions in zip(present, ranked, strict=True):
            values[i] = predictions[0].label
            for prediction in predictions:
                probability[i, classes.index(prediction.label)] += prediction.probability
        return {CLASS_HEADING: Prediction(values, classes=classes, probability=probability)}

    return [column], {CLASS_HEADING: Category(classes=classes)}, predict


def _iter_predictions(
    predict: PredictRows,
    dataset: Dataset,
    columns: list[str],
    headings: Headings,
    log: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    for rows in iter_batches(range(len(dataset)), CHUNK_ROWS):
        raw = zip(*(dataset.raw(name, rows) for name in columns), strict=True)
        inputs = [dict(zip(columns, values, strict=True)) for values in raw]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            predictions = predict(inputs)
        for warning in caught:
            log(str(warning.message))
        for i, row in enumerate(rows):
            output: dict[str, Any] = {headings["", "row"]: dataset.location(row)}
            for name, prediction in predictions.items():
                for part, value in _prediction_fields(prediction, i).items():
                    output[headings[name, part]] = value
            yield output


def _prediction_fields(prediction: Prediction, i: int) -> dict[str, Any]:
    """Return the prediction of one target for row i, part by part."""
    if prediction.std is not None and prediction.interval is not None:
        low, high = (end if math.isfinite(end) else None for end in prediction.interval[i].tolist())
        value, std = prediction.value[i], float(prediction.std[i])
        return {"": value, "low": low, "high": high, "std": std}
    probability = () if prediction.probability is None else prediction.probability[i]
    confidences = {
        name: round(float(p), 6) for name, p in zip(prediction.classes, probability, strict=False)
    }
    return {"": prediction.value[i], "probability": confidences}


def _write_jsonl(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


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
                name: _csv_cell(value, row.get(labels.get(name, ""))) for name, value in row.items()
            }
            if writer is None:
                writer = csv.DictWriter(file, list(cells), lineterminator="\n")
                writer.writeheader()
            writer.writerow(cells)


def _csv_cell(value: Any, label: Any) -> Any:
    """Return a cell; `label` is the prediction that a dict of probabilities belongs to."""
    if isinstance(value, dict):
        if isinstance(label, list):
            return "|".join(str(value[tag]) for tag in label)
        if label is None:
            return max(value.values(), default=None)
        return value[label]
    return "|".join(value) if isinstance(value, list) else value
