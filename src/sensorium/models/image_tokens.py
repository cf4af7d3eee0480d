"""Images as token sequences in raster order: the image part of a Decoder.

B batch   S side in pixels   h, w sides of the token grid   D width
T tokens of a sequence: a start token and h w image tokens
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.models.image_tokenizer import ImageTokenizer
from sensorium.nn.tokens import CAUSAL, Tokens


class ImageTokenEmbedding(nn.Module):
    """Embeds image tokens: the sum of token, row and column embeddings (Ramesh et al. 2021).

    Args:
        dim: D.
        tokenizer: Converts images to tokens and back; stored with the embedding and frozen.
    """

    def __init__(self, dim: int, tokenizer: ImageTokenizer):
        super().__init__()
        self.tokenizer = tokenizer.requires_grad_(False)
        self.start_token = tokenizer.vocab_size
        self.token_embedding = nn.Embedding(tokenizer.vocab_size + 1, dim)
        self.row_embedding = nn.Parameter(torch.empty(tokenizer.grid_size, dim))
        self.column_embedding = nn.Parameter(torch.empty(tokenizer.grid_size, dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.row_embedding, std=0.01)
        nn.init.normal_(self.column_embedding, std=0.01)

    @torch.no_grad()
    def tokenize(self, raw: Int[Tensor, "B h w"] | Float[Tensor, "B 3 S S"]) -> Int[Tensor, "B T"]:
        """Return the start token followed by the image tokens, row by row.

        Args:
            raw: A grid of tokens, or normalized images to encode.
        """
        with torch.autocast(raw.device.type, enabled=False):
            grid = self.tokenizer.encode(raw) if raw.is_floating_point() else raw
        return nn.functional.pad(
            rearrange(grid, "b h w -> b (h w)"), (1, 0), value=self.start_token
        )

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Embed a sequence from its start token on."""
        return self.embed_at(ids, torch.arange(ids.shape[1], device=ids.device).expand(ids.shape))

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Embed tokens at the given positions of the sequence; the start token is at 0."""
        side = len(self.row_embedding)
        cell = (positions - 1).clamp(min=0)
        row = cell // side
        column = cell % side
        position_embedding = self.row_embedding[row] + self.column_embedding[column]
        position_embedding = position_embedding * (positions > 0)[..., None]  # none for the start
        return Tokens(
            self.token_embedding(ids) + position_embedding,
            torch.stack([torch.zeros_like(row), row, column], -1).float(),
            CAUSAL,
        )

    def decode_image(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B 3 S S"]:
        """Return the normalized images of sequences of h w tokens, without the start token."""
        return self.tokenizer.decode(rearrange(ids, "b (h w) -> b h w", h=len(self.row_embedding)))
