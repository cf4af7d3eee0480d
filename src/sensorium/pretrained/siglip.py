"""SigLIP (Zhai et al. 2023) as transformers stores it.

Images are pooled by attention, texts at the last token.

B batch   T tokens   D width   H heads   K head width
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.modalities.image import Image, split_patches
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.sdpa import attend
from sensorium.nn.tokens import Tokens, grid_positions, sequence_positions
from sensorium.pretrained.clip import map_trunk, trunk_config
from sensorium.pretrained.config_rules import ConfigRules
from sensorium.pretrained.dual_encoder import detect_dual_encoder, tower_kinds, tower_prefix
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.image_processor import image_preprocessing
from sensorium.pretrained.preprocessing import (
    build_embed_verb,
    drop_missing,
)
from sensorium.pretrained.text_ids import find_text_ids, text_pad_id
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

VISION_RULES = ConfigRules(
    sizes={"hidden_size": 768, "intermediate_size": 3072, "patch_size": 16},
    layers={"num_hidden_layers": 12},
    heads={"num_attention_heads": ("hidden_size", 12)},
    lengths={"image_size": 224},
    numbers={"layer_norm_eps": 1e-6},
    names={"hidden_act": "gelu_pytorch_tanh"},
    fixed={"vision_use_head": (True,)},
)
TEXT_RULES = ConfigRules(
    sizes={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "vocab_size": 32000,
        "max_position_embeddings": 64,
        "projection_size": None,
    },
    layers={"num_hidden_layers": 12},
    heads={"num_attention_heads": ("hidden_size", 12)},
    numbers={"layer_norm_eps": 1e-6},
    names={"hidden_act": "gelu_pytorch_tanh"},
)
DEFAULT_PAD_ID = 1
PAD_TOKENS = ("</s>",)  # with which the tokenizer pads where no file says otherwise
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
        x = self.projection(split_patches(image, self.patch_size)) + self.position_embedding
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


def build_module(config: ModelConfig) -> nn.ModuleDict:
    """Build the towers `image` and `text`, or the one that the files have."""
    builders = {"image": _build_image_tower, "text": _build_text_tower}
    towers = {kind: builders[kind](config) for kind in tower_kinds(config)}
    return Towers({**towers}, use_logit_bias=True) if len(towers) == 2 else nn.ModuleDict(towers)


def _build_image_tower(config: ModelConfig) -> Tower:
    vision = _vision_config(config)
    trunk = trunk_config(vision)
    patches = PatchEmbeddingWithoutCls(trunk.dim, vision["image_size"], vision["patch_size"])
    encoder = Encoder(patches, trunk.build_trunk(), AttentionPool(trunk))
    return Tower(encoder, nn.Identity(), trunk.dim)


def _build_text_tower(config: ModelConfig) -> Tower:
    text = _text_config(config)
    trunk = trunk_config(text)
    embed_dim = text.get("projection_size") or trunk.dim
    tokens = FixedLengthTokenEmbedding(
        trunk.dim, text["vocab_size"], text["max_position_embeddings"], text_pad_id(config, text)
    )
    return Tower(Encoder(tokens, trunk.build_trunk()), Linear(trunk.dim, embed_dim), embed_dim)


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map transformers' names to ours."""
    maps = {"image": _map_image_tower, "text": _map_text_tower}
    kinds = tower_kinds(config)
    mappings = [mapping for kind in kinds for mapping in maps[kind](config)]
    if len(kinds) == 1:
        return mappings
    return [*(squeeze(name, name) for name in ("logit_scale", "logit_bias")), *mappings]


def _map_image_tower(config: ModelConfig) -> WeightMappings:
    vision, prefix = _vision_config(config), tower_prefix(config, "image")
    embed, trunk = "image.encoder.embed", "image.encoder.trunk"
    embeddings = f"{prefix}embeddings"
    return [
        patch_kernel(
            f"{embed}.projection.weight",
            f"{embeddings}.patch_embedding.weight",
            vision["patch_size"],
        ),
        rename(f"{embed}.projection.bias", f"{embeddings}.patch_embedding.bias"),
        rename(f"{embed}.position_embedding", f"{embeddings}.position_embedding.weight"),
        *map_trunk(trunk, f"{prefix}encoder", vision["num_hidden_layers"]),
        *weight_bias(f"{trunk}.final_norm", f"{prefix}post_layernorm"),
        *_map_pool("image.encoder.pool", f"{prefix}head"),
    ]


def _map_text_tower(config: ModelConfig) -> WeightMappings:
    text, prefix = _text_config(config), tower_prefix(config, "text")
    embed, trunk = "text.encoder.embed", "text.encoder.trunk"
    embeddings = f"{prefix}embeddings"
    return [
        rename(f"{embed}.token_embedding.weight", f"{embeddings}.token_embedding.weight"),
        rename(f"{embed}.position_embedding", f"{embeddings}.position_embedding.weight"),
        *map_trunk(trunk, f"{prefix}encoder", text["num_hidden_layers"]),
        *weight_bias(f"{trunk}.final_norm", f"{prefix}final_layer_norm"),
        *weight_bias("text.projection", f"{prefix}head"),
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
    return VISION_RULES.defaults | config.get("vision_config", {})


def _text_config(config: ModelConfig) -> ModelConfig:
    return TEXT_RULES.defaults | {"pad_token_id": DEFAULT_PAD_ID} | config.get("text_config", {})


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Return the image processor's and the tokenizer's settings."""
    vision, text = _vision_config(config), _text_config(config)
    kinds = tower_kinds(config)
    image_settings = text_settings = None
    if "image" in kinds:
        image_settings = image_preprocessing(weight_files, vision["image_size"], DEFAULT_IMAGE)
    if "text" in kinds:
        text_settings = text_preprocessing(
            weight_files,
            text["max_position_embeddings"],
            text["vocab_size"],
            text_pad_id(config, text),
        )
    return drop_missing(image=image_settings, text=text_settings)


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    rules = {"image": VISION_RULES, "text": TEXT_RULES}
    config = detect_dual_encoder(weight_files, "siglip", rules)
    if config is None or "text" not in tower_kinds(config):
        return config
    pad_id = _text_config(config)["pad_token_id"]
    return {**config, **find_text_ids(weight_files, pad_id, PAD_TOKENS)}


SIGLIP = PretrainedFamily(
    "siglip",
    _detect_config,
    build_module,
    map_weights,
    preprocessing,
    build_embed_verb,
    ("*embeddings.position_ids",),
)
