"""ViT (Dosovitskiy et al. 2020), in Hugging Face's names and in timm's."""
from collections.abc import Iterable

from sensorium.modalities.image import Image, Patches
from sensorium.models import Encoder
from sensorium.published.classifier import Classifier, labels, timm_picture, verbs
from sensorium.published.files import Opened
from sensorium.published.parts import Names, Shape, affine, boxed, kernel
from sensorium.published.published import Config, Published, Senses, same, stacked
from sensorium.published.senses import picture

DEFAULT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
           "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16}
SEEN = Image(size=224, square="stretch", resample="bilinear")
HEAD = 64                                               # width of a head in timm, where its config names no other


def build(config: Config) -> Classifier:
    """The tower `image`, read from its class token, and its head, with first weights."""
    size = Shape(config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"],
                 config["intermediate_size"], config["hidden_act"], config["layer_norm_eps"])
    patches = Patches(size.dim, config["image_size"], config["patch_size"], bias=True)
    return Classifier(Encoder(patches, size.trunk()), size.dim, config["labels"])


def names(config: Config) -> Names:
    """Our names and Hugging Face's."""
    prefix = config["prefix"]
    head = affine("head", "classifier") if config["labels"] else []
    return [*_embed(config, f"{prefix}embeddings.", "position_embeddings", "patch_embeddings.projection"),
            *(name for i in range(config["num_hidden_layers"])
              for name in _block(f"image.encode.trunk.blocks.{i}", f"{prefix}encoder.layer.{i}")),
            *affine("image.encode.trunk.last", f"{prefix}layernorm"), *head]


def timm_names(config: Config) -> Names:
    """Our names and timm's."""
    head = affine("head", "head") if config["labels"] else []
    return [*_embed(config, "", "pos_embed", "patch_embed.proj"),
            *(name for i in range(config["num_hidden_layers"])
              for name in _timm_block(f"image.encode.trunk.blocks.{i}", f"blocks.{i}")),
            *affine("image.encode.trunk.last", "norm"), *head]


def _embed(config: Config, before: str, places: str, patches: str) -> Names:
    return [boxed("image.encode.embed.whole", f"{before}cls_token", 2),
            boxed("image.encode.embed.places", f"{before}{places}"),
            kernel("image.encode.embed.linear.weight", f"{before}{patches}.weight", config["patch_size"]),
            same("image.encode.embed.linear.bias", f"{before}{patches}.bias")]


def _block(ours: str, theirs: str) -> Names:
    look = f"{theirs}.attention"
    qkv = [stacked(f"{ours}.attention.qkv.{part}", *(f"{look}.attention.{x}.{part}" for x in ("query", "key", "value")))
           for part in ("weight", "bias")]
    return [*qkv, *affine(f"{ours}.attention.out", f"{look}.output.dense"),
            *affine(f"{ours}.norm", f"{theirs}.layernorm_before"),
            *affine(f"{ours}.mlp_norm", f"{theirs}.layernorm_after"),
            *affine(f"{ours}.mlp.up", f"{theirs}.intermediate.dense"),
            *affine(f"{ours}.mlp.down", f"{theirs}.output.dense")]


def _timm_block(ours: str, theirs: str) -> Names:
    return [name for mine, other in (
        ("attention.qkv", "attn.qkv"), ("attention.out", "attn.proj"), ("norm", "norm1"), ("mlp_norm", "norm2"),
        ("mlp.up", "mlp.fc1"), ("mlp.down", "mlp.fc2")) for name in affine(f"{ours}.{mine}", f"{theirs}.{other}")]


def _recognise(opened: Opened) -> Config | None:
    if opened.config.get("model_type") != "vit":
        return None
    head = opened.tensors.shape("classifier.weight")
    prefix = "vit." if "vit.layernorm.weight" in opened.tensors else ""
    return {**DEFAULT, **opened.config, "prefix": prefix, "labels": labels(opened.config, head[0] if head else 0)}


def _recognise_timm(opened: Opened) -> Config | None:
    """timm gives no sizes: they are read from the shapes, the heads from the width."""
    shape = opened.tensors.shape
    first, kernels, places = shape("blocks.0.attn.qkv.weight"), shape("patch_embed.proj.weight"), shape("pos_embed")
    if first is None or kernels is None or places is None or "cls_token" not in opened.tensors:
        return None
    dim, patch, head, hidden = first[1], kernels[2], shape("head.weight"), shape("blocks.0.mlp.fc1.weight")
    width = 80 if "vit_huge" in opened.config.get("architecture", "") else HEAD
    return {**opened.config, "hidden_size": dim, "num_hidden_layers": depth("blocks", opened.tensors),
            "num_attention_heads": dim // width, "intermediate_size": hidden[0] if hidden else 4 * dim,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "patch_size": patch,
            "image_size": round((places[1] - 1) ** 0.5) * patch,
            "labels": labels(opened.config, head[0] if head else 0)}


def depth(before: str, found: Iterable[str]) -> int:
    """How many numbered parts there are: blocks.0.x, blocks.1.x, ..."""
    return len({name.removeprefix(f"{before}.").partition(".")[0] for name in found if name.startswith(f"{before}.")})


def senses(config: Config, opened: Opened) -> Senses:
    """Pictures as its processor makes them."""
    return {"image": picture(opened.json("preprocessor_config.json"), config["image_size"], SEEN)}


def _timm_senses(config: Config, opened: Opened) -> Senses:
    size = config["image_size"]
    given = {"mean": (0.5,) * 3, "std": (0.5,) * 3, **opened.config.get("pretrained_cfg", {})}
    return {"image": timm_picture(given, size, int(size / 0.9), "bicubic")}


VIT = Published("vit", _recognise, build, names, senses, verbs, ("*pooler.*",))
TIMM_VIT = Published("timm_vit", _recognise_timm, build, timm_names, _timm_senses, verbs)
