"""The model that answers from any columns, with any of them missing: senses → one vector → a head for each target.

    B batch   C columns   T tokens   D width   K numbers that a head says
"""
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.align import MultiscaleAlign
from sensorium.calibrate import Calibration
from sensorium.kernels import Linear
from sensorium.modalities.row import Row
from sensorium.models import Encoder, mean
from sensorium.tokens import Batch, ColumnKey, Tokens, join, line, present
from sensorium.transformer import FeedForward

ROW: ColumnKey = ()                         # the part that all single values make together: the key of no column


class Sense(nn.Module):
    """One column's encoder, and the way from its width into that of the fusion."""

    def __init__(self, encode: Encoder, align: nn.Module):
        super().__init__()
        self.encode, self.align = encode, align

    def forward(self, raw: Tensor, tokens: bool) -> Tokens:
        """All tokens, or one for the whole; where the alignment is multi-scale both."""
        if isinstance(self.align, MultiscaleAlign):
            whole, t = self.encode.parts(raw)
            parts, whole = replace(t, x=self.align.part(t.x)), self.align(whole)
            if tokens:
                return join(alone(whole), replace(parts, order=None))
            return alone(whole + mean(parts))
        if not tokens:
            return alone(self.align(self.encode.whole(raw)))
        t = self.encode(raw)
        return replace(t, x=self.align(t.x))


class Head(nn.Module):
    """What is said of one target. Where nothing is known of a row, `prior` is said; learning starts from it too."""

    def __init__(self, dim: int, prior: Float[Tensor, "K"], dropout: float):
        super().__init__()
        self.drop, self.linear = nn.Dropout(dropout), Linear(dim, len(prior))
        nn.init.normal_(self.linear.weight, std=0.1 * dim ** -0.5)
        with torch.no_grad():
            self.linear.bias.copy_(prior)
        self.register_buffer("prior", prior)

    def forward(self, x: Float[Tensor, "B D"], known: Bool[Tensor, "B"]) -> Float[Tensor, "B K"]:
        return torch.where(known[:, None], self.linear(self.drop(x)).float(), self.get_buffer("prior"))


