"""Image columns that a model generates: pixels from -1 to 1, and the captions beside them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.spec import Evaluator
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.nn.tokens import ColumnKey
from sensorium.recipes.recipe import DataSpec
from sensorium.recipes.text_encoders import TextSource

HALF = (0.5, 0.5, 0.5)  # mean and deviation by which pixels lie between -1 and 1
IMAGE_AUGMENT = {"light": {"shift": 0.05}, "strong": {"shift": 0.1, "scale": 0.1}}


def image_settings(schema: Schema, column: str, size: int | None) -> Image:
    """Return the settings of the images: pixels from -1 to 1."""
    image = require_type(schema[column], Image)
    return replace(image, mean=HALF, std=HALF, size=size or image.size)


def data_spec(
    image_column: str, text_column: ColumnKey, images: Image, texts: Text | None
) -> DataSpec:
    """Return the columns; the settings of the texts are fixed where their encoder is."""
    settings: dict[ColumnKey, Modality] = {image_column: images}
    if texts is not None:
        settings[text_column] = texts
    return DataSpec(
        columns=(text_column, image_column),
        column_settings=settings,
        required=(image_column,),
        augment={name: {image_column: values} for name, values in IMAGE_AUGMENT.items()},
    )


def text_keywords(run: str | Mapping[str, Any], source: TextSource | None) -> dict[str, Any]:
    """Return the keyword that names a frozen text encoder, as config.json stores it."""
    if source is None:
        return {}
    return {"text_run" if run else "text_weights": dict(source.metadata)}


def image_evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    """Return the evaluator of generated images."""
    # not needed in training
    from sensorium.evaluation.image_generation import image_generation_evaluator

    return image_generation_evaluator(image_column, text_column)
