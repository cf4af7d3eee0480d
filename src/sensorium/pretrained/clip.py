"""CLIP (Radford et al. 2021) as transformers stores it: config.json with `model_type: clip`."""

from torch import nn

from sensorium.errors import SensoriumError
from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, InputEmbedding, Tower, Towers
from sensorium.nn.projection import LinearProjection
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.dual_encoder import detect_dual_encoder, tower_kinds, tower_prefix
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.image_processor import image_preprocessing
from sensorium.pretrained.preprocessing import (
    CLIP_IMAGE,
    build_embed_verb,
    drop_missing,
)
from sensorium.pretrained.text_ids import find_ending_pad_id, text_pad_id
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

VISION_RULES = ConfigRules(
    sizes={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "patch_size": 32,
    },
    layers={"num_hidden_layers": 12},
    heads={"num_attention_heads": ("hidden_size", 12)},
    lengths={"image_size": 224},
    numbers={"layer_norm_eps": 1e-5},
    names={"hidden_act": "quick_gelu"},
    unused=frozenset({"projection_dim"}),  # read for both towers together
)
TEXT_RULES = ConfigRules(
    sizes={
        "hidden_size": 512,
        "intermediate_size": 2048,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    layers={"num_hidden_layers": 12},
    heads={"num_attention_heads": ("hidden_size", 8)},
    numbers={"layer_norm_eps": 1e-5},
    names={"hidden_act": "quick_gelu"},
    unused=frozenset({"projection_dim"}),  # read for both towers together
)
EMBED_RULES = ConfigRules(
    sizes={"projection_dim": 512}, unused=frozenset({"logit_scale_init_value"})
)
DEFAULT_EOS_TOKEN_ID = 49407
BLOCK_LAYERS = {  # ours -> theirs; SigLIP's are the same
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": "self_attn.out_proj",
    "norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
PROJECTIONS = {"image": "visual_projection.weight", "text": "text_projection.weight"}
# Position numbers, which transformers stored before version 4.31.
UNUSED_TENSORS = ("*embeddings.position_ids",)
# Configs from before 2023 state this wrong id; texts end at their highest id instead.
LEGACY_EOS_TOKEN_ID = 2


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """Build the towers `image` and `text`, or the one that the files have."""
    builders = {
        "image": (_build_image_tower, _vision_config(config)),
        "text": (_build_text_tower, _text_config(config)),
    }
    towers = {
        kind: builders[kind][0](builders[kind][1], _projection_dim(config))
        for kind in tower_kinds(config)
    }
    return Towers({**towers}) if len(towers) == 2 else nn.ModuleDict(towers)


def _projection_dim(config: ModelConfig) -> int | None:
    """Return the width of the shared space; None for a half without a projection to it."""
    is_projected = config.get("projects", True)
    return config.get("projection_dim", 512) if is_projected else None


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    maps = {"image": _map_image_tower, "text": _map_text_tower}
    kinds = tower_kinds(config)
    mappings = [mapping for kind in kinds for mapping in maps[kind](config)]
    for kind, source in PROJECTIONS.items():
        if kind in kinds and _projection_dim(config):
            mappings.append(rename(f"{kind}.projection.weight", source))
    return [rename("logit_scale", "logit_scale"), *mappings] if len(kinds) == 2 else mappings


def _map_image_tower(config: ModelConfig) -> WeightMappings:
    vision, prefix = _vision_config(config), tower_prefix(config, "image")
    embed, trunk = "image.encoder.embed", "image.encoder.trunk"
    embeddings = f"{prefix}embeddings"
    return [
        rename(f"{embed}.cls_token", f"{embeddings}.class_embedding"),
        patch_kernel(
            f"{embed}.projection.weight",
            f"{embeddings}.patch_embedding.weight",
            vision["patch_size"],
        ),
        rename(f"{embed}.position_embedding", f"{embeddings}.position_embedding.weight"),
        *weight_bias(f"{trunk}.input_norm", f"{prefix}pre_layrnorm"),
        *map_trunk(trunk, f"{prefix}encoder", vision["num_hidden_layers"]),
        *weight_bias(f"{trunk}.final_norm", f"{prefix}post_layernorm"),
    ]


def _map_text_tower(config: ModelConfig) -> WeightMappings:
    text, prefix = _text_config(config), tower_prefix(config, "text")
    embed, trunk = "text.encoder.embed", "text.encoder.trunk"
    embeddings = f"{prefix}embeddings"
    return [
        rename(f"{embed}.token_embedding.weight", f"{embeddings}.token_embedding.weight"),
        rename(f"{embed}.position_embedding", f"{embeddings}.position_embedding.weight"),
        *map_trunk(trunk, f"{prefix}encoder", text["num_hidden_layers"]),
        *weight_bias(f"{trunk}.final_norm", f"{prefix}final_layer_norm"),
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
    return VISION_RULES.defaults | config.get("vision_config", {})


def _text_config(config: ModelConfig) -> ModelConfig:
    text = config.get("text_config", {})
    return TEXT_RULES.defaults | {"eos_token_id": DEFAULT_EOS_TOKEN_ID} | text


def _build_image_tower(config: ModelConfig, embed_dim: int | None) -> Tower:
    trunk = trunk_config(config)
    patches = PatchEmbedding(trunk.dim, config["image_size"], config["patch_size"], crop=True)
    encoder = Encoder(patches, trunk.build_trunk(input_norm=trunk.build_norm()))
    return _build_tower(encoder, trunk.dim, embed_dim)


def _build_text_tower(config: ModelConfig, embed_dim: int | None) -> Tower:
    trunk = trunk_config(config)
    encoder = Encoder(_build_token_embedding(config), trunk.build_trunk())
    return _build_tower(encoder, trunk.dim, embed_dim)


def _build_tower(encoder: Encoder, dim: int, embed_dim: int | None) -> Tower:
    if embed_dim is None:
        return Tower(encoder, nn.Identity(), dim)
    return Tower(encoder, LinearProjection(dim, embed_dim), embed_dim)


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
    kinds = tower_kinds(config)
    image_settings = text_settings = None
    if "image" in kinds:
        image_settings = image_preprocessing(weight_files, vision["image_size"], CLIP_IMAGE)
    if "text" in kinds:
        text_settings = text_preprocessing(
            weight_files,
            text["max_position_embeddings"],
            text["vocab_size"],
            text_pad_id(config, {}),
        )
    return drop_missing(image=image_settings, text=text_settings)


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    rules = {"image": VISION_RULES, "text": TEXT_RULES}
    config = detect_dual_encoder(weight_files, "clip", rules)
    if config is None:
        return None
    if "projection_dim" in config:
        EMBED_RULES.apply({"projection_dim": config["projection_dim"]}, weight_files)
    end = _text_config(config)["eos_token_id"]
    if isinstance(end, bool) or not isinstance(end, int):
        raise SensoriumError(f"{weight_files.path} sets eos_token_id={end!r}. Give one token id.")
    if "text" in tower_kinds(config):
        config |= find_ending_pad_id(weight_files)
    if "kinds" in config:
        classes = config.get("architectures") or []
        config["projects"] = PROJECTIONS[config["kinds"][0]] in weight_files.tensors or any(
            str(name).endswith("WithProjection") for name in classes
        )
    return config


CLIP = PretrainedFamily(
    "clip",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    UNUSED_TENSORS,
)
