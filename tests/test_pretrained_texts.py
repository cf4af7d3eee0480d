"""Texts of pretrained encoders: padding, length, and the result of a text in any batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.parity import assert_close, randomize_weights
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from sensorium.nn.tokens import l2_normalize
from sensorium.pretrained.load import load_pretrained_model

transformers = pytest.importorskip("transformers")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["one", "two", "red", "blue", "cat", "dog", *LETTERS]
TEXTS = ["one red cat", "two", "blue dog one two red cat a b c d", "zebra e f", "x y z"]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
}
VISION = {k: v for k, v in SIZES.items() if k != "vocab_size"} | {"image_size": 8, "patch_size": 4}
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
SPECIAL = ["<bos>", "<pad0>", "<pad1>", "<unk>", "<eos>"]  # ids 0 to 4
HIGHEST = "<highest>"  # an id above that of every other token


def build_tokenizer(pad: str, start: str | None = "<bos>") -> Any:
    """Words of one token each; the pad token has an id of its own, or is another special token."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS, "<last>", HIGHEST])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([*SPECIAL, "<last>", HIGHEST])
    end = "<last>"
    ids = [(token, vocabulary[token]) for token in (start, end) if token]
    template = f"{start} $A {end}" if start else f"$A {end}"
    tokenizer.post_processor = TemplateProcessing(template, special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token=end, pad_token=pad
    )


def clip_config(eos_token_id: int) -> dict[str, Any]:
    text = SIZES | {"max_position_embeddings": 16, "eos_token_id": eos_token_id}
    return {"vision_config": VISION, "text_config": text, "projection_dim": 8}


END_ID = len(SPECIAL) + len(WORDS)
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPModel", clip_config(END_ID)),
    "siglip": (
        "SiglipModel",
        {"vision_config": VISION, "text_config": SIZES | {"max_position_embeddings": 16}},
    ),
    "bert": ("BertModel", SIZES | {"max_position_embeddings": 16}),
    "t5": ("T5EncoderModel", T5_SIZES),
    "roberta": ("RobertaModel", SIZES | {"max_position_embeddings": 18, "pad_token_id": 1}),
    "mpnet": ("MPNetModel", SIZES | {"max_position_embeddings": 18}),
    "distilbert": (
        "DistilBertModel",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2, "vocab_size": 50}
        | {"max_position_embeddings": 16},
    ),
}
PADS = ["<pad0>", "<pad1>", "<unk>", "<eos>", "<last>", HIGHEST]


def save_model(name: str, folder: Path, **changes: Any) -> Any:
    """Save a tiny model with random weights; return it."""
    class_name, settings = ENCODERS[name]
    model_class = getattr(transformers, class_name)
    reference = randomize_weights(model_class(model_class.config_class(**settings, **changes)))
    reference.save_pretrained(folder)
    return reference


