"""ViT of timm, ResNets of timm and torchvision, EfficientNet-Lite0: outputs and gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import (
    assert_close,
    assert_round_trip,
    assert_same_gradients,
    load_ours,
    perturb_weights,
)
from safetensors.torch import load_file, save_file
from torch import nn

from sensorium.pretrained import PRETRAINED_FAMILIES

timm, torchvision = pytest.importorskip("timm"), pytest.importorskip("torchvision")


def lite() -> nn.Module:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    return package.EfficientNet.from_name("efficientnet-lite0")


REFERENCES: dict[str, tuple[str, Callable[[], nn.Module], int]] = {
    "timm vit": (
        "timm_vit",
        lambda: timm.models.VisionTransformer(
            img_size=16, patch_size=4, embed_dim=128, depth=2, num_heads=2, num_classes=7
        ),
        16,
    ),
    "timm vit without a head": (
        "timm_vit",
        lambda: timm.models.VisionTransformer(
            img_size=16, patch_size=4, embed_dim=128, depth=2, num_heads=2, num_classes=0
        ),
        16,
    ),
    "timm resnet18": ("resnet", lambda: timm.create_model("resnet18", num_classes=7), 64),
    "timm resnet50": ("resnet", lambda: timm.create_model("resnet50", num_classes=7), 64),
    "torchvision resnet18": ("resnet", lambda: torchvision.models.resnet18(num_classes=7), 64),
    "torchvision resnet50": ("resnet", lambda: torchvision.models.resnet50(num_classes=7), 64),
    "efficientnet-lite0": ("efficientnet_lite0", lite, 224),
}


def save(model: Any, folder: Path) -> None:
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")


def classes_or_embedding(ours: Any, image_batch: torch.Tensor) -> torch.Tensor:
    """Our output: logits, or the pooled embedding without a head."""
    return ours(image_batch) if "head" in ours else ours["image"].encoder.pooled(image_batch)


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_and_gradients_match_reference(name: str, tmp_path: Path) -> None:
    family, make, size = PRETRAINED_FAMILIES[REFERENCES[name][0]], *REFERENCES[name][1:]
    reference = perturb_weights(make())
    save(reference, tmp_path / "reference")
    ours, config = load_ours(family, tmp_path / "reference")
    image_batch = torch.randn(2, 3, size, size)
    expected = reference(image_batch)
    assert_close(classes_or_embedding(ours, image_batch), expected)
    exported = assert_round_trip(
        family, ours, config, tmp_path / "reference", tmp_path / "exported"
    )
    reloaded = make().eval()
    reloaded.load_state_dict(load_file(exported / "model.safetensors"))
    assert torch.equal(reloaded(image_batch), expected)
    double_batch = image_batch.double()  # in float32 a relu may turn on by the last bit
    classes_or_embedding(ours.double(), double_batch).square().sum().backward()
    reference.double()(double_batch).square().sum().backward()
    assert_same_gradients(family, ours, reference, config, tmp_path / "gradients", save)
