"""Published decoders through our core: the same numbers, the same gradients, the same words, there and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import close, hosted, lively, same_gradients, there_and_back
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.attention import KVCache
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.decoder import PAD_ID
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.gpt2 import GPT2
from sensorium.pretrained.llama import LLAMA

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
    """The family, their model, ours, its config and the folder that both were read from."""
    family, name, settings = MODELS[request.param]
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    theirs = lively(
        transformers.AutoModelForCausalLM.from_config(
            getattr(transformers, f"{name}Config")(**settings, **ends)
        )
    )
    theirs.save_pretrained(tmp_path / "theirs")
    ours, config = hosted(family, tmp_path / "theirs")
    assert isinstance(ours, Decoder)
    return family, theirs, ours, config, tmp_path / "theirs"


def logits(model: Decoder, ids: Tensor) -> Tensor:
    return model.heads["text"](model(Batch({"text": ids}))["text"].x)


def test_same_numbers_and_gradients(
    pair: tuple[PretrainedFamily, Any, Decoder, Any, Path], tmp_path: Path
) -> None:
    family, theirs, ours, config, folder = pair
    ids = torch.randint(VOCAB, (3, 40), generator=torch.Generator().manual_seed(1))
    said, expected = logits(ours, ids), theirs(ids).logits
    close(said, expected)
    target = torch.randn(said.shape)
    (said * target).sum().backward()
    (expected * target).sum().backward()
    same_gradients(family, ours, theirs, config, tmp_path / "slopes")
    back = there_and_back(family, ours, config, folder, tmp_path / "back")
    again = type(theirs).from_pretrained(back).eval()
    assert torch.equal(again(ids).logits, expected)


def test_what_is_read_step_by_step_is_what_is_read_at_once(
    pair: tuple[PretrainedFamily, Any, Decoder, Any, Path],
) -> None:
    ours, ids, cache = pair[2], padded(TEXTS), KVCache(2)
    more = torch.tensor([[4, 40], [5, 50], [6, 1]])
    with torch.no_grad():
        steps = [ours.prefill(Batch({"text": ids}), "text", cache)]
        for step in range(2):
            steps.append(
                ours.decode_step("text", more[:, step], (ids != PAD_ID).sum(1) + step, cache)
            )
        for row, text in enumerate(TEXTS):
            whole = logits(ours, torch.tensor([text + more[row].tolist()]))[0, len(text) - 1 :]
            close(torch.stack([step[row] for step in steps]), whole)


def test_same_words_one_by_one_and_together(
    pair: tuple[PretrainedFamily, Any, Decoder, Any, Path],
) -> None:
    theirs, ours = pair[1], pair[2]
    together = torch.stack(
        list(
            generate(
                ours, Batch({"text": padded(TEXTS)}), "text", 12, SamplingConfig(temperature=0)
            )
        ),
        1,
    )
    for row, text in enumerate(TEXTS):
        expected = theirs.generate(
            torch.tensor([text]),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            attention_mask=torch.ones(1, len(text), dtype=torch.long),
            eos_token_id=None,
        )
        assert together[row].tolist() == expected[0, len(text) :].tolist()


IN_GGUF = {
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


def in_gguf(theirs: Any, path: Path, quant: str) -> None:
    """A Llama of transformers as llama.cpp's converter writes it; `quant`: how matrices are stored."""
    gguf = pytest.importorskip("gguf")
    about, file = theirs.config, gguf.GGUFWriter(path, "llama")
    file.add_block_count(about.num_hidden_layers)
    file.add_context_length(about.max_position_embeddings)
    file.add_embedding_length(about.hidden_size)
    file.add_feed_forward_length(about.intermediate_size)
    file.add_head_count(about.num_attention_heads)
    file.add_head_count_kv(about.num_key_value_heads)
    file.add_layer_norm_rms_eps(about.rms_norm_eps)
    file.add_rope_freq_base(about.rope_parameters["rope_theta"])
    for name, value in theirs.state_dict().items():
        kind = gguf.GGMLQuantizationType[quant if value.ndim == 2 else "F32"]
        value.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(value.numpy(), kind), kind)))
        heads = {"q_proj": about.num_attention_heads, "k_proj": about.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if heads:  # convert_hf_to_gguf.py: permute
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        for their, its in IN_GGUF.items():
            name = name.replace(their, its)
        file.add_tensor(name, gguf.quantize(value.numpy(), kind), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("quant", ["F32", "F16", "Q8_0", "Q4_1"])
def test_gguf_says_what_its_numbers_say(quant: str, tied: bool, tmp_path: Path) -> None:
    settings = SMALL | {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": tied}
    theirs = lively(transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)))
    with torch.no_grad():
        in_gguf(theirs, tmp_path / "tiny.gguf", quant)
        ids = torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(1))
        model = sn.load(tmp_path / "tiny.gguf")
        close(logits(model.module, ids), theirs(ids).logits)


