"""Validation loss and sample sheets of recipes that generate token by token."""

from pathlib import Path

import numpy as np
import torch

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.evaluation.spec import Validate, ValidationResult, WriteSamples, picklable
from sensorium.inference.generate_text import TextGenerator
from sensorium.models.decoder import Decoder
from sensorium.objectives.autoregressive import NextTokenLoss, SamplingConfig

_ROWS_PER_BATCH = 256


@picklable
def loss_validator(objective: NextTokenLoss, max_rows: int = 2_000) -> Validate[Decoder]:
    """Return a validator that computes the loss on at most `max_rows` rows, evenly spaced."""

    @torch.inference_mode()
    def validate(model: Decoder, prepared: PreparedDataset, rows: np.ndarray) -> ValidationResult:
        rows = rows[:: max(1, -(-len(rows) // max_rows))]
        losses = [
            objective(model, prepared.batch(batch_rows))["model"].item() * len(batch_rows)
            for batch_rows in iter_batches(rows, _ROWS_PER_BATCH)
        ]
        return ValidationResult({"val_loss": sum(losses) / len(rows)})

    return validate


@picklable
def text_sample_writer(
    generator: TextGenerator, objective: NextTokenLoss, num_samples: int = 8
) -> WriteSamples[Decoder]:
    """Return a writer of contact sheets: images (and questions) with the generated text."""

    def write(
        model: Decoder,  # noqa: ARG001 - the generator holds the model
        prepared: PreparedDataset,
        rows: np.ndarray,
        path: Path,
    ) -> None:
        rows = spread_rows(rows, num_samples)
        inputs = objective.select_inputs(prepared.batch(rows)).with_columns(
            {"text": generator.start_tokens(len(rows))},
            {"text": torch.ones(len(rows), dtype=torch.bool)},
        )
        tokens = generator.generate_tokens(inputs, SamplingConfig(temperature=0))
        texts = [generator.text.decode(ids) for ids in tokens]
        columns = objective.columns
        if "question" in columns:
            texts = [
                f"{prepared.caption(columns['question'], row)} {text}"
                for row, text in zip(rows.tolist(), texts, strict=True)
            ]
        images = [
            [prepared.image(columns["image"], row)] if "image" in columns else []
            for row in rows.tolist()
        ]
        draw_contact_sheet(list(zip(texts, images, strict=True))).save(path)

    return write


def spread_rows(rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Return at most `num_rows` evenly spaced rows, with the first and the last."""
    return rows[np.linspace(0, len(rows) - 1, min(num_rows, len(rows))).astype(int)]
