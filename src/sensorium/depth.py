"""Stochastic depth: while training, what a residual block adds is left out for some samples (Huang et al. 2016).

    B batch   N real tokens of a batch
"""
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Residual(nn.Module):
    """A block that adds to what passes through it. `left_out`: the chance that it adds nothing to a sample."""

    left_out: float = 0.0

    def added(self, branch: Float[Tensor, "N *rest"], samples: Callable[[], Int[Tensor, "N"]] | None = None) -> Tensor:
        """What is added: while training nothing to some samples, and more to the others, so that the mean stays.

        samples: which one each row belongs to, in order, where several do to one; asked only where it matters.
        """
        if not (self.training and self.left_out):
            return branch
        of = torch.arange(len(branch), device=branch.device) if samples is None else samples()
        kept = torch.rand(int(of[-1]) + 1 if len(of) else 0, device=branch.device) >= self.left_out
        return branch * (kept[of].to(branch.dtype) / (1 - self.left_out)).view(-1, *[1] * (branch.ndim - 1))


def leave_out(model: nn.Module, most: float) -> None:
    """The last of each row of blocks that learn is left out with this chance, those before it less, in even steps."""
    for parent in model.modules():
        blocks = [block for block in parent.children() if isinstance(block, Residual)]
        for i, block in enumerate(blocks, 1):
            learns = any(p.requires_grad for p in block.parameters())
            block.left_out = most * i / len(blocks) if learns else 0.0
