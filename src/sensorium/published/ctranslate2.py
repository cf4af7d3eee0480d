"""CTranslate2's model.bin, in which Whisper is published: read by its own layout (binary versions 4 to 6).

    version u32, specification string, revision u32,
    variables: u32 × (name, rank u8, sizes u32, type u8, bytes u32, data), aliases: u32 × (name, name).
    A string is its length with the closing zero as u16, then its bytes.

Matrices in int8 are kept with the factor that each row was multiplied by (`..._scale`), in int16 with one for all;
they come out as float32.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.published.binary import Cursor
from sensorium.published.files import Stored, Tensors

VERSIONS = (4, 5, 6)
TYPES = (("F32", torch.float32), ("I8", torch.int8), ("I16", torch.int16), ("I32", torch.int32),
         ("F16", torch.float16), ("BF16", torch.bfloat16))
MOST_RANK = 8


def read(path: Path, parts: Sequence[Path] = ()) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a model.bin, and its specification and single numbers: {"spec": "WhisperSpec", ...}.

    parts: the files it was cut into, in order. Raises SensoriumError where it is damaged or of another version.
    """
    cursor = Cursor(path, parts)
    if (version := cursor.number("I")) not in VERSIONS:
        raise cursor.damaged(f"it is no CTranslate2 model of binary version {VERSIONS[0]} to {VERSIONS[-1]} "
                             f"(it begins with {version})")
    about: dict[str, Any] = {"spec": _text(cursor), "revision": cursor.number("I")}
    found = cursor.once(_variable(cursor) for _ in range(cursor.count("I", 8, "tensors")))
    for _ in range(cursor.count("I", 4, "aliases")):
        alias, name = _text(cursor), _text(cursor)
        if name not in found or alias in found:
            raise cursor.damaged(f"{alias} should be another name for {name}")
        found[alias] = found[name]
    if cursor.at != len(cursor.bytes):
        raise cursor.damaged(f"{len(cursor.bytes) - cursor.at:,} bytes lie behind its end")
    about |= {name: s.read().item() for name, s in found.items() if not s.shape and not name.endswith("_scale")}
    return Tensors({name: _plain(name, found) for name, s in found.items()
                    if name not in about and not name.endswith("_scale")}), about


def _text(cursor: Cursor) -> str:
    return cursor.text("H").removesuffix("\0")


def _variable(cursor: Cursor) -> tuple[str, Stored]:
    name, rank = _text(cursor), int(cursor.number("B"))
    if rank > MOST_RANK:
        raise cursor.damaged(f"{name} has {rank} axes")
    shape = tuple(int(cursor.number("I")) for _ in range(rank))
    kind, size = int(cursor.number("B")), int(cursor.number("I"))
    if kind >= len(TYPES):
        raise cursor.damaged(f"{name} is of an unknown type {kind}")
    said, dtype = TYPES[kind]
    if math.prod(shape) * dtype.itemsize != size:
        raise cursor.damaged(f"{name} of shape {shape} in {said} does not fill {size:,} bytes")
    data = cursor.take(size)
    return name, Stored(shape, said, lambda: _tensor(data, dtype, shape))


def _tensor(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(data)).view(dtype).view(shape)


def _plain(name: str, found: dict[str, Stored]) -> Stored:
    stored, scale = found[name], found.get(f"{name}_scale")
    if scale is None:
        return stored
    return Stored(stored.shape, stored.dtype, lambda: stored.read().float() / _column(scale.read(), len(stored.shape)))


def _column(scale: Tensor, rank: int) -> Tensor:
    """One factor for each row of a tensor of `rank` axes, or one for all."""
    return scale.float() if scale.ndim == 0 else scale.float().view(-1, *[1] * (rank - 1))
