"""Metrics of retrieval and zero-shot classification.

Q queries   C candidates   N, M items of two modalities   E width of the shared space
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

RECALL_KS = (1, 5, 10)


def retrieval_ranks(
    queries: Float[Tensor, "Q E"], candidates: Float[Tensor, "C E"], relevant: Bool[Tensor, "Q C"]
) -> Int[Tensor, "Q"]:
    """Return the rank, from 1, of each query's best relevant candidate.

    An irrelevant candidate with the same score counts as ahead of it, and one with a score of NaN
    too; a query whose own score is NaN is in the last place. Of several
    relevant candidates (duplicate captions, images of one object) the best one counts.

    Args:
        queries: Query embeddings.
        candidates: Candidate embeddings.
        relevant: Which candidates are relevant to which query.
    """
    scores = queries @ candidates.T
    best = scores.masked_fill(~relevant, -float("inf")).amax(1, keepdim=True)
    return 1 + (~(scores < best) & ~relevant).sum(1)  # a comparison with NaN is false


def recall_at_k(ranks: Int[Tensor, "Q"], k: int) -> float:
    """Return the share of queries with a relevant candidate among the first k."""
    return (ranks <= k).double().mean().item()


def recall_metrics(ranks: Int[Tensor, "Q"]) -> dict[str, float]:
    """Return the recall at each of RECALL_KS, and the median rank."""
    metrics = {f"recall@{k}": recall_at_k(ranks, k) for k in RECALL_KS}
    return {**metrics, "median rank": ranks.double().median().item()}


def random_recall(relevant: Bool[Tensor, "Q C"], k: int) -> float:
    """Return the expected recall at k of a random order, the baseline of retrieval."""
    num_candidates = relevant.shape[1]
    num_irrelevant = num_candidates - relevant.double().sum(1)
    miss_probability = 1.0 + 0.0 * num_irrelevant
    for i in range(min(k, num_candidates)):
        miss_probability = miss_probability * (
            (num_irrelevant - i).clamp(min=0) / (num_candidates - i)
        )
    return (1 - miss_probability).mean().item()


def retrieval_metrics(
    a: Float[Tensor, "N E"],
    b: Float[Tensor, "M E"],
    relevant: Bool[Tensor, "N M"],
    names: tuple[str, str],
) -> dict[str, float]:
    """Return recalls and median ranks in both directions, and their means.

    Args:
        a: Unit embeddings of the first modality.
        b: Unit embeddings of the second.
        relevant: Which items of `a` and `b` belong together.
        names: Names of the two modalities.

    Returns:
        For example {"image to text recall@1": ..., "text to image recall@1": ..., "recall@1": ...}.
    """
    forward = recall_metrics(retrieval_ranks(a, b, relevant))
    backward = recall_metrics(retrieval_ranks(b, a, relevant.T))
    first, second = names
    metrics = {f"{first} to {second} {name}": value for name, value in forward.items()}
    metrics |= {f"{second} to {first} {name}": value for name, value in backward.items()}
    return metrics | {name: (forward[name] + backward[name]) / 2 for name in forward}


def accuracy(scores: Float[Tensor, "Q C"], labels: Int[Tensor, "Q"], k: int = 1) -> float:
    """Return the top-k accuracy: the share of rows whose label is among the k highest scores.

    A row with a score of NaN counts as wrong.
    """
    top = scores.topk(min(k, scores.shape[1])).indices
    is_hit = (top == labels[:, None]).any(1) & ~scores.isnan().any(1)
    return is_hit.double().mean().item()
