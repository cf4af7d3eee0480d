"""Settings of Hugging Face image processors: the same pixels as transformers, or a refusal."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.pretrained.image_processor import (
    COMBINED_PROCESSOR_FILE,
    PROCESSOR_FILE,
    image_preprocessing,
)
from sensorium.pretrained.preprocessing import CLIP_IMAGE
from sensorium.pretrained.tensor_source import LazyTensors
from sensorium.pretrained.weight_files import WeightFiles

VIT_IMAGE = Image(size=224, resize_mode="stretch", resample="bilinear")
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "crop": ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": 32}),
    "inside": ("CLIP", {"size": {"shortest_edge": 36}, "crop_size": 32, "resample": 2}),
    "stretch": ("CLIP", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
    "stretch and crop": ("DeiT", {"size": {"height": 37, "width": 37}, "crop_size": 32}),
    "vit": ("ViT", {"size": {"height": 32, "width": 32}}),
    "siglip": ("Siglip", {"size": {"height": 32, "width": 32}}),
    "no rescale": ("ViT", {"size": {"height": 32, "width": 32}, "do_rescale": False}),
    "no normalize": (
        "CLIP",
        {"size": {"shortest_edge": 32}, "crop_size": 32, "do_normalize": False},
    ),
    "neither": (
        "ViT",
        {"size": {"height": 32, "width": 32}, "do_rescale": False, "do_normalize": False},
    ),
    "factor": ("ViT", {"size": {"height": 32, "width": 32}, "rescale_factor": 1 / 127.5}),
    "statistics": (
        "ViT",
        {
            "size": {"height": 32, "width": 32},
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
            "rescale_factor": 0.01,
        },
    ),
}


def files_with(folder: Path, **contents: Any) -> WeightFiles:
    """Return opened files of a folder with JSON files, named without their suffix."""
    files = {}
    for name, content in contents.items():
        files[f"{name}.json"] = folder / f"{name}.json"
        files[f"{name}.json"].write_text(json.dumps(content))
    return WeightFiles(folder, LazyTensors({}), {}, files)


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40), (33, 131)])
@pytest.mark.parametrize("combined", [False, True], ids=["own file", "processor_config"])
@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_match_the_processor(
    name: str, combined: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    kind, settings = SETTINGS[name]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = processor(PIL.Image.fromarray(pixels), return_tensors="pt").pixel_values
    config = json.loads(processor.to_json_string())
    weight_files = (
        files_with(tmp_path, processor_config={"image_processor": config})
        if combined
        else files_with(tmp_path, preprocessor_config=config)
    )
    ours = image_preprocessing(weight_files, 32, Image(resample="nearest"))
    error = (ours.collate([ours.load(pixels)]) - expected).abs().max()
    assert error < 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("kind", ["CLIP", "ViT", "Siglip", "DeiT", "Bit"])
def test_settings_that_the_file_leaves_out_are_those_of_the_class(
    kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    processor = getattr(transformers, f"{kind}ImageProcessorPil")()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    expected = processor(PIL.Image.fromarray(pixels), return_tensors="pt").pixel_values
    config = {"image_processor_type": f"{kind}ImageProcessorFast"}
    ours = image_preprocessing(
        files_with(tmp_path, preprocessor_config=config), 224, Image(resample="nearest")
    )
    assert (ours.collate([ours.load(pixels)]) - expected).abs().max() < 1e-5


def test_combined_file_goes_before_the_own_one(tmp_path: Path) -> None:
    own = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1] * 3}
    combined = {"image_processor": {**own, "image_mean": [0.2] * 3}, "processor_class": "x"}
    weight_files = files_with(tmp_path, preprocessor_config=own, processor_config=combined)
    assert image_preprocessing(weight_files, 224, VIT_IMAGE).mean == (0.2, 0.2, 0.2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"do_resize": False}, "do_resize"),
        ({"do_pad": True}, "do_pad"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"resample": 17}, "resample=17"),
        ({"rescale_factor": 0}, "rescale_factor=0"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": ["a", "b", "c"]}, "image_std"),
        ({"size": {"height": 32, "width": 30}}, "not a square"),
        ({"size": "big"}, "size big"),
        ({"size": {"longest_edge": 32}}, "longest_edge"),
        ({"size": {"height": 33, "width": 33}}, "33 pixels"),
        ({"do_center_crop": True, "crop_size": 64}, "64 pixels out of images of 32"),
        ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
    ],
)
def test_unsupported_setting_is_refused_by_name(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    weight_files = files_with(tmp_path, preprocessor_config=config | changes)
    with pytest.raises(SensoriumError) as caught:
        image_preprocessing(weight_files, 32, VIT_IMAGE)
    assert expected in str(caught.value)
    assert PROCESSOR_FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_assumed_settings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sensorium"):
        image = image_preprocessing(files_with(tmp_path), 32, CLIP_IMAGE)
    assert image.size == 32
    assert PROCESSOR_FILE in caplog.text
    assert "bicubic" in caplog.text
    caplog.clear()
    config = {"image_processor_type": "NewImageProcessor", "size": {"height": 32, "width": 32}}
    with caplog.at_level(logging.WARNING, "sensorium"):
        image_preprocessing(
            files_with(tmp_path, processor_config={"image_processor": config}), 32, VIT_IMAGE
        )
    assert COMBINED_PROCESSOR_FILE in caplog.text
    assert "image_mean" in caplog.text
