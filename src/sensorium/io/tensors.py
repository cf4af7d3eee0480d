"""Tensors in files: safetensors that carry a hash of their own content, and the names that a module's weights go by."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sensorium.errors import SensoriumError


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and lasting buffers by name; one that has several names (tied weights) by the first."""
    seen: dict[int, tuple[str, Tensor]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        seen.setdefault(id(value), (name, value))
    return {name: value.detach() for name, value in seen.values()}


def tensor_writer(
    named_tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Callable[[Path], None]:
    """For `durable.write`: the tensors as a safetensors file that carries a hash of its own content.

    The same values give the same bytes: what there is to say goes under one key, as the order of several is not kept.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in named_tensors.items()}
    told = {"sensorium": json.dumps({**(metadata or {}), "sha256": tensors_sha256(plain)})}

    def put(path: Path) -> None:
        try:
            save_file(plain, path, told)
        except SafetensorError as e:  # what it raises for a full disk too
            raise OSError(str(e)) from e

    return put


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `tensors` wrote. Raises SensoriumError where it is missing or damaged."""
    if not path.is_file():
        raise SensoriumError(
            f"{path} is missing: the run did not reach its first evaluation, or it was removed"
        )
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            found = {name: file.get_tensor(name) for name in file.keys()}
            recorded = json.loads(file.metadata()["sensorium"])["sha256"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        raise SensoriumError(f"{path} is damaged: {e}") from e
    if recorded != tensors_sha256(found):
        raise SensoriumError(f"{path} is damaged: its content is not what was written")
    return found


@runtime_checkable
class VariableSizeBuffers(Protocol):
    """A part whose buffers are as long as those that are found, such as trees that were grown."""

    def load_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        """Have these, once they are checked; ValueError where they are not what the part can be."""
        ...


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy a file's tensors into a module that has exactly those names and shapes, parts that are `Sized` aside."""
    found = read_tensors(path)
    for place, part in module.named_modules():
        if isinstance(part, VariableSizeBuffers):
            try:
                part.load_buffers(
                    {
                        name.removeprefix(f"{place}."): value.clone()
                        for name, value in found.items()
                        if name.startswith(f"{place}.")
                    }
                )
            except ValueError as e:
                raise SensoriumError(f"{path} does not fit the recipe, or is damaged: {e}") from e
    wanted = state_tensors(module)
    wrong = sorted(set(found) ^ set(wanted)) + [
        k for k in wanted if k in found and found[k].shape != wanted[k].shape
    ]
    if wrong:
        raise SensoriumError(
            f"{path} does not fit the recipe: {len(wrong)} tensors are missing, unknown or of another "
            f"shape, the first is {wrong[0]}. The recipe has changed since the run."
        )
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(named_tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and numbers, in hex."""
    whole = hashlib.sha256()
    for name in sorted(named_tensors):
        whole.update(
            f"{name} {named_tensors[name].dtype} {tuple(named_tensors[name].shape)}".encode()
        )
        whole.update(named_tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
