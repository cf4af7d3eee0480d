"""A run with first weights, small, to be written in other forms."""
from pathlib import Path

import numpy as np
import torch

from sensorium.checkpoint import Model
from sensorium.config import RunConfig
from sensorium.data.schema import Column, Schema
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import build_recipe

TEXTS = ["a red bicycle", "two blue cats on a very long red sofa, and a third, and a fourth behind", "x", "<end> of it"]
SMALL = {"dim": 64, "image_layers": 2, "text_layers": 2, "embed_dim": 16}


def run(tmp_path: Path, square: str = "crop", recipe: str = "clip", **keywords: object) -> Model:
    """A run with first weights; its pictures are as a published model's."""
    text = Text(length=12, vocab_size=300).fit(["a red bicycle", "two blue cats"] * 4)
    image = Image(size=16, resize_mode=square, resample="bicubic")
    schema = Schema({"picture": Column("picture", image), "words": Column("words", text)})
    torch.manual_seed(0)
    made, filled = build_recipe(RECIPES[recipe], schema, SMALL | keywords)
    with torch.no_grad():
        for value in made.model.parameters():
            value.add_(0.1 * torch.randn(value.shape))
    return Model(made, schema, RunConfig(recipe, filled, "fp32", {}), "", tmp_path / "run")


def pictures() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, 40, 23, 3), dtype=np.uint8))
