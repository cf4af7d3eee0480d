"""SigLIP (Zhai et al. 2023) as Hugging Face publishes it: a learned probe reads the picture, the last place the text.

    B batch   T tokens   D width   H heads   K head width
"""
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.kernels import Linear, attend, drawn
from sensorium.modalities.image import Image
from sensorium.models import Encoder, Tower, Towers
from sensorium.published.clip import shape, trunk
from sensorium.published.files import Opened
from sensorium.published.parts import Names, Shape, affine, boxed, kernel
from sensorium.published.published import Config, Published, Senses, same
from sensorium.published.senses import embedding, picture, present, words
from sensorium.tokens import Tokens, grid, line

VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "vocab_size": 32000, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "pad_token_id": 1, "projection_size": None}
SEEN = Image(size=224, square="stretch", resample="bicubic")


class BarePatches(nn.Module):
    """Picture → Tokens: patches and their places, without a token for the whole."""

    def __init__(self, dim: int, size: int, patch: int):
        super().__init__()
        self.patch, self.columns = patch, size // patch
        self.linear = Linear(3 * patch * patch, dim)
        self.places = drawn(self.columns ** 2, dim, std=dim ** -0.5)

    def summary(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        flat = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        x = self.linear(flat) + self.places
        return Tokens(x, grid(x, self.columns))


class FullWords(nn.Module):
    """Ids → Tokens: every text is as long as all places, padding counts as a word, and the last place speaks."""

    def __init__(self, dim: int, vocab_size: int, length: int, pad: int):
        super().__init__()
        self.ids, self.places, self.pad = nn.Embedding(vocab_size, dim), drawn(length, dim), pad

    def summary(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        return torch.full((ids.shape[0],), len(self.places) - 1, device=ids.device)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.ids(F.pad(ids, (0, len(self.places) - ids.shape[1]), value=self.pad)) + self.places
        return Tokens(x, line(x))


class AttentionPool(nn.Module):
    """A learned probe looks at all tokens, then thinks (the MAP head of big_vision)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.heads, self.probe = shape.heads, drawn(shape.dim)
        self.qkv, self.out = Linear(shape.dim, 3 * shape.dim), Linear(shape.dim, shape.dim)
        self.norm, self.mlp = shape.norm(), shape.mlp()

    def forward(self, t: Tokens) -> Tokens:
        dim = t.x.shape[-1]
        q = self.qkv.part(self.probe, 0, dim).expand(t.x.shape[0], 1, -1)
        k, v = self.qkv.part(t.x, dim, None).chunk(2, -1)
        q, k, v = (rearrange(x, "b t (h k) -> b h t k", h=self.heads) for x in (q, k, v))
        mask = None if t.valid is None else t.valid[:, None, None, :]
        x = self.out(rearrange(attend(q, k, v, mask=mask), "b h t k -> b t (h k)"))
        return Tokens(x + self.mlp(self.norm(x)), t.pos[:, :1])


def build(config: Config) -> Towers:
    """Two towers, `image` and `text`, with first weights."""
    vision, text = VISION | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    eye, voice = shape(vision), shape(text)
    out = text["projection_size"] or voice.dim
    patches = BarePatches(eye.dim, vision["image_size"], vision["patch_size"])
    read = FullWords(voice.dim, text["vocab_size"], text["max_position_embeddings"], text["pad_token_id"])
    return Towers({"image": Tower(Encoder(patches, eye.trunk(), AttentionPool(eye)), nn.Identity(), eye.dim),
                   "text": Tower(Encoder(read, voice.trunk()), Linear(voice.dim, out), out)}, biased=True)


def names(config: Config) -> Names:
    """Our names and theirs."""
    vision, text = VISION | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    ours, theirs = "image.encode.pool", "vision_model.head"
    return [
        boxed("log_scale", "logit_scale"), boxed("bias", "logit_bias"),
        kernel("image.encode.embed.linear.weight", "vision_model.embeddings.patch_embedding.weight",
               vision["patch_size"]),
        same("image.encode.embed.linear.bias", "vision_model.embeddings.patch_embedding.bias"),
        same("image.encode.embed.places", "vision_model.embeddings.position_embedding.weight"),
        *trunk("image.encode.trunk", "vision_model.encoder", vision["num_hidden_layers"]),
        *affine("image.encode.trunk.last", "vision_model.post_layernorm"),
        boxed(f"{ours}.probe", f"{theirs}.probe", 2),
        *(same(f"{ours}.qkv.{part}", f"{theirs}.attention.in_proj_{part}") for part in ("weight", "bias")),
        *affine(f"{ours}.out", f"{theirs}.attention.out_proj"), *affine(f"{ours}.norm", f"{theirs}.layernorm"),
        *affine(f"{ours}.mlp.up", f"{theirs}.mlp.fc1"), *affine(f"{ours}.mlp.down", f"{theirs}.mlp.fc2"),
        same("text.encode.embed.ids.weight", "text_model.embeddings.token_embedding.weight"),
        same("text.encode.embed.places", "text_model.embeddings.position_embedding.weight"),
        *trunk("text.encode.trunk", "text_model.encoder", text["num_hidden_layers"]),
        *affine("text.encode.trunk.last", "text_model.final_layer_norm"),
        *affine("text.align", "text_model.head")]


def senses(config: Config, opened: Opened) -> Senses:
    """Pictures as its processor makes them, words as its tokenizer cuts them."""
    vision, text = VISION | config.get("vision_config", {}), TEXT | config.get("text_config", {})
    return present(image=picture(opened.json("preprocessor_config.json"), vision["image_size"], SEEN),
                   text=words(opened, text["max_position_embeddings"], text["vocab_size"]))


def _recognise(opened: Opened) -> Config | None:
    return opened.config if opened.config.get("model_type") == "siglip" else None


SIGLIP = Published("siglip", _recognise, build, names, senses, embedding, ("*.embeddings.position_ids",))
