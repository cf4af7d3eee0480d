"""A finished run as a part of another model: built as its config says, its best weights in place."""
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch

from sensorium.config import WEIGHTS, Config
from sensorium.data.schema import Schema
from sensorium.recipes.recipe import M, Make, Recipe, build
from sensorium.stored import digest, read_weights


@dataclass(frozen=True)
class Stage(Generic[M]):
    """fingerprint: SHA-256 of the weights' file."""

    recipe: Recipe[M]
    schema: Schema
    config: Config
    fingerprint: str
    folder: Path


def restored(folder: str | Path, make: Make[M]) -> Stage[M]:
    """The best model of a run that `make` made.

    Raises SensoriumError where the folder is no run, incomplete, damaged or of another version.
    """
    folder = Path(folder)
    config, schema = Config.load(folder), Schema.load(folder)
    with torch.random.fork_rng():                       # first weights are drawn, then overwritten
        recipe, _ = build(make, schema, config.keywords)
    read_weights(recipe.model, folder / WEIGHTS)
    return Stage(recipe, schema, config, digest(folder / WEIGHTS), folder)
