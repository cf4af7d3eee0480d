"""Read GGUF files: an index reader of our own, dequantization by the gguf package.

    "GGUF", version u32, tensors u64, keys u64, keys x (name, type u32, value),
    tensors x (name, axes u32, sizes u64 from last to first axis, type u32, offset u64), data.

The package's own reader takes seconds for a large vocabulary and trusts the sizes in the file.
Rows are not permuted here: queries and keys of Llama stay in llama.cpp's order, in which the two
halves of a rotation are neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.pretrained.binary_reader import BinaryReader
from sensorium.pretrained.tensor_source import MAX_TENSORS, LazyTensor, LazyTensors

SUPPORTED_VERSIONS = (2, 3)
NUMBER_FORMATS = {  # GGUF type -> struct format
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
STRING_TYPE = 8
ARRAY_TYPE = 9
UNQUANTIZED_DTYPES = {  # GGUF tensor type -> name, dtype
    0: ("F32", torch.float32),
    1: ("F16", torch.float16),
    28: ("F64", torch.float64),
    30: ("BF16", torch.bfloat16),
}
MAX_KEYS = 10_000
MAX_AXES = 4
MAX_STRING_BYTES = 1 << 24
DEFAULT_ALIGNMENT = 32
MIN_TENSOR_INFO_BYTES = 24
MIN_KEY_BYTES = 13


class _TensorInfo(NamedTuple):
    """An entry of the tensor index; `offset` is counted from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


class _TensorFormat(NamedTuple):
    """How the values of a tensor type are stored: `block_bytes` for every `block_size` values."""

    name: str
    block_size: int
    block_bytes: int
    to_tensor: Callable[[np.ndarray], Tensor]


def read_gguf(path: Path) -> tuple[LazyTensors, dict[str, Any]]:
    """Read a GGUF file.

    Returns:
        The tensors, quantized ones as float32 and others in their own type, and the file's keys.

    Raises:
        SensoriumError: If the file is damaged, of another version, or of an unsupported type.
    """
    reader = BinaryReader(path)
    if (
        reader.read_bytes(4).tobytes() != b"GGUF"
        or reader.read_number("I") not in SUPPORTED_VERSIONS
    ):
        raise reader.corruption_error(
            f"it is not a little-endian GGUF file of version {SUPPORTED_VERSIONS[0]} or "
            f"{SUPPORTED_VERSIONS[1]}"
        )
    num_tensors = reader.read_count("Q", MIN_TENSOR_INFO_BYTES, "tensors")
    num_keys = reader.read_count("Q", MIN_KEY_BYTES, "keys")
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise reader.corruption_error(
            f"it has {num_tensors:,} tensors and {num_keys:,} keys, but at most {MAX_TENSORS:,} "
            f"and {MAX_KEYS:,} are supported"
        )
    keys = reader.build_unique_dict(_read_key(reader) for _ in range(num_keys))
    infos = [_read_tensor_info(reader) for _ in range(num_tensors)]
    alignment = keys.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise reader.corruption_error(f"general.alignment is {alignment!r}")
    data_start = -(-reader.position // alignment) * alignment
    entries = reader.build_unique_dict(
        (info.name, _open_tensor(reader, info, data_start))
        for info in sorted(infos, key=lambda info: info.offset)
    )
    return LazyTensors(entries), keys


def _read_key(reader: BinaryReader) -> tuple[str, Any]:
    name = reader.read_string("Q")
    return name, _read_value(reader, int(reader.read_number("I")))


def _read_value(reader: BinaryReader, value_type: int, nested: bool = False) -> Any:
    if value_type in NUMBER_FORMATS:
        return reader.read_number(NUMBER_FORMATS[value_type])
    if value_type == STRING_TYPE:
        return reader.read_string("Q", MAX_STRING_BYTES)
    if value_type != ARRAY_TYPE or nested:
        raise reader.corruption_error(f"a key is of the unknown type {value_type}")
    return _read_array(reader)


def _read_array(reader: BinaryReader) -> list[Any]:
    item_type = int(reader.read_number("I"))
    if item_type in NUMBER_FORMATS:
        dtype = np.dtype(NUMBER_FORMATS[item_type])
        n = reader.read_count("Q", dtype.itemsize, "numbers")
        return reader.read_bytes(n * dtype.itemsize).view(dtype.newbyteorder("<")).tolist()
    n = reader.read_count("Q", 8, "values")
    return [_read_value(reader, item_type, nested=True) for _ in range(n)]


def _read_tensor_info(reader: BinaryReader) -> _TensorInfo:
    name = reader.read_string("Q")
    num_axes = int(reader.read_number("I"))
    if num_axes > MAX_AXES:
        raise reader.corruption_error(f"{name} has {num_axes} axes")
    sizes = [int(reader.read_number("Q")) for _ in range(num_axes)]
    type_id = int(reader.read_number("I"))
    offset = int(reader.read_number("Q"))
    return _TensorInfo(name, tuple(reversed(sizes)), type_id, offset)


def _open_tensor(reader: BinaryReader, info: _TensorInfo, data_start: int) -> LazyTensor:
    """Check where a tensor lies; tensors are opened in the order of their offsets."""
    shape = info.shape
    stored = _tensor_format(reader, info)
    if shape and shape[-1] % stored.block_size:
        raise reader.corruption_error(
            f"{info.name} has rows of {shape[-1]:,} values, which {stored.name} cannot hold"
        )
    start = data_start + info.offset
    if start < reader.position:
        raise reader.corruption_error(
            f"{info.name} begins at byte {start:,}, inside of what lies before it"
        )
    reader.position = start
    data = reader.read_bytes(math.prod(shape) // stored.block_size * stored.block_bytes)
    return LazyTensor(
        shape,
        stored.name,
        lambda: stored.to_tensor(np.array(data).reshape(*shape[:-1], -1)).view(shape),
    )


def _tensor_format(reader: BinaryReader, info: _TensorInfo) -> _TensorFormat:
    if info.type_id in UNQUANTIZED_DTYPES:
        name, dtype = UNQUANTIZED_DTYPES[info.type_id]
        return _TensorFormat(
            name, 1, dtype.itemsize, lambda data: torch.from_numpy(data).view(dtype)
        )
    try:
        import gguf
    except ImportError as error:
        raise SensoriumError(
            f'{reader.path} is quantized. To read it: pip install "sensorium[pretrained]".'
        ) from error
    try:
        quant_type = gguf.GGMLQuantizationType(info.type_id)
    except ValueError as error:
        raise reader.corruption_error(
            f"{info.name} is of an unknown type {info.type_id}"
        ) from error
    if quant_type not in gguf.quants._type_traits:  # pyright: ignore[reportPrivateUsage] - no public list
        raise SensoriumError(
            f"{reader.path} stores {info.name} as {quant_type.name}, which the gguf package cannot "
            "dequantize. Use another quantization, such as Q8_0."
        )
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[quant_type]
    return _TensorFormat(
        quant_type.name,
        block_size,
        block_bytes,
        lambda data: torch.from_numpy(gguf.dequantize(data, quant_type)),
    )
