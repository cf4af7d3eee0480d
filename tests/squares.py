"""A published CLIP that nobody trained, and squares of four colours: fixtures for what starts from trained weights."""
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from sensorium import durable
from sensorium.data.dataset import Dataset
from sensorium.modalities.text import train_tokenizer
from sensorium.published import PRETRAINED_FAMILIES
from sensorium.published.published import export_from

CONFIG = {"model_type": "clip", "projection_dim": 16,
          "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                            "num_attention_heads": 2, "image_size": 16, "patch_size": 4},
          "text_config": {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
                          "vocab_size": 300, "max_position_embeddings": 12, "eos_token_id": 2}}
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 30), "blue": (20, 30, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Hugging Face would hold it, with weights nobody trained."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    module = PRETRAINED_FAMILIES["clip"].build_module(CONFIG)
    save_file(export_from(module, PRETRAINED_FAMILIES["clip"].map_weights(CONFIG)), folder / "model.safetensors")
    durable.write_json(folder / "config.json", CONFIG)
    tokenizer = train_tokenizer([f"a {colour} square" for colour in COLOURS], 300)
    tokenizer.post_processor = TemplateProcessing(single="<start> $A <end>", pair=None,
                                                  special_tokens=[("<start>", 1), ("<end>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    durable.write_json(folder / "tokenizer_config.json", {"pad_token": "<pad>"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Squares of four colours in 48 shades, and what they are called."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for i in range(48):
        name, colour = list(COLOURS.items())[i % 4]
        shade = np.clip(np.array(colour) + rng.integers(-20, 20, 3), 0, 255).astype(np.uint8)
        Picture.fromarray(np.broadcast_to(shade, (16, 16, 3)).copy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {name} square")
    return Dataset.open(folder)
