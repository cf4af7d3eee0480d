"""The verb `predict` over a whole file: a table in, the same rows with what is said of each out, a piece at a time."""
import csv
import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sensorium import durable
from sensorium.checkpoint import Model
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.verbs.predict import Prediction, Predictor

PIECE = 4096                                # rows whose raw values are held at a time
FORMATS = (".csv", ".jsonl")


def predict_file(model: Model, data: Dataset, out: Path, say: Callable[[str], object] = print, *,
                 level: float = 0.9, accuracy: float = 0.0) -> int:
    """Write what the model says of each row of `data` to a .csv or .jsonl file; how many rows that were.

    A row begins with its name ("products.csv:17"). Rows that could not be read are named to `say` and are not in it;
    so is what the model reads and the data do not have. level, accuracy: as the verb has them.
    """
    if out.suffix not in FORMATS:
        raise SensoriumError(f"{out}: predictions are written as {' or '.join(FORMATS)}; give the file that ending")
    predictor = model.predict
    assert isinstance(predictor, Predictor)
    columns = [name for name in predictor.columns if name in data.table.columns]
    if not columns:
        raise SensoriumError(f"{data.name} has none of the columns that are read: {', '.join(predictor.columns)}")
    if lacking := [name for name in predictor.columns if name not in columns]:
        say(f"{data.name} has no column {', '.join(lacking)}: predicted without")
    for bad in data.bad:
        say(f"left out: {bad.where}, {bad.column}: {bad.reason}" if bad.column else f"left out: {bad.where}: "
            f"{bad.reason}")
    rows = _rows(partial(predictor, level=level, accuracy=accuracy), data, columns, say)
    durable.write(out, partial(_csv if out.suffix == ".csv" else _jsonl, rows))
    return len(data)


def _rows(predict: Callable[..., dict[str, Prediction]], data: Dataset, columns: list[str],
          say: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(data), PIECE):
        rows = range(start, min(start + PIECE, len(data)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = predict([dict(zip(columns, values, strict=True))
                             for values in zip(*(data.raw(name, rows) for name in columns), strict=True)])
        for warning in said:
            say(str(warning.message))
        for i, row in enumerate(rows):
            told: dict[str, Any] = {"row": data.where(row)}
            for name, prediction in found.items():
                told |= _told(name, prediction, i)
            yield told


def _told(name: str, said: Prediction, i: int) -> dict[str, Any]:
    """What is said of a target of row i."""
    if said.spread is not None:
        assert said.interval is not None
        low, high = (end if math.isfinite(end) else None for end in said.interval[i].tolist())
        return {name: said.value[i], f"{name} low": low, f"{name} high": high, f"{name} spread": float(said.spread[i])}
    assert said.probability is not None
    sure = {c: round(float(p), 6) for c, p in zip(said.classes, said.probability[i], strict=False)}
    return {name: said.value[i], f"{name} probability": sure}


def _jsonl(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Of a class its probability alone; tags parted by a bar; nothing where it abstains, or a bound is endless."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            plain = {name: _cell(name, value, row) for name, value in row.items()}
            if writer is None:
                writer = csv.DictWriter(file, list(plain), lineterminator="\n")
                writer.writeheader()
            writer.writerow(plain)


def _cell(name: str, value: Any, row: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        label = row[name.removesuffix(" probability")]
        if isinstance(label, list):
            return "|".join(str(value[tag]) for tag in label)
        return max(value.values()) if label is None else value[label]
    return "|".join(value) if isinstance(value, list) else value
