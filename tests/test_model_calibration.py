"""What a head says is read as held-out rows have shown it, and what is served is what was fitted."""

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
from sensorium.models.calibration import LEVELS, Calibration, predicted_class
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.recipes.fusion import fusion
from sensorium.training.checkpoint import Model

KINDS = Category(classes=("a", "b", "c"))
STARS = Ordinal(classes=("1", "2", "3", "4"))
TAGS = Multilabel(tags=("x", "y"))
PRICE = Numeric(mean=10.0, std=2.0)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_unfitted_it_reads_as_it_was_learned_and_bounds_nothing() -> None:
    said, plain = torch.randn(5, 3, generator=chance()), Calibration()
    assert torch.equal(plain.probabilities(KINDS, said), said.softmax(1))
    assert torch.equal(plain.probabilities(TAGS, said[:, :2]), said[:, :2].sigmoid())
    assert plain.conformal_quantile(0.5) == plain.selective_threshold(0.5) == math.inf
    assert decode_prediction(KINDS, said, plain).prediction_set == [["a", "b", "c"]] * 5


def test_ranks_have_probabilities_of_sum_one_whatever_the_cuts_say() -> None:
    said = torch.randn(50, 3, generator=chance()) * 3  # not decreasing
    p = Calibration().probabilities(STARS, said)
    assert p.shape == (50, 4)
    assert (p >= 0).all()
    assert torch.allclose(p.sum(1), torch.ones(50))
    assert torch.equal(predicted_class(STARS, p), (said.cummin(1).values > 0).sum(1))


@pytest.mark.parametrize("kind, k", [(KINDS, 3), (STARS, 3), (TAGS, 2)])
def test_logits_learned_too_large_are_brought_back(kind: Category | Multilabel, k: int) -> None:
    honest = torch.randn(4000, k, generator=chance()) * (2 if kind is not STARS else 1)
    honest = honest.sort(1, descending=True).values if kind is STARS else honest
    drawn = torch.rand(4000, k, generator=chance(1))
    y = {
        "category": honest.softmax(1).multinomial(1, generator=chance(1))[:, 0],
        "ordinal": (drawn[:, :1] < honest.sigmoid()).sum(1),
        "multilabel": (drawn < honest.sigmoid()).float(),
    }[kind.kind]
    found = Calibration()
    found.fit(kind, honest * 4, y)
    assert found.scale.item() == pytest.approx(4, rel=0.1)
    assert torch.allclose(
        found.probabilities(kind, honest * 4), Calibration().probabilities(kind, honest), atol=0.05
    )


def test_spreads_learned_too_small_are_brought_back_and_intervals_hold() -> None:
    said = torch.stack(
        [torch.randn(2000, generator=chance()), torch.full((2000,), -2.0)], 1
    )  # of spread 0.37
    y = said[:, 0] + torch.randn(2000, generator=chance(1))
    found = Calibration()
    found.fit(PRICE, said[:1000], y[:1000])
    assert found.distribution(said).std[0].item() == pytest.approx(1, rel=0.1)
    for level in (0.5, 0.9):
        served = decode_prediction(PRICE, said[1000:], found, level)
        assert served.interval is not None
        true = y[1000:].numpy() * 2 + 10
        held = ((served.interval[:, 0] <= true) & (true <= served.interval[:, 1])).mean()
        assert abs(held - level) < 4 * math.sqrt(level * (1 - level) * 2 / 1000)


def test_few_rows_leave_the_scale_alone_and_bound_what_they_can() -> None:
    found, said = Calibration(), torch.randn(9, 3, generator=chance()) * 9
    found.fit(KINDS, said, said.argmax(1))
    assert found.scale == 1
    assert math.isfinite(found.conformal_quantile(0.9))
    assert found.conformal_quantile(0.91) == math.inf
    found.fit(KINDS, said[:0], said.argmax(1)[:0])
    assert found.conformal_quantile(0.5) == found.selective_threshold(0.5) == math.inf


def test_classes_never_seen_are_outside_of_the_sets() -> None:
    found, said = Calibration(), torch.randn(40, 3, generator=chance())
    found.fit(KINDS, said, torch.full((40,), 3))
    assert found.conformal_quantile(0.5) == 1
    assert math.isfinite(found.scale)


