"""What every room hands to the next: a batch of columns, a batch of token sequences, and who in it may look at whom.

B batch   T tokens   S context tokens   D width
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

ColumnKey = (
    str | tuple[str, ...]
)  # a column by its name; several columns of texts that are read as one


def column_names(key: ColumnKey) -> tuple[str, ...]:
    """The columns of a data set behind a key."""
    return (key,) if isinstance(key, str) else key


def column_key(names: str | Sequence[str]) -> ColumnKey:
    """The key of one column, or of several that are read as one."""
    if isinstance(names, str):
        return names
    return names[0] if len(names) == 1 else tuple(names)


def column_label(key: ColumnKey) -> str:
    """A key in messages."""
    return ", ".join(column_names(key))


@dataclass(frozen=True)
class Batch:
    """Some rows of a data set, column by column; or what a Decoder reads, part by part.

    present: in which rows a column has a value; a column without an entry has one in all of them. row: their numbers in
    the data set. group: rows of one number show the same thing.
    """

    columns: dict[ColumnKey, Tensor]
    present: dict[ColumnKey, Tensor] = field(default_factory=dict)
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
        """How many; in a graph a symbol, which `len` would fix."""
        some = self._first_tensor()
        return 0 if some is None else some.shape[0]

    def presence(self, key: ColumnKey) -> Bool[Tensor, "B"]:
        """In which rows a column has a value; in none where the batch lacks the column."""
        if key in self.columns and key in self.present:
            return self.present[key]
        some = self._first_tensor()
        if some is None:
            return torch.zeros(0, dtype=torch.bool)
        return torch.full(some.shape[:1], key in self.columns, device=some.device)

    def select(self, keys: Iterable[ColumnKey]) -> "Batch":
        """The same rows with these columns alone, as far as they are there."""
        kept = set(keys)
        return replace(
            self,
            columns={key: values for key, values in self.columns.items() if key in kept},
            present={key: flags for key, flags in self.present.items() if key in kept},
        )

    def with_columns(
        self,
        columns: dict[ColumnKey, Tensor] | None = None,
        present: dict[ColumnKey, Tensor] | None = None,
    ) -> "Batch":
        """The same rows with these columns and flags in the place of others, or besides."""
        return replace(
            self,
            columns={**self.columns, **(columns or {})},
            present={**self.present, **(present or {})},
        )

    def merge(self, other: "Batch") -> "Batch":
        """The same rows with the columns of another batch of them."""
        return self.with_columns(other.columns, other.present)

    def take(self, rows: Tensor | slice) -> "Batch":
        """These rows, by number or by flag."""
        return Batch(
            {key: values[rows] for key, values in self.columns.items()},
            {key: flags[rows] for key, flags in self.present.items()},
            None if self.row is None else self.row[rows],
            None if self.group is None else self.group[rows],
        )

    def split(self, parts: int) -> "list[Batch]":
        """As that many of nearly equal size, in order; fewer where it has fewer rows."""
        parts = max(1, min(parts, len(self)))
        if parts == 1:
            return [self]
        size, longer = divmod(len(self), parts)
        starts = [size * i + min(i, longer) for i in range(parts + 1)]
        return [self.take(slice(*ends)) for ends in itertools.pairwise(starts)]

    @staticmethod
    def concat(parts: "Sequence[Batch]") -> "Batch":
        """Batches of the same columns as one."""
        first = parts[0]
        flagged = {key for part in parts for key in part.present}
        return Batch(
            {key: torch.cat([part[key] for part in parts]) for key in first.columns},
            {
                key: torch.cat([part.presence(key) for part in parts])
                for key in first.columns
                if key in flagged
            },
            None
            if first.row is None
            else torch.cat([part.row for part in parts if part.row is not None]),
            None
            if first.group is None
            else torch.cat([p.group for p in parts if p.group is not None]),
        )

    def _first_tensor(self) -> Tensor | None:
        return next(self._iter_tensors(), None)

    def _iter_tensors(self) -> Iterator[Tensor]:
        yield from self.columns.values()
        yield from (found for found in (self.row, self.group) if found is not None)


class Order(Enum):
    """Turns so plain that they need no tensor, and so no mask."""

    CAUSAL = "causal"  # token i has turn i + 1


CAUSAL = Order.CAUSAL


@dataclass(frozen=True)
class Tokens:
    """A batch of sequences. i may see j when order[j] <= order[i] and j is valid."""

    x: Float[Tensor, "B T D"]  # what the tokens say
    pos: Float[Tensor, "B T 3"]  # where they are: (time, row, column)
    order: Int[Tensor, "B T"] | Order | None = None  # None: everyone sees everyone
    valid: Bool[Tensor, "B T"] | None = None  # True for a real token; None: all are real


def sequence_positions(x: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T 3"]:
    """Positions along time: start, start + 1, ...; row and column are 0."""
    pos = x.new_zeros(x.shape[1], 3, dtype=torch.float32)
    pos[:, 0] = torch.arange(start, start + x.shape[1], device=x.device)
    return pos.expand(x.shape[0], -1, -1)


def grid_positions(x: Float[Tensor, "B T D"], columns: int) -> Float[Tensor, "B T 3"]:
    """Positions in a picture read row by row, `columns` to a row; time is 0."""
    i = torch.arange(x.shape[1], device=x.device)
    pos = torch.stack([torch.zeros_like(i), i // columns, i % columns], -1).float()
    return pos.expand(x.shape[0], -1, -1)


def order_tensor(t: Tokens) -> Int[Tensor, "B T"]:
    """The order written out: 0 for all where everyone sees everyone, 1..T where it is causal."""
    if isinstance(t.order, Tensor):
        return t.order
    shape, device = t.x.shape[:2], t.x.device
    if t.order is None:
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.arange(1, shape[1] + 1, device=device).expand(shape)


def make_causal(t: Tokens, start: int = 1) -> Tokens:
    """Give each token its own turn, start, start + 1, ..., so that it sees only itself and what came before."""
    if start == 1:
        return replace(t, order=CAUSAL)
    return replace(
        t, order=torch.arange(start, start + t.x.shape[1], device=t.x.device).expand(t.x.shape[:2])
    )


def join(*parts: Tokens) -> Tokens:
    """Lay sequences end to end. Turns are kept as they are: whoever joins decides who sees whom."""
    if len(parts) == 1:
        return parts[0]
    free = all(p.order is None for p in parts)
    whole = all(p.valid is None for p in parts)
    return Tokens(
        torch.cat([p.x for p in parts], 1),
        torch.cat([p.pos for p in parts], 1),
        None if free else torch.cat([order_tensor(p) for p in parts], 1),
        None if whole else torch.cat([valid_mask(p) for p in parts], 1),
    )


def take_last(t: Tokens, n: int) -> Tokens:
    """The last n tokens of each sequence."""
    fields = ("x", "pos", "order", "valid")
    cut = {name: part[:, -n:] for name in fields if isinstance(part := getattr(t, name), Tensor)}
    if t.order is CAUSAL:
        cut["order"] = order_tensor(t)[:, -n:]
    return replace(t, **cut)


def take_rows(t: Tokens, rows: Int[Tensor, "C"]) -> Tokens:
    """These sequences of the batch, some perhaps twice."""
    fields = ("x", "pos", "order", "valid")
    return replace(
        t, **{name: part[rows] for name in fields if isinstance(part := getattr(t, name), Tensor)}
    )


def take_token(t: Tokens, index: Int[Tensor, "B"]) -> Tokens:
    """The token at place `at` of each sequence, alone."""
    rows = torch.arange(t.x.shape[0], device=t.x.device)
    return Tokens(t.x[rows, index][:, None], t.pos[rows, index][:, None])


def valid_mask(t: Tokens) -> Bool[Tensor, "B T"]:
    """`valid`, written out."""
    return (
        torch.ones(t.x.shape[:2], dtype=torch.bool, device=t.x.device)
        if t.valid is None
        else t.valid
    )


def valid_or_none(valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"] | None:
    """`valid`, or None where all are real; not asked in a graph, whose shapes must not hang on values."""
    return valid if torch.compiler.is_exporting() or not valid.all() else None


def attention_mask(
    q: Int[Tensor, "B T"], k: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None
) -> Bool[Tensor, "B 1 T S"]:
    """The only mask in the house: True where query i may see key j."""
    see = k[:, None, :] <= q[:, :, None]
    return (see if valid is None else see & valid[:, None, :])[:, None]


def context_mask(t: Tokens, context: Tokens) -> Bool[Tensor, "B 1 #T S"] | None:
    """Who may see what of a context; None where all of it is seen by all."""
    if context.order is None:  # turn 0: before everybody's
        return None if context.valid is None else context.valid[:, None, None]
    return attention_mask(order_tensor(t), order_tensor(context), context.valid)


def mean_pool(t: Tokens) -> Float[Tensor, "B D"]:
    """Mean over real tokens; zero where there are none."""
    real = valid_mask(t)[..., None].to(t.x.dtype)
    return (t.x * real).sum(1) / real.sum(1).clamp(min=1)


def l2_normalize(x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Vectors brought to length one, in float32."""
    return nn.functional.normalize(x.float(), dim=-1)
