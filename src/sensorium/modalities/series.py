"""Time series: many channels of any length, with missing values; windows of them as Tokens.

B batch   T steps   S steps after subsampling   C channels   D width
R = 2 C: values of a step, then their presence mask
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.modalities.series_io import EXTENSIONS, plot_series, read_series
from sensorium.nn.linear import Linear
from sensorium.nn.positional import sinusoidal_positions
from sensorium.nn.tokens import Tokens, sequence_positions, valid_or_none

TRUNCATION_MODES = ("subsample", "cut")
MIN_STD = 1e-4  # least standard deviation of a channel within one series, after standardization
MAX_FIT_SAMPLES = 512  # series from which `fit` estimates means, deviations and typical length


@dataclass(frozen=True)
class Series:
    """Settings of a time series column. NaN is a missing value: masked, not imputed.

    Attributes:
        channels: Channel names, in the order of the model input.
        mean: Mean of each channel; the model input is (value - mean) / std.
        std: Standard deviation of each channel.
        length: Largest number of steps.
        truncation: How a longer series is shortened: "subsample" (each step is the mean of
            consecutive steps) or "cut" (only the first steps).
        typical_length: Median number of steps, from which encoders choose their window length.
        sample_rate: Steps per second, if known; only displayed.
        skip_columns: Names of file columns that are not channels, in lower case.

    Raises:
        SensoriumError: If a setting is out of range.
    """

    kind: ClassVar[str] = "series"
    extensions: ClassVar[tuple[str, ...]] = EXTENSIONS
    channels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    length: int = 1024
    truncation: str = "subsample"
    typical_length: int = 0
    sample_rate: float = 0.0
    skip_columns: tuple[str, ...] = ("", "index", "time", "timestamp", "date", "datetime")

    def __post_init__(self) -> None:
        if self.truncation not in TRUNCATION_MODES:
            raise SensoriumError(
                f"series truncation={self.truncation!r} is unknown. "
                f"Choose one of: {', '.join(TRUNCATION_MODES)}."
            )
        if self.length < 1:
            raise SensoriumError(f"series length={self.length} is too small. Use 1 step or more.")
        if not len(self.channels) == len(self.mean) == len(self.std):
            raise SensoriumError(
                f"series settings have {len(self.channels)} channels, {len(self.mean)} means and "
                f"{len(self.std)} stds. Give one mean and one std per channel."
            )
        if min(self.std, default=1) <= 0:
            raise SensoriumError(f"series std={min(self.std)} is not positive. Use a std above 0.")

    def fit(self, values: Iterable[Any]) -> Series:
        """Return settings with channels, means and standard deviations of a sample of `values`.

        The first readable series determines the channels. Unreadable ones are skipped. Statistics
        are over all steps of at most MAX_FIT_SAMPLES evenly spaced series.
        """
        present = [v for v in values if v is not None]
        fitted = replace(self, channels=(), mean=(), std=())
        samples = []
        for raw in present[:: max(1, -(-len(present) // MAX_FIT_SAMPLES))]:
            try:
                names, x = read_series(raw, self.skip_columns)
                channels = fitted.channels or names or tuple(map(str, range(x.shape[1])))
                fitted = replace(
                    fitted,
                    channels=channels,
                    mean=(0.0,) * len(channels),
                    std=(1.0,) * len(channels),
                )
                samples.append(fitted._align_channels(names, x))
            except ValueError:
                continue  # reported and quarantined when the data are prepared
        if not samples:
            return self
        mean, std = _mean_std(np.concatenate(samples))
        return replace(
            fitted,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            typical_length=int(np.median([min(len(x), self.length) for x in samples])),
        )

    def load(self, raw: Any) -> Float32[np.ndarray, "T C"]:
        """Return one series, standardized, with NaN for missing values, at most `length` steps.

        Args:
            raw: The path of a CSV file (a line of channel names, then one line per step) or a .npy
                file; or numbers [T] or [T C] as an array or lists. A channel that a file lacks is
                missing throughout.

        Raises:
            ValueError: If it cannot be read, or has other channels.
        """
        x = self._align_channels(*read_series(raw, self.skip_columns))
        x = x[: self.length] if self.truncation == "cut" else subsample(x, self.length)
        return ((x - np.array(self.mean or 0.0)) / np.array(self.std or 1.0)).astype(np.float32)

    def _align_channels(
        self, names: tuple[str, ...] | None, x: Float64[np.ndarray, "T _"]
    ) -> Float64[np.ndarray, "T C"]:
        """Return the values in the order of `channels`. Raise ValueError for other channels."""
        if not self.channels:
            return x
        listed = ", ".join(self.channels)[:80]
        if names is None:
            if x.shape[1] != len(self.channels):
                raise ValueError(
                    f"{x.shape[1]} channels, expected the {len(self.channels)} channels {listed}"
                )
            return x
        for name in names:
            if name not in self.channels:
                raise ValueError(f"channel {name!r} is not one of {listed}")
        out = np.full((len(x), len(self.channels)), np.nan)
        out[:, [self.channels.index(name) for name in names]] = x
        return out

    def collate(self, values: Sequence[Float32[np.ndarray, "_ C"]]) -> Float[Tensor, "B T R"]:
        """Return the values of each channel, 0 where missing, then the presence mask (1 or 0).

        Shorter series are padded with steps at which all channels are missing.
        """
        channels = len(self.channels) or max((v.shape[1] for v in values), default=1)
        steps = max(1, max(map(len, values), default=1))
        out = np.zeros((len(values), steps, 2 * channels), np.float32)
        for row, value in zip(out, values, strict=True):
            present = ~np.isnan(value)
            row[: len(value), :channels] = np.where(present, value, 0)
            row[: len(value), channels:] = present
        return torch.from_numpy(out)

    def augment(
        self,
        batch: Float[Tensor, "B T R"],
        rng: torch.Generator,
        *,
        jitter: float = 0.0,
        scale: float = 0.0,
        crop: float = 1.0,
        warp: float = 0.0,
        channel_dropout: float = 0.0,
    ) -> Float[Tensor, "B T R"]:
        """Return the series with random changes.

        Args:
            batch: Series as `collate` returns them.
            rng: Random generator.
            jitter: Standard deviation of Gaussian noise, relative to that of the channel within
                the series.
            scale: Largest relative change of a channel's amplitude, either way.
            crop: Smallest fraction of the steps that a random crop keeps; 1 is off.
            warp: Largest relative change of speed, either way.
            channel_dropout: Probability of masking a channel; never all channels of a series.
        """
        batch = crop_and_warp(batch, rng, crop, warp)
        x, present = batch.chunk(2, -1)
        rows, _, channels = x.shape
        if channel_dropout > 0:
            mask = sample_channel_mask(rows, channels, channel_dropout, rng)
            present = present * mask[:, None]
        if scale > 0:
            x = x * (1 + scale * (2 * torch.rand(rows, 1, channels, generator=rng) - 1))
        if jitter > 0:
            _, _, std = standardize(batch)
            x = x + jitter * std[:, None] * torch.randn(x.shape, generator=rng)
        return torch.cat([x * present, present], -1)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n T R"]:
        """Return n random walks of 2 to 40 steps, a tenth of the values missing, for tests."""
        channels = len(self.channels) or 1
        longest = min(40, self.length)
        sizes = torch.randint(min(2, longest), longest + 1, (n, 1, 1), generator=rng)
        observed = torch.rand(n, longest, channels, generator=rng) < 0.9
        present = observed & (torch.arange(longest)[:, None] < sizes)
        present[:, 0] = True
        walks = torch.randn(present.shape, generator=rng).cumsum(1)
        return torch.cat([walks * present, present.float()], -1)

    def decode(self, series: Float[Tensor, "T R"]) -> PIL.Image.Image:
        """Return a line plot of the series, with gaps where values are missing."""
        x, present = series.float().numpy().reshape(len(series), 2, -1).transpose(1, 0, 2)
        x = x * np.array(self.std or 1.0) + np.array(self.mean or 0.0)
        steps = int((present.any(1) * np.arange(1, 1 + len(present))).max(initial=0))
        duration = f"{steps / self.sample_rate:g} s" if self.sample_rate else f"{steps} steps"
        names = self.channels or tuple(map(str, range(x.shape[1])))
        return plot_series(np.where(present > 0, x, np.nan)[: max(1, steps)], names, duration)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Series:
        """Return settings from plain JSON values."""
        return cls(**validate_settings(cls, data))


def subsample(x: Float64[np.ndarray, "T C"], length: int) -> Float64[np.ndarray, "S C"]:
    """Return at most `length` steps, each the mean of consecutive steps, missing values ignored."""
    stride = -(-len(x) // length)
    if stride <= 1:
        return x
    padded = np.full((-(-len(x) // stride) * stride, x.shape[1]), np.nan)
    padded[: len(x)] = x
    return _nanmean(rearrange(padded, "(s e) c -> e s c", e=stride))


def _nanmean(x: Float64[np.ndarray, "E *rest"]) -> Float64[np.ndarray, "*rest"]:
    """Return the mean over the first axis, NaN where all values are missing, without a warning."""
    count = (~np.isnan(x)).sum(0)
    return np.where(count, np.nansum(x, 0) / np.maximum(count, 1), np.nan)


def _mean_std(
    x: Float64[np.ndarray, "T C"],
) -> tuple[Float64[np.ndarray, "C"], Float64[np.ndarray, "C"]]:
    """Return mean and standard deviation of each channel: 0 and 1 for an empty channel.

    The standard deviation of a constant channel is 1.
    """
    mean = np.nan_to_num(_nanmean(x))
    std = np.sqrt(np.nan_to_num(_nanmean(np.square(x - mean))))
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)


def valid_steps(batch: Float[Tensor, "B T R"]) -> Bool[Tensor, "B T"]:
    """Return True for the steps at which any channel has a value."""
    return batch.chunk(2, -1)[1].any(-1)


def crop_and_warp(
    batch: Float[Tensor, "B T R"], rng: torch.Generator, crop: float, warp: float
) -> Float[Tensor, "B T R"]:
    """Return a random crop of each series at a random speed.

    Args:
        batch: Series as `Series.collate` returns them.
        rng: Random generator.
        crop: Smallest fraction of the steps that remains.
        warp: Largest relative change of speed, either way.
    """
    if crop >= 1 and warp <= 0:
        return batch
    rows, steps = batch.shape[:2]
    position = torch.arange(steps)
    lengths = (valid_steps(batch) * (position + 1)).amax(1, keepdim=True)
    share, start, speed = torch.rand(3, rows, 1, generator=rng)
    share = crop + (1 - crop) * share
    offset = start * (1 - share) * lengths
    source = (offset + position * (1 + warp * (2 * speed - 1))).long()
    inside = source < (offset + share * lengths).ceil()
    index = source.clamp(max=steps - 1)[..., None].expand_as(batch)
    return batch.gather(1, index) * inside[..., None]


def sample_channel_mask(
    rows: int, channels: int, probability: float, rng: torch.Generator
) -> Float[Tensor, "B C"]:
    """Return 0 for dropped channels and 1 for the others, at least one of them per row."""
    samples = torch.rand(rows, channels, generator=rng)
    return ((samples >= probability) | (samples == samples.amax(1, keepdim=True))).float()


def standardize(
    batch: Float[Tensor, "B T R"],
) -> tuple[Float[Tensor, "B T R"], Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Standardize each channel of each series over the values that are present.

    Returns:
        The standardized series, and the mean and standard deviation of each channel.
    """
    x, present = batch.chunk(2, -1)
    n = present.sum(1, keepdim=True).clamp(min=1)
    mean = x.sum(1, keepdim=True) / n
    variance = ((x - mean) * present).square().sum(1, keepdim=True) / n
    std = variance.sqrt().clamp(min=MIN_STD)
    return torch.cat([(x - mean) / std * present, present], -1), mean[:, 0], std[:, 0]


