"""Load the model of a command: a run or pretrained weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sensorium.cli.output import log
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


def load_exportable(source: str, recipe: str | None) -> Model:
    """Load a run, or a pretrained model that embeds images and text, as `export` takes it.

    Args:
        source: a run folder, or pretrained weights.
        recipe: recipe of a run that was trained with one of the user's own.

    Raises:
        SensoriumError: if it is neither.
    """
    from sensorium.cli.model_summary import default_schema
    from sensorium.loading import load_zero_shot
    from sensorium.models.towers import Towers
    from sensorium.training.checkpoint import Model

    loaded = load_model(source, recipe)
    if isinstance(loaded, Model):
        return loaded
    if not isinstance(loaded.module, Towers):
        raise SensoriumError(
            f"{source} is a pretrained {loaded.family.name} model. Of pretrained models, only "
            "those that embed both images and text (CLIP, SigLIP) can be exported."
        )
    return load_zero_shot(loaded, default_schema({}))


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
        return model, leave_out_trained_rows(model, open_data(model, path, data_options))
    if path is None:
        raise SensoriumError(f"{source} holds pretrained weights. Name the data: {source} DATA.")
    dataset = data_options.open(path)
    return load_zero_shot(model, dataset.schema), dataset


def open_data(model: Model, path: str | None, data_options: DataOptions) -> Dataset:
    """Open the named dataset, or the one that a run was trained on, read as it was then.

    The splits and groups of a named dataset are those of the run: the same columns, or for the file
    that it was trained on the same file of splits.

    Raises:
        SensoriumError: if no dataset is named and the run has not recorded its own.
    """
    from sensorium.data.dataset import Dataset

    source = dict(model.config.data["source"])
    if path is not None:
        same_source = source and Path(path).expanduser().resolve() == Path(source["path"])
        options = {k: v for k, v in source.items() if k != "path"} if same_source else {}
        given = {"group": data_options.group, "types": data_options.column_types()}
        columns = {c.name: c.kind for c in model.schema.columns.values()}
        roles = {role.name: role.kind for role in model.schema.roles.values()}
        overrides = {name: options[name] for name in options if not given.get(name)}
        return data_options.open(path, known_types={**columns, **roles}, **overrides)
    if not source:
        raise SensoriumError(
            f"{model.folder} does not know its data. Name it, as in sensorium evaluate "
            f"{model.folder} DATA."
        )
    return Dataset.open(source.pop("path"), **source)


def leave_out_trained_rows(model: Model, dataset: Dataset) -> Dataset:
    """Return the dataset without the rows outside the split train that the run was trained on.

    They are counted on stderr.
    """
    from sensorium.training.data_fingerprint import find_trained_rows

    recorded, columns = model.config.data, model.recipe.data.columns
    trained = find_trained_rows(model.folder, recorded, dataset, columns)
    counts: dict[str, int] = {}
    splits = dict(dataset.splits)
    for name, rows in dataset.splits.items():
        if name != "train" and trained[rows].any():
            counts[name] = int(trained[rows].sum())
            splits[name] = rows[~trained[rows]]
    if not counts:
        return dataset
    listed = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    log(f"{model.folder} was trained on rows of {dataset.name}, which are left out: {listed}")
    splits = {name: rows for name, rows in splits.items() if len(rows)}
    if not splits.keys() - {"train", "extra"}:
        raise SensoriumError(
            f"{model.folder} was trained on all rows of {dataset.name} that would be evaluated. "
            "Evaluate on other rows, or on the training rows with --split train."
        )
    return dataset.with_splits(splits, f"{dataset.split_rule}, without rows trained on")


def order_sources(model: str, data: str) -> tuple[str, str]:
    """Return the model and the data of a command, whichever of them was named first."""
    is_swapped = not is_model(model) and is_model(data)
    return (data, model) if is_swapped else (model, data)


def is_model(source: str) -> bool:
    """Return whether a source looks like a run or like pretrained weights, without loading it."""
    from sensorium.pretrained.weight_files import HUB_ID_PATTERN, has_weights

    path = Path(source)
    if path.exists():
        return (path / "config.json").is_file() or has_weights(path)
    return re.fullmatch(HUB_ID_PATTERN, source) is not None


def is_run(source: str) -> bool:
    """Return whether a source is a run folder, without loading it."""
    return (Path(source) / "schema.json").is_file()
