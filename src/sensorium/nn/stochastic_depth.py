"""Stochastic depth: training drops residual branches of random samples (Huang et al. 2016).

B batch   N real tokens of a batch
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples while training.

    The branch of the other samples is scaled so that the expected value stays the same.

    Attributes:
        drop_prob: Probability that the branch of a sample is dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.0

    def forward(
        self,
        branch: Float[Tensor, "N *rest"],
        sample_index: Int[Tensor, "N"] | None = None,
        num_samples: int = 0,
    ) -> Float[Tensor, "N *rest"]:
        """Return the branch with zeros for dropped samples.

        Args:
            branch: Output of a residual branch.
            sample_index: Sample of each row; None if a row is a sample.
            num_samples: Number of samples, where `sample_index` is given.
        """
        if not (self.training and self.drop_prob):
            return branch
        count = len(branch) if sample_index is None else num_samples
        keep = torch.rand(count).to(branch.device) >= self.drop_prob
        if sample_index is not None:
            keep = keep[sample_index]
        weight = keep.to(branch.dtype) / (1 - self.drop_prob)
        return branch * weight.view(-1, *[1] * (branch.ndim - 1))


def set_stochastic_depth(model: nn.Module, max_drop_prob: float) -> int:
    """Set the drop probability of every block with a residual branch.

    The probability grows in even steps from block to block; the last block of each stack has
    `max_drop_prob`. Blocks whose own weights are frozen are never dropped.

    Returns:
        The number of blocks that are trained.
    """
    count = 0
    for parent in model.modules():
        stack = [
            (block, part)
            for block in parent.children()
            for part in block.children()
            if isinstance(part, StochasticDepth)
        ]
        for i, (block, part) in enumerate(stack, 1):
            is_trained = _is_trained(block)
            part.drop_prob = max_drop_prob * i / len(stack) if is_trained else 0.0
            count += is_trained
    return count


def _is_trained(block: nn.Module) -> bool:
    """Return whether a block is trained, apart from a gated cross-attention added to it."""
    added = getattr(block, "gated_cross_attention", None)
    added_parameters: set[nn.Parameter] = set()
    if isinstance(added, nn.Module):
        added_parameters.update(added.parameters())
    return any(p.requires_grad for p in block.parameters() if p not in added_parameters)
