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

CONFIGS = ("config.json", "open_clip_config.json")
TEXTS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt",
         "spiece.model", "tokenizer.model", "vocabulary.json", "vocabulary.txt", "preprocessor_config.json",
         "generation_config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
         "chat_template.jinja")
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")
ORDER = (*WEIGHTS, "*.safetensors", "*.gguf", "model.bin", "model.bin.part*")       # the first that a folder has
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
CODE = ("auto_map", "custom_pipelines", "trust_remote_code")        # keys by which a config asks for code to be run
MOST_JSON = 64 << 20                                                # bytes
MOST_TENSORS = 100_000


@dataclass(frozen=True)
class Stored:
    """A tensor that still lies in its file."""

    shape: tuple[int, ...]
    dtype: str                                          # as the file calls it: F32, BF16, Q4_1
    read: Callable[[], Tensor]


class Tensors(Mapping[str, Tensor]):
    """Name → tensor, read from its file (memory-mapped) each time it is asked for; `stored` tells shapes for free."""

    def __init__(self, stored: Mapping[str, Stored]):
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor, None where there is none of that name; reads nothing."""
        return self.stored[name].shape if name in self.stored else None


@dataclass(frozen=True)
class Opened:
    """What was found. `config` is {} where weights come without one; of GGUF it holds the file's own keys."""

    place: Path
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)        # those of TEXTS that are there, by name
    layout: str = "safetensors"                                 # or open_clip, gguf, ctranslate2

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, types, shapes and of a little of every tensor: tells two models apart, in a moment."""
        whole = hashlib.sha256()
        for name, stored in sorted(self.tensors.stored.items()):
            some = stored.read().flatten()
            some = some[::max(1, len(some) // 64)].double()
            whole.update(f"{name} {stored.dtype} {stored.shape}".encode() + some.numpy().tobytes())
        return whole.hexdigest()

    def json(self, name: str) -> dict[str, Any]:
        """One of the small files, or {} where it is not there."""
        return read_json(self.files[name]) if name in self.files else {}


def open_weights(source: str | Path) -> Opened:
    """Open a local folder, a single file, or a hub id (OWNER/NAME or OWNER/NAME@REVISION).

    Raises SensoriumError where it is none of these, has no weights that can be read safely, is damaged, leads out of
    its folder, or asks for code to be run.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _beside(path.parent, _file(path), path)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", source) and ".." not in source:
        from sensorium.published.hub import fetch
        return _folder(fetch(source))
    raise SensoriumError(f"{source} is neither a folder nor a file, and no hub id such as openai/clip-vit-base-patch32")


def _folder(folder: Path) -> Opened:
    if (folder / INDEX).is_file():
        return _beside(folder, Opened(folder, _shards(folder)), folder)
    found = next((found for found in (_named(folder, pattern) for pattern in ORDER) if found), None)
    if found is None:
        raise _without_weights(folder)
    return _beside(folder, _file(found[0], found if len(found) > 1 else ()), folder)


def _beside(folder: Path, opened: Opened, place: Path) -> Opened:
    """The same with the config and the tokenizer that lie in the folder."""
    config, layout = _config(folder)
    return replace(opened, place=place, config=config | opened.config,
                   files={name: inside(folder, name) for name in TEXTS if (folder / name).is_file()},
                   layout=layout if opened.layout == "safetensors" else opened.layout)


def _named(folder: Path, pattern: str) -> list[Path]:
    """The one file of a folder that a pattern fits, or the parts of one that was cut."""
    found = sorted(inside(folder, p.name) for p in folder.glob(pattern))
    if len(found) > 1 and "part" not in pattern:
        raise SensoriumError(f"{folder} holds several files of weights ({', '.join(p.name for p in found[:4])}) and no "
                             f"{INDEX} that says how they belong together: name one of them")
    return found


