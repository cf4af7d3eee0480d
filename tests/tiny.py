"""A recipe and a data set so small that a run takes a blink, with all that chance touches: dropout, noise, order."""
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Role, Schema
from sensorium.data.sources import Table
from sensorium.modalities.table import Numeric
from sensorium.tokens import Batch
from sensorium.recipes.recipe import DataSpec, EvaluationSpec, Recipe, ValidationResult
from sensorium.recipes.training_config import TrainingConfig

COLUMNS = ("a", "b", "c", "y")


class Guess(nn.Module):
    """y from a, b and c, with dropout, a batch norm (buffers), and weights that two layers share."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(3, dim), nn.BatchNorm1d(dim), nn.Dropout(dropout)
        self.second, self.third, self.last = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, 1)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x + 0.01 * torch.randn_like(x) if self.training else x))
        return self.last(self.third(self.drop(torch.tanh(self.second(self.drop(torch.tanh(x))))))).squeeze(1)


def inputs(batch: Batch) -> Tensor:
    return torch.stack([batch[c] for c in COLUMNS[:3]], 1)


def objective(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    return {"model": (model(inputs(batch)) - batch["y"]).square().mean()}


def guess(schema: Schema, *, dim: int = 8, dropout: float = 0.1) -> Recipe:
    """A recipe of the user's own."""
    model = Guess(dim, dropout)

    def validate(model: nn.Module, prepared: Any, rows: np.ndarray) -> ValidationResult:
        with torch.no_grad():
            loss = objective(model, prepared.batch(rows))["model"].item()
        return ValidationResult({"val_loss": loss, "fit": 1 / (1 + loss)})

    def predict(*, x: list[list[float]]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor(x)).numpy()

    return Recipe(model=model, objective=objective, data=DataSpec(columns=COLUMNS), verbs={"predict": predict},
                  evaluation=EvaluationSpec(metric="fit", mode="max", validate=validate),
                  training=TrainingConfig(epochs=3, batch_size=8, lr=1e-2, ema_decay=0.9, augment="none"))


def rows(n: int = 64, seed: int = 0) -> Dataset:
    """n rows whose y is a plain function of the rest; every eighth judges."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n))
    columns = {"a": a, "b": b, "c": c, "y": a * b + c,
               "split": ["val" if i % 8 == 0 else "train" for i in range(n)]}
    schema = Schema({name: Column(name, Numeric()) for name in COLUMNS}, {"split": Role("split", "split")})
    return Dataset(Table(columns, [f"tiny.csv:{i + 2}" for i in range(n)], root=Path()), schema, "tiny")
