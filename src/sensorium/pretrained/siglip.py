"""SigLIP (Zhai et al. 2023) as transformers stores it.

Images are pooled by attention, texts at the last token.

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
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.preprocessing import (
    build_embed_verb,
    drop_missing,
    image_preprocessing,
)
from sensorium.pretrained.tokenizers import text_preprocessing
from sensorium.pretrained.trunk import TrunkConfig
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import (
    WeightMappings,
    patch_kernel,
    rename,
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
    """Embed the patches of an image with their positions, without a class token.

    Args:
        dim: Width of a token.
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
    """

    def __init__(self, dim: int, image_size: int, patch_size: int):
        super().__init__()
        self.patch_size = patch_size
        self.grid_size = image_size // patch_size
        self.projection = Linear(3 * patch_size * patch_size, dim)
        self.position_embedding = normal_parameter(self.grid_size**2, dim, std=dim**-0.5)

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        """Return None: the image is pooled over all patches."""

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return one token per patch, row by row."""
        flat = rearrange(
            image, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size
        )
        x = self.projection(flat) + self.position_embedding
        return Tokens(x, grid_positions(x, self.grid_size))


class FixedLengthTokenEmbedding(nn.Module):
    """Embed token ids padded to a fixed length; padding is read like any token.

    Args:
        dim: Width of a token.
        vocab_size: Number of token ids.
        max_length: The length of every text; its last token is the pooled one.
        pad_id: Id of padding.
    """

    def __init__(self, dim: int, vocab_size: int, max_length: int, pad_id: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = normal_parameter(max_length, dim)
        self.pad_id = pad_id

    def pool_index(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Return the last position."""
        return torch.full((ids.shape[0],), len(self.position_embedding) - 1, device=ids.device)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return `max_length` tokens for each text."""
        padding = len(self.position_embedding) - ids.shape[1]
        padded = F.pad(ids, (0, padding), value=self.pad_id)
        x = self.token_embedding(padded) + self.position_embedding
        return Tokens(x, sequence_positions(x))


class AttentionPool(nn.Module):
    """Pool tokens by the attention of a learned query (the MAP head of big_vision).

    Args:
        config: Sizes of the trunk that it follows.
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        self.heads = config.heads
        self.probe = normal_parameter(config.dim)
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)
        self.norm = config.build_norm()
        self.mlp = config.build_mlp()

    def forward(self, tokens: Tokens) -> Tokens:
        """Return one token for each sequence."""
        dim = tokens.x.shape[-1]
        q = self.qkv.forward_slice(self.probe, 0, dim).expand(tokens.x.shape[0], 1, -1)
        k, v = self.qkv.forward_slice(tokens.x, dim, None).chunk(2, -1)
        q, k, v = (rearrange(x, "b t (h k) -> b h t k", h=self.heads) for x in (q, k, v))
        mask = None if tokens.valid is None else tokens.valid[:, None, None, :]
        x = self.out(rearrange(attend(q, k, v, mask=mask), "b h t k -> b t (h k)"))
        return Tokens(x + self.mlp(self.norm(x)), tokens.pos[:, :1])


def build_module(config: ModelConfig) -> Towers:
    """Build the towers `image` and `text`."""
    vision, text = _vision_config(config), _text_config(config)
    image_trunk, text_trunk = trunk_config(vision), trunk_config(text)
    text_dim = text["projection_size"] or text_trunk.dim
    patches = PatchEmbeddingWithoutCls(image_trunk.dim, vision["image_size"], vision["patch_size"])
    tokens = FixedLengthTokenEmbedding(
        text_trunk.dim, text["vocab_size"], text["max_position_embeddings"], text["pad_token_id"]
    )
    return Towers(
        {
            "image": Tower(
                Encoder(patches, image_trunk.build_trunk(), AttentionPool(image_trunk)),
                nn.Identity(),
                image_trunk.dim,
            ),
            "text": Tower(
                Encoder(tokens, text_trunk.build_trunk()),
                Linear(text_trunk.dim, text_dim),
                text_dim,
            ),
        },
        use_logit_bias=True,
    )


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    vision, text = _vision_config(config), _text_config(config)
    image_embed, image_trunk = "image.encoder.embed", "image.encoder.trunk"
    text_embed, text_trunk = "text.encoder.embed", "text.encoder.trunk"
    vision_embeddings, text_embeddings = "vision_model.embeddings", "text_model.embeddings"
    return [
        squeeze("logit_scale", "logit_scale"),
        squeeze("logit_bias", "logit_bias"),
        patch_kernel(
            f"{image_embed}.projection.weight",
            f"{vision_embeddings}.patch_embedding.weight",
            vision["patch_size"],
        ),
        rename(f"{image_embed}.projection.bias", f"{vision_embeddings}.patch_embedding.bias"),
        rename(
            f"{image_embed}.position_embedding", f"{vision_embeddings}.position_embedding.weight"
        ),
        *map_trunk(image_trunk, "vision_model.encoder", vision["num_hidden_layers"]),
        *weight_bias(f"{image_trunk}.final_norm", "vision_model.post_layernorm"),
        *_map_pool("image.encoder.pool", "vision_model.head"),
        rename(f"{text_embed}.token_embedding.weight", f"{text_embeddings}.token_embedding.weight"),
        rename(f"{text_embed}.position_embedding", f"{text_embeddings}.position_embedding.weight"),
        *map_trunk(text_trunk, "text_model.encoder", text["num_hidden_layers"]),
        *weight_bias(f"{text_trunk}.final_norm", "text_model.final_layer_norm"),
        *weight_bias("text.projection", "text_model.head"),
    ]


def _map_pool(target: str, source: str) -> WeightMappings:
    return [
        squeeze(f"{target}.probe", f"{source}.probe", 2),
        rename(f"{target}.qkv.weight", f"{source}.attention.in_proj_weight"),
        rename(f"{target}.qkv.bias", f"{source}.attention.in_proj_bias"),
        *weight_bias(f"{target}.out", f"{source}.attention.out_proj"),
        *weight_bias(f"{target}.norm", f"{source}.layernorm"),
        *weight_bias(f"{target}.mlp.up", f"{source}.mlp.fc1"),
        *weight_bias(f"{target}.mlp.down", f"{source}.mlp.fc2"),
    ]


def _vision_config(config: ModelConfig) -> ModelConfig:
    return VISION_DEFAULTS | config.get("vision_config", {})


def _text_config(config: ModelConfig) -> ModelConfig:
    return TEXT_DEFAULTS | config.get("text_config", {})


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image processor's and the tokenizer's settings."""
    vision, text = _vision_config(config), _text_config(config)
    processor_config = weight_files.read_json("preprocessor_config.json")
    return drop_missing(
        image=image_preprocessing(processor_config, vision["image_size"], DEFAULT_IMAGE),
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
