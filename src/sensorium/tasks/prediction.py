"""The verb `predict` over a whole file: a table in, the same rows with what is said of each out, a piece at a time."""
import csv
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sensorium import durable
from sensorium.checkpoint import Model
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Number
from sensorium.verbs.predict import Prediction, Predictor

PIECE = 4096                                # rows whose raw values are held at a time
FORMATS = (".csv", ".jsonl")
MEANING = {"row": "name", "low": "bound", "high": "bound", "spread": "deviation", "probability": "how sure"}
Headings = dict[tuple[str, str], str]       # (target, part of what is said of it) -> the name of its column


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
    names = headings(predictor.targets)
    rows = _rows(partial(predictor, level=level, accuracy=accuracy), data, columns, names, say)
    durable.write(out, partial(_csv, rows, names) if out.suffix == ".csv" else partial(_jsonl, rows))
    return len(data)


def headings(targets: Mapping[str, Modality]) -> Headings:
    """Names of the columns that are written, no two the same: those of targets stay, and what would be called as one
    is, such as the lower bound of `temp` beside a target `temp low`, says what it is: `temp low (bound)`."""
    found: Headings = {(name, ""): name for name in targets}
    parts = {name: ("low", "high", "spread") if isinstance(of, Number) else ("probability",)
             for name, of in targets.items()}
    wanted = [(name, part, f"{name} {part}") for name, several in parts.items() for part in several]
    for name, part, heading in [("", "row", "row"), *wanted]:
        while heading in found.values():
            heading += f" ({MEANING[part]})"
        found[name, part] = heading
    return found


def _rows(predict: Callable[..., dict[str, Prediction]], data: Dataset, columns: list[str], names: Headings,
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
            told: dict[str, Any] = {names["", "row"]: data.where(row)}
            for name, prediction in found.items():
                told |= {names[name, part]: value for part, value in _told(prediction, i).items()}
            yield told


def _told(said: Prediction, i: int) -> dict[str, Any]:
    """What is said of a target of row i, part by part."""
    if said.spread is not None:
        assert said.interval is not None
        low, high = (end if math.isfinite(end) else None for end in said.interval[i].tolist())
        return {"": said.value[i], "low": low, "high": high, "spread": float(said.spread[i])}
    assert said.probability is not None
    sure = {c: round(float(p), 6) for c, p in zip(said.classes, said.probability[i], strict=False)}
    return {"": said.value[i], "probability": sure}


def _jsonl(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(rows: Iterator[dict[str, Any]], names: Headings, path: Path) -> None:
    """Of a class its probability alone; tags parted by a bar; nothing where it abstains, or a bound is endless."""
    labels = {names[name, "probability"]: heading for (name, part), heading in names.items()
              if not part and (name, "probability") in names}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            plain = {name: _cell(value, row.get(labels.get(name, ""))) for name, value in row.items()}
            if writer is None:
                writer = csv.DictWriter(file, list(plain), lineterminator="\n")
                writer.writeheader()
            writer.writerow(plain)


def _cell(value: Any, label: Any) -> Any:
    """label: what a value that is a dict of probabilities is of."""
    if isinstance(value, dict):
        if isinstance(label, list):
            return "|".join(str(value[tag]) for tag in label)
        return max(value.values()) if label is None else value[label]
    return "|".join(value) if isinstance(value, list) else value
