"""CLIP as OpenCLIP stores it, in OpenAI's names, with open_clip_config.json."""

from dataclasses import replace

from sensorium.errors import SensoriumError
from sensorium.modalities.image import PatchEmbedding
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.projection import LinearProjection
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.image_processor import RESAMPLE_NAMES
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
    transpose,
    weight_bias,
)

VISION_DEFAULTS = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
}
TEXT_DEFAULTS = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
}
# Values of other settings that leave the plain CLIP as it is.
NEUTRAL_VALUES = (None, False, "tok", "argmax", "linear", 0, 0.0)
IGNORED_KEYS = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
BLOCK_NORMS_AND_LINEARS = {  # ours -> theirs
    "attention.out": "attn.out_proj",
    "norm": "ln_1",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def build_module(config: ModelConfig) -> Towers:
    """Build the towers `image` and `text`.

    Raises:
        SensoriumError: If the config has a setting that the plain CLIP does not have.
    """
    model_config = config["model_cfg"]
    vision, text = _tower_configs(config)
    activation = "quick_gelu" if model_config.get("quick_gelu") else "gelu"
    embed_dim = model_config["embed_dim"]
    image_trunk = TrunkConfig(
        vision["width"],
        vision["layers"],
        vision["width"] // vision["head_width"],
        int(vision["width"] * vision["mlp_ratio"]),
        activation,
    )
    text_trunk = TrunkConfig(
        text["width"],
        text["layers"],
        text["heads"],
        int(text["width"] * text["mlp_ratio"]),
        activation,
    )
    patches = PatchEmbedding(image_trunk.dim, vision["image_size"], vision["patch_size"], crop=True)
    tokens = ArgmaxPooledEmbedding(text_trunk.dim, text["vocab_size"], text["context_length"])
    return Towers(
        {
            "image": Tower(
                Encoder(patches, image_trunk.build_trunk(input_norm=image_trunk.build_norm())),
                LinearProjection(image_trunk.dim, embed_dim),
                embed_dim,
            ),
            "text": Tower(
                Encoder(tokens, text_trunk.build_trunk()),
                LinearProjection(text_trunk.dim, embed_dim),
                embed_dim,
            ),
        }
    )


def parse_tower_config(config: ModelConfig, tower_key: str, defaults: ModelConfig) -> ModelConfig:
    """Return the settings of one tower, with defaults.

    Args:
        config: The `model_cfg` of open_clip_config.json.
        tower_key: "vision_cfg" or "text_cfg".
        defaults: The supported settings.

    Raises:
        SensoriumError: If another setting changes the model.
    """
    settings = config.get(tower_key, {})
    for key, value in settings.items():
        if key not in defaults and key not in IGNORED_KEYS and value not in NEUTRAL_VALUES:
            raise SensoriumError(
                f"open_clip_config.json sets {tower_key}.{key}={value!r}, which is not supported. "
                "Supported are plain CLIP towers: a vision transformer with a class token and a "
                "causal text transformer."
            )
    return {**defaults, **{key: value for key, value in settings.items() if key in defaults}}


def _tower_configs(config: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """Return the settings of the vision and of the text tower."""
    model_config = config["model_cfg"]
    vision = parse_tower_config(model_config, "vision_cfg", VISION_DEFAULTS)
    text = parse_tower_config(model_config, "text_cfg", TEXT_DEFAULTS)
    return vision, text


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map OpenCLIP's names to ours."""
    vision, text = _tower_configs(config)
    image_embed, image_trunk = "image.encoder.embed", "image.encoder.trunk"
    text_embed, text_trunk = "text.encoder.embed", "text.encoder.trunk"
    return [
        rename("logit_scale", "logit_scale"),
        rename(f"{image_embed}.cls_token", "visual.class_embedding"),
        patch_kernel(
            f"{image_embed}.projection.weight", "visual.conv1.weight", vision["patch_size"]
        ),
        rename(f"{image_embed}.position_embedding", "visual.positional_embedding"),
        *weight_bias(f"{image_trunk}.input_norm", "visual.ln_pre"),
        *_map_trunk(image_trunk, "visual.transformer", vision["layers"]),
        *weight_bias(f"{image_trunk}.final_norm", "visual.ln_post"),
        transpose("image.projection.weight", "visual.proj"),
        rename(f"{text_embed}.token_embedding.weight", "token_embedding.weight"),
        rename(f"{text_embed}.position_embedding", "positional_embedding"),
        *_map_trunk(text_trunk, "transformer", text["layers"]),
        *weight_bias(f"{text_trunk}.final_norm", "ln_final"),
        transpose("text.projection.weight", "text_projection"),
    ]


def _map_trunk(target: str, source: str, depth: int) -> WeightMappings:
    blocks, resblocks = f"{target}.blocks", f"{source}.resblocks"
    qkv = [
        rename(f"{blocks}.{i}.attention.qkv.{name}", f"{resblocks}.{i}.attn.in_proj_{name}")
        for i in range(depth)
        for name in ("weight", "bias")
    ]
    return [*qkv, *map_blocks(blocks, resblocks, depth, BLOCK_NORMS_AND_LINEARS)]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image settings of `preprocess_cfg` and the tokenizer's text settings.

    Raises:
        SensoriumError: If `preprocess_cfg` resizes in a way that is not supported.
    """
    vision, text = _tower_configs(config)
    preprocess_config = config.get("preprocess_cfg", {})
    resample = preprocess_config.get("interpolation", "bicubic")
    resize_mode = preprocess_config.get("resize_mode", "shortest")
    if resample not in RESAMPLE_NAMES.values() or resize_mode == "longest":
        raise SensoriumError(
            f"open_clip_config.json resizes images by preprocess_cfg={preprocess_config}, which is "
            "not supported."
        )
    image = replace(
        CLIP_IMAGE,
        size=vision["image_size"],
        resample=resample,
        resize_mode="stretch" if resize_mode == "squash" else "centre",
        mean=tuple(preprocess_config.get("mean", CLIP_IMAGE.mean)),
        std=tuple(preprocess_config.get("std", CLIP_IMAGE.std)),
    )
    return drop_missing(
        image=image,
        text=text_preprocessing(
            weight_files, text["context_length"], text["vocab_size"], text_pad_id(config)
        ),
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    if weight_files.layout != "open_clip":
        return None
    return {**weight_files.config, **find_ending_pad_id(weight_files)}


OPEN_CLIP = PretrainedFamily(
    "open_clip", _detect_config, build_module, map_weights, preprocessing, build_embed_verb
)
