"""Trees boosted on what a trained model makes of a row: LightGBM grows them, `sensorium.models.boosted_trees` answers from them.

N rows   F features   K numbers that a head says   S shares
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError
from sensorium.evaluation.validate_prediction import BATCH_SIZE, calibrated_loss, concat_batches
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.boosted_trees import BUFFER_DTYPES, TreeEnsemble
from sensorium.models.handcrafted_features import (
    HandcraftedFeatures,
    compute_features,
    has_handcrafted_features,
)
from sensorium.models.lora import FrozenEncoder
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch
from sensorium.objectives.supervised import SupervisedLoss
from sensorium.recipes.recipe import BadKeyword, OnEnd

MAX_BOOSTING_ROUNDS, EARLY_STOPPING_ROUNDS = (
    1000,
    50,
)  # trees at most, and how many that do not help before it stops
MAX_TRAIN_ROWS = 200_000  # training rows that trees are grown on
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
MAX_PCA_ROWS = 20_000  # that say in which directions pictures differ
MIN_MISSING_FRACTION = (
    0.02  # a column missing in so many training rows is one that trees know without
)
TREE_WEIGHTS = [i / 20 for i in range(21)]  # of the trees in what is said, that are tried


def add_tree_heads(
    model: MultimodalPredictor,
    inputs: Mapping[str, Modality],
    targets: Mapping[str, Modality],
    dim: int,
) -> None:
    """Give a model a second head for each target. Raises BadKeyword where trees are not for that kind of target."""
    still = {
        name
        for name, sense in zip(model.encoder_columns, model.encoders, strict=True)
        if any(isinstance(part, FrozenEncoder) for part in sense.modules())
    }  # their values may have been read before
    for name, of in targets.items():
        if isinstance(of, Ordinal) or not isinstance(of, Category | Numeric):
            raise BadKeyword(
                f"head='boosting' grows trees for numbers and classes; the target {name!r} is {of.kind}: "
                "take head='linear' (--head linear)"
            )
        single = {column: inputs[column] for column in model.columns[len(model.encoder_columns) :]}
        measures = HandcraftedFeatures(
            {
                column: inputs[column]
                for column in model.encoder_columns
                if has_handcrafted_features(inputs[column]) and column not in still
            }
        )
        model.tree_heads.append(TreeEnsemble(of, model.columns, single, measures, dim))


def fit_trees(
    objective: SupervisedLoss, targets: Mapping[str, Modality]
) -> OnEnd[MultimodalPredictor]:
    """Grow the trees of each target once its model is trained, and weigh them against the linear head.

    Validation rows say when to stop, whether measures and the fused vector help beside single values, and how much
    trees count. Returned are, for each target, the losses on validation rows of the linear head and of the trees alone,
    each calibrated, and the share of the trees.
    """

    def finish(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        validation: np.ndarray,
    ) -> dict[str, float]:
        figures: dict[str, float] = {}
        learn = sample_evenly(rows, MAX_TRAIN_ROWS)
        _fit_image_features(model, prepared, sample_evenly(rows, MAX_PCA_ROWS))
        train, some = (
            _ModelOutputs(model, prepared, learn),
            _ModelOutputs(model, prepared, validation),
        )
        for name, second in zip(targets, model.tree_heads, strict=True):
            assert isinstance(second, TreeEnsemble)
            found = _TreeTrainer(second, name, objective, train, some).select_best()
            told = {
                "linear val_loss": found[0],
                "trees val_loss": found[1],
                "share of trees": found[2],
            }
            figures |= {
                what if len(targets) == 1 else f"{name} {what}": value
                for what, value in told.items()
            }
        return figures

    return finish


@torch.no_grad()
def _fit_image_features(
    model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray
) -> None:
    """Have the measures of pictures know in which directions training rows differ."""
    first = model.tree_heads[0]
    assert isinstance(first, TreeEnsemble)
    found: dict[str, list[Tensor]] = {
        name: [] for name, of in first.handcrafted_features.columns.items() if isinstance(of, Image)
    }
    for start in range(0, len(rows) if found else 0, BATCH_SIZE):
        given = prepared.batch(rows[start : start + BATCH_SIZE])
        there = dict(zip(model.columns, model.presence(given).unbind(1), strict=True))
        for name, several in found.items():
            several.append(
                compute_features(first.handcrafted_features.columns[name], given[name][there[name]])
            )
    for second in model.tree_heads:
        assert isinstance(second, TreeEnsemble)
        second.handcrafted_features.fit([torch.cat(several) for several in found.values()])


class _ModelOutputs:
    """What a model makes of rows: what trees see of them, what the linear heads say, the targets, and which of their
    values are there. Rows without any are left out."""

    @torch.no_grad()
    def __init__(self, model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray):
        second = model.tree_heads[0]
        assert isinstance(second, TreeEnsemble)
        features, said, true, held = [], [], [], []
        for start in range(0, len(rows), BATCH_SIZE):
            given = prepared.batch(rows[start : start + BATCH_SIZE])
            there, parts = model.presence(given), model.encode_inputs(given)
            if parts:
                keep, known = there.any(1), dict(zip(model.columns, there.unbind(1), strict=True))
                x, _ = model.fuse_parts(parts)
                features.append(second.compute_features(given.columns, known, x)[keep])
                held.append(there[keep])
                said.append(
                    {
                        name: values[keep]
                        for name, values in model.predict_targets(parts, len(there)).items()
                    }
                )
                true.append(given.select(model.targets).take(keep))
        self.features, self.present = torch.cat(features), torch.cat(held)
        self.logits, self.targets = concat_batches(said), Batch.concat(true)


class _TreeTrainer:
    """Trees of one target, grown on some rows and judged on others."""

    def __init__(
        self,
        tree_head: TreeEnsemble,
        name: str,
        objective: SupervisedLoss,
        train_outputs: _ModelOutputs,
        val_outputs: _ModelOutputs,
    ):
        self.tree_head, self.column, self.target = (
            tree_head,
            tree_head.modality,
            objective.targets[name],
        )
        rows, val_rows = (
            objective.has_target(name, train_outputs.targets),
            objective.has_target(name, val_outputs.targets),
        )
        self.x, self.y, there = (
            train_outputs.features[rows],
            train_outputs.targets[name][rows],
            train_outputs.present[rows],
        )
        self.val_x, self.val_y, val_there = (
            val_outputs.features[val_rows],
            val_outputs.targets[name][val_rows],
            val_outputs.present[val_rows],
        )
        self.linear_logits = val_outputs.logits[name][val_rows]
        tree_head.missing_ok.copy_((~there).float().mean(0) >= MIN_MISSING_FRACTION)
        self.applicable = tree_head.applicable(val_there)
        if not len(self.val_y):
            raise SensoriumError(
                f"no validation row has the target {name!r}: nothing says when to stop growing trees"
            )

    def select_best(self) -> tuple[float, float, float]:
        """Keep the trees and the share that say validation rows best; (the linear loss, the trees' own, the share)."""
        tried, shares = [], self._blend_weights()
        for features in dict.fromkeys(size for size in self.tree_head.feature_widths if size):
            trees = self._train_trees(features)
            self.tree_head.trees.load_buffers(trees)
            says = self.tree_head.trees(self.val_x)
            losses = [
                self._loss(self.tree_head.blend(self.linear_logits, says, weights, self.applicable))
                for weights in shares
            ]
            tried.append((min(losses), losses, trees))
        _, losses, trees = min(tried, key=lambda one: one[0])
        best = int(np.argmin(losses))
        self.tree_head.trees.load_buffers(trees)
        self.tree_head.blend_weights.copy_(shares[best])
        return losses[0], losses[-1], TREE_WEIGHTS[best]

    def _blend_weights(self) -> Float[Tensor, "S 3"]:
        """Of the linear head, made as sure of itself as it should be, of the trees, and of the linear head alone."""
        sure = (
            calibrated_loss(self.target, self.column, self.linear_logits, self.val_y)[1].scale
            if isinstance(self.column, Category)
            else 1.0
        )
        return torch.tensor(
            [[(1 - share) / float(sure), share, 1 / float(sure)] for share in TREE_WEIGHTS]
        )

    def _loss(self, logits: Tensor) -> float:
        return calibrated_loss(self.target, self.column, logits, self.val_y)[0]

    def _train_trees(self, num_features: int) -> dict[str, Tensor]:
        """Grown on the first so many features."""
        import lightgbm

        classes = len(self.column.classes) if isinstance(self.column, Category) else 0
        what = {0: {"objective": "regression"}, 2: {"objective": "binary"}}.get(
            classes, {"objective": "multiclass", "num_class": classes}
        )
        train = lightgbm.Dataset(self.x[:, :num_features].numpy(), self.y.numpy())
        val = lightgbm.Dataset(
            self.val_x[:, :num_features].numpy(), self.val_y.numpy(), reference=train
        )
        made = lightgbm.train(
            {**LIGHTGBM_PARAMS, **what, "num_threads": torch.get_num_threads()},
            train,
            MAX_BOOSTING_ROUNDS,
            [val],
            callbacks=[lightgbm.early_stopping(EARLY_STOPPING_ROUNDS, verbose=False)],
        )
        return from_lightgbm(made.dump_model(num_iteration=made.best_iteration)["tree_info"])


def from_lightgbm(trees: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Trees as LightGBM tells of them, as the buffers of `Trees`.

    A value that is missing goes where LightGBM learned to send it, or else, where it met none, the way of most rows.
    """
    nodes: list[tuple[int, float, bool]] = []
    ways: list[list[int]] = []
    leaves: list[float] = []

    def count(node: dict[str, Any]) -> int:
        return node.get("internal_count", node.get("leaf_count", 0))

    def add(node: dict[str, Any]) -> int:
        if "leaf_value" in node:
            leaves.append(node["leaf_value"])
            return -len(leaves)
        two, at = (node["left_child"], node["right_child"]), len(nodes)
        learned = node["missing_type"] == "NaN"
        goes_left = node["default_left"] if learned else count(two[0]) >= count(two[1])
        nodes.append((node["split_feature"], node["threshold"], goes_left))
        ways.append([])
        ways[at] = [add(child) for child in two]
        return at

    root = [add(tree["tree_structure"]) for tree in trees]
    feature, threshold, missing = zip(*nodes, strict=True) if nodes else ((), (), ())
    left, right = zip(*ways, strict=True) if ways else ((), ())
    found = {
        "root": root,
        "feature": feature,
        "left": left,
        "right": right,
        "missing": missing,
        "threshold": threshold,
        "leaf": leaves,
    }
    return {name: torch.tensor(values, dtype=BUFFER_DTYPES[name]) for name, values in found.items()}
