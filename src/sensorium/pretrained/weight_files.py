"""What published weights come in: a folder, a file or a hub id → tensors read one by one, a config, tokenizer files.

Nothing in a file is ever executed, and a number is read only when its tensor is asked for. Names and shapes are known
before. Everything that can be wrong is one SensoriumError that names the file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sensorium.errors import SensoriumError

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
    "generation_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "chat_template.jinja",
)
INDEX_FILE = "model.safetensors.index.json"
SAFETENSORS_FILES = ("model.safetensors", "open_clip_model.safetensors")
WEIGHT_FILE_PATTERNS = (
    *SAFETENSORS_FILES,
    "*.safetensors",
    "*.gguf",
    "model.bin",
    "model.bin.part*",
)  # the first that a folder has
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CODE_EXECUTION_KEYS = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
)  # keys by which a config asks for code to be run
MAX_JSON_BYTES = 64 << 20  # bytes
MAX_TENSORS = 100_000


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that still lies in its file."""

    shape: tuple[int, ...]
    dtype: str  # as the file calls it: F32, BF16, Q4_1
    read: Callable[[], Tensor]


class LazyTensors(Mapping[str, Tensor]):
    """Name → tensor, read from its file (memory-mapped) each time it is asked for; `stored` tells shapes for free."""

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
        """The shape of a tensor, None where there is none of that name; reads nothing."""
        return self.entries[name].shape if name in self.entries else None


@dataclass(frozen=True)
class WeightFiles:
    """What was found. `config` is {} where weights come without one; of GGUF it holds the file's own keys."""

    path: Path
    tensors: LazyTensors
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)  # those of TEXTS that are there, by name
    layout: str = "safetensors"  # or open_clip, gguf, ctranslate2

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, types, shapes and of a little of every tensor: tells two models apart, in a moment."""
        whole = hashlib.sha256()
        for name, stored in sorted(self.tensors.entries.items()):
            some = stored.read().flatten()
            some = some[:: max(1, len(some) // 64)].double()
            whole.update(f"{name} {stored.dtype} {stored.shape}".encode() + some.numpy().tobytes())
        return whole.hexdigest()

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the small files, or {} where it is not there."""
        return read_json(self.files[name]) if name in self.files else {}


def open_weights(source: str | Path) -> WeightFiles:
    """Open a local folder, a single file, or a hub id (OWNER/NAME or OWNER/NAME@REVISION).

    Raises SensoriumError where it is none of these, has no weights that can be read safely, is damaged, leads out of
    its folder, or asks for code to be run.
    """
    path = Path(source)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _add_sidecar_files(path.parent, _open_file(path), path)
    if (
        isinstance(source, str)
        and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", source)
        and ".." not in source
    ):
        from sensorium.pretrained.hub import download_snapshot

        return _open_folder(download_snapshot(source))
    raise SensoriumError(
        f"{source} is neither a folder nor a file, and no hub id such as openai/clip-vit-base-patch32"
    )


def _open_folder(folder: Path) -> WeightFiles:
    if (folder / INDEX_FILE).is_file():
        return _add_sidecar_files(folder, WeightFiles(folder, _open_shards(folder)), folder)
    found = next(
        (
            found
            for found in (_match_weight_files(folder, pattern) for pattern in WEIGHT_FILE_PATTERNS)
            if found
        ),
        None,
    )
    if found is None:
        raise _no_weights_error(folder)
    return _add_sidecar_files(folder, _open_file(found[0], found if len(found) > 1 else ()), folder)


def _add_sidecar_files(folder: Path, weight_files: WeightFiles, path: Path) -> WeightFiles:
    """The same with the config and the tokenizer that lie in the folder."""
    config, layout = _read_config(folder)
    return replace(
        weight_files,
        path=path,
        config=config | weight_files.config,
        files={
            name: resolve_inside_folder(folder, name)
            for name in SIDECAR_FILES
            if (folder / name).is_file()
        },
        layout=layout if weight_files.layout == "safetensors" else weight_files.layout,
    )


def _match_weight_files(folder: Path, pattern: str) -> list[Path]:
    """The one file of a folder that a pattern fits, or the parts of one that was cut."""
    found = sorted(resolve_inside_folder(folder, p.name) for p in folder.glob(pattern))
    if len(found) > 1 and "part" not in pattern:
        raise SensoriumError(
            f"{folder} holds several files of weights ({', '.join(p.name for p in found[:4])}) and no "
            f"{INDEX_FILE} that says how they belong together: name one of them"
        )
    return found


