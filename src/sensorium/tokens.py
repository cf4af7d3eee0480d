"""The one thing every room hands to the next: a batch of token sequences, and who in it may look at whom.

    B batch   T tokens   S context tokens   D width
"""
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Order(Enum):
    """Turns so plain that they need no tensor, and so no mask."""

    CAUSAL = "causal"       # token i has turn i + 1


CAUSAL = Order.CAUSAL


@dataclass(frozen=True)
class Tokens:
    """A batch of sequences. i may see j when order[j] <= order[i] and j is valid."""

    x: Float[Tensor, "B T D"]                           # what the tokens say
    pos: Float[Tensor, "B T 3"]                         # where they are: (time, row, column)
    order: Int[Tensor, "B T"] | Order | None = None     # None: everyone sees everyone
    valid: Bool[Tensor, "B T"] | None = None            # True for a real token; None: all are real


def line(x: Float[Tensor, "B T D"], start: int = 0) -> Float[Tensor, "B T 3"]:
    """Positions along time: start, start + 1, ...; row and column are 0."""
    pos = x.new_zeros(x.shape[1], 3, dtype=torch.float32)
    pos[:, 0] = torch.arange(start, start + x.shape[1], device=x.device)
    return pos.expand(x.shape[0], -1, -1)


def grid(x: Float[Tensor, "B T D"], columns: int) -> Float[Tensor, "B T 3"]:
    """Positions in a picture read row by row, `columns` to a row; time is 0."""
    i = torch.arange(x.shape[1], device=x.device)
    pos = torch.stack([torch.zeros_like(i), i // columns, i % columns], -1).float()
    return pos.expand(x.shape[0], -1, -1)


def turns(t: Tokens) -> Int[Tensor, "B T"]:
    """The order written out: 0 for all where everyone sees everyone, 1..T where it is causal."""
    if isinstance(t.order, Tensor):
        return t.order
    shape, device = t.x.shape[:2], t.x.device
    if t.order is None:
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.arange(1, shape[1] + 1, device=device).expand(shape)


def causal(t: Tokens, start: int = 1) -> Tokens:
    """Give each token its own turn, start, start + 1, ..., so that it sees only itself and what came before."""
    if start == 1:
        return replace(t, order=CAUSAL)
    return replace(t, order=torch.arange(start, start + t.x.shape[1], device=t.x.device).expand(t.x.shape[:2]))


def join(*parts: Tokens) -> Tokens:
    """Lay sequences end to end. Turns are kept as they are: whoever joins decides who sees whom."""
    if len(parts) == 1:
        return parts[0]
    free = all(p.order is None for p in parts)
    whole = all(p.valid is None for p in parts)
    return Tokens(
        torch.cat([p.x for p in parts], 1),
        torch.cat([p.pos for p in parts], 1),
        None if free else torch.cat([turns(p) for p in parts], 1),
        None if whole else torch.cat([present(p) for p in parts], 1))


def last(t: Tokens, n: int) -> Tokens:
    """The last n tokens of each sequence."""
    fields = ("x", "pos", "order", "valid")
    cut = {name: part[:, -n:] for name in fields if isinstance(part := getattr(t, name), Tensor)}
    if t.order is CAUSAL:
        cut["order"] = turns(t)[:, -n:]
    return replace(t, **cut)


def chosen(t: Tokens, rows: Int[Tensor, "C"]) -> Tokens:
    """These sequences of the batch, some perhaps twice."""
    fields = ("x", "pos", "order", "valid")
    return replace(t, **{name: part[rows] for name in fields if isinstance(part := getattr(t, name), Tensor)})


def at_place(t: Tokens, at: Int[Tensor, "B"]) -> Tokens:
    """The token at place `at` of each sequence, alone."""
    rows = torch.arange(t.x.shape[0], device=t.x.device)
    return Tokens(t.x[rows, at][:, None], t.pos[rows, at][:, None])


def present(t: Tokens) -> Bool[Tensor, "B T"]:
    """`valid`, written out."""
    return torch.ones(t.x.shape[:2], dtype=torch.bool, device=t.x.device) if t.valid is None else t.valid


def unless_whole(valid: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"] | None:
    """`valid`, or None where all are real; not asked in a graph, whose shapes must not hang on values."""
    return valid if torch.compiler.is_exporting() or not valid.all() else None


def may_see(q: Int[Tensor, "B T"], k: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None) -> Bool[Tensor, "B 1 T S"]:
    """The only mask in the house: True where query i may see key j."""
    see = k[:, None, :] <= q[:, :, None]
    return (see if valid is None else see & valid[:, None, :])[:, None]


def glance(t: Tokens, context: Tokens) -> Bool[Tensor, "B 1 #T S"] | None:
    """Who may see what of a context; None where all of it is seen by all."""
    if context.order is None:                                           # turn 0: before everybody's
        return None if context.valid is None else context.valid[:, None, None]
    return may_see(turns(t), turns(context), context.valid)
