"""Llama (Touvron et al. 2023), Mistral, Qwen2 and others of its design, from transformers or GGUF.

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
from sensorium.pretrained.config_rules import ConfigRules, json_name
from sensorium.pretrained.decoder import CausalTokenEmbedding, build_text_decoder
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.generate_text import build_verbs, prompt_preprocessing
from sensorium.pretrained.trunk import get_activation
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMapping, concat, rename

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2")
TENSOR_NAMES = {  # layout -> the layers of the model, and those of each block
    "safetensors": {
        "token_embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
        "blocks": "model.layers",
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
        "token_embedding": "token_embd",
        "final_norm": "output_norm",
        "head": "output",
        "blocks": "blk",
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
GGUF_KEYS = {  # GGUF's keys after "llama." or "qwen2." -> transformers'
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
ROPE_SCALING_KEYS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
DEFAULT_ROPE_THETA = 10_000.0
CONFIG_RULES = ConfigRules(
    sizes={
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "head_dim": None,
    },
    layers={"num_hidden_layers": 32},
    heads={"num_attention_heads": ("", 32), "num_key_value_heads": ("num_attention_heads", None)},
    lengths={"max_position_embeddings": 2048},
    numbers={"rms_norm_eps": 1e-6, "rope_theta": DEFAULT_ROPE_THETA},
    names={"hidden_act": "silu"},
    fixed={
        "attention_bias": (True, False),
        "mlp_bias": (True, False),
    },
    unused=frozenset(
        {
            "pretraining_tp",  # splits the same products
            "rope_scaling",  # this and those below are checked where they are read
            "rope_parameters",
            "sliding_window",
            "use_sliding_window",
            "max_window_layers",
            "layer_types",
        }
    ),
)


def detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Return transformers' config with what it omits: "layout", "tied", "qkv_bias", "out_bias".

    Raises:
        SensoriumError: If the attention is of a kind that is not supported.
    """
    is_gguf = weight_files.layout == "gguf"
    config = _config_from_gguf(weight_files) if is_gguf else weight_files.config
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES or weight_files.layout not in TENSOR_NAMES:
        return None
    config = CONFIG_RULES.apply(config, weight_files)
    _check_layer_types(config, weight_files)
    uses_window = model_type != "qwen2" or config.get("use_sliding_window")
    if config.get("sliding_window") and uses_window:
        raise SensoriumError(
            f"{weight_files.path} uses sliding-window attention, which is not supported."
        )
    has_bias = model_type == "qwen2" or bool(config.get("attention_bias"))
    head = f"{TENSOR_NAMES[weight_files.layout]['head']}.weight"
    return {
        **config,
        "layout": weight_files.layout,
        "tied": head not in weight_files.tensors or bool(config.get("tie_word_embeddings")),
        "qkv_bias": has_bias,
        "out_bias": has_bias and model_type != "qwen2",
    }


def _check_layer_types(config: Mapping[str, Any], weight_files: WeightFiles) -> None:
    for layer_type in config.get("layer_types") or ():
        if layer_type != "full_attention":
            raise SensoriumError(
                f"{weight_files.path} sets layer_types to {layer_type!r}. Supported is full "
                "attention in all layers."
            )


def _config_from_gguf(weight_files: WeightFiles) -> dict[str, Any]:
    """Translate GGUF's keys to a config of transformers."""
    keys = weight_files.config
    architecture = keys.get("general.architecture")
    config: dict[str, Any] = {
        name: keys[f"{architecture}.{key}"]
        for key, name in GGUF_KEYS.items()
        if f"{architecture}.{key}" in keys
    }
    scaling_type = keys.get(f"{architecture}.rope.scaling.type", "none")
    if scaling_type not in ("none", ""):
        factor = keys.get(f"{architecture}.rope.scaling.factor")
        config["rope_scaling"] = {"type": scaling_type, "factor": factor}
    if "rope_freqs.weight" in weight_files.tensors:
        config["rope_freq_factors"] = weight_files.tensors["rope_freqs.weight"].tolist()
    embedding_shape = weight_files.tensors.get_shape("token_embd.weight") or (0,)
    return {
        **config,
        "model_type": architecture,
        "vocab_size": embedding_shape[0],
        "eos_token_id": keys.get("tokenizer.ggml.eos_token_id"),
    }


