"""Say a picture again: pixel by pixel, edge by edge, and whatever the quantizer asks for.

    B batch   H, W sides   C what the decoder says for a pixel: 3 colours, or 3 locations and 3 log scales

All distances are taken on pixels in 0..1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sensorium.models.image_tokenizer import ImageTokenizer, squeeze_pixels
from sensorium.nn.tokens import Batch
from sensorium.objectives.contrastive import drop_incomplete_rows

PIXEL_LOSSES = ("l2", "l1", "laplace")
NUM_EDGE_SCALES = 3  # at which edges are compared: as given, half, a quarter


@dataclass(frozen=True)
class ReconstructionLoss:
    """Pictures of `column` through codes and back. pixel: l2, l1 or laplace. edges: weight of `edge_distance`."""

    column: str
    pixel_loss: str = "l2"
    edge_weight: float = 1.0

    def __call__(self, model: ImageTokenizer, batch: Batch) -> dict[str, Tensor]:
        pictures = drop_incomplete_rows(batch, self.column)[self.column]
        found, target = model(pictures), model.denormalize(pictures)
        loss = self._compute_pixel_loss(model, found.decoder_output, target) + found.loss
        if self.edge_weight:
            loss = loss + self.edge_weight * edge_distance(model.denormalize(found.pixels), target)
        return {"model": loss}

    def _compute_pixel_loss(
        self, model: ImageTokenizer, output: Tensor, target: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, ""]:
        if self.pixel_loss == "laplace":
            return logit_laplace_loss(output, target)
        return (F.l1_loss if self.pixel_loss == "l1" else F.mse_loss)(
            model.denormalize(output), target
        )


def logit_laplace_loss(
    output: Float[Tensor, "B 6 H W"], pixels: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, ""]:
    """-log density of pixels squeezed to 0.1..0.9 whose logits are Laplace distributed (Ramesh et al. 2021, eq. 2)."""
    location, log_scale = output.chunk(2, 1)
    x = squeeze_pixels(pixels)
    return (
        log_scale + (2 * x * (1 - x)).log() + (x.logit() - location).abs() * (-log_scale).exp()
    ).mean()


def edge_distance(a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """How far the steps between neighbouring pixels differ, the mean over several scales. It needs no trained net."""
    difference, total = a - b, a.new_zeros(())
    for scale in range(NUM_EDGE_SCALES):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        across, down = torch.diff(difference, dim=3), torch.diff(difference, dim=2)
        total = total + (across.abs().mean() + down.abs().mean()) / (2 * NUM_EDGE_SCALES)
    return total
