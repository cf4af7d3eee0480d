"""Conditional denoisers: a U-Net or DiT with texts, image embeddings or smaller images to follow.

B batch   S text tokens   C width of the context   E width of image embeddings   h, w image size
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.models.towers import Encoder
from sensorium.nn.denoising import Conditioning, Denoiser
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.time_embedding import TimeEmbedding
from sensorium.nn.tokens import Tokens, join, mean_pool, sequence_positions, valid_mask

AUGMENTATION_DIM = 64
MAX_NOISE_LEVEL = 0.5  # largest time of the noise on the condition of an upsampler
NUM_IMAGE_TOKENS = 4  # context tokens that an image embedding becomes
Denoise = Callable[[Tensor, Tensor], Tensor]  # (x(t), times from 0 to 1000) -> prediction
AddNoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0, noise, times from 0 to 1) -> x(t)


@runtime_checkable
class TrainableDenoiser(Protocol):
    """A model that the denoising loss trains."""

    training: bool

    def training_denoiser(
        self, x0: Tensor, text: Tensor | None, keep: Tensor, add_noise: AddNoise
    ) -> Denoise:
        """Return the denoiser of a training batch with its condition.

        Args:
            x0: Images.
            text: Texts; None where all are missing.
            keep: False for a text that is missing or dropped.
            add_noise: The process, for a condition that has noise too.
        """
        ...


@dataclass(frozen=True)
class ImageCondition:
    """Image embeddings to follow.

    Attributes:
        embedding: The embeddings, of unit variance.
        keep: False for one that is dropped.
    """

    embedding: Float[Tensor, "B E"]
    keep: Bool[Tensor, "B"]


class TextConditionalDenoiser(nn.Module):
    """A denoiser that reads the text of each image by attention, and its mean with the time.

    A missing or dropped text is a single learned token. With `low_resolution`, the denoiser also
    reads an enlarged smaller image, as further channels, and how much noise was added to it.

    Args:
        denoiser: The U-Net or DiT. Its context has width C, and its vector width C, plus
            `AUGMENTATION_DIM` with `low_resolution`.
        text_encoder: Encodes texts; where it is frozen, it stays in evaluation mode.
        text_dim: Width of its tokens.
        context_dim: C.
        low_resolution: Whether a smaller image is a condition (Imagen's upsamplers).
        image_dim: E, where an image embedding is a condition (DALL-E 2's decoder); else 0.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        text_encoder: Encoder,
        text_dim: int,
        context_dim: int,
        *,
        low_resolution: bool = False,
        image_dim: int = 0,
    ):
        super().__init__()
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.text_norm = nn.LayerNorm(text_dim)
        self.text_projection = Linear(text_dim, context_dim)
        self.null_token = normal_parameter(context_dim, std=0.02)
        self.augmentation = TimeEmbedding(AUGMENTATION_DIM) if low_resolution else None
        self.image: ImageConditioner | None = None
        if image_dim:
            self.image = ImageConditioner(image_dim, context_dim)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TextConditionalDenoiser":
        """Set the training mode of everything but a frozen text encoder."""
        super().train(mode)
        if not any(p.requires_grad for p in self.text_encoder.parameters()):
            self.text_encoder.eval()
        return self

    def encode_text(self, raw: Tensor | None, keep: Bool[Tensor, "B"]) -> Tokens:
        """Return the context tokens of texts.

        Args:
            raw: The texts; None where all are missing.
            keep: False for a text that is missing or dropped.
        """
        if raw is None:
            x = self.null_token.expand(len(keep), 1, -1)
            return Tokens(x, sequence_positions(x))
        t = self.text_encoder(raw)
        x = self.text_projection(self.text_norm(t.x))
        x = torch.where(keep[:, None, None], x, self.null_token.to(x.dtype))
        is_first = torch.arange(x.shape[1], device=x.device) == 0
        valid = torch.where(keep[:, None], valid_mask(t), is_first)
        return replace(t, x=x, valid=valid, order=None)

    def condition(
        self,
        raw: Tensor | None,
        keep: Bool[Tensor, "B"],
        *,
        noise_level: Float[Tensor, "B"] | None = None,
        image: ImageCondition | None = None,
    ) -> Conditioning:
        """Return the condition of the denoiser.

        Args:
            raw: The texts; None where all are missing.
            keep: False for a text that is missing or dropped.
            noise_level: With `low_resolution`, time from 0 to 1 of the noise on the smaller image.
            image: With `image_dim`, the image embeddings.

        Raises:
            ValueError: `noise_level` or `image` is given to a model without it, or the reverse.
        """
        context = self.encode_text(raw, keep)
        vector = mean_pool(context)
        if (image is None) != (self.image is None):
            raise ValueError("Image embeddings belong to a denoiser that is built for them.")
        if self.image is not None and image is not None:
            tokens, image_vector = self.image(image)
            context = join(context, tokens)
            vector = vector + image_vector
        if (noise_level is None) != (self.augmentation is None):
            raise ValueError("A noise level belongs to a denoiser with a low-resolution condition.")
        if self.augmentation is not None and noise_level is not None:
            vector = torch.cat([vector, self.augmentation(1000 * noise_level)], -1)
        return self._network().prepare(context, vector)

    def forward(
        self,
        x: Float[Tensor, "B 3 h w"],
        time: Float[Tensor, "B"],
        condition: Conditioning,
        low_resolution: Float[Tensor, "B 3 h w"] | None = None,
    ) -> Float[Tensor, "B 3 h w"]:
        """Return the prediction.

        Args:
            x: Noisy images.
            time: Times from 0 to 1000.
            condition: What `condition` returned.
            low_resolution: The enlarged smaller images, with their noise.
        """
        if low_resolution is not None:
            x = torch.cat([x, low_resolution], 1)
        return self._network()(x, time, condition)

    def training_denoiser(
        self, x0: Tensor, text: Tensor | None, keep: Tensor, add_noise: AddNoise
    ) -> Denoise:
        """Return the denoiser of a training batch, which follows the texts alone."""
        del x0, add_noise  # nothing but the text is a condition
        condition = self.condition(text, keep)
        return lambda x, time: self(x, time, condition)

    def _network(self) -> Denoiser:
        if not isinstance(self.denoiser, Denoiser):
            raise TypeError(f"{type(self.denoiser).__name__} is not a denoiser.")
        return self.denoiser


class ImageConditioner(nn.Module):
    """Image embeddings as context tokens, and as a vector that is added to that of the text.

    Args:
        image_dim: E.
        context_dim: C.
    """

    def __init__(self, image_dim: int, context_dim: int):
        super().__init__()
        self.null_embedding = normal_parameter(image_dim)
        self.tokens = Linear(image_dim, NUM_IMAGE_TOKENS * context_dim)
        self.vector = Linear(image_dim, context_dim)

    def forward(self, image: ImageCondition) -> tuple[Tokens, Float[Tensor, "B C"]]:
        """Return the context tokens and the vector."""
        embedding = torch.where(image.keep[:, None], image.embedding, self.null_embedding)
        x = self.tokens(embedding).unflatten(1, (NUM_IMAGE_TOKENS, -1))
        return Tokens(x, sequence_positions(x)), self.vector(embedding)


class Cascade(nn.Module):
    """A generator of small images, and a denoiser that enlarges them (Ho et al. 2022).

    Args:
        base: The generator of small images, such as a TextConditionalDenoiser. It is frozen.
        upsampler: A denoiser with a low-resolution condition.
        base_size: Side of the small images.
    """

    def __init__(
        self,
        base: nn.Module,
        upsampler: TextConditionalDenoiser,
        base_size: int,
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.upsampler = upsampler
        self.base_size = base_size
        self.train(self.training)

    def train(self, mode: bool = True) -> "Cascade":
        """Set the training mode of the upsampler; the base stays in evaluation mode."""
        super().train(mode)
        self.base.eval()
        return self

    def training_denoiser(
        self, x0: Tensor, text: Tensor | None, keep: Tensor, add_noise: AddNoise
    ) -> Denoise:
        """Return the upsampler of a training batch.

        The images are reduced to the size of the base's, enlarged again and given noise of a random
        level, so that the upsampler forgives the base its faults.
        """
        level = torch.rand(len(x0), device=x0.device) * MAX_NOISE_LEVEL
        reduced = self.reduce(x0)
        reduced = add_noise(reduced, torch.randn_like(reduced), level)
        condition = self.upsampler.condition(text, keep, noise_level=level)
        return lambda x, time: self.upsampler(x, time, condition, reduced)

    def reduce(self, x: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 h w"]:
        """Return images at the size of the base's, then enlarged again."""
        small = nn.functional.interpolate(
            x, size=self.base_size, mode="bilinear", antialias=True, align_corners=False
        )
        return self.enlarge(small, x.shape[-1])

    def enlarge(self, small: Float[Tensor, "B 3 s s"], size: int) -> Float[Tensor, "B 3 h w"]:
        """Return small images at a larger size, by bicubic interpolation."""
        large = nn.functional.interpolate(small, size=size, mode="bicubic", align_corners=False)
        return large.clamp(-1, 1)
