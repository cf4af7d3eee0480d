"""CLIP as OpenCLIP publishes it (and as OpenAI named it): open_clip_config.json, open_clip_model.safetensors."""

from dataclasses import replace

from sensorium.errors import SensoriumError
from sensorium.modalities.image import PatchEmbedding
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.projection import LinearProjection
from sensorium.pretrained.family import (
    ModelConfig,
    Preprocessing,
    PretrainedFamily,
    rename,
    transpose,
)
from sensorium.pretrained.preprocessing import (
    CLIP_IMAGE,
    RESAMPLE_NAMES,
    build_embed_verb,
    drop_missing,
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
NEUTRAL_VALUES = (
    None,
    False,
    "tok",
    "argmax",
    "linear",
    0,
    0.0,
)  # settings that ask for nothing beyond the plain model
IGNORED_KEYS = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}


def build_module(config: ModelConfig) -> Towers:
    """Two towers, `image` and `text`. Raises SensoriumError for a setting that the plain CLIP does not have."""
    given = config["model_cfg"]
    vision, text = (
        parse_tower_config(given, "vision_cfg", VISION_DEFAULTS),
        parse_tower_config(given, "text_cfg", TEXT_DEFAULTS),
    )
    act, out = "quick_gelu" if given.get("quick_gelu") else "gelu", given["embed_dim"]
    eye = TrunkConfig(
        vision["width"],
        vision["layers"],
        vision["width"] // vision["head_width"],
        int(vision["width"] * vision["mlp_ratio"]),
        act,
    )
    voice = TrunkConfig(
        text["width"], text["layers"], text["heads"], int(text["width"] * text["mlp_ratio"]), act
    )
    patches = PatchEmbedding(eye.dim, vision["image_size"], vision["patch_size"])
    words = ArgmaxPooledEmbedding(voice.dim, text["vocab_size"], text["context_length"])
    return Towers(
        {
            "image": Tower(
                Encoder(patches, eye.build_trunk(input_norm=eye.build_norm())),
                LinearProjection(eye.dim, out),
                out,
            ),
            "text": Tower(
                Encoder(words, voice.build_trunk()), LinearProjection(voice.dim, out), out
            ),
        }
    )


def parse_tower_config(config: ModelConfig, tower_key: str, defaults: ModelConfig) -> ModelConfig:
    """The settings of one tower, all of them. Raises SensoriumError naming one that asks for another model."""
    given = config.get(tower_key, {})
    for key, value in given.items():
        if key not in defaults and key not in IGNORED_KEYS and value not in NEUTRAL_VALUES:
            raise SensoriumError(
                f"open_clip_config.json: {tower_key}.{key}={value!r} is not read; only plain CLIP towers "
                "are (a vision transformer with a class token, a causal text transformer)"
            )
    return {**defaults, **{key: value for key, value in given.items() if key in defaults}}


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    given = config["model_cfg"]
    vision, text = (
        parse_tower_config(given, "vision_cfg", VISION_DEFAULTS),
        parse_tower_config(given, "text_cfg", TEXT_DEFAULTS),
    )
    return [
        rename("logit_scale", "logit_scale"),
        rename("image.encode.embed.whole", "visual.class_embedding"),
        patch_kernel(
            "image.encode.embed.linear.weight", "visual.conv1.weight", vision["patch_size"]
        ),
        rename("image.encode.embed.places", "visual.positional_embedding"),
        *weight_bias("image.encode.trunk.first", "visual.ln_pre"),
        *_map_trunk("image.encode.trunk", "visual.transformer", vision["layers"]),
        *weight_bias("image.encode.trunk.last", "visual.ln_post"),
        transpose("image.align.weight", "visual.proj"),
        rename("text.encode.embed.ids.weight", "token_embedding.weight"),
        rename("text.encode.embed.places", "positional_embedding"),
        *_map_trunk("text.encode.trunk", "transformer", text["layers"]),
        *weight_bias("text.encode.trunk.last", "ln_final"),
        transpose("text.align.weight", "text_projection"),
    ]


def _map_trunk(target: str, source: str, depth: int) -> WeightMappings:
    return [
        name
        for i in range(depth)
        for name in _map_block(f"{target}.blocks.{i}", f"{source}.resblocks.{i}")
    ]


def _map_block(target: str, source: str) -> WeightMappings:
    qkv = [
        rename(f"{target}.attention.qkv.{part}", f"{source}.attn.in_proj_{part}")
        for part in ("weight", "bias")
    ]
    return [
        *qkv,
        *weight_bias(f"{target}.attention.out", f"{source}.attn.out_proj"),
        *weight_bias(f"{target}.norm", f"{source}.ln_1"),
        *weight_bias(f"{target}.mlp_norm", f"{source}.ln_2"),
        *weight_bias(f"{target}.mlp.up", f"{source}.mlp.c_fc"),
        *weight_bias(f"{target}.mlp.down", f"{source}.mlp.c_proj"),
    ]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Pictures by `preprocess_cfg`, words by the tokenizer.json beside it."""
    vision = parse_tower_config(config["model_cfg"], "vision_cfg", VISION_DEFAULTS)
    text = parse_tower_config(config["model_cfg"], "text_cfg", TEXT_DEFAULTS)
    given = config.get("preprocess_cfg", {})
    filters, squash = (
        given.get("interpolation", "bicubic"),
        given.get("resize_mode", "shortest") == "squash",
    )
    if filters not in RESAMPLE_NAMES.values() or given.get("resize_mode", "shortest") == "longest":
        raise SensoriumError(
            f"open_clip_config.json asks for pictures by {given}, which is not known here"
        )
    image = replace(
        CLIP_IMAGE,
        size=vision["image_size"],
        resample=filters,
        square="stretch" if squash else "centre",
        mean=tuple(given.get("mean", CLIP_IMAGE.mean)),
        std=tuple(given.get("std", CLIP_IMAGE.std)),
    )
    return drop_missing(
        image=image,
        text=text_preprocessing(weight_files, text["context_length"], text["vocab_size"]),
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    return weight_files.config if weight_files.layout == "open_clip" else None


OPEN_CLIP = PretrainedFamily(
    "open_clip", _detect_config, build_module, map_weights, preprocessing, build_embed_verb
)
