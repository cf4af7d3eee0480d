"""A picture as a line of codes, row by row: the part of a Decoder that pictures are said in.

B batch   S side in pixels   h, w rows and columns of codes   T tokens: a start token and h w codes   D width
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.models.image_tokenizer import ImageTokenizer
from sensorium.nn.tokens import CAUSAL, Tokens


class ImageTokenEmbedding(nn.Module):
    """Ids → Tokens: a learned vector for each code, one for its row and one for its column (Ramesh et al. 2021).

    What makes pictures of codes, and codes of pictures, comes along; it does not learn.
    """

    def __init__(self, dim: int, tokenizer: ImageTokenizer):
        super().__init__()
        self.tokenizer, self.start_token = tokenizer.requires_grad_(False), tokenizer.vocab
        self.token_embedding = nn.Embedding(tokenizer.vocab + 1, dim)
        self.row_embedding, self.column_embedding = (
            nn.Parameter(torch.empty(tokenizer.grid_size, dim)),
            nn.Parameter(torch.empty(tokenizer.grid_size, dim)),
        )
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        for places in (self.row_embedding, self.column_embedding):
            nn.init.normal_(places, std=0.01)

    @torch.no_grad()
    def tokenize(self, raw: Int[Tensor, "B h w"] | Float[Tensor, "B 3 S S"]) -> Int[Tensor, "B T"]:
        """Codes, or pictures to be coded, as ids: the start token, then the codes row by row."""
        with torch.autocast(raw.device.type, enabled=False):
            codes = self.tokenizer.encode(raw) if raw.is_floating_point() else raw
        return nn.functional.pad(
            rearrange(codes, "b h w -> b (h w)"), (1, 0), value=self.start_token
        )

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        return self.embed_at(ids, torch.arange(ids.shape[1], device=ids.device).expand(ids.shape))

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        side, cell = len(self.row_embedding), (positions - 1).clamp(min=0)
        row, column = cell // side, cell % side
        where = (self.row_embedding[row] + self.column_embedding[column]) * (positions > 0)[
            ..., None
        ]  # the start token has no place
        return Tokens(
            self.token_embedding(ids) + where,
            torch.stack([torch.zeros_like(row), row, column], -1).float(),
            CAUSAL,
        )

    def decode_image(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B 3 S S"]:
        """The normalised picture that h w codes, without the start token, show."""
        return self.tokenizer.decode(rearrange(ids, "b (h w) -> b h w", h=len(self.row_embedding)))
