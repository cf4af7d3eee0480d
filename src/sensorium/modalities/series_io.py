"""Time series from files and lists, within limits, and a plot of one.

T steps   C channels
"""

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image, ImageDraw

from sensorium.io.untrusted import EmbeddedFile, NotARegularFileError, check_regular, open_regular
from sensorium.modalities.base import is_missing_marker

EXTENSIONS = (".csv", ".npy")
MAX_FILE_BYTES = 64 << 20  # of a CSV file
MAX_VALUES = 1 << 24  # of a series, all channels together
MAX_CHANNELS = 1024
MAX_NUMBER = 1e38  # as large as float32 can hold; squares and sums still fit float64
PLOT_SIZE = (480, 160)  # width and height in pixels
PLOT_MARGIN = 16  # pixels around the lines

NamedSeries = tuple[tuple[str, ...] | None, Float64[np.ndarray, "T C"]]


def read_series(raw: Any, skip: Sequence[str] = ()) -> NamedSeries:
    """Return the channel names of a series, if its file has them, and its values.

    Args:
        raw: The path of a CSV or .npy file, or numbers [T] or [T C].
        skip: Columns of a CSV file that are not channels, in lower case.

    Returns:
        The names, or None, and the values [T C] with NaN where one is missing.

    Raises:
        ValueError: If it cannot be read or exceeds a limit; limits are checked before reading.
    """
    names = None
    if isinstance(raw, str | Path | EmbeddedFile):
        names, x = _read_file(Path(raw) if isinstance(raw, str) else raw, skip)
    else:
        x = _to_array(raw)
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or not x.size:
        raise ValueError(f"expected values [T] or [T C], got shape {list(x.shape)}")
    if x.shape[1] > MAX_CHANNELS or x.size > MAX_VALUES:
        raise ValueError(
            f"{x.shape[0]:,} steps of {x.shape[1]:,} channels, more than the limit of "
            f"{MAX_CHANNELS:,} channels and {MAX_VALUES:,} values; rows are steps, columns channels"
        )
    x = np.asarray(x, np.float64)
    largest = np.fmax.reduce(np.abs(x), axis=None, initial=0.0)  # which passes over NaN
    if largest > MAX_NUMBER:
        kind = "infinite" if np.isinf(largest) else f"{largest:g}, beyond {MAX_NUMBER:g}"
        raise ValueError(f"a value is {kind}; leave a missing value empty")
    return names, x


def _to_array(raw: Any) -> np.ndarray:
    if not isinstance(raw, np.ndarray | list | tuple):
        raise ValueError(f"expected numbers or the path of a series, got {type(raw).__name__}")
    if isinstance(raw, np.ndarray):
        if raw.dtype.kind not in "fiub":
            raise ValueError(f"expected numbers, got an array of {raw.dtype}")
        return raw
    try:
        return np.asarray(raw, np.float64)
    except (TypeError, ValueError) as e:
        raise ValueError(f"expected numbers, the same count at each step: {e}") from e


def _read_file(
    path: Path | EmbeddedFile, skip: Sequence[str]
) -> tuple[tuple[str, ...] | None, np.ndarray]:
    suffix = Path(path.name).suffix
    extension = suffix.lower()
    if extension not in EXTENSIONS:
        raise ValueError(
            f"expected a file with the extension {' or '.join(EXTENSIONS)}, got {suffix or 'none'}"
        )
    try:
        if extension == ".npy":
            return None, _read_npy(path)
        return _read_csv(path, skip)
    except FileNotFoundError as e:
        raise ValueError("no such file") from e
    except NotARegularFileError as e:
        raise ValueError(str(e.strerror)) from e
    except OSError as e:
        raise ValueError(f"cannot be opened: {e.strerror}") from e


def _read_npy(path: Path | EmbeddedFile) -> np.ndarray:
    """Return the array of a .npy file, memory-mapped; objects are never unpickled."""
    if isinstance(path, EmbeddedFile):
        return _to_array(_read_embedded_npy(path))
    check_regular(path)
    try:
        with np.errstate(over="raise"):  # of the product of the sizes
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, ArithmeticError) as e:
        raise ValueError(f"damaged, or not an array of numbers: {str(e)[:80]}") from e
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise ValueError("holds several arrays, expected one")
    return _to_array(mapped)


