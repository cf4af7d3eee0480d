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
from sensorium.pretrained.binary_reader import BinaryReader
from sensorium.pretrained.weight_files import MAX_TENSORS, LazyTensor, LazyTensors

SUPPORTED_VERSIONS = (2, 3)
NUMBER_FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING_TYPE, ARRAY_TYPE = 8, 9
UNQUANTIZED_DTYPES = {
    0: ("F32", torch.float32),
    1: ("F16", torch.float16),
    28: ("F64", torch.float64),
    30: ("BF16", torch.bfloat16),
}
MAX_KEYS, MAX_AXES, MAX_STRING_BYTES = 10_000, 4, 1 << 24


def read_gguf(path: Path) -> tuple[LazyTensors, dict[str, Any]]:
    """The tensors of a GGUF file as float32 (those stored as halves keep their type), and its keys.

    Raises SensoriumError where it is damaged, of another version, or in a type that cannot be read.
    """
    cursor = BinaryReader(path)
    if (
        cursor.read_bytes(4).tobytes() != b"GGUF"
        or cursor.read_number("I") not in SUPPORTED_VERSIONS
    ):
        raise cursor.corruption_error(
            f"it is no little-endian GGUF file of version {SUPPORTED_VERSIONS[0]} or {SUPPORTED_VERSIONS[1]}"
        )
    n, keys = cursor.read_count("Q", 24, "tensors"), cursor.read_count("Q", 13, "keys")
    if n > MAX_TENSORS or keys > MAX_KEYS:
        raise cursor.corruption_error(
            f"{n:,} tensors and {keys:,} keys; at most {MAX_TENSORS:,} and {MAX_KEYS:,} are read"
        )
    about = cursor.build_unique_dict(
        (cursor.read_string("Q"), _read_value(cursor, int(cursor.read_number("I"))))
        for _ in range(keys)
    )
    entries = [_read_tensor_info(cursor) for _ in range(n)]
    step = about.get("general.alignment", 32)
    if not isinstance(step, int) or step < 1:
        raise cursor.corruption_error(f"general.alignment is {step!r}")
    start = -(-cursor.position // step) * step
    return LazyTensors(
        cursor.build_unique_dict(
            (name, _open_tensor(cursor, name, start + place, shape, kind))
            for name, shape, kind, place in sorted(entries, key=lambda entry: entry[3])
        )
    ), about


def _read_value(reader: BinaryReader, value_type: int, nested: bool = False) -> Any:
    if value_type in NUMBER_FORMATS:
        return reader.read_number(NUMBER_FORMATS[value_type])
    if value_type == STRING_TYPE:
        return reader.read_string("Q", MAX_STRING_BYTES)
    if value_type != ARRAY_TYPE or nested:
        raise reader.corruption_error(f"a key of the unknown type {value_type}")
    value_type = int(reader.read_number("I"))
    if value_type in NUMBER_FORMATS:
        size = np.dtype(NUMBER_FORMATS[value_type]).itemsize
        n = reader.read_count("Q", size, "numbers")
        return (
            reader.read_bytes(n * size)
            .view(np.dtype(NUMBER_FORMATS[value_type]).newbyteorder("<"))
            .tolist()
        )
    return [
        _read_value(reader, value_type, nested=True)
        for _ in range(reader.read_count("Q", 8, "values"))
    ]


def _read_tensor_info(reader: BinaryReader) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = reader.read_string("Q"), int(reader.read_number("I"))
    if axes > MAX_AXES:
        raise reader.corruption_error(f"{name} has {axes} axes")
    sizes = [int(reader.read_number("Q")) for _ in range(axes)]
    return name, tuple(reversed(sizes)), int(reader.read_number("I")), int(reader.read_number("Q"))


def _open_tensor(
    reader: BinaryReader, name: str, offset: int, shape: tuple[int, ...], tensor_type: int
) -> LazyTensor:
    said, block, size, number = _resolve_tensor_type(reader, name, tensor_type)
    if shape and shape[-1] % block:
        raise reader.corruption_error(f"{name} has rows of {shape[-1]:,}, which {said} cannot hold")
    if offset < reader.position:
        raise reader.corruption_error(
            f"{name} begins at byte {offset:,}, inside of what lies before it"
        )
    reader.position = offset
    data = reader.read_bytes(math.prod(shape) // block * size)
    return LazyTensor(
        shape, said, lambda: number(np.array(data).reshape(*shape[:-1], -1)).view(shape)
    )


def _resolve_tensor_type(
    reader: BinaryReader, name: str, tensor_type: int
) -> tuple[str, int, int, Callable[[np.ndarray], Tensor]]:
    """How a type is called, how many numbers lie in how many bytes, and what makes them a tensor."""
    if tensor_type in UNQUANTIZED_DTYPES:
        said, dtype = UNQUANTIZED_DTYPES[tensor_type]
        return said, 1, dtype.itemsize, lambda data: torch.from_numpy(data).view(dtype)
    try:
        import gguf
    except ImportError as e:
        raise SensoriumError(
            f'{reader.path} is quantised; to read it: pip install "sensorium[pretrained]"'
        ) from e
    try:
        quant = gguf.GGMLQuantizationType(tensor_type)
    except ValueError as e:
        raise reader.corruption_error(f"{name} is of an unknown type {tensor_type}") from e
    if quant not in gguf.quants._type_traits:
        raise SensoriumError(
            f"{reader.path}: {name} is in {quant.name}, which gguf cannot turn into floats"
        )
    block, size = gguf.GGML_QUANT_SIZES[quant]
    return quant.name, block, size, lambda data: torch.from_numpy(gguf.dequantize(data, quant))
