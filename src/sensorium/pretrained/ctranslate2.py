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

from sensorium.pretrained.binary_reader import BinaryReader
from sensorium.pretrained.weight_files import LazyTensor, LazyTensors

SUPPORTED_VERSIONS = (4, 5, 6)
STORED_DTYPES = (
    ("F32", torch.float32),
    ("I8", torch.int8),
    ("I16", torch.int16),
    ("I32", torch.int32),
    ("F16", torch.float16),
    ("BF16", torch.bfloat16),
)
MAX_RANK = 8


def read_ctranslate2(path: Path, parts: Sequence[Path] = ()) -> tuple[LazyTensors, dict[str, Any]]:
    """The tensors of a model.bin, and its specification and single numbers: {"spec": "WhisperSpec", ...}.

    parts: the files it was cut into, in order. Raises SensoriumError where it is damaged or of another version.
    """
    cursor = BinaryReader(path, parts)
    if (version := cursor.read_number("I")) not in SUPPORTED_VERSIONS:
        raise cursor.corruption_error(
            f"it is no CTranslate2 model of binary version {SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]} "
            f"(it begins with {version})"
        )
    about: dict[str, Any] = {"spec": _read_string(cursor), "revision": cursor.read_number("I")}
    found = cursor.build_unique_dict(
        _read_variable(cursor) for _ in range(cursor.read_count("I", 8, "tensors"))
    )
    for _ in range(cursor.read_count("I", 4, "aliases")):
        alias, name = _read_string(cursor), _read_string(cursor)
        if name not in found or alias in found:
            raise cursor.corruption_error(f"{alias} should be another name for {name}")
        found[alias] = found[name]
    if cursor.position != len(cursor.data):
        raise cursor.corruption_error(
            f"{len(cursor.data) - cursor.position:,} bytes lie behind its end"
        )
    about |= {
        name: s.read().item()
        for name, s in found.items()
        if not s.shape and not name.endswith("_scale")
    }
    return LazyTensors(
        {
            name: _dequantize(name, found)
            for name, s in found.items()
            if name not in about and not name.endswith("_scale")
        }
    ), about


def _read_string(reader: BinaryReader) -> str:
    return reader.read_string("H").removesuffix("\0")


def _read_variable(reader: BinaryReader) -> tuple[str, LazyTensor]:
    name, rank = _read_string(reader), int(reader.read_number("B"))
    if rank > MAX_RANK:
        raise reader.corruption_error(f"{name} has {rank} axes")
    shape = tuple(int(reader.read_number("I")) for _ in range(rank))
    kind, size = int(reader.read_number("B")), int(reader.read_number("I"))
    if kind >= len(STORED_DTYPES):
        raise reader.corruption_error(f"{name} is of an unknown type {kind}")
    said, dtype = STORED_DTYPES[kind]
    if math.prod(shape) * dtype.itemsize != size:
        raise reader.corruption_error(
            f"{name} of shape {shape} in {said} does not fill {size:,} bytes"
        )
    data = reader.read_bytes(size)
    return name, LazyTensor(shape, said, lambda: _to_tensor(data, dtype, shape))


def _to_tensor(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(data)).view(dtype).view(shape)


def _dequantize(name: str, variables: dict[str, LazyTensor]) -> LazyTensor:
    stored, scale = variables[name], variables.get(f"{name}_scale")
    if scale is None:
        return stored
    return LazyTensor(
        stored.shape,
        stored.dtype,
        lambda: stored.read().float() / _broadcast_scale(scale.read(), len(stored.shape)),
    )


def _broadcast_scale(scale: Tensor, rank: int) -> Tensor:
    """One factor for each row of a tensor of `rank` axes, or one for all."""
    return scale.float() if scale.ndim == 0 else scale.float().view(-1, *[1] * (rank - 1))
