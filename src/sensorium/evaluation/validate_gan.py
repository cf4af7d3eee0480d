"""Validation and sample sheets of GANs, whose losses say nothing of the quality of the images."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.evaluation.spec import Validate, ValidationResult, WriteSamples, picklable
from sensorium.evaluation.validate_generation import spread_rows
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


@picklable
def gan_sample_writer(
    generator: GANGenerator,
    objective: AdversarialLoss,
    num_captions: int = 8,
    images_per_caption: int = 5,
) -> WriteSamples[TextConditionalGAN]:
    """Return a writer of contact sheets: captions with the real image and generated ones.

    Args:
        generator: generates the images.
        objective: names the columns.
        num_captions: lines of the sheet, from evenly spaced rows.
        images_per_caption: generated images per line.
    """

    def write(
        model: TextConditionalGAN,  # noqa: ARG001 - the generator holds the model
        prepared: PreparedDataset,
        rows: np.ndarray,
        path: Path,
    ) -> None:
        rows = spread_rows(prepared.complete_rows(rows), num_captions)
        batch = prepared.batch(rows)
        texts = batch[objective.text].repeat_interleave(images_per_caption, 0)
        keep = batch.presence(objective.text).repeat_interleave(images_per_caption)
        seeds = [(0, i) for i in range(len(texts))]
        pixels = generator.generate_tensors(texts, keep, seeds)
        images = [generator.image.decode(x) for x in pixels]
        lines = []
        for i, row in enumerate(rows.tolist()):
            own = images[i * images_per_caption : (i + 1) * images_per_caption]
            caption = prepared.caption(objective.text, row)
            lines.append((caption, [prepared.image(objective.image, row), *own]))
        draw_contact_sheet(lines).save(path)

    return write


def _features(images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B P"]:
    """Return images reduced to 8 x 8 pixels, from 0 to 1, as vectors."""
    reduced = F.interpolate(images, size=FEATURE_SIZE, mode="area")
    return reduced.clamp(-1, 1).flatten(1) / 2 + 0.5
