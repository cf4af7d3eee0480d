"""The one front door to anything trained: a run of ours, or what somebody else published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sensorium.models.decoder import Decoder
from sensorium.models.int8 import quantize_int8
from sensorium.nn.linear import transpose_weights
from sensorium.recipes.recipe import RecipeFunction
from sensorium.training import checkpoint

if TYPE_CHECKING:
    from sensorium.pretrained.load import PretrainedModel


def load(
    source: str | Path, *, recipe: RecipeFunction | None = None, quantize: str | None = None
) -> checkpoint.Model | PretrainedModel:
    """A trained model, ready to answer.

    source: the folder of a run; a folder or file of published weights; or a hub id ("openai/clip-vit-base-patch32").
    recipe: the function a run was trained with, where that is not one of sensorium's own.
    quantize: "int8", for a quarter of the memory and more speed on a CPU; such a model answers, and cannot learn.
    Raises SensoriumError where it is none of these, incomplete, damaged or of another version, and for an unknown
    `quantize`.
    """
    model = _load_source(source, recipe)
    prepare_for_inference(model.module, quantize)
    return model


def prepare_for_inference(module: nn.Module, quantize: str | None = None) -> None:
    """Make a model that has learned ready to answer: weights as bytes where that is asked for, a decoder's otherwise
    laid out for reading one row at a time."""
    if quantize is not None:
        quantize_int8(module, quantize)
    elif isinstance(module, Decoder):
        transpose_weights(module)


def _load_source(
    source: str | Path, recipe: RecipeFunction | None
) -> checkpoint.Model | PretrainedModel:
    if recipe is not None or is_run_folder(source):
        return checkpoint.load_checkpoint(source, recipe=recipe)
    from sensorium.pretrained.load import load_pretrained_model as load_published

    return load_published(source)


def is_run_folder(source: str | Path) -> bool:
    """Whether a folder is a run of sensorium: published folders have no schema.json."""
    return (Path(source) / "schema.json").is_file()
