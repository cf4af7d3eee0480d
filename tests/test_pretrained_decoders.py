"""Pretrained decoders in our modules: same outputs, gradients and texts, weights round trip."""

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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.decoder import PAD_ID
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.gpt2 import GPT2
from sensorium.pretrained.llama import LLAMA
from sensorium.pretrained.load import load_pretrained_model

transformers = pytest.importorskip("transformers")
VOCAB = 61
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
}
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "gpt2": (
        GPT2,
        "GPT2",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB},
    ),
    "llama": (LLAMA, "Llama", SMALL),
    "tied": (
        LLAMA,
        "Llama",
        SMALL
        | {"tie_word_embeddings": True, "head_dim": 6, "attention_bias": True, "mlp_bias": True},
    ),
    "scaled": (LLAMA, "Llama", SMALL | {"rope_parameters": SCALED}),
    "qwen2": (
        LLAMA,
        "Qwen2",
        SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}},
    ),
}
TEXTS = [[3, 7, 11, 2, 9, 30, 44], [5, 60, 1], [17, 17, 8, 29, 50]]


def padded(texts: list[list[int]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(t) for t in texts], batch_first=True, padding_value=PAD_ID
    )


@pytest.fixture(params=MODELS)
def pair(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[PretrainedFamily, Any, Decoder, Any, Path]:
    """The family, the reference model, ours, its config, and the folder of both."""
    family, name, settings = MODELS[request.param]
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    reference = randomize_weights(
        transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, f"{name}Config")(**settings, **ends)
        )
    )
    reference.save_pretrained(tmp_path / "reference")
    ours, config = load_ours(family, tmp_path / "reference")
    assert isinstance(ours, Decoder)
    return family, reference, ours, config, tmp_path / "reference"


def logits(model: Decoder, ids: Tensor) -> Tensor:
    return model.heads["text"](model(Batch({"text": ids}))["text"].x)


def test_outputs_and_gradients_match_reference(
    pair: tuple[PretrainedFamily, Any, Decoder, Any, Path], tmp_path: Path
) -> None:
    family, reference, ours, config, folder = pair
    ids = torch.randint(VOCAB, (3, 40), generator=torch.Generator().manual_seed(1))
    output, expected = logits(ours, ids), reference(ids).logits
    assert_close(output, expected)
    target = torch.randn(output.shape)
    (output * target).sum().backward()
    (expected * target).sum().backward()
    assert_same_gradients(family, ours, reference, config, tmp_path / "gradients")
    exported = assert_round_trip(family, ours, config, folder, tmp_path / "exported")
    reloaded = type(reference).from_pretrained(exported).eval()
    assert torch.equal(reloaded(ids).logits, expected)


def test_decode_steps_match_a_full_pass(
    pair: tuple[PretrainedFamily, Any, Decoder, Any, Path],
) -> None:
    ours, ids, cache = pair[2], padded(TEXTS), KVCache(2)
    more = torch.tensor([[4, 40], [5, 50], [6, 1]])
    with torch.no_grad():
        steps = [ours.prefill(Batch({"text": ids}), "text", cache)]
        steps += [
            ours.decode_step("text", more[:, step], (ids != PAD_ID).sum(1) + step, cache)
            for step in range(2)
        ]
        for row, text in enumerate(TEXTS):
            full = logits(ours, torch.tensor([text + more[row].tolist()]))[0, len(text) - 1 :]
            assert_close(torch.stack([step[row] for step in steps]), full)


def test_greedy_batch_matches_reference_row_by_row(
    pair: tuple[PretrainedFamily, Any, Decoder, Any, Path],
) -> None:
    reference, ours = pair[1], pair[2]
    together = torch.stack(
        list(
            generate(
                ours, Batch({"text": padded(TEXTS)}), "text", 12, SamplingConfig(temperature=0)
            )
        ),
        1,
    )
    for row, text in enumerate(TEXTS):
        expected = reference.generate(
            torch.tensor([text]),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            attention_mask=torch.ones(1, len(text), dtype=torch.long),
            eos_token_id=None,
        )
        assert together[row].tolist() == expected[0, len(text) :].tolist()


GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.": "",
}


