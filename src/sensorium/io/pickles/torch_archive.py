"""The two layouts of torch.save: a zip archive (since 1.6) and, before, pickles and numbers one after the other."""

from __future__ import annotations

import io
import math
import mmap  # noqa: F401 (numpy fetches it when a file is mapped, and nothing is imported by then)
import zipfile
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
}
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_PICKLE_BYTES, MAX_ARCHIVE_ENTRIES = (
    256 << 20,
    200_000,
)  # bytes of the pickle in an archive, files in it


class TorchArchive:
    """A checkpoint: `value`, with tensors as descriptions, and the numbers of each storage on demand."""

    def __init__(self, path: Path):
        self.num_bytes = path.stat().st_size
        if zipfile.is_zipfile(path):
            self.value, self._read_storage = self._open_zip(path)
        else:
            self.value, self._read_storage = self._open_legacy(path)

    def read_tensor(self, tensor: TensorRef) -> np.ndarray:
        """A tensor's numbers in a row, as unsigned integers of their width.

        Raises Refused where they do not all lie in its storage.
        """
        width = DTYPE_BYTES[get_dtype(tensor)]
        last = tensor.offset + sum(
            (n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True)
        )
        if math.prod(tensor.shape) == 0:
            return np.empty(0, f"u{width}")
        if last >= tensor.storage.numel:
            raise UnsafePickle(
                f"a tensor of shape {tensor.shape} reaches beyond its {tensor.storage.numel:,} numbers"
            )
        data = np.frombuffer(self._read_storage(tensor.storage), f"u{width}")
        if len(data) < tensor.storage.numel:
            raise UnsafePickle(f"the storage {tensor.storage.key} is cut short")
        view = np.lib.stride_tricks.as_strided(
            data[tensor.offset :], tensor.shape, [s * width for s in tensor.stride]
        )
        return np.ascontiguousarray(view).reshape(-1)

    def _open_zip(self, path: Path) -> tuple[Any, Any]:
        archive = zipfile.ZipFile(path)
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) != len(archive.infolist()) or len(entries) > MAX_ARCHIVE_ENTRIES:
            raise UnsafePickle(
                f"its archive holds a name twice, or more than {MAX_ARCHIVE_ENTRIES:,} files"
            )
        if any(name.endswith("/constants.pkl") for name in entries):
            raise UnsafePickle("it is TorchScript, which is a program and not weights")
        for info in entries.values():
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.file_size != info.compress_size
                or info.flag_bits & 1
            ):
                raise UnsafePickle(
                    f"{info.filename} is compressed or encrypted, which torch never does"
                )
        if sum(info.file_size for info in entries.values()) > self.num_bytes:
            raise UnsafePickle("its archive says that it holds more than it is large")
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or entries[f"{roots[0]}/data.pkl"].file_size > MAX_PICKLE_BYTES:
            raise UnsafePickle(
                "its archive holds no data.pkl, several, or a huge one: it is no checkpoint of torch"
            )
        if (order := f"{roots[0]}/byteorder") in entries and archive.read(order) != b"little":
            raise UnsafePickle("its numbers are big-endian")
        value = Unpickler().run(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")))

        def numbers(storage: StorageRef) -> bytes:
            if (name := f"{roots[0]}/data/{storage.key}") not in entries:
                raise UnsafePickle(f"its archive lacks the storage {storage.key!r}")
            return archive.read(name)

        return value, numbers

    def _open_legacy(self, path: Path) -> tuple[Any, Any]:
        with open(path, "rb") as file:
            if Unpickler().run(file) != LEGACY_MAGIC or Unpickler().run(file) != LEGACY_PROTOCOL:
                raise UnsafePickle(
                    "it is no checkpoint of torch (the tar files of before 2017 are not read)"
                )
            system = Unpickler().run(file)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise UnsafePickle("its numbers are big-endian")
            value, keys = Unpickler().run(file), Unpickler().run(file)
            place = file.tell()
        kinds = {storage.key: storage for storage in find_storages(value)}
        mapped, where = np.memmap(path, np.uint8, "r"), dict[str, tuple[int, int]]()
        for key in keys:
            numel = int.from_bytes(mapped[place : place + 8].tobytes(), "little")
            if key not in kinds or numel != kinds[key].numel or place + 8 > self.num_bytes:
                raise UnsafePickle(
                    f"the storage {key!r} is not as its tensors say, or the file is cut short"
                )
            size = numel * DTYPE_BYTES[STORAGE_DTYPES.get(kinds[key].type_name, "F64")]
            where[key] = (place + 8, size)
            place += 8 + size
        if place > self.num_bytes:
            raise UnsafePickle("the file is cut short")
        return value, lambda storage: mapped[where[storage.key][0] : sum(where[storage.key])]


def get_dtype(tensor: TensorRef) -> str:
    """The type of a tensor's numbers, as safetensors calls it."""
    if tensor.storage.type_name not in STORAGE_DTYPES:
        raise UnsafePickle(
            f"a tensor is of the type {tensor.storage.type_name}, which safetensors does not hold"
        )
    return STORAGE_DTYPES[tensor.storage.type_name]


def find_storages(value: Any) -> list[StorageRef]:
    """Every storage that a value speaks of. Nothing is visited twice: lists may hold themselves."""
    found, seen, left = dict[str, StorageRef](), set[int](), [value]
    while left:
        part = left.pop()
        if isinstance(part, TensorRef):
            found[part.storage.key] = part.storage
        elif isinstance(part, dict | list | tuple) and id(part) not in seen:
            seen.add(id(part))
            left += part.values() if isinstance(part, dict) else part
    return list(found.values())
