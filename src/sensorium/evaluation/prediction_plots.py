"""Charts of a predictor: reliability, intervals, risk and coverage, confusion, missing values.

N rows   K outputs of a head
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
from sensorium.models.calibration import CALIBRATION_LEVELS, Calibration, predicted_class

MAX_CONFUSION_CLASSES = 30  # no confusion matrix for more
MAX_CURVE_POINTS = 400  # points of a risk-coverage curve, about
IDEAL_LINE = LineSeries("ideal", [(0, 0), (1, 1)], dashed=True)


def prediction_charts(
    name: str,
    modality: Modality,
    calibration: Calibration,
    logits: Float[Tensor, "N K"],
    y: Tensor,
    points: Sequence[MissingValuePoint],
    main_metric: str,
) -> dict[str, str]:
    """Return {chart: SVG} of one target.

    Args:
        name: the target column.
        modality: the settings of the target.
        calibration: the fitted calibration of its head.
        logits: outputs of its head.
        y: the true values.
        points: scores with values hidden.
        main_metric: the metric of `points`.
    """
    charts = {}
    if len(y) and isinstance(modality, Numeric):
        charts["intervals"] = _interval_chart(name, modality, calibration, logits, y)
    elif len(y):
        charts["reliability"] = _reliability_chart(name, modality, calibration, logits, y)
    if len(y) and isinstance(modality, Category):
        probabilities = calibration.probabilities(modality, logits)
        charts["risk"] = _risk_coverage_chart(name, modality, probabilities, y)
        if len(modality.classes) <= MAX_CONFUSION_CLASSES:
            charts["confusion"] = _confusion_chart(name, modality, probabilities, y)
    if any(name in point.masked for point in points):
        charts["missing"] = _missing_values_chart(name, points, main_metric)
    return charts


def _missing_values_chart(name: str, points: Sequence[MissingValuePoint], metric: str) -> str:
    """Plot the metric by the fraction of values hidden."""
    masked = [(p.missing_fraction, p.masked[name]) for p in points if name in p.masked]
    imputed = [(p.missing_fraction, p.imputed[name]) for p in points if name in p.imputed]
    radii = [3.0] * len(points)
    return line_chart(
        [LineSeries("masked", masked, radii), LineSeries("imputed", imputed, radii)],
        f"{name}: missing values",
        "fraction of values hidden",
        metric,
        x_range=(0, 1),
    )


def _reliability_chart(
    name: str, modality: Modality, calibration: Calibration, logits: Tensor, y: Tensor
) -> str:
    """Plot the observed frequency by predicted probability, before and after calibration."""
    series = []
    for label, fitted in (("uncalibrated", Calibration()), ("calibrated", calibration)):
        probabilities = fitted.probabilities(modality, logits)
        if isinstance(modality, Multilabel):
            confidence = probabilities.flatten()
            correct = y[:, : probabilities.shape[1]].flatten() > 0.5
        else:
            confidence, correct = top_class(probabilities, y)
        bins = compute_reliability(confidence, correct)
        points = list(zip(bins.confidence.tolist(), bins.accuracy.tolist(), strict=True))
        series.append(LineSeries(label, points, (2 + 8 * bins.fraction.sqrt()).tolist()))
    return line_chart(
        [*series, IDEAL_LINE],
        f"{name}: reliability",
        "predicted probability",
        "observed frequency",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _interval_chart(
    name: str, modality: Numeric, calibration: Calibration, logits: Tensor, y: Tensor
) -> str:
    """Plot the observed coverage of the intervals for each nominal coverage."""
    normal = [NormalDist().inv_cdf((1 + level) / 2) for level in CALIBRATION_LEVELS]
    conformal = [calibration.conformal_quantile(level) for level in CALIBRATION_LEVELS]
    true = modality.decode_all(y)
    series = []
    for label, fitted, quantiles in (
        ("uncalibrated", Calibration(), normal),
        ("conformal", calibration, conformal),
    ):
        points: list[tuple[float, float]] = []
        for level, quantile in zip(CALIBRATION_LEVELS, quantiles, strict=True):
            low, high = fitted.interval(modality, logits, quantile).unbind(1)
            points.append((level, ((low <= true) & (true <= high)).double().mean().item()))
        series.append(LineSeries(label, points))
    return line_chart(
        [*series, IDEAL_LINE],
        f"{name}: intervals",
        "nominal coverage",
        "observed coverage",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _risk_coverage_chart(name: str, modality: Category, probabilities: Tensor, y: Tensor) -> str:
    """Plot the error rate of the most confident rows by the fraction of rows answered."""
    predicted = predicted_class(modality, probabilities)
    confidence = probabilities.gather(1, predicted[:, None])[:, 0]
    curve = risk_coverage_curve(confidence, (predicted != y).double())
    points = list(zip(curve.coverage.tolist(), curve.risk.tolist(), strict=True))
    return line_chart(
        [LineSeries("", points[:: max(1, len(points) // MAX_CURVE_POINTS)])],
        f"{name}: risk and coverage",
        "coverage (rows answered, most confident first)",
        "risk (error rate of these rows)",
        x_range=(0, 1),
    )


def _confusion_chart(name: str, modality: Category, probabilities: Tensor, y: Tensor) -> str:
    """Plot counts of predicted by true class; y = the number of classes is an unseen class."""
    n = len(modality.classes)
    counts = torch.zeros(n + 1, n, dtype=torch.long).index_put(
        (y, predicted_class(modality, probabilities)), torch.tensor(1), accumulate=True
    )
    rows = [*modality.classes]
    if counts[n].any():
        rows.append("(unseen)")
    return heatmap(
        counts[: len(rows)].tolist(),
        rows,
        modality.classes,
        f"{name}: confusion",
        "predicted",
        "true",
    )
