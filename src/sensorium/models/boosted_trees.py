"""Boosted trees as tensors: what another library has grown is answered from, kept and checked like any other weights.

B batch   F features   D width   T trees   N nodes, L leaves of all trees   K numbers that trees say
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import NUM_FEATURES, Datetime
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Ordinal
from sensorium.models.handcrafted_features import HandcraftedFeatures
from sensorium.nn.tokens import ColumnKey

MAX_CLASS_FEATURES = 64  # classes of a column that have a feature each: the most common ones
MAX_ROW_TREES = 1 << 20  # rows times trees that are walked together
PresenceMasks = Mapping[str, Bool[Tensor, "B"]]  # of each column, which rows have a value
BUFFER_DTYPES = {
    "root": torch.int32,
    "feature": torch.int32,
    "left": torch.int32,
    "right": torch.int32,
    "missing": torch.bool,
    "threshold": torch.float64,
    "leaf": torch.float64,
}


class Trees(nn.Module):
    """T trees, of which each K-th adds to the same number. Without any, nothing has been grown yet.

    root: [T] where each begins. feature, threshold, left, right, missing: [N] of each node: a row goes left where its
    feature is at most the threshold, and where it is NaN as `missing` says. A place below zero is the leaf ~place; the
    children of a node come after it, so that every walk ends. leaf: [L] what is added.
    """

    def __init__(self, num_features: int, num_outputs: int):
        super().__init__()
        self.num_features, self.num_outputs = num_features, num_outputs
        for name, dtype in BUFFER_DTYPES.items():
            self.register_buffer(name, torch.zeros(0, dtype=dtype))

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Have these buffers, of whatever length. Raises ValueError where they are no trees over these features."""
        if set(buffers) != set(BUFFER_DTYPES) or any(
            buffers[name].dtype != dtype for name, dtype in BUFFER_DTYPES.items()
        ):
            raise ValueError(
                f"trees have {', '.join(BUFFER_DTYPES)}, and not {', '.join(sorted(buffers)) or 'nothing'}"
            )
        root, feature, left, right, missing, threshold, leaf = (
            buffers[name] for name in BUFFER_DTYPES
        )
        if (
            any(part.dim() != 1 for part in buffers.values())
            or len(root) % self.num_outputs
            or len({len(part) for part in (feature, left, right, missing, threshold)}) > 1
        ):
            raise ValueError("the sizes of the trees do not fit each other")
        here = torch.arange(len(feature))
        if not all(
            _are_valid_nodes(places, least, len(feature), len(leaf))
            for places, least in ((root, 0 * root), (left, here + 1), (right, here + 1))
        ):
            raise ValueError("a tree leads nowhere")
        if ((feature < 0) | (feature >= self.num_features)).any():
            raise ValueError(
                f"a tree asks for a feature that is not among the {self.num_features} there are"
            )
        if not (threshold.isfinite().all() and leaf.isfinite().all()):
            raise ValueError("a tree is not finite")
        for name, value in buffers.items():
            setattr(self, name, value)

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """What the trees come to together; zeros without any."""
        step = max(1, MAX_ROW_TREES // max(1, len(self.get_buffer("root"))))
        return torch.cat([self._traverse(part) for part in x.split(step)])

    def _traverse(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        root, feature, left, right, missing, threshold, leaf = (
            self.get_buffer(name) for name in BUFFER_DTYPES
        )
        at = root.expand(len(x), -1)
        while (inner := at >= 0).any():
            node = at.clamp(min=0)
            value = x.gather(1, feature[node].long())
            goes = torch.where(value.isnan(), missing[node], value <= threshold[node])
            at = torch.where(inner, torch.where(goes, left[node], right[node]), at)
        return leaf[~at].view(len(x), -1, self.num_outputs).sum(1)


class TreeEnsemble(nn.Module):
    """A second head of a target: trees over single values, measures of pictures and series, and the fused vector,
    weighed against the linear head.

    They answer for rows that lack nothing but what training rows lacked too; of others the linear head, which was
    taught to do without, speaks alone. columns: all that the model reads. singles: those of single values. lacked: [C]
    the columns that trees know without. share: [3] of what the linear head says, of what trees say, and of the linear
    head where it is alone.
    """

    def __init__(
        self,
        modality: Modality,
        columns: Sequence[str],
        tabular_columns: Mapping[str, Modality],
        handcrafted_features: HandcraftedFeatures,
        dim: int,
    ):
        super().__init__()
        self.modality, self.columns, self.tabular_columns, self.handcrafted_features = (
            modality,
            list(columns),
            dict(tabular_columns),
            handcrafted_features,
        )
        said = (
            len(modality.classes)
            if isinstance(modality, Category) and len(modality.classes) > 2
            else 1
        )
        single = sum(map(num_tabular_features, tabular_columns.values()))
        self.feature_widths = [
            single,
            single + handcrafted_features.num_features,
            single + handcrafted_features.num_features + dim,
        ]  # of what may be seen
        self.trees = Trees(self.feature_widths[-1], said)
        self.missing_ok = nn.Buffer(torch.zeros(len(columns), dtype=torch.bool))
        self.blend_weights = nn.Buffer(torch.tensor([1.0, 0.0, 1.0]))

    def forward(
        self,
        linear: Float[Tensor, "B K"],
        inputs: Mapping[ColumnKey, Tensor],
        present: PresenceMasks,
        x: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B K"]:
        if not len(self.trees.get_buffer("root")):
            return linear
        whole = torch.stack([present[name] for name in self.columns], 1)
        return self.blend(
            linear,
            self.trees(self.compute_features(inputs, present, x)),
            self.blend_weights,
            self.applicable(whole),
        )

    def applicable(self, present: Bool[Tensor, "B C"]) -> Bool[Tensor, "B"]:
        """Whether trees have learned from rows like these."""
        return (present | self.missing_ok).all(1)

    def compute_features(
        self, inputs: Mapping[ColumnKey, Tensor], present: PresenceMasks, x: Float[Tensor, "B D"]
    ) -> Float[Tensor, "B F"]:
        """What the trees see of a row: its single values, then measures, then the fused vector."""
        return torch.cat(
            [
                tabular_features(self.tabular_columns, inputs, present),
                self.handcrafted_features(inputs, present),
                x.float(),
            ],
            1,
        )

    def blend(
        self,
        linear: Float[Tensor, "B K"],
        tree_output: Float[Tensor, "B T"],
        blend_weights: Float[Tensor, "3"],
        applicable: Bool[Tensor, "B"],
    ) -> Float[Tensor, "B K"]:
        """Both as one for rows known to trees. Trees say a mean and no spread; of two classes the logit of the second."""
        by, add = (
            torch.where(applicable, blend_weights[0], blend_weights[2])[:, None],
            (blend_weights[1] * applicable)[:, None] * tree_output.float(),
        )
        if not isinstance(self.modality, Category):
            return torch.cat([linear[:, :1] * by + add, linear[:, 1:]], 1)
        return linear * by + (
            torch.cat([-add, add], 1) / 2 if add.shape[1] < linear.shape[1] else add
        )


def tabular_features(
    columns: Mapping[str, Modality], inputs: Mapping[ColumnKey, Tensor], present: PresenceMasks
) -> Float[Tensor, "B F"]:
    """Columns of single values as trees read them: NaN where a value is not there.

    A class is a feature of its own, as far as it is among the MOST common ones of its column; one never seen is none of
    them. A rank is its place; one never seen is missing.
    """
    some = next(iter(present.values()))
    parts = [torch.zeros(len(some), 0, device=some.device)]
    for name, of in columns.items():
        values = (
            _tabular_values(of, inputs[name])
            if name in inputs
            else parts[0].new_zeros(len(some), num_tabular_features(of))
        )
        parts.append(values.masked_fill(~present[name][:, None], torch.nan))
    return torch.cat(parts, 1)


def _are_valid_nodes(indices: Tensor, min_node: Tensor, num_nodes: int, num_leaves: int) -> bool:
    """Whether each is a node from `least` on, or a leaf that there is."""
    node = (indices >= min_node) & (indices < num_nodes)
    return bool(torch.where(indices >= 0, node, ~indices < num_leaves).all())


def num_tabular_features(modality: Modality) -> int:
    """How many features a column has."""
    match modality:
        case Category() if not isinstance(modality, Ordinal):
            return min(MAX_CLASS_FEATURES, len(modality.classes))
        case Datetime():
            return NUM_FEATURES
        case Multilabel():
            return len(modality.tags) + 1
    return 1


def _tabular_values(modality: Modality, values: Tensor) -> Float[Tensor, "B F"]:
    match modality:
        case Ordinal():
            return values.float()[:, None].masked_fill(
                (values >= len(modality.classes))[:, None], torch.nan
            )
        case Category():
            counts = torch.tensor(
                modality.counts or (0,) * len(modality.classes), device=values.device
            )
            return (
                values[:, None] == counts.argsort(descending=True, stable=True)[:MAX_CLASS_FEATURES]
            ).float()
    return values.float().flatten(1) if values.dim() > 1 else values.float()[:, None]