def build_module(config: ModelConfig) -> Decoder:
    """Build the decoder."""
    dim, heads, head_dim, kv_heads = _attention_sizes(config)
    rotary = build_rotary(head_dim, config)

    def build_norm() -> nn.RMSNorm:
        return nn.RMSNorm(dim, eps=config["rms_norm_eps"])

    def build_block() -> Block:
        attention = Attention(
            dim,
            heads,
            width=heads * head_dim,
            kv_heads=kv_heads,
            bias=config["qkv_bias"],
            position=rotary,
        )
        attention.out = Linear(heads * head_dim, dim, bias=config["out_bias"])
        mlp = GatedFeedForward(
            dim,
            config["intermediate_size"],
            get_activation(config.get("hidden_act", "silu")),
            bias=bool(config.get("mlp_bias")),
        )
        return Block(attention, mlp, (build_norm(), build_norm()))

    blocks = [build_block() for _ in range(config["num_hidden_layers"])]
    trunk = Transformer(blocks, final_norm=build_norm())
    embedding = CausalTokenEmbedding(config["vocab_size"], dim)
    return build_text_decoder(embedding, trunk, tied=config["tied"])


def _attention_sizes(config: ModelConfig) -> tuple[int, int, int, int]:
    """Return D, query heads, K, key and value heads."""
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or dim // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return dim, heads, head_dim, kv_heads


