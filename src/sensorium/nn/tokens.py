"""Batches of columns, batches of token sequences, and the attention masks that follow from them.

B batch   T tokens   S context tokens   C selected rows   D width   E width of any vectors
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

ColumnKey = str | tuple[str, ...]
"""A column by name, or several text columns that are joined into one."""


def column_names(key: ColumnKey) -> tuple[str, ...]:
    """Return the dataset columns behind a key."""
    return (key,) if isinstance(key, str) else key


def column_key(names: str | Sequence[str]) -> ColumnKey:
    """Return the key of one column, or of several that are joined into one."""
    if isinstance(names, str):
        return names
    return names[0] if len(names) == 1 else tuple(names)


def column_label(key: ColumnKey) -> str:
    """Return a key as it appears in messages."""
    return ", ".join(column_names(key))


@dataclass(frozen=True)
class Batch:
    """Rows of a dataset by column, or the inputs of a Decoder by part.

    Attributes:
        columns: Values of each column, rows first.
        present: Presence mask of a column; a column without an entry is present in every row.
        row: Row numbers in the dataset.
        group: Group of each row; rows of one group describe the same object.
    """

    columns: dict[ColumnKey, Tensor]
    present: dict[ColumnKey, Tensor] = field(default_factory=dict[ColumnKey, Tensor])
    row: Tensor | None = None
    group: Tensor | None = None

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, key: ColumnKey) -> Tensor:
        return self.columns[key]

    def __contains__(self, key: object) -> bool:
        return key in self.columns

    @property
    def rows(self) -> int:
        """Number of rows; symbolic in an exported graph, where `len` would make it a constant."""
        tensor = self._first_tensor()
        return 0 if tensor is None else tensor.shape[0]

    def presence(self, key: ColumnKey) -> Bool[Tensor, "B"]:
        """Return the presence mask of a column, all False where the batch lacks the column."""
        if key in self.columns and key in self.present:
            return self.present[key]
        tensor = self._first_tensor()
        if tensor is None:
            return torch.zeros(0, dtype=torch.bool)
        return torch.full(tensor.shape[:1], key in self.columns, device=tensor.device)

    def select(self, keys: Iterable[ColumnKey]) -> "Batch":
        """Return the same rows with only these columns; keys that the batch lacks are ignored."""
        selected = set(keys)
        return replace(
            self,
            columns={key: values for key, values in self.columns.items() if key in selected},
            present={key: mask for key, mask in self.present.items() if key in selected},
        )

    def with_columns(
        self,
        columns: dict[ColumnKey, Tensor] | None = None,
        present: dict[ColumnKey, Tensor] | None = None,
    ) -> "Batch":
        """Return the same rows with columns and presence masks added or replaced."""
        return replace(
            self,
            columns={**self.columns, **(columns or {})},
            present={**self.present, **(present or {})},
        )

    def merge(self, other: "Batch") -> "Batch":
        """Return the same rows with the columns of another batch added."""
        return self.with_columns(other.columns, other.present)

    def take(self, rows: Tensor | slice) -> "Batch":
        """Return a subset of the rows, by index, boolean mask or slice."""
        return Batch(
            {key: values[rows] for key, values in self.columns.items()},
            {key: mask[rows] for key, mask in self.present.items()},
            None if self.row is None else self.row[rows],
            None if self.group is None else self.group[rows],
        )

    def split(self, parts: int) -> "list[Batch]":
        """Split into `parts` batches of nearly equal size, fewer if there are fewer rows."""
        parts = max(1, min(parts, len(self)))
        if parts == 1:
            return [self]
        size, remainder = divmod(len(self), parts)
        starts = [size * i + min(i, remainder) for i in range(parts + 1)]
        return [self.take(slice(start, stop)) for start, stop in itertools.pairwise(starts)]

    @staticmethod
    def concat(parts: "Sequence[Batch]") -> "Batch":
        """Concatenate the rows of batches that have the same columns."""
        first = parts[0]
        masked = {key for part in parts for key in part.present}
        row = None
        if first.row is not None:
            row = torch.cat([part.row for part in parts if part.row is not None])
        group = None
        if first.group is not None:
            group = torch.cat([part.group for part in parts if part.group is not None])
        return Batch(
            {key: torch.cat([part[key] for part in parts]) for key in first.columns},
            {
                key: torch.cat([part.presence(key) for part in parts])
                for key in first.columns
                if key in masked
            },
            row,
            group,
        )

    def _first_tensor(self) -> Tensor | None:
        return next(self._iter_tensors(), None)

    def _iter_tensors(self) -> Iterator[Tensor]:
        yield from self.columns.values()
        if self.row is not None:
            yield self.row
        if self.group is not None:
            yield self.group


class Order(Enum):
    """Attention orders that need no tensor, and so no mask."""

    CAUSAL = "causal"  # token i has order i + 1


CAUSAL = Order.CAUSAL


@dataclass(frozen=True)
class Tokens:
    """A batch of token sequences. Token i attends to j if order[j] <= order[i] and j is valid.

    Attributes:
        x: Token features.
        pos: Position of each token: (time, row, column).
        order: Causal order of each token; None if every token attends to every other one.
        valid: True for a real token, False for padding; None if all are real.
    """

    x: Float[Tensor, "B T D"]
    pos: Float[Tensor, "B T 3"]
    order: Int[Tensor, "B T"] | Order | None = None
    valid: Bool[Tensor, "B T"] | None = None


def sequence_positions(x: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T 3"]:
    """Return positions along time: start, start + 1, ...; row and column are 0."""
    pos = x.new_zeros(x.shape[1], 3, dtype=torch.float32)
    pos[:, 0] = torch.arange(start, start + x.shape[1], device=x.device)
    return pos.expand(x.shape[0], -1, -1)


def grid_positions(x: Float[Tensor, "B T D"], columns: int) -> Float[Tensor, "B T 3"]:
    """Return positions of a grid in raster order, `columns` tokens to a row; time is 0."""
    i = torch.arange(x.shape[1], device=x.device)
    pos = torch.stack([torch.zeros_like(i), i // columns, i % columns], -1).float()
    return pos.expand(x.shape[0], -1, -1)


def order_tensor(t: Tokens) -> Int[Tensor, "B T"]:
    """Return the order as a tensor: 0 everywhere without an order, 1..T if causal."""
    if isinstance(t.order, Tensor):
        return t.order
    shape = t.x.shape[:2]
    device = t.x.device
    if t.order is None:
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.arange(1, shape[1] + 1, device=device).expand(shape)


def make_causal(t: Tokens, start: int = 1) -> Tokens:
    """Make each token attend only to itself and to those before it.

    Args:
        t: Tokens of any order.
        start: Order of the first token; the following ones count up from it.
    """
    if start == 1:
        return replace(t, order=CAUSAL)
    order = torch.arange(start, start + t.x.shape[1], device=t.x.device)
    return replace(t, order=order.expand(t.x.shape[:2]))


def join(*parts: Tokens) -> Tokens:
    """Concatenate sequences along time. Orders stay as they are: the caller makes them match."""
    if len(parts) == 1:
        return parts[0]
    order = None
    if not all(p.order is None for p in parts):
        order = torch.cat([order_tensor(p) for p in parts], 1)
    valid = None
    if not all(p.valid is None for p in parts):
        valid = torch.cat([valid_mask(p) for p in parts], 1)
    return Tokens(
        torch.cat([p.x for p in parts], 1), torch.cat([p.pos for p in parts], 1), order, valid
    )


def take_last(t: Tokens, n: int) -> Tokens:
    """Return the last n tokens of each sequence, with their order among all tokens."""
    order = None if t.order is None else order_tensor(t)[:, -n:]
    valid = None if t.valid is None else t.valid[:, -n:]
    return Tokens(t.x[:, -n:], t.pos[:, -n:], order, valid)


def take_rows(t: Tokens, rows: Int[Tensor, "C"]) -> Tokens:
    """Return these sequences of the batch; a sequence may be repeated."""
    order = t.order[rows] if isinstance(t.order, Tensor) else t.order
    valid = None if t.valid is None else t.valid[rows]
    return Tokens(t.x[rows], t.pos[rows], order, valid)


def take_token(t: Tokens, index: Int[Tensor, "B"]) -> Tokens:
    """Return the token at `index` of each sequence, as sequences of length one."""
    rows = torch.arange(t.x.shape[0], device=t.x.device)
    return Tokens(t.x[rows, index][:, None], t.pos[rows, index][:, None])


def valid_mask(t: Tokens) -> Bool[Tensor, "B T"]:
    """Return `valid` as a tensor."""
    if t.valid is not None:
        return t.valid
    return torch.ones(t.x.shape[:2], dtype=torch.bool, device=t.x.device)


def valid_or_none(valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"] | None:
    """Return None if all tokens are real, else `valid`.

    While exporting, `valid` is returned always: a graph must not branch on values.
    """
    return valid if torch.compiler.is_exporting() or not valid.all() else None


def attention_mask(
    q: Int[Tensor, "B T"], k: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None
) -> Bool[Tensor, "B 1 T S"]:
    """Return the attention mask, True where a query may attend to a key.

    Args:
        q: Order of the queries.
        k: Order of the keys.
        valid: True for a real key; None if all are real.
    """
    allowed = k[:, None, :] <= q[:, :, None]
    if valid is not None:
        allowed = allowed & valid[:, None, :]
    return allowed[:, None]


def context_mask(t: Tokens, context: Tokens) -> Bool[Tensor, "B 1 #T S"] | None:
    """Return the cross-attention mask of `t` over `context`; None if nothing is masked.

    A context without an order has order 0: every token attends to it.
    """
    if context.order is None:
        return None if context.valid is None else context.valid[:, None, None]
    return attention_mask(order_tensor(t), order_tensor(context), context.valid)


def mean_pool(t: Tokens) -> Float[Tensor, "B D"]:
    """Return the mean over the real tokens; zero where there are none."""
    weight = valid_mask(t)[..., None].to(t.x.dtype)
    return (t.x * weight).sum(1) / weight.sum(1).clamp(min=1)


def l2_normalize(x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Scale vectors to unit length, in float32."""
    return nn.functional.normalize(x.float(), dim=-1)
