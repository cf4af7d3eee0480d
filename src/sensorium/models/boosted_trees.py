"""Boosted trees as tensors: trained by another library, evaluated and stored by this one.

B batch   F features   T trees   N nodes, L leaves of all trees   K outputs
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import NUM_FEATURES, Datetime
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Ordinal
from sensorium.nn.tokens import ColumnKey

MAX_CLASS_FEATURES = 64  # one-hot features of a categorical column: its most common classes
MAX_ROW_TREES = 1 << 20  # rows times trees that are evaluated at a time
PresenceMasks = Mapping[str, Bool[Tensor, "B"]]  # for each column, which rows have a value
BUFFER_DTYPES = {
    "root": torch.int32,
    "feature": torch.int32,
    "left": torch.int32,
    "right": torch.int32,
    "missing": torch.bool,
    "threshold": torch.float64,
    "leaf": torch.float64,
}
NODE_BUFFERS = ("feature", "left", "right", "missing", "threshold")


class Trees(nn.Module):
    """T decision trees whose leaves are summed; every K-th tree adds to the same output.

    A new module has no trees and returns zeros. A node index below zero is the leaf `~index`. The
    children of a node have higher indices than it, so every traversal ends.

    Args:
        num_features: F.
        num_outputs: K.

    Attributes:
        root: [T] First node of each tree.
        feature: [N] Feature that each node tests.
        threshold: [N] A row goes left if its feature is at most this value.
        missing: [N] Whether a row whose feature is NaN goes left.
        left: [N] Left child.
        right: [N] Right child.
        leaf: [L] Value of each leaf.
    """

    def __init__(self, num_features: int, num_outputs: int):
        super().__init__()
        self.num_features = num_features
        self.num_outputs = num_outputs
        for name, dtype in BUFFER_DTYPES.items():
            self.register_buffer(name, torch.zeros(0, dtype=dtype))

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Replace all buffers, whatever their sizes, after checking that they are valid trees.

        Args:
            buffers: One tensor for each name in BUFFER_DTYPES.

        Raises:
            ValueError: If the tensors do not form trees over these features and outputs.
        """
        self._validate_sizes(buffers)
        self._validate_values(buffers)
        for name, value in buffers.items():
            setattr(self, name, value)

    def _validate_sizes(self, buffers: Mapping[str, Tensor]) -> None:
        """Check the names, dtypes and lengths of the buffers."""
        if set(buffers) != set(BUFFER_DTYPES):
            names = ", ".join(sorted(buffers)) or "no tensors"
            raise ValueError(f"Trees need the tensors {', '.join(BUFFER_DTYPES)}, but got {names}.")
        for name, dtype in BUFFER_DTYPES.items():
            if buffers[name].dtype != dtype:
                raise ValueError(
                    f"Tensor {name!r} of the trees has dtype {buffers[name].dtype}, but needs "
                    f"{dtype}."
                )
        one_dimensional = all(buffer.dim() == 1 for buffer in buffers.values())
        node_counts = {len(buffers[name]) for name in NODE_BUFFERS if buffers[name].dim()}
        if not one_dimensional or len(buffers["root"]) % self.num_outputs or len(node_counts) > 1:
            raise ValueError("The sizes of the tree tensors do not match.")

    def _validate_values(self, buffers: Mapping[str, Tensor]) -> None:
        """Check that all indices and numbers of the buffers are valid."""
        num_nodes = len(buffers["feature"])
        num_leaves = len(buffers["leaf"])
        first_child = torch.arange(num_nodes) + 1
        valid_indices = (
            _are_valid_nodes(buffers["root"], 0 * buffers["root"], num_nodes, num_leaves)
            and _are_valid_nodes(buffers["left"], first_child, num_nodes, num_leaves)
            and _are_valid_nodes(buffers["right"], first_child, num_nodes, num_leaves)
        )
        if not valid_indices:
            raise ValueError("A tree refers to a node or leaf that does not exist.")
        feature = buffers["feature"]
        if ((feature < 0) | (feature >= self.num_features)).any():
            raise ValueError(
                f"A tree tests a feature that is not among the {self.num_features} of the model."
            )
        if not (buffers["threshold"].isfinite().all() and buffers["leaf"].isfinite().all()):
            raise ValueError("A threshold or leaf of a tree is not finite.")

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """Return the sum of all trees; zeros without any."""
        chunk_rows = max(1, MAX_ROW_TREES // max(1, len(self.get_buffer("root"))))
        chunks: Sequence[Tensor] = torch.split(x, chunk_rows)
        return torch.cat([self._traverse(chunk) for chunk in chunks])

    def _traverse(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """Walk all rows down all trees, one level per iteration."""
        feature = self.get_buffer("feature")
        threshold = self.get_buffer("threshold")
        left = self.get_buffer("left")
        right = self.get_buffer("right")
        missing = self.get_buffer("missing")
        index = self.get_buffer("root").expand(len(x), -1)
        is_node = index >= 0
        while is_node.any():
            node = index.clamp(min=0)
            value = x.gather(1, feature[node].long())
            goes_left = torch.where(value.isnan(), missing[node], value <= threshold[node])
            child = torch.where(goes_left, left[node], right[node])
            index = torch.where(is_node, child, index)
            is_node = index >= 0
        leaves = self.get_buffer("leaf")[~index]
        return leaves.view(len(x), -1, self.num_outputs).sum(1)


def tabular_features(
    columns: Mapping[str, Modality], inputs: Mapping[ColumnKey, Tensor], present: PresenceMasks
) -> Float[Tensor, "B F"]:
    """Return the features of scalar columns for trees, NaN where a value is missing.

    Categories are one-hot over the MAX_CLASS_FEATURES most common classes, all zero for an unseen
    class. Ordinals are their rank; an unseen one counts as missing.
    """
    any_mask = next(iter(present.values()))
    features = [torch.zeros(len(any_mask), 0, device=any_mask.device)]
    for name, modality in columns.items():
        if name in inputs:
            values = _tabular_values(modality, inputs[name])
        else:
            values = features[0].new_zeros(len(any_mask), num_tabular_features(modality))
        features.append(values.masked_fill(~present[name][:, None], torch.nan))
    return torch.cat(features, 1)


def num_tabular_features(modality: Modality) -> int:
    """Return the number of tree features of a scalar column."""
    match modality:
        case Ordinal():
            return 1
        case Category():
            return min(MAX_CLASS_FEATURES, len(modality.classes))
        case Datetime():
            return NUM_FEATURES
        case Multilabel():
            return len(modality.tags) + 1
        case _:
            return 1


def _are_valid_nodes(indices: Tensor, min_node: Tensor, num_nodes: int, num_leaves: int) -> bool:
    """Return whether each index is a leaf, or a node from `min_node` on."""
    is_valid_node = (indices >= min_node) & (indices < num_nodes)
    return bool(torch.where(indices >= 0, is_valid_node, ~indices < num_leaves).all())


def _tabular_values(modality: Modality, values: Tensor) -> Float[Tensor, "B F"]:
    """Return the tree features of a collated column without missing values."""
    match modality:
        case Ordinal():
            is_unseen = values >= len(modality.classes)
            return values.float()[:, None].masked_fill(is_unseen[:, None], torch.nan)
        case Category():
            class_counts = modality.counts or (0,) * len(modality.classes)
            counts = torch.tensor(class_counts, device=values.device)
            most_common = counts.argsort(descending=True, stable=True)[:MAX_CLASS_FEATURES]
            return (values[:, None] == most_common).float()
        case _:
            return values.float().flatten(1) if values.dim() > 1 else values.float()[:, None]
