"""Tensors in safetensors files that carry a hash of their content."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sensorium.errors import SensoriumError

METADATA_KEY = "sensorium"


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name; tied weights once, by their first name."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        named.setdefault(id(value), (name, value))
    return {name: value.detach() for name, value in named.values()}


def tensor_writer(
    named_tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """Return a function for `atomic.write_file` that writes tensors with a hash of their content.

    Equal values give equal bytes: all metadata is one JSON text under one key, because safetensors
    does not keep the order of several keys.

    Args:
        named_tensors: the tensors by name; copied to the CPU where they are elsewhere.
        metadata: further text to store, by key.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in named_tensors.items()}
    text = json.dumps({**(metadata or {}), "sha256": tensors_sha256(plain)})

    return partial(save_tensors, plain, {METADATA_KEY: text})


def save_tensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a safetensors file, for `atomic.write_file`.

    Raises:
        OSError: the disk refuses.
    """
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as e:  # raised for a full disk too
        raise OSError(str(e)) from e


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that `tensor_writer` wrote.

    Raises:
        SensoriumError: the file is missing or damaged.
    """
    if not path.is_file():
        raise SensoriumError(
            f"{path} is missing. The run did not reach its first evaluation, or the file was "
            "removed: resume the run with --resume (resume=True), or train again."
        )
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            recorded_sha256 = json.loads(file.metadata()[METADATA_KEY])["sha256"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise SensoriumError(f"{path} is damaged: {e}. Restore it from a copy.") from e
    if recorded_sha256 != tensors_sha256(tensors):
        raise SensoriumError(
            f"{path} is damaged: its content does not match its checksum. Restore it from a copy."
        )
    return tensors


@runtime_checkable
class VariableSizeBuffers(Protocol):
    """A module whose buffers have the sizes of the loaded ones, such as fitted trees."""

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Replace the buffers.

        Args:
            buffers: values by name in this module.

        Raises:
            ValueError: they are no valid buffers of this module.
        """
        ...


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy the tensors of a file into a module with exactly the same names and shapes.

    Modules with `VariableSizeBuffers` take on the sizes in the file first.

    Raises:
        SensoriumError: the file is missing or damaged, or its tensors do not fit the module.
    """
    loaded = read_tensors(path)
    for prefix, part in module.named_modules():
        if isinstance(part, VariableSizeBuffers):
            _load_buffers(part, f"{prefix}." if prefix else "", loaded, path)
    expected = state_tensors(module)
    mismatched = sorted(set(loaded) ^ set(expected))
    mismatched += [k for k in expected if k in loaded and loaded[k].shape != expected[k].shape]
    if mismatched:
        raise SensoriumError(
            f"{path} does not fit the recipe: {len(mismatched)} tensors are missing, unknown or of "
            f"another shape, first {mismatched[0]}. The recipe has changed since the run: restore "
            "it, or train again."
        )
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(loaded[name])


def _load_buffers(
    part: VariableSizeBuffers, prefix: str, tensors: Mapping[str, Tensor], path: Path
) -> None:
    """Give a module copies of the tensors whose names begin with `prefix`."""
    own = {
        name.removeprefix(prefix): value.clone()
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    try:
        part.load_buffers(own)
    except ValueError as e:
        raise SensoriumError(
            f"{path} does not fit the recipe, or is damaged. {e} Restore it, or train again."
        ) from e


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(named_tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values, in hex."""
    digest = hashlib.sha256()
    for name in sorted(named_tensors):
        value = named_tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():  # an empty tensor may have a stride that cannot be viewed as bytes
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
