"""The `tokenizer` keyword: an image tokenizer as a run folder, keywords, or stored metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.data.cache.token_cache import FrozenImageTokenizer
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError, require_type
from sensorium.io.run_config import RunConfig
from sensorium.modalities.image import Image
from sensorium.recipes.from_run import is_unchanged
from sensorium.recipes.image_tokenizer import image_tokenizer, load_frozen_tokenizer
from sensorium.recipes.recipe import build_recipe


def resolve_tokenizer(
    source: str | Mapping[str, Any], schema: Schema, column: str
) -> FrozenImageTokenizer:
    """Return the image tokenizer that a keyword names.

    Args:
        source: the run folder of an image_tokenizer; or keywords of one that is not trained yet
            ("": the defaults); or the metadata that `tokenizer_to_config` stored. Without a run
            folder the tokenizer has untrained weights and the fingerprint "".
        schema: columns of the data.
        column: the image column.
    """
    if isinstance(source, str):
        if source:
            return load_frozen_tokenizer(source)
        return _build_untrained(column, _image_settings(schema, column), {})
    if "source" not in source:
        return _build_untrained(column, _image_settings(schema, column), source)
    if is_unchanged(source):
        return load_frozen_tokenizer(source["source"])
    return _build_untrained(column, Image.from_json(source["image"]), source["keywords"])


def tokenizer_to_config(
    source: str | Mapping[str, Any], tokenizer: FrozenImageTokenizer
) -> dict[str, Any]:
    """Return the metadata that rebuilds the tokenizer of a run, even without its own run folder."""
    if not isinstance(source, str):
        return dict(source)
    return {
        "source": source,
        "fingerprint": tokenizer.fingerprint,
        "keywords": RunConfig.load(Path(source)).keywords if source else {},
        "image": tokenizer.image.to_json(),
    }


def require_trained(
    tokenizer: FrozenImageTokenizer, source: str | Mapping[str, Any]
) -> FrozenImageTokenizer:
    """Return the tokenizer if it has trained weights.

    Raises:
        SensoriumError: otherwise, naming the run folder that is missing.
    """
    if not tokenizer.fingerprint:
        folder = source if isinstance(source, str) else source.get("source")
        raise SensoriumError(
            f"The image tokenizer of this run, {folder or 'an image_tokenizer run'}, is missing or "
            "has changed. Restore it to resume training."
        )
    return tokenizer


def _build_untrained(
    column: str, image: Image, keywords: Mapping[str, Any]
) -> FrozenImageTokenizer:
    schema = Schema({column: Column(column, image)})
    recipe, _ = build_recipe(image_tokenizer, schema, {**keywords, "image": column})
    return FrozenImageTokenizer(recipe.model.requires_grad_(False), image, "")


def _image_settings(schema: Schema, column: str) -> Image:
    return require_type(schema[column], Image)
