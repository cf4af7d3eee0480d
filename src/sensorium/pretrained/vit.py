"""ViT (Dosovitskiy et al. 2020), in the names of transformers and of timm."""

from collections.abc import Iterable

from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.models.towers import Encoder
from sensorium.pretrained.classifier import (
    Classifier,
    build_verbs,
    class_labels,
    timm_image_preprocessing,
)
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.image_processor import image_preprocessing
from sensorium.pretrained.trunk import TrunkConfig
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import (
    WeightMappings,
    map_blocks,
    patch_kernel,
    rename,
    squeeze,
    weight_bias,
)

CONFIG_RULES = ConfigRules(
    sizes={"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16},
    layers={"num_hidden_layers": 12},
    heads={"num_attention_heads": ("hidden_size", 12)},
    lengths={"image_size": 224},
    numbers={"layer_norm_eps": 1e-12},
    names={"hidden_act": "gelu"},
    fixed={"qkv_bias": (True,)},
    unused=frozenset(
        {
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "encoder_stride",  # of another task
            "pooler_output_size",
            "pooler_act",
        }
    ),
)
BLOCK_LAYERS = {  # ours -> transformers'
    "attention.qkv": (
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
    ),
    "attention.out": "attention.output.dense",
    "norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
TIMM_BLOCK_LAYERS = {  # ours -> timm's
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "norm": "norm1",
    "mlp_norm": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
DEFAULT_IMAGE = Image(size=224, resize_mode="stretch", resample="bilinear")
TIMM_HEAD_DIM = 64  # width of an attention head in timm's models, which no file states
TIMM_HUGE_HEAD_DIM = 80


def build_module(config: ModelConfig) -> Classifier:
    """Build the tower `image`, pooled at the class token, and the head if there is one."""
    trunk_config = TrunkConfig(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["hidden_act"],
        config["layer_norm_eps"],
    )
    patches = PatchEmbedding(
        trunk_config.dim, config["image_size"], config["patch_size"], bias=True, crop=True
    )
    encoder = Encoder(patches, trunk_config.build_trunk())
    return Classifier(encoder, trunk_config.dim, config["labels"])


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    prefix, depth = config["prefix"], config["num_hidden_layers"]
    embeddings, trunk = f"{prefix}embeddings", "image.encoder.trunk"
    head = weight_bias("head", "classifier") if config["labels"] else []
    return [
        squeeze("image.encoder.embed.cls_token", f"{embeddings}.cls_token", 2),
        squeeze("image.encoder.embed.position_embedding", f"{embeddings}.position_embeddings"),
        *_map_patches(f"{embeddings}.patch_embeddings.projection", config["patch_size"]),
        *map_blocks(f"{trunk}.blocks", f"{prefix}encoder.layer", depth, BLOCK_LAYERS),
        *weight_bias(f"{trunk}.final_norm", f"{prefix}layernorm"),
        *head,
    ]


def map_timm_weights(config: ModelConfig) -> WeightMappings:
    """Map timm's names to ours."""
    depth, trunk = config["num_hidden_layers"], "image.encoder.trunk"
    head = weight_bias("head", "head") if config["labels"] else []
    return [
        squeeze("image.encoder.embed.cls_token", "cls_token", 2),
        squeeze("image.encoder.embed.position_embedding", "pos_embed"),
        *_map_patches("patch_embed.proj", config["patch_size"]),
        *map_blocks(f"{trunk}.blocks", "blocks", depth, TIMM_BLOCK_LAYERS),
        *weight_bias(f"{trunk}.final_norm", "norm"),
        *head,
    ]


def _map_patches(source: str, patch_size: int) -> WeightMappings:
    target = "image.encoder.embed.projection"
    return [
        patch_kernel(f"{target}.weight", f"{source}.weight", patch_size),
        rename(f"{target}.bias", f"{source}.bias"),
    ]


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    if weight_files.config.get("model_type") != "vit":
        return None
    head = weight_files.tensors.get_shape("classifier.weight")
    prefix = "vit." if "vit.layernorm.weight" in weight_files.tensors else ""
    return {
        **CONFIG_RULES.apply(weight_files.config, weight_files),
        "prefix": prefix,
        "labels": class_labels(weight_files.config, head[0] if head else 0),
    }


def _detect_timm_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Derive the sizes, which timm does not store, from the shapes."""
    shape = weight_files.tensors.get_shape
    qkv = shape("blocks.0.attn.qkv.weight")
    patches = shape("patch_embed.proj.weight")
    positions = shape("pos_embed")
    if qkv is None or patches is None or positions is None:
        return None
    if "cls_token" not in weight_files.tensors:
        return None
    dim, patch_size = qkv[1], patches[2]
    mlp, head = shape("blocks.0.mlp.fc1.weight"), shape("head.weight")
    is_huge = "vit_huge" in weight_files.config.get("architecture", "")
    return {
        **weight_files.config,
        "hidden_size": dim,
        "num_hidden_layers": count_layers("blocks", weight_files.tensors),
        "num_attention_heads": dim // (TIMM_HUGE_HEAD_DIM if is_huge else TIMM_HEAD_DIM),
        "intermediate_size": mlp[0] if mlp else 4 * dim,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "patch_size": patch_size,
        "image_size": round((positions[1] - 1) ** 0.5) * patch_size,
        "labels": class_labels(weight_files.config, head[0] if head else 0),
    }


def count_layers(prefix: str, names: Iterable[str]) -> int:
    """Return the number of distinct i in the names PREFIX.i.REST."""
    start = f"{prefix}."
    return len({n.removeprefix(start).partition(".")[0] for n in names if n.startswith(start)})


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image processor's settings."""
    return {"image": image_preprocessing(weight_files, config["image_size"], DEFAULT_IMAGE)}


def _timm_preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    size = config["image_size"]
    defaults = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    pretrained_cfg = {**defaults, **weight_files.config.get("pretrained_cfg", {})}
    return {"image": timm_image_preprocessing(pretrained_cfg, size, int(size / 0.9), "bicubic")}


VIT = PretrainedFamily(
    "vit", _detect_config, build_module, map_weights, preprocessing, build_verbs, ("*pooler.*",)
)
TIMM_VIT = PretrainedFamily(
    "timm_vit",
    _detect_timm_config,
    build_module,
    map_timm_weights,
    _timm_preprocessing,
    build_verbs,
)