def build_rotary(head_dim: int, config: ModelConfig) -> Rotary:
    """Build rotary embeddings with the scaling of a config.

    transformers names its parameters `rope_scaling` up to version 4, `rope_parameters` since.

    Raises:
        SensoriumError: If the scaling is of a kind that is not supported.
    """
    parameters: dict[str, Any] = {
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    theta = parameters.get("rope_theta") or config.get("rope_theta") or DEFAULT_ROPE_THETA
    scaling = parameters.get("rope_type") or parameters.get("type") or "default"
    keys = {"llama3": ROPE_SCALING_KEYS, "linear": ("factor",)}.get(str(scaling), ())
    _check_rope_numbers({"rope_theta": theta, **{key: parameters.get(key) for key in keys}})
    if parameters.get("partial_rotary_factor") not in (None, 1):
        raise SensoriumError(
            "The config rotates a part of each head, "
            f"partial_rotary_factor={parameters['partial_rotary_factor']!r}. Supported is 1."
        )
    rotary = Rotary(head_dim, theta)
    if scaling == "llama3":
        rotary.inv_freq = scale_rope_rates(
            rotary.inv_freq, **{key: parameters[key] for key in ROPE_SCALING_KEYS}
        )
    elif scaling == "linear":
        rotary.inv_freq = rotary.inv_freq / parameters["factor"]
    elif scaling != "default":
        raise SensoriumError(
            f"The config scales positions by {scaling!r}. Supported are default, linear and llama3."
        )
    rotary.inv_freq = rotary.inv_freq / torch.tensor(config.get("rope_freq_factors", 1.0))
    return rotary


def _check_rope_numbers(numbers: Mapping[str, Any]) -> None:
    for key, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise SensoriumError(
                f"The config scales positions by {key}={json_name(value)}. Give a number above 0."
            )


def scale_rope_rates(
    rate: Float[Tensor, "K2"],
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Float[Tensor, "K2"]:
    """Slow down rotary rates for texts longer than those in training (Llama 3.1).

    Args:
        rate: Angle per position of each pair of channels.
        factor: How many times slower low frequencies become.
        low_freq_factor: Frequencies with fewer turns over the original length become `factor`
            times slower.
        high_freq_factor: Frequencies with more turns do not change; between the two, rates are
            blended.
        original_max_position_embeddings: The original length.
    """
    turns = original_max_position_embeddings * rate / (2 * math.pi)
    blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return rate * (blend + (1 - blend) / factor)


def map_weights(config: ModelConfig) -> Iterator[WeightMapping]:
    """Map the names of the layout to ours."""
    names = TENSOR_NAMES[config["layout"]]
    embedding = "parts.text.token_embedding.weight"
    head = embedding if config["tied"] else "heads.text.weight"
    yield rename(embedding, f"{names['token_embedding']}.weight")
    yield rename("trunk.final_norm.weight", f"{names['final_norm']}.weight")
    yield rename(head, f"{names['head']}.weight", optional=config["tied"])
    for i in range(config["num_hidden_layers"]):
        sources = {layer: f"{names['blocks']}.{i}.{name}" for layer, name in names.items()}
        yield from _map_block(f"trunk.blocks.{i}", sources, config)


def _map_block(
    target: str, sources: Mapping[str, str], config: ModelConfig
) -> Iterator[WeightMapping]:
    yield rename(f"{target}.norm.weight", f"{sources['norm']}.weight")
    yield rename(f"{target}.mlp_norm.weight", f"{sources['mlp_norm']}.weight")
    # llama.cpp's converter permutes the rows of Llama, but not those of Qwen2.
    is_interleaved = config["layout"] == "gguf" and config["model_type"] == "llama"
    concat_qkv = _concat_interleaved_qkv if is_interleaved else _concat_qkv
    for name in _parameter_names(config["qkv_bias"]):
        qkv = tuple(f"{sources[x]}.{name}" for x in "qkv")
        yield concat_qkv(f"{target}.attention.qkv.{name}", qkv, config)
    for name in _parameter_names(config["out_bias"]):
        yield rename(f"{target}.attention.out.{name}", f"{sources['out']}.{name}")
    for name in _parameter_names(config.get("mlp_bias")):
        gate, up = f"{sources['gate']}.{name}", f"{sources['up']}.{name}"
        yield concat(f"{target}.mlp.up.{name}", gate, up)
        yield rename(f"{target}.mlp.down.{name}", f"{sources['down']}.{name}")


def _parameter_names(has_bias: bool | None) -> tuple[str, ...]:
    return ("weight", "bias") if has_bias else ("weight",)


def _concat_qkv(target: str, sources: tuple[str, ...], config: ModelConfig) -> WeightMapping:
    _, heads, head_dim, kv_heads = _attention_sizes(config)
    sizes = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    return concat(target, *sources, sizes=sizes)


def _concat_interleaved_qkv(
    target: str, sources: tuple[str, ...], config: ModelConfig
) -> WeightMapping:
    """Concatenate query, key and value, of which llama.cpp interleaves the first two.

    It rotates neighboring rows of a head, we rotate rows i and i + K/2.
    """
    _, heads, _, kv_heads = _attention_sizes(config)
    plain = _concat_qkv(target, sources, config)

    def deinterleave(x: Tensor, num_heads: int) -> Tensor:
        return rearrange(x, "(h k two) ... -> (h two k) ...", h=num_heads, two=2)

    def interleave(x: Tensor, num_heads: int) -> Tensor:
        return rearrange(x, "(h two k) ... -> (h k two) ...", h=num_heads, two=2)

    def convert(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain.convert(deinterleave(q, heads), deinterleave(k, kv_heads), v)

    def invert(qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = plain.invert(qkv)
        return interleave(q, heads), interleave(k, kv_heads), v

    return WeightMapping(target, sources, convert, invert)


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the tokenizer's settings."""
    length = config["max_position_embeddings"]
    return prompt_preprocessing(weight_files, length, config.get("eos_token_id"))


LLAMA = PretrainedFamily(
    "llama",
    detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_verbs,
    unused_tensors=("*.rotary_emb.inv_freq", "rope_freqs.weight"),
)
