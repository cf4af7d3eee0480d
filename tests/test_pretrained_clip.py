"""CLIP of transformers in our modules: same outputs and gradients, weights round trip."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.parity import (
    assert_close,
    assert_round_trip,
    assert_same_gradients,
    load_ours,
    randomize_weights,
)
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import sensorium as sn
from sensorium.modalities.text import train_tokenizer
from sensorium.pretrained.clip import CLIP

BATCH = 4
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "vocab_size": 50,
    "max_position_embeddings": 9,
}


def token_ids() -> Tensor:
    """Ids whose end token, 40, is not the highest id, occurs twice in one text and never first."""
    ids = torch.randint(3, 40, (BATCH, 9), generator=torch.Generator().manual_seed(1))
    ids[0, 4], ids[0, 7], ids[1, 8], ids[2, 2], ids[2, 1], ids[3, 5] = 40, 40, 40, 40, 49, 40
    return ids


def config(**overrides: object) -> dict:
    return {
        "vision_config": VISION,
        "text_config": TEXT | {"eos_token_id": 40} | overrides,
        "projection_dim": 20,
    }


@pytest.mark.parametrize(
    "overrides", [{}, {"eos_token_id": 2}, {"hidden_act": "gelu"}], ids=["end", "legacy", "gelu"]
)
def test_outputs_and_gradients_match_reference(overrides: dict, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = randomize_weights(
        transformers.CLIPModel(transformers.CLIPConfig(**config(**overrides)))
    )
    reference.save_pretrained(tmp_path / "reference")
    ours, found_config = load_ours(CLIP, tmp_path / "reference")
    images, ids = torch.randn(BATCH, 3, 16, 16), token_ids()
    expected = reference(input_ids=ids, pixel_values=images)
    embeddings = ours["image"](images), ours["text"](ids)
    assert_close(embeddings[0], expected.image_embeds)
    assert_close(embeddings[1], expected.text_embeds)
    logits = ours.logit_scale.exp() * embeddings[1] @ embeddings[0].T
    assert_close(logits, expected.logits_per_text)
    logits.square().sum().backward()
    expected.logits_per_text.square().sum().backward()
    assert_same_gradients(CLIP, ours, reference, found_config, tmp_path / "gradients")
    exported = assert_round_trip(
        CLIP, ours, found_config, tmp_path / "reference", tmp_path / "exported"
    )
    reloaded = transformers.CLIPModel.from_pretrained(exported).eval()
    assert torch.equal(
        reloaded(input_ids=ids, pixel_values=images).logits_per_text, expected.logits_per_text
    )


def test_folder_embeds_images_and_texts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = small_tokenizer()
    reference = randomize_weights(
        transformers.CLIPModel(
            transformers.CLIPConfig(
                **config(
                    vocab_size=tokenizer.vocab_size,
                    eos_token_id=tokenizer.eos_token_id,
                    bos_token_id=tokenizer.bos_token_id,
                )
            )
        )
    )
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    for part in (reference, tokenizer, processor):
        part.save_pretrained(tmp_path)
    model = sn.load(tmp_path)
    pixels = [np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)]
    texts = ["a red bicycle", "two red and blue cats with a very long bicycle between them", "x"]
    ids = tokenizer(
        texts, truncation=True, max_length=9, padding=True, return_tensors="pt"
    ).input_ids
    expected = reference(input_ids=ids, **processor(pixels, return_tensors="pt"))
    assert_close(torch.from_numpy(model.embed(image=pixels)), expected.image_embeds)
    assert_close(torch.from_numpy(model.embed(text=texts)), expected.text_embeds)


def small_tokenizer() -> Any:
    """A tokenizer like CLIP's: a start token, byte pairs, an end token."""
    import transformers

    tokenizer = train_tokenizer(["a red bicycle", "two blue cats"] * 3, 300)
    start, end = tokenizer.token_to_id("<start>"), tokenizer.token_to_id("<end>")
    tokenizer.post_processor = TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<pad>"
    )
