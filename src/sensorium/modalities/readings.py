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

ENDINGS = (".csv", ".npy")
BYTES, READINGS, CHANNELS = 64 << 20, 1 << 24, 1024         # the most that a file, and a series, may hold
MISSING = {"", "na", "n/a", "nan", "null", "none", "-"}     # cells without a reading

Named = tuple[tuple[str, ...] | None, Float64[np.ndarray, "T C"]]


def read(raw: Any, skip: Sequence[str] = ()) -> Named:
    """(names of the channels, where a file gives them; the readings, NaN where one is missing).

    raw: the path of a CSV or .npy file, or numbers [T] or [T C]. skip: columns of a CSV file that are left out.
    Raises ValueError with the reason it cannot be read; what is too large is refused before it is.
    """
    names, x = _file(Path(raw), skip) if isinstance(raw, str | Path) else (None, _numbers(raw))
    if x.ndim == 1:
        x = x[:, None]
    if x.ndim != 2 or not x.size:
        raise ValueError(f"expected readings of some steps [T] or [T C], found shape {x.shape}")
    if x.shape[1] > CHANNELS or x.size > READINGS:
        raise ValueError(f"{x.shape[0]:,} steps of {x.shape[1]:,} channels: {CHANNELS:,} channels and {READINGS:,} "
                         "readings are the most; a line is a step, a column a channel")
    x = np.asarray(x, np.float64)
    if np.isinf(x).any():
        raise ValueError("a reading is infinite; leave it empty where it is missing")
    return names, x


def _numbers(raw: Any) -> np.ndarray:
    if not isinstance(raw, np.ndarray | list | tuple):
        raise ValueError(f"expected a series of numbers or the path of one, found {type(raw).__name__}")
    if isinstance(raw, np.ndarray) and raw.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, found an array of {raw.dtype}")
    try:
        return raw if isinstance(raw, np.ndarray) else np.asarray(raw, np.float64)
    except (TypeError, ValueError) as e:
        raise ValueError(f"expected numbers, as many at each step: {e}") from e


def _file(path: Path, skip: Sequence[str]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"a series is read from {' or '.join(ENDINGS)}; this file ends in {path.suffix or 'neither'}")
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        return (None, _array(path)) if path.suffix.lower() == ".npy" else _csv(path, skip)
    except OSError as e:
        raise ValueError(f"it cannot be opened: {e.strerror}") from e


def _array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped: its header is checked before anything is read. Objects are never unpickled."""
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, OverflowError) as e:
        raise ValueError(f"it is no array of numbers, or damaged: {str(e)[:80]}") from e
    if not isinstance(mapped, np.ndarray):
        mapped.close()
        raise ValueError("it holds several arrays, where one is expected")
    return _numbers(mapped)


def _csv(path: Path, skip: Sequence[str]) -> Named:
    """Names in the first line, then a line for each step."""
    if (size := os.stat(path).st_size) > BYTES:
        raise ValueError(f"{size:,} bytes: {BYTES:,} are the most; cut it into several, or save it as .npy")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = csv.reader(file, delimiter=max(",;\t", key=first.count))
            names = [name.strip() for name in next(lines, [])]
            used = _channels(names, skip)
            values = array("d", (number for row in lines if row for number in _step(row, names, used, lines.line_num)))
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"it is no CSV file in UTF-8: {e}") from e
    return tuple(names[i] for i in used), np.array(values, np.float64).reshape(-1, len(used))


def _channels(names: Sequence[str], skip: Sequence[str]) -> list[int]:
    """Which columns are channels. Raises ValueError where the first line does not name each once."""
    used = [i for i, name in enumerate(names) if name.lower() not in skip]
    if not used:
        raise ValueError("it has no channel: the first line must name them")
    if all(_is_number(names[i]) for i in used):
        raise ValueError(f"its first line holds numbers ({', '.join(names)[:40]}): it must name the channels")
    if twice := [names[i] for i in used if names.count(names[i]) > 1]:
        raise ValueError(f"it has the channel {twice[0]!r} twice")
    return used


def _step(row: Sequence[str], names: Sequence[str], used: Sequence[int], line: int) -> Iterator[float]:
    if len(row) != len(names):
        raise ValueError(f"line {line} has {len(row)} cells, where the first has {len(names)}")
    for i in used:
        text = row[i].strip()
        try:
            yield math.nan if text.lower() in MISSING else float(text)
        except ValueError:
            raise ValueError(f"line {line}, channel {names[i]!r}: expected a number, found {text[:40]!r}") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# To look at -----------------------------------------------------------------------------------------------------

SIDE, EDGE = (480, 160), 16                                 # pixels; what is free around the lines


def drawn(x: Float64[np.ndarray, "T C"], names: Sequence[str], lasts: str) -> Image.Image:
    """A line for each channel, all on one scale and broken where readings are missing, with their names below."""
    picture = Image.new("RGB", SIDE, "white")
    draw = ImageDraw.Draw(picture)
    low, high = (np.nanmin(x), np.nanmax(x)) if not np.isnan(x).all() else (0.0, 1.0)
    across = np.linspace(EDGE, SIDE[0] - EDGE, max(len(x), 1))
    down = SIDE[1] - 2 * EDGE - (x - low) / ((high - low) or 1) * (SIDE[1] - 3 * EDGE)
    for i, name in enumerate(names):
        colour = f"hsl({360 * i // len(names)}, 70%, 45%)"
        for run in np.ma.clump_unmasked(np.ma.masked_invalid(down[:, i])):
            points = [*zip(across[run].tolist(), down[run, i].tolist(), strict=True)]
            draw.line(points, fill=colour, width=1) if len(points) > 1 else draw.point(points, fill=colour)
        draw.text((EDGE + 70 * i, SIDE[1] - EDGE), name[:10], fill=colour)
    draw.text((SIDE[0] - 5 * EDGE, 2), lasts, fill="black")
    return picture
