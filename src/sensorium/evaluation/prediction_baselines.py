"""What simple models reach on the same rows: the prior, a linear model and boosted trees.

B batch   K outputs of a head
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.prediction_metrics import (
    BASELINE_METRICS,
    MAIN_METRICS,
    target_metrics,
)
from sensorium.evaluation.validate_prediction import BATCH_SIZE, concat_batches, predict_rows
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Numeric
from sensorium.models.blended_heads import PARTS
from sensorium.models.calibration import Calibration
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch

BASELINE_PARTS = PARTS[1:]  # the network is no baseline


@torch.inference_mode()
def baseline_metrics(
    model: MultimodalPredictor,
    prepared: PreparedDataset,
    rows: np.ndarray,
    targets: Mapping[str, Modality],
) -> dict[str, dict[str, float]]:
    """Return metrics of the fitted linear model and trees by themselves, by target.

    Both were fitted on the training rows of the model. Names are those of the model's own metrics
    after "linear baseline" and "boosting baseline".

    Args:
        model: the model.
        prepared: the dataset.
        rows: rows to evaluate.
        targets: settings of the target columns.
    """
    if model.blended is None or not len(rows):
        return {name: {} for name in targets}
    outputs: dict[str, list[dict[str, Tensor]]] = {part: [] for part in BASELINE_PARTS}
    labels: list[Batch] = []
    for batch_rows in iter_batches(rows, BATCH_SIZE):
        batch = prepared.batch(batch_rows)
        labels.append(batch.select([*targets]))
        by_target = model.predict_parts(batch)
        for i, part in enumerate(BASELINE_PARTS, 1):
            outputs[part].append({name: logits[i] for name, logits in by_target.items()})
    y = Batch.concat(labels)
    by_part = {part: concat_batches(batches) for part, batches in outputs.items()}
    result: dict[str, dict[str, float]] = {}
    for number, (name, modality) in enumerate(targets.items()):
        labelled = y.presence(name)
        result[name] = {}
        for i, part in enumerate(BASELINE_PARTS, 1):
            if model.blended.is_fitted(number)[i] and labelled.any():
                scale = float(model.blended.scales[number, i])
                logits = by_part[part][name][labelled]
                values = _main_metrics(modality, logits, y[name][labelled], scale)
                result[name] |= {f"{part} baseline {key}": value for key, value in values.items()}
    return result


def _main_metrics(
    modality: Modality, logits: Float[Tensor, "B K"], y: Tensor, scale: float
) -> dict[str, float]:
    """Return those metrics that are reported of baselines."""
    calibration = Calibration()
    if not isinstance(modality, Numeric):
        calibration.scale.fill_(scale)
    values = target_metrics(modality, calibration, logits, y, {}).values
    names = dict.fromkeys((*BASELINE_METRICS[modality.kind], MAIN_METRICS[modality.kind]))
    return {name: values[name] for name in names if name in values}


def main_baselines(
    model: MultimodalPredictor,
    prepared: PreparedDataset,
    rows: np.ndarray,
    targets: Mapping[str, Modality],
) -> dict[str, float]:
    """Return the main metric of the prior, the linear model and the trees on rows.

    Args:
        model: the model.
        prepared: the dataset.
        rows: rows to evaluate.
        targets: settings of the target columns; their names are a prefix where there are several.
    """
    result: dict[str, float] = {}
    baselines = baseline_metrics(model, prepared, rows, targets)
    prior = model.predict_targets({}, 1)
    for name, modality in targets.items():
        prefix = "" if len(targets) == 1 else f"{name} "
        main = MAIN_METRICS[modality.kind]
        _, labels = predict_rows(model, prepared, rows, [name])
        y = labels[name][labels.presence(name)]
        values = _main_metrics(modality, prior[name].expand(len(y), -1), y, 1.0)
        if main in values:
            result[f"{prefix}baseline {main}"] = values[main]
        for part in BASELINE_PARTS:
            metric = f"{part} baseline {main}"
            if metric in baselines[name]:
                result[prefix + metric] = baselines[name][metric]
    return result
