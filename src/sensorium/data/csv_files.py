"""Read files of delimited text: separators, comments, headers and quotation marks as people write.

Before the header may stand blank lines, comment lines that begin with '#', and Excel's "sep=;".
"""

import csv
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sensorium.data.bad_samples import BadSample
from sensorium.data.cell_parsing import is_url, parse_number
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    LineLocations,
    Table,
    check_missing_cells,
    clean_column_names,
    iter_lines,
    open_text,
    table_extension,
)
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import (
    MAX_CELL_CHARACTERS,
    MIN_GZIP_BYTES,
    check_unpacked_size,
    open_regular,
)

_SEPARATORS = ",\t;|"
_SNIFF_CHARACTERS = 1 << 16  # of a file, by which its delimiter is recognised
_SNIFF_LINES = 50
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_CALENDAR_YEARS = range(1800, 2201)


class _CsvRow(NamedTuple):
    """A row that is not blank, the lines it spans, and why it could not be read, if so."""

    first_line: int
    last_line: int
    cells: list[str]
    error: str


@runtime_checkable
class _CsvReader(Protocol):
    """What csv.reader returns."""

    @property
    def line_num(self) -> int: ...
    def __next__(self) -> list[str]: ...


class _Format(NamedTuple):
    """How a file is written.

    Attributes:
        skipped_lines: lines before the header.
        header_mark: what is cut from the start of the header, "#" or "".
        options: of csv.reader.
    """

    skipped_lines: int
    header_mark: str
    options: dict[str, Any]


def read_csv(path: Path, encoding: str, file_name: str, delimiter: str = "") -> Table:
    """Read a file of delimited text with a header.

    Args:
        path: the file; one that ends in .gz is unpacked.
        encoding: of the text.
        file_name: what messages call the file.
        delimiter: between the cells; by default it is recognised.

    Raises:
        SensoriumError: if the header or the quotation marks are wrong.
        OSError: if the file cannot be read.
    """
    with _open_lines(path, encoding) as f, _cell_limit():
        form = _detect_format(f.read(_SNIFF_CHARACTERS), path, delimiter)
        f.seek(0)
        for _ in range(form.skipped_lines):
            f.readline()
        lines = iter_lines(f, file_name)
        reader = csv.reader(lines, strict=True, skipinitialspace=True, **form.options)
        rows = _iter_rows(reader, file_name, form.skipped_lines)
        names = _check_header(path, next(rows, _CsvRow(1, 1, [], "")), form.header_mark)
        columns: list[list[str | None]] = [[] for _ in names]
        line_numbers: list[int] = []
        bad_samples: list[BadSample] = []
        for row in _iter_rows(reader, file_name, form.skipped_lines, len(names)):
            cells, error = row.cells, row.error
            if not error and len(cells) != len(names):
                if cells[0].startswith("#"):
                    continue  # a comment
                error = f"{len(cells)} cells, but the header has {len(names)}"
            if error:
                last = f"-{row.last_line}" if row.last_line > row.first_line else ""
                location = f"{file_name}:{row.first_line}{last}"
                bad_samples.append(BadSample(len(line_numbers), "", location, error))
                check_missing_cells(len(bad_samples) * len(names), path)
                cells = [""] * len(names)
            line_numbers.append(row.first_line)
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell or None)
    named = dict(zip(names, columns, strict=True))
    _check_first_row(path, named)
    return Table(
        named,
        LineLocations(file_name, np.array(line_numbers, np.int64)),
        bad_samples=bad_samples,
    )


@contextmanager
def _open_lines(path: Path, encoding: str) -> Iterator[io.TextIOWrapper]:
    """Open a text file, or one that is packed by gzip."""
    if path.suffix.lower() != ".gz":
        with open_text(path, encoding) as plain:
            yield plain
        return
    is_utf8 = encoding.lower().replace("-", "") == "utf8"
    encoding = "utf-8-sig" if is_utf8 else encoding
    with (
        open_regular(path) as packed,
        _Unpacked(path, packed) as unpacked,
        io.TextIOWrapper(unpacked, encoding=encoding, newline="") as text,
    ):
        yield text


class _Unpacked(gzip.GzipFile):
    """A file packed by gzip, which is refused once it has unpacked to far more than its size."""

    def __init__(self, path: Path, packed: io.BufferedReader):
        super().__init__(fileobj=packed, mode="rb")
        self._path = path

    def read1(self, size: int = -1) -> bytes:
        """Return the next bytes, as GzipFile does.

        Raises:
            SensoriumError: if these are too many.
        """
        data = super().read1(size)
        reason = check_unpacked_size(self.tell(), self._path.stat().st_size, MIN_GZIP_BYTES)
        if reason:
            raise SensoriumError(f"{self._path}: {reason}: gunzip {self._path.name}.")
        return data


