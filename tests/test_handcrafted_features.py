"""Measures are of a value alone: what pads it, who stands beside it and what is missing change nothing."""

import math

import numpy as np
import pytest
import torch

from sensorium.modalities.image import Image
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Numeric
from sensorium.models.handcrafted_features import (
    PCA_COMPONENTS,
    RAW_IMAGE_FEATURES,
    HandcraftedFeatures,
    compute_features,
    has_handcrafted_features,
    image_features,
    num_handcrafted_features,
    series_features,
)

SERIES = Series(channels=("a", "b"), mean=(0.0, 0.0), std=(1.0, 1.0), length=64)


def series(*rows: list[list[float]]) -> torch.Tensor:
    return SERIES.collate([np.array(row, np.float32) for row in rows])


def test_of_a_series() -> None:
    t = torch.arange(20.0)
    x = torch.stack([t, (2 * math.pi * t / 4).cos()], 1).tolist()
    found = series_features(series(x), 64)[0]
    assert len(found) == num_handcrafted_features(SERIES)
    size, mean, spread, quantiles, rest = (
        found[0],
        found[1:3],
        found[3:5],
        found[5:15].view(5, 2),
        found[15:],
    )
    assert size == 20
    assert mean[0] == pytest.approx(9.5)
    assert mean[1].abs() < 1e-6
    assert spread[0] == pytest.approx(np.arange(20).std(), rel=1e-5)
    assert quantiles[:, 0].tolist() == pytest.approx([0, 4.75, 9.5, 14.25, 19])
    first, last, step, slope, share = rest[:10].view(5, 2)
    assert (first[0], last[0], step[0], share[0]) == (0, 19, 1, 1)
    assert slope[0] == pytest.approx(1)
    bands = rest[10:].view(-1, 2)
    rising, wave = bands.argmax(0).tolist()
    assert rising < wave, "a quarter of the sampling rate lies above what only rises"


def test_padding_gaps_and_company_change_nothing() -> None:
    rng = np.random.default_rng(0)
    short, long = rng.normal(size=(9, 2)).tolist(), rng.normal(size=(50, 2)).tolist()
    alone, beside = (
        series_features(series(short), 64)[0],
        series_features(series(short, long), 64)[0],
    )
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=1e-5)
    short[3][1] = math.nan
    batch = series(short, long)
    other = batch.clone()
    other[0, 3, 1] = 0.0  # what stands where nothing was read is zero in a batch
    assert torch.equal(series_features(batch, 64), series_features(other, 64))
    assert series_features(batch, 64).isfinite().all()
    nothing = series_features(torch.zeros(1, 5, 4), 64)
    assert nothing.isfinite().all() and nothing.abs().max() < 1e-3, (
        "the least spread that a channel is taken to have"
    )


def test_of_pictures() -> None:
    plain = torch.full((1, 3, 32, 32), 0.6)
    found = image_features(plain)[0]
    small, colours, edges = found.split([768, 64, 512])
    assert found.shape == (RAW_IMAGE_FEATURES,)
    assert (small - 0.6).abs().max() < 1e-6
    assert colours.argmax() == 2 * 16 + 2 * 4 + 2
    assert colours.sum() == pytest.approx(1)
    assert not edges.any()
    step = plain.clone()
    step[..., 16:] = 0.2  # an upright edge: brightness changes across
    ways = image_features(step)[0, -512:].view(8, 8, 8)  # way, row, column
    assert ways.sum((1, 2)).argmax() == 0
    assert ways.sum((0, 1)).argsort()[-2:].sort().values.tolist() == [3, 4]
    assert image_features(torch.rand(2, 3, 24, 24)).shape == (2, RAW_IMAGE_FEATURES), "any side"


def test_directions_are_of_training_rows_and_gaps_are_gaps() -> None:
    image, rng = Image(size=16), torch.Generator().manual_seed(0)
    measures = HandcraftedFeatures({"photo": image, "curve": SERIES})
    assert measures.num_features == PCA_COMPONENTS + num_handcrafted_features(SERIES)
    assert has_handcrafted_features(image)
    assert not has_handcrafted_features(Numeric())
    pictures, curves = torch.randn(40, 3, 16, 16, generator=rng), SERIES.fake(40, rng)
    there = {"photo": torch.arange(40) > 0, "curve": torch.arange(40) != 1}
    before = measures({"photo": pictures, "curve": curves}, there)
    assert not before[1:, :PCA_COMPONENTS].any()
    measures.fit([compute_features(image, pictures)])
    found = measures({"photo": pictures, "curve": curves}, there)
    assert found[0, :PCA_COMPONENTS].isnan().all()
    assert found[1, PCA_COMPONENTS:].isnan().all()
    assert found[2:].isfinite().all() and not found[1:, 39:PCA_COMPONENTS].abs().gt(1e-3).any(), (
        "40 rows, 39 directions"
    )
    spread = found[2:, :39].std(0)
    assert spread[0] > spread[20] > 0
    without = measures(
        {"curve": curves}, {"photo": torch.zeros(40, dtype=torch.bool), "curve": there["curve"]}
    )
    assert without[:, :PCA_COMPONENTS].isnan().all()
    assert torch.equal(without[2:, PCA_COMPONENTS:], found[2:, PCA_COMPONENTS:])


def test_no_rows() -> None:
    assert image_features(torch.zeros(0, 3, 32, 32)).shape == (0, RAW_IMAGE_FEATURES)
    assert compute_features(SERIES, torch.zeros(0, 5, 4)).shape == (
        0,
        num_handcrafted_features(SERIES),
    )
    measures = HandcraftedFeatures({"photo": Image(size=16)})
    measures.fit([torch.zeros(0, RAW_IMAGE_FEATURES)])
    assert not measures.components.any()


def test_quantiles_are_those_of_numpy_and_know_no_limit() -> None:
    x = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(1))
    there = (torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.7).float()
    found = series_features(torch.cat([x * there, there], -1), 64)[:, 5:15].view(3, 5, 2)
    for row in range(3):
        for channel in range(2):
            held = x[row, there[row, :, channel] > 0, channel].numpy()
            assert found[row, :, channel].numpy() == pytest.approx(
                np.quantile(held, [0, 0.25, 0.5, 0.75, 1]), abs=1e-5
            )
    wide = torch.ones(70, 1000, 2 * 256)
    assert series_features(wide, 1024).shape == (70, 1 + 256 * 28), (
        "more numbers than torch.quantile takes"
    )
