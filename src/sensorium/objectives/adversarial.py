"""The adversarial loss of a text-conditional GAN: relativistic, with penalized gradients.

    L_D = softplus(D(G, t) - D(x, t)) + w softplus(D(x, t') - D(x, t)) + gamma / 2 (R1 + R2)
    L_G = softplus(D(x, t) - D(G, t))

x is real, G generated, t the text of both and t' a text of another row. R1 and R2 are the squared
norms of the gradient of D at real and at generated images (R3GAN, Huang et al. 2024); the term with
t' is that of GAN-CLS (Reed et al. 2016).

B batch   h, w image size
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.models.gan import Discriminator, TextConditionalGAN
from sensorium.nn.tokens import Batch, ColumnKey

MAX_SHIFT = 0.125  # of the differentiable augmentation, as a fraction of the side
MAX_BRIGHTNESS = 0.3
MAX_CONTRAST = 0.3


@dataclass(frozen=True)
class AdversarialLoss:
    """The losses of both players.

    Attributes:
        image: Image column, with values from -1 to 1.
        text: Text column.
        gamma: Weight of the gradient penalties.
        penalty_interval: Steps between penalties, which then count as many times as much.
        wrongtext_weight_at: Weight w of the term with a wrong text.
        unconditional_steps: Steps without the text, after which it is brought in.
        ramp_steps: Steps over which it is brought in.
        caption_dropout: Probability that a text is dropped.
    """

    players: ClassVar[tuple[str, ...]] = ("generator", "discriminator")
    image: str
    text: ColumnKey
    gamma: float = 1.0
    penalty_interval: int = 1
    wrongtext_weight_at: float = 0.5
    unconditional_steps: int = 200
    ramp_steps: int = 400
    caption_dropout: float = 0.1

    def __call__(self, model: TextConditionalGAN, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of the rows that have an image, by player."""
        batch = batch.take(batch.presence(self.image))
        real = batch[self.image]
        raw, keep = batch.columns.get(self.text), batch.presence(self.text)
        if model.training and self.caption_dropout:
            keep = keep & (torch.rand(len(keep), device=keep.device) >= self.caption_dropout)
        noise = torch.randn(len(real), model.generator.latent_dim, device=real.device)
        fake = model.generator(noise, raw, keep)
        discriminator = model.discriminator
        text = discriminator.text(raw, keep)
        weight = self.text_weight_at(model)
        penalized = model.training and int(model.step) % self.penalty_interval == 0

        real_images = augment(real).detach().requires_grad_(penalized)
        fake_images = augment(fake)
        real_features = discriminator.encode_image(real_images)
        real_score = discriminator.score(real_features, text, weight)
        fake_score = discriminator.score(discriminator.encode_image(fake_images), text, weight)
        generator_loss = F.softplus(real_score - fake_score).mean()
        discriminator_loss = F.softplus(fake_score - real_score).mean()
        if weight and self.wrongtext_weight_at and raw is not None:
            wrong = wrong_rows(raw, keep)
            mismatched = discriminator.score(real_features, text[wrong.clamp(min=0)], weight)
            loss = F.softplus(mismatched - real_score) * (wrong >= 0)
            count = (wrong >= 0).sum().clamp(min=1)
            discriminator_loss = discriminator_loss + (
                weight * self.wrongtext_weight_at * loss.sum() / count
            )
        if penalized:
            fake_images = fake_images.detach().requires_grad_()
            penalty = self._penalty(discriminator, text, weight, real_images, real_score)
            penalty = penalty + self._penalty(discriminator, text, weight, fake_images)
            discriminator_loss = discriminator_loss + (
                self.gamma / 2 * self.penalty_interval * penalty
            )
        return {"generator": generator_loss, "discriminator": discriminator_loss}

    def text_weight_at(self, model: TextConditionalGAN) -> float:
        """Return the weight of the text at the model's step: 0 at first, in the end 1."""
        if not model.training:
            return 1.0
        steps = int(model.step) - self.unconditional_steps
        return min(1.0, max(0.0, steps / max(1, self.ramp_steps)))

    @staticmethod
    def _penalty(
        discriminator: Discriminator,
        text: Tensor,
        text_weight: float,
        images: Float[Tensor, "B 3 h w"],
        score: Tensor | None = None,
    ) -> Float[Tensor, ""]:
        """Return the gradient penalty of a discriminator at images."""
        if score is None:
            score = discriminator.score(discriminator.encode_image(images), text, text_weight)
        return gradient_penalty(score, images)


def gradient_penalty(
    score: Float[Tensor, "B"], images: Float[Tensor, "B 3 h w"]
) -> Float[Tensor, ""]:
    """Return the mean squared norm of the gradient of the scores with respect to the images."""
    (gradient,) = torch.autograd.grad(score.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def wrong_rows(raw: Int[Tensor, "B T"], keep: Tensor) -> Int[Tensor, "B"]:
    """Return for each row another row with a different text; -1 where there is none.

    Args:
        raw: Token ids of the texts.
        keep: False for a missing text, which is no wrong text.
    """
    n = len(raw)
    same = (raw[:, None] == raw[None]).all(-1)
    allowed = ~same & keep[None] & keep[:, None]
    order = torch.rand(n, n, device=raw.device).masked_fill(~allowed, -1.0)
    best, rows = order.max(1)
    return torch.where(best >= 0, rows, -1)


def augment(images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 h w"]:
    """Shift images and change brightness and contrast at random, differentiably (Zhao et al. 2020).

    Real and generated images are augmented alike, so that the generator does not learn the changes.
    """
    n, _, height, width = images.shape
    brightness, contrast = 2 * torch.rand(2, n, 1, 1, 1, device=images.device) - 1
    images = images + MAX_BRIGHTNESS * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + MAX_CONTRAST * contrast)
    pad = max(1, round(MAX_SHIFT * height))
    padded = F.pad(images, (pad, pad, pad, pad), mode="replicate")
    top = torch.randint(0, 2 * pad + 1, (n,), device=images.device)
    left = torch.randint(0, 2 * pad + 1, (n,), device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    row_index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[row_index, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )
