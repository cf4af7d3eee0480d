"""Validation and samples for recipes that generate token by token: the loss on held-out rows, what is said to some."""

from pathlib import Path

import numpy as np
import torch

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.inference.generate_text import TextGenerator
from sensorium.models.decoder import Decoder
from sensorium.objectives.autoregressive import NextTokenLoss, SamplingConfig
from sensorium.recipes.recipe import Validate, ValidationResult, WriteSamples


def loss_validator(objective: NextTokenLoss, max_rows: int = 2_000) -> Validate[Decoder]:
    """The loss on held-out rows, at most so many, evenly spaced."""

    @torch.inference_mode()
    def evaluate(model: Decoder, prepared: PreparedDataset, rows: np.ndarray) -> ValidationResult:
        rows = rows[:: max(1, -(-len(rows) // max_rows))]
        parts = [rows[start : start + 256] for start in range(0, len(rows), 256)]
        losses = [
            objective(model, prepared.batch(part))["model"].item() * len(part) for part in parts
        ]
        return ValidationResult({"val_loss": sum(losses) / len(rows)})

    return evaluate


def text_sample_writer(
    generator: TextGenerator, objective: NextTokenLoss, num_samples: int = 8
) -> WriteSamples[Decoder]:
    """A picture: a few held-out rows, with what the model says to them."""

    def write(model: Decoder, prepared: PreparedDataset, rows: np.ndarray, path: Path) -> None:
        rows = rows[np.linspace(0, len(rows) - 1, min(num_samples, len(rows))).astype(int)]
        given = objective.select_inputs(prepared.batch(rows)).with_columns(
            {"text": generator.start_tokens(len(rows))},
            {"text": torch.ones(len(rows), dtype=torch.bool)},
        )
        said = [
            generator.text.decode(ids)
            for ids in generator.generate_tokens(given, SamplingConfig(temperature=0))
        ]
        columns = objective.columns
        asked = (
            [prepared.caption(columns["question"], row) for row in rows.tolist()]
            if "question" in columns
            else said
        )
        told = [f"{q} {a}" if q is not a else a for q, a in zip(asked, said, strict=True)]
        pictures = [
            [prepared.image(columns["image"], row)] if "image" in columns else []
            for row in rows.tolist()
        ]
        draw_contact_sheet(list(zip(told, pictures, strict=True))).save(path)

    return write
