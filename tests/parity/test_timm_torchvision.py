"""ViT of timm, ResNets of timm and torchvision, EfficientNet-Lite0 of its package: the same through our core."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import close, hosted, same_gradients, stirred, there_and_back
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


def said(ours: Any, picture: torch.Tensor) -> torch.Tensor:
    """What the reference says: classes, or the vector where there is no head."""
    return ours(picture) if "head" in ours else ours["image"].encode.whole(picture)


@pytest.mark.parametrize("name", REFERENCES)
def test_same_numbers_and_gradients(name: str, tmp_path: Path) -> None:
    family, make, size = PRETRAINED_FAMILIES[REFERENCES[name][0]], *REFERENCES[name][1:]
    theirs = stirred(make())
    save(theirs, tmp_path / "theirs")
    ours, config = hosted(family, tmp_path / "theirs")
    picture = torch.randn(2, 3, size, size)
    expected = theirs(picture)
    close(said(ours, picture), expected)
    back = there_and_back(family, ours, config, tmp_path / "theirs", tmp_path / "back")
    again = make().eval()
    again.load_state_dict(load_file(back / "model.safetensors"))
    assert torch.equal(again(picture), expected)
    exact = picture.double()  # in float32 a relu may turn on by the last bit
    said(ours.double(), exact).square().sum().backward()
    theirs.double()(exact).square().sum().backward()
    same_gradients(family, ours, theirs, config, tmp_path / "slopes", save)