class WindowEmbedding(nn.Module):
    """Series → Tokens: windows of steps, values and presence mask, through one linear layer.

    Each channel is standardized within its series, and a second linear layer adds the removed mean
    and standard deviation to every window, so that the scale is not lost. A window without any
    value is not valid. The mean of all tokens represents the series.

    Args:
        dim: Width of the tokens.
        series: Settings of the column.
        patch_size: Steps per window.
        add_positions: Add sinusoidal positions, for trunks that do not know the order otherwise.
    """

    def __init__(self, dim: int, series: Series, patch_size: int, *, add_positions: bool = True):
        super().__init__()
        channels = max(1, len(series.channels))
        self.patch_size = patch_size
        self.projection = Linear(2 * channels * patch_size, dim)
        self.stats_projection = Linear(2 * channels, dim)
        positions = None
        if add_positions:
            positions = sinusoidal_positions(math.ceil(series.length / patch_size), dim)
        self.register_buffer("position_embedding", positions)
        self.position_embedding: Tensor | None

    def pool_index(self, series: Float[Tensor, "B T R"]) -> None:
        """Return None: the mean of all tokens represents the series."""

    def forward(self, series: Float[Tensor, "B T R"]) -> Tokens:
        """Return one token per window."""
        padding = -series.shape[1] % self.patch_size
        series, mean, std = standardize(F.pad(series, (0, 0, 0, padding)))
        x = self.projection(rearrange(series, "b (t p) c -> b t (p c)", p=self.patch_size))
        x = x + self.stats_projection(torch.cat([mean.asinh(), std.log()], -1))[:, None]
        if self.position_embedding is not None:
            x = x + self.position_embedding[: x.shape[1]]
        valid = rearrange(valid_steps(series), "b (t p) -> b t p", p=self.patch_size).any(-1)
        return Tokens(x, sequence_positions(x), valid=valid_or_none(valid))
