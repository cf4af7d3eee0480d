"""CLIP as OpenCLIP publishes it (and as OpenAI named it): open_clip_config.json, open_clip_model.safetensors."""
from dataclasses import replace

from sensorium.align import LinearAlign
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Patches
from sensorium.models import Encoder, Tower, Towers
from sensorium.published.files import Opened
from sensorium.published.parts import HighestWords, Names, Shape, affine, kernel
from sensorium.published.published import Config, Published, Senses, same, turned
from sensorium.published.senses import RESAMPLE, SEEN, embedding, present, words

VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
IDLE = (None, False, "tok", "argmax", "linear", 0, 0.0)        # settings that ask for nothing beyond the plain model
BESIDE = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}


def build(config: Config) -> Towers:
    """Two towers, `image` and `text`. Raises SensoriumError for a setting that the plain CLIP does not have."""
    given = config["model_cfg"]
    vision, text = tower_config(given, "vision_cfg", VISION), tower_config(given, "text_cfg", TEXT)
    act, out = "quick_gelu" if given.get("quick_gelu") else "gelu", given["embed_dim"]
    eye = Shape(vision["width"], vision["layers"], vision["width"] // vision["head_width"],
                int(vision["width"] * vision["mlp_ratio"]), act)
    voice = Shape(text["width"], text["layers"], text["heads"], int(text["width"] * text["mlp_ratio"]), act)
    patches = Patches(eye.dim, vision["image_size"], vision["patch_size"])
    words = HighestWords(voice.dim, text["vocab_size"], text["context_length"])
    return Towers({
        "image": Tower(Encoder(patches, eye.trunk(first=eye.norm())), LinearAlign(eye.dim, out), out),
        "text": Tower(Encoder(words, voice.trunk()), LinearAlign(voice.dim, out), out)})


def tower_config(config: Config, which: str, default: Config) -> Config:
    """The settings of one tower, all of them. Raises SensoriumError naming one that asks for another model."""
    given = config.get(which, {})
    for key, value in given.items():
        if key not in default and key not in BESIDE and value not in IDLE:
            raise SensoriumError(f"open_clip_config.json: {which}.{key}={value!r} is not read; only plain CLIP towers "
                                 "are (a vision transformer with a class token, a causal text transformer)")
    return {**default, **{key: value for key, value in given.items() if key in default}}


def names(config: Config) -> Names:
    """Our names and theirs."""
    given = config["model_cfg"]
    vision, text = tower_config(given, "vision_cfg", VISION), tower_config(given, "text_cfg", TEXT)
    return [
        same("log_scale", "logit_scale"),
        same("image.encode.embed.whole", "visual.class_embedding"),
        kernel("image.encode.embed.linear.weight", "visual.conv1.weight", vision["patch_size"]),
        same("image.encode.embed.places", "visual.positional_embedding"),
        *affine("image.encode.trunk.first", "visual.ln_pre"),
        *_trunk("image.encode.trunk", "visual.transformer", vision["layers"]),
        *affine("image.encode.trunk.last", "visual.ln_post"),
        turned("image.align.weight", "visual.proj"),
        same("text.encode.embed.ids.weight", "token_embedding.weight"),
        same("text.encode.embed.places", "positional_embedding"),
        *_trunk("text.encode.trunk", "transformer", text["layers"]),
        *affine("text.encode.trunk.last", "ln_final"),
        turned("text.align.weight", "text_projection")]


def _trunk(ours: str, theirs: str, depth: int) -> Names:
    return [name for i in range(depth) for name in _block(f"{ours}.blocks.{i}", f"{theirs}.resblocks.{i}")]


def _block(ours: str, theirs: str) -> Names:
    qkv = [same(f"{ours}.attention.qkv.{part}", f"{theirs}.attn.in_proj_{part}") for part in ("weight", "bias")]
    return [*qkv, *affine(f"{ours}.attention.out", f"{theirs}.attn.out_proj"),
            *affine(f"{ours}.norm", f"{theirs}.ln_1"), *affine(f"{ours}.mlp_norm", f"{theirs}.ln_2"),
            *affine(f"{ours}.mlp.up", f"{theirs}.mlp.c_fc"), *affine(f"{ours}.mlp.down", f"{theirs}.mlp.c_proj")]


def senses(config: Config, opened: Opened) -> Senses:
    """Pictures by `preprocess_cfg`, words by the tokenizer.json beside it."""
    vision = tower_config(config["model_cfg"], "vision_cfg", VISION)
    text = tower_config(config["model_cfg"], "text_cfg", TEXT)
    given = config.get("preprocess_cfg", {})
    filters, squash = given.get("interpolation", "bicubic"), given.get("resize_mode", "shortest") == "squash"
    if filters not in RESAMPLE.values() or given.get("resize_mode", "shortest") == "longest":
        raise SensoriumError(f"open_clip_config.json asks for pictures by {given}, which is not known here")
    image = replace(SEEN, size=vision["image_size"], resample=filters, square="stretch" if squash else "centre",
                    mean=tuple(given.get("mean", SEEN.mean)), std=tuple(given.get("std", SEEN.std)))
    return present(image=image, text=words(opened, text["context_length"], text["vocab_size"]))


def _recognise(opened: Opened) -> Config | None:
    return opened.config if opened.layout == "open_clip" else None


OPEN_CLIP = Published("open_clip", _recognise, build, names, senses, embedding)
