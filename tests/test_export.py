"""The way out: a run as Hugging Face's CLIP and as graphs, with the run's own vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.export_cases import TEXTS, pictures, run

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.export.export import export_model


def test_transformers_loads_it_and_says_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, out = run(tmp_path), tmp_path / "out"
    assert export_model(model, "hf", out)["vectors"] < 1e-5
    theirs = transformers.CLIPModel.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(out)
    words = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        said = theirs(input_ids=words.input_ids, **processor(pictures(), return_tensors="pt"))
    assert torch.from_numpy(model.embed(image=pictures())).sub(said.image_embeds).abs().max() < 1e-5
    assert torch.from_numpy(model.embed(text=TEXTS)).sub(said.text_embeds).abs().max() < 1e-5
    assert theirs.logit_scale.item() == pytest.approx(model.module.log_scale.item())
    assert (
        theirs.config.text_config.eos_token_id != 2
    )  # or transformers would look for the highest id
    again = sn.load(out)
    assert np.abs(again.embed(text=TEXTS) - model.embed(text=TEXTS)).max() < 1e-5


def test_open_clip_folder_comes_back_the_same(tmp_path: Path) -> None:
    model, out = run(tmp_path, "centre"), tmp_path / "out"
    export_model(model, "open_clip", out)
    again = sn.load(out)
    assert np.abs(again.embed(text=TEXTS) - model.embed(text=TEXTS)).max() < 1e-5
    assert np.abs(again.embed(image=pictures()) - model.embed(image=pictures())).max() < 1e-5


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"image_encoder": "resnet", "image_layers": 3}, "tower=vit"),
        ({"projection": "nonlinear"}, "no place for"),
        ({"loss": "siglip"}, "bias"),
    ],
)
def test_what_clip_cannot_hold_is_said(tmp_path: Path, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(SensoriumError, match=said):
        export_model(run(tmp_path, **keywords), "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SensoriumError, match="new folder"):
        export_model(run(tmp_path), "torch", tmp_path)
