"""Load any trained model: a run folder, a folder or file of pretrained weights, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sensorium.data.schema import Schema
from sensorium.io.run_config import RunConfig
from sensorium.models.decoder import Decoder
from sensorium.models.int8 import quantize_int8
from sensorium.nn.linear import transpose_weights
from sensorium.recipes.recipe import RecipeFunction, build_recipe
from sensorium.training.checkpoint import Model, load_checkpoint

if TYPE_CHECKING:
    from sensorium.pretrained.load import PretrainedModel


def load(
    source: str | Path,
    *,
    recipe_fn: RecipeFunction[Any] | None = None,
    quantize: str | None = None,
) -> Model | PretrainedModel:
    """Load a trained model for inference.

    Args:
        source: a run folder; a folder or file of pretrained weights; or a Hugging Face id such as
            "openai/clip-vit-base-patch32".
        recipe_fn: the recipe function of the run; None: the built-in recipe that the run names.
        quantize: "int8": a quarter of the memory, and faster on a CPU; the model cannot be trained
            further.

    Returns:
        The model with its verbs (some of `embed`, `generate`, `predict`, `classify`). A `Model` of
        a run also has `recipe`, `schema` and `config`.

    Raises:
        SensoriumError: the source is none of these, incomplete, damaged or of another version, or
            `quantize` is unknown.

    Example:
        model = sensorium.load("runs/photos")
        vectors = model.embed(text=["a red bicycle"])
    """
    model = _load_source(source, recipe_fn)
    prepare_for_inference(model.module, quantize)
    return model


def load_zero_shot(model: PretrainedModel, schema: Schema) -> Model:
    """Return a pretrained CLIP or SigLIP as a model of a dataset's image and text columns.

    Args:
        model: pretrained model with an image and a text tower.
        schema: columns of the data; their image size and tokenizer become those of the model.

    Raises:
        SensoriumError: if the model does not embed images and text, or the columns are missing.
    """
    from sensorium.recipes import finetune

    recipe, keywords = build_recipe(
        finetune, schema, {"weights": str(model.folder), "train": "none"}
    )
    config = RunConfig("finetune", keywords, "fp32", {})
    fitted = schema.with_settings(recipe.data.column_settings)
    return Model(recipe, fitted, config, model.fingerprint, model.folder, is_pretrained=True)


def prepare_for_inference(module: nn.Module, quantize: str | None = None) -> None:
    """Quantize a trained model, or lay out a decoder's weights for generation row by row.

    Args:
        module: the model, changed in place.
        quantize: "int8", or None.

    Raises:
        SensoriumError: `quantize` is unknown.
    """
    if quantize is not None:
        quantize_int8(module, quantize)
    elif isinstance(module, Decoder):
        transpose_weights(module)


def is_run_folder(source: str | Path) -> bool:
    """Return whether a folder is a run; folders of pretrained weights have no schema.json."""
    return (Path(source) / "schema.json").is_file()


def _load_source(
    source: str | Path, recipe_fn: RecipeFunction[Any] | None
) -> Model | PretrainedModel:
    """Load a run or pretrained weights as they are."""
    if recipe_fn is not None or is_run_folder(source):
        return load_checkpoint(source, recipe_fn=recipe_fn)
    from sensorium.pretrained.load import load_pretrained_model  # runs do not need it

    return load_pretrained_model(source)
