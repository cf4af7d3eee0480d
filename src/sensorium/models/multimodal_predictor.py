"""A model that predicts targets from any columns, of which any may be missing.

Column encoders → fusion into one vector → a head per target.

B batch   C columns   T tokens   D width   K outputs of a head
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.modalities.tabular_embedding import TabularEmbedding
from sensorium.models.calibration import Calibration
from sensorium.models.towers import Encoder
from sensorium.nn.linear import Linear
from sensorium.nn.projection import TokenAndGlobalProjection
from sensorium.nn.tokens import (
    Batch,
    ColumnKey,
    Tokens,
    join,
    mean_pool,
    sequence_positions,
    valid_mask,
)
from sensorium.nn.transformer import FeedForward

if TYPE_CHECKING:
    from sensorium.models.blended_heads import BlendedHeads

TABULAR_PART: ColumnKey = ()  # key of the part that holds all scalar columns


class ColumnEncoder(nn.Module):
    """The encoder of one column and the projection from its width to that of the fusion.

    Args:
        encoder: The column's encoder.
        projection: Maps the encoder's width to D.
    """

    def __init__(self, encoder: Encoder, projection: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.projection = projection

    def forward(self, raw: Tensor, return_tokens: bool) -> Tokens:
        """Return all tokens or one pooled token; a multi-scale projection uses both."""
        if isinstance(self.projection, TokenAndGlobalProjection):
            return self._forward_multiscale(self.projection, raw, return_tokens)
        if not return_tokens:
            return single_token(self.projection(self.encoder.pooled(raw)))
        t: Tokens = self.encoder(raw)
        return replace(t, x=self.projection(t.x))

    def _forward_multiscale(
        self, projection: TokenAndGlobalProjection, raw: Tensor, return_tokens: bool
    ) -> Tokens:
        """Return the pooled token followed by all tokens, or the sum of pooled and mean token."""
        pooled, t = self.encoder.pooled_and_tokens(raw)
        tokens = replace(t, x=projection.token_projection(t.x))
        pooled = projection(pooled)
        if return_tokens:
            return join(single_token(pooled), replace(tokens, order=None))
        return single_token(pooled + mean_pool(tokens))


class Head(nn.Module):
    """A linear output head that starts from, and falls back to, the target's prior.

    Args:
        dim: D.
        prior: Output for rows without any value; also the initial bias.
        dropout: Dropout probability of the input.

    Attributes:
        fitted_buffers: buffers that come from the data, not from training.
    """

    fitted_buffers = ("prior",)

    def __init__(self, dim: int, prior: Float[Tensor, "K"], dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = Linear(dim, len(prior))
        nn.init.normal_(self.linear.weight, std=0.1 * dim**-0.5)
        with torch.no_grad():
            self.linear.bias.copy_(prior)
        self.register_buffer("prior", prior)

    def forward(
        self, x: Float[Tensor, "B D"], has_values: Bool[Tensor, "B"]
    ) -> Float[Tensor, "B K"]:
        """Return the outputs, or the prior for rows without any value."""
        logits = self.linear(self.dropout(x)).float()
        return torch.where(has_values[:, None], logits, self.get_buffer("prior"))


class MultimodalPredictor(nn.Module):
    """Fuses any columns into one vector and predicts each target from it.

    A recipe may add parts beside the network, such as a linear model (`blended`), which are fitted
    after training.

    Args:
        encoders: The encoder of each column that has one of its own.
        tabular: The embedding of all scalar columns; None without scalar columns.
        fusion: One of `nn.fusion.FUSIONS`.
        heads: The linear head of each target.
        dim: D.
        modality_dropout: Share of training rows of which some values are hidden, from a few to all
            but one (`drop_values`).
        residual: Add the unnormalized fused vector to the heads' input; its norm reflects how
            many values a row has.
    """

    def __init__(
        self,
        encoders: Mapping[str, ColumnEncoder],
        tabular: TabularEmbedding | None,
        fusion: nn.Module,
        heads: Mapping[str, Head],
        *,
        dim: int,
        modality_dropout: float = 0.0,
        residual: bool = False,
    ):
        super().__init__()
        self.columns = [*encoders, *(tabular.columns if tabular else [])]
        self.targets = list(heads)
        self.encoder_columns = list(encoders)
        self.modality_dropout = modality_dropout
        self.residual = residual
        self.encoders = nn.ModuleList(encoders.values())
        self.tabular = tabular
        self.fusion = fusion
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 2 * dim)
        self.final_norm = nn.LayerNorm(dim)
        self.heads = nn.ModuleList(heads.values())
        self.calibrations = nn.ModuleList(Calibration() for _ in heads)
        self.blended: BlendedHeads | None = None

    def forward(self, inputs: Batch) -> dict[str, Float[Tensor, "B K"]]:
        """Return the outputs for each target; outside training, those of all parts together."""
        parts = self.encode_inputs(inputs)
        if self.training or self.blended is None or not parts:
            return self.predict_targets(parts, inputs.rows)
        x, has_values = self.fuse_parts(parts)
        logits = self.head_logits(x, has_values)
        blended = self.blended(logits, inputs.columns, self.presence(inputs), x)
        return {
            name: torch.where(has_values[:, None], blended[name], logits[name])
            for name in self.targets
        }

    def predict_parts(self, inputs: Batch) -> dict[str, list[Float[Tensor, "B K"]]]:
        """Return the outputs of the network, of the linear model and of the trees by target.

        Raises:
            ValueError: If the model has no such parts.
        """
        if self.blended is None:
            raise ValueError("The model has no parts beside the network.")
        present = self.presence(inputs)
        parts = self.encode_inputs(inputs)
        logits = self.predict_targets(parts, inputs.rows)
        if parts:
            fused, _ = self.fuse_parts(parts)
        else:
            fused = self.norm.weight.new_zeros(inputs.rows, len(self.norm.weight))
        return self.blended.predict_parts(logits, inputs.columns, present, fused)

    @property
    def is_blended(self) -> bool:
        """Whether another part than the network has a weight."""
        return self.blended is not None and self.blended.is_used

    def without_blend(self) -> "MultimodalPredictor":
        """Return a copy that is the network alone."""
        network = copy.deepcopy(self)
        network.blended = None
        return network

    def encode_inputs(self, inputs: Batch) -> dict[ColumnKey, Tokens]:
        """Return the tokens of each column, and of TABULAR_PART, that any row has a value of."""
        present = self.presence(inputs)
        if self.training and self.modality_dropout:
            present = drop_values(present, self.modality_dropout)
        uses_tokens = bool(self.fusion.uses_tokens)
        parts: dict[ColumnKey, Tokens] = {}
        for i, (name, encoder) in enumerate(zip(self.encoder_columns, self.encoders, strict=True)):
            if name in inputs and _has_any(present[:, i]):
                parts[name] = _encode_present(encoder, inputs[name], present[:, i], uses_tokens)
        scalar_present = present[:, len(self.encoder_columns) :]
        if self.tabular is not None and _has_any(scalar_present):
            t = self.tabular(inputs.columns, scalar_present)
            parts[TABULAR_PART] = t if uses_tokens else _pool_tabular(self.tabular, t)
        return parts

    def predict_targets(
        self, parts: Mapping[ColumnKey, Tokens], num_rows: int
    ) -> dict[str, Float[Tensor, "B K"]]:
        """Return the linear heads' outputs for each target from the encoded parts of a batch."""
        if not parts:
            return {
                name: head.get_buffer("prior").expand(num_rows, -1)
                for name, head in zip(self.targets, self.heads, strict=True)
            }
        return self.head_logits(*self.fuse_parts(parts))

    def head_logits(
        self, x: Float[Tensor, "B D"], has_values: Bool[Tensor, "B"]
    ) -> dict[str, Float[Tensor, "B K"]]:
        """Return the linear heads' outputs for each target from the fused vectors."""
        return {
            name: head(x, has_values) for name, head in zip(self.targets, self.heads, strict=True)
        }

    def fuse_parts(
        self, parts: Mapping[ColumnKey, Tokens]
    ) -> tuple[Float[Tensor, "B D"], Bool[Tensor, "B"]]:
        """Return the fused vector of each row, and whether the row has any value."""
        x = self.fusion(parts)
        output = self.final_norm(x + self.mlp(self.norm(x)))
        has_values = torch.stack([valid_mask(t).any(1) for t in parts.values()]).any(0)
        return output + x if self.residual else output, has_values

    def get_calibration(self, target: str) -> Calibration:
        """Return the calibration of a target's outputs."""
        return cast("Calibration", self.calibrations[self.targets.index(target)])

    def presence(self, inputs: Batch) -> Bool[Tensor, "B C"]:
        """Return which column has a value in which row."""
        return torch.stack([inputs.presence(name) for name in self.columns], 1)


