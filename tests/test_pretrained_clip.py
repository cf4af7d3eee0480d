"""CLIP of Hugging Face through our core: the same numbers, the same gradients, there and back."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.parity import close, hosted, lively, same_gradients, there_and_back
from tokenizers.processors import TemplateProcessing
from torch import Tensor

import sensorium as sn
from sensorium.modalities.image import Image
from sensorium.modalities.text import train_tokenizer
from sensorium.pretrained.clip import CLIP
from sensorium.pretrained.preprocessing import image_preprocessing

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


def words() -> Tensor:
    """Ids whose end token, 40, is not the highest, stands twice in one text, and never comes first."""
    ids = torch.randint(3, 40, (BATCH, 9), generator=torch.Generator().manual_seed(1))
    ids[0, 4], ids[0, 7], ids[1, 8], ids[2, 2], ids[2, 1], ids[3, 5] = 40, 40, 40, 40, 49, 40
    return ids


def config(**changed: object) -> dict:
    return {
        "vision_config": VISION,
        "text_config": TEXT | {"eos_token_id": 40} | changed,
        "projection_dim": 20,
    }


@pytest.mark.parametrize(
    "changed", [{}, {"eos_token_id": 2}, {"hidden_act": "gelu"}], ids=["end", "legacy", "gelu"]
)
def test_same_numbers_and_gradients(changed: dict, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = lively(transformers.CLIPModel(transformers.CLIPConfig(**config(**changed))))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, found = hosted(CLIP, tmp_path / "theirs")
    pictures, ids = torch.randn(BATCH, 3, 16, 16), words()
    said = theirs(input_ids=ids, pixel_values=pictures)
    vectors = ours["image"](pictures), ours["text"](ids)
    close(vectors[0], said.image_embeds)
    close(vectors[1], said.text_embeds)
    logits = ours.logit_scale.exp() * vectors[1] @ vectors[0].T
    close(logits, said.logits_per_text)
    logits.square().sum().backward()
    said.logits_per_text.square().sum().backward()
    same_gradients(CLIP, ours, theirs, found, tmp_path / "slopes")
    back = there_and_back(CLIP, ours, found, tmp_path / "theirs", tmp_path / "back")
    again = transformers.CLIPModel.from_pretrained(back).eval()
    assert torch.equal(
        again(input_ids=ids, pixel_values=pictures).logits_per_text, said.logits_per_text
    )


@pytest.mark.parametrize("extent", [(97, 61), (61, 97), (40, 40), (33, 131)])
@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 32}, "crop_size": 32},
        {"size": {"shortest_edge": 36}, "crop_size": 32, "resample": 2},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    ],
    ids=["crop", "inside", "stretch"],
)
def test_pixels_are_those_of_its_processor(extent: tuple[int, int], settings: dict) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessorPil(**settings)
    drawn = np.random.default_rng(0).integers(0, 256, (*extent, 3), dtype=np.uint8)
    theirs = processor(PIL.Image.fromarray(drawn), return_tensors="pt").pixel_values
    ours = image_preprocessing(processor.to_dict(), 32, Image())
    assert ours.std == pytest.approx(processor.image_std)
    assert (ours.collate([ours.load(drawn)]) - theirs).abs().max() < 1e-5


def test_a_folder_embeds_pictures_and_words(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = words_of_ours()
    theirs = lively(
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
    for part in (theirs, tokenizer, processor):
        part.save_pretrained(tmp_path)
    model = sn.load(tmp_path)
    drawn = [np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)]
    texts = ["a red bicycle", "two red and blue cats with a very long bicycle between them", "x"]
    ids = tokenizer(
        texts, truncation=True, max_length=9, padding=True, return_tensors="pt"
    ).input_ids
    said = theirs(input_ids=ids, **processor(drawn, return_tensors="pt"))
    close(torch.from_numpy(model.embed(image=drawn)), said.image_embeds)
    close(torch.from_numpy(model.embed(text=texts)), said.text_embeds)


def words_of_ours() -> Any:
    """A tokenizer as CLIP's: a start, byte pairs, an end."""
    import transformers

    made = train_tokenizer(["a red bicycle", "two blue cats"] * 3, 300)
    start, end = made.token_to_id("<start>"), made.token_to_id("<end>")
    made.post_processor = TemplateProcessing(
        "<start> $A <end>", special_tokens=[("<start>", start), ("<end>", end)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<start>", eos_token="<end>", pad_token="<pad>"
    )