class Fused(nn.Module):
    """Columns, some perhaps missing in a row or in all of them, → what is said of each target.

    senses: column → Sense. row: reads all columns of single values. fuse: one of `fusion.FUSIONS`. drop: while
    training, the share of rows of which some values are hidden, be it few or all but one (`hidden`). straight:
    heads also hear what was fused as it is, whose length says how much is known of a row. `boosted`: a
    second head of each target, or none; it is grown after the training and adds to what the linear one says.
    """

    def __init__(self, senses: Mapping[str, Sense], row: Row | None, fuse: nn.Module, heads: Mapping[str, Head], *,
                 dim: int, drop: float = 0.0, straight: bool = False):
        super().__init__()
        self.columns = [*senses, *(row.columns if row else [])]
        self.targets, self.names, self.drop, self.straight = list(heads), list(senses), drop, straight
        self.senses, self.row, self.fuse = nn.ModuleList(senses.values()), row, fuse
        self.norm, self.mlp, self.last = nn.LayerNorm(dim), FeedForward(dim, 2 * dim), nn.LayerNorm(dim)
        self.heads = nn.ModuleList(heads.values())
        self.calibrations = nn.ModuleList(Calibration() for _ in heads)
        self.boosted = nn.ModuleList()

    def forward(self, given: Batch) -> dict[str, Float[Tensor, "B K"]]:
        parts = self.read(given)
        if self.training or not self.boosted or not parts:
            return self.answer(parts, given.rows)
        x, known = self.whole(parts)
        there = dict(zip(self.columns, self.there(given).unbind(1), strict=True))
        return {name: torch.where(known[:, None], second(said, given.columns, there, x), said)
                for (name, said), second in zip(self.heard(x, known).items(), self.boosted, strict=True)}

    def read(self, given: Batch) -> dict[ColumnKey, Tokens]:
        """The parts of which something is there: a column of its own each, and ROW."""
        there = self.there(given)
        if self.training and self.drop:
            there = hidden(there, self.drop)
        parts: dict[ColumnKey, Tokens] = {}
        for i, (name, sense) in enumerate(zip(self.names, self.senses, strict=True)):
            if name in given and _some(there[:, i]):
                parts[name] = _spread(sense, given[name], there[:, i], bool(self.fuse.tokens))
        if self.row is not None and _some(there[:, len(self.names):]):
            t = self.row(given.columns, there[:, len(self.names):])
            parts[ROW] = t if self.fuse.tokens else Tokens(self.row.vector(t)[:, None], t.pos[:, :1], None,
                                                           present(t).any(1, keepdim=True))
        return parts

    def answer(self, parts: Mapping[ColumnKey, Tokens], rows: int) -> dict[str, Float[Tensor, "B K"]]:
        """What is said of each target, from what was read of so many rows."""
        if not parts:
            return {name: head.get_buffer("prior").expand(rows, -1)
                    for name, head in zip(self.targets, self.heads, strict=True)}
        return self.heard(*self.whole(parts))

    def heard(self, x: Float[Tensor, "B D"], known: Bool[Tensor, "B"]) -> dict[str, Float[Tensor, "B K"]]:
        """What the linear heads say of each target."""
        return {name: head(x, known) for name, head in zip(self.targets, self.heads, strict=True)}

    def whole(self, parts: Mapping[ColumnKey, Tokens]) -> tuple[Float[Tensor, "B D"], Bool[Tensor, "B"]]:
        """(all parts as one vector, whether a row has any)."""
        x = self.fuse(parts)
        said = self.last(x + self.mlp(self.norm(x)))
        return said + x if self.straight else said, torch.stack([present(t).any(1) for t in parts.values()]).any(0)

    def calibration(self, target: str) -> Calibration:
        """How what is said of a target is to be read."""
        found = self.calibrations[self.targets.index(target)]
        assert isinstance(found, Calibration)
        return found

    def there(self, given: Batch) -> Bool[Tensor, "B C"]:
        """Which value of which column is there."""
        return torch.stack([given.there(name) for name in self.columns], 1)


def hidden(there: Bool[Tensor, "B C"], rows: float) -> Bool[Tensor, "B C"]:
    """Of such a share of rows values hidden by chance: of each row another share, drawn evenly from 0 to 1.

    So rows with few and rows with most of their values missing are learned alike, and the others as they are. Of every
    row that has any value one is kept, whatever falls.
    """
    chance = torch.rand(len(there), 1, device=there.device)
    share = chance.where(torch.rand_like(chance) < rows, 0.0)
    drawn = torch.rand(there.shape, device=there.device).masked_fill(~there, -1)
    return there & ((drawn >= share) | (drawn == drawn.amax(1, keepdim=True)))


def alone(x: Float[Tensor, "B D"]) -> Tokens:
    """One token a row."""
    return Tokens(x[:, None], line(x[:, None]))


def _some(there: Bool[Tensor, "*rows"]) -> bool:
    """Whether any value is there: a graph is made for values that are."""
    return torch.compiler.is_exporting() or bool(there.any())


def _spread(sense: nn.Module, raw: Tensor, there: Bool[Tensor, "B"], tokens: bool) -> Tokens:
    """What a sense makes of the rows that have its value; the others have no valid token, and cost nothing."""
    if torch.compiler.is_exporting():                   # a graph reads all, and leaves out what is not there
        t = sense(raw.where(there.view(-1, *[1] * (raw.dim() - 1)), 0), tokens)
        return replace(t, order=None, valid=present(t) & there[:, None])
    if there.all():
        return sense(raw, tokens)
    rows = there.nonzero().squeeze(1)
    t = sense(raw[rows], tokens)
    whole = (len(there), *t.x.shape[1:])
    return Tokens(t.x.new_zeros(whole).index_copy(0, rows, t.x), t.pos.new_zeros(*whole[:2], 3),
                  None, present(t).new_zeros(whole[:2]).index_copy(0, rows, present(t)))

