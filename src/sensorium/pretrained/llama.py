"""Llama (Touvron et al. 2023) and what is built like it (SmolLM2, Mistral, Qwen2), from transformers or from GGUF.

D width   K head width
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.attention import Attention
from sensorium.nn.linear import Linear
from sensorium.nn.positional import Rotary
from sensorium.nn.transformer import Block, GatedFeedForward, Transformer
from sensorium.pretrained.decoder import CausalTokenEmbedding, build_text_decoder
from sensorium.pretrained.family import ModelConfig, PretrainedFamily, WeightMapping, concat, rename
from sensorium.pretrained.generate_text import build_verbs, preprocessing
from sensorium.pretrained.weight_files import WeightFiles

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2")
TENSOR_NAMES = {  # what each calls the parts of the whole, and those of a layer
    "safetensors": {
        "ids": "model.embed_tokens",
        "last": "model.norm",
        "head": "lm_head",
        "layer": "model.layers",
        "norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    "gguf": {
        "ids": "token_embd",
        "last": "output_norm",
        "head": "output",
        "layer": "blk",
        "norm": "attn_norm",
        "mlp_norm": "ffn_norm",
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "out": "attn_output",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    },
}
GGUF_KEYS = {  # of GGUF, after "llama." or "qwen2.": as transformers calls them
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
ROPE_SCALING_KEYS = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "trained": "original_max_position_embeddings",
}


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Its config as transformers writes it, and what it leaves unsaid: "layout", "tied", "qkv_bias", "out_bias".

    Raises SensoriumError for a kind of attention or of positions that is not hosted.
    """
    config = (
        _config_from_gguf(weight_files) if weight_files.layout == "gguf" else weight_files.config
    )
    kind = config.get("model_type")
    if kind not in SUPPORTED_MODEL_TYPES or weight_files.layout not in TENSOR_NAMES:
        return None
    if config.get("sliding_window") and (kind != "qwen2" or config.get("use_sliding_window")):
        raise SensoriumError(f"{weight_files.path}: attention in a sliding window is not hosted")
    biased = kind == "qwen2" or bool(config.get("attention_bias"))
    tied = TENSOR_NAMES[weight_files.layout]["head"] + ".weight" not in weight_files.tensors
    return {
        **config,
        "layout": weight_files.layout,
        "tied": tied or bool(config.get("tie_word_embeddings")),
        "qkv_bias": biased,
        "out_bias": biased and kind != "qwen2",
    }


def _config_from_gguf(weight_files: WeightFiles) -> dict[str, Any]:
    about, kind = weight_files.config, weight_files.config.get("general.architecture")
    config = {
        theirs: about[f"{kind}.{key}"]
        for key, theirs in GGUF_KEYS.items()
        if f"{kind}.{key}" in about
    }
    if about.get(f"{kind}.rope.scaling.type", "none") not in ("none", ""):
        config["rope_scaling"] = {
            "type": about[f"{kind}.rope.scaling.type"],
            "factor": about.get(f"{kind}.rope.scaling.factor"),
        }
    if "rope_freqs.weight" in weight_files.tensors:
        config["slower"] = weight_files.tensors["rope_freqs.weight"].tolist()
    return {
        **config,
        "model_type": kind,
        "vocab_size": (weight_files.tensors.get_shape("token_embd.weight") or (0,))[0],
        "eos_token_id": about.get("tokenizer.ggml.eos_token_id"),
    }


def build_module(config: ModelConfig) -> Decoder:
    dim, heads, head, kv_heads = _attention_sizes(config)
    rotary = build_rotary(head, config)

    def norm() -> nn.RMSNorm:
        return nn.RMSNorm(dim, eps=config["rms_norm_eps"])

    def block() -> Block:
        attention = Attention(
            dim,
            heads,
            width=heads * head,
            kv_heads=kv_heads,
            bias=config["qkv_bias"],
            position=rotary,
        )
        attention.out = Linear(heads * head, dim, bias=config["out_bias"])
        mlp = GatedFeedForward(dim, config["intermediate_size"], bias=bool(config.get("mlp_bias")))
        return Block(attention, mlp, (norm(), norm()))

    trunk = Transformer([block() for _ in range(config["num_hidden_layers"])], final_norm=norm())
    return build_text_decoder(
        CausalTokenEmbedding(config["vocab_size"], dim), trunk, tied=config["tied"]
    )


def _attention_sizes(config: ModelConfig) -> tuple[int, int, int, int]:
    """D, heads, K, heads of keys and values."""
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    return (
        dim,
        heads,
        config.get("head_dim") or dim // heads,
        config.get("num_key_value_heads") or heads,
    )


