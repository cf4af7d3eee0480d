"""CLIP (Radford et al. 2021) as Hugging Face publishes it: config.json with `model_type: clip`, model.safetensors."""

from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, InputEmbedding, Tower, Towers
from sensorium.nn.projection import LinearProjection
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily, concat, rename
from sensorium.pretrained.preprocessing import (
    CLIP_IMAGE,
    build_embed_verb,
    drop_missing,
    image_preprocessing,
    text_preprocessing,
)
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import (
    ArgmaxPooledEmbedding,
    TrunkConfig,
    WeightMappings,
    patch_kernel,
    weight_bias,
)

VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
UNUSED_TENSORS = (
    "*.embeddings.position_ids",
)  # 0, 1, 2, ..., in files of transformers before 4.31
LEGACY_EOS_TOKEN_ID = (
    2  # configs written before 2023 give this wrong id; the end is the highest id instead
)


def build_module(config: ModelConfig) -> Towers:
    """Two towers as the config describes them, `image` and `text`, with first weights."""
    out = config.get("projection_dim", 512)
    return Towers(
        {
            "image": _build_image_tower(VISION_DEFAULTS | config.get("vision_config", {}), out),
            "text": _build_text_tower(TEXT_DEFAULTS | config.get("text_config", {}), out),
        }
    )


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    vision, text = (
        VISION_DEFAULTS | config.get("vision_config", {}),
        TEXT_DEFAULTS | config.get("text_config", {}),
    )
    return [
        rename("logit_scale", "logit_scale"),
        rename("image.encode.embed.whole", "vision_model.embeddings.class_embedding"),
        patch_kernel(
            "image.encode.embed.linear.weight",
            "vision_model.embeddings.patch_embedding.weight",
            vision["patch_size"],
        ),
        rename("image.encode.embed.places", "vision_model.embeddings.position_embedding.weight"),
        *weight_bias("image.encode.trunk.first", "vision_model.pre_layrnorm"),
        *map_trunk("image.encode.trunk", "vision_model.encoder", vision["num_hidden_layers"]),
        *weight_bias("image.encode.trunk.last", "vision_model.post_layernorm"),
        rename("image.align.weight", "visual_projection.weight"),
        rename("text.encode.embed.ids.weight", "text_model.embeddings.token_embedding.weight"),
        rename("text.encode.embed.places", "text_model.embeddings.position_embedding.weight"),
        *map_trunk("text.encode.trunk", "text_model.encoder", text["num_hidden_layers"]),
        *weight_bias("text.encode.trunk.last", "text_model.final_layer_norm"),
        rename("text.align.weight", "text_projection.weight"),
    ]


def map_trunk(target: str, source: str, depth: int) -> WeightMappings:
    """The blocks of a pre-norm trunk."""
    return [
        name
        for i in range(depth)
        for name in _map_block(f"{target}.blocks.{i}", f"{source}.layers.{i}")
    ]


def _map_block(target: str, source: str) -> WeightMappings:
    qkv = [
        concat(
            f"{target}.attention.qkv.{part}",
            *(f"{source}.self_attn.{x}_proj.{part}" for x in "qkv"),
        )
        for part in ("weight", "bias")
    ]
    return [
        *qkv,
        *weight_bias(f"{target}.attention.out", f"{source}.self_attn.out_proj"),
        *weight_bias(f"{target}.norm", f"{source}.layer_norm1"),
        *weight_bias(f"{target}.mlp_norm", f"{source}.layer_norm2"),
        *weight_bias(f"{target}.mlp.up", f"{source}.mlp.fc1"),
        *weight_bias(f"{target}.mlp.down", f"{source}.mlp.fc2"),
    ]


def trunk_config(config: ModelConfig) -> TrunkConfig:
    """The trunk that a config of one tower describes."""
    return TrunkConfig(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["hidden_act"],
        config["layer_norm_eps"],
    )


def _build_image_tower(config: ModelConfig, projection_dim: int) -> Tower:
    size = trunk_config(config)
    patches = PatchEmbedding(size.dim, config["image_size"], config["patch_size"])
    return Tower(
        Encoder(patches, size.build_trunk(input_norm=size.build_norm())),
        LinearProjection(size.dim, projection_dim),
        projection_dim,
    )


def _build_text_tower(config: ModelConfig, projection_dim: int) -> Tower:
    size = trunk_config(config)
    return Tower(
        Encoder(_build_token_embedding(config), size.build_trunk()),
        LinearProjection(size.dim, projection_dim),
        projection_dim,
    )


def _build_token_embedding(config: ModelConfig) -> InputEmbedding:
    dim, vocab, length = (
        config["hidden_size"],
        config["vocab_size"],
        config["max_position_embeddings"],
    )
    if config["eos_token_id"] == LEGACY_EOS_TOKEN_ID:
        return ArgmaxPooledEmbedding(dim, vocab, length)
    return TextEmbedding(dim, Text(length=length, vocab_size=vocab, end=config["eos_token_id"]))


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Pictures as its processor makes them, words as its tokenizer cuts them."""
    vision, text = (
        VISION_DEFAULTS | config.get("vision_config", {}),
        TEXT_DEFAULTS | config.get("text_config", {}),
    )
    return drop_missing(
        image=image_preprocessing(
            weight_files.read_json("preprocessor_config.json"), vision["image_size"], CLIP_IMAGE
        ),
        text=text_preprocessing(weight_files, text["max_position_embeddings"], text["vocab_size"]),
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    whole = (
        weight_files.config.get("model_type") == "clip" and "logit_scale" in weight_files.tensors
    )
    return weight_files.config if whole else None


CLIP = PretrainedFamily(
    "clip",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    UNUSED_TENSORS,
)