def write_gguf(reference: Any, path: Path, quant: str) -> None:
    """Write a Llama as llama.cpp's converter does; `quant` is the type of its matrices."""
    gguf = pytest.importorskip("gguf")
    config, file = reference.config, gguf.GGUFWriter(path, "llama")
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for name, value in reference.state_dict().items():
        kind = gguf.GGMLQuantizationType[quant if value.ndim == 2 else "F32"]
        value.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(value.numpy(), kind), kind)))
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if heads:  # convert_hf_to_gguf.py: permute
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        for hf_name, gguf_name in GGUF_NAMES.items():
            name = name.replace(hf_name, gguf_name)
        file.add_tensor(name, gguf.quantize(value.numpy(), kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_1"])
def test_gguf_outputs_match_reference(quant: str, tied: bool, tmp_path: Path) -> None:
    settings = SMALL | {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": tied}
    reference = randomize_weights(
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    )
    with torch.no_grad():
        write_gguf(reference, tmp_path / "tiny.gguf", quant)
        ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
        model = load_pretrained_model(tmp_path / "tiny.gguf")
        assert isinstance(model.module, Decoder)
        assert_close(logits(model.module, ids), reference(ids).logits)


# Generated text

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> Any:
    """A byte-pair tokenizer of transformers with the markers of a chat."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer, plain.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    plain.train_from_iterator(
        ["the capital of France is Paris"] * 3,
        trainers.BpeTrainer(
            vocab_size=280,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>")


@pytest.fixture
def chat_model(tmp_path: Path) -> tuple[Any, Any, Path]:
    """A random model, its tokenizer, and their folder."""
    hf_tokenizer = tokenizer()
    hf_tokenizer.chat_template = SMOLLM2
    sizes = SMALL | {"vocab_size": len(hf_tokenizer), "max_position_embeddings": 128}
    settings = transformers.LlamaConfig(**sizes, eos_token_id=2)
    reference = randomize_weights(transformers.LlamaForCausalLM(settings))
    reference.save_pretrained(tmp_path / "chat_model")
    hf_tokenizer.save_pretrained(tmp_path / "chat_model")
    return reference, hf_tokenizer, tmp_path / "chat_model"


CONVERSATIONS: list[Any] = [
    "Who are <|im_end|> you?",
    [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Why?"},
    ],
]


def test_chat_prompt_matches_the_template(chat_model: tuple[Any, Any, Path]) -> None:
    _, hf_tokenizer, folder = chat_model
    prompt = load_pretrained_model(folder).preprocessing["prompt"]
    for conversation in CONVERSATIONS[1:]:
        expected = hf_tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        assert prompt.load(conversation).tolist() == expected
    # Two messages end; the marker inside the question is plain text.
    assert (prompt.load(CONVERSATIONS[0]) == 2).sum() == 2


def test_generate_matches_reference(chat_model: tuple[Any, Any, Path]) -> None:
    reference, hf_tokenizer, folder = chat_model
    model = sn.load(folder)
    output = model.generate("text", text=["the capital", "France is"], max_tokens=9)
    for prefix, ours in zip(["the capital", "France is"], output, strict=True):
        ids = hf_tokenizer(prefix, return_tensors="pt")["input_ids"]
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=9,
            do_sample=False,
            pad_token_id=2,
        )[0, ids.shape[1] :]
        assert ours == hf_tokenizer.decode([i for i in expected.tolist() if i != 2])
    assert (
        model.generate("text", prompt="Hi", max_tokens=3)
        == model.generate("text", prompt=["Hi", "Why?"], max_tokens=3)[:1]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ["Hi"]}, "template"),
        ({"text": ["Hi"], "max_tokens": 127}, "128 in all"),
        ({"image": ["a.png"]}, "image"),
        ({"text": [3]}, "found int"),
        ({"text": [""]}, "found ''"),
    ],
)
def test_unsupported_request_is_refused(
    arguments: dict[str, Any], message: str, chat_model: tuple[Any, Any, Path]
) -> None:
    _, hf_tokenizer, folder = chat_model
    hf_tokenizer.chat_template = SMOLLM2.replace("message['content']", "message['content'].upper()")
    hf_tokenizer.save_pretrained(folder)
    with pytest.raises(SensoriumError, match=message):
        sn.load(folder).generate("text", **{"max_tokens": 3, **arguments})
