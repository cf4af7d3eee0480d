"""How good is it? Figures with their definitions, on plain tensors.

Q queries   C candidates   E width of the shared space
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

RECALL_KS = (1, 5, 10)


def retrieval_ranks(
    queries: Float[Tensor, "Q E"], candidates: Float[Tensor, "C E"], relevant: Bool[Tensor, "Q C"]
) -> Int[Tensor, "Q"]:
    """Rank, from 1, of each query's best right candidate. A wrong one that scores the same counts as ahead of it.

    Where several candidates are right (the same caption twice, the same thing drawn twice), any of them will do.
    """
    scores = queries @ candidates.T
    best = scores.masked_fill(~relevant, -float("inf")).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~relevant).sum(1)


def recall_at_k(ranks: Int[Tensor, "Q"], k: int) -> float:
    """Share of queries with a right candidate among the first k."""
    return (ranks <= k).double().mean().item()


def recall_metrics(ranks: Int[Tensor, "Q"]) -> dict[str, float]:
    """Recall at 1, 5 and 10, and the median rank."""
    return {
        **{f"recall@{k}": recall_at_k(ranks, k) for k in RECALL_KS},
        "median_rank": ranks.double().median().item(),
    }


def chance_recall(relevant: Bool[Tensor, "Q C"], k: int) -> float:
    """Recall at k of a random order: one minus the chance that the first k are all wrong."""
    candidates, wrong = relevant.shape[1], relevant.shape[1] - relevant.double().sum(1)
    miss = 1.0 + 0.0 * wrong
    for i in range(min(k, candidates)):
        miss = miss * ((wrong - i).clamp(min=0) / (candidates - i))
    return (1 - miss).mean().item()


def retrieval_metrics(
    a: Float[Tensor, "N E"],
    b: Float[Tensor, "M E"],
    relevant: Bool[Tensor, "N M"],
    names: tuple[str, str],
) -> dict[str, float]:
    """Both ways between unit vectors: {"image to text recall@1": ..., ..., "recall@1": the mean of both ways}."""
    there, back = (
        recall_metrics(retrieval_ranks(a, b, relevant)),
        recall_metrics(retrieval_ranks(b, a, relevant.T)),
    )
    figures = {
        f"{x} to {y} {k}": v
        for (x, y), way in ((names, there), (names[::-1], back))
        for k, v in way.items()
    }
    return figures | {k: (there[k] + back[k]) / 2 for k in there}


def accuracy(scores: Float[Tensor, "Q C"], labels: Int[Tensor, "Q"], k: int = 1) -> float:
    """Share of rows whose label is among the k highest scores."""
    return (
        (scores.topk(min(k, scores.shape[1])).indices == labels[:, None])
        .any(1)
        .double()
        .mean()
        .item()
    )
