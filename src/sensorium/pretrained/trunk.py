"""Transformer parts that several pretrained families share.

B batch   T tokens   D width
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.nn.attention import Attention
from sensorium.nn.tokens import CAUSAL, Tokens, sequence_positions
from sensorium.nn.transformer import Block, FeedForward, Transformer


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), an approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Apply the activation."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_python": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
TANH_GELU_NAMES = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")


def get_activation(name: str) -> nn.Module:
    """Return the activation of that name in transformers' configs.

    Raises:
        SensoriumError: If the name is unknown.
    """
    if name in TANH_GELU_NAMES:
        return nn.GELU(approximate="tanh")
    if name not in ACTIVATIONS:
        supported = ", ".join(sorted([*ACTIVATIONS, *TANH_GELU_NAMES]))
        raise SensoriumError(
            f"The config asks for the activation {name!r}. Supported are {supported}."
        )
    return ACTIVATIONS[name]()


@dataclass(frozen=True)
class TrunkConfig:
    """The sizes of a pre-norm transformer.

    Attributes:
        dim: Width of a token.
        depth: Number of blocks.
        heads: Number of attention heads.
        hidden_dim: Width inside the feed-forward layers.
        activation: Name of the activation, see `get_activation`.
        eps: Epsilon of the norms.
    """

    dim: int
    depth: int
    heads: int
    hidden_dim: int
    activation: str
    eps: float = 1e-5

    def build_norm(self) -> nn.LayerNorm:
        """Return a new layer norm."""
        return nn.LayerNorm(self.dim, eps=self.eps)

    def build_mlp(self) -> FeedForward:
        """Return a new feed-forward layer."""
        return FeedForward(self.dim, self.hidden_dim, get_activation(self.activation))

    def build_trunk(self, input_norm: nn.Module | None = None) -> Transformer:
        """Return pre-norm blocks with a final norm, and an optional norm before them."""
        blocks = [
            Block(
                Attention(self.dim, self.heads),
                self.build_mlp(),
                (self.build_norm(), self.build_norm()),
            )
            for _ in range(self.depth)
        ]
        return Transformer(blocks, input_norm=input_norm, final_norm=self.build_norm())


class ArgmaxPooledEmbedding(nn.Module):
    """Embed token ids for a causal text encoder that is pooled at the highest id.

    The end token of CLIP's vocabulary has the highest id.

    Args:
        dim: Width of a token.
        vocab_size: Number of token ids.
        max_length: Number of positions.
    """

    def __init__(self, dim: int, vocab_size: int, max_length: int):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Parameter(torch.empty(max_length, dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def pool_index(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Return the first position of the highest id."""
        return ids.argmax(1)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return the tokens; those after the end token are padding."""
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        valid = torch.arange(ids.shape[1], device=ids.device) <= self.pool_index(ids)[:, None]
        return Tokens(x, sequence_positions(x), CAUSAL, valid)
