"""CLIP (Radford et al. 2021) as Hugging Face publishes it: config.json with `model_type: clip`, model.safetensors."""
from sensorium.align import LinearAlign
from sensorium.modalities.image import Patches
from sensorium.modalities.text import Text, Words
from sensorium.models import Embed, Encoder, Tower, Towers
from sensorium.published.files import Opened
from sensorium.published.parts import HighestWords, Names, Shape, affine, kernel
from sensorium.published.published import Config, Published, Senses, same, stacked
from sensorium.published.senses import SEEN, embedding, picture, present, words

VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
        "vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 49407}
UNUSED = ("*.embeddings.position_ids",)                 # 0, 1, 2, ..., in files of transformers before 4.31
LEGACY_END = 2                  # configs written before 2023 give this wrong id; the end is the highest id instead


def build(config: Config) -> Towers:
    """Two towers as the config describes them, `image` and `text`, with first weights."""
    out = config.get("projection_dim", 512)
    return Towers({"image": _eye(VISION | config.get("vision_config", {}), out),
                   "text": _voice(TEXT | config.get("text_config", {}), out)})


def names(config: Config) -> Names:
    """Our names and theirs."""
    vision, text = VISION | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    return [
        same("log_scale", "logit_scale"),
        same("image.encode.embed.whole", "vision_model.embeddings.class_embedding"),
        kernel("image.encode.embed.linear.weight", "vision_model.embeddings.patch_embedding.weight",
               vision["patch_size"]),
        same("image.encode.embed.places", "vision_model.embeddings.position_embedding.weight"),
        *affine("image.encode.trunk.first", "vision_model.pre_layrnorm"),
        *trunk("image.encode.trunk", "vision_model.encoder", vision["num_hidden_layers"]),
        *affine("image.encode.trunk.last", "vision_model.post_layernorm"),
        same("image.align.weight", "visual_projection.weight"),
        same("text.encode.embed.ids.weight", "text_model.embeddings.token_embedding.weight"),
        same("text.encode.embed.places", "text_model.embeddings.position_embedding.weight"),
        *trunk("text.encode.trunk", "text_model.encoder", text["num_hidden_layers"]),
        *affine("text.encode.trunk.last", "text_model.final_layer_norm"),
        same("text.align.weight", "text_projection.weight")]


def trunk(ours: str, theirs: str, depth: int) -> Names:
    """The blocks of a pre-norm trunk."""
    return [name for i in range(depth) for name in _block(f"{ours}.blocks.{i}", f"{theirs}.layers.{i}")]


def _block(ours: str, theirs: str) -> Names:
    qkv = [stacked(f"{ours}.attention.qkv.{part}", *(f"{theirs}.self_attn.{x}_proj.{part}" for x in "qkv"))
           for part in ("weight", "bias")]
    return [*qkv, *affine(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj"),
            *affine(f"{ours}.norm", f"{theirs}.layer_norm1"), *affine(f"{ours}.mlp_norm", f"{theirs}.layer_norm2"),
            *affine(f"{ours}.mlp.up", f"{theirs}.mlp.fc1"), *affine(f"{ours}.mlp.down", f"{theirs}.mlp.fc2")]


def shape(config: Config) -> Shape:
    """The trunk that a config of one tower describes."""
    return Shape(config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"],
                 config["intermediate_size"], config["hidden_act"], config["layer_norm_eps"])


def _eye(config: Config, out: int) -> Tower:
    size = shape(config)
    patches = Patches(size.dim, config["image_size"], config["patch_size"])
    return Tower(Encoder(patches, size.trunk(first=size.norm())), LinearAlign(size.dim, out), out)


def _voice(config: Config, out: int) -> Tower:
    size = shape(config)
    return Tower(Encoder(_words(config), size.trunk()), LinearAlign(size.dim, out), out)


def _words(config: Config) -> Embed:
    dim, vocab, length = config["hidden_size"], config["vocab_size"], config["max_position_embeddings"]
    if config["eos_token_id"] == LEGACY_END:
        return HighestWords(dim, vocab, length)
    return Words(dim, Text(length=length, vocab_size=vocab, end=config["eos_token_id"]))


def senses(config: Config, opened: Opened) -> Senses:
    """Pictures as its processor makes them, words as its tokenizer cuts them."""
    vision, text = VISION | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    return present(image=picture(opened.json("preprocessor_config.json"), vision["image_size"], SEEN),
                   text=words(opened, text["max_position_embeddings"], text["vocab_size"]))


def _recognise(opened: Opened) -> Config | None:
    whole = opened.config.get("model_type") == "clip" and "logit_scale" in opened.tensors
    return opened.config if whole else None


CLIP = Published("clip", _recognise, build, names, senses, embedding, UNUSED)
