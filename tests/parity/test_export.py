"""A run as OpenCLIP loads it: weights, pictures and tokenizer out of one folder, with the run's own vectors."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.export_cases import TEXTS, pictures, run

from sensorium.export.export import export_model

open_clip = pytest.importorskip("open_clip")


def test_open_clip_loads_it_and_says_the_same(tmp_path: Path) -> None:
    model, out = run(tmp_path, "centre"), tmp_path / "out"
    export_model(model, "open_clip", out)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    theirs.eval()
    with torch.inference_mode():
        seen = torch.stack([preprocess(PIL.Image.fromarray(picture)) for picture in pictures()])
        image, text = theirs.encode_image(seen, True), theirs.encode_text(tokenizer(TEXTS), True)
    assert np.abs(model.embed(image=pictures()) - image.numpy()).max() < 1e-5
    assert np.abs(model.embed(text=TEXTS) - text.numpy()).max() < 1e-5
