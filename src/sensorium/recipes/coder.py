"""The keyword by which a family is told what its pictures are said in: a run of `codes`, or what was told of one."""
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.config import WEIGHTS, Config
from sensorium.data.codes import Coder
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.recipes.codes import codes, frozen
from sensorium.recipes.recipe import build
from sensorium.stored import digest


def coder(source: str | Mapping[str, Any], schema: Schema, column: str) -> Coder:
    """What pictures are said in.

    source: the folder of a run of `codes`; or what `told` wrote of one, whose weights lie with the run's own once it is
    trained; or keywords of one that is still to be trained ("": none).
    """
    if isinstance(source, str):
        if source:
            return frozen(source)
        source = {}
    if _is_there(source):
        return frozen(source["source"])
    image = Image.from_json(source["image"]) if "source" in source else schema[column]
    assert isinstance(image, Image)
    keywords = {**source.get("keywords", {} if "source" in source else source), "image": column}
    recipe, _ = build(codes, Schema({column: Column(column, image)}), keywords)
    return Coder(recipe.model.requires_grad_(False), image, "")


def told(source: str | Mapping[str, Any], made: Coder) -> dict[str, Any]:
    """The keyword as a run keeps it: enough to build the coder again where the run of `codes` is gone."""
    if not isinstance(source, str):
        return dict(source)
    keywords = Config.load(Path(source)).keywords if source else {}
    return {"source": source, "fingerprint": made.fingerprint, "keywords": keywords, "image": made.image.to_json()}


def ready(made: Coder, source: str | Mapping[str, Any]) -> Coder:
    """The same coder. Raises SensoriumError where its weights are not those it was trained to."""
    if not made.fingerprint:
        where = source if isinstance(source, str) else source.get("source")
        raise SensoriumError(f"pictures are said in the codes of {where or 'a run of codes'}, which is not there any "
                             "more: to go on, put it back")
    return made


def _is_there(source: Mapping[str, Any]) -> bool:
    path = Path(source.get("source", "")) / WEIGHTS
    return "source" in source and path.is_file() and digest(path) == source["fingerprint"]
