"""The verb `predict` over a whole file: a table in, the same rows with what is said of each out, a piece at a time."""

import csv
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.predict import Prediction, Predictor
from sensorium.io import atomic
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Numeric
from sensorium.training.checkpoint import Model

CHUNK_ROWS = 4096  # rows whose raw values are held at a time
OUTPUT_FORMATS = (".csv", ".jsonl")
MEANING = {
    "row": "name",
    "low": "bound",
    "high": "bound",
    "spread": "deviation",
    "probability": "how sure",
}
Headings = dict[
    tuple[str, str], str
]  # (target, part of what is said of it) -> the name of its column


def predict_file(
    model: Model,
    dataset: Dataset,
    out: Path,
    log: Callable[[str], object] = print,
    *,
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
) -> int:
    """Write what the model says of each row of `data` to a .csv or .jsonl file; how many rows that were.

    A row begins with its name ("products.csv:17"). Rows that could not be read are named to `say` and are not in it;
    so is what the model reads and the data do not have. level, accuracy: as the verb has them.
    """
    if out.suffix not in OUTPUT_FORMATS:
        raise SensoriumError(
            f"{out}: predictions are written as {' or '.join(OUTPUT_FORMATS)}; give the file that ending"
        )
    predictor = model.predict
    assert isinstance(predictor, Predictor)
    columns = [name for name in predictor.columns if name in dataset.table.columns]
    if not columns:
        raise SensoriumError(
            f"{dataset.name} has none of the columns that are read: {', '.join(predictor.columns)}"
        )
    if lacking := [name for name in predictor.columns if name not in columns]:
        log(f"{dataset.name} has no column {', '.join(lacking)}: predicted without")
    for bad in dataset.bad_samples:
        log(
            f"left out: {bad.location}, {bad.column}: {bad.reason}"
            if bad.column
            else f"left out: {bad.location}: {bad.reason}"
        )
    names = headings(predictor.targets)
    rows = _iter_predictions(
        partial(predictor, level=coverage, accuracy=min_accuracy), dataset, columns, names, log
    )
    atomic.write_file(
        out,
        partial(_write_csv, rows, names) if out.suffix == ".csv" else partial(_write_jsonl, rows),
    )
    return len(dataset)


def headings(targets: Mapping[str, Modality]) -> Headings:
    """Names of the columns that are written, no two the same: those of targets stay, and what would be called as one
    is, such as the lower bound of `temp` beside a target `temp low`, says what it is: `temp low (bound)`."""
    found: Headings = {(name, ""): name for name in targets}
    parts = {
        name: ("low", "high", "spread") if isinstance(of, Numeric) else ("probability",)
        for name, of in targets.items()
    }
    wanted = [(name, part, f"{name} {part}") for name, several in parts.items() for part in several]
    for name, part, heading in [("", "row", "row"), *wanted]:
        while heading in found.values():
            heading += f" ({MEANING[part]})"
        found[name, part] = heading
    return found


def _iter_predictions(
    predict: Callable[..., dict[str, Prediction]],
    dataset: Dataset,
    columns: list[str],
    names: Headings,
    log: Callable[[str], object],
) -> Iterator[dict[str, Any]]:
    for start in range(0, len(dataset), CHUNK_ROWS):
        rows = range(start, min(start + CHUNK_ROWS, len(dataset)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = predict(
                [
                    dict(zip(columns, values, strict=True))
                    for values in zip(*(dataset.raw(name, rows) for name in columns), strict=True)
                ]
            )
        for warning in said:
            log(str(warning.message))
        for i, row in enumerate(rows):
            told: dict[str, Any] = {names["", "row"]: dataset.location(row)}
            for name, prediction in found.items():
                told |= {
                    names[name, part]: value
                    for part, value in _prediction_fields(prediction, i).items()
                }
            yield told


def _prediction_fields(prediction: Prediction, i: int) -> dict[str, Any]:
    """What is said of a target of row i, part by part."""
    if prediction.std is not None:
        assert prediction.interval is not None
        low, high = (end if math.isfinite(end) else None for end in prediction.interval[i].tolist())
        return {
            "": prediction.value[i],
            "low": low,
            "high": high,
            "spread": float(prediction.std[i]),
        }
    assert prediction.probability is not None
    sure = {
        c: round(float(p), 6)
        for c, p in zip(prediction.classes, prediction.probability[i], strict=False)
    }
    return {"": prediction.value[i], "probability": sure}


def _write_jsonl(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_csv(rows: Iterator[dict[str, Any]], names: Headings, path: Path) -> None:
    """Of a class its probability alone; tags parted by a bar; nothing where it abstains, or a bound is endless."""
    labels = {
        names[name, "probability"]: heading
        for (name, part), heading in names.items()
        if not part and (name, "probability") in names
    }
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            plain = {
                name: _csv_cell(value, row.get(labels.get(name, ""))) for name, value in row.items()
            }
            if writer is None:
                writer = csv.DictWriter(file, list(plain), lineterminator="\n")
                writer.writeheader()
            writer.writerow(plain)


def _csv_cell(value: Any, label: Any) -> Any:
    """label: what a value that is a dict of probabilities is of."""
    if isinstance(value, dict):
        if isinstance(label, list):
            return "|".join(str(value[tag]) for tag in label)
        return max(value.values()) if label is None else value[label]
    return "|".join(value) if isinstance(value, list) else value
