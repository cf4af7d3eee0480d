"""An efficient U-Net for diffusion (Saharia et al. 2022) with a text context.

B batch   c channels   h, w image size   D width of a level   E width of the time embedding
V width of a vector
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.nn.denoising import (
    Channels,
    Conditioning,
    ContextAttention,
    build_conditioning,
)
from sensorium.nn.linear import Linear
from sensorium.nn.time_embedding import TimeEmbedding
from sensorium.nn.tokens import Tokens

SKIP_SCALE = 1 / math.sqrt(2)
GROUPS = 8
HEAD_DIM = 32


class ResidualBlock(nn.Module):
    """Two convolutions with adaptive group norms; the second starts at zero.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        embedding_dim: Width E of the embedding of time and condition.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = Linear(embedding_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels, affine=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        for layer in (self.modulation, self.conv2):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "B c h w"], embedding: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B D h w"]:
        """Return the feature map; `embedding` is the SiLU of that of time and condition."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        hidden = F.silu(torch.addcmul(shift.to(hidden.dtype), hidden, 1 + scale.to(hidden.dtype)))
        return self.shortcut(x) + self.conv2(hidden)


class AttentionBlock(nn.Module):
    """Self-attention over the cells of a feature map and a context; it starts as the identity.

    Args:
        dim: Channels.
        context_dim: Width of the context; 0 for none.
    """

    def __init__(self, dim: int, context_dim: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim)
        self.attention = ContextAttention(dim, max(1, dim // HEAD_DIM), context_dim)

    def forward(
        self,
        x: Float[Tensor, "B D h w"],
        keys_values: Tensor | None,
        mask: Tensor | None,
    ) -> Float[Tensor, "B D h w"]:
        """Add attention to the feature map."""
        cells = rearrange(self.norm(x), "b d h w -> b (h w) d")
        attended = self.attention(cells, keys_values, mask)
        return x + rearrange(attended, "b (h w) d -> b d h w", h=x.shape[2])


class UNetBlock(nn.Module):
    """A residual block, followed by attention where the level has it.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        embedding_dim: Width of the embedding of time and condition.
        attention: Whether attention follows.
        context_dim: Width of the context; 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        *,
        attention: bool,
        context_dim: int,
    ):
        super().__init__()
        self.residual = ResidualBlock(in_channels, out_channels, embedding_dim)
        self.attention = AttentionBlock(out_channels, context_dim) if attention else None

    def forward(
        self,
        x: Float[Tensor, "B c h w"],
        embedding: Float[Tensor, "B E"],
        keys_values: Tensor | None,
        mask: Tensor | None,
    ) -> Float[Tensor, "B D h w"]:
        """Return the feature map."""
        x = self.residual(x, embedding)
        return x if self.attention is None else self.attention(x, keys_values, mask)


class UNet(nn.Module):
    """A U-Net with more blocks at low resolutions and skips scaled by 1/√2.

    At initialization the output is zero.

    Args:
        channels: Channels of the image and widths of the condition.
        dims: Width of each level, a multiple of 8; each level has half the side of the one above.
        blocks: Blocks of each level, on the way down and on the way up.
        attention_levels: Levels that have attention after each block, from 0 for the largest.

    Raises:
        ValueError: `dims` and `blocks` differ in length, or a width is no multiple of 8.
    """

    def __init__(
        self,
        channels: Channels,
        dims: Sequence[int],
        blocks: Sequence[int],
        *,
        attention_levels: Sequence[int] = (),
    ):
        super().__init__()
        if len(dims) != len(blocks) or any(dim % GROUPS for dim in dims):
            raise ValueError(
                f"A U-Net needs a number of blocks for each width, and widths that {GROUPS} "
                f"divides, not widths {tuple(dims)} and blocks {tuple(blocks)}."
            )
        embedding_dim = 4 * dims[0]
        self.time = TimeEmbedding(embedding_dim)
        self.vector = Linear(channels.vector, embedding_dim) if channels.vector else None
        self.stem = nn.Conv2d(channels.image, dims[0], 3, padding=1)

        def block(level: int, in_channels: int) -> UNetBlock:
            return UNetBlock(
                in_channels,
                dims[level],
                embedding_dim,
                attention=level in attention_levels,
                context_dim=channels.context,
            )

        self.down = nn.ModuleList(
            nn.ModuleList(block(level, dims[level]) for _ in range(n))
            for level, n in enumerate(blocks)
        )
        self.downsample = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in itertools.pairwise(dims)
        )
        self.middle = block(len(dims) - 1, dims[-1])
        self.up = nn.ModuleList(
            nn.ModuleList(block(level, 2 * dims[level]) for _ in range(n))
            for level, n in enumerate(blocks)
        )
        self.upsample = nn.ModuleList(
            nn.Conv2d(b, a, 3, padding=1) for a, b in itertools.pairwise(dims)
        )
        self.norm = nn.GroupNorm(GROUPS, dims[0])
        self.head = nn.Conv2d(dims[0], channels.output, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def prepare(
        self, context: Tokens | None = None, vector: Float[Tensor, "B V"] | None = None
    ) -> Conditioning:
        """Compute keys and values of the context, and the projected vector."""
        layers = self._iter_attention()
        return build_conditioning(layers, context, vector, self.vector)

    def forward(
        self,
        x: Float[Tensor, "B c h w"],
        time: Float[Tensor, "B"],
        condition: Conditioning,
    ) -> Float[Tensor, "B out h w"]:
        """Return the prediction for noisy images at times from 0 to 1000.

        Raises:
            ValueError: The side of the images cannot be halved often enough.
        """
        factor = 2 ** len(self.downsample)
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"Images of {x.shape[-2]} x {x.shape[-1]} cannot be halved "
                f"{len(self.downsample)} times."
            )
        embedding = self.time(time)
        if condition.vector is not None:
            embedding = embedding + condition.vector
        embedding = F.silu(embedding)
        keys_values = iter(condition.keys_values)

        def apply(block: UNetBlock, features: Tensor) -> Tensor:
            has_context = block.attention is not None and bool(condition.keys_values)
            kv = next(keys_values) if has_context else None
            return block(features, embedding, kv, condition.mask)

        features = self.stem(x.contiguous(memory_format=channels_last))
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level > 0:
                features = self.downsample[level - 1](features)
            for block in _block_list(blocks):
                features = apply(block, features)
                skips.append(features)
        features = apply(self.middle, features)
        for level in reversed(range(len(self.up))):
            for block in _block_list(self.up[level]):
                features = apply(block, torch.cat([features, SKIP_SCALE * skips.pop()], 1))
            if level > 0:
                enlarged = F.interpolate(features, scale_factor=2.0, mode="nearest")
                features = self.upsample[level - 1](enlarged)
        return self.head(F.silu(self.norm(features)))

    def _iter_attention(self) -> Iterator[ContextAttention]:
        """Yield the attention layers in the order in which `forward` applies them."""
        for block in self._iter_blocks():
            if block.attention is not None:
                yield block.attention.attention

    def _iter_blocks(self) -> Iterator[UNetBlock]:
        """Yield all blocks in the order in which `forward` applies them."""
        for blocks in self.down:
            yield from _block_list(blocks)
        yield self.middle
        for blocks in reversed(list(self.up)):
            yield from _block_list(blocks)


def _block_list(blocks: nn.Module) -> list[UNetBlock]:
    """Return the blocks of a level as a typed list."""
    return [block for block in blocks.children() if isinstance(block, UNetBlock)]
