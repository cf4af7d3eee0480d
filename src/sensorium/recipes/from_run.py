"""A finished run as a part of another model: built as its config says, its best weights in place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic

import torch

from sensorium.data.schema import Schema
from sensorium.io.run_config import WEIGHTS_FILE, RunConfig
from sensorium.io.tensors import file_sha256, load_weights
from sensorium.recipes.recipe import M, Recipe, RecipeFunction, build_recipe


@dataclass(frozen=True)
class RestoredRun(Generic[M]):
    """fingerprint: SHA-256 of the weights' file."""

    recipe: Recipe[M]
    schema: Schema
    config: RunConfig
    fingerprint: str
    folder: Path


def restore_run(folder: str | Path, recipe_fn: RecipeFunction[M]) -> RestoredRun[M]:
    """The best model of a run that `make` made.

    Raises SensoriumError where the folder is no run, incomplete, damaged or of another version.
    """
    folder = Path(folder)
    config, schema = RunConfig.load(folder), Schema.load(folder)
    with torch.random.fork_rng():  # first weights are drawn, then overwritten
        recipe, _ = build_recipe(recipe_fn, schema, config.keywords)
    load_weights(recipe.model, folder / WEIGHTS_FILE)
    return RestoredRun(recipe, schema, config, file_sha256(folder / WEIGHTS_FILE), folder)
