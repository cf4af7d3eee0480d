"""Tensors that are read from their file on access, and the file names of pretrained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.io.json_files import read_object

CONFIG_FILES = ("config.json", "open_clip_config.json")
SIDECAR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "vocabulary.json",
    "vocabulary.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "chat_template.jinja",
)
INDEX_FILE = "model.safetensors.index.json"
SAFETENSORS_FILES = ("model.safetensors", "open_clip_model.safetensors")
MAX_JSON_BYTES = 64 << 20
MAX_TENSORS = 100_000


@dataclass(frozen=True)
class LazyTensor:
    """A tensor whose values are still in its file.

    Attributes:
        shape: Its shape.
        dtype: Its type as the file names it, such as "F32", "BF16" or "Q4_1".
        read: Reads the values.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """A mapping from names to tensors, each read from its memory-mapped file on every access.

    Args:
        entries: Name -> where the tensor is; names, shapes and types are known without reading.
    """

    def __init__(self, entries: Mapping[str, LazyTensor]):
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def get_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor without reading it, or None if there is no such tensor."""
        return self.entries[name].shape if name in self.entries else None


def open_safetensors(path: Path) -> LazyTensors:
    """Map a safetensors file into memory.

    The reader checks the header: lengths, types, offsets and overlaps.

    Raises:
        SensoriumError: If the file is damaged or holds too many tensors.
    """
    try:
        # Not a `with` block: tensors are read later, when the module is built. The handle is a
        # read-only memory map that the entries share, and is released with the last of them.
        file: Any = safe_open(path, "pt")  # type: ignore[no-untyped-call]
        names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise SensoriumError(f"{path} is damaged or is not a safetensors file: {error}.") from error
    if len(names) > MAX_TENSORS:
        raise SensoriumError(
            f"{path} holds {len(names):,} tensors, more than the limit of {MAX_TENSORS:,}."
        )

    def lazy_tensor(name: str) -> LazyTensor:
        header = file.get_slice(name)
        return LazyTensor(
            tuple(header.get_shape()), header.get_dtype(), lambda: file.get_tensor(name)
        )

    return LazyTensors({name: lazy_tensor(name) for name in names})


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        SensoriumError: If the file is no JSON object, or is larger than any such file needs to be.
    """
    return read_object(path, max_bytes=MAX_JSON_BYTES)