def test_it_abstains_where_it_is_not_sure_enough() -> None:
    said = torch.randn(4000, 3, generator=chance()) * 2
    y = said.softmax(1).multinomial(1, generator=chance(1))[:, 0]
    found = Calibration()
    found.fit(KINDS, said[:2000], y[:2000])
    served = decode_prediction(KINDS, said[2000:], found, min_accuracy=0.9).value
    true = [KINDS.classes[i] for i in y[2000:].tolist()]
    right = [a == b for a, b in zip(served, true, strict=True) if a is not None]
    assert 300 < len(right) < 1900
    assert np.mean(right) > 0.9 - 4 * math.sqrt(0.09 / len(right))
    assert None not in decode_prediction(KINDS, said, found).value


def test_levels_are_rounded_up_and_checked() -> None:
    found = Calibration()
    found.conformal_quantiles.copy_(torch.tensor(LEVELS))
    assert found.conformal_quantile(0.9) == pytest.approx(0.9)
    assert found.conformal_quantile(0.901) == pytest.approx(0.91)
    assert found.conformal_quantile(0.07) == pytest.approx(0.07)
    with pytest.raises(SensoriumError, match="level of 1 is not between"):
        found.conformal_quantile(1.0)


# In a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Numbers and what depends on them, with noise, so that nothing can be said for sure."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    noisy = x[:, 0] + rng.normal(size=600)
    lines = ["a,b,price,label,split"]
    for i in range(600):
        split = ("train", "val", "test")[i % 3]
        lines.append(
            f"{x[i, 0]:.4f},{x[i, 1]:.4f},{noisy[i]:.4f},{'high' if noisy[i] > 0 else 'low'},{split}"
        )
    path = tmp_path_factory.mktemp("table") / "table.csv"
    path.write_text("\n".join(lines))
    return Dataset.open(path, split="split")


@pytest.fixture(scope="module")
def run(table: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sn.train(
        fusion,
        table,
        out=tmp_path_factory.mktemp("runs") / "run",
        target=("label", "price"),
        columns=("a", "b"),
        epochs=6,
        dim=16,
        quiet=True,
        precision="fp32",
        ema_decay=0.9,
    )


def test_what_is_served_is_what_was_fitted_on_the_weights_that_are_kept(
    table: Dataset, run: Model
) -> None:
    kept = {
        name: value.clone()
        for name, value in run.module.state_dict().items()
        if "calibrations" in name
    }
    assert all(
        not torch.equal(value, torch.ones(()))
        for name, value in kept.items()
        if name.endswith("scale")
    )
    assert run.recipe.hooks.calibrate is not None
    assert run.recipe.evaluation.validate is not None
    prepared = table.prepare(run.schema, run.recipe.data.columns)
    result = run.recipe.evaluation.validate(run.module, prepared, table.splits["val"])
    for predictions in (None, result.predictions):
        with torch.inference_mode():
            run.recipe.hooks.calibrate(run.module, prepared, table.splits["val"], predictions)
        for name, value in kept.items():
            assert torch.equal(run.module.state_dict()[name], value), name


def test_calibration_takes_what_validation_predicted(
    table: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        targets: Sequence[str],
    ) -> Any:
        calls.append(len(rows))
        return predict_rows(model, prepared, rows, targets)

    monkeypatch.setattr(validate_prediction, "said_of", counted)
    sn.train(
        fusion,
        table,
        out=tmp_path / "run",
        target="price",
        columns="a",
        epochs=3,
        dim=8,
        quiet=True,
        precision="fp32",
        early_stopping_patience=0,
    )
    assert calls == [len(table.splits["val"])] * 3  # once for each evaluation


def test_intervals_and_sets_hold_on_rows_never_seen(table: Dataset, run: Model) -> None:
    rows = table.splits["test"]
    given = {name: table.raw(name, rows) for name in ("a", "b")}
    said = run.predict(**given, level=0.8)
    slack = 4 * math.sqrt(0.8 * 0.2 * 2 / len(rows))
    price = np.array(table.raw("price", rows))
    held = (said["price"].interval[:, 0] <= price) & (price <= said["price"].interval[:, 1])
    assert abs(held.mean() - 0.8) < slack
    held = [
        label in among
        for label, among in zip(table.raw("label", rows), said["label"].among, strict=True)
    ]
    assert np.mean(held) > 0.8 - slack


def test_a_run_without_validation_rows_bounds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y,split\n" + "".join(f"{i},{i % 7},train\n" for i in range(40)))
    data = Dataset.open(path, split="split")
    assert "val" in data.splits  # it makes one of the training rows
    run = sn.train(
        fusion,
        data.take(data.splits["train"]),
        out=tmp_path / "run",
        target="y",
        epochs=1,
        dim=8,
        quiet=True,
        precision="fp32",
    )
    assert np.isinf(run.predict(x=[1.0])["y"].interval).all()
