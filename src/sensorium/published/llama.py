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

from sensorium.attention import Attention
from sensorium.errors import SensoriumError
from sensorium.kernels import Linear
from sensorium.models import Decoder
from sensorium.positions import Rotary
from sensorium.published.decoder import Ids, writer
from sensorium.published.files import Opened
from sensorium.published.published import Config, Name, Published, same, stacked
from sensorium.published.write import senses, verbs
from sensorium.transformer import Block, GatedFeedForward, Transformer

BUILT_ALIKE = ("llama", "mistral", "qwen2")
LAYOUTS = {         # what each calls the parts of the whole, and those of a layer
    "safetensors": {
        "ids": "model.embed_tokens", "last": "model.norm", "head": "lm_head", "layer": "model.layers",
        "norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "q": "self_attn.q_proj",
        "k": "self_attn.k_proj", "v": "self_attn.v_proj", "out": "self_attn.o_proj", "gate": "mlp.gate_proj",
        "up": "mlp.up_proj", "down": "mlp.down_proj"},
    "gguf": {
        "ids": "token_embd", "last": "output_norm", "head": "output", "layer": "blk", "norm": "attn_norm",
        "mlp_norm": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "out": "attn_output", "gate": "ffn_gate",
        "up": "ffn_up", "down": "ffn_down"}}
KEYS = {            # of GGUF, after "llama." or "qwen2.": as transformers calls them
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta", "context_length": "max_position_embeddings"}
SCALINGS = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
            "trained": "original_max_position_embeddings"}


def recognise(opened: Opened) -> Config | None:
    """Its config as transformers writes it, and what it leaves unsaid: "layout", "tied", "qkv_bias", "out_bias".

    Raises SensoriumError for a kind of attention or of positions that is not hosted.
    """
    config = _of_gguf(opened) if opened.layout == "gguf" else opened.config
    kind = config.get("model_type")
    if kind not in BUILT_ALIKE or opened.layout not in LAYOUTS:
        return None
    if config.get("sliding_window") and (kind != "qwen2" or config.get("use_sliding_window")):
        raise SensoriumError(f"{opened.place}: attention in a sliding window is not hosted")
    biased = kind == "qwen2" or bool(config.get("attention_bias"))
    tied = LAYOUTS[opened.layout]["head"] + ".weight" not in opened.tensors
    return {**config, "layout": opened.layout, "tied": tied or bool(config.get("tie_word_embeddings")),
            "qkv_bias": biased, "out_bias": biased and kind != "qwen2"}


def _of_gguf(opened: Opened) -> dict[str, Any]:
    about, kind = opened.config, opened.config.get("general.architecture")
    config = {theirs: about[f"{kind}.{key}"] for key, theirs in KEYS.items() if f"{kind}.{key}" in about}
    if about.get(f"{kind}.rope.scaling.type", "none") not in ("none", ""):
        config["rope_scaling"] = {"type": about[f"{kind}.rope.scaling.type"],
                                  "factor": about.get(f"{kind}.rope.scaling.factor")}
    if "rope_freqs.weight" in opened.tensors:
        config["slower"] = opened.tensors["rope_freqs.weight"].tolist()
    return {**config, "model_type": kind, "vocab_size": (opened.tensors.shape("token_embd.weight") or (0,))[0],
            "eos_token_id": about.get("tokenizer.ggml.eos_token_id")}


def build(config: Config) -> Decoder:
    dim, heads, head, kv_heads = _sizes(config)
    rotary = rotation(head, config)

    def norm() -> nn.RMSNorm:
        return nn.RMSNorm(dim, eps=config["rms_norm_eps"])

    def block() -> Block:
        attention = Attention(dim, heads, width=heads * head, kv_heads=kv_heads, bias=config["qkv_bias"],
                              position=rotary)
        attention.out = Linear(heads * head, dim, bias=config["out_bias"])
        mlp = GatedFeedForward(dim, config["intermediate_size"], bias=bool(config.get("mlp_bias")))
        return Block(attention, mlp, (norm(), norm()))

    trunk = Transformer([block() for _ in range(config["num_hidden_layers"])], last=norm())
    return writer(Ids(config["vocab_size"], dim), trunk, tied=config["tied"])


def _sizes(config: Config) -> tuple[int, int, int, int]:
    """D, heads, K, heads of keys and values."""
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    return dim, heads, config.get("head_dim") or dim // heads, config.get("num_key_value_heads") or heads


