"""Settings of the images that a pretrained model reads, and the verb `embed`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from sensorium.errors import SensoriumError, require_type
from sensorium.inference.embed import Embedder
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.pretrained.family import Preprocessing, Verbs

CLIP_IMAGE = Image(  # as OpenAI's CLIP was trained
    size=224,
    resample="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
RESAMPLE_NAMES = {  # Pillow's numbers
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}


def image_preprocessing(
    processor_config: Mapping[str, Any], image_size: int, default: Image
) -> Image:
    """Return the image settings of a Hugging Face image processor.

    Args:
        processor_config: Its preprocessor_config.json; {} if there is none.
        image_size: Side of the images that the model takes, in pixels.
        default: The settings without a config, scaled to `image_size`.

    Raises:
        SensoriumError: If the processor makes images of another size than the model takes.
    """
    if not processor_config:
        shortest_edge = default.shortest_edge * image_size // default.size
        return replace(default, size=image_size, shortest_edge=shortest_edge)
    resize = _parse_size(processor_config.get("size", image_size))
    crop = _parse_size(processor_config.get("crop_size", image_size))
    is_cropped = processor_config.get("do_center_crop", False)
    output_size = crop if is_cropped else resize
    if output_size != image_size:
        raise SensoriumError(
            f"preprocessor_config.json makes images of {output_size} pixels, but the model takes "
            f"{image_size}."
        )
    if not is_cropped and "shortest_edge" in str(processor_config.get("size")):
        raise SensoriumError(
            "preprocessor_config.json keeps the aspect ratio of images, but the model takes "
            "squares only."
        )
    return Image(
        size=image_size,
        resize_mode="crop" if is_cropped else "stretch",
        shortest_edge=resize if is_cropped else 0,
        resample=RESAMPLE_NAMES[processor_config.get("resample", 3)],
        mean=tuple(processor_config.get("image_mean", default.mean)),
        std=tuple(processor_config.get("image_std", default.std)),
    )


def _parse_size(size: int | Mapping[str, int]) -> int:
    """Parse 224, {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(size, int):
        return size
    sides = set(size.values())
    if len(sides) != 1 or not set(size) <= {"height", "width", "shortest_edge"}:
        raise SensoriumError(
            f"preprocessor_config.json asks for the size {size}, which is not a square."
        )
    return int(sides.pop())


def build_embed_verb(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """Return the verb `embed` of a module that has a tower for each input, under its name."""
    towers = require_type(module, nn.ModuleDict)
    columns = {kind: (towers[kind], modality) for kind, modality in preprocessing.items()}
    return {"embed": Embedder(towers, columns)}


def drop_missing(**modalities: Modality | None) -> Preprocessing:
    """Return the inputs that are not None."""
    return {kind: modality for kind, modality in modalities.items() if modality is not None}
