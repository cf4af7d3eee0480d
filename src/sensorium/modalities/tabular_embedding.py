"""Embedding of scalar columns (numbers, categories, dates, tag sets): one token per column.

B batch   N numeric columns   F features   K tags   C columns   D width
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
from sensorium.nn.tokens import ColumnKey, Tokens, sequence_positions, valid_mask

MAX_ZSCORE = 10.0  # standardized numbers are clipped to ±MAX_ZSCORE


class PiecewiseLinearEmbedding(nn.Module):
    """Piecewise linear encoding of numbers, then a linear layer per column (Gorishniy et al. 2022).

    The encoding has an entry for each quantile bin: 1 above the bin, 0 below, in between its
    relative position within the bin. The standardized value itself is appended.

    Args:
        columns: Settings of the N columns.
        dim: D.
    """

    def __init__(self, columns: Sequence[Numeric], dim: int):
        super().__init__()
        edges = [
            np.array([(edge - column.mean) / column.std for edge in column.edges], np.float32)
            for column in columns
        ]
        num_bins = max([len(e) - 1 for e in edges if len(e) > 1], default=0)
        shape = (len(columns), num_bins)
        low = np.full(shape, 0, np.float32)
        width = np.full(shape, 1, np.float32)
        mask = np.full(shape, 0, np.float32)
        for i, column_edges in enumerate(edges):
            n = len(column_edges) - 1
            if n > 0:
                low[i, :n] = column_edges[:-1]
                width[i, :n] = np.diff(column_edges)
                mask[i, :n] = 1
        self.register_buffer("low", torch.tensor(low), persistent=False)
        self.register_buffer("width", torch.tensor(width), persistent=False)
        self.register_buffer("mask", torch.tensor(mask), persistent=False)
        num_features = num_bins + 1
        self.weight = normal_parameter(len(columns), num_features, dim, std=num_features**-0.5)
        self.bias = normal_parameter(len(columns), dim, std=0.5)

    def forward(self, x: Float[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Embed standardized numbers."""
        low = self.get_buffer("low")
        width = self.get_buffer("width")
        encoding = ((x[..., None] - low) / width).clamp(0, 1) * self.get_buffer("mask")
        clipped = x.clamp(-MAX_ZSCORE, MAX_ZSCORE)[..., None]
        features = torch.cat([encoding, clipped], -1)
        return torch.einsum("bnf,nfd->bnd", features, self.weight) + self.bias


class CategoryEmbedding(nn.Embedding):
    """A vector per class, and one for all unseen classes.

    Args:
        category: Settings of the column.
        dim: D.
    """

    def __init__(self, category: Category, dim: int):
        super().__init__(len(category.classes) + 1, dim)
        nn.init.normal_(self.weight, std=0.5)


class DateEmbedding(Linear):
    """A linear embedding of the features of dates.

    Args:
        column: Settings of the column.
        dim: D.
    """

    def __init__(self, column: Datetime, dim: int):  # noqa: ARG002 - signature of EMBEDDINGS
        super().__init__(NUM_FEATURES, dim)


class MultiHotEmbedding(nn.Module):
    """The sum of the vectors of all tags, divided by the square root of their number.

    Args:
        multilabel: Settings of the column.
        dim: D.
    """

    def __init__(self, multilabel: Multilabel, dim: int):
        super().__init__()
        self.projection = Linear(len(multilabel.tags) + 1, dim)
        nn.init.normal_(self.projection.weight, std=0.5)

    def forward(self, x: Float[Tensor, "B K"]) -> Float[Tensor, "B D"]:
        """Embed multi-hot vectors."""
        return self.projection(x / x.sum(1, keepdim=True).clamp(min=1).sqrt())


EMBEDDINGS: dict[str, Callable[..., nn.Module]] = {
    "category": CategoryEmbedding,
    "ordinal": CategoryEmbedding,
    "datetime": DateEmbedding,
    "multilabel": MultiHotEmbedding,
}
SCALAR_KINDS = ("numeric", *EMBEDDINGS)


class TabularEmbedding(nn.Module):
    """Embeds scalar columns as one token each, and optionally all of them as one vector.

    Args:
        columns: Settings of each column.
        dim: D.
        hidden_dim: Hidden width of the MLP that pools all tokens; 0 for no pooling.
        dropout: Dropout probability in that MLP.

    Attributes:
        columns: Names of all columns in token order: numeric ones first.
    """

    def __init__(
        self, columns: Mapping[str, Modality], dim: int, hidden_dim: int = 0, dropout: float = 0.0
    ):
        super().__init__()
        self.dim = dim
        numeric = {name: m for name, m in columns.items() if isinstance(m, Numeric)}
        self.numeric_columns = list(numeric)
        self.other_columns = [name for name in columns if name not in numeric]
        self.columns = [*self.numeric_columns, *self.other_columns]
        self.numeric_embedding = (
            PiecewiseLinearEmbedding(list(numeric.values()), dim) if numeric else None
        )
        self.embeddings = nn.ModuleList(
            EMBEDDINGS[columns[name].kind](columns[name], dim) for name in self.other_columns
        )
        self.missing_embedding = None
        self.mlp = None
        if hidden_dim:
            self.missing_embedding = nn.Parameter(torch.zeros(len(columns), dim))
            self.mlp = nn.Sequential(
                Linear(len(columns) * dim, hidden_dim),
                nn.GELU(),
                nn.Dropout(dropout),
                Linear(hidden_dim, dim),
            )

    def forward(self, values: Mapping[ColumnKey, Tensor], present: Bool[Tensor, "B C"]) -> Tokens:
        """Return one token per column, valid where the column has a value.

        Args:
            values: The collated columns of a batch; columns may be absent.
            present: Which values exist, in the order of `columns`.
        """
        batch_size = present.shape[0]
        embedded: list[Tensor] = []
        if self.numeric_embedding is not None:
            zero = present.new_zeros(batch_size, dtype=torch.float32)
            numbers = torch.stack([values.get(name, zero) for name in self.numeric_columns], 1)
            embedded.append(self.numeric_embedding(numbers))
        for name, embed in zip(self.other_columns, self.embeddings, strict=True):
            if name in values:
                vector = embed(values[name])
            else:
                vector = present.new_zeros(batch_size, self.dim, dtype=torch.float32)
            embedded.append(vector[:, None])
        x = torch.cat([part.float() for part in embedded], 1).masked_fill(~present[..., None], 0)
        return Tokens(x, sequence_positions(x), None, present)

    def pooled(self, t: Tokens) -> Float[Tensor, "B D"]:
        """Return one vector per row; a missing value is a learned vector of its column.

        Raises:
            RuntimeError: If `hidden_dim` is 0.
        """
        if self.mlp is None or self.missing_embedding is None:
            raise RuntimeError("This TabularEmbedding cannot pool: it was built with hidden_dim=0.")
        x = torch.where(valid_mask(t)[..., None], t.x, self.missing_embedding)
        return self.mlp(x.flatten(1))
