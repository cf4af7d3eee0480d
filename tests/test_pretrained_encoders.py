"""SigLIP, BERT, ViT and T5 through our core: the numbers and gradients of transformers, there and back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import close, hosted, lively, same_gradients, there_and_back
from torch import Tensor, nn

from sensorium.models.towers import Tower
from sensorium.nn.tokens import l2_normalize
from sensorium.pretrained.bert import BERT
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.siglip import SIGLIP
from sensorium.pretrained.t5 import T5
from sensorium.pretrained.vit import VIT

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EYE, VOICE = (
    SIZES | {"image_size": 16, "patch_size": 4},
    SIZES | {"vocab_size": 50, "max_position_embeddings": 9},
)
Values = dict[str, Tensor]


def pictures() -> Values:
    return {"pixel_values": torch.randn(4, 3, 16, 16)}


def texts() -> Values:
    """Ids, and a mask for the padding (0) that ends three of them."""
    ids = torch.randint(1, 50, (4, 9))
    for row, length in enumerate((9, 7, 4, 1)):
        ids[row, length:] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def mean(said: Any, given: Values) -> Tensor:
    """As sentence-transformers pools and normalises."""
    there = given["attention_mask"][..., None].float()
    return l2_normalize((said.last_hidden_state * there).sum(1) / there.sum(1))


def tower(module: nn.Module, kind: str) -> Tower:
    assert isinstance(module, nn.ModuleDict)
    found = module[kind]
    assert isinstance(found, Tower)
    return found


@dataclass(frozen=True)
class Case:
    """A reference, what is put into both, and the two answers that must be one."""

    family: PretrainedFamily
    model: str
    config: dict[str, Any]
    given: Callable[[], Values]
    theirs: Callable[[Any, Values], Tensor]
    ours: Callable[[nn.Module, Values], Tensor]
    load: dict[str, Any]


def words(module: nn.Module, given: Values) -> Tensor:
    return tower(module, "text")(given["input_ids"])


def sees(module: nn.Module, given: Values) -> Tensor:
    return tower(module, "image")(given["pixel_values"])


def first(said: Any, given: Values) -> Tensor:
    return l2_normalize(said.last_hidden_state[:, 0])


def both(module: Any, given: Values) -> Tensor:
    image, text = sees(module, given), words(module, given)
    logits = module.log_scale.exp() * text @ image.T + module.bias
    return torch.cat([image.flatten(), text.flatten(), logits.flatten()])


T5_SIZES = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 50,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
CASES = {
    "siglip": Case(
        SIGLIP,
        "SiglipModel",
        {"vision_config": EYE, "text_config": VOICE},
        lambda: pictures() | {"input_ids": torch.randint(0, 50, (3, 9))},
        lambda said, given: torch.cat(
            [x.flatten() for x in (said.image_embeds, said.text_embeds, said.logits_per_text)]
        ),
        both,
        {},
    ),
    "bert": Case(BERT, "BertModel", VOICE, texts, mean, words, {"add_pooling_layer": False}),
    "vit": Case(VIT, "ViTModel", EYE, pictures, first, sees, {"add_pooling_layer": False}),
    "vit that names": Case(
        VIT,
        "ViTForImageClassification",
        EYE | {"id2label": {i: f"thing {i}" for i in range(7)}},
        pictures,
        lambda said, given: said.logits,
        lambda module, given: module(given["pixel_values"]),
        {},
    ),
    "t5 1.0": Case(
        T5, "T5EncoderModel", T5_SIZES | {"feed_forward_proj": "relu"}, texts, mean, words, {}
    ),
    "t5 1.1": Case(
        T5, "T5EncoderModel", T5_SIZES | {"feed_forward_proj": "gated-gelu"}, texts, mean, words, {}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_same_numbers_and_gradients(name: str, tmp_path: Path) -> None:
    transformers, case = pytest.importorskip("transformers"), CASES[name]
    kind = getattr(transformers, case.model)
    theirs = lively(kind(kind.config_class(**case.config), **case.load))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, config = hosted(case.family, tmp_path / "theirs")
    given = case.given()
    expected, found = case.theirs(theirs(**given), given), case.ours(ours, given)
    close(found, expected)
    weight = torch.randn(expected.shape)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    same_gradients(case.family, ours, theirs, config, tmp_path / "slopes")
    back = there_and_back(case.family, ours, config, tmp_path / "theirs", tmp_path / "back")
    again = kind.from_pretrained(back, **case.load).eval()
    assert torch.equal(case.theirs(again(**given), given), expected)