@contextmanager
def _cell_limit() -> Iterator[None]:
    """Let cells have up to MAX_CELL_CHARACTERS, instead of the 131,072 of the csv module."""
    limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _iter_rows(
    reader: _CsvReader, file_name: str, skipped_lines: int, num_columns: int = 0
) -> Iterator[_CsvRow]:
    """Yield each row that is not blank; a row of empty cells, one for each column, is not.

    Raises:
        SensoriumError: if a quotation mark never closes, since it has swallowed the rows that
            follow.
    """
    while True:
        first_line = reader.line_num + skipped_lines + 1
        cells: list[str] = []
        error = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if "field limit" in str(e):
                raise SensoriumError(
                    f"{file_name}:{first_line}: a cell has more than {MAX_CELL_CHARACTERS:,} "
                    "characters. Shorten it, or close the quotation mark that opens it."
                ) from e
            if "unexpected end" in str(e):
                raise SensoriumError(
                    f"{file_name}:{first_line}: a quotation mark opens here and never closes. "
                    'Close it, or double it ("") if it is part of the text.'
                ) from e
            error = f"quotation marks: {e}"
        if error or any(map(str.strip, cells)) or len(cells) == num_columns > 1:
            yield _CsvRow(first_line, reader.line_num + skipped_lines, cells, error)


def _detect_format(sample: str, path: Path, delimiter: str) -> _Format:
    """Recognise the lines before the header, the delimiter and the use of quotation marks."""
    lines = sample.lstrip("\ufeff").splitlines()
    skipped = 0
    declared = ""
    while skipped < len(lines) and (not lines[skipped].strip() or lines[skipped][0] == "#"):
        skipped += 1
    match = _SEPARATOR_LINE.fullmatch(lines[skipped]) if skipped < len(lines) else None
    if match is not None:
        declared = match[1]
        skipped += 1
        while skipped < len(lines) and lines[skipped].startswith("#"):
            skipped += 1
    ending = "\t" if table_extension(path).startswith(".tsv") else ""
    chosen = delimiter or declared or ending
    header_mark = ""
    marked = lines[skipped - 1] if skipped else ""
    if marked.startswith("#") and not match:  # "#id,name" is a header, "# exported" a comment
        separator = chosen or _choose_separator(lines[skipped:])
        num_cells = _count(lines[skipped], separator) if skipped < len(lines) else 0
        if num_cells and marked[1:2] not in (" ", "#") and _count(marked, separator) == num_cells:
            skipped -= 1
            header_mark = "#"
    body = lines[skipped:]
    chosen = chosen or _choose_separator(body)
    options: dict[str, Any] = {"delimiter": chosen}
    complete = body if len(sample) < _SNIFF_CHARACTERS else body[:-1]
    if chosen == "\t" and any(
        cell.count('"') % 2 for line in complete for cell in line.split(chosen)
    ):
        options["quoting"] = csv.QUOTE_NONE
    return _Format(skipped, header_mark, options)


def _choose_separator(lines: list[str]) -> str:
    """Return the separator that the header has and that most lines have as often as it.

    Separators within quotation marks do not count.
    """
    lines = lines[:_SNIFF_LINES]
    header = lines[0] if lines else ""

    def score(separator: str) -> tuple[bool, float, int]:
        count = _count(header, separator)
        num_equal = sum(_count(line, separator) == count for line in lines)
        return count > 0, num_equal, count

    return max(_SEPARATORS, key=score)


def _count(line: str, separator: str) -> int:
    """Return how often a separator occurs outside quotation marks."""
    return _QUOTED.sub("", line).count(separator)


def _check_header(path: Path, header: _CsvRow, mark: str) -> list[str]:
    """Return the column names; one that is empty, as that of a pandas index, is numbered."""
    if header.error:
        raise SensoriumError(
            f"{path}:{header.first_line}: the header cannot be read: {header.error}."
        )
    names = [name.strip() for name in header.cells]
    if names:
        names[0] = names[0].removeprefix(mark)
    if any(name.lower().endswith(IMAGE_EXTENSIONS) or is_url(name) for name in names):
        raise _no_header_error(path, names, "filepath,caption")
    return clean_column_names((name or f"column {i}" for i, name in enumerate(names, 1)), path)


def _check_first_row(path: Path, columns: dict[str, list[str | None]]) -> None:
    """Check that the header is not a row of data: numbers over columns of numbers.

    Whole numbers that count up, or years, are names: pixels, days, survey years.

    Raises:
        SensoriumError: if it is.
    """
    numbers = [
        name
        for name, values in columns.items()
        if _is_number(name) and _is_number(next((v for v in values if v is not None), ""))
    ]
    if not numbers or all(name.isdigit() and int(name) in _CALENDAR_YEARS for name in numbers):
        return
    if all(name.isdigit() for name in numbers):
        steps = {int(b) - int(a) for a, b in pairwise(numbers)}
        if steps <= {1} and (len(numbers) > 1 or int(numbers[0]) <= 1):
            return
    raise _no_header_error(path, list(columns), "size,colour,price")


def _is_number(text: str) -> bool:
    number = parse_number(text)
    return number is not None and number == number


def _no_header_error(path: Path, names: list[str], example: str) -> SensoriumError:
    """Return the error for a file whose first line holds values."""
    return SensoriumError(
        f"{path} has no header: its first line is {', '.join(names)[:80]!r}. "
        f"Add the column names, e.g. {example}."
    )
