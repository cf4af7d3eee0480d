"""Reconstruction losses of an image tokenizer: pixels, edges and the quantizer's own loss.

B batch   H, W image size   C decoder outputs per pixel: 3 colours, or 3 locations and 3 log scales

All distances are computed on pixels in 0..1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sensorium.models.image_tokenizer import ImageTokenizer, squeeze_pixels
from sensorium.nn.tokens import Batch
from sensorium.objectives.contrastive import drop_incomplete_rows

PIXEL_LOSSES = ("l2", "l1", "laplace")

NUM_EDGE_SCALES = 3
"""Scales at which edges are compared: full, half and quarter resolution."""


@dataclass(frozen=True)
class ReconstructionLoss:
    """Loss of the images of a column, encoded to tokens and decoded.

    Attributes:
        column: Image column.
        pixel_loss: `l2`, `l1` or `laplace`.
        edge_weight: Weight of `edge_distance`.
    """

    column: str
    pixel_loss: str = "l2"
    edge_weight: float = 1.0

    def __call__(self, model: ImageTokenizer, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        images = drop_incomplete_rows(batch, self.column)[self.column]
        output = model(images)
        target = model.denormalize(images)
        loss = self._compute_pixel_loss(model, output.decoder_output, target) + output.loss
        if self.edge_weight:
            edges = edge_distance(model.denormalize(output.pixels), target)
            loss = loss + self.edge_weight * edges
        return {"model": loss}

    def accumulate(self, model: ImageTokenizer, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradients of one large batch, given as micro-batches, to the parameters.

        A micro-batch weighs as many images as it has; rows without one do not count.

        Returns:
            The loss of the large batch, without a graph.
        """
        counts = [int(batch.presence(self.column).sum()) for batch in batches]
        total = torch.zeros(())
        for batch, count in zip(batches, counts, strict=True):
            if count:
                loss = self(model, batch)["model"] * (count / sum(counts))
                torch.autograd.backward(loss)
                total = total + loss.detach()
        return {"model": total}

    def _compute_pixel_loss(
        self, model: ImageTokenizer, output: Tensor, target: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, ""]:
        if self.pixel_loss == "laplace":
            return logit_laplace_loss(output, target)
        distance = F.l1_loss if self.pixel_loss == "l1" else F.mse_loss
        return distance(model.denormalize(output), target)


def logit_laplace_loss(
    output: Float[Tensor, "B 6 H W"], pixels: Float[Tensor, "B 3 H W"]
) -> Float[Tensor, ""]:
    """Return the negative log likelihood under a logit-Laplace distribution.

    Ramesh et al. 2021, equation 2, on pixels squeezed to 0.1..0.9.

    Args:
        output: Locations and log scales.
        pixels: Pixels in 0..1.
    """
    location, log_scale = output.chunk(2, 1)
    x = squeeze_pixels(pixels)
    deviation = (x.logit() - location).abs() * (-log_scale).exp()
    return (log_scale + (2 * x * (1 - x)).log() + deviation).mean()


def edge_distance(a: Float[Tensor, "B 3 H W"], b: Float[Tensor, "B 3 H W"]) -> Float[Tensor, ""]:
    """Return the mean absolute difference of image gradients over several scales."""
    difference = a - b
    total = a.new_zeros(())
    for scale in range(NUM_EDGE_SCALES):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        horizontal = torch.diff(difference, dim=3).abs().mean()
        vertical = torch.diff(difference, dim=2).abs().mean()
        total = total + (horizontal + vertical) / (2 * NUM_EDGE_SCALES)
    return total
