"""ViT (Dosovitskiy et al. 2020), in Hugging Face's names and in timm's."""

from collections.abc import Iterable

from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.models.towers import Encoder
from sensorium.pretrained.classifier import (
    Classifier,
    build_verbs,
    class_labels,
    timm_image_preprocessing,
)
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily, concat, rename
from sensorium.pretrained.preprocessing import image_preprocessing
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import (
    TrunkConfig,
    WeightMappings,
    patch_kernel,
    squeeze,
    weight_bias,
)

CONFIG_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
}
DEFAULT_IMAGE = Image(size=224, resize_mode="stretch", resample="bilinear")
DEFAULT_HEAD_DIM = 64  # width of a head in timm, where its config names no other


def build_module(config: ModelConfig) -> Classifier:
    """The tower `image`, read from its class token, and its head, with first weights."""
    size = TrunkConfig(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        config["hidden_act"],
        config["layer_norm_eps"],
    )
    patches = PatchEmbedding(size.dim, config["image_size"], config["patch_size"], bias=True)
    return Classifier(Encoder(patches, size.build_trunk()), size.dim, config["labels"])


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and Hugging Face's."""
    prefix = config["prefix"]
    head = weight_bias("head", "classifier") if config["labels"] else []
    return [
        *_map_embed(
            config, f"{prefix}embeddings.", "position_embeddings", "patch_embeddings.projection"
        ),
        *(
            name
            for i in range(config["num_hidden_layers"])
            for name in _map_block(f"image.encode.trunk.blocks.{i}", f"{prefix}encoder.layer.{i}")
        ),
        *weight_bias("image.encode.trunk.last", f"{prefix}layernorm"),
        *head,
    ]


def map_timm_weights(config: ModelConfig) -> WeightMappings:
    """Our names and timm's."""
    head = weight_bias("head", "head") if config["labels"] else []
    return [
        *_map_embed(config, "", "pos_embed", "patch_embed.proj"),
        *(
            name
            for i in range(config["num_hidden_layers"])
            for name in _map_timm_block(f"image.encode.trunk.blocks.{i}", f"blocks.{i}")
        ),
        *weight_bias("image.encode.trunk.last", "norm"),
        *head,
    ]


def _map_embed(
    config: ModelConfig, prefix: str, position_name: str, patch_name: str
) -> WeightMappings:
    return [
        squeeze("image.encode.embed.whole", f"{prefix}cls_token", 2),
        squeeze("image.encode.embed.places", f"{prefix}{position_name}"),
        patch_kernel(
            "image.encode.embed.linear.weight", f"{prefix}{patch_name}.weight", config["patch_size"]
        ),
        rename("image.encode.embed.linear.bias", f"{prefix}{patch_name}.bias"),
    ]


def _map_block(target: str, source: str) -> WeightMappings:
    look = f"{source}.attention"
    qkv = [
        concat(
            f"{target}.attention.qkv.{part}",
            *(f"{look}.attention.{x}.{part}" for x in ("query", "key", "value")),
        )
        for part in ("weight", "bias")
    ]
    return [
        *qkv,
        *weight_bias(f"{target}.attention.out", f"{look}.output.dense"),
        *weight_bias(f"{target}.norm", f"{source}.layernorm_before"),
        *weight_bias(f"{target}.mlp_norm", f"{source}.layernorm_after"),
        *weight_bias(f"{target}.mlp.up", f"{source}.intermediate.dense"),
        *weight_bias(f"{target}.mlp.down", f"{source}.output.dense"),
    ]


def _map_timm_block(target: str, source: str) -> WeightMappings:
    return [
        name
        for mine, other in (
            ("attention.qkv", "attn.qkv"),
            ("attention.out", "attn.proj"),
            ("norm", "norm1"),
            ("mlp_norm", "norm2"),
            ("mlp.up", "mlp.fc1"),
            ("mlp.down", "mlp.fc2"),
        )
        for name in weight_bias(f"{target}.{mine}", f"{source}.{other}")
    ]


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    if weight_files.config.get("model_type") != "vit":
        return None
    head = weight_files.tensors.get_shape("classifier.weight")
    prefix = "vit." if "vit.layernorm.weight" in weight_files.tensors else ""
    return {
        **CONFIG_DEFAULTS,
        **weight_files.config,
        "prefix": prefix,
        "labels": class_labels(weight_files.config, head[0] if head else 0),
    }


def _detect_timm_config(weight_files: WeightFiles) -> ModelConfig | None:
    """timm gives no sizes: they are read from the shapes, the heads from the width."""
    shape = weight_files.tensors.get_shape
    first, kernels, places = (
        shape("blocks.0.attn.qkv.weight"),
        shape("patch_embed.proj.weight"),
        shape("pos_embed"),
    )
    if (
        first is None
        or kernels is None
        or places is None
        or "cls_token" not in weight_files.tensors
    ):
        return None
    dim, patch, head, hidden = (
        first[1],
        kernels[2],
        shape("head.weight"),
        shape("blocks.0.mlp.fc1.weight"),
    )
    width = 80 if "vit_huge" in weight_files.config.get("architecture", "") else DEFAULT_HEAD_DIM
    return {
        **weight_files.config,
        "hidden_size": dim,
        "num_hidden_layers": count_layers("blocks", weight_files.tensors),
        "num_attention_heads": dim // width,
        "intermediate_size": hidden[0] if hidden else 4 * dim,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "patch_size": patch,
        "image_size": round((places[1] - 1) ** 0.5) * patch,
        "labels": class_labels(weight_files.config, head[0] if head else 0),
    }


def count_layers(prefix: str, names: Iterable[str]) -> int:
    """How many numbered parts there are: blocks.0.x, blocks.1.x, ..."""
    return len(
        {
            name.removeprefix(f"{prefix}.").partition(".")[0]
            for name in names
            if name.startswith(f"{prefix}.")
        }
    )


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Pictures as its processor makes them."""
    return {
        "image": image_preprocessing(
            weight_files.read_json("preprocessor_config.json"), config["image_size"], DEFAULT_IMAGE
        )
    }


def _timm_preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    size = config["image_size"]
    given = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **weight_files.config.get("pretrained_cfg", {})}
    return {"image": timm_image_preprocessing(given, size, int(size / 0.9), "bicubic")}


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
