"""BERT (Devlin et al. 2018) and MiniLM as sentence encoders, in Hugging Face's and sentence-transformers' layout.

B batch   T tokens   D width
"""

import json
from dataclasses import replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.attention import Attention
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.nn.transformer import FeedForward, PostNormBlock, Transformer
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily, concat, rename
from sensorium.pretrained.preprocessing import build_embed_verb, drop_missing, text_preprocessing
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings, get_activation, weight_bias

CONFIG_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
UNUSED_TENSORS = (
    "*position_ids",
    "pooler.*",
    "cls.*",
)  # places, and heads of the tasks it was trained on
SUPPORTED_MODULES = (
    "Transformer",
    "Pooling",
    "Normalize",
)  # of a sentence encoder, that are hosted


class SegmentEmbedding(nn.Module):
    """Ids → Tokens: what a word says, where it stands, and that it belongs to the first of two texts."""

    def __init__(
        self, dim: int, vocab_size: int, max_length: int, num_token_types: int, pad_id: int
    ):
        super().__init__()
        self.token_embedding, self.position_embedding, self.token_type_embedding = (
            nn.Embedding(n, dim) for n in (vocab_size, max_length, num_token_types)
        )
        self.pad_id = pad_id

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = (
            self.token_embedding(ids)
            + self.position_embedding.weight[: ids.shape[1]]
            + self.token_type_embedding.weight[0]
        )
        return Tokens(x, sequence_positions(x), valid=ids != self.pad_id)


class FirstTokenPool(nn.Module):
    """The first token stands for all."""

    def forward(self, tokens: Tokens) -> Tokens:
        return Tokens(tokens.x[:, :1], tokens.pos[:, :1])


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """One tower, `text`, whose vector is the mean of all words, or the first word's, as the pooling config says."""
    given = _apply_defaults(config)
    dim, eps = given["hidden_size"], given["layer_norm_eps"]
    blocks = [
        PostNormBlock(
            Attention(dim, given["num_attention_heads"]),
            FeedForward(dim, given["intermediate_size"], get_activation(given["hidden_act"])),
            (nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)),
        )
        for _ in range(given["num_hidden_layers"])
    ]
    read = SegmentEmbedding(
        dim,
        given["vocab_size"],
        given["max_position_embeddings"],
        given["type_vocab_size"],
        given["pad_token_id"],
    )
    encode = Encoder(
        read,
        Transformer(blocks, input_norm=nn.LayerNorm(dim, eps=eps)),
        FirstTokenPool() if config["first"] else None,
    )
    return nn.ModuleDict({"text": Tower(encode, nn.Identity(), dim)})


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    embed = [
        rename(
            f"text.encode.embed.{ours}.weight",
            f"{config['prefix']}embeddings.{theirs}_embeddings.weight",
        )
        for ours, theirs in (("ids", "word"), ("places", "position"), ("types", "token_type"))
    ]
    return [
        *embed,
        *weight_bias("text.encode.trunk.first", f"{config['prefix']}embeddings.LayerNorm"),
        *(
            name
            for i in range(_apply_defaults(config)["num_hidden_layers"])
            for name in _map_block(
                f"text.encode.trunk.blocks.{i}", f"{config['prefix']}encoder.layer.{i}"
            )
        ),
    ]


def _map_block(target: str, source: str) -> WeightMappings:
    qkv = [
        concat(
            f"{target}.attention.qkv.{part}",
            *(f"{source}.attention.self.{x}.{part}" for x in ("query", "key", "value")),
        )
        for part in ("weight", "bias")
    ]
    return [
        *qkv,
        *weight_bias(f"{target}.attention.out", f"{source}.attention.output.dense"),
        *weight_bias(f"{target}.norm", f"{source}.attention.output.LayerNorm"),
        *weight_bias(f"{target}.mlp.up", f"{source}.intermediate.dense"),
        *weight_bias(f"{target}.mlp.down", f"{source}.output.dense"),
        *weight_bias(f"{target}.mlp_norm", f"{source}.output.LayerNorm"),
    ]


def _apply_defaults(config: ModelConfig) -> dict[str, Any]:
    return {**CONFIG_DEFAULTS, **config}


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Words as its tokenizer cuts them; at most as many as sentence-transformers would read."""
    given = _apply_defaults(config)
    read = text_preprocessing(weight_files, given["max_position_embeddings"], given["vocab_size"])
    most = weight_files.read_json("sentence_bert_config.json").get("max_seq_length")
    return drop_missing(text=read if read is None or not most else replace(read, length=most))


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    if weight_files.config.get("model_type") != "bert":
        return None
    if weight_files.config.get("position_embedding_type", "absolute") != "absolute":
        raise SensoriumError(
            f"{weight_files.path} is a BERT with relative positions, which is not hosted"
        )
    prefix = "bert." if any(name.startswith("bert.") for name in weight_files.tensors) else ""
    return {**weight_files.config, "prefix": prefix, "first": is_cls_pooling(weight_files)}


def is_cls_pooling(weight_files: WeightFiles) -> bool:
    """What the pooling config says: the first token, or the mean of all. Raises SensoriumError for anything else."""
    if odd := [kind for kind in _module_types(weight_files) if kind not in SUPPORTED_MODULES]:
        raise SensoriumError(
            f"{weight_files.path}/modules.json adds a {odd[0]} to the encoder; hosted are "
            f"{', '.join(SUPPORTED_MODULES)}"
        )
    asked = {
        mode
        for mode, on in weight_files.read_json("1_Pooling/config.json").items()
        if mode.startswith("pooling_mode_") and on is True
    }
    if asked <= {"pooling_mode_mean_tokens"}:
        return False
    if asked == {"pooling_mode_cls_token"}:
        return True
    raise SensoriumError(
        f"{weight_files.path}/1_Pooling/config.json asks for {', '.join(sorted(asked))}; the mean or the "
        "first token are read"
    )


def _module_types(weight_files: WeightFiles) -> list[str]:
    """What sentence-transformers lines up: Transformer, Pooling, Normalize, ..."""
    if "modules.json" not in weight_files.files:
        return []
    try:
        return [
            str(part["type"]).rpartition(".")[2]
            for part in json.loads(weight_files.files["modules.json"].read_text())
        ]
    except (ValueError, TypeError, KeyError) as e:
        raise SensoriumError(
            f"{weight_files.files['modules.json']} is no list of modules: {e!r}"
        ) from e


BERT = PretrainedFamily(
    "bert",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    UNUSED_TENSORS,
)
