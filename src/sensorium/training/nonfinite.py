"""Locate the first non-finite value of a training step."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from sensorium.errors import SensoriumError


class NonFiniteError(SensoriumError):
    """A loss or gradient that is not a number: raised before the weights are touched."""

    def __init__(self, reason: str, location: str, rows: list[int]):
        super().__init__(f"{reason}; {location}")
        self.reason, self.location, self.rows = reason, location, rows


def first_nonfinite_module(
    model: nn.Module, forward: Callable[[], object], batch_size: int
) -> tuple[str, list[int]] | None:
    """The first module that says something not finite during `forward`, and the rows of the batch for which it does."""
    found: list[tuple[str, list[int]]] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, said: object) -> None:
            for value in _iter_tensors(said):
                if not found and (rows := _nonfinite_rows(value, batch_size)):
                    found.append((name or type(module).__name__, rows))

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _iter_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a module returns."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _iter_tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iter_tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _iter_tensors([getattr(value, f.name) for f in fields(value)])


def _nonfinite_rows(value: Tensor, batch_size: int) -> list[int]:
    """The rows in which a tensor is not finite: all of them where its first axis is not the batch."""
    if not value.is_floating_point() or value.isfinite().all():
        return []
    if value.ndim == 0 or len(value) != batch_size:
        return list(range(batch_size))
    return (~value.isfinite().reshape(batch_size, -1).all(1)).nonzero().flatten().tolist()
