"""Tests of intervals within what is possible: natural bounds, and a log scale where it is better.

The synthetic targets are known exactly, so that the best possible prediction is given to the
calibration: what is tested is the interval alone.
"""

import copy
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.predict import decode_prediction
from sensorium.io.tensors import load_weights, state_tensors, tensor_writer
from sensorium.modalities.tabular import Numeric, natural_bounds
from sensorium.models import calibration as calibration_module
from sensorium.models.calibration import Calibration
from sensorium.recipes.fusion import fusion

NUM_TRAIN, NUM_VAL = 1000, 500
Intervals = np.ndarray


def standardize(modality: Numeric, values: Tensor) -> Tensor:
    return ((values - modality.mean) / modality.std).float()


def make_outputs(modality: Numeric, mean: Tensor, std: Tensor) -> Tensor:
    """Return the output of a head that predicts this mean and standard deviation."""
    return torch.stack([standardize(modality, mean), 2 * (std / modality.std).log().float()], 1)


def fit_and_predict(
    y: Tensor, mean: Tensor, std: Tensor, level: float = 0.9
) -> tuple[Calibration, Tensor, np.ndarray]:
    """Return the calibration of the validation rows, and true values and intervals of the rest."""
    modality = Numeric().fit(y[:NUM_TRAIN].tolist())
    outputs = make_outputs(modality, mean, std)
    val, test = slice(NUM_TRAIN, NUM_TRAIN + NUM_VAL), slice(NUM_TRAIN + NUM_VAL, None)
    calibration = Calibration()
    calibration.fit(modality, outputs[val], standardize(modality, y[val]))
    interval = decode_prediction(modality, outputs[test], calibration, level).interval
    assert interval is not None
    return calibration, y[test], interval


def coverage(y: Tensor, interval: np.ndarray) -> float:
    true = y.numpy()
    return float(((interval[:, 0] <= true + 1e-6) & (true <= interval[:, 1] + 1e-6)).mean())


def skewed_targets() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return (y, mean, standard deviation) of several positive targets."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 5000, generator=generator)
    factor = (1 + 0.8 * noise[0]).exp()
    lognormal = factor * (0.5 * noise[1]).exp()
    uniform = torch.rand(5000, generator=generator)
    exponential = factor * -(1 - uniform).log() * (uniform > 0.2)
    return {
        "log-normal, its spread known": (lognormal, factor * math.exp(0.125), factor * 0.6),
        "log-normal, its spread unknown": (lognormal, factor * 1.13, torch.full((5000,), 3.0)),
        "zeros and a long tail": (exponential, factor * 0.8, factor),
        "counts": (torch.poisson(factor, generator=generator), factor, factor.sqrt()),
        "fractions": (
            torch.sigmoid(2 * noise[0] + noise[1]),
            torch.sigmoid(1.8 * noise[0]),
            torch.full((5000,), 0.2),
        ),
    }


# Natural bounds


@pytest.mark.parametrize(
    ("values", "bounds"),
    [
        (np.linspace(3, 900, 50), (0, None)),
        (np.linspace(0, 17.3, 50), (0, None)),
        (np.linspace(-5, 17.3, 50), (None, None)),
        (np.linspace(-90, -2, 50), (None, 0)),
        (np.linspace(0.02, 0.97, 50), (0, 1)),
        (np.linspace(-0.02, 0.97, 50), (None, None)),
        (np.linspace(2, 100, 50), (0, 100)),
        (np.linspace(2, 101, 50), (0, None)),
        (np.repeat([1.0, 2, 3, 4, 5], 10), (1, 5)),
        (np.append(np.linspace(-30, 40, 50), [50.0] * 5), (None, 50)),
        (np.full(30, 7.0), (0, None)),
        (np.full(30, -7.0), (None, 0)),
        (np.array([0.3, 0.4]), (0, None)),
    ],
)
def test_bounds_are_those_that_the_values_show(
    values: np.ndarray, bounds: tuple[float | None, float | None]
) -> None:
    assert natural_bounds(values) == bounds
    fitted = Numeric().fit(values.tolist())
    assert (fitted.lower, fitted.upper) == bounds
    assert Numeric.from_json(fitted.to_json()) == fitted


