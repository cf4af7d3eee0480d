"""Locate the first non-finite value of a training step."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass

from torch import Tensor, nn

from sensorium.errors import SensoriumError


class NonFiniteError(SensoriumError):
    """A loss or gradient is not finite; raised before the weights are updated.

    Args:
        reason: which value it is.
        location: where the first non-finite value is.
        rows: rows of the dataset that cause it.
    """

    def __init__(self, reason: str, location: str, rows: list[int]):
        super().__init__(f"{reason}; {location}")
        self.reason = reason
        self.location = location
        self.rows = rows


def first_nonfinite_module(
    model: nn.Module, forward: Callable[[], object], batch_size: int
) -> tuple[str, list[int]] | None:
    """Find the first module with a non-finite output.

    Args:
        model: the model.
        forward: runs the model on a batch.
        batch_size: rows of the batch.

    Returns:
        The module's name and the positions in the batch; None if all outputs are finite.
    """
    first: list[tuple[str, list[int]]] = []

    def make_hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001 - torch's signature
            for value in _iter_tensors(output):
                rows = [] if first else nonfinite_rows(value, batch_size)
                if rows:
                    first.append((name or type(module).__name__, rows))

        return hook

    handles = [
        module.register_forward_hook(make_hook(name)) for name, module in model.named_modules()
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return first[0] if first else None


def nonfinite_rows(value: Tensor, batch_size: int) -> list[int]:
    """Return the rows with a non-finite value; all rows if the first axis is not the batch."""
    if not value.is_floating_point() or value.isfinite().all():
        return []
    if value.ndim == 0 or len(value) != batch_size:
        return list(range(batch_size))
    finite = value.isfinite().reshape(batch_size, -1).all(1)
    return (~finite).nonzero().flatten().tolist()


def _iter_tensors(value: object) -> Iterator[Tensor]:
    """Yield every tensor in the output of a module."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _iter_tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iter_tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _iter_tensors([getattr(value, f.name) for f in fields(value)])
