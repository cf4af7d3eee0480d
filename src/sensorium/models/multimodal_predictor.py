"""The model that answers from any columns, with any of them missing: senses → one vector → a head for each target.

B batch   C columns   T tokens   D width   K numbers that a head says
"""

from collections.abc import Mapping
from dataclasses import replace

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

TABULAR_PART: ColumnKey = ()  # the part that all single values make together: the key of no column


class ColumnEncoder(nn.Module):
    """One column's encoder, and the way from its width into that of the fusion."""

    def __init__(self, encoder: Encoder, projection: nn.Module):
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, raw: Tensor, return_tokens: bool) -> Tokens:
        """All tokens, or one for the whole; where the alignment is multi-scale both."""
        if isinstance(self.projection, TokenAndGlobalProjection):
            whole, t = self.encoder.pooled_and_tokens(raw)
            parts, whole = (
                replace(t, x=self.projection.token_projection(t.x)),
                self.projection(whole),
            )
            if return_tokens:
                return join(single_token(whole), replace(parts, order=None))
            return single_token(whole + mean_pool(parts))
        if not return_tokens:
            return single_token(self.projection(self.encoder.pooled(raw)))
        t = self.encoder(raw)
        return replace(t, x=self.projection(t.x))


class Head(nn.Module):
    """What is said of one target. Where nothing is known of a row, `prior` is said; learning starts from it too."""

    def __init__(self, dim: int, prior: Float[Tensor, "K"], dropout: float):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), Linear(dim, len(prior))
        nn.init.normal_(self.linear.weight, std=0.1 * dim**-0.5)
        with torch.no_grad():
            self.linear.bias.copy_(prior)
        self.register_buffer("prior", prior)

    def forward(
        self, x: Float[Tensor, "B D"], has_values: Bool[Tensor, "B"]
    ) -> Float[Tensor, "B K"]:
        return torch.where(
            has_values[:, None], self.linear(self.dropout(x)).float(), self.get_buffer("prior")
        )


