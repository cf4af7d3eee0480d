"""The encoder of T5 (Raffel et al. 2020), 1.0 and 1.1: distances in place of places, no bias, norms without a mean.

    B batch   T tokens   D width
"""
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from sensorium.attention import Attention
from sensorium.models import Encoder, Tower
from sensorium.positions import RelativeBias
from sensorium.published.files import Opened
from sensorium.published.parts import Names, activation
from sensorium.published.published import Config, Published, Senses, same, stacked
from sensorium.published.senses import embedding, present, words
from sensorium.tokens import Tokens, line
from sensorium.transformer import Block, FeedForward, GatedFeedForward, Transformer

DEFAULT = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128,
           "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "feed_forward_proj": "relu",
           "layer_norm_epsilon": 1e-6, "pad_token_id": 0}
LENGTH = 512                                            # words it was trained on; there is no place it could run out of
UNUSED = ("decoder.*", "lm_head.*")


class PlainWords(nn.Module):
    """Ids → Tokens: what a word says; where it stands, attention will tell."""

    def __init__(self, dim: int, vocab_size: int, pad: int):
        super().__init__()
        self.ids, self.pad = nn.Embedding(vocab_size, dim), pad

    def summary(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.ids(ids)
        return Tokens(x, line(x), valid=ids != self.pad)


def build(config: Config) -> nn.ModuleDict:
    """One tower, `text`, whose vector is the mean of all words."""
    given = _filled(config)
    dim, eps, heads = given["d_model"], given["layer_norm_epsilon"], given["num_heads"]
    bias = RelativeBias(heads, given["relative_attention_num_buckets"], given["relative_attention_max_distance"])
    blocks = [Block(Attention(dim, heads, width=heads * given["d_kv"], bias=False, position=bias, scale=1.0),
                    _mlp(given), (nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps))) for _ in range(given["num_layers"])]
    encode = Encoder(PlainWords(dim, given["vocab_size"], given["pad_token_id"]),
                     Transformer(blocks, last=nn.RMSNorm(dim, eps)))
    return nn.ModuleDict({"text": Tower(encode, nn.Identity(), dim)})


def _mlp(config: Config) -> nn.Module:
    gated, act = _thinks(config)
    kind = GatedFeedForward if gated else FeedForward
    return kind(config["d_model"], config["d_ff"], activation(act), bias=False)


def _thinks(config: Config) -> tuple[bool, str]:
    """`gated-gelu` (T5 1.1) or `relu` (1.0)."""
    gated, _, act = config["feed_forward_proj"].rpartition("-")
    return gated == "gated", "gelu_new" if gated and act == "gelu" else act


def names(config: Config) -> Names:
    """Our names and theirs."""
    given, first = _filled(config), "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [same("text.encode.embed.ids.weight", "shared.weight"),
            same("text.encode.embed.ids.weight", "encoder.embed_tokens.weight", optional=True),
            same("text.encode.trunk.blocks.0.attention.position.bias.weight", first),
            *(name for i in range(given["num_layers"])
              for name in _block(f"text.encode.trunk.blocks.{i}", f"encoder.block.{i}.layer", _thinks(given)[0])),
            same("text.encode.trunk.last.weight", "encoder.final_layer_norm.weight")]


def _block(ours: str, theirs: str, gated: bool) -> Names:
    look, think = f"{theirs}.0.SelfAttention", f"{theirs}.1.DenseReluDense"
    inward = (f"{think}.wi_0.weight", f"{think}.wi_1.weight") if gated else (f"{think}.wi.weight",)
    return [stacked(f"{ours}.attention.qkv.weight", *(f"{look}.{x}.weight" for x in "qkv")),
            same(f"{ours}.attention.out.weight", f"{look}.o.weight"),
            same(f"{ours}.norm.weight", f"{theirs}.0.layer_norm.weight"),
            same(f"{ours}.mlp_norm.weight", f"{theirs}.1.layer_norm.weight"),
            stacked(f"{ours}.mlp.up.weight", *inward), same(f"{ours}.mlp.down.weight", f"{think}.wo.weight")]


def _filled(config: Config) -> dict[str, Any]:
    return {**DEFAULT, **config}


def senses(config: Config, opened: Opened) -> Senses:
    """Words as its tokenizer cuts them."""
    return present(text=words(opened, LENGTH, _filled(config)["vocab_size"]))


def _recognise(opened: Opened) -> Config | None:
    return opened.config if opened.config.get("model_type") in ("t5", "mt5") else None


T5 = Published("t5", _recognise, build, names, senses, embedding, UNUSED)
