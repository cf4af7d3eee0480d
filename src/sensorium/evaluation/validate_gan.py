"""Validation of GANs, whose losses say nothing of the quality of the images."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.spec import Validate, ValidationResult, picklable
from sensorium.inference.generate_gan import GANGenerator
from sensorium.metrics.image_generation import diversity, frechet_distance
from sensorium.models.gan import TextConditionalGAN
from sensorium.objectives.adversarial import AdversarialLoss

ROWS_PER_BATCH = 128
FEATURE_SIZE = 8  # side of the reduced images whose distribution is compared


@picklable
def gan_validator(
    generator: GANGenerator, objective: AdversarialLoss, max_rows: int = 1_000
) -> Validate[TextConditionalGAN]:
    """Return a validator that compares generated with real images of the same captions.

    Metrics: `frechet`, the Fréchet distance of 8 x 8 pixels, and `diversity` as a share of that of
    the real images.

    Args:
        generator: generates the images.
        objective: names the columns.
        max_rows: rows at most, evenly spaced.
    """

    @torch.no_grad()
    def validate(
        model: TextConditionalGAN,  # noqa: ARG001 - the generator holds the model
        prepared: PreparedDataset,
        rows: np.ndarray,
    ) -> ValidationResult:
        rows = prepared.complete_rows(rows)
        rows = rows[:: max(1, -(-len(rows) // max_rows))]
        real: list[Tensor] = []
        generated: list[Tensor] = []
        for batch_rows in iter_batches(rows, ROWS_PER_BATCH):
            batch = prepared.batch(batch_rows)
            seeds = [(0, int(row)) for row in batch_rows]
            keep = batch.presence(objective.text)
            images = generator.generate_tensors(batch[objective.text], keep, seeds)
            generated.append(_features(images))
            real.append(_features(batch[objective.image]))
        a, b = torch.cat(generated), torch.cat(real)
        if len(a) < 2:  # a single image has no spread
            return ValidationResult({"frechet": (a - b).square().sum().item()})
        return ValidationResult(
            {"frechet": frechet_distance(a, b), "diversity": diversity(a) / diversity(b)}
        )

    return validate


def _features(images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B P"]:
    """Return images reduced to 8 x 8 pixels, from 0 to 1, as vectors."""
    reduced = F.interpolate(images, size=FEATURE_SIZE, mode="area")
    return reduced.clamp(-1, 1).flatten(1) / 2 + 0.5
