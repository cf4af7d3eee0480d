"""Iterate over rows in batches of a fixed size."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Sliceable(Protocol):
    """A sequence that can be sliced: a list, a range, an array or a tensor."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: slice, /) -> Any:
        """Return a slice as a sequence of the same type."""
        ...


Rows = TypeVar("Rows", bound=Sliceable)


def iter_batches(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield consecutive slices of `rows`, `size` items each; the last one may be shorter."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
