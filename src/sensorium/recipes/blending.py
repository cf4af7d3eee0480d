"""Fit the linear model and the boosted trees beside a trained network, and choose their weights.

N rows   C columns   D width of the fused vector   K outputs   P parts of the blend
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError, require_type
from sensorium.evaluation.spec import picklable
from sensorium.evaluation.validate_prediction import (
    calibrated_loss,
    target_metric,
)
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Numeric
from sensorium.models.blended_heads import (
    BOOSTING,
    LINEAR,
    NETWORK,
    PARTS,
    BlendedHeads,
    LinearModel,
    TextComponents,
    expand_linear,
    expand_trees,
    supports_trees,
)
from sensorium.models.boosted_trees import Trees
from sensorium.models.lora import FrozenEncoder
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.objectives.supervised import ClassificationTarget, SupervisedLoss
from sensorium.recipes.blend_features import PartInputs, fit_features, fit_ngrams
from sensorium.recipes.boosting import MAX_CLASSES, lightgbm_is_installed, train_trees
from sensorium.recipes.linear import LinearTrainer, squared_error
from sensorium.recipes.recipe import InvalidKeywordError, OnEnd

HEAD_PARTS = {  # which parts may have a weight
    "auto": (NETWORK, LINEAR, BOOSTING),
    "network": (NETWORK,),
    "linear": (NETWORK, LINEAR),
    "boosting": (NETWORK, BOOSTING),
}
NUM_STANDARD_ERRORS = 1.0  # of the loss, within which combinations count as equal
WEIGHT_STEPS = {1: 1, 2: 20, 3: 10}  # parts -> steps between 0 and 1 that are tried
MAX_ROWS = 200_000  # training rows that the parts are fitted on
MAX_FEATURES = 1 << 26  # their dense features; of wider rows, fewer are used
MIN_MISSING_FRACTION = 0.02  # of training rows: trees then accept the column's missing values
MAX_CLASSES_SEVERAL = 4  # with more classes trees are fitted on one set of features
HIDDEN_DRAWS = 2  # times that values of the validation rows are hidden at random


def add_blended_heads(
    model: MultimodalPredictor,
    inputs: Mapping[str, Modality],
    targets: Mapping[str, Modality],
    num_outputs: Sequence[int],
    head: str,
) -> None:
    """Add unfitted parts beside the network.

    Args:
        model: the model.
        inputs: settings of the input columns.
        targets: settings of the target columns.
        num_outputs: outputs of each target's head.
        head: one of HEAD_PARTS; trees read the fused vector with "boosting".

    Raises:
        InvalidKeywordError: "boosting" for a target that is neither a category nor numeric.
    """
    for name, target in targets.items():
        if head == "boosting" and not supports_trees(target):
            raise InvalidKeywordError(
                "--head boosting predicts category and numeric targets, but the target "
                f"{name!r} is {target.kind}. Use --head linear."
            )
    frozen = {  # columns whose values may be replaced by cached embeddings
        name
        for name, encoder in zip(model.encoder_columns, model.encoders, strict=True)
        if any(isinstance(module, FrozenEncoder) for module in encoder.modules())
    }
    readable = {name: inputs[name] for name in model.columns if name not in frozen}
    width = model.norm.normalized_shape[0] if head == "boosting" else 0
    model.blended = BlendedHeads(model.columns, readable, targets, num_outputs, width)


@picklable
def fit_parts(
    objective: SupervisedLoss, targets: Mapping[str, Modality], head: str
) -> OnEnd[MultimodalPredictor]:
    """Return a hook that fits the parts of a trained model and chooses their weights.

    Both are done on the training rows and the validation rows; without validation rows the
    network stays alone. Weights for rows that lack more than training rows did are chosen on
    validation rows with values hidden at random. The hook returns, for each target and part, the
    calibrated validation loss, the metric and the weight.

    Args:
        objective: the training loss, with a loss of each target.
        targets: settings of the target columns.
        head: one of HEAD_PARTS: the parts that may have a weight.
    """

    @torch.no_grad()
    def fit(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        validation: np.ndarray,
    ) -> dict[str, float]:
        blended = require_type(model.blended, BlendedHeads)
        rows = sample_evenly(rows, min(MAX_ROWS, MAX_FEATURES // max(1, blended.wide.num_dense)))
        _reset(blended)
        fit_ngrams(blended, prepared, rows)
        fit_features(model, prepared, rows)
        train = PartInputs.compute(model, prepared, rows)
        val = PartInputs.compute(model, prepared, validation)
        hidden = [PartInputs.compute(model, prepared, validation, i) for i in range(HIDDEN_DRAWS)]
        blended.missing_ok.copy_((~train.present).float().mean(0) >= MIN_MISSING_FRACTION)
        metrics: dict[str, float] = {}
        for i, name in enumerate(targets):
            fitted = _TargetFit(blended, i, objective, train, val).run(hidden, HEAD_PARTS[head])
            prefix = "" if len(targets) == 1 else f"{name} "
            metrics |= {f"{prefix}{metric}": value for metric, value in fitted.items()}
        return metrics

    return fit


def _reset(blended: BlendedHeads) -> None:
    """Leave the network alone, as before the first fit."""
    alone = torch.eye(len(PARTS))[NETWORK]
    blended.weights.copy_(alone.expand_as(blended.weights))
    for module in blended.tree_features.text_components:
        require_type(module, TextComponents).load_buffers(TextComponents().state_dict())
    for module in blended.linear:
        model = require_type(module, LinearModel)
        model.load_buffers(LinearModel(len(model.bias)).state_dict())
    for module in blended.trees:
        trees = require_type(module, Trees)
        trees.load_buffers(Trees(trees.num_features, trees.num_outputs).state_dict())


class _TargetFit:
    """Fits the parts of one target, and chooses their weights on validation rows."""

    def __init__(
        self,
        blended: BlendedHeads,
        number: int,
        objective: SupervisedLoss,
        train: PartInputs,
        val: PartInputs,
    ):
        self.blended = blended
        self.number = number
        self.name, self.modality = [*blended.targets.items()][number]
        self.objective = objective
        self.target = objective.targets[self.name]
        self.train = train
        self.val = val
        self.rows = objective.has_target(self.name, train.targets)
        self.val_rows = objective.has_target(self.name, val.targets)
        self.y = train.targets[self.name][self.rows]
        self.val_y = val.targets[self.name][self.val_rows]

    def run(self, hidden: Sequence[PartInputs], allowed: Sequence[int]) -> dict[str, float]:
        """Fit the parts and set their weights; return loss, metric and weight of each part."""
        if not len(self.val_y):
            self._check_is_optional(allowed)
            return {}
        network = self.val.logits[self.name][self.val_rows]
        zeros = torch.zeros_like(network)
        outputs = [network, self._fit_linear(network), self._fit_trees(network)]
        fitted = self.blended.is_fitted(self.number)
        scales = torch.ones(len(PARTS))
        metrics: dict[str, float] = {}
        for i, part in enumerate(PARTS):
            if not fitted[i]:
                outputs[i] = zeros
                continue
            loss, calibration = calibrated_loss(self.target, self.modality, outputs[i], self.val_y)
            if not isinstance(self.modality, Numeric):
                scales[i] = calibration.scale
            metric, value = target_metric(self.target, outputs[i], self.val_y)
            metrics |= {f"{part} val_loss": loss, f"{part} {metric}": value}
        usable = [i for i in allowed if fitted[i]]
        weights = self._choose_weights(outputs, scales, usable, hidden)
        self.blended.weights[self.number] = weights / scales
        self.blended.scales[self.number] = scales
        shares = {f"{PARTS[i]} weight": weights[0, i].item() for i in usable}
        return metrics | (shares if len(usable) > 1 else {})

    def _check_is_optional(self, allowed: Sequence[int]) -> None:
        """Raise SensoriumError where a part was asked for that cannot be chosen."""
        if len(allowed) == len(PARTS) or [*allowed] == [NETWORK]:
            return
        raise SensoriumError(
            f"No validation row has a value of the target {self.name!r}, which the weight of "
            f"--head {PARTS[allowed[-1]]} is chosen by. Mark such rows as val (--split), or use "
            "--head network."
        )

    def _fit_linear(self, network: Tensor) -> Tensor:
        """Fit the linear model, and return its outputs for the validation rows."""
        model = require_type(self.blended.linear[self.number], LinearModel)
        num_features = self.blended.wide.num_features
        val_x = self.val.wide.take(self.val_rows)
        if not num_features or not len(self.y):
            return network

        def outputs() -> Tensor:
            return expand_linear(model(val_x), network)

        def val_loss(_: LinearModel) -> float:
            return self._loss(outputs())

        is_number = isinstance(self.modality, Numeric)
        LinearTrainer(
            self.train.wide.take(self.rows),
            self.y,
            squared_error if is_number else self.target.loss,
            self.target.prior()[: len(model.bias)],
            num_features,
        ).select_best(model, val_loss)
        return outputs()

    def _fit_trees(self, network: Tensor) -> Tensor:
        """Fit the trees on each set of features, and return outputs of the best."""
        trees = require_type(self.blended.trees[self.number], Trees)
        applies = supports_trees(self.modality) and trees.num_outputs <= MAX_CLASSES
        if not (applies and lightgbm_is_installed() and len(self.y)):
            return network
        val_x = self.val.trees[self.val_rows]
        class_weight = None
        if isinstance(self.target, ClassificationTarget):
            class_weight = self.target.weight
        candidates: list[tuple[float, dict[str, Tensor], Tensor]] = []
        for width in self._tree_widths():
            buffers = train_trees(
                self.train.trees[self.rows, :width],
                self.y,
                val_x[:, :width],
                self.val_y,
                self.modality,
                class_weight,
            )
            trees.load_buffers(buffers)
            outputs = expand_trees(self.modality, trees(val_x).float(), network)
            candidates.append((self._loss(outputs), buffers, outputs))
        if not candidates:
            return network
        _, buffers, outputs = min(candidates, key=lambda candidate: candidate[0])
        trees.load_buffers(buffers)
        return outputs

    def _tree_widths(self) -> list[int]:
        """Return how many of the first features are tried; all at once of many classes."""
        features = self.blended.tree_features
        num_outputs = require_type(self.blended.trees[self.number], Trees).num_outputs
        widths = features.widths
        if num_outputs > MAX_CLASSES_SEVERAL and not features.uses_fused:
            widths = widths[-1:]
        return [*dict.fromkeys(width for width in widths if width)]

    def _loss(self, outputs: Tensor) -> float:
        """Return the loss by which parts are chosen: calibrated, or the squared error."""
        return self._row_losses(outputs).mean().item()

    def _row_losses(self, outputs: Tensor) -> Float[Tensor, "N"]:
        """Return this loss of each validation row."""
        if isinstance(self.modality, Numeric):
            return squared_error(outputs, self.val_y)
        _, calibration = calibrated_loss(self.target, self.modality, outputs, self.val_y)
        return self.target.loss(calibration.scale_logits(self.modality, outputs), self.val_y)

    def _choose_weights(
        self,
        outputs: Sequence[Tensor],
        scales: Float[Tensor, "P"],
        usable: Sequence[int],
        hidden: Sequence[PartInputs],
    ) -> Float[Tensor, "2 P"]:
        """Return the weights of the parts in rows as they are, and in rows that lack more."""
        blended = self.blended
        applicable = blended.applicable(self.val.present[self.val_rows])
        without_trees = [i for i in usable if i != BOOSTING]
        other = self._weights_if_hidden(scales, without_trees, hidden)

        def losses(weights: Tensor) -> Tensor:
            both = torch.stack([weights, other]) / scales
            return self._row_losses(blended.blend(self.number, outputs, both, applicable))

        return torch.stack([choose_weights(usable, losses, NUM_STANDARD_ERRORS), other])

    def _weights_if_hidden(
        self, scales: Float[Tensor, "P"], usable: Sequence[int], hidden: Sequence[PartInputs]
    ) -> Float[Tensor, "P"]:
        """Return the weights in rows that lack more than training rows did."""
        logits, linear, targets = [], [], []
        model = require_type(self.blended.linear[self.number], LinearModel)
        for draw in hidden:
            rows = self.objective.has_target(self.name, draw.targets)
            rows = rows & ~self.blended.applicable(draw.present)
            network = draw.logits[self.name][rows]
            logits.append(network)
            linear.append(expand_linear(model(draw.wide.take(rows)), network))
            targets.append(draw.targets[self.name][rows])
        y = torch.cat(targets)
        outputs = [torch.cat(logits), torch.cat(linear), torch.zeros_like(torch.cat(logits))]
        none = torch.zeros(len(y), dtype=torch.bool)

        def losses(weights: Tensor) -> Tensor:
            both = (weights / scales).expand(2, -1)
            blend = self.blended.blend(self.number, outputs, both, none)
            if isinstance(self.modality, Numeric):
                return squared_error(blend, y)
            return self.target.loss(blend, y)

        return choose_weights(usable if len(y) else [NETWORK], losses)


def choose_weights(
    usable: Sequence[int],
    row_losses: Callable[[Float[Tensor, "P"]], Float[Tensor, "N"]],
    standard_errors: float = 0.0,
) -> Float[Tensor, "P"]:
    """Return the convex combination of the usable parts with the lowest mean loss.

    The validation rows have also chosen the network's weights and the number of trees, which makes
    them look better than they are. Of combinations that are not clearly worse, the most even one is
    therefore taken.

    Args:
        usable: indices of the parts that may have a weight.
        row_losses: the loss of each row for a combination.
        standard_errors: how many standard errors of the paired difference are not clear; 0: the
            best is taken.
    """
    steps = WEIGHT_STEPS[len(usable)]
    candidates: list[tuple[Tensor, Tensor]] = []
    for shares in product(range(steps + 1), repeat=len(usable) - 1):
        if sum(shares) <= steps:
            weights = torch.zeros(len(PARTS))
            weights[[*usable]] = torch.tensor([*shares, steps - sum(shares)]) / steps
            candidates.append((row_losses(weights), weights))
    best, weights = min(candidates, key=lambda candidate: float(candidate[0].mean()))
    if not standard_errors or len(best) < 2:
        return weights
    tied = []
    for losses, weights in candidates:
        difference = losses - best
        standard_error = difference.std() / len(best) ** 0.5
        if difference.mean() <= standard_errors * standard_error:
            tied.append((float(weights.square().sum()), float(losses.mean()), weights))
    return min(tied, key=lambda candidate: candidate[:2])[2]
