"""GGUF, in which Llama-like decoders are published: an index of our own, numbers through the gguf package's formulas.

    "GGUF", version u32, tensors u64, keys u64, keys × (name, type u32, value),
    tensors × (name, axes u32, sizes u64 from the last axis to the first, type u32, place u64), then the data.

The package's own reader takes seconds for a vocabulary and believes what a file says about its size. Nothing is
permuted here: Llama's queries and keys lie as llama.cpp wants them, pairs of a rotation side by side.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.published.binary import Cursor
from sensorium.published.files import MOST_TENSORS, Stored, Tensors

VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
PLAIN = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 28: ("F64", torch.float64), 30: ("BF16", torch.bfloat16)}
MOST_KEYS, MOST_AXES, MOST_TEXT = 10_000, 4, 1 << 24


def read(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a GGUF file as float32 (those stored as halves keep their type), and its keys.

    Raises SensoriumError where it is damaged, of another version, or in a type that cannot be read.
    """
    cursor = Cursor(path)
    if cursor.take(4).tobytes() != b"GGUF" or cursor.number("I") not in VERSIONS:
        raise cursor.damaged(f"it is no little-endian GGUF file of version {VERSIONS[0]} or {VERSIONS[1]}")
    n, keys = cursor.count("Q", 24, "tensors"), cursor.count("Q", 13, "keys")
    if n > MOST_TENSORS or keys > MOST_KEYS:
        raise cursor.damaged(f"{n:,} tensors and {keys:,} keys; at most {MOST_TENSORS:,} and {MOST_KEYS:,} are read")
    about = cursor.once((cursor.text("Q"), _value(cursor, int(cursor.number("I")))) for _ in range(keys))
    entries = [_entry(cursor) for _ in range(n)]
    step = about.get("general.alignment", 32)
    if not isinstance(step, int) or step < 1:
        raise cursor.damaged(f"general.alignment is {step!r}")
    start = -(-cursor.at // step) * step
    return Tensors(cursor.once((name, _stored(cursor, name, start + place, shape, kind))
                               for name, shape, kind, place in sorted(entries, key=lambda entry: entry[3]))), about


def _value(cursor: Cursor, kind: int, inner: bool = False) -> Any:
    if kind in NUMBERS:
        return cursor.number(NUMBERS[kind])
    if kind == TEXT:
        return cursor.text("Q", MOST_TEXT)
    if kind != ARRAY or inner:
        raise cursor.damaged(f"a key of the unknown type {kind}")
    kind = int(cursor.number("I"))
    if kind in NUMBERS:
        size = np.dtype(NUMBERS[kind]).itemsize
        n = cursor.count("Q", size, "numbers")
        return cursor.take(n * size).view(np.dtype(NUMBERS[kind]).newbyteorder("<")).tolist()
    return [_value(cursor, kind, inner=True) for _ in range(cursor.count("Q", 8, "values"))]


def _entry(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = cursor.text("Q"), int(cursor.number("I"))
    if axes > MOST_AXES:
        raise cursor.damaged(f"{name} has {axes} axes")
    sizes = [int(cursor.number("Q")) for _ in range(axes)]
    return name, tuple(reversed(sizes)), int(cursor.number("I")), int(cursor.number("Q"))


def _stored(cursor: Cursor, name: str, at: int, shape: tuple[int, ...], kind: int) -> Stored:
    said, block, size, number = _type(cursor, name, kind)
    if shape and shape[-1] % block:
        raise cursor.damaged(f"{name} has rows of {shape[-1]:,}, which {said} cannot hold")
    if at < cursor.at:
        raise cursor.damaged(f"{name} begins at byte {at:,}, inside of what lies before it")
    cursor.at = at
    data = cursor.take(math.prod(shape) // block * size)
    return Stored(shape, said, lambda: number(np.array(data).reshape(*shape[:-1], -1)).view(shape))


def _type(cursor: Cursor, name: str, kind: int) -> tuple[str, int, int, Callable[[np.ndarray], Tensor]]:
    """How a type is called, how many numbers lie in how many bytes, and what makes them a tensor."""
    if kind in PLAIN:
        said, dtype = PLAIN[kind]
        return said, 1, dtype.itemsize, lambda data: torch.from_numpy(data).view(dtype)
    try:
        import gguf
    except ImportError as e:
        raise SensoriumError(f'{cursor.path} is quantised; to read it: pip install "sensorium[published]"') from e
    try:
        quant = gguf.GGMLQuantizationType(kind)
    except ValueError as e:
        raise cursor.damaged(f"{name} is of an unknown type {kind}") from e
    if quant not in gguf.quants._type_traits:
        raise SensoriumError(f"{cursor.path}: {name} is in {quant.name}, which gguf cannot turn into floats")
    block, size = gguf.GGML_QUANT_SIZES[quant]
    return quant.name, block, size, lambda data: torch.from_numpy(gguf.dequantize(data, quant))