def _read_embedded_npy(file: EmbeddedFile) -> np.ndarray:
    """Return the array of a .npy file inside another file."""
    try:
        with open_regular(file, MAX_FILE_BYTES) as opened:
            version = np.lib.format.read_magic(opened)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, is_fortran, dtype = read_header(opened)
            if dtype.hasobject:
                raise ValueError("it holds objects")
            values = np.frombuffer(opened.read(), dtype, math.prod(shape))
    except NotARegularFileError:
        raise
    except (ValueError, EOFError, SyntaxError, OverflowError) as e:
        raise ValueError(f"damaged, or not an array of numbers: {str(e)[:80]}") from e
    return values.reshape(shape, order="F" if is_fortran else "C")


def _read_csv(path: Path | EmbeddedFile, skip: Sequence[str]) -> NamedSeries:
    """Return the series of a CSV file: channel names in the first line, then one line per step."""
    size = path.size if isinstance(path, EmbeddedFile) else path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(
            f"{size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}; "
            "split the file, or save it as .npy"
        )
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            lines = csv.reader(file, delimiter=max(",;\t", key=header.count))
            names = [name.strip() for name in next(lines, [])]
            columns = _channel_columns(names, skip)
            values = array("d")
            for row in lines:
                if row:
                    values.extend(_parse_row(row, names, columns, lines.line_num))
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"not a CSV file in UTF-8: {e}") from e
    channels = tuple(names[i] for i in columns)
    return channels, np.array(values, np.float64).reshape(-1, len(columns))


def _channel_columns(names: Sequence[str], skip: Sequence[str]) -> list[int]:
    """Return the indices of the channels; the first line must name each of them once."""
    columns = [i for i, name in enumerate(names) if name.lower() not in skip]
    if not columns:
        raise ValueError("no channels; the first line must name them")
    if all(_is_number(names[i]) for i in columns):
        raise ValueError(
            f"the first line holds numbers ({', '.join(names)[:40]}); it must name the channels"
        )
    for i in columns:
        if names.count(names[i]) > 1:
            raise ValueError(f"channel {names[i]!r} occurs twice in the first line")
    return columns


def _parse_row(
    row: Sequence[str], names: Sequence[str], columns: Sequence[int], line_number: int
) -> Iterator[float]:
    if len(row) != len(names):
        raise ValueError(f"line {line_number} has {len(row)} cells, the first line {len(names)}")
    for i in columns:
        text = row[i].strip()
        try:
            yield math.nan if is_missing_marker(text) else float(text)
        except ValueError:
            raise ValueError(
                f"line {line_number}, channel {names[i]!r}: expected a number, got {text[:40]!r}"
            ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def plot_series(x: Float64[np.ndarray, "T C"], names: Sequence[str], duration: str) -> Image.Image:
    """Return a line plot: all channels on one scale, with gaps where values are missing."""
    image = Image.new("RGB", PLOT_SIZE, "white")
    draw = ImageDraw.Draw(image)
    low = 0.0
    high = 1.0
    if not np.isnan(x).all():
        low = np.nanmin(x)
        high = np.nanmax(x)
    width, height = PLOT_SIZE
    x_pixels = np.linspace(PLOT_MARGIN, width - PLOT_MARGIN, max(len(x), 1))
    relative = (x - low) / ((high - low) or 1)
    y_pixels = height - 2 * PLOT_MARGIN - relative * (height - 3 * PLOT_MARGIN)
    for i, name in enumerate(names):
        color = f"hsl({360 * i // len(names)}, 70%, 45%)"
        for segment in np.ma.clump_unmasked(np.ma.masked_invalid(y_pixels[:, i])):
            points = [*zip(x_pixels[segment].tolist(), y_pixels[segment, i].tolist(), strict=True)]
            if len(points) > 1:
                draw.line(points, fill=color, width=1)
            else:
                draw.point(points, fill=color)
        draw.text((PLOT_MARGIN + 70 * i, height - PLOT_MARGIN), name[:10], fill=color)
    draw.text((width - 5 * PLOT_MARGIN, 2), duration, fill="black")
    return image
