"""Read CTranslate2's model.bin, binary versions 4 to 6, in which Whisper models are distributed.

    version u32, specification string, revision u32,
    variables: u32 x (name, rank u8, sizes u32, type u8, bytes u32, data),
    aliases: u32 x (name, name).
    A string is its length with the closing zero as u16, then its bytes.

An int8 matrix is stored with the factor that each row was multiplied by (`..._scale`), an int16
matrix with one factor; both are read as float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.pretrained.binary_reader import BinaryReader
from sensorium.pretrained.tensor_source import LazyTensor, LazyTensors

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
    """Read a model.bin.

    Args:
        path: The file.
        parts: The files that it was split into, in order; (): `path` alone.

    Returns:
        The tensors, and the specification with the scalar variables: {"spec": "WhisperSpec", ...}.

    Raises:
        SensoriumError: If the file is damaged or of an unsupported version.
    """
    reader = BinaryReader(path, parts)
    version = reader.read_number("I")
    if version not in SUPPORTED_VERSIONS:
        raise reader.corruption_error(
            f"it is not a CTranslate2 model of binary version {SUPPORTED_VERSIONS[0]} to "
            f"{SUPPORTED_VERSIONS[-1]} (its version is {version})"
        )
    metadata: dict[str, Any] = {"spec": _read_string(reader), "revision": reader.read_number("I")}
    num_variables = reader.read_count("I", 8, "tensors")
    variables = reader.build_unique_dict(_read_variable(reader) for _ in range(num_variables))
    _read_aliases(reader, variables)
    if reader.position != len(reader.data):
        raise reader.corruption_error(
            f"{len(reader.data) - reader.position:,} bytes follow its end"
        )
    variable_names = [name for name in variables if not name.endswith("_scale")]
    metadata |= {
        name: variables[name].read().item() for name in variable_names if not variables[name].shape
    }
    tensors = {
        name: _dequantize(name, variables) for name in variable_names if name not in metadata
    }
    return LazyTensors(tensors), metadata


def _read_aliases(reader: BinaryReader, variables: dict[str, LazyTensor]) -> None:
    """Add the second names of variables."""
    for _ in range(reader.read_count("I", 4, "aliases")):
        alias = _read_string(reader)
        name = _read_string(reader)
        if name not in variables or alias in variables:
            raise reader.corruption_error(f"{alias} cannot be an alias of {name}")
        variables[alias] = variables[name]


def _read_string(reader: BinaryReader) -> str:
    return reader.read_string("H").removesuffix("\0")


def _read_variable(reader: BinaryReader) -> tuple[str, LazyTensor]:
    name = _read_string(reader)
    rank = int(reader.read_number("B"))
    if rank > MAX_RANK:
        raise reader.corruption_error(f"{name} has {rank} axes")
    shape = tuple(int(reader.read_number("I")) for _ in range(rank))
    dtype_id = int(reader.read_number("B"))
    size = int(reader.read_number("I"))
    if dtype_id >= len(STORED_DTYPES):
        raise reader.corruption_error(f"{name} is of an unknown type {dtype_id}")
    dtype_name, dtype = STORED_DTYPES[dtype_id]
    if math.prod(shape) * dtype.itemsize != size:
        raise reader.corruption_error(
            f"{name} of shape {shape} in {dtype_name} does not fill {size:,} bytes"
        )
    data = reader.read_bytes(size)
    return name, LazyTensor(shape, dtype_name, lambda: _to_tensor(data, dtype, shape))


def _to_tensor(data: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(data)).view(dtype).view(shape)


def _dequantize(name: str, variables: Mapping[str, LazyTensor]) -> LazyTensor:
    entry = variables[name]
    scale = variables.get(f"{name}_scale")
    if scale is None:
        return entry
    return LazyTensor(
        entry.shape,
        entry.dtype,
        lambda: entry.read().float() / _broadcast_scale(scale.read(), len(entry.shape)),
    )


def _broadcast_scale(scale: Tensor, rank: int) -> Tensor:
    """Shape the scale, one factor per row or one for all, to divide a tensor of `rank` axes."""
    return scale.float() if scale.ndim == 0 else scale.float().view(-1, *[1] * (rank - 1))
