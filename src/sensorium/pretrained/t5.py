"""The encoder of T5 (Raffel et al. 2020), versions 1.0 and 1.1, as transformers stores it.

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
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.preprocessing import build_embed_verb, drop_missing
from sensorium.pretrained.text_ids import (
    NO_END_ID,
    find_text_ids,
    text_end_id,
    text_pad_id,
    unpadded_mask,
)
from sensorium.pretrained.tokenizers import text_preprocessing
from sensorium.pretrained.trunk import get_activation
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings, concat, rename

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
CONFIG_RULES = ConfigRules(
    sizes={
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
    },
    layers={"num_layers": 6},
    heads={"num_heads": ("", 8)},
    lengths={"relative_attention_max_distance": 128},
    numbers={"layer_norm_epsilon": 1e-6},
    names={"feed_forward_proj": "relu"},
    fixed={"is_decoder": (False,)},
    unused=frozenset(
        {
            "num_decoder_layers",
            "dropout_rate",
            "classifier_dropout",
            "scale_decoder_outputs",
            "dense_act_fn",  # this and the next follow from feed_forward_proj
            "is_gated_act",
        }
    ),
)
MAX_LENGTH = 512  # tokens in training; relative positions set no limit
UNUSED_TENSORS = ("decoder.*", "lm_head.*")


class PositionlessTokenEmbedding(nn.Module):
    """Embed token ids without positions, which attention adds.

    Args:
        dim: Width of a token.
        vocab_size: Number of token ids.
        pad_id: Id of padding.
        end_id: Id that ends every text, or one that no text has.
    """

    def __init__(self, dim: int, vocab_size: int, pad_id: int, end_id: int = NO_END_ID):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.pad_id = pad_id
        self.end_id = end_id

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        """Return None: the text is pooled over all tokens."""

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return the tokens; padding is not valid."""
        x = self.token_embedding(ids)
        return Tokens(x, sequence_positions(x), valid=unpadded_mask(ids, self.end_id, self.pad_id))


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """Build the tower `text`, which pools to the mean of all tokens."""
    settings = _apply_defaults(config)
    dim, eps, heads = settings["d_model"], settings["layer_norm_epsilon"], settings["num_heads"]
    bias = RelativeBias(
        heads,
        settings["relative_attention_num_buckets"],
        settings["relative_attention_max_distance"],
    )
    blocks = [
        Block(
            Attention(
                dim,
                heads,
                width=heads * settings["d_kv"],
                bias=False,
                position=bias,
                scale=1.0,
            ),
            _build_mlp(settings),
            (nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)),
        )
        for _ in range(settings["num_layers"])
    ]
    encoder = Encoder(
        PositionlessTokenEmbedding(
            dim, settings["vocab_size"], text_pad_id(settings), text_end_id(settings)
        ),
        Transformer(blocks, final_norm=nn.RMSNorm(dim, eps)),
    )
    return nn.ModuleDict({"text": Tower(encoder, nn.Identity(), dim)})


def _build_mlp(config: ModelConfig) -> nn.Module:
    is_gated, activation = _parse_feed_forward(config)
    mlp_class = GatedFeedForward if is_gated else FeedForward
    return mlp_class(config["d_model"], config["d_ff"], get_activation(activation), bias=False)


def _parse_feed_forward(config: ModelConfig) -> tuple[bool, str]:
    """Parse `gated-gelu` (T5 1.1) or `relu` (1.0): whether it is gated, and the activation."""
    prefix, _, activation = config["feed_forward_proj"].rpartition("-")
    if prefix and activation == "gelu":
        activation = "gelu_new"
    return prefix == "gated", activation


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    settings = _apply_defaults(config)
    is_gated, _ = _parse_feed_forward(settings)
    embedding, trunk = "text.encoder.embed.token_embedding.weight", "text.encoder.trunk"
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    blocks = [
        mapping
        for i in range(settings["num_layers"])
        for mapping in _map_block(f"{trunk}.blocks.{i}", f"encoder.block.{i}.layer", is_gated)
    ]
    return [
        rename(embedding, "shared.weight"),
        rename(embedding, "encoder.embed_tokens.weight", optional=True),
        rename(f"{trunk}.blocks.0.attention.position.bias.weight", bias),
        *blocks,
        rename(f"{trunk}.final_norm.weight", "encoder.final_layer_norm.weight"),
    ]


def _map_block(target: str, source: str, is_gated: bool) -> WeightMappings:
    attention, mlp = f"{source}.0.SelfAttention", f"{source}.1.DenseReluDense"
    up_layers = ("wi_0", "wi_1") if is_gated else ("wi",)
    return [
        concat(f"{target}.attention.qkv.weight", *(f"{attention}.{x}.weight" for x in "qkv")),
        rename(f"{target}.attention.out.weight", f"{attention}.o.weight"),
        rename(f"{target}.norm.weight", f"{source}.0.layer_norm.weight"),
        rename(f"{target}.mlp_norm.weight", f"{source}.1.layer_norm.weight"),
        concat(f"{target}.mlp.up.weight", *(f"{mlp}.{layer}.weight" for layer in up_layers)),
        rename(f"{target}.mlp.down.weight", f"{mlp}.wo.weight"),
    ]


def _apply_defaults(config: ModelConfig) -> dict[str, Any]:
    return {**CONFIG_DEFAULTS, **config}


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the tokenizer's text settings."""
    vocab_size = _apply_defaults(config)["vocab_size"]
    return drop_missing(
        text=text_preprocessing(
            weight_files, MAX_LENGTH, vocab_size, text_pad_id(_apply_defaults(config))
        )
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    if weight_files.config.get("model_type") not in ("t5", "mt5"):
        return None
    config = CONFIG_RULES.apply(weight_files.config, weight_files)
    return {**config, **find_text_ids(weight_files, config.get("pad_token_id"))}


T5 = PretrainedFamily(
    "t5", _detect_config, build_module, map_weights, preprocessing, build_embed_verb, UNUSED_TENSORS
)
