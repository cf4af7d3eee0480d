"""What a published model reads: its pictures by preprocessor_config.json, its words by tokenizer.json."""
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.modality import Modality
from sensorium.published.published import Senses, Verbs
from sensorium.published.tokens import words as words
from sensorium.verbs.embed import Embedder

SEEN = Image(size=224, resample="bicubic", mean=(0.48145466, 0.4578275, 0.40821073),
             std=(0.26862954, 0.26130258, 0.27577711))                  # how OpenAI's CLIP saw pictures
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}       # Pillow's numbers


def picture(given: Mapping[str, Any], size: int, default: Image) -> Image:
    """Pictures as a Hugging Face preprocessor makes them, for a model that takes `size` pixels.

    given: the preprocessor's settings, {} where there are none: then `default`, at that size. Raises SensoriumError for
    one that makes pictures of another size than the model takes.
    """
    if not given:
        return replace(default, size=size, edge=default.edge * size // default.size)
    resize, crop = _side(given.get("size", size)), _side(given.get("crop_size", size))
    cut = given.get("do_center_crop", False)
    made = crop if cut else resize
    if made != size:
        raise SensoriumError(f"preprocessor_config.json makes pictures of {made} pixels; the model takes {size}")
    if not cut and "shortest_edge" in str(given.get("size")):
        raise SensoriumError("preprocessor_config.json leaves pictures as long as they are; the model takes squares")
    return Image(size=size, square="crop" if cut else "stretch", edge=resize if cut else 0,
                 resample=RESAMPLE[given.get("resample", 3)],
                 mean=tuple(given.get("image_mean", default.mean)), std=tuple(given.get("image_std", default.std)))


def _side(given: Any) -> int:
    """224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(given, int):
        return given
    sides = set(given.values())
    if len(sides) != 1 or not set(given) <= {"height", "width", "shortest_edge"}:
        raise SensoriumError(f"preprocessor_config.json asks for the size {given}, which is no square")
    return int(sides.pop())


def embedding(module: nn.Module, senses: Senses) -> Verbs:
    """The verb `embed`, for whatever senses there are; each has a tower of its name."""
    assert isinstance(module, nn.ModuleDict)
    return {"embed": Embedder(module, {kind: (module[kind], settings) for kind, settings in senses.items()})}


def present(**senses: Modality | None) -> Senses:
    """Those senses that are there."""
    return {kind: settings for kind, settings in senses.items() if settings is not None}
