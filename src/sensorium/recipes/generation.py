"""Validation and samples for recipes that generate token by token: the loss on held-out rows, what is said to some."""
from pathlib import Path

import numpy as np
import torch

from sensorium.data.cache import Prepared
from sensorium.models import Decoder
from sensorium.objectives.next_token import NextToken, Sampling
from sensorium.recipes.drawing import sheet
from sensorium.recipes.recipe import Validate, ValidationResult, WriteSamples
from sensorium.verbs.say import Speaker


def validate(objective: NextToken, most: int = 2_000) -> Validate[Decoder]:
    """The loss on held-out rows, at most so many, evenly spaced."""
    @torch.inference_mode()
    def judge(model: Decoder, prepared: Prepared, rows: np.ndarray) -> ValidationResult:
        rows = rows[::max(1, -(-len(rows) // most))]
        parts = [rows[start:start + 256] for start in range(0, len(rows), 256)]
        losses = [objective(model, prepared.batch(part))["model"].item() * len(part) for part in parts]
        return ValidationResult({"val_loss": sum(losses) / len(rows)})
    return judge


def said_to(speaker: Speaker, objective: NextToken, shown: int = 8) -> WriteSamples[Decoder]:
    """A picture: a few held-out rows, with what the model says to them."""
    def draw(model: Decoder, prepared: Prepared, rows: np.ndarray, path: Path) -> None:
        rows = rows[np.linspace(0, len(rows) - 1, min(shown, len(rows))).astype(int)]
        given = objective.given(prepared.batch(rows)).changed(
            {"text": speaker.start(len(rows))}, {"text": torch.ones(len(rows), dtype=torch.bool)})
        said = [speaker.text.show(ids) for ids in speaker.say(given, Sampling(temperature=0))]
        columns = objective.columns
        asked = [prepared.caption(columns["question"], row) for row in rows.tolist()] if "question" in columns else said
        told = [f"{q} {a}" if q is not a else a for q, a in zip(asked, said, strict=True)]
        pictures = [[prepared.picture(columns["image"], row)] if "image" in columns else [] for row in rows.tolist()]
        sheet(list(zip(told, pictures, strict=True))).save(path)
    return draw
