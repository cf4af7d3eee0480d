"""Tests of calibration: fitted on validation rows, and used for every prediction."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sensorium as sn
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation import validate_prediction
from sensorium.evaluation.validate_prediction import predict_rows
from sensorium.inference.predict import decode_prediction
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.calibration import CALIBRATION_LEVELS, Calibration, predicted_class
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.recipes.fusion import fusion
from sensorium.training.checkpoint import Model

CATEGORY = Category(classes=("a", "b", "c"))
ORDINAL = Ordinal(classes=("1", "2", "3", "4"))
MULTILABEL = Multilabel(tags=("x", "y"))
NUMERIC = Numeric(mean=10.0, std=2.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_unfitted_calibration_changes_and_bounds_nothing() -> None:
    outputs, plain = torch.randn(5, 3, generator=seeded()), Calibration()
    assert torch.equal(plain.probabilities(CATEGORY, outputs), outputs.softmax(1))
    assert torch.equal(plain.probabilities(MULTILABEL, outputs[:, :2]), outputs[:, :2].sigmoid())
    assert plain.conformal_quantile(0.5) == plain.selective_threshold(0.5) == math.inf
    assert decode_prediction(CATEGORY, outputs, plain).prediction_set == [["a", "b", "c"]] * 5


def test_ordinal_probabilities_sum_to_one_for_any_logits() -> None:
    outputs = torch.randn(50, 3, generator=seeded()) * 3  # not decreasing
    p = Calibration().probabilities(ORDINAL, outputs)
    assert p.shape == (50, 4)
    assert (p >= 0).all()
    assert torch.allclose(p.sum(1), torch.ones(50))
    assert torch.equal(predicted_class(ORDINAL, p), (outputs.cummin(1).values > 0).sum(1))


@pytest.mark.parametrize(("modality", "k"), [(CATEGORY, 3), (ORDINAL, 3), (MULTILABEL, 2)])
def test_overconfident_logits_are_scaled_down(modality: Category | Multilabel, k: int) -> None:
    calibrated = torch.randn(4000, k, generator=seeded()) * (2 if modality is not ORDINAL else 1)
    calibrated = calibrated.sort(1, descending=True).values if modality is ORDINAL else calibrated
    uniform = torch.rand(4000, k, generator=seeded(1))
    y = {
        "category": calibrated.softmax(1).multinomial(1, generator=seeded(1))[:, 0],
        "ordinal": (uniform[:, :1] < calibrated.sigmoid()).sum(1),
        "multilabel": (uniform < calibrated.sigmoid()).float(),
    }[modality.kind]
    calibration = Calibration()
    calibration.fit(modality, calibrated * 4, y)
    assert calibration.scale.item() == pytest.approx(4, rel=0.1)
    assert torch.allclose(
        calibration.probabilities(modality, calibrated * 4),
        Calibration().probabilities(modality, calibrated),
        atol=0.05,
    )


def test_small_standard_deviations_are_scaled_up_and_intervals_cover() -> None:
    outputs = torch.stack(
        [torch.randn(2000, generator=seeded()), torch.full((2000,), -2.0)], 1
    )  # a standard deviation of 0.37
    y = outputs[:, 0] + torch.randn(2000, generator=seeded(1))
    calibration = Calibration()
    calibration.fit(NUMERIC, outputs[:1000], y[:1000])
    assert calibration.distribution(outputs).std[0].item() == pytest.approx(1, rel=0.1)
    for level in (0.5, 0.9):
        decoded = decode_prediction(NUMERIC, outputs[1000:], calibration, level)
        assert decoded.interval is not None
        true = y[1000:].numpy() * 2 + 10
        covered = ((decoded.interval[:, 0] <= true) & (true <= decoded.interval[:, 1])).mean()
        assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) * 2 / 1000)


def test_few_rows_keep_the_scale_and_bound_low_levels_only() -> None:
    calibration, outputs = Calibration(), torch.randn(9, 3, generator=seeded()) * 9
    calibration.fit(CATEGORY, outputs, outputs.argmax(1))
    assert calibration.scale == 1
    assert math.isfinite(calibration.conformal_quantile(0.9))
    assert calibration.conformal_quantile(0.91) == math.inf
    calibration.fit(CATEGORY, outputs[:0], outputs.argmax(1)[:0])
    assert calibration.conformal_quantile(0.5) == calibration.selective_threshold(0.5) == math.inf


def test_unseen_classes_are_outside_of_prediction_sets() -> None:
    calibration, outputs = Calibration(), torch.randn(40, 3, generator=seeded())
    calibration.fit(CATEGORY, outputs, torch.full((40,), 3))
    assert calibration.conformal_quantile(0.5) == 1
    assert math.isfinite(calibration.scale)


def test_predictions_below_the_accuracy_threshold_are_none() -> None:
    outputs = torch.randn(4000, 3, generator=seeded()) * 2
    y = outputs.softmax(1).multinomial(1, generator=seeded(1))[:, 0]
    calibration = Calibration()
    calibration.fit(CATEGORY, outputs[:2000], y[:2000])
    decoded = decode_prediction(CATEGORY, outputs[2000:], calibration, min_accuracy=0.9).value
    true = [CATEGORY.classes[i] for i in y[2000:].tolist()]
    right = [a == b for a, b in zip(decoded, true, strict=True) if a is not None]
    assert 300 < len(right) < 1900
    assert np.mean(right) > 0.9 - 4 * math.sqrt(0.09 / len(right))
    assert None not in decode_prediction(CATEGORY, outputs, calibration).value


def test_levels_are_rounded_up_and_validated() -> None:
    calibration = Calibration()
    calibration.conformal_quantiles.copy_(torch.tensor(CALIBRATION_LEVELS))
    assert calibration.conformal_quantile(0.9) == pytest.approx(0.9)
    assert calibration.conformal_quantile(0.901) == pytest.approx(0.91)
    assert calibration.conformal_quantile(0.07) == pytest.approx(0.07)
    with pytest.raises(
        SensoriumError, match=r"1 is out of range\. Choose one from 0\.01 to 0\.99\."
    ):
        calibration.conformal_quantile(1.0)


# In a training trained_run


@pytest.fixture(scope="module")
def csv_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return two columns and noisy targets that depend on them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    noisy = x[:, 0] + rng.normal(size=600)
    lines = ["a,b,price,label,split"]
    for i in range(600):
        split = ("train", "val", "test")[i % 3]
        lines.append(
            f"{x[i, 0]:.4f},{x[i, 1]:.4f},{noisy[i]:.4f},{'high' if noisy[i] > 0 else 'low'},"
            f"{split}"
        )
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text("\n".join(lines))
    return Dataset.open(path, split="split")


@pytest.fixture(scope="module")
def trained_run(csv_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sn.train(
        fusion,
        csv_dataset,
        out=tmp_path_factory.mktemp("runs") / "run",
        target=("label", "price"),
        columns=("a", "b"),
        epochs=6,
        dim=16,
        quiet=True,
        precision="fp32",
        ema_decay=0.9,
    )


def test_saved_calibration_is_that_of_the_saved_weights(
    csv_dataset: Dataset, trained_run: Model
) -> None:
    saved = {
        name: value.clone()
        for name, value in trained_run.module.state_dict().items()
        if "calibrations" in name
    }
    assert all(
        not torch.equal(value, torch.ones(()))
        for name, value in saved.items()
        if name.endswith("scale")
    )
    assert trained_run.recipe.hooks.calibrate is not None
    assert trained_run.recipe.evaluation.validate is not None
    prepared = csv_dataset.prepare(trained_run.schema, trained_run.recipe.data.columns)
    result = trained_run.recipe.evaluation.validate(
        trained_run.module, prepared, csv_dataset.splits["val"]
    )
    for predictions in (None, result.predictions):
        with torch.inference_mode():
            trained_run.recipe.hooks.calibrate(
                trained_run.module, prepared, csv_dataset.splits["val"], predictions
            )
        for name, value in saved.items():
            assert torch.equal(trained_run.module.state_dict()[name], value), name


def test_calibration_reuses_the_predictions_of_validation(
    csv_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counting_predict_rows(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        targets: Sequence[str],
    ) -> Any:
        calls.append(len(rows))
        return predict_rows(model, prepared, rows, targets)

    monkeypatch.setattr(validate_prediction, "predict_rows", counting_predict_rows)
    sn.train(
        fusion,
        csv_dataset,
        out=tmp_path / "run",
        target="price",
        columns="a",
        epochs=3,
        dim=8,
        quiet=True,
        precision="fp32",
        early_stopping_patience=0,
    )
    # once for each evaluation, and once for the blend with the parts fitted at the end
    assert calls == [len(csv_dataset.splits["val"])] * 4


def test_intervals_and_sets_cover_unseen_rows(csv_dataset: Dataset, trained_run: Model) -> None:
    rows = csv_dataset.splits["test"]
    inputs: dict[str, Any] = {name: csv_dataset.raw(name, rows) for name in ("a", "b")}
    predictions = trained_run.predict(**inputs, coverage=0.8)
    slack = 4 * math.sqrt(0.8 * 0.2 * 2 / len(rows))
    price = np.array(csv_dataset.raw("price", rows))
    interval = predictions["price"].interval
    covered = (interval[:, 0] <= price) & (price <= interval[:, 1])
    assert abs(covered.mean() - 0.8) < slack
    labels, sets = csv_dataset.raw("label", rows), predictions["label"].prediction_set
    in_set = [label in classes for label, classes in zip(labels, sets, strict=True)]
    assert np.mean(in_set) > 0.8 - slack


def test_run_without_validation_rows_has_infinite_intervals(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y,split\n" + "".join(f"{i},{i % 7},train\n" for i in range(40)))
    data = Dataset.open(path, split="split")
    assert "val" in data.splits  # made of training rows
    trained_run = sn.train(
        fusion,
        data.take(data.splits["train"]),
        out=tmp_path / "run",
        target="y",
        epochs=1,
        dim=8,
        quiet=True,
        precision="fp32",
    )
    assert np.isinf(trained_run.predict(x=[1.0])["y"].interval).all()
