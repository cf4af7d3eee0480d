"""The one front door to anything trained: a run of ours, or what somebody else published."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from sensorium import checkpoint
from sensorium.kernels import lay_out
from sensorium.models import Decoder
from sensorium.quantize import quantized
from sensorium.recipes.recipe import Make

if TYPE_CHECKING:
    from sensorium.published.load import Pretrained


def load(source: str | Path, *, recipe: Make | None = None,
         quantize: str | None = None) -> checkpoint.Model | Pretrained:
    """A trained model, ready to answer.

    source: the folder of a run; a folder or file of published weights; or a hub id ("openai/clip-vit-base-patch32").
    recipe: the function a run was trained with, where that is not one of sensorium's own.
    quantize: "int8", for a quarter of the memory and more speed on a CPU; such a model answers, and cannot learn.
    Raises SensoriumError where it is none of these, incomplete, damaged or of another version, and for an unknown
    `quantize`.
    """
    model = _loaded(source, recipe)
    settle(model.module, quantize)
    return model


def settle(module: nn.Module, quantize: str | None = None) -> None:
    """Make a model that has learned ready to answer: weights as bytes where that is asked for, a decoder's otherwise
    laid out for reading one row at a time."""
    if quantize is not None:
        quantized(module, quantize)
    elif isinstance(module, Decoder):
        lay_out(module)


def _loaded(source: str | Path, recipe: Make | None) -> checkpoint.Model | Pretrained:
    if recipe is not None or is_run(source):
        return checkpoint.load(source, recipe=recipe)
    from sensorium.published.load import load as load_published
    return load_published(source)


def is_run(source: str | Path) -> bool:
    """Whether a folder is a run of sensorium: published folders have no schema.json."""
    return (Path(source) / "schema.json").is_file()
