"""The two layouts of torch.save: a zip archive (torch 1.6 and later), and one stream of pickles."""

from __future__ import annotations

import io
import math
import mmap  # noqa: F401 - numpy imports it to map a file, and the sandbox forbids imports by then
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.io.pickles.unpickler import StorageRef, TensorRef, Unpickler, UnsafePickle

STORAGE_DTYPES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
}
DTYPE_BYTES = {
    "F32": 4,
    "F64": 8,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES = 256 << 20
MAX_ARCHIVE_ENTRIES = 200_000
StorageReader = Callable[[StorageRef], Any]  # storage -> buffer with its values


class TorchArchive:
    """A checkpoint of `torch.save`.

    Args:
        path: the file.

    Attributes:
        value: the pickled value; tensors are `TensorRef`s.
        num_bytes: size of the file.

    Raises:
        UnsafePickle: the file is no checkpoint, or needs something that is not allowed.
    """

    def __init__(self, path: Path):
        self.num_bytes = path.stat().st_size
        open_archive = self._open_zip if zipfile.is_zipfile(path) else self._open_legacy
        self.value, self._read_storage = open_archive(path)
        self._last_key: str | None = None
        self._last_storage: Any = b""

    def read_tensor(self, tensor: TensorRef) -> np.ndarray:
        """Return the values of a tensor [numel], as unsigned integers of the same width.

        The storage that was read last is kept: read the tensors of one storage together.

        Raises:
            UnsafePickle: the tensor reaches beyond its storage, or the storage is truncated.
        """
        width = DTYPE_BYTES[get_dtype(tensor)]
        if math.prod(tensor.shape) == 0:
            return np.empty(0, f"u{width}")
        steps = zip(tensor.shape, tensor.stride, strict=True)
        last_index = tensor.offset + sum((size - 1) * stride for size, stride in steps)
        if last_index >= tensor.storage.numel:
            raise UnsafePickle(
                f"a tensor of shape {tensor.shape} reaches beyond its "
                f"{tensor.storage.numel:,} values"
            )
        key = tensor.storage.key
        if key != self._last_key:
            self._last_storage = b""  # not two of them in memory
            self._last_key, self._last_storage = key, self._read_storage(tensor.storage)
        data = np.frombuffer(self._last_storage, f"u{width}", len(self._last_storage) // width)
        if len(data) < tensor.storage.numel:
            raise UnsafePickle(f"the storage {tensor.storage.key} is truncated")
        strides = [stride * width for stride in tensor.stride]
        view = np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides)
        return np.ascontiguousarray(view).reshape(-1)

    def _open_zip(self, path: Path) -> tuple[Any, StorageReader]:
        """Return the value and the storage reader of a zip archive."""
        archive = zipfile.ZipFile(path)
        entries = self._checked_entries(archive)
        root = _find_root(entries)
        byteorder = f"{root}/byteorder"
        if byteorder in entries and archive.read(byteorder) != b"little":
            raise UnsafePickle("its values are big-endian")
        value = Unpickler().run(io.BytesIO(archive.read(f"{root}/data.pkl")))

        def read_storage(storage: StorageRef) -> bytes:
            name = f"{root}/data/{storage.key}"
            if name not in entries:
                raise UnsafePickle(f"its archive lacks the storage {storage.key!r}")
            return archive.read(name)

        return value, read_storage

    def _checked_entries(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        """Return the files of an archive by name, once none of them can expand when read."""
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) != len(archive.infolist()) or len(entries) > MAX_ARCHIVE_ENTRIES:
            raise UnsafePickle(
                f"its archive has a duplicate name, or more than {MAX_ARCHIVE_ENTRIES:,} files"
            )
        if any(name.endswith("/constants.pkl") for name in entries):
            raise UnsafePickle("it is TorchScript, which is a program and not weights")
        for info in entries.values():
            compressed = info.compress_type != zipfile.ZIP_STORED
            encrypted = bool(info.flag_bits & 1)
            if compressed or encrypted or info.file_size != info.compress_size:
                raise UnsafePickle(
                    f"{info.filename} is compressed or encrypted, which torch never does"
                )
        if sum(info.file_size for info in entries.values()) > self.num_bytes:
            raise UnsafePickle("its archive claims to hold more bytes than the file has")
        return entries

    def _open_legacy(self, path: Path) -> tuple[Any, StorageReader]:
        """Return the value and the storage reader of a stream of pickles."""
        with path.open("rb") as file:
            if Unpickler().run(file) != LEGACY_MAGIC or Unpickler().run(file) != LEGACY_PROTOCOL:
                raise UnsafePickle(
                    "it is not a torch checkpoint (tar files from before 2017 are not read)"
                )
            system = Unpickler().run(file)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise UnsafePickle("its values are big-endian")
            value = Unpickler().run(file)
            keys = Unpickler().run(file)
            offset = file.tell()
        storages = {storage.key: storage for storage in find_storages(value)}
        mapped = np.memmap(path, np.uint8, "r")
        slices: dict[str, slice] = {}
        for key in keys:
            numel = int.from_bytes(mapped[offset : offset + 8].tobytes(), "little")
            known = key in storages and numel == storages[key].numel
            if not known or offset + 8 > self.num_bytes:
                raise UnsafePickle(
                    f"the storage {key!r} does not match its tensors, or the file is truncated"
                )
            num_bytes = numel * DTYPE_BYTES[STORAGE_DTYPES.get(storages[key].type_name, "F64")]
            slices[key] = slice(offset + 8, offset + 8 + num_bytes)
            offset += 8 + num_bytes
        if offset > self.num_bytes:
            raise UnsafePickle("the file is truncated")
        return value, lambda storage: mapped[slices[storage.key]]


def get_dtype(tensor: TensorRef) -> str:
    """Return the dtype of a tensor, as safetensors names it.

    Raises:
        UnsafePickle: safetensors has no such dtype.
    """
    type_name = tensor.storage.type_name
    if type_name not in STORAGE_DTYPES:
        raise UnsafePickle(f"a tensor has the type {type_name}, which safetensors does not support")
    return STORAGE_DTYPES[type_name]


def find_storages(value: Any) -> list[StorageRef]:
    """Return every storage that a value refers to. Lists may contain themselves."""
    storages: dict[str, StorageRef] = {}
    visited: set[int] = set()
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, TensorRef):
            storages[part.storage.key] = part.storage
        elif isinstance(part, dict | list | tuple) and id(part) not in visited:
            visited.add(id(part))
            pending += part.values() if isinstance(part, dict) else part
    return list(storages.values())


def _find_root(entries: Mapping[str, zipfile.ZipInfo]) -> str:
    """Return the folder of an archive that holds data.pkl."""
    roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1 or entries[f"{roots[0]}/data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise UnsafePickle(
            "it is not a torch checkpoint: its archive has no data.pkl, several, or a huge one"
        )
    return roots[0]