def build_rotary(head_dim: int, config: ModelConfig) -> Rotary:
    """At the rates that a config asks for, as transformers wrote them up to its version 4 or since."""
    how: dict[str, Any] = {
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    rotary = Rotary(head_dim, how.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = how.get("rope_type") or how.get("type") or "default"
    if kind == "llama3":
        rotary.inv_freq = scale_rope_rates(
            rotary.inv_freq, **{ours: how[theirs] for ours, theirs in ROPE_SCALING_KEYS.items()}
        )
    elif kind == "linear":
        rotary.inv_freq = rotary.inv_freq / how["factor"]
    elif kind != "default":
        raise SensoriumError(
            f"positions scaled by {kind!r} are not hosted; default, linear and llama3 are"
        )
    rotary.inv_freq = rotary.inv_freq / torch.tensor(config.get("slower", 1.0))
    return rotary


def scale_rope_rates(
    rate: Float[Tensor, "K2"],
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Float[Tensor, "K2"]:
    """Rates for texts longer than the `trained` ones: `factor` times slower where they turn fewer than `low` times over
    those, as they were where more than `high` times, and in between in between (Llama 3.1)."""
    turns = original_max_position_embeddings * rate / (2 * math.pi)
    kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return rate * (kept + (1 - kept) / factor)


def map_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    parts = TENSOR_NAMES[config["layout"]]
    yield rename("parts.text.ids.weight", f"{parts['ids']}.weight")
    yield rename("trunk.last.weight", f"{parts['last']}.weight")
    yield rename(
        "parts.text.ids.weight" if config["tied"] else "heads.text.weight",
        f"{parts['head']}.weight",
        optional=config["tied"],
    )
    for i in range(config["num_hidden_layers"]):
        theirs = {part: f"{parts['layer']}.{i}.{name}" for part, name in parts.items()}
        yield from _map_layer(f"trunk.blocks.{i}", theirs, config)


def _map_layer(
    target: str, sources: Mapping[str, str], config: ModelConfig
) -> Iterator[WeightMapping]:
    yield rename(f"{target}.norm.weight", f"{sources['norm']}.weight")
    yield rename(f"{target}.mlp_norm.weight", f"{sources['mlp_norm']}.weight")
    paired = config["layout"] == "gguf" and config["model_type"] == "llama"
    for part in _parameter_names(config["qkv_bias"]):
        three = tuple(f"{sources[x]}.{part}" for x in "qkv")
        yield (_concat_interleaved_qkv if paired else _concat_qkv)(
            f"{target}.attention.qkv.{part}", three, config
        )
    for part in _parameter_names(config["out_bias"]):
        yield rename(f"{target}.attention.out.{part}", f"{sources['out']}.{part}")
    for part in _parameter_names(config.get("mlp_bias")):
        yield concat(
            f"{target}.mlp.up.{part}", f"{sources['gate']}.{part}", f"{sources['up']}.{part}"
        )
        yield rename(f"{target}.mlp.down.{part}", f"{sources['down']}.{part}")


def _parameter_names(has_bias: bool | None) -> tuple[str, ...]:
    return ("weight", "bias") if has_bias else ("weight",)


def _concat_qkv(target: str, sources: tuple[str, ...], config: ModelConfig) -> WeightMapping:
    _, heads, head, kv_heads = _attention_sizes(config)
    return concat(target, *sources, sizes=(heads * head, kv_heads * head, kv_heads * head))


def _concat_interleaved_qkv(
    target: str, sources: tuple[str, ...], config: ModelConfig
) -> WeightMapping:
    """llama.cpp turns neighbours, we turn i and i + K/2: its rows of q and k are taken apart."""
    _, heads, _, kv_heads = _attention_sizes(config)
    plain = _concat_qkv(target, sources, config)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain.convert(
            *(
                rearrange(x, "(h k two) ... -> (h two k) ...", h=h, two=2)
                for x, h in ((q, heads), (k, kv_heads))
            ),
            v,
        )

    def write(qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = plain.invert(qkv)
        return *(
            rearrange(x, "(h two k) ... -> (h k two) ...", h=h, two=2)
            for x, h in ((q, heads), (k, kv_heads))
        ), v

    return WeightMapping(target, sources, read, write)


LLAMA = PretrainedFamily(
    "llama",
    detect_config,
    build_module,
    map_weights,
    build_verbs=build_verbs,
    unused_tensors=("*.rotary_emb.inv_freq", "rope_freqs.weight"),
    preprocessing=lambda config, opened: preprocessing(
        opened, config["max_position_embeddings"], config["eos_token_id"]
    ),
)
