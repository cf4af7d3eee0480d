"""Sparse feature rows, and their products with dense matrices.

B rows   N entries that are not zero   F features   K columns of a dense matrix
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseRows:
    """A sparse matrix [B F] by its entries, sorted by row.

    Attributes:
        rows: B.
        row: Row of each entry, ascending.
        index: Its column.
        value: Its value.
    """

    rows: int
    row: Int[Tensor, "N"]
    index: Int[Tensor, "N"]
    value: Float[Tensor, "N"]

    @classmethod
    def empty(cls, rows: int, device: torch.device | None = None) -> "SparseRows":
        """Return rows without any entry."""
        no_index = torch.zeros(0, dtype=torch.long, device=device)
        return cls(rows, no_index, no_index, torch.zeros(0, device=device))

    @classmethod
    def join(cls, parts: Sequence["SparseRows"], widths: Sequence[int]) -> "SparseRows":
        """Return matrices of the same rows side by side.

        Args:
            parts: The matrices; at least one.
            widths: F of each.
        """
        offsets = [sum(widths[:i]) for i in range(len(widths))]
        row, order = torch.cat([part.row for part in parts]).sort(stable=True)
        shifted = [part.index + offset for part, offset in zip(parts, offsets, strict=True)]
        return cls(
            parts[0].rows,
            row,
            torch.cat(shifted)[order],
            torch.cat([part.value for part in parts])[order],
        )

    @classmethod
    def concat(cls, batches: Sequence["SparseRows"]) -> "SparseRows":
        """Return the rows of several matrices below each other."""
        starts = [sum(batch.rows for batch in batches[:i]) for i in range(len(batches))]
        shifted = [batch.row + start for batch, start in zip(batches, starts, strict=True)]
        return cls(
            sum(batch.rows for batch in batches),
            torch.cat(shifted),
            torch.cat([batch.index for batch in batches]),
            torch.cat([batch.value for batch in batches]),
        )

    def take(self, mask: Bool[Tensor, "B"]) -> "SparseRows":
        """Return the rows that are True."""
        new_row = mask.long().cumsum(0) - 1
        kept = mask[self.row]
        return SparseRows(
            int(mask.sum()), new_row[self.row[kept]], self.index[kept], self.value[kept]
        )

    def zero_rows(self, mask: Bool[Tensor, "B"]) -> "SparseRows":
        """Return the matrix with all entries of the rows that are True left out."""
        kept = ~mask[self.row]
        return SparseRows(self.rows, self.row[kept], self.index[kept], self.value[kept])

    def transposed(self, width: int) -> "SparseRows":
        """Return the transposed matrix [F B].

        Args:
            width: F.
        """
        index, order = self.index.sort(stable=True)
        return SparseRows(width, index, self.row[order], self.value[order])

    def matmul(self, dense: Float[Tensor, "F K"]) -> Float[Tensor, "B K"]:
        """Return the product with a dense matrix."""
        if not len(self.index):
            return dense.new_zeros(self.rows, dense.shape[1])
        starts = torch.searchsorted(self.row, torch.arange(self.rows, device=self.row.device))
        return F.embedding_bag(
            self.index, dense, starts, mode="sum", per_sample_weights=self.value.to(dense.dtype)
        )


def unique_counts(x: Int[Tensor, "N"]) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"]]:
    """Return the distinct values, ascending, and how often each occurs (torch.unique, typed)."""
    return x.unique(return_counts=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def unique_inverse(x: Int[Tensor, "N"]) -> tuple[Int[Tensor, "M"], Int[Tensor, "N"]]:
    """Return the distinct values, ascending, and the index of each value among them."""
    return x.unique(return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
