"""The two layouts of torch.save: a zip archive (since 1.6) and, before, pickles and numbers one after the other."""
from __future__ import annotations

import io
import math
import mmap  # noqa: F401 (numpy fetches it when a file is mapped, and nothing is imported by then)
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.convert.opcodes import Lying, Machine, Refused, Storage

KINDS = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
         "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
         "BoolStorage": "BOOL"}
BYTES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAGIC = 0x1950A86A20F9469CFC6C
LEGACY = 1001
MOST_PICKLE, MOST_ENTRIES = 256 << 20, 200_000          # bytes of the pickle in an archive, files in it


class Archive:
    """A checkpoint: `value`, with tensors as descriptions, and the numbers of each storage on demand."""

    def __init__(self, path: Path):
        self.size = path.stat().st_size
        if zipfile.is_zipfile(path):
            self.value, self._bytes = self._zip(path)
        else:
            self.value, self._bytes = self._legacy(path)

    def numbers(self, tensor: Lying) -> np.ndarray:
        """A tensor's numbers in a row, as unsigned integers of their width.

        Raises Refused where they do not all lie in its storage.
        """
        width = BYTES[kind(tensor)]
        last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride, strict=True))
        if math.prod(tensor.shape) == 0:
            return np.empty(0, f"u{width}")
        if last >= tensor.storage.numel:
            raise Refused(f"a tensor of shape {tensor.shape} reaches beyond its {tensor.storage.numel:,} numbers")
        data = np.frombuffer(self._bytes(tensor.storage), f"u{width}")
        if len(data) < tensor.storage.numel:
            raise Refused(f"the storage {tensor.storage.key} is cut short")
        view = np.lib.stride_tricks.as_strided(data[tensor.offset:], tensor.shape, [s * width for s in tensor.stride])
        return np.ascontiguousarray(view).reshape(-1)

    def _zip(self, path: Path) -> tuple[Any, Any]:
        archive = zipfile.ZipFile(path)
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) != len(archive.infolist()) or len(entries) > MOST_ENTRIES:
            raise Refused(f"its archive holds a name twice, or more than {MOST_ENTRIES:,} files")
        if any(name.endswith("/constants.pkl") for name in entries):
            raise Refused("it is TorchScript, which is a program and not weights")
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise Refused(f"{info.filename} is compressed or encrypted, which torch never does")
        if sum(info.file_size for info in entries.values()) > self.size:
            raise Refused("its archive says that it holds more than it is large")
        roots = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) != 1 or entries[f"{roots[0]}/data.pkl"].file_size > MOST_PICKLE:
            raise Refused("its archive holds no data.pkl, several, or a huge one: it is no checkpoint of torch")
        if (order := f"{roots[0]}/byteorder") in entries and archive.read(order) != b"little":
            raise Refused("its numbers are big-endian")
        value = Machine().run(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")))

        def numbers(storage: Storage) -> bytes:
            if (name := f"{roots[0]}/data/{storage.key}") not in entries:
                raise Refused(f"its archive lacks the storage {storage.key!r}")
            return archive.read(name)
        return value, numbers

    def _legacy(self, path: Path) -> tuple[Any, Any]:
        with open(path, "rb") as file:
            if Machine().run(file) != MAGIC or Machine().run(file) != LEGACY:
                raise Refused("it is no checkpoint of torch (the tar files of before 2017 are not read)")
            system = Machine().run(file)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise Refused("its numbers are big-endian")
            value, keys = Machine().run(file), Machine().run(file)
            place = file.tell()
        kinds = {storage.key: storage for storage in storages(value)}
        mapped, where = np.memmap(path, np.uint8, "r"), dict[str, tuple[int, int]]()
        for key in keys:
            numel = int.from_bytes(mapped[place:place + 8].tobytes(), "little")
            if key not in kinds or numel != kinds[key].numel or place + 8 > self.size:
                raise Refused(f"the storage {key!r} is not as its tensors say, or the file is cut short")
            size = numel * BYTES[KINDS.get(kinds[key].kind, "F64")]
            where[key] = (place + 8, size)
            place += 8 + size
        if place > self.size:
            raise Refused("the file is cut short")
        return value, lambda storage: mapped[where[storage.key][0]:sum(where[storage.key])]


def kind(tensor: Lying) -> str:
    """The type of a tensor's numbers, as safetensors calls it."""
    if tensor.storage.kind not in KINDS:
        raise Refused(f"a tensor is of the type {tensor.storage.kind}, which safetensors does not hold")
    return KINDS[tensor.storage.kind]


def storages(value: Any) -> list[Storage]:
    """Every storage that a value speaks of. Nothing is visited twice: lists may hold themselves."""
    found, seen, left = dict[str, Storage](), set[int](), [value]
    while left:
        part = left.pop()
        if isinstance(part, Lying):
            found[part.storage.key] = part.storage
        elif isinstance(part, dict | list | tuple) and id(part) not in seen:
            seen.add(id(part))
            left += part.values() if isinstance(part, dict) else part
    return list(found.values())