def _no_weights_error(folder: Path) -> SensoriumError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickles:
        return pickle_error(folder / pickles[0])
    return SensoriumError(
        f"{folder} holds no weights: expected one of {', '.join((*SAFETENSORS_FILES, INDEX_FILE))}, a .gguf file or "
        "model.bin of CTranslate2"
    )


def _open_file(path: Path, parts: Sequence[Path] = ()) -> WeightFiles:
    """The tensors of a single file, by what it begins with, not by its name."""
    with open(path, "rb") as file:
        head = file.read(6)
    if head[:4] == b"GGUF":
        from sensorium.pretrained import gguf

        return WeightFiles(path, *gguf.read_gguf(path), layout="gguf")
    if path.suffix == ".safetensors":
        return WeightFiles(path, open_safetensors(path))
    if len(head) == 6 and int.from_bytes(head[:4], "little") in range(1, 100):
        from sensorium.pretrained import ctranslate2

        tensors, about = ctranslate2.read_ctranslate2(path, parts)
        return WeightFiles(path, tensors, {"ctranslate2": about}, layout="ctranslate2")
    if path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path)
    raise SensoriumError(
        f"{path} is no file of weights that sensorium reads: .safetensors, .gguf, or model.bin of "
        "CTranslate2"
    )


def pickle_error(path: Path) -> SensoriumError:
    """What is said of a pickle."""
    return SensoriumError(
        f"{path} is a pickle, which can run code as it is loaded: sensorium convert {path} makes a "
        "safetensors file of it, in a process of its own that executes nothing"
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    for name in CONFIG_FILES:
        if (folder / name).is_file():
            config = read_json(resolve_inside_folder(folder, name))
            if asked := next((key for key in CODE_EXECUTION_KEYS if config.get(key)), None):
                raise SensoriumError(
                    f"{folder / name} asks for code to be run ({asked}), and sensorium runs none that "
                    "comes with weights; if the weights need no such code, take the key out"
                )
            return config, "open_clip" if name.startswith("open_clip") else "safetensors"
    return {}, "safetensors"


def open_safetensors(path: Path) -> LazyTensors:
    """The tensors of a safetensors file, memory-mapped. The reader checks lengths, types, offsets and overlaps."""
    try:
        file = safe_open(path, "pt").__enter__()  # type: ignore[no-untyped-call]
        names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as e:
        raise SensoriumError(f"{path} is damaged or no safetensors file: {e}") from e
    if len(names) > MAX_TENSORS:
        raise SensoriumError(
            f"{path} holds {len(names):,} tensors; {MAX_TENSORS:,} are the most that is read"
        )

    def stored(name: str) -> LazyTensor:
        part = file.get_slice(name)
        return LazyTensor(tuple(part.get_shape()), part.get_dtype(), lambda: file.get_tensor(name))

    return LazyTensors({name: stored(name) for name in names})


def _open_shards(folder: Path) -> LazyTensors:
    """The tensors of several files as their index lists them: exactly those, each in the file that it names."""
    listed = read_json(resolve_inside_folder(folder, INDEX_FILE)).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise SensoriumError(f"{folder / INDEX_FILE} has no weight_map from tensors to files")
    found: dict[str, LazyTensor] = {}
    for shard in sorted(set(listed.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise SensoriumError(
                f"{folder / INDEX_FILE} names {shard!r}, which is no safetensors file of its own folder"
            )
        if not (folder / shard).is_file():
            raise SensoriumError(
                f"{folder / shard} is missing: {INDEX_FILE} names it. The download is incomplete"
            )
        for name, stored in open_safetensors(resolve_inside_folder(folder, shard)).entries.items():
            if listed.get(name) != shard:
                raise SensoriumError(
                    f"{folder / shard} holds the tensor {name}, which {INDEX_FILE} does not place there"
                )
            found[name] = stored
    if missing := sorted(listed.keys() - found.keys()):
        raise SensoriumError(
            f"{folder} lacks the tensor {missing[0]} that {INDEX_FILE} places in {listed[missing[0]]}"
        )
    return LazyTensors(found)


def resolve_inside_folder(folder: Path, name: str) -> Path:
    """folder/name. Raises SensoriumError where it is a link that leads out of the folder.

    A snapshot of the hub's cache is links into the model's own folder of blobs, which is as far as they may lead.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        root = root.parents[1]
    path = folder / name
    if not path.resolve().is_relative_to(root):
        raise SensoriumError(f"{path} is a link that leads out of its folder, to {path.resolve()}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises SensoriumError where it is none, or is larger than any such file needs to be."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise SensoriumError(
                f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, more than any such file needs"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SensoriumError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise SensoriumError(f"{path} does not hold a JSON object")
    return found
