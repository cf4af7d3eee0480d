"""What published decoders are made of: ids that mean nothing by themselves, and a head that says the next one.

B batch   T tokens   D width   V vocabulary
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.models.decoder import Decoder
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import CAUSAL, Tokens, sequence_positions, valid_or_none
from sensorium.nn.transformer import Transformer

PAD_ID = -1  # what follows a shorter text in a batch: no id of any vocabulary


class CausalTokenEmbedding(nn.Module):
    """Ids → Tokens, each seeing what came before; whatever is not PAD is read. `places`: 0, or how many are learned."""

    def __init__(self, vocab_size: int, dim: int, num_positions: int = 0):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = (
            nn.Parameter(torch.empty(num_positions, dim)) if num_positions else None
        )
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding, std=0.02)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        real = ids != PAD_ID
        x = self.token_embedding(ids.clamp(min=0))
        x = x if self.position_embedding is None else x + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL, valid_or_none(real))

    def build_tied_head(self) -> Linear:
        """What says the next id by the ids' own vectors (tied weights)."""
        tied = build_head(self)
        tied.weight = self.token_embedding.weight
        return tied

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return ids

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Ids that stand at these places of their texts."""
        x = (
            self.token_embedding(ids)
            if self.position_embedding is None
            else self.token_embedding(ids) + self.position_embedding[positions]
        )
        pos = x.new_zeros(*ids.shape, 3, dtype=torch.float32)
        pos[..., 0] = positions
        return Tokens(x, pos, CAUSAL)


def build_text_decoder(
    embedding: CausalTokenEmbedding, trunk: Transformer, *, tied: bool = True
) -> Decoder:
    """A decoder of text alone; `tied`: the head's weights are the ids' vectors."""
    return Decoder(
        {"text": embedding},
        {"text": embedding.build_tied_head() if tied else build_head(embedding)},
        trunk,
    )


def build_head(embedding: CausalTokenEmbedding) -> Linear:
    """What says the next id, with weights of its own."""
    return Linear(
        embedding.token_embedding.embedding_dim,
        embedding.token_embedding.num_embeddings,
        bias=False,
    )
