"""A row of single values (numbers, categories, ranks, dates, sets of tags) → Tokens, one for each column.

B batch   N numbers   F features   C columns   D width
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import NUM_FEATURES, Datetime
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.tokens import ColumnKey, Tokens, sequence_positions

MAX_ZSCORE = 10.0  # spreads beyond which a number is taken for that far


class PiecewiseLinearEmbedding(nn.Module):
    """Numbers → vectors: how far each has come through each bin of its column, and how large it is.

    The piecewise linear code of Gorishniy et al. 2022: 1 for a bin that is passed, a part of 1 for the one it lies in.
    """

    def __init__(self, columns: Sequence[Numeric], dim: int):
        super().__init__()
        edges = [np.array([(e - n.mean) / n.std for e in n.edges], np.float32) for n in columns]
        bins = max([len(e) - 1 for e in edges if len(e) > 1], default=0)
        low, width, there = (
            np.full((len(columns), bins), value, np.float32) for value in (0, 1, 0)
        )
        for i, e in enumerate(edges):
            if len(e) > 1:
                low[i, : len(e) - 1], width[i, : len(e) - 1], there[i, : len(e) - 1] = (
                    e[:-1],
                    np.diff(e),
                    1,
                )
        for name, values in (("low", low), ("width", width), ("mask", there)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.weight = normal_parameter(len(columns), bins + 1, dim, std=(bins + 1) ** -0.5)
        self.bias = normal_parameter(len(columns), dim, std=0.5)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        low, width, there = (self.get_buffer(name) for name in ("low", "width", "mask"))
        come = ((x[..., None] - low) / width).clamp(0, 1) * there
        features = torch.cat([come, x.clamp(-MAX_ZSCORE, MAX_ZSCORE)[..., None]], -1)
        return torch.einsum("bnf,nfd->bnd", features, self.weight) + self.bias


class CategoryEmbedding(nn.Embedding):
    """Classes → vectors, one more for a class never seen."""

    def __init__(self, category: Category, dim: int):
        super().__init__(len(category.classes) + 1, dim)
        nn.init.normal_(self.weight, std=0.5)


class DateEmbedding(Linear):
    """Dates → vectors."""

    def __init__(self, column: Datetime, dim: int):
        super().__init__(NUM_FEATURES, dim)


class MultiHotEmbedding(nn.Module):
    """Sets of tags → vectors: the sum of their tags' own, as long as one of them."""

    def __init__(self, tags: Multilabel, dim: int):
        super().__init__()
        self.projection = Linear(len(tags.tags) + 1, dim)
        nn.init.normal_(self.projection.weight, std=0.5)

    def forward(self, x: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        return self.projection(x / x.sum(1, keepdim=True).clamp(min=1).sqrt())


EMBEDDINGS: dict[str, Callable[..., nn.Module]] = {
    "category": CategoryEmbedding,
    "ordinal": CategoryEmbedding,
    "datetime": DateEmbedding,
    "multilabel": MultiHotEmbedding,
}
SCALAR_KINDS = ("numeric", *EMBEDDINGS)  # that are single values


class TabularEmbedding(nn.Module):
    """The columns given → Tokens, each valid where its value is there; and one vector of them all, if `hidden`."""

    def __init__(
        self, columns: Mapping[str, Modality], dim: int, hidden_dim: int = 0, dropout: float = 0.0
    ):
        super().__init__()
        self.dim = dim
        self.numeric_columns = [name for name, m in columns.items() if isinstance(m, Numeric)]
        self.other_columns = [name for name in columns if name not in self.numeric_columns]
        self.columns = [*self.numeric_columns, *self.other_columns]
        self.numeric_embedding = (
            PiecewiseLinearEmbedding([m for m in columns.values() if isinstance(m, Numeric)], dim)
            if self.numeric_columns
            else None
        )
        self.embeddings = nn.ModuleList(
            EMBEDDINGS[columns[name].kind](columns[name], dim) for name in self.other_columns
        )
        self.missing_embedding = (
            nn.Parameter(torch.zeros(len(columns), dim)) if hidden_dim else None
        )
        self.mlp = (
            nn.Sequential(
                Linear(len(columns) * dim, hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                Linear(hidden_dim, dim),
            )
            if hidden_dim
            else None
        )

    def forward(self, values: Mapping[ColumnKey, Tensor], present: Bool[Tensor, "B C"]) -> Tokens:
        """Tokens in the order of `columns`, which is that of `there`; a column not given has none that is valid."""
        x = []
        if self.numeric_embedding is not None:
            zero = present.new_zeros(present.shape[0], dtype=torch.float32)
            x.append(
                self.numeric_embedding(
                    torch.stack([values.get(name, zero) for name in self.numeric_columns], 1)
                )
            )
        for name, embed in zip(self.other_columns, self.embeddings, strict=True):
            nothing = present.new_zeros(present.shape[0], self.dim, dtype=torch.float32)
            x.append((embed(values[name]) if name in values else nothing)[:, None])
        joined = torch.cat([part.float() for part in x], 1).masked_fill(~present[..., None], 0)
        return Tokens(joined, sequence_positions(joined), None, present)

    def pooled(self, t: Tokens) -> Float[Tensor, "B D"]:
        """All of a row as one; what is missing has a learned vector of its own."""
        assert self.mlp is not None
        assert self.missing_embedding is not None
        assert t.valid is not None
        return self.mlp(torch.where(t.valid[..., None], t.x, self.missing_embedding).flatten(1))
