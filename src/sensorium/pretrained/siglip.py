"""SigLIP (Zhai et al. 2023) as Hugging Face publishes it: a learned probe reads the picture, the last place the text.

B batch   T tokens   D width   H heads   K head width
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.sdpa import attend
from sensorium.nn.tokens import Tokens, grid_positions, sequence_positions
from sensorium.pretrained.clip import map_trunk, trunk_config
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily, rename
from sensorium.pretrained.preprocessing import (
    build_embed_verb,
    drop_missing,
    image_preprocessing,
    text_preprocessing,
)
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import (
    TrunkConfig,
    WeightMappings,
    patch_kernel,
    squeeze,
    weight_bias,
)

VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
TEXT_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32000,
    "max_position_embeddings": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "pad_token_id": 1,
    "projection_size": None,
}
DEFAULT_IMAGE = Image(size=224, resize_mode="stretch", resample="bicubic")


class PatchEmbeddingWithoutCls(nn.Module):
    """Picture → Tokens: patches and their places, without a token for the whole."""

    def __init__(self, dim: int, image_size: int, patch_size: int):
        super().__init__()
        self.patch_size, self.grid_size = patch_size, image_size // patch_size
        self.projection = Linear(3 * patch_size * patch_size, dim)
        self.position_embedding = normal_parameter(self.grid_size**2, dim, std=dim**-0.5)

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        flat = rearrange(
            image, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size
        )
        x = self.projection(flat) + self.position_embedding
        return Tokens(x, grid_positions(x, self.grid_size))


class FixedLengthTokenEmbedding(nn.Module):
    """Ids → Tokens: every text is as long as all places, padding counts as a word, and the last place speaks."""

    def __init__(self, dim: int, vocab_size: int, max_length: int, pad_id: int):
        super().__init__()
        self.token_embedding, self.position_embedding, self.pad_id = (
            nn.Embedding(vocab_size, dim),
            normal_parameter(max_length, dim),
            pad_id,
        )

    def pool_index(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        return torch.full((ids.shape[0],), len(self.position_embedding) - 1, device=ids.device)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = (
            self.token_embedding(
                F.pad(ids, (0, len(self.position_embedding) - ids.shape[1]), value=self.pad_id)
            )
            + self.position_embedding
        )
        return Tokens(x, sequence_positions(x))


class AttentionPool(nn.Module):
    """A learned probe looks at all tokens, then thinks (the MAP head of big_vision)."""

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.heads, self.probe = config.heads, normal_parameter(config.dim)
        self.qkv, self.out = Linear(config.dim, 3 * config.dim), Linear(config.dim, config.dim)
        self.norm, self.mlp = config.build_norm(), config.build_mlp()

    def forward(self, tokens: Tokens) -> Tokens:
        dim = tokens.x.shape[-1]
        q = self.qkv.forward_slice(self.probe, 0, dim).expand(tokens.x.shape[0], 1, -1)
        k, v = self.qkv.forward_slice(tokens.x, dim, None).chunk(2, -1)
        q, k, v = (rearrange(x, "b t (h k) -> b h t k", h=self.heads) for x in (q, k, v))
        mask = None if tokens.valid is None else tokens.valid[:, None, None, :]
        x = self.out(rearrange(attend(q, k, v, mask=mask), "b h t k -> b t (h k)"))
        return Tokens(x + self.mlp(self.norm(x)), tokens.pos[:, :1])


def build_module(config: ModelConfig) -> Towers:
    """Two towers, `image` and `text`, with first weights."""
    vision, text = (
        VISION_DEFAULTS | config.get("vision_config", {}),
        TEXT_DEFAULTS | config.get("text_config", {}),
    )
    eye, voice = trunk_config(vision), trunk_config(text)
    out = text["projection_size"] or voice.dim
    patches = PatchEmbeddingWithoutCls(eye.dim, vision["image_size"], vision["patch_size"])
    read = FixedLengthTokenEmbedding(
        voice.dim, text["vocab_size"], text["max_position_embeddings"], text["pad_token_id"]
    )
    return Towers(
        {
            "image": Tower(
                Encoder(patches, eye.build_trunk(), AttentionPool(eye)), nn.Identity(), eye.dim
            ),
            "text": Tower(Encoder(read, voice.build_trunk()), Linear(voice.dim, out), out),
        },
        use_logit_bias=True,
    )


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    vision, text = (
        VISION_DEFAULTS | config.get("vision_config", {}),
        TEXT_DEFAULTS | config.get("text_config", {}),
    )
    ours, theirs = "image.encode.pool", "vision_model.head"
    return [
        squeeze("logit_scale", "logit_scale"),
        squeeze("logit_bias", "logit_bias"),
        patch_kernel(
            "image.encode.embed.linear.weight",
            "vision_model.embeddings.patch_embedding.weight",
            vision["patch_size"],
        ),
        rename("image.encode.embed.linear.bias", "vision_model.embeddings.patch_embedding.bias"),
        rename("image.encode.embed.places", "vision_model.embeddings.position_embedding.weight"),
        *map_trunk("image.encode.trunk", "vision_model.encoder", vision["num_hidden_layers"]),
        *weight_bias("image.encode.trunk.last", "vision_model.post_layernorm"),
        squeeze(f"{ours}.probe", f"{theirs}.probe", 2),
        *(
            rename(f"{ours}.qkv.{part}", f"{theirs}.attention.in_proj_{part}")
            for part in ("weight", "bias")
        ),
        *weight_bias(f"{ours}.out", f"{theirs}.attention.out_proj"),
        *weight_bias(f"{ours}.norm", f"{theirs}.layernorm"),
        *weight_bias(f"{ours}.mlp.up", f"{theirs}.mlp.fc1"),
        *weight_bias(f"{ours}.mlp.down", f"{theirs}.mlp.fc2"),
        rename("text.encode.embed.ids.weight", "text_model.embeddings.token_embedding.weight"),
        rename("text.encode.embed.places", "text_model.embeddings.position_embedding.weight"),
        *map_trunk("text.encode.trunk", "text_model.encoder", text["num_hidden_layers"]),
        *weight_bias("text.encode.trunk.last", "text_model.final_layer_norm"),
        *weight_bias("text.align", "text_model.head"),
    ]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Pictures as its processor makes them, words as its tokenizer cuts them."""
    vision, text = (
        VISION_DEFAULTS | config.get("vision_config", {}),
        TEXT_DEFAULTS | config.get("text_config", {}),
    )
    return drop_missing(
        image=image_preprocessing(
            weight_files.read_json("preprocessor_config.json"), vision["image_size"], DEFAULT_IMAGE
        ),
        text=text_preprocessing(weight_files, text["max_position_embeddings"], text["vocab_size"]),
    )


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    return weight_files.config if weight_files.config.get("model_type") == "siglip" else None


SIGLIP = PretrainedFamily(
    "siglip",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    ("*.embeddings.position_ids",),
)
