"""OpenCLIP's own towers through our core: the same numbers, the same gradients, there and back."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.parity import close, hosted, same_gradients, stirred, there_and_back
from safetensors.torch import load_file, save_file
from torch import nn

from sensorium.pretrained.open_clip import OPEN_CLIP

open_clip = pytest.importorskip("open_clip")
MODEL = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 3, "layers": 3},
}


def save(model: nn.Module, folder: Path) -> None:
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    quick = isinstance(model.transformer.resblocks[0].mlp[1], open_clip.transformer.QuickGELU)
    about = {
        "model_cfg": MODEL | {"quick_gelu": quick},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(about))


@pytest.mark.parametrize("quick", [True, False])
def test_same_numbers_and_gradients(quick: bool, tmp_path: Path) -> None:
    theirs = stirred(open_clip.CLIP(**MODEL, quick_gelu=quick))
    save(theirs, tmp_path / "theirs")
    ours, config = hosted(OPEN_CLIP, tmp_path / "theirs")
    pictures, ids = torch.randn(4, 3, 16, 16), torch.randint(0, 50, (4, 9))
    image, text, scale = theirs(pictures, ids)
    vectors = ours["image"](pictures), ours["text"](ids)
    close(vectors[0], image)
    close(vectors[1], text)
    (ours.logit_scale.exp() * vectors[1] @ vectors[0].T).square().sum().backward()
    (scale * text @ image.T).square().sum().backward()
    same_gradients(OPEN_CLIP, ours, theirs, config, tmp_path / "slopes", save)
    back = there_and_back(OPEN_CLIP, ours, config, tmp_path / "theirs", tmp_path / "back")
    again = open_clip.CLIP(**MODEL, quick_gelu=quick).eval()
    again.load_state_dict(load_file(back / "open_clip_model.safetensors"))
    assert torch.equal(again(pictures, ids)[0], image)
