"""What several published families are made of, beside what the house has already.

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
from sensorium.pretrained.family import WeightMapping, rename

WeightMappings = list[WeightMapping]


def weight_bias(target: str, source: str) -> WeightMappings:
    """Weight and bias of a layer or a norm."""
    return [rename(f"{target}.{part}", f"{source}.{part}") for part in ("weight", "bias")]


def conv_bn(target: str, conv: str, norm: str, has_batch_count: bool = True) -> WeightMappings:
    """A convolution and the norm of its batch, with its running figures. counted: theirs holds how many batches."""
    figures = [
        rename(f"{target}.1.{part}", f"{norm}.{part}") for part in ("running_mean", "running_var")
    ]
    batches = rename(
        f"{target}.1.num_batches_tracked",
        f"{norm}.num_batches_tracked",
        optional=not has_batch_count,
    )
    return [
        rename(f"{target}.0.weight", f"{conv}.weight"),
        *weight_bias(f"{target}.1", norm),
        *figures,
        batches,
    ]


def patch_kernel(target: str, source: str, patch_size: int) -> WeightMapping:
    """Their convolution that steps from patch to patch is our matrix over flat patches."""
    return WeightMapping(
        target,
        (source,),
        lambda x: x.flatten(1),
        lambda x: (x.reshape(len(x), 3, patch_size, patch_size),),
    )


def squeeze(target: str, source: str, num_axes: int = 1) -> WeightMapping:
    """Theirs has axes of length one before the others."""
    return WeightMapping(
        target,
        (source,),
        lambda x: x.reshape(x.shape[num_axes:]),
        lambda x: (x.reshape((1,) * num_axes + x.shape),),
    )


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): what CLIP was trained with."""

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return x * torch.sigmoid(1.702 * x)


def get_activation(name: str) -> nn.Module:
    """The activation that a published config names. Raises SensoriumError for one we do not know."""
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return nn.GELU(approximate="tanh")
    known = {"quick_gelu": QuickGELU, "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
    if name not in known:
        raise SensoriumError(
            f"the config asks for the activation {name!r}; known are "
            f"{', '.join(sorted([*known, 'gelu_new', 'gelu_pytorch_tanh']))}"
        )
    return known[name]()


@dataclass(frozen=True)
class TrunkConfig:
    """The size of a pre-norm trunk, and what it thinks with."""

    dim: int
    depth: int
    heads: int
    hidden_dim: int
    activation: str
    eps: float = 1e-5

    def build_norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.dim, eps=self.eps)

    def build_mlp(self) -> FeedForward:
        return FeedForward(self.dim, self.hidden_dim, get_activation(self.activation))

    def build_trunk(self, input_norm: nn.Module | None = None) -> Transformer:
        """Pre-norm blocks and a norm after the last."""
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
    """Causal words read from where the highest id stands: the end token of CLIP's vocabulary is its last."""

    def __init__(self, dim: int, vocab_size: int, max_length: int):
        super().__init__()
        self.token_embedding, self.position_embedding = (
            nn.Embedding(vocab_size, dim),
            nn.Parameter(torch.empty(max_length, dim)),
        )
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def pool_index(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """The first place of the highest id."""
        return ids.argmax(1)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        valid = torch.arange(ids.shape[1], device=ids.device) <= self.pool_index(ids)[:, None]
        return Tokens(x, sequence_positions(x), CAUSAL, valid)
