"""Stochastic depth: while training, what a residual block adds is left out for some samples (Huang et al. 2016).

B batch   N real tokens of a batch
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """What a block adds, nothing with this `chance`; else more, so that the mean stays. Each sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.0

    def forward(
        self,
        branch: Float[Tensor, "N *rest"],
        sample_index: Int[Tensor, "N"] | None = None,
        num_samples: int = 0,
    ) -> Float[Tensor, "N *rest"]:
        """samples: which of `count` samples each row belongs to; without, a row is a sample."""
        if not (self.training and self.drop_prob):
            return branch
        kept = (
            torch.rand(len(branch) if sample_index is None else num_samples).to(branch.device)
            >= self.drop_prob
        )
        kept = kept if sample_index is None else kept[sample_index]
        return branch * (kept.to(branch.dtype) / (1 - self.drop_prob)).view(
            -1, *[1] * (branch.ndim - 1)
        )


def set_stochastic_depth(model: nn.Module, max_drop_prob: float) -> int:
    """How many blocks learn and add to what passes them. The last of each row of blocks is left out with the chance
    `most`, those before it with less, in even steps; what does not learn never is."""
    count = 0
    for parent in model.modules():
        row = [
            (block, part)
            for block in parent.children()
            for part in block.children()
            if isinstance(part, StochasticDepth)
        ]
        for i, (block, part) in enumerate(row, 1):
            cross = getattr(block, "cross", None)
            apart = {*cross.parameters()} if isinstance(cross, nn.Module) else set()
            learns = any(p.requires_grad for p in block.parameters() if p not in apart)
            part.drop_prob = max_drop_prob * i / len(row) if learns else 0.0
            count += learns
    return count
