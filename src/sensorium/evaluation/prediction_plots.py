"""Pictures of how well a target is predicted: reliability, confusion, risk against coverage, figures against missing.

N rows   K numbers that a head says
"""

from collections.abc import Sequence
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.evaluation.chart import LineSeries, heatmap, line_chart
from sensorium.evaluation.missing_values import MissingValuePoint
from sensorium.metrics.calibration import compute_reliability, risk_coverage_curve, top_class
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric
from sensorium.models.calibration import Calibration, predicted_class

MAX_CONFUSION_CLASSES = 30  # classes of a confusion matrix
IDEAL_LINE = LineSeries("as it should be", [(0, 0), (1, 1)], dashed=True)


def prediction_charts(
    name: str,
    modality: Modality,
    calibration: Calibration,
    logits: Float[Tensor, "N K"],
    y: Tensor,
    points: Sequence[MissingValuePoint],
    main_metric: str,
) -> dict[str, str]:
    """{what: SVG} of one target. main: the figure that the points are of."""
    found = {}
    if len(y) and isinstance(modality, Numeric):
        found["intervals"] = _interval_chart(name, calibration, logits, y)
    elif len(y):
        found["reliability"] = _reliability_chart(name, modality, calibration, logits, y)
    if len(y) and isinstance(modality, Category):
        p = calibration.probabilities(modality, logits)
        found["risk"] = _risk_coverage_chart(name, modality, p, y)
        if len(modality.classes) <= MAX_CONFUSION_CLASSES:
            found["confusion"] = _confusion_chart(name, modality, p, y)
    if any(name in p.masked for p in points):
        found["missing"] = line_chart(
            [
                LineSeries(
                    how,
                    [
                        (p.missing_fraction, scores[name])
                        for p in points
                        if name in (scores := getattr(p, how))
                    ],
                    [3.0] * len(points),
                )
                for how in ("masked", "imputed")
            ],
            f"{name}: with values missing",
            "share of values hidden",
            main_metric,
            x_range=(0, 1),
        )
    return found


def _reliability_chart(
    name: str, modality: Modality, calibration: Calibration, logits: Tensor, y: Tensor
) -> str:
    drawn = []
    for called, read in (("uncalibrated", Calibration()), ("calibrated", calibration)):
        p = read.probabilities(modality, logits)
        told = (
            (p.flatten(), y[:, : p.shape[1]].flatten() > 0.5)
            if isinstance(modality, Multilabel)
            else top_class(p, y)
        )
        found = compute_reliability(*told)
        points = list(zip(found.confidence.tolist(), found.accuracy.tolist(), strict=True))
        drawn.append(LineSeries(called, points, (2 + 8 * found.fraction.sqrt()).tolist()))
    return line_chart(
        [*drawn, IDEAL_LINE],
        f"{name}: reliability",
        "probability that was said",
        "how often it was so",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _interval_chart(name: str, calibration: Calibration, logits: Tensor, y: Tensor) -> str:
    """How often intervals hold the truth, for each level."""
    normal = [NormalDist().inv_cdf((1 + level) / 2) for level in calibration.COVERAGE_LEVELS]
    fitted = [calibration.conformal_quantile(level) for level in calibration.COVERAGE_LEVELS]
    drawn = []
    for called, read, bounds in (
        ("uncalibrated", Calibration(), normal),
        ("conformal", calibration, fitted),
    ):
        found = read.distribution(logits)
        strange = (y - found.mean).abs() / found.std
        held = (strange[:, None] <= torch.tensor(bounds)).double().mean(0).tolist()
        drawn.append(LineSeries(called, list(zip(calibration.COVERAGE_LEVELS, held, strict=True))))
    return line_chart(
        [*drawn, IDEAL_LINE],
        f"{name}: intervals",
        "level",
        "share of true values within",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _risk_coverage_chart(name: str, modality: Category, probabilities: Tensor, y: Tensor) -> str:
    answer = predicted_class(modality, probabilities)
    found = risk_coverage_curve(
        probabilities.gather(1, answer[:, None])[:, 0], (answer != y).double()
    )
    points = list(zip(found.coverage.tolist(), found.risk.tolist(), strict=True))
    return line_chart(
        [LineSeries("", points[:: max(1, len(points) // 400)])],
        f"{name}: risk against coverage",
        "share of rows answered, the surest first",
        "share of errors among them",
        x_range=(0, 1),
    )


def _confusion_chart(name: str, modality: Category, probabilities: Tensor, y: Tensor) -> str:
    n = len(modality.classes)
    counts = torch.zeros(n + 1, n, dtype=torch.long).index_put(
        (y, predicted_class(modality, probabilities)), torch.tensor(1), accumulate=True
    )
    rows = [*modality.classes, *(["(never seen)"] if counts[n].any() else [])]
    return heatmap(
        counts[: len(rows)].tolist(),
        rows,
        modality.classes,
        f"{name}: confusion",
        "predicted",
        "true",
    )