class MultimodalPredictor(nn.Module):
    """Columns, some perhaps missing in a row or in all of them, → what is said of each target.

    senses: column → Sense. row: reads all columns of single values. fuse: one of `fusion.FUSIONS`. drop: while
    training, the share of rows of which some values are hidden, be it few or all but one (`hidden`). straight:
    heads also hear what was fused as it is, whose length says how much is known of a row. `boosted`: a
    second head of each target, or none; it is grown after the training and adds to what the linear one says.
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
        self.targets, self.encoder_columns, self.modality_dropout, self.residual = (
            list(heads),
            list(encoders),
            modality_dropout,
            residual,
        )
        self.encoders, self.tabular, self.fusion = nn.ModuleList(encoders.values()), tabular, fusion
        self.norm, self.mlp, self.final_norm = (
            nn.LayerNorm(dim),
            FeedForward(dim, 2 * dim),
            nn.LayerNorm(dim),
        )
        self.heads = nn.ModuleList(heads.values())
        self.calibrations = nn.ModuleList(Calibration() for _ in heads)
        self.tree_heads = nn.ModuleList()

    def forward(self, inputs: Batch) -> dict[str, Float[Tensor, "B K"]]:
        parts = self.encode_inputs(inputs)
        if self.training or not self.tree_heads or not parts:
            return self.predict_targets(parts, inputs.rows)
        x, known = self.fuse_parts(parts)
        there = dict(zip(self.columns, self.presence(inputs).unbind(1), strict=True))
        return {
            name: torch.where(known[:, None], second(said, inputs.columns, there, x), said)
            for (name, said), second in zip(
                self.head_logits(x, known).items(), self.tree_heads, strict=True
            )
        }

    def encode_inputs(self, inputs: Batch) -> dict[ColumnKey, Tokens]:
        """The parts of which something is there: a column of its own each, and ROW."""
        there = self.presence(inputs)
        if self.training and self.modality_dropout:
            there = drop_values(there, self.modality_dropout)
        parts: dict[ColumnKey, Tokens] = {}
        for i, (name, sense) in enumerate(zip(self.encoder_columns, self.encoders, strict=True)):
            if name in inputs and _has_any(there[:, i]):
                parts[name] = _encode_present(
                    sense, inputs[name], there[:, i], bool(self.fusion.uses_tokens)
                )
        if self.tabular is not None and _has_any(there[:, len(self.encoder_columns) :]):
            t = self.tabular(inputs.columns, there[:, len(self.encoder_columns) :])
            parts[TABULAR_PART] = (
                t
                if self.fusion.uses_tokens
                else Tokens(
                    self.tabular.pooled(t)[:, None],
                    t.pos[:, :1],
                    None,
                    valid_mask(t).any(1, keepdim=True),
                )
            )
        return parts

    def predict_targets(
        self, parts: Mapping[ColumnKey, Tokens], num_rows: int
    ) -> dict[str, Float[Tensor, "B K"]]:
        """What is said of each target, from what was read of so many rows."""
        if not parts:
            return {
                name: head.get_buffer("prior").expand(num_rows, -1)
                for name, head in zip(self.targets, self.heads, strict=True)
            }
        return self.head_logits(*self.fuse_parts(parts))

    def head_logits(
        self, x: Float[Tensor, "B D"], has_values: Bool[Tensor, "B"]
    ) -> dict[str, Float[Tensor, "B K"]]:
        """What the linear heads say of each target."""
        return {
            name: head(x, has_values) for name, head in zip(self.targets, self.heads, strict=True)
        }

    def fuse_parts(
        self, parts: Mapping[ColumnKey, Tokens]
    ) -> tuple[Float[Tensor, "B D"], Bool[Tensor, "B"]]:
        """(all parts as one vector, whether a row has any)."""
        x = self.fusion(parts)
        said = self.final_norm(x + self.mlp(self.norm(x)))
        return said + x if self.residual else said, torch.stack(
            [valid_mask(t).any(1) for t in parts.values()]
        ).any(0)

    def get_calibration(self, target: str) -> Calibration:
        """How what is said of a target is to be read."""
        found = self.calibrations[self.targets.index(target)]
        assert isinstance(found, Calibration)
        return found

    def presence(self, inputs: Batch) -> Bool[Tensor, "B C"]:
        """Which value of which column is there."""
        return torch.stack([inputs.presence(name) for name in self.columns], 1)


def drop_values(present: Bool[Tensor, "B C"], row_share: float) -> Bool[Tensor, "B C"]:
    """Of such a share of rows values hidden by chance: of each row another share, drawn evenly from 0 to 1.

    So rows with few and rows with most of their values missing are learned alike, and the others as they are. Of every
    row that has any value one is kept, whatever falls.
    """
    chance = torch.rand(len(present), 1, device=present.device)
    share = chance.where(torch.rand_like(chance) < row_share, 0.0)
    drawn = torch.rand(present.shape, device=present.device).masked_fill(~present, -1)
    return present & ((drawn >= share) | (drawn == drawn.amax(1, keepdim=True)))


def single_token(x: Float[Tensor, "B D"]) -> Tokens:
    """One token a row."""
    return Tokens(x[:, None], sequence_positions(x[:, None]))


def _has_any(present: Bool[Tensor, "*rows"]) -> bool:
    """Whether any value is there: a graph is made for values that are."""
    return torch.compiler.is_exporting() or bool(present.any())


def _encode_present(
    encoder: nn.Module, raw: Tensor, presence: Bool[Tensor, "B"], return_tokens: bool
) -> Tokens:
    """What a sense makes of the rows that have its value; the others have no valid token, and cost nothing."""
    if torch.compiler.is_exporting():  # a graph reads all, and leaves out what is not there
        t = encoder(raw.where(presence.view(-1, *[1] * (raw.dim() - 1)), 0), return_tokens)
        return replace(t, order=None, valid=valid_mask(t) & presence[:, None])
    if presence.all():
        return encoder(raw, return_tokens)
    rows = presence.nonzero().squeeze(1)
    t = encoder(raw[rows], return_tokens)
    whole = (len(presence), *t.x.shape[1:])
    return Tokens(
        t.x.new_zeros(whole).index_copy(0, rows, t.x),
        t.pos.new_zeros(*whole[:2], 3),
        None,
        valid_mask(t).new_zeros(whole[:2]).index_copy(0, rows, valid_mask(t)),
    )
