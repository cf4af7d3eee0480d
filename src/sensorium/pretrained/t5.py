"""The encoder of T5 (Raffel et al. 2020), 1.0 and 1.1: distances in place of places, no bias, norms without a mean.

B batch   T tokens   D width
"""

from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from sensorium.models.towers import Encoder, Tower
from sensorium.nn.attention import Attention
from sensorium.nn.positional import RelativeBias
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.nn.transformer import Block, FeedForward, GatedFeedForward, Transformer
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily, concat, rename
from sensorium.pretrained.preprocessing import build_embed_verb, drop_missing, text_preprocessing
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings, get_activation

CONFIG_DEFAULTS = {
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
}
MAX_LENGTH = 512  # words it was trained on; there is no place it could run out of
UNUSED_TENSORS = ("decoder.*", "lm_head.*")


class PositionlessTokenEmbedding(nn.Module):
    """Ids → Tokens: what a word says; where it stands, attention will tell."""

    def __init__(self, dim: int, vocab_size: int, pad_id: int):
        super().__init__()
        self.token_embedding, self.pad_id = nn.Embedding(vocab_size, dim), pad_id

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.token_embedding(ids)
        return Tokens(x, sequence_positions(x), valid=ids != self.pad_id)


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """One tower, `text`, whose vector is the mean of all words."""
    given = _apply_defaults(config)
    dim, eps, heads = given["d_model"], given["layer_norm_epsilon"], given["num_heads"]
    bias = RelativeBias(
        heads, given["relative_attention_num_buckets"], given["relative_attention_max_distance"]
    )
    blocks = [
        Block(
            Attention(
                dim, heads, width=heads * given["d_kv"], bias=False, position=bias, scale=1.0
            ),
            _build_mlp(given),
            (nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)),
        )
        for _ in range(given["num_layers"])
    ]
    encode = Encoder(
        PositionlessTokenEmbedding(dim, given["vocab_size"], given["pad_token_id"]),
        Transformer(blocks, final_norm=nn.RMSNorm(dim, eps)),
    )
    return nn.ModuleDict({"text": Tower(encode, nn.Identity(), dim)})


def _build_mlp(config: ModelConfig) -> nn.Module:
    gated, act = _parse_feed_forward(config)
    kind = GatedFeedForward if gated else FeedForward
    return kind(config["d_model"], config["d_ff"], get_activation(act), bias=False)


def _parse_feed_forward(config: ModelConfig) -> tuple[bool, str]:
    """`gated-gelu` (T5 1.1) or `relu` (1.0)."""
    gated, _, act = config["feed_forward_proj"].rpartition("-")
    return gated == "gated", "gelu_new" if gated and act == "gelu" else act


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    given, first = (
        _apply_defaults(config),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    )
    return [
        rename("text.encode.embed.ids.weight", "shared.weight"),
        rename("text.encode.embed.ids.weight", "encoder.embed_tokens.weight", optional=True),
        rename("text.encode.trunk.blocks.0.attention.position.bias.weight", first),
        *(
            name
            for i in range(given["num_layers"])
            for name in _map_block(
                f"text.encode.trunk.blocks.{i}",
                f"encoder.block.{i}.layer",
                _parse_feed_forward(given)[0],
            )
        ),
        rename("text.encode.trunk.last.weight", "encoder.final_layer_norm.weight"),
    ]


def _map_block(target: str, source: str, gated: bool) -> WeightMappings:
    look, think = f"{source}.0.SelfAttention", f"{source}.1.DenseReluDense"
    inward = (f"{think}.wi_0.weight", f"{think}.wi_1.weight") if gated else (f"{think}.wi.weight",)
    return [
        concat(f"{target}.attention.qkv.weight", *(f"{look}.{x}.weight" for x in "qkv")),
        rename(f"{target}.attention.out.weight", f"{look}.o.weight"),
        rename(f"{target}.norm.weight", f"{source}.0.layer_norm.weight"),
        rename(f"{target}.mlp_norm.weight", f"{source}.1.layer_norm.weight"),
        concat(f"{target}.mlp.up.weight", *inward),
        rename(f"{target}.mlp.down.weight", f"{think}.wo.weight"),
    ]


def _apply_defaults(config: ModelConfig) -> dict[str, Any]:
    return {**CONFIG_DEFAULTS, **config}


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Words as its tokenizer cuts them."""
    return drop_missing(
        text=text_preprocessing(weight_files, MAX_LENGTH, _apply_defaults(config)["vocab_size"])
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    return weight_files.config if weight_files.config.get("model_type") in ("t5", "mt5") else None


T5 = PretrainedFamily(
    "t5", _detect_config, build_module, map_weights, preprocessing, build_embed_verb, UNUSED_TENSORS
)
