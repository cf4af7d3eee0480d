"""What a published model reads: its pictures by preprocessor_config.json, its words by tokenizer.json."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from sensorium.errors import SensoriumError
from sensorium.inference.embed import Embedder
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.pretrained.family import Preprocessing, Verbs
from sensorium.pretrained.tokenizers import text_preprocessing as text_preprocessing

CLIP_IMAGE = Image(
    size=224,
    resample="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)  # how OpenAI's CLIP saw pictures
RESAMPLE_NAMES = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # Pillow's numbers


def image_preprocessing(
    processor_config: Mapping[str, Any], image_size: int, default: Image
) -> Image:
    """Pictures as a Hugging Face preprocessor makes them, for a model that takes `size` pixels.

    processor_config: the preprocessor's settings, {} where there are none: then `default`, at that size. Raises SensoriumError for
    one that makes pictures of another size than the model takes.
    """
    if not processor_config:
        return replace(
            default,
            size=image_size,
            shortest_edge=default.shortest_edge * image_size // default.size,
        )
    resize, crop = (
        _parse_size(processor_config.get("size", image_size)),
        _parse_size(processor_config.get("crop_size", image_size)),
    )
    cut = processor_config.get("do_center_crop", False)
    made = crop if cut else resize
    if made != image_size:
        raise SensoriumError(
            f"preprocessor_config.json makes pictures of {made} pixels; the model takes {image_size}"
        )
    if not cut and "shortest_edge" in str(processor_config.get("size")):
        raise SensoriumError(
            "preprocessor_config.json leaves pictures as long as they are; the model takes squares"
        )
    return Image(
        size=image_size,
        resize_mode="crop" if cut else "stretch",
        shortest_edge=resize if cut else 0,
        resample=RESAMPLE_NAMES[processor_config.get("resample", 3)],
        mean=tuple(processor_config.get("image_mean", default.mean)),
        std=tuple(processor_config.get("image_std", default.std)),
    )


def _parse_size(size: Any) -> int:
    """224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, int):
        return size
    sides = set(size.values())
    if len(sides) != 1 or not set(size) <= {"height", "width", "shortest_edge"}:
        raise SensoriumError(
            f"preprocessor_config.json asks for the size {size}, which is no square"
        )
    return int(sides.pop())


def build_embed_verb(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """The verb `embed`, for whatever senses there are; each has a tower of its name."""
    assert isinstance(module, nn.ModuleDict)
    return {
        "embed": Embedder(
            module, {kind: (module[kind], settings) for kind, settings in preprocessing.items()}
        )
    }


def drop_missing(**modalities: Modality | None) -> Preprocessing:
    """Those senses that are there."""
    return {kind: settings for kind, settings in modalities.items() if settings is not None}