def test_bounds_that_are_set_stay() -> None:
    fitted = Numeric(lower=-10, upper=1000).fit([3.0, 5.0, 4.0])
    assert (fitted.lower, fitted.upper) == (-10, 1000)


def test_bounds_that_are_set_may_lie_beyond_the_data() -> None:
    assert Numeric(upper=-5).fit([3.0, 5.0, 4.0]).lower is None
    with pytest.raises(SensoriumError, match="lower bound 5 of a numeric column is not below"):
        Numeric(lower=5, upper=1)


def test_bounds_are_set_by_the_type_of_a_column(tmp_path: Path) -> None:
    path = write_sizes(tmp_path / "sizes.csv", 60)
    data = Dataset.open(path, types={"size": "numeric:lower=-2:upper=900.5"})
    fitted = data.schema.fit(data, data.splits["train"], ["size"])["size"]
    assert isinstance(fitted, Numeric)
    assert (fitted.lower, fitted.upper) == (-2, 900.5)
    for setting in ("lower=abc", "lower=true", "lower=[1]", "bound=3"):
        with pytest.raises(SensoriumError, match=f"'{re.escape(setting)}' is not a setting"):
            Dataset.open(path, types={"size": f"numeric:{setting}"})


def test_nothing_is_predicted_beyond_the_bounds() -> None:
    modality = Numeric(mean=5, std=2, lower=0, upper=10)
    outputs = torch.tensor([[-9.0, 0], [0, 0], [9, 0], [2.4, 0]])
    calibration = Calibration()
    calibration.conformal_quantiles.fill_(1.5)
    prediction = decode_prediction(modality, outputs, calibration)
    assert prediction.value == pytest.approx([0, 5, 10, 9.8])
    assert prediction.interval is not None
    assert prediction.interval == pytest.approx(np.array([[0, 3], [2, 8], [7, 10], [6.8, 10]]))
    assert prediction.interval[0, 0] == 0


def test_without_bounds_predictions_are_those_of_the_head() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(50, 2, generator=generator)
    calibration = Calibration()
    calibration.conformal_quantiles.fill_(1.7)
    prediction = decode_prediction(Numeric(mean=-3.0, std=2.0), outputs, calibration)
    assert prediction.interval is not None
    mean = outputs[:, 0].double() * 2 - 3
    half_width = 1.7 * (outputs[:, 1] / 2).exp().double() * 2
    assert prediction.value == mean.tolist()
    assert np.allclose(prediction.interval, torch.stack([mean - half_width, mean + half_width], 1))


def test_values_on_a_bound_are_covered_after_rounding() -> None:
    modality = Numeric(mean=3.3, std=1.7, lower=0.0, upper=5.0)
    standardized = modality.collate([np.array(0.0), np.array(5.0), np.array(2.5)])
    assert modality.decode_all(standardized)[:2].tolist() == [0.0, 5.0]
    assert modality.decode_all(standardized)[2].item() == pytest.approx(2.5)


# Coverage and width


@pytest.mark.parametrize("name", skewed_targets())
def test_skewed_targets_are_covered_within_their_bounds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = skewed_targets()[name]
    _, y, interval = fit_and_predict(*data)
    assert abs(coverage(y, interval) - 0.9) < 4 * math.sqrt(0.09 * (1 / len(y) + 1 / NUM_VAL))
    assert (interval[:, 0] >= 0).all()
    assert name != "fractions" or (interval[:, 1] <= 1).all()
    monkeypatch.setattr(calibration_module, "MAX_LOG_SCALE_SCORE", 0.0)
    monkeypatch.setattr(calibration_module, "_clamp_mean", lambda _, prediction: prediction)
    monkeypatch.setattr(Numeric, "clamp", lambda _, values: values)
    _, _, plain = fit_and_predict(*data)
    assert np.ptp(interval, 1).mean() <= 1.01 * np.ptp(plain, 1).mean()


