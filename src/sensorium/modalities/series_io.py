"""Files and lists of readings: read within a budget, refused with the reason, drawn to look at.

T steps   C channels
"""

import csv
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from PIL import Image, ImageDraw

EXTENSIONS = (".csv", ".npy")
MAX_FILE_BYTES, MAX_VALUES, MAX_CHANNELS = (
    64 << 20,
    1 << 24,
    1024,
)  # the most that a file, and a series, may hold
MISSING_MARKERS = {"", "na", "n/a", "nan", "null", "none", "-"}  # cells without a reading

NamedSeries = tuple[tuple[str, ...] | None, Float64[np.ndarray, "T C"]]


def read_series(raw: Any, skip: Sequence[str] = ()) -> NamedSeries:
    """(names of the channels, where a file gives them; the readings, NaN where one is missing).

    raw: the path of a CSV or .npy file, or numbers [T] or [T C]. skip: columns of a CSV file that are left out.
    Raises ValueError with the reason it cannot be read; what is too large is refused before it is.
    """
    names, x = (
        _read_file(Path(raw), skip) if isinstance(raw, str | Path) else (None, _to_array(raw))
    )
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or not x.size:
        raise ValueError(f"expected readings of some steps [T] or [T C], found shape {x.shape}")
    if x.shape[1] > MAX_CHANNELS or x.size > MAX_VALUES:
        raise ValueError(
            f"{x.shape[0]:,} steps of {x.shape[1]:,} channels: {MAX_CHANNELS:,} channels and {MAX_VALUES:,} "
            "readings are the most; a line is a step, a column a channel"
        )
    x = np.asarray(x, np.float64)
    if np.isinf(x).any():
        raise ValueError("a reading is infinite; leave it empty where it is missing")
    return names, x


def _to_array(raw: Any) -> np.ndarray:
    if not isinstance(raw, np.ndarray | list | tuple):
        raise ValueError(
            f"expected a series of numbers or the path of one, found {type(raw).__name__}"
        )
    if isinstance(raw, np.ndarray) and raw.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, found an array of {raw.dtype}")
    try:
        return raw if isinstance(raw, np.ndarray) else np.asarray(raw, np.float64)
    except (TypeError, ValueError) as e:
        raise ValueError(f"expected numbers, as many at each step: {e}") from e


def _read_file(path: Path, skip: Sequence[str]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(
            f"a series is read from {' or '.join(EXTENSIONS)}; this file ends in {path.suffix or 'neither'}"
        )
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        return (None, _read_npy(path)) if path.suffix.lower() == ".npy" else _read_csv(path, skip)
    except OSError as e:
        raise ValueError(f"it cannot be opened: {e.strerror}") from e


def _read_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped: its header is checked before anything is read. Objects are never unpickled."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, OverflowError) as e:
        raise ValueError(f"it is no array of numbers, or damaged: {str(e)[:80]}") from e
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise ValueError("it holds several arrays, where one is expected")
    return _to_array(mapped)


def _read_csv(path: Path, skip: Sequence[str]) -> NamedSeries:
    """Names in the first line, then a line for each step."""
    if (size := os.stat(path).st_size) > MAX_FILE_BYTES:
        raise ValueError(
            f"{size:,} bytes: {MAX_FILE_BYTES:,} are the most; cut it into several, or save it as .npy"
        )
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = csv.reader(file, delimiter=max(",;\t", key=first.count))
            names = [name.strip() for name in next(lines, [])]
            used = _channel_columns(names, skip)
            values = array(
                "d",
                (
                    number
                    for row in lines
                    if row
                    for number in _parse_row(row, names, used, lines.line_num)
                ),
            )
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"it is no CSV file in UTF-8: {e}") from e
    return tuple(names[i] for i in used), np.array(values, np.float64).reshape(-1, len(used))


def _channel_columns(names: Sequence[str], skip: Sequence[str]) -> list[int]:
    """Which columns are channels. Raises ValueError where the first line does not name each once."""
    used = [i for i, name in enumerate(names) if name.lower() not in skip]
    if not used:
        raise ValueError("it has no channel: the first line must name them")
    if all(_is_number(names[i]) for i in used):
        raise ValueError(
            f"its first line holds numbers ({', '.join(names)[:40]}): it must name the channels"
        )
    if twice := [names[i] for i in used if names.count(names[i]) > 1]:
        raise ValueError(f"it has the channel {twice[0]!r} twice")
    return used


def _parse_row(
    row: Sequence[str], names: Sequence[str], columns: Sequence[int], line_number: int
) -> Iterator[float]:
    if len(row) != len(names):
        raise ValueError(
            f"line {line_number} has {len(row)} cells, where the first has {len(names)}"
        )
    for i in columns:
        text = row[i].strip()
        try:
            yield math.nan if text.lower() in MISSING_MARKERS else float(text)
        except ValueError:
            raise ValueError(
                f"line {line_number}, channel {names[i]!r}: expected a number, found {text[:40]!r}"
            ) from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# To look at -----------------------------------------------------------------------------------------------------

PLOT_SIZE, PLOT_MARGIN = (480, 160), 16  # pixels; what is free around the lines


def plot_series(x: Float64[np.ndarray, "T C"], names: Sequence[str], duration: str) -> Image.Image:
    """A line for each channel, all on one scale and broken where readings are missing, with their names below."""
    picture = Image.new("RGB", PLOT_SIZE, "white")
    draw = ImageDraw.Draw(picture)
    low, high = (np.nanmin(x), np.nanmax(x)) if not np.isnan(x).all() else (0.0, 1.0)
    across = np.linspace(PLOT_MARGIN, PLOT_SIZE[0] - PLOT_MARGIN, max(len(x), 1))
    down = (
        PLOT_SIZE[1]
        - 2 * PLOT_MARGIN
        - (x - low) / ((high - low) or 1) * (PLOT_SIZE[1] - 3 * PLOT_MARGIN)
    )
    for i, name in enumerate(names):
        colour = f"hsl({360 * i // len(names)}, 70%, 45%)"
        for run in np.ma.clump_unmasked(np.ma.masked_invalid(down[:, i])):
            points = [*zip(across[run].tolist(), down[run, i].tolist(), strict=True)]
            draw.line(points, fill=colour, width=1) if len(points) > 1 else draw.point(
                points, fill=colour
            )
        draw.text((PLOT_MARGIN + 70 * i, PLOT_SIZE[1] - PLOT_MARGIN), name[:10], fill=colour)
    draw.text((PLOT_SIZE[0] - 5 * PLOT_MARGIN, 2), duration, fill="black")
    return picture