def reference_embeddings(name: str, reference: Any, tokenizer: Any) -> torch.Tensor:
    """Embed TEXTS one by one in transformers, so that nothing depends on padding."""
    rows = []
    for text in TEXTS:
        options = {"padding": "max_length"} if name == "siglip" else {}
        inputs = tokenizer(text, truncation=True, max_length=16, return_tensors="pt", **options)
        if name in ("clip", "siglip"):
            features = reference.get_text_features(input_ids=inputs.input_ids)
            vector = getattr(features, "pooler_output", features)
        else:
            output = reference(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
            vector = output.last_hidden_state.mean(1)
        rows.append(l2_normalize(vector))
    return torch.cat(rows).detach()


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_match_the_reference_alone_and_in_a_batch(
    name: str, pad: str, tmp_path: Path
) -> None:
    tokenizer = build_tokenizer(pad)
    reference = save_model(name, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_pretrained_model(tmp_path)
    expected = reference_embeddings(name, reference, tokenizer)
    batch = torch.from_numpy(model.embed(text=TEXTS))
    alone = torch.from_numpy(np.concatenate([model.embed(text=[text]) for text in TEXTS]))
    assert_close(batch, expected)
    assert_close(alone, expected)


@pytest.mark.parametrize("pad", PADS)
def test_clip_with_an_old_end_id_is_the_same_alone_and_in_a_batch(pad: str, tmp_path: Path) -> None:
    class_name, _ = ENCODERS["clip"]
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(**clip_config(eos_token_id=2))
    randomize_weights(model_class(config)).save_pretrained(tmp_path)
    build_tokenizer(pad).save_pretrained(tmp_path)
    model = load_pretrained_model(tmp_path)
    alone = np.concatenate([model.embed(text=[text]) for text in TEXTS])
    np.testing.assert_allclose(model.embed(text=TEXTS), alone, atol=1e-6)


@pytest.mark.parametrize("class_name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_decoder_continues_a_text_the_same_alone_and_in_a_batch(
    class_name: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = SIZES | {"max_position_embeddings": 64}
    if class_name.startswith("GPT2"):
        settings = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 50}
    model_class = getattr(transformers, class_name)
    ids = {"bos_token_id": 0, "eos_token_id": END_ID, "pad_token_id": 2}
    randomize_weights(model_class(model_class.config_class(**settings, **ids))).save_pretrained(
        tmp_path
    )
    build_tokenizer("<pad0>").save_pretrained(tmp_path)
    model = load_pretrained_model(tmp_path)
    alone = [model.generate(text=[text], max_tokens=8)[0] for text in TEXTS]
    assert model.generate(text=TEXTS, max_tokens=8) == alone


@pytest.mark.parametrize("pad_id", [0, 3])
def test_bert_without_tokenizer_config_pads_as_its_tokenizer(pad_id: int, tmp_path: Path) -> None:
    reference = save_model("bert", tmp_path, pad_token_id=pad_id)
    special = ["[UNK]", "[CLS]", "[SEP]"]
    special.insert(pad_id, "[PAD]")
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *WORDS]) + "\n")
    tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == pad_id
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    hidden = reference(**inputs).last_hidden_state
    mask = inputs.attention_mask[..., None].float()
    expected = l2_normalize((hidden * mask).sum(1) / mask.sum(1)).detach()
    model = load_pretrained_model(tmp_path)
    assert_close(torch.from_numpy(model.embed(text=TEXTS)), expected)


def test_tokenizer_without_a_pad_token_pads_with_the_id_of_the_config(tmp_path: Path) -> None:
    save_model("bert", tmp_path, pad_token_id=3)
    tokenizer = build_tokenizer("<pad0>")
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = load_pretrained_model(tmp_path)
    assert getattr(model.preprocessing["text"], "pad", None) == 3
    alone = np.concatenate([model.embed(text=[text]) for text in TEXTS])
    np.testing.assert_allclose(model.embed(text=TEXTS), alone, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "roberta", "mpnet", "distilbert"])
@pytest.mark.parametrize(
    ("files", "length"),
    [
        ({}, 16),
        ({"sentence_bert_config": {"max_seq_length": 6, "do_lower_case": False}}, 6),
        ({"sentence_bert_config": {"max_seq_length": 999}}, 16),
        ({"tokenizer_config": {"model_max_length": 5}}, 5),
        ({"tokenizer_config": {"model_max_length": 10**30}}, 16),
    ],
    ids=["positions", "max_seq_length", "too long", "model_max_length", "no limit"],
)
def test_long_text_is_cut_to_what_the_model_takes(
    name: str, files: dict[str, Any], length: int, tmp_path: Path
) -> None:
    reference = save_model(name, tmp_path)
    tokenizer = build_tokenizer("<pad0>")
    tokenizer.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    for file, content in files.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    text = " ".join(np.random.default_rng(0).choice(WORDS, 600))
    inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
    output = reference(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
    expected = l2_normalize(output.last_hidden_state.mean(1)).detach()
    actual = load_pretrained_model(tmp_path).embed(text=[text])
    assert_close(torch.from_numpy(actual), expected)
