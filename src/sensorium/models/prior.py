"""The diffusion prior of DALL-E 2 (Ramesh et al. 2022), and its decoder on top of it.

B batch   S text tokens   C width of text tokens   E width of the embeddings   D width
h, w image size
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.models.denoiser import (
    AddNoise,
    Denoise,
    ImageCondition,
    TextConditionalDenoiser,
)
from sensorium.models.towers import Tower
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.time_embedding import TimeEmbedding
from sensorium.nn.tokens import Tokens, l2_normalize, sequence_positions, valid_mask
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


class ImagePrior(nn.Module):
    """A diffusion prior with the frozen CLIP in whose space it predicts.

    Embeddings are scaled from length 1 to unit variance.

    Args:
        image_tower: The image tower of the CLIP.
        text_tower: Its text tower.
        prior: The diffusion prior.
        image: Side of the images it reads, and mean and deviation of their channels from 0 to 1.
    """

    def __init__(
        self, image_tower: Tower, text_tower: Tower, prior: DiffusionPrior, image: "ImageInput"
    ):
        super().__init__()
        self.image_tower = image_tower.requires_grad_(False)
        self.text_tower = text_tower.requires_grad_(False)
        self.prior = prior
        self.image = image
        self.train(self.training)

    def train(self, mode: bool = True) -> "ImagePrior":
        """Set the training mode of the prior; the CLIP stays in evaluation mode."""
        super().train(mode)
        self.image_tower.eval()
        self.text_tower.eval()
        return self

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.image_tower.embed_dim

    @torch.no_grad()
    def encode_images(self, x: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B E"]:
        """Return the embeddings of images with values from -1 to 1."""
        return self.image_tower(self.image.convert(x)) * self.embed_dim**0.5

    @torch.no_grad()
    def encode_texts(self, raw: Tensor | None, keep: Bool[Tensor, "B"]) -> PriorCondition:
        """Return the condition of the prior.

        Args:
            raw: The texts; None where all are missing.
            keep: False for a text that is missing or dropped.
        """
        if raw is None:
            width = self.prior.text_projection.in_features
            x = torch.zeros(len(keep), 1, width, device=keep.device)
            embedding = torch.zeros(len(keep), self.embed_dim, device=keep.device)
            return PriorCondition(Tokens(x, sequence_positions(x)), embedding, keep)
        pooled, tokens = self.text_tower.encoder.pooled_and_tokens(raw)
        embedding = l2_normalize(self.text_tower.projection(pooled)) * self.embed_dim**0.5
        return PriorCondition(tokens, embedding, keep)


@dataclass(frozen=True)
class ImageInput:
    """How a CLIP reads images.

    Attributes:
        size: Side in pixels.
        mean: Mean of each channel, on a scale of 0..1.
        std: Standard deviation of each channel, on a scale of 0..1.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def convert(self, x: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 s s"]:
        """Return images with values from -1 to 1 as the CLIP reads them."""
        if x.shape[-1] != self.size:
            x = nn.functional.interpolate(
                x, size=self.size, mode="bilinear", antialias=True, align_corners=False
            )
        mean = x.new_tensor(self.mean).view(3, 1, 1)
        std = x.new_tensor(self.std).view(3, 1, 1)
        return (x / 2 + 0.5 - mean) / std


class UnCLIP(nn.Module):
    """A frozen prior, and a decoder from its image embeddings and the text to images.

    Args:
        prior: The prior with its CLIP.
        decoder: A denoiser with image embeddings as a condition.
        embedding_dropout: Fraction of the image embeddings that are dropped in training.
    """

    def __init__(
        self, prior: ImagePrior, decoder: TextConditionalDenoiser, embedding_dropout: float = 0.1
    ):
        super().__init__()
        self.prior = prior.requires_grad_(False)
        self.decoder = decoder
        self.embedding_dropout = embedding_dropout
        self.train(self.training)

    def train(self, mode: bool = True) -> "UnCLIP":
        """Set the training mode of the decoder; the prior stays in evaluation mode."""
        super().train(mode)
        self.prior.eval()
        return self

    def training_denoiser(
        self, x0: Tensor, text: Tensor | None, keep: Tensor, add_noise: AddNoise
    ) -> Denoise:
        """Return the decoder of a training batch, which follows the images' own embeddings."""
        del add_noise
        embedding = self.prior.encode_images(x0)
        keep_image = torch.ones(len(x0), dtype=torch.bool, device=x0.device)
        if self.training:
            keep_image = torch.rand(len(x0), device=x0.device) >= self.embedding_dropout
        image = ImageCondition(embedding, keep_image)
        condition = self.decoder.condition(text, keep, image=image)
        return lambda x, time: self.decoder(x, time, condition)