def rotation(head: int, config: Config) -> Rotary:
    """At the rates that a config asks for, as transformers wrote them up to its version 4 or since."""
    how: dict[str, Any] = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rotary = Rotary(head, how.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind = how.get("rope_type") or how.get("type") or "default"
    if kind == "llama3":
        rotary.rate = slowed(rotary.rate, **{ours: how[theirs] for ours, theirs in SCALINGS.items()})
    elif kind == "linear":
        rotary.rate = rotary.rate / how["factor"]
    elif kind != "default":
        raise SensoriumError(f"positions scaled by {kind!r} are not hosted; default, linear and llama3 are")
    rotary.rate = rotary.rate / torch.tensor(config.get("slower", 1.0))
    return rotary


def slowed(rate: Float[Tensor, "K2"], *, factor: float, low: float, high: float, trained: int) -> Float[Tensor, "K2"]:
    """Rates for texts longer than the `trained` ones: `factor` times slower where they turn fewer than `low` times over
    those, as they were where more than `high` times, and in between in between (Llama 3.1)."""
    turns = trained * rate / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return rate * (kept + (1 - kept) / factor)


def names(config: Config) -> Iterator[Name]:
    parts = LAYOUTS[config["layout"]]
    yield same("parts.text.ids.weight", f"{parts['ids']}.weight")
    yield same("trunk.last.weight", f"{parts['last']}.weight")
    yield same("parts.text.ids.weight" if config["tied"] else "heads.text.weight", f"{parts['head']}.weight",
               optional=config["tied"])
    for i in range(config["num_hidden_layers"]):
        theirs = {part: f"{parts['layer']}.{i}.{name}" for part, name in parts.items()}
        yield from _layer(f"trunk.blocks.{i}", theirs, config)


def _layer(ours: str, theirs: Mapping[str, str], config: Config) -> Iterator[Name]:
    yield same(f"{ours}.norm.weight", f"{theirs['norm']}.weight")
    yield same(f"{ours}.mlp_norm.weight", f"{theirs['mlp_norm']}.weight")
    paired = config["layout"] == "gguf" and config["model_type"] == "llama"
    for part in _learned(config["qkv_bias"]):
        three = tuple(f"{theirs[x]}.{part}" for x in "qkv")
        yield (_side_by_side if paired else _one_by_one)(f"{ours}.attention.qkv.{part}", three, config)
    for part in _learned(config["out_bias"]):
        yield same(f"{ours}.attention.out.{part}", f"{theirs['out']}.{part}")
    for part in _learned(config.get("mlp_bias")):
        yield stacked(f"{ours}.mlp.up.{part}", f"{theirs['gate']}.{part}", f"{theirs['up']}.{part}")
        yield same(f"{ours}.mlp.down.{part}", f"{theirs['down']}.{part}")


def _learned(bias: bool | None) -> tuple[str, ...]:
    return ("weight", "bias") if bias else ("weight",)


def _one_by_one(ours: str, theirs: tuple[str, ...], config: Config) -> Name:
    _, heads, head, kv_heads = _sizes(config)
    return stacked(ours, *theirs, sizes=(heads * head, kv_heads * head, kv_heads * head))


def _side_by_side(ours: str, theirs: tuple[str, ...], config: Config) -> Name:
    """llama.cpp turns neighbours, we turn i and i + K/2: its rows of q and k are taken apart."""
    _, heads, _, kv_heads = _sizes(config)
    plain = _one_by_one(ours, theirs, config)

    def read(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain.read(*(rearrange(x, "(h k two) ... -> (h two k) ...", h=h, two=2)
                            for x, h in ((q, heads), (k, kv_heads))), v)

    def write(qkv: Tensor) -> tuple[Tensor, ...]:
        q, k, v = plain.write(qkv)
        return *(rearrange(x, "(h two k) ... -> (h k two) ...", h=h, two=2) for x, h in ((q, heads), (k, kv_heads))), v
    return Name(ours, theirs, read, write)


LLAMA = Published(
    "llama", recognise, build, names, verbs=verbs, unused=("*.rotary_emb.inv_freq", "rope_freqs.weight"),
    senses=lambda config, opened: senses(opened, config["max_position_embeddings"], config["eos_token_id"]))
