"""Classify files, folders and tables by labels given as words: no row is lost."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium.cli.predict_file import csv_cell
from sensorium.data.dataset import Dataset
from sensorium.data.open import open_all_rows
from sensorium.data.schema import Schema
from sensorium.data.tables import TABLE_EXTENSIONS
from sensorium.errors import SensoriumError
from sensorium.inference.classification import LabelScore
from sensorium.inference.classify import ZeroShotClassifier, check_labels
from sensorium.inference.request import Unreadable
from sensorium.io import atomic
from sensorium.io.untrusted import open_regular
from sensorium.modalities.tabular import spell_class

CHUNK_ROWS = 4096  # rows whose raw values are in memory at a time
MAX_LABEL_FILE_BYTES = 1 << 24
OUTPUT_FORMATS = (".csv", ".jsonl")


@dataclass(frozen=True)
class InputRows:
    """Values to classify, from one source.

    Attributes:
        kind: their column type: image, audio or text.
        names: what each row is called.
        read: the raw values of some rows.
        classes: the true class of each row, if there is a class column.
        unreadable: row -> why its value cannot be read.
    """

    kind: str
    names: Sequence[str]
    read: Callable[[range], Sequence[Any]]
    classes: Sequence[str | None] | None = None
    unreadable: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassifiedRow:
    """The labels of one row.

    Attributes:
        name: what the row is called.
        top: its best labels, the best first; none if it is missing or unreadable.
        unreadable: why it cannot be read; "" if it can.
        true_class: its class in the data, if known.
    """

    name: str
    top: list[LabelScore]
    unreadable: str = ""
    true_class: str | None = None

    @property
    def label(self) -> str | None:
        """The best label."""
        return self.top[0].label if self.top else None


def read_labels(path: Path) -> list[str]:
    """Return the labels of a text file, one on each line; empty lines are left out.

    Raises:
        SensoriumError: if it cannot be read, is not UTF-8 or has no labels.
    """
    try:
        with open_regular(path, MAX_LABEL_FILE_BYTES) as file:
            lines = file.read().decode("utf-8-sig").splitlines()
    except OSError as e:
        raise SensoriumError(f"--labels {path} cannot be read: {e.strerror or e}.") from e
    except UnicodeDecodeError as e:
        raise SensoriumError(f"--labels {path} is not UTF-8 text. Save it as UTF-8.") from e
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise SensoriumError(f"--labels {path} is empty. Write one label on each line.")
    return labels


def open_inputs(
    kinds: Sequence[str], sources: Sequence[str], column: str | None, class_column: str | None
) -> list[InputRows]:
    """Open files, folders, tables and bundled datasets.

    Args:
        kinds: types that the model embeds.
        sources: paths, or names of bundled datasets.
        column: the column to classify; None: the only one of a type that the model embeds.
        class_column: column with the true classes.

    Raises:
        SensoriumError: if there is none, one cannot be opened, or they are of different types.
    """
    if not sources:
        raise SensoriumError(
            "Name what to classify: files, a folder, a table or a bundled dataset."
        )
    parts: list[InputRows] = []
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_file() and not path.name.lower().endswith(TABLE_EXTENSIONS):
            files.append(path)
        else:
            parts.append(
                _open_dataset(kinds, source, column, class_column, is_one=len(sources) > 1)
            )
    if files:
        if class_column is not None:
            raise SensoriumError(
                f"--class-column {class_column}: single files such as {files[0]} have no columns."
            )
        kind = next((kind for kind in kinds if kind != "text"), "text")
        if kind == "text":
            raise SensoriumError(
                f"{files[0]} is no table, and the model embeds text alone. Give a table with texts."
            )
        parts.insert(
            0, InputRows(kind, list(map(str, files)), lambda rows: files[rows.start : rows.stop])
        )
    found = list(dict.fromkeys(part.kind for part in parts))
    if len(found) > 1:
        raise SensoriumError(f"The inputs are of types {', '.join(found)}. Classify one at a time.")
    return parts


def _open_dataset(
    kinds: Sequence[str], source: str, column: str | None, class_column: str | None, *, is_one: bool
) -> InputRows:
    """Open a folder, a table or a bundled dataset; `is_one` of several."""
    chosen: dict[str, str] = {}

    def choose(schema: Schema) -> list[str]:
        name = column or _find_column(schema, kinds, source)
        kind = schema.get_column(name).kind
        if kind not in kinds:
            raise SensoriumError(
                f"The column {name!r} of {source} is {kind}, and the model embeds "
                f"{', '.join(kinds)}. Name another with --column."
            )
        chosen.update(name=name, kind=kind)
        return [name] if class_column is None else list(dict.fromkeys([name, class_column]))

    opened = open_all_rows(Path(source), choose)
    table, name = opened.table, chosen["name"]
    dataset = Dataset(table, opened.schema, opened.name)
    bad = {s.row: s.reason for s in table.bad_samples if s.row >= 0 and s.column in ("", name)}
    classes = None
    if class_column is not None:
        raw = opened.raw_columns[class_column]
        classes = [None if v is None or v == "" else spell_class(v) for v in raw]
    prefix = f"{source.rstrip('/')}: " if is_one and not Path(source).is_file() else ""
    names = [f"{prefix}{location}" for location in table.locations]
    return InputRows(chosen["kind"], names, lambda rows: dataset.raw(name, rows), classes, bad)


def _find_column(schema: Schema, kinds: Sequence[str], source: str) -> str:
    """Return the column to classify: the only one of the first type that there is."""
    existing = {column.kind for column in schema.columns.values()}
    for kind in sorted(kinds, key=lambda kind: kind == "text"):
        if kind in existing:
            return schema.resolve_column(kind)
    raise SensoriumError(f"{source} has no column of type {' or '.join(kinds)}.")


def collect_labels(labels: Sequence[str], parts: Sequence[InputRows]) -> list[str]:
    """Return the labels, by default the classes of the data.

    Raises:
        SensoriumError: if there are none, one is given twice, or none is a class of the data.
    """
    classes = {name for part in parts for name in part.classes or () if name is not None}
    if not labels and not classes:
        raise SensoriumError(
            "There are no labels. Give words, as in --label cat --label dog, or --labels FILE with "
            "one on each line, or --class-column NAME to take the classes of the data."
        )
    names = check_labels(labels or sorted(classes))
    if classes and not classes & set(names):
        raise SensoriumError(
            f"No label is a class of the data, whose classes are {', '.join(sorted(classes)[:5])}. "
            "Give labels in the words of --class-column, or leave that out."
        )
    return names


def iter_classified(
    classify: ZeroShotClassifier,
    parts: Sequence[InputRows],
    labels: Sequence[str],
    templates: Sequence[str] | None,
    top_k: int,
) -> Iterator[ClassifiedRow]:
    """Yield the labels of each row, in order."""
    for part in parts:
        for start in range(0, len(part.names), CHUNK_ROWS):
            rows = range(start, min(start + CHUNK_ROWS, len(part.names)))
            unreadable: list[Unreadable] = []
            inputs: dict[str, Any] = {part.kind: list(part.read(rows))}
            found = classify(labels=labels, templates=templates, unreadable=unreadable, **inputs)
            reasons = {start + bad.row: bad.reason for bad in unreadable} | dict(part.unreadable)
            for row, top in zip(rows, found.top(top_k), strict=True):
                true_class = None if part.classes is None else part.classes[row]
                yield ClassifiedRow(part.names[row], top, reasons.get(row, ""), true_class)


def row_fields(row: ClassifiedRow) -> dict[str, Any]:
    """Return a row as plain values: its label, and the score of each of the best labels."""
    has_probability = any(score.probability is not None for score in row.top)
    scores = {
        score.label: round(score.similarity if score.probability is None else score.probability, 6)
        for score in row.top
    }
    measure = "probability" if has_probability or not row.top else "similarity"
    fields: dict[str, Any] = {"row": row.name, "label": row.label, measure: scores}
    return {**fields, "unreadable": row.unreadable or None}


def format_row(row: ClassifiedRow) -> str:
    """Return a row as a line of the terminal: "a.jpg  cat 0.91, dog 0.08"."""
    if not row.top:
        return f"{row.name}  ({row.unreadable or 'missing'})"
    scores = [
        f"{score.label} {score.similarity if score.probability is None else score.probability:.3f}"
        for score in row.top
    ]
    return f"{row.name}  {', '.join(scores)}"


def check_output(out: Path) -> None:
    """Raise SensoriumError if an output file has an ending that is not written."""
    if out.suffix not in OUTPUT_FORMATS:
        raise SensoriumError(
            f"{out} does not end in {' or '.join(OUTPUT_FORMATS)}. Name such a file with -o."
        )


def write_rows(rows: Iterator[ClassifiedRow], out: Path, top_k: int) -> None:
    """Write the rows to a .csv or .jsonl file."""
    if out.suffix == ".jsonl":
        atomic.write_file(out, lambda path: _write_jsonl(rows, path))
    else:
        atomic.write_file(out, lambda path: _write_csv(rows, path, top_k))


def _write_jsonl(rows: Iterator[ClassifiedRow], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row_fields(row), ensure_ascii=False) + "\n" for row in rows)


def _write_csv(rows: Iterator[ClassifiedRow], path: Path, top_k: int) -> None:
    """Write the best labels, each with its probability, or its similarity where there is none."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        header: list[str] | None = None
        for row in rows:
            fields = row_fields(row)
            measure = "similarity" if "similarity" in fields else "probability"
            if header is None:
                ranks = ["", *(f" {rank}" for rank in range(2, top_k + 1))]
                header = [f"{name}{rank}" for rank in ranks for name in ("label", measure)]
                writer.writerow(["row", *header, "unreadable"])
            cells = [cell for pair in fields[measure].items() for cell in pair]
            cells += [None] * (2 * top_k - len(cells))
            cells = [row.name, *cells, row.unreadable]
            writer.writerow([csv_cell(cell) for cell in cells])


