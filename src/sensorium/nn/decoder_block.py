"""The block of an encoder-decoder transformer.

B batch   T tokens   D width
"""

from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.attention import Attention, AttentionContext, CrossAttention
from sensorium.nn.transformer import Block


class DecoderBlock(Block):
    """An encoder-decoder block: cross-attention between self-attention and feed-forward layers.

    The decoder block of Vaswani et al. 2017, pre-norm.

    Args:
        attention: Self-attention.
        cross_attention: Attention over the context.
        mlp: Feed-forward layers.
        norms: Norms before self-attention, cross-attention and the feed-forward layers.
        dropout: Dropout on the residual branches.
    """

    def __init__(
        self,
        attention: Attention,
        cross_attention: CrossAttention,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        *,
        dropout: float = 0.0,
    ):
        super().__init__(attention, mlp, (norms[0], norms[2]), dropout=dropout)
        self.cross_attention = cross_attention
        self.cross_norm = norms[1]

    def forward(
        self, x: Float[Tensor, "B T D"], attn_context: AttentionContext
    ) -> Float[Tensor, "B T D"]:
        """Apply the three residual branches.

        Raises:
            ValueError: The forward pass has no context.
        """
        context = attn_context.require_context()
        x = x + self._residual_branch(self.attention(self.norm(x), attn_context), attn_context)
        attended = self.cross_attention(
            self.cross_norm(x), context.x, attn_context.context_mask, attn_context.cache
        )
        x = x + self._residual_branch(attended, attn_context)
        return x + self._residual_branch(self.mlp(self.mlp_norm(x)), attn_context)
