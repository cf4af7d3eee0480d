"""A row of single values (numbers, categories, ranks, dates, sets of tags) → Tokens, one for each column.

    B batch   N numbers   F features   C columns   D width
"""
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.kernels import Linear, drawn
from sensorium.modalities.dates import FEATURES, Date
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number
from sensorium.modalities.tags import Tags
from sensorium.tokens import ColumnKey, Tokens, line

FAR = 10.0                                  # spreads beyond which a number is taken for that far


class Bins(nn.Module):
    """Numbers → vectors: how far each has come through each bin of its column, and how large it is.

    The piecewise linear code of Gorishniy et al. 2022: 1 for a bin that is passed, a part of 1 for the one it lies in.
    """

    def __init__(self, numbers: Sequence[Number], dim: int):
        super().__init__()
        edges = [np.array([(e - n.mean) / n.std for e in n.edges], np.float32) for n in numbers]
        bins = max([len(e) - 1 for e in edges if len(e) > 1], default=0)
        low, width, there = (np.full((len(numbers), bins), value, np.float32) for value in (0, 1, 0))
        for i, e in enumerate(edges):
            if len(e) > 1:
                low[i, :len(e) - 1], width[i, :len(e) - 1], there[i, :len(e) - 1] = e[:-1], np.diff(e), 1
        for name, values in (("low", low), ("width", width), ("there", there)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.weight = drawn(len(numbers), bins + 1, dim, std=(bins + 1) ** -0.5)
        self.bias = drawn(len(numbers), dim, std=0.5)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        low, width, there = (self.get_buffer(name) for name in ("low", "width", "there"))
        come = ((x[..., None] - low) / width).clamp(0, 1) * there
        features = torch.cat([come, x.clamp(-FAR, FAR)[..., None]], -1)
        return torch.einsum("bnf,nfd->bnd", features, self.weight) + self.bias


class Named(nn.Embedding):
    """Classes → vectors, one more for a class never seen."""

    def __init__(self, category: Category, dim: int):
        super().__init__(len(category.classes) + 1, dim)
        nn.init.normal_(self.weight, std=0.5)


class Moment(Linear):
    """Dates → vectors."""

    def __init__(self, moment: Date, dim: int):
        super().__init__(FEATURES, dim)


class Several(nn.Module):
    """Sets of tags → vectors: the sum of their tags' own, as long as one of them."""

    def __init__(self, tags: Tags, dim: int):
        super().__init__()
        self.linear = Linear(len(tags.tags) + 1, dim)
        nn.init.normal_(self.linear.weight, std=0.5)

    def forward(self, x: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        return self.linear(x / x.sum(1, keepdim=True).clamp(min=1).sqrt())


EMBEDS: dict[str, Callable[..., nn.Module]] = {
    "category": Named, "ordinal": Named, "date": Moment, "set": Several}
KINDS = ("number", *EMBEDS)                 # that are single values


class Row(nn.Module):
    """The columns given → Tokens, each valid where its value is there; and one vector of them all, if `hidden`."""

    def __init__(self, columns: Mapping[str, Modality], dim: int, hidden: int = 0, dropout: float = 0.0):
        super().__init__()
        self.dim = dim
        self.numbers = [name for name, m in columns.items() if isinstance(m, Number)]
        self.others = [name for name in columns if name not in self.numbers]
        self.columns = [*self.numbers, *self.others]
        self.bins = Bins([m for m in columns.values() if isinstance(m, Number)], dim) if self.numbers else None
        self.embeds = nn.ModuleList(EMBEDS[columns[name].kind](columns[name], dim) for name in self.others)
        self.absent = nn.Parameter(torch.zeros(len(columns), dim)) if hidden else None
        self.whole = nn.Sequential(Linear(len(columns) * dim, hidden), nn.GELU(), nn.Dropout(dropout),
                                   Linear(hidden, dim)) if hidden else None

    def forward(self, given: Mapping[ColumnKey, Tensor], there: Bool[Tensor, "B C"]) -> Tokens:
        """Tokens in the order of `columns`, which is that of `there`; a column not given has none that is valid."""
        x = []
        if self.bins is not None:
            zero = there.new_zeros(there.shape[0], dtype=torch.float32)
            x.append(self.bins(torch.stack([given.get(name, zero) for name in self.numbers], 1)))
        for name, embed in zip(self.others, self.embeds, strict=True):
            nothing = there.new_zeros(there.shape[0], self.dim, dtype=torch.float32)
            x.append((embed(given[name]) if name in given else nothing)[:, None])
        joined = torch.cat([part.float() for part in x], 1).masked_fill(~there[..., None], 0)
        return Tokens(joined, line(joined), None, there)

    def vector(self, t: Tokens) -> Float[Tensor, "B D"]:
        """All of a row as one; what is missing has a learned vector of its own."""
        assert self.whole is not None and self.absent is not None and t.valid is not None
        return self.whole(torch.where(t.valid[..., None], t.x, self.absent).flatten(1))
