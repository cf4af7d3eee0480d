"""The diffusion prior of DALL-E 2 (Ramesh et al. 2022): image embeddings from texts.

B batch   S text tokens   C width of text tokens   E width of the embeddings   D width
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.time_embedding import TimeEmbedding
from sensorium.nn.tokens import Tokens, sequence_positions, valid_mask
from sensorium.nn.transformer import build_transformer, num_heads

NUM_OTHER_TOKENS = 4  # text embedding, time, noisy image embedding, query


@dataclass(frozen=True)
class PriorCondition:
    """A text as CLIP encodes it.

    Attributes:
        tokens: Text tokens of width C.
        embedding: Text embedding.
        keep: False for a text that is missing or dropped.
    """

    tokens: Tokens
    embedding: Float[Tensor, "B E"]
    keep: Bool[Tensor, "B"]

    def without_text(self) -> "PriorCondition":
        """Return the same rows with their text dropped."""
        return PriorCondition(self.tokens, self.embedding, torch.zeros_like(self.keep))


class DiffusionPrior(nn.Module):
    """A causal transformer that predicts the image embedding without noise, x0.

    Its sequence is the text tokens, the text embedding, the time, the noisy image embedding and a
    learned query, whose output is the prediction. Without its text a row still has the noisy image
    embedding, so that guidance compares two predictions of the same sample.

    Args:
        embed_dim: E.
        text_dim: C.
        text_length: Largest number of text tokens.
        dim: D.
        depth: Number of blocks.
    """

    def __init__(self, embed_dim: int, text_dim: int, text_length: int, dim: int, depth: int):
        super().__init__()
        self.text_projection = Linear(text_dim, dim)
        self.text_embedding_projection = Linear(embed_dim, dim)
        self.image_projection = Linear(embed_dim, dim)
        self.time = TimeEmbedding(dim, dim)
        self.null_embedding = normal_parameter(embed_dim)
        self.query = normal_parameter(dim, std=0.02)
        self.positions = normal_parameter(text_length + NUM_OTHER_TOKENS, dim, std=0.02)
        self.trunk = build_transformer(dim, depth, num_heads(dim))
        self.out = Linear(dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "B E"], time: Float[Tensor, "B"], condition: PriorCondition
    ) -> Float[Tensor, "B E"]:
        """Return the predicted image embeddings.

        Args:
            x: Noisy image embeddings of unit variance.
            time: Times from 0 to 1000.
            condition: The texts; their embeddings have unit variance too.
        """
        keep = condition.keep[:, None]
        embedding = torch.where(keep, condition.embedding, self.null_embedding)
        others = torch.stack(
            [
                self.text_embedding_projection(embedding),
                self.time(time),
                self.image_projection(x),
                self.query.expand(len(x), -1),
            ],
            1,
        )
        tokens = torch.cat([self.text_projection(condition.tokens.x), others], 1)
        num_text = tokens.shape[1] - NUM_OTHER_TOKENS
        positions = torch.cat([self.positions[:num_text], self.positions[-NUM_OTHER_TOKENS:]])
        valid = valid_mask(condition.tokens) & keep
        valid = nn.functional.pad(valid, (0, NUM_OTHER_TOKENS), value=True)
        sequence = Tokens(
            tokens + positions, sequence_positions(tokens), self._order(tokens), valid
        )
        return self.out(self.trunk(sequence).x[:, -1])

    @staticmethod
    def _order(tokens: Float[Tensor, "B T D"]) -> Int[Tensor, "B T"]:
        """Return a causal order; padding, in the middle, forbids the one that needs no mask."""
        return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape[:2])
