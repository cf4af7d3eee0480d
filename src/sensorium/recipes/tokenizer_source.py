"""The keyword by which a family is told what its pictures are said in: a run of `codes`, or what was told of one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.data.cache.token_cache import FrozenImageTokenizer
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.io.run_config import WEIGHTS_FILE, RunConfig
from sensorium.io.tensors import file_sha256
from sensorium.modalities.image import Image
from sensorium.recipes.image_tokenizer import image_tokenizer, load_frozen_tokenizer
from sensorium.recipes.recipe import build_recipe


def resolve_tokenizer(
    source: str | Mapping[str, Any], schema: Schema, column: str
) -> FrozenImageTokenizer:
    """What pictures are said in.

    source: the folder of a run of `codes`; or what `told` wrote of one, whose weights lie with the run's own once it is
    trained; or keywords of one that is still to be trained ("": none).
    """
    if isinstance(source, str):
        if source:
            return load_frozen_tokenizer(source)
        source = {}
    if _is_available(source):
        return load_frozen_tokenizer(source["source"])
    image = Image.from_json(source["image"]) if "source" in source else schema[column]
    assert isinstance(image, Image)
    keywords = {**source.get("keywords", {} if "source" in source else source), "image": column}
    recipe, _ = build_recipe(image_tokenizer, Schema({column: Column(column, image)}), keywords)
    return FrozenImageTokenizer(recipe.model.requires_grad_(False), image, "")


def tokenizer_to_config(
    source: str | Mapping[str, Any], tokenizer: FrozenImageTokenizer
) -> dict[str, Any]:
    """The keyword as a run keeps it: enough to build the coder again where the run of `codes` is gone."""
    if not isinstance(source, str):
        return dict(source)
    keywords = RunConfig.load(Path(source)).keywords if source else {}
    return {
        "source": source,
        "fingerprint": tokenizer.fingerprint,
        "keywords": keywords,
        "image": tokenizer.image.to_json(),
    }


def require_trained(
    tokenizer: FrozenImageTokenizer, source: str | Mapping[str, Any]
) -> FrozenImageTokenizer:
    """The same coder. Raises SensoriumError where its weights are not those it was trained to."""
    if not tokenizer.fingerprint:
        where = source if isinstance(source, str) else source.get("source")
        raise SensoriumError(
            f"pictures are said in the codes of {where or 'a run of codes'}, which is not there any "
            "more: to go on, put it back"
        )
    return tokenizer


def _is_available(source: Mapping[str, Any]) -> bool:
    path = Path(source.get("source", "")) / WEIGHTS_FILE
    return "source" in source and path.is_file() and file_sha256(path) == source["fingerprint"]
