"""OpenCLIP's towers in our modules: same outputs and gradients, weights round trip."""

import json
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

from sensorium.pretrained.open_clip import OPEN_CLIP

open_clip = pytest.importorskip("open_clip")
MODEL = {
    "embed_dim": 20,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 3, "layers": 3},
}


def save(model: Any, folder: Path) -> None:
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    quick = isinstance(model.transformer.resblocks[0].mlp[1], open_clip.transformer.QuickGELU)
    config_json = {
        "model_cfg": MODEL | {"quick_gelu": quick},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config_json))


@pytest.mark.parametrize("quick", [True, False])
def test_outputs_and_gradients_match_reference(quick: bool, tmp_path: Path) -> None:
    reference = perturb_weights(open_clip.CLIP(**MODEL, quick_gelu=quick))
    save(reference, tmp_path / "reference")
    ours, config = load_ours(OPEN_CLIP, tmp_path / "reference")
    images, ids = torch.randn(4, 3, 16, 16), torch.randint(0, 50, (4, 9))
    image, text, scale = reference(images, ids)
    embeddings = ours["image"](images), ours["text"](ids)
    assert_close(embeddings[0], image)
    assert_close(embeddings[1], text)
    (ours.logit_scale.exp() * embeddings[1] @ embeddings[0].T).square().sum().backward()
    (scale * text @ image.T).square().sum().backward()
    assert_same_gradients(OPEN_CLIP, ours, reference, config, tmp_path / "gradients", save)
    exported = assert_round_trip(
        OPEN_CLIP, ours, config, tmp_path / "reference", tmp_path / "exported"
    )
    reloaded = open_clip.CLIP(**MODEL, quick_gelu=quick).eval()
    reloaded.load_state_dict(load_file(exported / "open_clip_model.safetensors"))
    assert torch.equal(reloaded(images, ids)[0], image)
