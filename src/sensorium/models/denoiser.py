"""Text-conditional denoisers: a text encoder, a U-Net or DiT, and what stands for no text.

B batch   S text tokens   C width of the text context   h, w image size
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.models.towers import Encoder
from sensorium.nn.denoising import Conditioning, Denoiser
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.time_embedding import TimeEmbedding
from sensorium.nn.tokens import Tokens, mean_pool, sequence_positions, valid_mask

AUGMENTATION_DIM = 64


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
    """

    def __init__(
        self,
        denoiser: nn.Module,
        text_encoder: Encoder,
        text_dim: int,
        context_dim: int,
        *,
        low_resolution: bool = False,
    ):
        super().__init__()
        self.denoiser = denoiser
        self.text_encoder = text_encoder
        self.text_norm = nn.LayerNorm(text_dim)
        self.text_projection = Linear(text_dim, context_dim)
        self.null_token = normal_parameter(context_dim, std=0.02)
        self.augmentation = TimeEmbedding(AUGMENTATION_DIM) if low_resolution else None
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
        noise_level: Float[Tensor, "B"] | None = None,
    ) -> Conditioning:
        """Return the condition of the denoiser.

        Args:
            raw: The texts; None where all are missing.
            keep: False for a text that is missing or dropped.
            noise_level: With `low_resolution`, time from 0 to 1 of the noise on the smaller image.

        Raises:
            ValueError: `noise_level` is given without a smaller image, or the reverse.
        """
        context = self.encode_text(raw, keep)
        vector = mean_pool(context)
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

    def _network(self) -> Denoiser:
        if not isinstance(self.denoiser, Denoiser):
            raise TypeError(f"{type(self.denoiser).__name__} is not a denoiser.")
        return self.denoiser


class Cascade(nn.Module):
    """A generator of small images, and a denoiser that enlarges them (Ho et al. 2022).

    Args:
        base: The generator of small images: a TextConditionalDenoiser or a Cascade. It is frozen.
        upsampler: A denoiser with a low-resolution condition.
        base_size: Side of the small images.
    """

    def __init__(
        self,
        base: "TextConditionalDenoiser | Cascade",
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