def test_log_scale_is_used_where_it_is_better_only() -> None:
    used = {
        name: fit_and_predict(*data)[0].log_offset is not None
        for name, data in skewed_targets().items()
    }
    assert used["log-normal, its spread unknown"]
    assert not used["counts"]
    y, mean, std = skewed_targets()["log-normal, its spread unknown"]
    assert fit_and_predict(y - y.mean(), mean - y.mean(), std)[0].log_offset is None


@pytest.mark.parametrize("level", [0.02, 0.5, 0.99])
def test_interval_on_a_log_scale_holds_the_prediction(level: float) -> None:
    y, mean, std = skewed_targets()["log-normal, its spread unknown"]
    _, _, interval = fit_and_predict(y, mean, std, level)
    predicted = mean[NUM_TRAIN + NUM_VAL :].numpy()
    assert (interval[:, 0] <= predicted + 1e-4).all()
    assert (predicted - 1e-4 <= interval[:, 1]).all()


def test_interval_on_a_log_scale_matches_hand_computation() -> None:
    modality = Numeric(mean=10.0, std=5.0, lower=0.0)
    calibration = Calibration()
    calibration.log_offset = torch.tensor(0.2)  # 1 in the column's unit
    mean, std = 19.0, 10.0
    variance = math.log1p((std / (mean + 1)) ** 2)
    outputs = torch.tensor([[(mean - 10) / 5, 2 * math.log(std / 5)]])
    expected = [
        math.exp(math.log(mean + 1) - variance / 2 + side * math.sqrt(variance)) - 1
        for side in (-1.5, 1.5)
    ]
    assert calibration.interval(modality, outputs, 1.5)[0].tolist() == pytest.approx(expected)


# Storage


def test_log_scale_is_stored_and_runs_without_one_still_load(tmp_path: Path) -> None:
    linear, logarithmic = Calibration(), Calibration()
    logarithmic.log_offset = torch.tensor(0.25)
    assert "log_offset" not in state_tensors(linear)
    for name, source in (("linear", linear), ("log", logarithmic)):
        tensor_writer(state_tensors(source))(tmp_path / name)
    loaded = copy.deepcopy(linear)
    load_weights(loaded, tmp_path / "log")
    assert loaded.log_offset == 0.25
    load_weights(loaded, tmp_path / "linear")
    assert loaded.log_offset is None
    logarithmic.log_offset = torch.tensor(-1.0)
    tensor_writer(state_tensors(logarithmic))(tmp_path / "log")
    with pytest.raises(SensoriumError, match="not a number above 0"):
        load_weights(loaded, tmp_path / "log")


def write_sizes(path: Path, num_rows: int = 600) -> Path:
    """Write a table of skewed, positive sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=num_rows)
    sizes: Sequence[float] = np.exp(1 + x + 0.4 * rng.normal(size=num_rows)).round(3).tolist()
    lines = [f"{a:.3f},{b}" for a, b in zip(x.tolist(), sizes, strict=True)]
    path.write_text("x,size\n" + "\n".join(lines))
    return path


def test_trained_model_never_predicts_negative_sizes(tmp_path: Path) -> None:
    data = Dataset.open(write_sizes(tmp_path / "sizes.csv"))
    model = sn.train(fusion, data, target="size", epochs=3, out=tmp_path / "run", quiet=True)
    rows = data.splits["test"]
    report = sn.evaluate(model, data, splits=["test"]).metrics["test"]
    for trained in (model, sn.load(tmp_path / "run")):
        prediction = trained.predict(x=[-9.0, *data.raw("x", rows)], coverage=0.9)["size"]
        assert (prediction.interval >= 0).all()
        assert min(prediction.value) >= 0
        covered = coverage(torch.tensor(data.raw("size", rows)), prediction.interval[1:])
        assert covered == pytest.approx(report["coverage at 90%"], abs=1e-9)
        width = np.ptp(prediction.interval[1:], 1).mean()
        assert width == pytest.approx(report["width at 90%"], rel=1e-6)
