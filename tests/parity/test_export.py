"""An exported run in OpenCLIP: same embeddings from its weights, preprocessing and tokenizer."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.export_cases import TEXTS, example_images, untrained_run

from sensorium.export.export import export_model

open_clip = pytest.importorskip("open_clip")


def test_exported_run_has_the_same_embeddings_in_open_clip(tmp_path: Path) -> None:
    model, out = untrained_run(tmp_path, "centre"), tmp_path / "out"
    export_model(model, "open_clip", out)
    reference, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    reference.eval()
    with torch.inference_mode():
        batch = torch.stack([preprocess(PIL.Image.fromarray(image)) for image in example_images()])
        image, text = (
            reference.encode_image(batch, True),
            reference.encode_text(tokenizer(TEXTS), True),
        )
    assert np.abs(model.embed(image=example_images()) - image.numpy()).max() < 1e-5
    assert np.abs(model.embed(text=TEXTS) - text.numpy()).max() < 1e-5
