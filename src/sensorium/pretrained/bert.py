"""BERT (Devlin et al. 2018) and MiniLM sentence encoders, as sentence-transformers stores them.

B batch   T tokens   D width
"""

import json
from typing import Any

from jaxtyping import Int
from tokenizers import normalizers
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.modalities.text import Text
from sensorium.models.towers import Encoder, Tower
from sensorium.nn.attention import Attention
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.nn.transformer import FeedForward, PostNormBlock, Transformer
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
from sensorium.pretrained.weight_mapping import WeightMappings, map_blocks, rename, weight_bias

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
CONFIG_RULES = ConfigRules(
    sizes={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    },
    layers={"num_hidden_layers": 12},
    heads={"num_attention_heads": ("hidden_size", 12)},
    numbers={"layer_norm_eps": 1e-12},
    names={"hidden_act": "gelu"},
    fixed={
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "position_embedding_type": (None, "absolute"),
    },
    unused=frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"}),
)
BLOCK_LAYERS = {  # ours -> theirs
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
EMBEDDING_LAYERS = {
    "token_embedding": "word_embeddings",
    "position_embedding": "position_embeddings",
    "token_type_embedding": "token_type_embeddings",
}
UNUSED_TENSORS = ("*position_ids", "pooler.*", "cls.*")  # position numbers, pretraining heads
SUPPORTED_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers


class SegmentEmbedding(nn.Module):
    """Embed token ids, their positions and the first segment id.

    Args:
        dim: Width of a token.
        vocab_size: Number of token ids.
        max_length: Number of positions.
        num_token_types: Number of segment ids.
        pad_id: Id of padding.
        end_id: Id that ends every text, or one that no text has.
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        max_length: int,
        num_token_types: int,
        *,
        pad_id: int,
        end_id: int = NO_END_ID,
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_length, dim)
        self.token_type_embedding = nn.Embedding(num_token_types, dim)
        self.pad_id = pad_id
        self.end_id = end_id

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        """Return None: the text is pooled over all tokens."""

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return the tokens; padding is not valid."""
        x = (
            self.token_embedding(ids)
            + self.position_embedding.weight[: ids.shape[1]]
            + self.token_type_embedding.weight[0]
        )
        return Tokens(x, sequence_positions(x), valid=unpadded_mask(ids, self.end_id, self.pad_id))


class FirstTokenPool(nn.Module):
    """Pool a sequence to its first token."""

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the first token of each sequence."""
        return Tokens(tokens.x[:, :1], tokens.pos[:, :1])


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """Build the tower `text`, pooled as the config of sentence-transformers says."""
    settings = _apply_defaults(config)
    dim, eps = settings["hidden_size"], settings["layer_norm_eps"]
    blocks = [
        PostNormBlock(
            Attention(dim, settings["num_attention_heads"]),
            FeedForward(dim, settings["intermediate_size"], get_activation(settings["hidden_act"])),
            (nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)),
        )
        for _ in range(settings["num_hidden_layers"])
    ]
    embedding = SegmentEmbedding(
        dim,
        settings["vocab_size"],
        settings["max_position_embeddings"],
        settings["type_vocab_size"],
        pad_id=text_pad_id(settings),
        end_id=text_end_id(settings),
    )
    trunk = Transformer(blocks, input_norm=nn.LayerNorm(dim, eps=eps))
    encoder = Encoder(embedding, trunk, FirstTokenPool() if config["cls_pooling"] else None)
    return nn.ModuleDict({"text": Tower(encoder, nn.Identity(), dim)})


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    prefix, depth = config["prefix"], _apply_defaults(config)["num_hidden_layers"]
    trunk = "text.encoder.trunk"
    return [
        *(
            rename(f"text.encoder.embed.{ours}.weight", f"{prefix}embeddings.{theirs}.weight")
            for ours, theirs in EMBEDDING_LAYERS.items()
        ),
        *weight_bias(f"{trunk}.input_norm", f"{prefix}embeddings.LayerNorm"),
        *map_blocks(f"{trunk}.blocks", f"{prefix}encoder.layer", depth, BLOCK_LAYERS),
    ]


def _apply_defaults(config: ModelConfig) -> dict[str, Any]:
    return {**CONFIG_DEFAULTS, **config}


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the tokenizer's text settings, with the length limit of sentence-transformers."""
    settings = _apply_defaults(config)
    num_positions, vocab_size = settings["max_position_embeddings"], settings["vocab_size"]
    text = sentence_preprocessing(weight_files, num_positions, vocab_size, text_pad_id(settings))
    return drop_missing(text=text)


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    if weight_files.config.get("model_type") != "bert":
        return None
    config = CONFIG_RULES.apply(weight_files.config, weight_files)
    prefix = "bert." if any(name.startswith("bert.") for name in weight_files.tensors) else ""
    return {
        **config,
        **find_text_ids(weight_files, config.get("pad_token_id")),
        "prefix": prefix,
        "cls_pooling": is_cls_pooling(weight_files),
    }


def sentence_preprocessing(
    weight_files: WeightFiles, num_positions: int, vocab_size: int, pad_id: int
) -> Text | None:
    """Return the text settings of an encoder, with those of sentence-transformers.

    Args:
        weight_files: The opened files.
        num_positions: The most tokens that the model takes.
        vocab_size: Its vocabulary size.
        pad_id: Id of padding.
    """
    length = max_text_length(weight_files, num_positions)
    text = text_preprocessing(weight_files, length, vocab_size, pad_id)
    if text is None or text.tokenizer is None:
        return text
    if weight_files.read_json("sentence_bert_config.json").get("do_lower_case"):
        steps = [normalizers.Lowercase(), text.tokenizer.normalizer]
        text.tokenizer.normalizer = normalizers.Sequence([step for step in steps if step])
    return text


def max_text_length(weight_files: WeightFiles, num_positions: int) -> int:
    """Return the most tokens of a text: those of the files, but no more than the model takes.

    As in sentence-transformers, `max_seq_length` of sentence_bert_config.json goes before the
    `model_max_length` of the tokenizer.

    Raises:
        SensoriumError: If it is not a whole number.
    """
    for file, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        length = weight_files.read_json(file).get(key)
        if length is None:
            continue
        if isinstance(length, bool) or not isinstance(length, int | float) or length < 3:
            raise SensoriumError(
                f"{weight_files.path}/{file} sets {key}={length!r}. Give a whole number of tokens, "
                "at least 3."
            )
        return int(min(length, num_positions))
    return num_positions


def is_cls_pooling(weight_files: WeightFiles) -> bool:
    """Return whether sentence-transformers' config pools to the first token, not to the mean.

    Raises:
        SensoriumError: If it asks for anything else, or adds other modules to the encoder.
    """
    for module_type in _module_types(weight_files):
        if module_type not in SUPPORTED_MODULES:
            raise SensoriumError(
                f"{weight_files.path}/modules.json adds a {module_type} to the encoder. Supported "
                f"are {', '.join(SUPPORTED_MODULES)}."
            )
    modes = {
        mode
        for mode, enabled in weight_files.read_json("1_Pooling/config.json").items()
        if mode.startswith("pooling_mode_") and enabled is True
    }
    if modes <= {"pooling_mode_mean_tokens"}:
        return False
    if modes == {"pooling_mode_cls_token"}:
        return True
    raise SensoriumError(
        f"{weight_files.path}/1_Pooling/config.json asks for {', '.join(sorted(modes))}. Supported "
        "are the mean of all tokens and the first token."
    )


def _module_types(weight_files: WeightFiles) -> list[str]:
    """Return the class names of sentence-transformers' modules."""
    path = weight_files.files.get("modules.json")
    if path is None:
        return []
    try:
        return [
            str(module["type"]).rpartition(".")[2]
            for module in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise SensoriumError(f"{path} is not a list of modules: {error!r}.") from error


BERT = PretrainedFamily(
    "bert",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    UNUSED_TENSORS,
)
