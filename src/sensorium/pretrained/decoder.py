"""What pretrained text decoders share: the token embedding and the head.

B batch   T tokens   D width   V vocabulary
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.models.decoder import Decoder
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import CAUSAL, Tokens, sequence_positions, valid_or_none
from sensorium.nn.transformer import Transformer

PAD_ID = -1  # pads the shorter texts of a batch; no vocabulary has it


class CausalTokenEmbedding(nn.Module):
    """Embed token ids, causally; every id but PAD_ID is valid.

    Args:
        vocab_size: Number of token ids.
        dim: Width of a token.
        num_positions: Number of learned positions; 0: none.
    """

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
        """Return the tokens of texts from their beginning."""
        x = self.token_embedding(ids.clamp(min=0))
        if self.position_embedding is not None:
            x = x + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL, valid_or_none(ids != PAD_ID))

    def build_tied_head(self) -> Linear:
        """Build a head that shares the weights of the token embedding."""
        head = build_head(self)
        head.weight = self.token_embedding.weight
        return head

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Return the ids as they are."""
        return ids

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Return the tokens of ids at these positions of their texts."""
        x = self.token_embedding(ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding[positions]
        pos = x.new_zeros(*ids.shape, 3, dtype=torch.float32)
        pos[..., 0] = positions
        return Tokens(x, pos, CAUSAL)


def build_text_decoder(
    embedding: CausalTokenEmbedding, trunk: Transformer, *, tied: bool = True
) -> Decoder:
    """Build a decoder of the part `text`.

    Args:
        embedding: Embedding of the token ids.
        trunk: The blocks.
        tied: Whether the head shares the weights of the embedding.
    """
    head = embedding.build_tied_head() if tied else build_head(embedding)
    return Decoder({"text": embedding}, {"text": head}, trunk)


def build_head(embedding: CausalTokenEmbedding) -> Linear:
    """Build a head with weights of its own, D -> V."""
    tokens = embedding.token_embedding
    return Linear(tokens.embedding_dim, tokens.num_embeddings, bias=False)
