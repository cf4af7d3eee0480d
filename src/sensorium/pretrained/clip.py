"""CLIP (Radford et al. 2021) as transformers stores it: config.json with `model_type: clip`."""

from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, InputEmbedding, Tower, Towers
from sensorium.nn.projection import LinearProjection
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.preprocessing import (
    CLIP_IMAGE,
    build_embed_verb,
    drop_missing,
    image_preprocessing,
)
from sensorium.pretrained.tokenizers import text_preprocessing
from sensorium.pretrained.trunk import ArgmaxPooledEmbedding, TrunkConfig
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import (
    WeightMappings,
    map_blocks,
    patch_kernel,
    rename,
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
BLOCK_LAYERS = {  # ours -> theirs; SigLIP's are the same
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": "self_attn.out_proj",
    "norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
# Position numbers, which transformers stored before version 4.31.
UNUSED_TENSORS = ("*.embeddings.position_ids",)
# Configs from before 2023 state this wrong id; texts end at their highest id instead.
LEGACY_EOS_TOKEN_ID = 2


def build_module(config: ModelConfig) -> Towers:
    """Build the towers `image` and `text`."""
    embed_dim = config.get("projection_dim", 512)
    return Towers(
        {
            "image": _build_image_tower(_vision_config(config), embed_dim),
            "text": _build_text_tower(_text_config(config), embed_dim),
        }
    )


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    vision, text = _vision_config(config), _text_config(config)
    image_embed, image_trunk = "image.encoder.embed", "image.encoder.trunk"
    text_embed, text_trunk = "text.encoder.embed", "text.encoder.trunk"
    vision_embeddings, text_embeddings = "vision_model.embeddings", "text_model.embeddings"
    return [
        rename("logit_scale", "logit_scale"),
        rename(f"{image_embed}.cls_token", f"{vision_embeddings}.class_embedding"),
        patch_kernel(
            f"{image_embed}.projection.weight",
            f"{vision_embeddings}.patch_embedding.weight",
            vision["patch_size"],
        ),
        rename(
            f"{image_embed}.position_embedding", f"{vision_embeddings}.position_embedding.weight"
        ),
        *weight_bias(f"{image_trunk}.input_norm", "vision_model.pre_layrnorm"),
        *map_trunk(image_trunk, "vision_model.encoder", vision["num_hidden_layers"]),
        *weight_bias(f"{image_trunk}.final_norm", "vision_model.post_layernorm"),
        rename("image.projection.weight", "visual_projection.weight"),
        rename(f"{text_embed}.token_embedding.weight", f"{text_embeddings}.token_embedding.weight"),
        rename(f"{text_embed}.position_embedding", f"{text_embeddings}.position_embedding.weight"),
        *map_trunk(text_trunk, "text_model.encoder", text["num_hidden_layers"]),
        *weight_bias(f"{text_trunk}.final_norm", "text_model.final_layer_norm"),
        rename("text.projection.weight", "text_projection.weight"),
    ]


def map_trunk(target: str, source: str, depth: int) -> WeightMappings:
    """Map the blocks of a tower's encoder."""
    return map_blocks(f"{target}.blocks", f"{source}.layers", depth, BLOCK_LAYERS)


def trunk_config(config: ModelConfig) -> TrunkConfig:
    """Return the trunk that the config of one tower describes."""
    return TrunkConfig(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["hidden_act"],
        config["layer_norm_eps"],
    )


def _vision_config(config: ModelConfig) -> ModelConfig:
    return VISION_DEFAULTS | config.get("vision_config", {})


def _text_config(config: ModelConfig) -> ModelConfig:
    return TEXT_DEFAULTS | config.get("text_config", {})


def _build_image_tower(config: ModelConfig, embed_dim: int) -> Tower:
    trunk = trunk_config(config)
    patches = PatchEmbedding(trunk.dim, config["image_size"], config["patch_size"])
    encoder = Encoder(patches, trunk.build_trunk(input_norm=trunk.build_norm()))
    return Tower(encoder, LinearProjection(trunk.dim, embed_dim), embed_dim)


def _build_text_tower(config: ModelConfig, embed_dim: int) -> Tower:
    trunk = trunk_config(config)
    encoder = Encoder(_build_token_embedding(config), trunk.build_trunk())
    return Tower(encoder, LinearProjection(trunk.dim, embed_dim), embed_dim)


def _build_token_embedding(config: ModelConfig) -> InputEmbedding:
    dim = config["hidden_size"]
    vocab_size = config["vocab_size"]
    length = config["max_position_embeddings"]
    end = config["eos_token_id"]
    if end == LEGACY_EOS_TOKEN_ID:
        return ArgmaxPooledEmbedding(dim, vocab_size, length)
    return TextEmbedding(dim, Text(length=length, vocab_size=vocab_size, end=end))


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image processor's and the tokenizer's settings."""
    vision, text = _vision_config(config), _text_config(config)
    processor_config = weight_files.read_json("preprocessor_config.json")
    return drop_missing(
        image=image_preprocessing(processor_config, vision["image_size"], CLIP_IMAGE),
        text=text_preprocessing(weight_files, text["max_position_embeddings"], text["vocab_size"]),
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    is_clip = weight_files.config.get("model_type") == "clip"
    return weight_files.config if is_clip and "logit_scale" in weight_files.tensors else None


CLIP = PretrainedFamily(
    "clip",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    UNUSED_TENSORS,
)
