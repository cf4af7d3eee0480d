"""Read the settings of a Hugging Face image processor; all are followed or refused by name."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.pretrained.weight_files import WeightFiles

PROCESSOR_FILE = "preprocessor_config.json"
COMBINED_PROCESSOR_FILE = "processor_config.json"  # of transformers 5, for all inputs together
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESAMPLE_NAMES = {  # Pillow's numbers
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
_HALF = (0.5, 0.5, 0.5)
_CLIP_DEFAULTS: dict[str, Any] = {
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_VIT_DEFAULTS: dict[str, Any] = {
    "size": 224,
    "do_center_crop": False,
    "resample": 2,
    "image_mean": _HALF,
    "image_std": _HALF,
}
# Class of transformers -> what its settings are where the file names none.
PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP_DEFAULTS,
    "Bit": _CLIP_DEFAULTS,
    "ViT": _VIT_DEFAULTS,
    "Siglip": {**_VIT_DEFAULTS, "resample": 3},
    "DeiT": {**_VIT_DEFAULTS, "size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3},
}
# Classes of transformers that read the same settings in another way.
UNSUPPORTED_PROCESSORS = (
    "ConvNext",
    "EfficientNet",
    "Levit",
    "MobileViT",
    "PoolFormer",
    "Siglip2",
    "Flava",
)
SHORTEST_EDGE_PROCESSORS = ("CLIP", "Bit")  # in which a number as size is the shorter side
USED_KEYS = {
    "size",
    "crop_size",
    "do_center_crop",
    "resample",
    "image_mean",
    "image_std",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
}
IGNORED_KEYS = {  # they change no pixel of an RGB image
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "default_to_square",
    "data_format",
    "input_data_format",
    "device",
    "disable_grouping",
    "return_tensors",
    "num_channels",
    "image_seq_length",
    "patch_size",
}
_logger = logging.getLogger("sensorium")


def read_processor_config(weight_files: WeightFiles, part: str) -> tuple[dict[str, Any], str]:
    """Return the settings of one processor and the name of their file; {} if there are none.

    Args:
        weight_files: The opened files.
        part: Its key in processor_config.json: "image_processor" or "feature_extractor". As in
            transformers, this file goes before preprocessor_config.json.
    """
    combined = weight_files.read_json(COMBINED_PROCESSOR_FILE).get(part)
    if isinstance(combined, dict) and combined:
        return combined, COMBINED_PROCESSOR_FILE
    return weight_files.read_json(PROCESSOR_FILE), PROCESSOR_FILE


def image_preprocessing(weight_files: WeightFiles, image_size: int, default: Image) -> Image:
    """Return the image settings of a Hugging Face image processor.

    Settings that no file names are assumed, which is logged.

    Args:
        weight_files: The opened files.
        image_size: Side of the images that the model takes, in pixels.
        default: The settings without a config, scaled to `image_size`.

    Raises:
        SensoriumError: If the processor makes images of another size than the model takes, or has
            a setting that is not supported.
    """
    config, name = read_processor_config(weight_files, "image_processor")
    path = f"{weight_files.path}/{name}"
    if not config:
        shortest_edge = default.shortest_edge * image_size // default.size
        image = replace(default, size=image_size, shortest_edge=shortest_edge)
        _logger.warning(
            "%s has no %s; settings of the images are assumed: %s.",
            weight_files.path,
            PROCESSOR_FILE,
            image,
        )
        return image
    kind = _processor_class(config)
    _check_keys(config, kind, path)
    settings = {key: value for key, value in config.items() if value is not None}
    image = _build_image(_fill_settings(settings, kind, image_size, default, path), kind, path)
    if image.size != image_size:
        raise SensoriumError(
            f"{path} makes images of {image.size} pixels, but the model takes {image_size}."
        )
    return image


def _processor_class(config: Mapping[str, Any]) -> str:
    """Return the class of the processor without the end of its name, such as "CLIP"."""
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for end in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(end)
    return name


def _check_keys(config: Mapping[str, Any], kind: str, path: str) -> None:
    if kind in UNSUPPORTED_PROCESSORS:
        raise SensoriumError(f"{path} asks for a {kind}ImageProcessor, which is not supported.")
    for key, value in config.items():
        if key in USED_KEYS or key in IGNORED_KEYS or key.startswith("_"):
            continue
        if value not in (None, False, "", [], {}):
            raise SensoriumError(
                f"{path} sets {key}={value!r}, which is not supported. If the model does not need "
                "it, remove the key."
            )
    if config.get("do_resize", True) is False:
        raise SensoriumError(
            f"{path} sets do_resize=False, but the model takes images of one size only. Set it to "
            "true."
        )


def _fill_settings(
    settings: dict[str, Any], kind: str, image_size: int, default: Image, path: str
) -> dict[str, Any]:
    """Add what the file leaves out: the defaults of its class, or else those of the model."""
    known = PROCESSOR_DEFAULTS.get(kind)
    if known is not None:
        return {**known, **settings}
    keeps_aspect = default.resize_mode == "crop"
    defaults = {
        "size": {"shortest_edge": image_size} if keeps_aspect else image_size,
        "crop_size": image_size,
        "do_center_crop": keeps_aspect and not kind,  # another class need not crop
        "resample": next(i for i, name in RESAMPLE_NAMES.items() if name == default.resample),
        "image_mean": default.mean,
        "image_std": default.std,
    }
    assumed = sorted(defaults.keys() - settings.keys())
    if not settings.get("do_center_crop", defaults["do_center_crop"]):
        assumed = [key for key in assumed if key not in ("crop_size", "do_center_crop")]
    if assumed:
        values = ", ".join(f"{key}={defaults[key]}" for key in assumed)
        _logger.warning("%s lacks settings, which are assumed: %s.", path, values)
    return {**defaults, **settings}


def _build_image(settings: Mapping[str, Any], kind: str, path: str) -> Image:
    is_cropped = bool(settings["do_center_crop"])
    resize, keeps_aspect = _parse_size(settings["size"], path)
    if keeps_aspect is None:  # a number, read by older versions as the shorter side before a crop
        is_square_kind = kind in PROCESSOR_DEFAULTS and kind not in SHORTEST_EDGE_PROCESSORS
        keeps_aspect = is_cropped and not is_square_kind
    crop = _parse_size(settings["crop_size"], path)[0] if is_cropped else resize
    if crop > resize:
        raise SensoriumError(
            f"{path} cuts {crop} pixels out of images of {resize}. Make crop_size at most as large "
            "as size."
        )
    if keeps_aspect and not is_cropped:
        raise SensoriumError(
            f"{path} keeps the aspect ratio of images, but the model takes squares only."
        )
    resample = RESAMPLE_NAMES.get(settings["resample"])
    if resample is None:
        raise SensoriumError(
            f"{path} sets resample={settings['resample']!r}, which is unknown. Use a number from 0 "
            "to 5."
        )
    mean, std = _pixel_scale(settings, path)
    return Image(
        size=crop,
        resize_mode="crop" if keeps_aspect else "stretch",
        shortest_edge=resize if is_cropped else 0,
        resample=resample,
        mean=mean,
        std=std,
    )


def _pixel_scale(
    settings: Mapping[str, Any], path: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation on a scale of 0..1, as an Image has them.

    Pixels of 0..255 that are not divided by 255 are normalized by mean and standard deviation on
    their own scale.
    """
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.get("do_normalize", True):
        mean = _parse_channels(settings["image_mean"], "image_mean", path)
        std = _parse_channels(settings["image_std"], "image_std", path)
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise SensoriumError(f"{path} sets rescale_factor={factor!r}. Use a number above 0.")
    scale = 255 * factor
    if math.isclose(scale, 1.0, rel_tol=1e-6):
        return mean, std
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _parse_channels(value: Any, key: str, path: str) -> tuple[float, ...]:
    values = [value] * 3 if isinstance(value, int | float) else value
    is_triple = isinstance(values, list | tuple) and len(values) == 3
    if not is_triple or not all(isinstance(x, int | float) and math.isfinite(x) for x in values):
        raise SensoriumError(f"{path} sets {key}={value!r}. Give three numbers, one per channel.")
    return tuple(values)


def _parse_size(size: Any, path: str) -> tuple[int, bool | None]:
    """Parse 224, {"height": 224, "width": 224} or {"shortest_edge": 224}.

    Returns:
        The side in pixels and whether it is that of the shorter edge; None: the file does not say.
    """
    sides = {"": size} if not isinstance(size, Mapping) else size
    sides = {key: side for key, side in sides.items() if side is not None}
    is_square = len(set(sides.values())) == 1
    is_known = set(sides) in ({""}, {"height", "width"}, {"shortest_edge"})
    if not is_square or not is_known:
        raise SensoriumError(f"{path} asks for the size {size}, which is not a square.")
    side = next(iter(sides.values()))
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise SensoriumError(f"{path} asks for the size {size}. Give whole numbers above 0.")
    return side, None if "" in sides else "shortest_edge" in sides