def _without_weights(folder: Path) -> SensoriumError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        return refused(folder / pickles[0])
    return SensoriumError(f"{folder} holds no weights: expected one of {', '.join((*WEIGHTS, INDEX))}, a .gguf file or "
                          "model.bin of CTranslate2")


def _file(path: Path, parts: Sequence[Path] = ()) -> Opened:
    """The tensors of a single file, by what it begins with, not by its name."""
    with open(path, "rb") as file:
        head = file.read(6)
    if head[:4] == b"GGUF":
        from sensorium.published import gguf
        return Opened(path, *gguf.read(path), layout="gguf")
    if path.suffix == ".safetensors":
        return Opened(path, safetensors(path))
    if len(head) == 6 and int.from_bytes(head[:4], "little") in range(1, 100):
        from sensorium.published import ctranslate2
        tensors, about = ctranslate2.read(path, parts)
        return Opened(path, tensors, {"ctranslate2": about}, layout="ctranslate2")
    if path.suffix in PICKLES:
        raise refused(path)
    raise SensoriumError(f"{path} is no file of weights that sensorium reads: .safetensors, .gguf, or model.bin of "
                         "CTranslate2")


def refused(path: Path) -> SensoriumError:
    """What is said of a pickle."""
    return SensoriumError(f"{path} is a pickle, which can run code as it is loaded: sensorium convert {path} makes a "
                          "safetensors file of it, in a process of its own that executes nothing")


def _config(folder: Path) -> tuple[dict[str, Any], str]:
    for name in CONFIGS:
        if (folder / name).is_file():
            config = read_json(inside(folder, name))
            if asked := next((key for key in CODE if config.get(key)), None):
                raise SensoriumError(f"{folder / name} asks for code to be run ({asked}), and sensorium runs none that "
                                     "comes with weights; if the weights need no such code, take the key out")
            return config, "open_clip" if name.startswith("open_clip") else "safetensors"
    return {}, "safetensors"


def safetensors(path: Path) -> Tensors:
    """The tensors of a safetensors file, memory-mapped. The reader checks lengths, types, offsets and overlaps."""
    try:
        file = safe_open(path, "pt").__enter__()        # type: ignore[no-untyped-call]
        names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as e:
        raise SensoriumError(f"{path} is damaged or no safetensors file: {e}") from e
    if len(names) > MOST_TENSORS:
        raise SensoriumError(f"{path} holds {len(names):,} tensors; {MOST_TENSORS:,} are the most that is read")

    def stored(name: str) -> Stored:
        part = file.get_slice(name)
        return Stored(tuple(part.get_shape()), part.get_dtype(), lambda: file.get_tensor(name))
    return Tensors({name: stored(name) for name in names})


def _shards(folder: Path) -> Tensors:
    """The tensors of several files as their index lists them: exactly those, each in the file that it names."""
    listed = read_json(inside(folder, INDEX)).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise SensoriumError(f"{folder / INDEX} has no weight_map from tensors to files")
    found: dict[str, Stored] = {}
    for shard in sorted(set(listed.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise SensoriumError(f"{folder / INDEX} names {shard!r}, which is no safetensors file of its own folder")
        if not (folder / shard).is_file():
            raise SensoriumError(f"{folder / shard} is missing: {INDEX} names it. The download is incomplete")
        for name, stored in safetensors(inside(folder, shard)).stored.items():
            if listed.get(name) != shard:
                raise SensoriumError(f"{folder / shard} holds the tensor {name}, which {INDEX} does not place there")
            found[name] = stored
    if missing := sorted(listed.keys() - found.keys()):
        raise SensoriumError(f"{folder} lacks the tensor {missing[0]} that {INDEX} places in {listed[missing[0]]}")
    return Tensors(found)


def inside(folder: Path, name: str) -> Path:
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
        if path.stat().st_size > MOST_JSON:
            raise SensoriumError(f"{path} is larger than {MOST_JSON >> 20} MiB, more than any such file needs")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise SensoriumError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise SensoriumError(f"{path} does not hold a JSON object")
    return found