def drop_values(present: Bool[Tensor, "B C"], row_share: float) -> Bool[Tensor, "B C"]:
    """Hide values at random in a share of the rows (modality dropout).

    Each such row hides every value with its own probability, uniform in 0 to 1, so that rows with
    few and with many missing values are trained on alike. At least one value of a row stays.

    Args:
        present: Which values exist.
        row_share: Probability that a row hides values.
    """
    row_probability = torch.rand(len(present), 1, device=present.device)
    selected = torch.rand_like(row_probability) < row_share
    drop_probability = row_probability.where(selected, 0.0)
    noise = torch.rand(present.shape, device=present.device).masked_fill(~present, -1)
    return present & ((noise >= drop_probability) | (noise == noise.amax(1, keepdim=True)))


def single_token(x: Float[Tensor, "B D"]) -> Tokens:
    """Return vectors as sequences of one token."""
    return Tokens(x[:, None], sequence_positions(x[:, None]))


def _pool_tabular(tabular: TabularEmbedding, t: Tokens) -> Tokens:
    """Pool the tokens of all scalar columns to one, valid where any of them is."""
    has_any = valid_mask(t).any(1, keepdim=True)
    return Tokens(tabular.pooled(t)[:, None], t.pos[:, :1], None, has_any)


def _has_any(present: Bool[Tensor, "*rows"]) -> bool:
    """Return whether any value is present; always true while exporting a graph."""
    return torch.compiler.is_exporting() or bool(present.any())


def _encode_present(
    encoder: nn.Module, raw: Tensor, presence: Bool[Tensor, "B"], return_tokens: bool
) -> Tokens:
    """Encode only the rows that have a value; the others get invalid tokens."""
    if torch.compiler.is_exporting():  # a graph encodes all rows and masks the missing ones
        t: Tokens = encoder(raw.where(presence.view(-1, *[1] * (raw.dim() - 1)), 0), return_tokens)
        return replace(t, order=None, valid=valid_mask(t) & presence[:, None])
    if presence.all():
        return encoder(raw, return_tokens)
    rows = presence.nonzero().squeeze(1)
    t = encoder(raw[rows], return_tokens)
    shape = (len(presence), *t.x.shape[1:])
    valid = valid_mask(t)
    return Tokens(
        t.x.new_zeros(shape).index_copy(0, rows, t.x),
        t.pos.new_zeros(*shape[:2], 3),
        None,
        valid.new_zeros(shape[:2]).index_copy(0, rows, valid),
    )
