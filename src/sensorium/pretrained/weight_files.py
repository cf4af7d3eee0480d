"""Open pretrained weights from a folder, a file or the hub: tensors, config, tokenizer files.

Nothing in a file is executed, and values are read only when their tensor is accessed. Every fault
of a file is one SensoriumError that names it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.io.wrapper_prefixes import strip_wrapper_prefixes
from sensorium.pretrained.ctranslate2 import read_ctranslate2
from sensorium.pretrained.gguf import read_gguf
from sensorium.pretrained.hub import download_snapshot
from sensorium.pretrained.tensor_source import (
    CONFIG_FILES,
    INDEX_FILE,
    SAFETENSORS_FILES,
    SIDECAR_FILES,
    LazyTensor,
    LazyTensors,
    open_safetensors,
    read_json,
)

WEIGHT_FILE_PATTERNS = (  # the first that matches a file of the folder
    *SAFETENSORS_FILES,
    "*.safetensors",
    "*.gguf",
    "model.bin",
    "model.bin.part*",
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Config keys that ask the loading library to run code that comes with the weights.
CODE_EXECUTION_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
HUB_ID_PATTERN = r"[\w.-]+/[\w.-]+(@[\w.-]+)?"
FINGERPRINT_VALUES = 64  # values of each tensor that the fingerprint reads


@dataclass(frozen=True)
class WeightFiles:
    """Opened pretrained weights.

    Attributes:
        path: The folder or file that was opened.
        tensors: The tensors, read on access.
        config: The config; {} if the weights come without one. Of GGUF, also the file's keys.
        files: Paths of the SIDECAR_FILES that exist, by name.
        layout: "safetensors", "open_clip", "gguf" or "ctranslate2".
    """

    path: Path
    tensors: LazyTensors
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    layout: str = "safetensors"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all names, types and shapes and of a sample of each tensor's values."""
        digest = hashlib.sha256()
        for name, entry in sorted(self.tensors.entries.items()):
            values = entry.read().flatten()
            sample = values[:: max(1, len(values) // FINGERPRINT_VALUES)].double()
            digest.update(f"{name} {entry.dtype} {entry.shape}".encode() + sample.numpy().tobytes())
        return digest.hexdigest()

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of a sidecar file, or {} if it does not exist."""
        return read_json(self.files[name]) if name in self.files else {}


def open_weights(source: str | Path) -> WeightFiles:
    """Open pretrained weights.

    Args:
        source: A local folder, a single file, or a hub id (OWNER/NAME or OWNER/NAME@REVISION).

    Raises:
        SensoriumError: If `source` is none of these, holds no weights that can be read safely, is
            damaged, links to a file outside of its folder, or asks for code to be run.
    """
    path = Path(source)
    if path.is_dir():
        return _strip_wrappers(_open_folder(path))
    if path.is_file():
        return _strip_wrappers(_add_sidecar_files(path.parent, _open_file(path), path))
    if isinstance(source, str) and re.fullmatch(HUB_ID_PATTERN, source) and ".." not in source:
        return _strip_wrappers(_open_folder(download_snapshot(source)))
    raise SensoriumError(
        f"{source} is neither a folder nor a file, nor a hub id. "
        "Give a path or an id such as openai/clip-vit-base-patch32."
    )


def has_weights(path: Path) -> bool:
    """Return whether a path is a file of weights, or a folder with one, by their names."""
    patterns = (*WEIGHT_FILE_PATTERNS, *(f"*{suffix}" for suffix in PICKLE_SUFFIXES))
    if path.is_file():
        return any(path.match(pattern) for pattern in patterns)
    return any(next(path.glob(pattern), None) is not None for pattern in patterns)


def _strip_wrappers(weight_files: WeightFiles) -> WeightFiles:
    """Drop what DistributedDataParallel or torch.compile put before all names."""
    entries = weight_files.tensors.entries
    stripped = strip_wrapper_prefixes(entries)
    if stripped.keys() == entries.keys():
        return weight_files
    return replace(weight_files, tensors=LazyTensors(stripped))


def _open_folder(folder: Path) -> WeightFiles:
    if (folder / INDEX_FILE).is_file():
        return _add_sidecar_files(folder, WeightFiles(folder, _open_shards(folder)), folder)
    for pattern in WEIGHT_FILE_PATTERNS:
        paths = _match_weight_files(folder, pattern)
        if paths:
            parts = paths if len(paths) > 1 else ()
            return _add_sidecar_files(folder, _open_file(paths[0], parts), folder)
    raise _no_weights_error(folder)


def _add_sidecar_files(folder: Path, weight_files: WeightFiles, path: Path) -> WeightFiles:
    """Add the config and the tokenizer files of the folder."""
    config, config_layout = _read_config(folder)
    layout = config_layout if weight_files.layout == "safetensors" else weight_files.layout
    files = {
        name: resolve_inside_folder(folder, name)
        for name in SIDECAR_FILES
        if (folder / name).is_file()
    }
    return replace(
        weight_files, path=path, config=config | weight_files.config, files=files, layout=layout
    )


def _match_weight_files(folder: Path, pattern: str) -> list[Path]:
    """Return the one file that matches a pattern, or the parts of a file that was split."""
    paths = sorted(resolve_inside_folder(folder, path.name) for path in folder.glob(pattern))
    if len(paths) > 1 and "part" not in pattern:
        raise SensoriumError(
            f"{folder} holds several weight files ({', '.join(p.name for p in paths[:4])}) and no "
            f"{INDEX_FILE} that combines them. Give the path of one of them."
        )
    return paths


def _no_weights_error(folder: Path) -> SensoriumError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        return pickle_error(folder / pickles[0])
    return SensoriumError(
        f"{folder} holds no weights. Expected {', '.join((*SAFETENSORS_FILES, INDEX_FILE))}, "
        "a .gguf file or a CTranslate2 model.bin."
    )


def _open_file(path: Path, parts: Sequence[Path] = ()) -> WeightFiles:
    """Open a single weight file; the format is recognized by its first bytes."""
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:4] == b"GGUF":
        tensors, keys = read_gguf(path)
        return WeightFiles(path, tensors, keys, layout="gguf")
    if path.suffix == ".safetensors":
        return WeightFiles(path, open_safetensors(path))
    if len(magic) == 6 and int.from_bytes(magic[:4], "little") in range(1, 100):
        tensors, metadata = read_ctranslate2(path, parts)
        return WeightFiles(path, tensors, {"ctranslate2": metadata}, layout="ctranslate2")
    if path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path)
    raise SensoriumError(
        f"{path} is not a supported weight file. "
        "Supported are .safetensors, .gguf and the model.bin of CTranslate2."
    )


def pickle_error(path: Path) -> SensoriumError:
    """Return the error for a pickle, which names the command that converts it safely."""
    return SensoriumError(
        f"{path} is a pickle, which can execute code when it is loaded. "
        f"Convert it to safetensors: sensorium convert-checkpoint {path}."
    )


def _read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the config of a folder and the layout that its file name implies."""
    for name in CONFIG_FILES:
        if not (folder / name).is_file():
            continue
        config = read_json(resolve_inside_folder(folder, name))
        for key in CODE_EXECUTION_KEYS:
            if config.get(key):
                raise SensoriumError(
                    f"{folder / name} asks for code to be run ({key}), and sensorium runs no code "
                    "that comes with weights. If they load without it, remove the key."
                )
        return config, "open_clip" if name.startswith("open_clip") else "safetensors"
    return {}, "safetensors"


def _open_shards(folder: Path) -> LazyTensors:
    """Open the shards that the index lists; each must hold exactly the tensors listed for it."""
    weight_map = read_json(resolve_inside_folder(folder, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(shard, str) for shard in weight_map.values()
    ):
        raise SensoriumError(
            f"{folder / INDEX_FILE} has no weight_map from tensor names to file names."
        )
    entries: dict[str, LazyTensor] = {}
    for shard in sorted(set(weight_map.values())):
        _check_shard_name(folder, shard)
        tensors = open_safetensors(resolve_inside_folder(folder, shard))
        for name, entry in tensors.entries.items():
            if weight_map.get(name) != shard:
                raise SensoriumError(
                    f"{folder / shard} holds the tensor {name}, which {INDEX_FILE} does not list "
                    "there. Download the folder again."
                )
            entries[name] = entry
    missing = sorted(weight_map.keys() - entries.keys())
    if missing:
        raise SensoriumError(
            f"{folder / weight_map[missing[0]]} lacks the tensor {missing[0]}, which {INDEX_FILE} "
            "lists there. Download the folder again."
        )
    return LazyTensors(entries)


def _check_shard_name(folder: Path, shard: str) -> None:
    if Path(shard).name != shard or not shard.endswith(".safetensors"):
        raise SensoriumError(
            f"{folder / INDEX_FILE} names {shard!r}, which is not a safetensors file of its folder."
        )
    if not (folder / shard).is_file():
        raise SensoriumError(
            f"{folder / shard} is missing, but {INDEX_FILE} names it. Complete the download."
        )


def resolve_inside_folder(folder: Path, name: str) -> Path:
    """Return folder/name.

    A snapshot in the hub's cache consists of links into the model's own folder of blobs, which is
    the only place outside of `folder` that links may lead to.

    Raises:
        SensoriumError: If it is a link to anywhere else.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        root = root.parents[1]
    path = folder / name
    if not path.resolve().is_relative_to(root):
        raise SensoriumError(
            f"{path} is a link that leads out of its folder, to {path.resolve()}. "
            "Replace it by a copy of the file."
        )
    return path
