"""Tests of handcrafted features: independent of padding, of the batch and of missing values."""

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


def collate_series(*rows: list[list[float]]) -> torch.Tensor:
    return SERIES.collate([np.array(row, np.float32) for row in rows])


def test_series_features_match_known_values() -> None:
    t = torch.arange(20.0)
    x = torch.stack([t, (2 * math.pi * t / 4).cos()], 1).tolist()
    values = series_features(collate_series(x), 64)[0]
    assert len(values) == num_handcrafted_features(SERIES)
    length, mean, std, quantiles, rest = values.split([1, 2, 2, 10, len(values) - 15])
    quantiles = quantiles.view(5, 2)
    assert length == 20
    assert mean[0] == pytest.approx(9.5)
    assert mean[1].abs() < 1e-6
    assert std[0] == pytest.approx(np.arange(20).std(), rel=1e-5)
    assert quantiles[:, 0].tolist() == pytest.approx([0, 4.75, 9.5, 14.25, 19])
    first, last, step, slope, share = rest[:10].view(5, 2)
    assert (first[0], last[0], step[0], share[0]) == (0, 19, 1, 1)
    assert slope[0] == pytest.approx(1)
    bands = rest[10:].view(-1, 2)
    rising, wave = bands.argmax(0).tolist()
    assert rising < wave, "a quarter of the sampling rate is above the frequencies of a ramp"


def test_series_features_ignore_padding_and_masked_values() -> None:
    rng = np.random.default_rng(0)
    short, long = rng.normal(size=(9, 2)).tolist(), rng.normal(size=(50, 2)).tolist()
    single = series_features(collate_series(short), 64)[0]
    padded = series_features(collate_series(short, long), 64)[0]
    torch.testing.assert_close(single, padded, rtol=1e-5, atol=1e-5)
    short[3][1] = math.nan
    batch = collate_series(short, long)
    other = batch.clone()
    other[0, 3, 1] = 0.0  # a missing value is stored as zero
    assert torch.equal(series_features(batch, 64), series_features(other, 64))
    assert series_features(batch, 64).isfinite().all()
    empty = series_features(torch.zeros(1, 5, 4), 64)
    assert empty.isfinite().all()
    assert empty.abs().max() < 1e-3, "not zero: the least standard deviation of a channel"


def test_image_features_match_known_values() -> None:
    plain = torch.full((1, 3, 32, 32), 0.6)
    values = image_features(plain)[0]
    small, colors, edges = values.split([768, 64, 512])
    assert values.shape == (RAW_IMAGE_FEATURES,)
    assert (small - 0.6).abs().max() < 1e-6
    assert colors.argmax() == 2 * 16 + 2 * 4 + 2
    assert colors.sum() == pytest.approx(1)
    assert not edges.any()
    step = plain.clone()
    step[..., 16:] = 0.2  # a vertical edge
    orientations = image_features(step)[0, -512:].view(8, 8, 8)  # orientation, row, column
    assert orientations.sum((1, 2)).argmax() == 0
    assert orientations.sum((0, 1)).argsort()[-2:].sort().values.tolist() == [3, 4]
    assert image_features(torch.rand(2, 3, 24, 24)).shape == (2, RAW_IMAGE_FEATURES), (
        "images of any length"
    )


def test_components_are_fitted_and_missing_values_are_nan() -> None:
    image, rng = Image(size=16), torch.Generator().manual_seed(0)
    module = HandcraftedFeatures({"photo": image, "curve": SERIES})
    assert module.num_features == PCA_COMPONENTS + num_handcrafted_features(SERIES)
    assert has_handcrafted_features(image)
    assert not has_handcrafted_features(Numeric())
    images, series_batch = torch.randn(40, 3, 16, 16, generator=rng), SERIES.fake(40, rng)
    present = {"photo": torch.arange(40) > 0, "curve": torch.arange(40) != 1}
    before = module({"photo": images, "curve": series_batch}, present)
    assert not before[1:, :PCA_COMPONENTS].any()
    module.fit([compute_features(image, images)])
    values = module({"photo": images, "curve": series_batch}, present)
    assert values[0, :PCA_COMPONENTS].isnan().all()
    assert values[1, PCA_COMPONENTS:].isnan().all()
    assert values[2:].isfinite().all()
    assert values[1:, 39:PCA_COMPONENTS].abs().max() <= 1e-3, "40 rows have 39 components"
    spread = values[2:, :39].std(0)
    assert spread[0] > spread[20] > 0
    without = module(
        {"curve": series_batch},
        {"photo": torch.zeros(40, dtype=torch.bool), "curve": present["curve"]},
    )
    assert without[:, :PCA_COMPONENTS].isnan().all()
    assert torch.equal(without[2:, PCA_COMPONENTS:], values[2:, PCA_COMPONENTS:])


def test_empty_batches_have_features_of_the_same_width() -> None:
    assert image_features(torch.zeros(0, 3, 32, 32)).shape == (0, RAW_IMAGE_FEATURES)
    assert compute_features(SERIES, torch.zeros(0, 5, 4)).shape == (
        0,
        num_handcrafted_features(SERIES),
    )
    module = HandcraftedFeatures({"photo": Image(size=16)})
    module.fit([torch.zeros(0, RAW_IMAGE_FEATURES)])
    assert not module.components.any()


def test_series_quantiles_equal_numpy_for_any_size() -> None:
    x = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(1))
    present = (torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.7).float()
    values = series_features(torch.cat([x * present, present], -1), 64)[:, 5:15].view(3, 5, 2)
    for row in range(3):
        for channel in range(2):
            present_values = x[row, present[row, :, channel] > 0, channel].numpy()
            assert values[row, :, channel].numpy() == pytest.approx(
                np.quantile(present_values, [0, 0.25, 0.5, 0.75, 1]), abs=1e-5
            )
    wide = torch.ones(70, 1000, 2 * 256)
    assert series_features(wide, 1024).shape == (70, 1 + 256 * 28), (
        "more numbers than torch.quantile accepts"
    )
