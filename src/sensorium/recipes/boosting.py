"""Gradient-boosted trees: trained by LightGBM, evaluated by `models.boosted_trees`.

N rows   F features   K classes
"""

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Category
from sensorium.models.boosted_trees import BUFFER_DTYPES

MAX_BOOSTING_ROUNDS = 1000
MAX_TREES = 20_000  # of all classes together
MAX_CLASSES = 200  # with more classes no trees are fitted
EARLY_STOPPING_ROUNDS = 50  # rounds without improvement before boosting stops
LIGHTGBM_PARAMS = {
    "learning_rate": 0.05,
    "num_leaves": 31,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "verbosity": -1,
    "deterministic": True,
    "force_row_wise": True,
    "seed": 0,
}


def lightgbm_is_installed() -> bool:
    """Return whether LightGBM can be imported."""
    return find_spec("lightgbm") is not None


def train_trees(
    x: Float[Tensor, "N F"],
    y: Tensor,
    val_x: Float[Tensor, "M F"],
    val_y: Tensor,
    modality: Modality,
    class_weight: Float[Tensor, "K"] | None = None,
) -> dict[str, Tensor]:
    """Fit trees on training rows until the validation rows say stop.

    Args:
        x: Features of the training rows, NaN where missing.
        y: Their targets.
        val_x: Features of the validation rows.
        val_y: Their targets.
        modality: Settings of the target.
        class_weight: Weight of each class.

    Returns:
        Buffers of `Trees`.
    """
    import lightgbm

    def as_dataset(features: Tensor, target: Tensor, **options: Any) -> Any:
        weight = None if class_weight is None else class_weight[target].numpy()
        return lightgbm.Dataset(features.numpy(), target.numpy(), weight=weight, **options)

    train = as_dataset(x, y)
    num_classes = len(modality.classes) if isinstance(modality, Category) else 1
    booster = lightgbm.train(
        {
            **LIGHTGBM_PARAMS,
            **_lightgbm_objective(modality),
            "num_threads": torch.get_num_threads(),
        },
        train,
        min(MAX_BOOSTING_ROUNDS, MAX_TREES // num_classes),
        [as_dataset(val_x, val_y, reference=train)],
        callbacks=[lightgbm.early_stopping(EARLY_STOPPING_ROUNDS, verbose=False)],
    )
    dump = booster.dump_model(num_iteration=booster.best_iteration)
    return from_lightgbm(dump["tree_info"])


def _lightgbm_objective(modality: Modality) -> dict[str, Any]:
    num_classes = len(modality.classes) if isinstance(modality, Category) else 0
    if num_classes == 0:
        return {"objective": "regression"}
    if num_classes == 2:
        return {"objective": "binary"}
    return {"objective": "multiclass", "num_class": num_classes}


def from_lightgbm(trees: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Convert the trees of a LightGBM model dump into buffers of `Trees`.

    A missing value goes in the direction that LightGBM learned; where training had none, in
    that of the majority of the rows.

    Args:
        trees: `tree_info` of `Booster.dump_model`.
    """
    nodes: list[tuple[int, float, bool]] = []  # feature, threshold, whether missing goes left
    children: list[list[int]] = []  # left and right
    leaves: list[float] = []

    def num_rows(node: dict[str, Any]) -> int:
        return node.get("internal_count", node.get("leaf_count", 0))

    def add(node: dict[str, Any]) -> int:
        """Append a node with its subtree and return its index; leaf i has the index -1 - i."""
        if "leaf_value" in node:
            leaves.append(node["leaf_value"])
            return -len(leaves)
        left, right = node["left_child"], node["right_child"]
        index = len(nodes)
        if node["missing_type"] == "NaN":
            missing_left = node["default_left"]
        else:
            missing_left = num_rows(left) >= num_rows(right)
        nodes.append((node["split_feature"], node["threshold"], missing_left))
        children.append([])
        children[index] = [add(left), add(right)]
        return index

    root = [add(tree["tree_structure"]) for tree in trees]
    feature, threshold, missing = zip(*nodes, strict=True) if nodes else ((), (), ())
    left, right = zip(*children, strict=True) if children else ((), ())
    buffers = {
        "root": root,
        "feature": feature,
        "left": left,
        "right": right,
        "missing": missing,
        "threshold": threshold,
        "leaf": leaves,
    }
    return {
        name: torch.tensor(values, dtype=BUFFER_DTYPES[name]) for name, values in buffers.items()
    }
