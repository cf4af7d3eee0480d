"""What several published families are made of, beside what the house has already.

    B batch   T tokens   D width
"""
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.attention import Attention
from sensorium.errors import SensoriumError
from sensorium.published.published import Name, same
from sensorium.tokens import CAUSAL, Tokens, line
from sensorium.transformer import Block, FeedForward, Transformer

Names = list[Name]


def affine(ours: str, theirs: str) -> Names:
    """Weight and bias of a layer or a norm."""
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


def normed(ours: str, convolution: str, norm: str, counted: bool = True) -> Names:
    """A convolution and the norm of its batch, with its running figures. counted: theirs holds how many batches."""
    figures = [same(f"{ours}.1.{part}", f"{norm}.{part}") for part in ("running_mean", "running_var")]
    batches = same(f"{ours}.1.num_batches_tracked", f"{norm}.num_batches_tracked", optional=not counted)
    return [same(f"{ours}.0.weight", f"{convolution}.weight"), *affine(f"{ours}.1", norm), *figures, batches]


def kernel(ours: str, theirs: str, patch: int) -> Name:
    """Their convolution that steps from patch to patch is our matrix over flat patches."""
    return Name(ours, (theirs,), lambda x: x.flatten(1), lambda x: (x.reshape(len(x), 3, patch, patch),))


def boxed(ours: str, theirs: str, ones: int = 1) -> Name:
    """Theirs has axes of length one before the others."""
    return Name(ours, (theirs,), lambda x: x.reshape(x.shape[ones:]), lambda x: (x.reshape((1,) * ones + x.shape),))


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): what CLIP was trained with."""

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """The activation that a published config names. Raises SensoriumError for one we do not know."""
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return nn.GELU(approximate="tanh")
    known = {"quick_gelu": QuickGELU, "gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}
    if name not in known:
        raise SensoriumError(f"the config asks for the activation {name!r}; known are "
                             f"{', '.join(sorted([*known, 'gelu_new', 'gelu_pytorch_tanh']))}")
    return known[name]()


@dataclass(frozen=True)
class Shape:
    """The size of a pre-norm trunk, and what it thinks with."""

    dim: int
    depth: int
    heads: int
    hidden: int
    act: str
    eps: float = 1e-5

    def norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.dim, eps=self.eps)

    def mlp(self) -> FeedForward:
        return FeedForward(self.dim, self.hidden, activation(self.act))

    def trunk(self, first: nn.Module | None = None) -> Transformer:
        """Pre-norm blocks and a norm after the last."""
        blocks = [Block(Attention(self.dim, self.heads), self.mlp(), (self.norm(), self.norm()))
                  for _ in range(self.depth)]
        return Transformer(blocks, first=first, last=self.norm())


class HighestWords(nn.Module):
    """Causal words read from where the highest id stands: the end token of CLIP's vocabulary is its last."""

    def __init__(self, dim: int, vocab_size: int, length: int):
        super().__init__()
        self.ids, self.places = nn.Embedding(vocab_size, dim), nn.Parameter(torch.empty(length, dim))
        nn.init.normal_(self.ids.weight, std=0.02)
        nn.init.normal_(self.places, std=0.01)

    def summary(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """The first place of the highest id."""
        return ids.argmax(1)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.ids(ids) + self.places[:ids.shape[1]]
        valid = torch.arange(ids.shape[1], device=ids.device) <= self.summary(ids)[:, None]
        return Tokens(x, line(x), CAUSAL, valid)
