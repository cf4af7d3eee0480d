"""Validation loss of recipes that generate images by denoising."""

import numpy as np
import torch

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.spec import Validate, ValidationResult, picklable
from sensorium.inference.sample_embedding import sample_image_embeddings
from sensorium.inference.sample_image import DiffusionModel
from sensorium.models.prior import ImagePrior
from sensorium.nn.tokens import l2_normalize
from sensorium.objectives.diffusion import DenoisingLoss, PriorLoss
from sensorium.objectives.samplers import Guidance

ROWS_PER_BATCH = 128


@picklable
def denoising_validator(
    objective: DenoisingLoss, max_rows: int = 1_000
) -> Validate[DiffusionModel]:
    """Return a validator that computes the loss, with the same times and noise each time.

    Args:
        objective: the training loss.
        max_rows: rows at most, evenly spaced.
    """

    @torch.inference_mode()
    def validate(
        model: DiffusionModel, prepared: PreparedDataset, rows: np.ndarray
    ) -> ValidationResult:
        rows = prepared.complete_rows(rows)
        rows = rows[:: max(1, -(-len(rows) // max_rows))]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            losses = [
                objective.row_losses(model, prepared.batch(batch_rows))
                for batch_rows in iter_batches(rows, ROWS_PER_BATCH)
            ]
        return ValidationResult({"val_loss": torch.cat(losses).mean().item()})

    return validate


@picklable
def prior_validator(objective: PriorLoss, max_rows: int = 500) -> Validate[ImagePrior]:
    """Return a validator of a prior: its loss, and how near its embeddings are to the images'.

    `text_cosine` is that of the texts' own embeddings: what the prior must beat.

    Args:
        objective: the training loss.
        max_rows: rows at most, evenly spaced.
    """

    @torch.no_grad()
    def validate(
        model: ImagePrior, prepared: PreparedDataset, rows: np.ndarray
    ) -> ValidationResult:
        rows = prepared.complete_rows(rows)
        rows = rows[:: max(1, -(-len(rows) // max_rows))]
        losses: list[torch.Tensor] = []
        cosines: list[torch.Tensor] = []
        text_cosines: list[torch.Tensor] = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for batch_rows in iter_batches(rows, ROWS_PER_BATCH):
                batch = prepared.batch(batch_rows)
                losses.append(objective.row_losses(model, batch))
                images = l2_normalize(model.encode_images(batch[objective.image]))
                keep = torch.ones(len(batch), dtype=torch.bool)
                texts = batch[objective.text]
                seeds = [(0, int(row)) for row in batch_rows]
                found = sample_image_embeddings(model, texts, keep, seeds, Guidance())
                cosines.append((l2_normalize(found) * images).sum(-1))
                embedded = l2_normalize(model.encode_texts(texts, keep).embedding)
                text_cosines.append((embedded * images).sum(-1))
        return ValidationResult(
            {
                "val_loss": torch.cat(losses).mean().item(),
                "cosine": torch.cat(cosines).mean().item(),
                "text_cosine": torch.cat(text_cosines).mean().item(),
            }
        )

    return validate
