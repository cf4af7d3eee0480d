"""Pictures of how well a target is predicted: reliability, confusion, risk against coverage, figures against missing.

    N rows   K numbers that a head says
"""
from collections.abc import Sequence
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium import calibrate
from sensorium.calibrate import Calibration, answered
from sensorium.chart import Curve, curves, matrix
from sensorium.metrics.calibration import abstaining, reliability, top
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number
from sensorium.modalities.tags import Tags
from sensorium.recipes.judge_missing import Point

MOST = 30                                   # classes of a confusion matrix
STRAIGHT = Curve("as it should be", [(0, 0), (1, 1)], dashed=True)


def pages(name: str, of: Modality, calibration: Calibration, said: Float[Tensor, "N K"], y: Tensor,
          points: Sequence[Point], main: str) -> dict[str, str]:
    """{what: SVG} of one target. main: the figure that the points are of."""
    found = {}
    if len(y) and isinstance(of, Number):
        found["intervals"] = _intervals(name, calibration, said, y)
    elif len(y):
        found["reliability"] = _reliability(name, of, calibration, said, y)
    if len(y) and isinstance(of, Category):
        p = calibration.probabilities(of, said)
        found["risk"] = _risk(name, of, p, y)
        if len(of.classes) <= MOST:
            found["confusion"] = _confusion(name, of, p, y)
    if any(name in p.masked for p in points):
        found["missing"] = curves(
            [Curve(how, [(p.share, scores[name]) for p in points if name in (scores := getattr(p, how))],
                   [3.0] * len(points)) for how in ("masked", "filled")],
            f"{name}: with values missing", "share of values hidden", main, x=(0, 1))
    return found


def _reliability(name: str, of: Modality, calibration: Calibration, said: Tensor, y: Tensor) -> str:
    drawn = []
    for called, read in (("uncalibrated", Calibration()), ("calibrated", calibration)):
        p = read.probabilities(of, said)
        told = (p.flatten(), y[:, :p.shape[1]].flatten() > 0.5) if isinstance(of, Tags) else top(p, y)
        found = reliability(*told)
        points = list(zip(found.said.tolist(), found.found.tolist(), strict=True))
        drawn.append(Curve(called, points, (2 + 8 * found.share.sqrt()).tolist()))
    return curves([*drawn, STRAIGHT], f"{name}: reliability", "probability that was said", "how often it was so",
                  x=(0, 1), y=(0, 1))


def _intervals(name: str, calibration: Calibration, said: Tensor, y: Tensor) -> str:
    """How often intervals hold the truth, for each level."""
    normal = [NormalDist().inv_cdf((1 + level) / 2) for level in calibrate.LEVELS]
    fitted = [calibration.bound(level) for level in calibrate.LEVELS]
    drawn = []
    for called, read, bounds in (("uncalibrated", Calibration(), normal), ("conformal", calibration, fitted)):
        found = read.amount(said)
        strange = (y - found.mean).abs() / found.spread
        held = (strange[:, None] <= torch.tensor(bounds)).double().mean(0).tolist()
        drawn.append(Curve(called, list(zip(calibrate.LEVELS, held, strict=True))))
    return curves([*drawn, STRAIGHT], f"{name}: intervals", "level", "share of true values within", x=(0, 1), y=(0, 1))


def _risk(name: str, of: Category, p: Tensor, y: Tensor) -> str:
    answer = answered(of, p)
    found = abstaining(p.gather(1, answer[:, None])[:, 0], (answer != y).double())
    points = list(zip(found.coverage.tolist(), found.risk.tolist(), strict=True))
    return curves([Curve("", points[::max(1, len(points) // 400)])], f"{name}: risk against coverage",
                  "share of rows answered, the surest first", "share of errors among them", x=(0, 1))


def _confusion(name: str, of: Category, p: Tensor, y: Tensor) -> str:
    n = len(of.classes)
    counts = torch.zeros(n + 1, n, dtype=torch.long).index_put((y, answered(of, p)), torch.tensor(1), accumulate=True)
    rows = [*of.classes, *(["(never seen)"] if counts[n].any() else [])]
    return matrix(counts[:len(rows)].tolist(), rows, of.classes, f"{name}: confusion", "predicted", "true")
