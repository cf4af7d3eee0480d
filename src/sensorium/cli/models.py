"""Load the model of a command: a run or pretrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.cli.recipe_signature import resolve_recipe
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.cli.options import DataOptions
    from sensorium.data.dataset import Dataset
    from sensorium.pretrained.load import PretrainedModel
    from sensorium.training.checkpoint import Model


def load_model(source: str, recipe: str | None) -> Model | PretrainedModel:
    """Load a run or pretrained weights.

    Args:
        source: run folder, or folder, file or hub id of pretrained weights.
        recipe: recipe of a run that was trained with the user's own (FILE:FUNCTION).

    Raises:
        SensoriumError: if the source cannot be loaded.
    """
    from sensorium.loading import load

    return load(source, recipe_fn=resolve_recipe(recipe) if recipe else None)


def load_run(source: str, recipe: str | None, command: str) -> Model:
    """Load a run, for a command that does not apply to pretrained weights.

    Raises:
        SensoriumError: if the source is not a run.
    """
    from sensorium.training.checkpoint import Model

    model = load_model(source, recipe)
    if not isinstance(model, Model):
        raise SensoriumError(
            f"{source} holds pretrained weights, and `sensorium {command}` needs a run. "
            "Train one with them first: sensorium train finetune DATA --weights "
            f"{source}."
        )
    return model


def load_for_data(
    source: str, recipe: str | None, path: str | None, data_options: DataOptions
) -> tuple[Model, Dataset]:
    """Load a model and the dataset it is used on.

    A pretrained CLIP or SigLIP reads the image and text columns of the dataset.

    Args:
        source: run folder, or pretrained weights.
        recipe: recipe of a run that was trained with the user's own.
        path: dataset; None: the one that the run was trained on.
        data_options: how the dataset is read.

    Raises:
        SensoriumError: if one of them cannot be loaded, or they do not fit each other.
    """
    from sensorium.loading import load_zero_shot
    from sensorium.training.checkpoint import Model

    model = load_model(source, recipe)
    if isinstance(model, Model):
        return model, open_data(model, path, data_options)
    if path is None:
        raise SensoriumError(f"{source} holds pretrained weights. Name the data: {source} DATA.")
    dataset = data_options.open(path)
    return load_zero_shot(model, dataset.schema), dataset


def open_data(model: Model, path: str | None, data_options: DataOptions) -> Dataset:
    """Open the named dataset, or the one that a run was trained on, read as it was then.

    Raises:
        SensoriumError: if no dataset is named and the run has not recorded its own.
    """
    from sensorium.data.dataset import Dataset

    if path is not None:
        return data_options.open(path)
    source = dict(model.config.data["source"])
    if not source:
        raise SensoriumError(
            f"{model.folder} does not know its data. Name it, as in sensorium evaluate "
            f"{model.folder} DATA."
        )
    return Dataset.open(source.pop("path"), **source)


def is_run(source: str) -> bool:
    """Return whether a source is a run folder, without loading it."""
    return (Path(source) / "schema.json").is_file()
