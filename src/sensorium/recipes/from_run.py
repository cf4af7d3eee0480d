"""Restore the best model of a finished run, for use as a part of another model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from torch import nn

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.evaluation.spec import picklable
from sensorium.io.run_config import (
    CHECKPOINT_FOLDER,
    MODEL_CARD_FILE,
    WEIGHTS_FILE,
    RunConfig,
)
from sensorium.io.tensors import file_sha256, load_weights
from sensorium.recipes.recipe import M, OnStart, Recipe, RecipeFunction, build_recipe


@dataclass(frozen=True)
class RestoredRun(Generic[M]):
    """A finished run with its best weights.

    Attributes:
        recipe: the recipe, whose model has the best weights.
        schema: columns of the data that it was trained on.
        config: its stored configuration.
        fingerprint: SHA-256 of the weights file.
        folder: the run folder.
    """

    recipe: Recipe[M]
    schema: Schema
    config: RunConfig
    fingerprint: str
    folder: Path


def restore_run(folder: str | Path, recipe_fn: RecipeFunction[M]) -> RestoredRun[M]:
    """Rebuild the model of a run from its config and load its best weights.

    Args:
        folder: the run folder.
        recipe_fn: the recipe that the run was trained with.

    Raises:
        SensoriumError: where the folder is not a run, or is incomplete, damaged or of another
            version.
    """
    folder = Path(folder)
    config, schema = RunConfig.load(folder), Schema.load(folder)
    with torch.random.fork_rng():  # initial weights are sampled, then overwritten
        recipe, _ = build_recipe(recipe_fn, schema, config.keywords)
    load_weights(recipe.model, folder / WEIGHTS_FILE)
    return RestoredRun(recipe, schema, config, file_sha256(folder / WEIGHTS_FILE), folder)


def recipe_function(name: str) -> RecipeFunction[Any]:
    """Return a built-in recipe; it is imported only where a run of it is named."""
    from sensorium import recipes

    return recipes.RECIPES[name]


def is_unchanged(metadata: Mapping[str, Any]) -> bool:
    """Return whether the run that `metadata` name still has the same weights."""
    path = Path(metadata["source"]) / WEIGHTS_FILE
    return path.is_file() and file_sha256(path) == metadata["fingerprint"]


@picklable
def require_unchanged(*sources: Mapping[str, Any]) -> OnStart[nn.Module]:
    """Return a hook that refuses to start training on frozen parts whose runs are gone.

    Without them such parts have untrained weights; a checkpoint of the run itself holds them.

    Args:
        *sources: metadata of the runs: source and fingerprint. Others are no runs and not checked.
    """

    def check(
        model: nn.Module,  # noqa: ARG001 - signature of OnStart
        prepared: PreparedDataset,  # noqa: ARG001
        rows: np.ndarray,  # noqa: ARG001
    ) -> None:
        for metadata in sources:
            if "fingerprint" in metadata and not is_unchanged(metadata):
                raise SensoriumError(
                    f"{metadata['source']}, on which this run builds, is missing or has changed. "
                    "Restore it to start training."
                )

    return check


def require_finished(folder: str | Path) -> None:
    """Raise SensoriumError where the run of a folder is still training or was interrupted.

    Its model card is written last; a finished run that was copied without checkpoints needs none.
    """
    folder = Path(folder)
    if not (folder / MODEL_CARD_FILE).is_file() and (folder / CHECKPOINT_FOLDER).is_dir():
        raise SensoriumError(
            f"{folder} is an unfinished run. Finish it first: run its command again with --out "
            f"{folder} --resume."
        )