class Tally:
    """Counts of the rows that pass through: labelled, unreadable, and right.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Iterator[ClassifiedRow]):
        self._rows = rows
        self.num_rows = 0
        self.unreadable: list[ClassifiedRow] = []
        self.classes = Counter[str]()
        self.num_right = 0

    def __iter__(self) -> Iterator[ClassifiedRow]:
        for row in self._rows:
            self.num_rows += 1
            if row.unreadable:
                self.unreadable.append(row)
            if row.true_class is not None:
                self.classes[row.true_class] += 1
                self.num_right += row.label == row.true_class
            yield row

    def summary(self) -> Iterator[str]:
        """Yield a line about unreadable rows and one about accuracy, where there are any."""
        if self.unreadable:
            examples = "; ".join(f"{row.name}: {row.unreadable}" for row in self.unreadable[:3])
            more = f"; and {len(self.unreadable) - 3:,} more" if len(self.unreadable) > 3 else ""
            yield (
                f"{len(self.unreadable):,} of {self.num_rows:,} rows cannot be read and have no "
                f"label ({examples}{more})"
            )
        total = self.classes.total()
        if total:
            most_common = self.classes.most_common(1)[0][1] / total
            yield (
                f"accuracy {self.num_right / total:.1%} of {total:,} rows with a class (the most "
                f"common class: {most_common:.1%})"
            )
