"""SigLIP, BERT, ViT and T5 in our modules: outputs and gradients of transformers, round trip."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import (
    assert_close,
    assert_round_trip,
    assert_same_gradients,
    load_ours,
    randomize_weights,
)
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
VISION, TEXT = (
    SIZES | {"image_size": 16, "patch_size": 4},
    SIZES | {"vocab_size": 50, "max_position_embeddings": 9},
)
Values = dict[str, Tensor]


def images() -> Values:
    return {"pixel_values": torch.randn(4, 3, 16, 16)}


def texts() -> Values:
    """Ids, and a mask for the padding (0) that ends three of them."""
    ids = torch.randint(1, 50, (4, 9))
    for row, length in enumerate((9, 7, 4, 1)):
        ids[row, length:] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def mean_token(output: Any, inputs: Values) -> Tensor:
    """As sentence-transformers pools and normalises."""
    mask = inputs["attention_mask"][..., None].float()
    return l2_normalize((output.last_hidden_state * mask).sum(1) / mask.sum(1))


def tower(module: nn.Module, kind: str) -> Tower:
    assert isinstance(module, nn.ModuleDict)
    actual = module[kind]
    assert isinstance(actual, Tower)
    return actual


@dataclass(frozen=True)
class Case:
    """A reference model, the inputs of both, and the two outputs that must be equal."""

    family: PretrainedFamily
    model: str
    config: dict[str, Any]
    inputs: Callable[[], Values]
    reference: Callable[[Any, Values], Tensor]
    ours: Callable[[nn.Module, Values], Tensor]
    load: dict[str, Any]


def embed_text(module: nn.Module, inputs: Values) -> Tensor:
    return tower(module, "text")(inputs["input_ids"])


def embed_image(module: nn.Module, inputs: Values) -> Tensor:
    return tower(module, "image")(inputs["pixel_values"])


def first_token(output: Any, inputs: Values) -> Tensor:
    return l2_normalize(output.last_hidden_state[:, 0])


def all_outputs(module: Any, inputs: Values) -> Tensor:
    image, text = embed_image(module, inputs), embed_text(module, inputs)
    logits = module.logit_scale.exp() * text @ image.T + module.logit_bias
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
        {"vision_config": VISION, "text_config": TEXT},
        lambda: images() | {"input_ids": torch.randint(0, 50, (3, 9))},
        lambda output, inputs: torch.cat(
            [x.flatten() for x in (output.image_embeds, output.text_embeds, output.logits_per_text)]
        ),
        all_outputs,
        {},
    ),
    "bert": Case(
        BERT, "BertModel", TEXT, texts, mean_token, embed_text, {"add_pooling_layer": False}
    ),
    "vit": Case(
        VIT, "ViTModel", VISION, images, first_token, embed_image, {"add_pooling_layer": False}
    ),
    "vit classifier": Case(
        VIT,
        "ViTForImageClassification",
        VISION | {"id2label": {i: f"class {i}" for i in range(7)}},
        images,
        lambda output, inputs: output.logits,
        lambda module, inputs: module(inputs["pixel_values"]),
        {},
    ),
    "t5 1.0": Case(
        T5,
        "T5EncoderModel",
        T5_SIZES | {"feed_forward_proj": "relu"},
        texts,
        mean_token,
        embed_text,
        {},
    ),
    "t5 1.1": Case(
        T5,
        "T5EncoderModel",
        T5_SIZES | {"feed_forward_proj": "gated-gelu"},
        texts,
        mean_token,
        embed_text,
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_match_reference(name: str, tmp_path: Path) -> None:
    transformers, case = pytest.importorskip("transformers"), CASES[name]
    kind = getattr(transformers, case.model)
    reference = randomize_weights(kind(kind.config_class(**case.config), **case.load))
    reference.save_pretrained(tmp_path / "reference")
    ours, config = load_ours(case.family, tmp_path / "reference")
    inputs = case.inputs()
    expected, actual = case.reference(reference(**inputs), inputs), case.ours(ours, inputs)
    assert_close(actual, expected)
    weight = torch.randn(expected.shape)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same_gradients(case.family, ours, reference, config, tmp_path / "gradients")
    exported = assert_round_trip(
        case.family, ours, config, tmp_path / "reference", tmp_path / "exported"
    )
    reloaded = kind.from_pretrained(exported, **case.load).eval()
    assert torch.equal(case.reference(reloaded(**inputs), inputs), expected)
