"""Gradient-boosted tree heads: trained by LightGBM, evaluated by `models.boosted_trees`.

N rows   C input columns   F features   K outputs of a head   S blend weights tried
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError, require_type
from sensorium.evaluation.spec import picklable
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
from sensorium.recipes.recipe import InvalidKeywordError, OnEnd

MAX_BOOSTING_ROUNDS = 1000
EARLY_STOPPING_ROUNDS = 50  # rounds without improvement before boosting stops
MAX_TRAIN_ROWS = 200_000  # training rows that trees are fitted on
MAX_PCA_ROWS = 20_000  # training rows that the principal components of images are fitted on
MIN_MISSING_FRACTION = 0.02  # of training rows: trees then accept the column's missing values
TREE_WEIGHTS = [i / 20 for i in range(21)]  # weights of the trees in the blend that are tried
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


def add_tree_heads(
    model: MultimodalPredictor,
    inputs: Mapping[str, Modality],
    targets: Mapping[str, Modality],
    dim: int,
) -> None:
    """Add an untrained tree head for each target.

    Args:
        model: the model.
        inputs: settings of the input columns.
        targets: settings of the target columns.
        dim: width of the model.

    Raises:
        InvalidKeywordError: for a target that is neither a category nor numeric.
    """
    frozen = {  # columns whose values may be replaced by cached embeddings
        name
        for name, encoder in zip(model.encoder_columns, model.encoders, strict=True)
        if any(isinstance(module, FrozenEncoder) for module in encoder.modules())
    }
    for name, modality in targets.items():
        if isinstance(modality, Ordinal) or not isinstance(modality, Category | Numeric):
            raise InvalidKeywordError(
                "--head boosting predicts category and numeric targets, but the target "
                f"{name!r} is {modality.kind}. Use --head linear."
            )
        scalar_columns = {
            column: inputs[column] for column in model.columns[len(model.encoder_columns) :]
        }
        features = HandcraftedFeatures(
            {
                column: inputs[column]
                for column in model.encoder_columns
                if has_handcrafted_features(inputs[column]) and column not in frozen
            }
        )
        model.tree_heads.append(
            TreeEnsemble(modality, model.columns, scalar_columns, features, dim)
        )


@picklable
def fit_trees(
    objective: SupervisedLoss, targets: Mapping[str, Modality]
) -> OnEnd[MultimodalPredictor]:
    """Return a hook that fits the tree heads of a trained model and their weights.

    Tree heads are blended with the linear heads. The validation rows decide when boosting stops,
    which features are used (scalar columns alone, or also handcrafted features and the fused
    embedding), and the weight of the trees. The hook returns, for each target, the calibrated
    validation losses of the linear head and of the trees alone, and the weight of the trees.

    Args:
        objective: the training loss, with a loss of each target.
        targets: settings of the target columns.
    """

    def fit(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        validation: np.ndarray,
    ) -> dict[str, float]:
        _fit_image_features(model, prepared, sample_evenly(rows, MAX_PCA_ROWS))
        train_outputs = _ModelOutputs(model, prepared, sample_evenly(rows, MAX_TRAIN_ROWS))
        val_outputs = _ModelOutputs(model, prepared, validation)
        metrics: dict[str, float] = {}
        for name, tree_head in zip(targets, model.tree_heads, strict=True):
            tree_head = require_type(tree_head, TreeEnsemble)
            trainer = _TreeTrainer(tree_head, name, objective, train_outputs, val_outputs)
            linear_loss, trees_loss, tree_weight = trainer.select_best()
            prefix = "" if len(targets) == 1 else f"{name} "
            metrics |= {
                f"{prefix}linear val_loss": linear_loss,
                f"{prefix}trees val_loss": trees_loss,
                f"{prefix}tree weight": tree_weight,
            }
        return metrics

    return fit


@torch.no_grad()
def _fit_image_features(
    model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray
) -> None:
    """Fit the principal components of the handcrafted features of images."""
    first = require_type(model.tree_heads[0], TreeEnsemble)
    columns = first.handcrafted_features.columns
    features: dict[str, list[Tensor]] = {
        name: [] for name, modality in columns.items() if isinstance(modality, Image)
    }
    for batch_rows in iter_batches(rows if features else rows[:0], BATCH_SIZE):
        batch = prepared.batch(batch_rows)
        present = dict(zip(model.columns, model.presence(batch).unbind(1), strict=True))
        for name, batches in features.items():
            batches.append(compute_features(columns[name], batch[name][present[name]]))
    for tree_head in model.tree_heads:
        tree_head = require_type(tree_head, TreeEnsemble)
        tree_head.handcrafted_features.fit([torch.cat(batches) for batches in features.values()])


class _ModelOutputs:
    """Outputs of a trained model for rows, and their targets; rows without any value are left out.

    Attributes:
        features: [N F] features of the trees.
        present: [N C] which input columns have a value.
        logits: outputs of the linear heads by target.
        targets: the target columns.
    """

    @torch.no_grad()
    def __init__(self, model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray):
        tree_head = require_type(model.tree_heads[0], TreeEnsemble)
        features: list[Tensor] = []
        present: list[Tensor] = []
        logits: list[dict[str, Tensor]] = []
        targets: list[Batch] = []
        for batch_rows in iter_batches(rows, BATCH_SIZE):
            batch = prepared.batch(batch_rows)
            presence = model.presence(batch)
            parts = model.encode_inputs(batch)
            if not parts:
                continue
            has_values = presence.any(1)
            by_column = dict(zip(model.columns, presence.unbind(1), strict=True))
            x, _ = model.fuse_parts(parts)
            predicted = model.predict_targets(parts, len(presence))
            features.append(tree_head.compute_features(batch.columns, by_column, x)[has_values])
            present.append(presence[has_values])
            logits.append({name: values[has_values] for name, values in predicted.items()})
            targets.append(batch.select(model.targets).take(has_values))
        self.features = torch.cat(features)
        self.present = torch.cat(present)
        self.logits = concat_batches(logits)
        self.targets = Batch.concat(targets)


class _TreeTrainer:
    """Fits the trees of one target on training rows and evaluates them on validation rows."""

    def __init__(
        self,
        tree_head: TreeEnsemble,
        name: str,
        objective: SupervisedLoss,
        train_outputs: _ModelOutputs,
        val_outputs: _ModelOutputs,
    ):
        self.tree_head = tree_head
        self.modality = tree_head.modality
        self.target = objective.targets[name]
        rows = objective.has_target(name, train_outputs.targets)
        val_rows = objective.has_target(name, val_outputs.targets)
        self.x = train_outputs.features[rows]
        self.y = train_outputs.targets[name][rows]
        self.val_x = val_outputs.features[val_rows]
        self.val_y = val_outputs.targets[name][val_rows]
        self.linear_logits = val_outputs.logits[name][val_rows]
        missing_fraction = (~train_outputs.present[rows]).float().mean(0)
        tree_head.missing_ok.copy_(missing_fraction >= MIN_MISSING_FRACTION)
        self.applicable = tree_head.applicable(val_outputs.present[val_rows])
        if not len(self.val_y):
            raise SensoriumError(
                f"No validation row has a value of the target {name!r}, which --head boosting "
                "needs to stop early. Mark such rows as val (--split), or use --head linear."
            )

    def select_best(self) -> tuple[float, float, float]:
        """Fit trees on each set of features, and select those with the lowest blended loss.

        Returns:
            (validation loss of the linear head, of the trees alone, weight of the trees).
        """
        blends = self._blend_weights()
        candidates: list[tuple[float, list[float], dict[str, Tensor]]] = []
        for num_features in dict.fromkeys(size for size in self.tree_head.feature_widths if size):
            trees = self._train_trees(num_features)
            self.tree_head.trees.load_buffers(trees)
            tree_output = self.tree_head.trees(self.val_x)
            losses = [self._blended_loss(tree_output, weights) for weights in blends]
            candidates.append((min(losses), losses, trees))
        _, losses, trees = min(candidates, key=lambda candidate: candidate[0])
        best = int(np.argmin(losses))
        self.tree_head.trees.load_buffers(trees)
        self.tree_head.blend_weights.copy_(blends[best])
        return losses[0], losses[-1], TREE_WEIGHTS[best]

    def _blend_weights(self) -> Float[Tensor, "S 3"]:
        """Return the weights of the linear head, of the trees, and of the linear head alone."""
        scale = 1.0
        if isinstance(self.modality, Category):
            _, calibration = calibrated_loss(
                self.target, self.modality, self.linear_logits, self.val_y
            )
            scale = float(calibration.scale)
        return torch.tensor([[(1 - weight) / scale, weight, 1 / scale] for weight in TREE_WEIGHTS])

    def _blended_loss(self, tree_output: Tensor, weights: Float[Tensor, "3"]) -> float:
        logits = self.tree_head.blend(self.linear_logits, tree_output, weights, self.applicable)
        return calibrated_loss(self.target, self.modality, logits, self.val_y)[0]

    def _train_trees(self, num_features: int) -> dict[str, Tensor]:
        """Fit trees on the first features, and return them as buffers of `Trees`."""
        import lightgbm

        x, val_x = self.x[:, :num_features].numpy(), self.val_x[:, :num_features].numpy()
        train = lightgbm.Dataset(x, self.y.numpy())
        booster = lightgbm.train(
            {
                **LIGHTGBM_PARAMS,
                **_lightgbm_objective(self.modality),
                "num_threads": torch.get_num_threads(),
            },
            train,
            MAX_BOOSTING_ROUNDS,
            [lightgbm.Dataset(val_x, self.val_y.numpy(), reference=train)],
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
