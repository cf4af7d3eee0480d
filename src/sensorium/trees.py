"""Boosted trees as tensors: what another library has grown is answered from, kept and checked like any other weights.

    B batch   F features   D width   T trees   N nodes, L leaves of all trees   K numbers that trees say
"""
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.measures import Measures
from sensorium.modalities.dates import FEATURES, Date
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Ordinal
from sensorium.modalities.tags import Tags
from sensorium.tokens import ColumnKey

MOST = 64                                   # classes of a column that have a feature each: the most common ones
AT_ONCE = 1 << 20                           # rows times trees that are walked together
There = Mapping[str, Bool[Tensor, "B"]]     # of each column, which rows have a value
LIKE = {"root": torch.int32, "feature": torch.int32, "left": torch.int32, "right": torch.int32,
        "missing": torch.bool, "threshold": torch.float64, "leaf": torch.float64}


class Trees(nn.Module):
    """T trees, of which each K-th adds to the same number. Without any, nothing has been grown yet.

    root: [T] where each begins. feature, threshold, left, right, missing: [N] of each node: a row goes left where its
    feature is at most the threshold, and where it is NaN as `missing` says. A place below zero is the leaf ~place; the
    children of a node come after it, so that every walk ends. leaf: [L] what is added.
    """

    def __init__(self, features: int, said: int):
        super().__init__()
        self.features, self.said = features, said
        for name, dtype in LIKE.items():
            self.register_buffer(name, torch.zeros(0, dtype=dtype))

    def take(self, found: Mapping[str, Tensor]) -> None:
        """Have these buffers, of whatever length. Raises ValueError where they are no trees over these features."""
        if set(found) != set(LIKE) or any(found[name].dtype != dtype for name, dtype in LIKE.items()):
            raise ValueError(f"trees have {', '.join(LIKE)}, and not {', '.join(sorted(found)) or 'nothing'}")
        root, feature, left, right, missing, threshold, leaf = (found[name] for name in LIKE)
        if any(part.dim() != 1 for part in found.values()) or len(root) % self.said or \
                len({len(part) for part in (feature, left, right, missing, threshold)}) > 1:
            raise ValueError("the sizes of the trees do not fit each other")
        here = torch.arange(len(feature))
        if not all(_leads(places, least, len(feature), len(leaf))
                   for places, least in ((root, 0 * root), (left, here + 1), (right, here + 1))):
            raise ValueError("a tree leads nowhere")
        if ((feature < 0) | (feature >= self.features)).any():
            raise ValueError(f"a tree asks for a feature that is not among the {self.features} there are")
        if not (threshold.isfinite().all() and leaf.isfinite().all()):
            raise ValueError("a tree is not finite")
        for name, value in found.items():
            setattr(self, name, value)

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """What the trees come to together; zeros without any."""
        step = max(1, AT_ONCE // max(1, len(self.get_buffer("root"))))
        return torch.cat([self._walked(part) for part in x.split(step)])

    def _walked(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        root, feature, left, right, missing, threshold, leaf = (self.get_buffer(name) for name in LIKE)
        at = root.expand(len(x), -1)
        while (inner := at >= 0).any():
            node = at.clamp(min=0)
            value = x.gather(1, feature[node].long())
            goes = torch.where(value.isnan(), missing[node], value <= threshold[node])
            at = torch.where(inner, torch.where(goes, left[node], right[node]), at)
        return leaf[~at].view(len(x), -1, self.said).sum(1)


class Boosted(nn.Module):
    """A second head of a target: trees over single values, measures of pictures and series, and the fused vector,
    weighed against the linear head.

    They answer for rows that lack nothing but what training rows lacked too; of others the linear head, which was
    taught to do without, speaks alone. columns: all that the model reads. singles: those of single values. lacked: [C]
    the columns that trees know without. share: [3] of what the linear head says, of what trees say, and of the linear
    head where it is alone.
    """

    def __init__(self, of: Modality, columns: Sequence[str], singles: Mapping[str, Modality], measures: Measures,
                 dim: int):
        super().__init__()
        self.of, self.columns, self.singles, self.measures = of, list(columns), dict(singles), measures
        said = len(of.classes) if isinstance(of, Category) and len(of.classes) > 2 else 1
        single = sum(map(width, singles.values()))
        self.sizes = [single, single + measures.width, single + measures.width + dim]      # of what may be seen
        self.trees = Trees(self.sizes[-1], said)
        self.lacked = nn.Buffer(torch.zeros(len(columns), dtype=torch.bool))
        self.share = nn.Buffer(torch.tensor([1.0, 0.0, 1.0]))

    def forward(self, linear: Float[Tensor, "B K"], given: Mapping[ColumnKey, Tensor], there: There,
                x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        if not len(self.trees.get_buffer("root")):
            return linear
        whole = torch.stack([there[name] for name in self.columns], 1)
        return self.weighed(linear, self.trees(self.features(given, there, x)), self.share, self.known(whole))

    def known(self, there: Bool[Tensor, "B C"]) -> Bool[Tensor, "B"]:
        """Whether trees have learned from rows like these."""
        return (there | self.lacked).all(1)

    def features(self, given: Mapping[ColumnKey, Tensor], there: There,
                 x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """What the trees see of a row: its single values, then measures, then the fused vector."""
        return torch.cat([plain(self.singles, given, there), self.measures(given, there), x.float()], 1)

    def weighed(self, linear: Float[Tensor, "B K"], grown: Float[Tensor, "B T"], share: Float[Tensor, "3"],
                known: Bool[Tensor, "B"]) -> Float[Tensor, "B K"]:
        """Both as one for rows known to trees. Trees say a mean and no spread; of two classes the logit of the second.
        """
        by, add = torch.where(known, share[0], share[2])[:, None], (share[1] * known)[:, None] * grown.float()
        if not isinstance(self.of, Category):
            return torch.cat([linear[:, :1] * by + add, linear[:, 1:]], 1)
        return linear * by + (torch.cat([-add, add], 1) / 2 if add.shape[1] < linear.shape[1] else add)


def plain(columns: Mapping[str, Modality], given: Mapping[ColumnKey, Tensor], there: There) -> Float[Tensor, "B F"]:
    """Columns of single values as trees read them: NaN where a value is not there.

    A class is a feature of its own, as far as it is among the MOST common ones of its column; one never seen is none of
    them. A rank is its place; one never seen is missing.
    """
    some = next(iter(there.values()))
    parts = [torch.zeros(len(some), 0, device=some.device)]
    for name, of in columns.items():
        values = _values(of, given[name]) if name in given else parts[0].new_zeros(len(some), width(of))
        parts.append(values.masked_fill(~there[name][:, None], torch.nan))
    return torch.cat(parts, 1)


def _leads(places: Tensor, least: Tensor, nodes: int, leaves: int) -> bool:
    """Whether each is a node from `least` on, or a leaf that there is."""
    node = (places >= least) & (places < nodes)
    return bool(torch.where(places >= 0, node, ~places < leaves).all())


def width(of: Modality) -> int:
    """How many features a column has."""
    match of:
        case Category() if not isinstance(of, Ordinal):
            return min(MOST, len(of.classes))
        case Date():
            return FEATURES
        case Tags():
            return len(of.tags) + 1
    return 1


def _values(of: Modality, values: Tensor) -> Float[Tensor, "B F"]:
    match of:
        case Ordinal():
            return values.float()[:, None].masked_fill((values >= len(of.classes))[:, None], torch.nan)
        case Category():
            counts = torch.tensor(of.counts or (0,) * len(of.classes), device=values.device)
            return (values[:, None] == counts.argsort(descending=True, stable=True)[:MOST]).float()
    return values.float().flatten(1) if values.dim() > 1 else values.float()[:, None]
