"""The diffusion transformer (DiT, Peebles and Xie 2023) with a text context.

B batch   c channels   h, w image size   T patches   D width   V width of a vector
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.denoising import (
    Channels,
    Conditioning,
    ContextAttention,
    build_conditioning,
)
from sensorium.nn.linear import Linear
from sensorium.nn.time_embedding import MAX_PERIOD, TimeEmbedding
from sensorium.nn.tokens import Tokens
from sensorium.nn.transformer import FeedForward

NORM_EPS = 1e-6


def grid_embedding(size: int, dim: int) -> Float[Tensor, "T D"]:
    """Return fixed sinusoidal positions of a square grid in raster order: columns, then rows.

    Args:
        size: Side of the grid.
        dim: Width D, a multiple of 4.

    Raises:
        ValueError: `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"A width of {dim} is no multiple of 4, as sinusoids of a grid need.")
    quarter = dim // 4
    rates = MAX_PERIOD ** -(np.arange(quarter) / quarter)
    angles = np.arange(size)[:, None] * rates
    positions = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    columns = np.tile(positions, (size, 1))
    rows = np.repeat(positions, size, 0)
    return torch.tensor(np.concatenate([columns, rows], 1), dtype=torch.float32)


def modulate(
    x: Float[Tensor, "B T D"], shift: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B T D"]:
    """Return x (1 + scale) + shift, one scale and shift per row."""
    return torch.addcmul(shift[:, None].to(x.dtype), x, 1 + scale[:, None].to(x.dtype))


class DiTBlock(nn.Module):
    """A transformer block whose norms and residual branches are modulated (adaLN-Zero).

    Both branches start at zero, so that a new block is the identity.

    Args:
        dim: Width D.
        heads: Number of attention heads.
        context_dim: Width of the context; 0 for none.
    """

    def __init__(self, dim: int, heads: int, context_dim: int = 0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.attention = ContextAttention(dim, heads, context_dim, zero_init=False)
        self.mlp_norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.mlp = FeedForward(dim, 4 * dim, nn.GELU(approximate="tanh"))
        self.modulation = Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        embedding: Float[Tensor, "B D"],
        keys_values: Tensor | None,
        mask: Tensor | None,
    ) -> Float[Tensor, "B T D"]:
        """Apply both branches.

        Args:
            x: Patches.
            embedding: SiLU of the embedding of time and condition.
            keys_values: Keys and values of the context.
            mask: True for a real context token.
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(embedding).chunk(6, -1)
        attended = self.attention(modulate(self.norm(x), shift, scale), keys_values, mask)
        x = torch.addcmul(x, gate[:, None].to(x.dtype), attended.to(x.dtype))
        hidden = self.mlp(modulate(self.mlp_norm(x), mlp_shift, mlp_scale))
        return torch.addcmul(x, mlp_gate[:, None].to(x.dtype), hidden.to(x.dtype))


class DiT(nn.Module):
    """A diffusion transformer over the patches of an image.

    At initialization every block is the identity and the output is zero.

    Args:
        image_size: Side of the image.
        channels: Channels of the image and widths of the condition.
        dim: Width D, a multiple of 4.
        depth: Number of blocks.
        heads: Number of attention heads.
        patch_size: Side of a patch.

    Raises:
        ValueError: The patch size does not divide the image size.
    """

    def __init__(
        self,
        image_size: int,
        channels: Channels,
        dim: int,
        depth: int,
        heads: int,
        *,
        patch_size: int = 2,
    ):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"Patches of {patch_size} do not divide a side of {image_size}.")
        self.patch_size = patch_size
        self.grid_size = image_size // patch_size
        self.embed = Linear(channels.image * patch_size**2, dim)
        self.register_buffer("pos", grid_embedding(self.grid_size, dim), persistent=False)
        self.time = TimeEmbedding(dim)
        self.vector = Linear(channels.vector, dim) if channels.vector else None
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, channels.context) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)
        self.modulation = Linear(dim, 2 * dim)
        self.head = Linear(dim, channels.output * patch_size**2)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def prepare(
        self, context: Tokens | None = None, vector: Float[Tensor, "B V"] | None = None
    ) -> Conditioning:
        """Compute keys and values of the context, and the projected vector."""
        layers = (block.attention for block in self._block_list())
        return build_conditioning(layers, context, vector, self.vector)

    def forward(
        self,
        x: Float[Tensor, "B c h w"],
        time: Float[Tensor, "B"],
        condition: Conditioning,
    ) -> Float[Tensor, "B out h w"]:
        """Return the prediction for noisy images at times from 0 to 1000."""
        p = self.patch_size
        tokens = self.embed(rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p))
        tokens = tokens + self.get_buffer("pos").to(tokens.dtype)
        embedding = self.time(time)
        if condition.vector is not None:
            embedding = embedding + condition.vector
        embedding = nn.functional.silu(embedding)
        for i, block in enumerate(self._block_list()):
            keys_values = condition.keys_values[i] if condition.keys_values else None
            tokens = block(tokens, embedding, keys_values, condition.mask)
        shift, scale = self.modulation(embedding).chunk(2, -1)
        output = self.head(modulate(self.norm(tokens), shift, scale))
        return rearrange(output, "b (h w) (p q c) -> b c (h p) (w q)", h=self.grid_size, p=p, q=p)

    def _block_list(self) -> list[DiTBlock]:
        return [block for block in self.blocks if isinstance(block, DiTBlock)]