# ------------------------------------------------------------------------------------------------ words

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>"
    "\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer() -> Any:
    """A byte-pair tokenizer with the markers of a chat, as transformers keeps it."""
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
def chatty(tmp_path: Path) -> tuple[Any, Any, Path]:
    """A model that was never taught anything, its tokenizer, and their folder."""
    words = tokenizer()
    words.chat_template = SMOLLM2
    sizes = SMALL | {"vocab_size": len(words), "max_position_embeddings": 128}
    settings = transformers.LlamaConfig(**sizes, eos_token_id=2)
    theirs = lively(transformers.LlamaForCausalLM(settings))
    theirs.save_pretrained(tmp_path / "chatty")
    words.save_pretrained(tmp_path / "chatty")
    return theirs, words, tmp_path / "chatty"


CONVERSATIONS: list[Any] = [
    "Who are <|im_end|> you?",
    [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Why?"},
    ],
]


def test_a_question_is_put_as_the_template_says(chatty: tuple[Any, Any, Path]) -> None:
    _, words, folder = chatty
    asked = sn.load(folder).preprocessing["prompt"]
    for conversation in CONVERSATIONS[1:]:
        theirs = words.apply_chat_template(
            conversation, add_generation_prompt=True, return_dict=False
        )
        assert asked.load(conversation).tolist() == theirs
    assert (
        asked.load(CONVERSATIONS[0]) == 2
    ).sum() == 2  # the system's end and the user's, not the word


def test_the_verb_says_what_theirs_says(chatty: tuple[Any, Any, Path]) -> None:
    theirs, words, folder = chatty
    model = sn.load(folder)
    said = model.generate("text", text=["the capital", "France is"], length=9)
    for beginning, ours in zip(["the capital", "France is"], said, strict=True):
        ids = words(beginning, return_tensors="pt")["input_ids"]
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=9,
            do_sample=False,
            pad_token_id=2,
        )[0, ids.shape[1] :]
        assert ours == words.decode([i for i in expected.tolist() if i != 2])
    assert (
        model.generate("text", prompt="Hi", length=3)
        == model.generate("text", prompt=["Hi", "Why?"], length=3)[:1]
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": ["Hi"]}, "template"),
        ({"text": ["Hi"], "length": 127}, "128 in all"),
        ({"image": ["a.png"]}, "image"),
        ({"text": [3]}, "found int"),
        ({"text": [""]}, "found ''"),
    ],
)
def test_what_cannot_be_asked_is_said(
    asked: dict[str, Any], said: str, chatty: tuple[Any, Any, Path]
) -> None:
    _, words, folder = chatty
    words.chat_template = SMOLLM2.replace("message['content']", "message['content'].upper()")
    words.save_pretrained(folder)
    with pytest.raises(SensoriumError, match=said):
        sn.load(folder).generate("text", **{"length": 3, **asked})
