"""Series: many channels over time, of any length and with gaps; windows of them as Tokens.

B batch   T steps   C channels   R = 2 C: readings of a step, then which of them are there   P a window   D width
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
MIN_RELATIVE_STD = 1e-4  # the least spread of a channel within a series, of that over all of them
MAX_FIT_SAMPLES = 512  # series looked at to learn means, spreads and how long they usually are


@dataclass(frozen=True)
class Series:
    """Settings of a column of series. What is not a number is a reading that is missing: masked, never a made-up zero.

    channels: names, in the order a model sees them. mean, std: of each; a model sees (value - mean) / std. length: the
    most steps it sees. longer: what becomes of a longer one, "subsample" (means of as many neighbouring steps as are
    needed) or "cut" (what comes first is kept). usual: steps of a usual one, by which models choose their windows.
    rate: steps a second, where it is known; it is only shown. skip: columns of a file that are no channels.
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
        if self.truncation not in TRUNCATION_MODES or self.length < 1:
            raise SensoriumError(
                f"series length={self.length}, longer={self.truncation!r}: expected a length of 1 step or "
                f"more, and one of {', '.join(TRUNCATION_MODES)}."
            )
        if (
            not len(self.channels) == len(self.mean) == len(self.std)
            or min(self.std, default=1) <= 0
        ):
            raise SensoriumError(
                "series settings need a mean and a std above 0 for each of their channels."
            )

    def fit(self, values: Iterable[Any]) -> Series:
        """Channels, means and spreads from a sample of `values`, evenly spaced; unreadable ones are passed over.

        The first that can be read says which channels there are; their means and spreads are over all steps together.
        """
        there = [v for v in values if v is not None]
        plain, found = replace(self, channels=(), mean=(), std=()), []
        for raw in there[:: max(1, -(-len(there) // MAX_FIT_SAMPLES))]:
            try:
                names, x = read_series(raw, self.skip_columns)
                known = plain.channels or names or tuple(map(str, range(x.shape[1])))
                plain = replace(
                    plain, channels=known, mean=(0.0,) * len(known), std=(1.0,) * len(known)
                )
                found.append(plain._align_channels(names, x))
            except ValueError:
                continue  # quarantined by name where the data are prepared
        if not found:
            return self
        mean, std = _mean_std(np.concatenate(found))
        usual = int(np.median([min(len(x), self.length) for x in found]))
        return replace(plain, mean=tuple(mean.tolist()), std=tuple(std.tolist()), usual=usual)

    def load(self, raw: Any) -> Float32[np.ndarray, "T C"]:
        """One series, standardised, NaN where a reading is missing; at most `length` steps.

        raw: the path of a CSV file (a line of channel names, then one for each step) or a .npy file; or numbers, [T]
        or [T C], as an array or lists. A channel that a file lacks is missing throughout. Raises ValueError with the
        reason it cannot be read.
        """
        x = self._align_channels(*read_series(raw, self.skip_columns))
        x = x[: self.length] if self.truncation == "cut" else subsample(x, self.length)
        return ((x - np.array(self.mean or 0.0)) / np.array(self.std or 1.0)).astype(np.float32)

    def _align_channels(
        self, names: tuple[str, ...] | None, x: Float64[np.ndarray, "T given"]
    ) -> Float64[np.ndarray, "T C"]:
        """The channels in their order. Raises ValueError where there are others."""
        if not self.channels:
            return x
        if names is None:
            if x.shape[1] != len(self.channels):
                raise ValueError(
                    f"it has {x.shape[1]} channels, where {len(self.channels)} are known: "
                    f"{', '.join(self.channels)[:80]}"
                )
            return x
        if strange := [name for name in names if name not in self.channels]:
            raise ValueError(
                f"its channel {strange[0]!r} is none of {', '.join(self.channels)[:80]}"
            )
        out = np.full((len(x), len(self.channels)), np.nan)
        out[:, [self.channels.index(name) for name in names]] = x
        return out

    def collate(self, values: Sequence[Float32[np.ndarray, "_ C"]]) -> Float[Tensor, "B T R"]:
        """Values of each channel, 0 where one is missing, then for each channel 1 where there is a value, else 0.

        Shorter ones are filled up with steps at which nothing is there: padding and a gap are the same thing.
        """
        channels = len(self.channels) or max((v.shape[1] for v in values), default=1)
        out = np.zeros(
            (len(values), max(1, max(map(len, values), default=1)), 2 * channels), np.float32
        )
        for row, value in zip(out, values, strict=True):
            there = ~np.isnan(value)
            row[: len(value), :channels] = np.where(there, value, 0)
            row[: len(value), channels:] = there
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
        """Changed at random: noise of `jitter` times a channel's own spread in the series, each channel times
        1 ± `scale`, a window of at least the share `crop`, up to `warp` quicker or slower, and each channel left out
        with probability `drop`, never all.
        """
        batch = crop_and_warp(batch, rng, crop, warp)
        x, there = batch.chunk(2, -1)
        rows, _, channels = x.shape
        if channel_dropout > 0:
            there = there * sample_channel_mask(rows, channels, channel_dropout, rng)[:, None]
        if scale > 0:
            x = x * (1 + scale * (2 * torch.rand(rows, 1, channels, generator=rng) - 1))
        if jitter > 0:
            x = x + jitter * standardize(batch)[2][:, None] * torch.randn(x.shape, generator=rng)
        return torch.cat([x * there, there], -1)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n T R"]:
        """n made-up series of 2 to 40 steps with a tenth of the readings missing, for tests and dry runs."""
        channels, longest = len(self.channels) or 1, min(40, self.length)
        sizes = torch.randint(min(2, longest), longest + 1, (n, 1, 1), generator=rng)
        there = (torch.rand(n, longest, channels, generator=rng) < 0.9) & (
            torch.arange(longest)[:, None] < sizes
        )
        there[:, 0] = True
        return torch.cat(
            [torch.randn(there.shape, generator=rng).cumsum(1) * there, there.float()], -1
        )

    def decode(self, series: Float[Tensor, "T R"]) -> PIL.Image.Image:
        """A picture of it: a line for each channel, broken where readings are missing, and how long it is."""
        x, there = series.float().numpy().reshape(len(series), 2, -1).transpose(1, 0, 2)
        x = x * np.array(self.std or 1.0) + np.array(self.mean or 0.0)
        length = int((there.any(1) * np.arange(1, 1 + len(there))).max(initial=0))
        lasts = f"{length / self.sample_rate:g} s" if self.sample_rate else f"{length} steps"
        names = self.channels or tuple(map(str, range(x.shape[1])))
        return plot_series(np.where(there > 0, x, np.nan)[: max(1, length)], names, lasts)

    def to_json(self) -> dict[str, Any]:
        """Plain settings."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Series:
        return cls(**validate_settings(cls, data))


def subsample(x: Float64[np.ndarray, "T C"], length: int) -> Float64[np.ndarray, "S C"]:
    """At most `length` steps: each the mean of as many neighbours, those that are there."""
    each = -(-len(x) // length)
    if each <= 1:
        return x
    filled = np.full((-(-len(x) // each) * each, x.shape[1]), np.nan)
    filled[: len(x)] = x
    return _nanmean(rearrange(filled, "(s e) c -> e s c", e=each))


def _nanmean(x: Float64[np.ndarray, "E *rest"]) -> Float64[np.ndarray, "*rest"]:
    """Over the first axis, of what is there; NaN where nothing is."""
    count = (~np.isnan(x)).sum(0)
    return np.where(count, np.nansum(x, 0) / np.maximum(count, 1), np.nan)


def _mean_std(
    x: Float64[np.ndarray, "T C"],
) -> tuple[Float64[np.ndarray, " C"], Float64[np.ndarray, " C"]]:
    """Mean and standard deviation of each channel; 0 and 1 for one without values, and 1 for one that never changes."""
    mean = np.nan_to_num(_nanmean(x))
    std = np.sqrt(np.nan_to_num(_nanmean(np.square(x - mean))))
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)


def valid_steps(batch: Float[Tensor, "B T R"]) -> Bool[Tensor, "B T"]:
    """The steps at which any channel has a reading."""
    return batch.chunk(2, -1)[1].any(-1)


def crop_and_warp(
    batch: Float[Tensor, "B T R"], rng: torch.Generator, crop: float, warp: float
) -> Float[Tensor, "B T R"]:
    """A window of each series, a random share of it between `crop` and all, at up to `warp` more or less its speed."""
    if crop >= 1 and warp <= 0:
        return batch
    rows, most = batch.shape[:2]
    place = torch.arange(most)
    lengths = (valid_steps(batch) * (place + 1)).amax(1, keepdim=True)
    share, start, speed = torch.rand(3, rows, 1, generator=rng)
    share = crop + (1 - crop) * share
    at = (start * (1 - share) * lengths + place * (1 + warp * (2 * speed - 1))).long()
    inside = at < (start * (1 - share) * lengths + share * lengths).ceil()
    return batch.gather(1, at.clamp(max=most - 1)[..., None].expand_as(batch)) * inside[..., None]


def sample_channel_mask(
    rows: int, channels: int, probability: float, rng: torch.Generator
) -> Float[Tensor, "B C"]:
    """1 for a channel that stays, 0 for one left out with probability `drop`; one of each row always stays."""
    drawn = torch.rand(rows, channels, generator=rng)
    return ((drawn >= probability) | (drawn == drawn.amax(1, keepdim=True))).float()


def standardize(
    batch: Float[Tensor, "B T R"],
) -> tuple[Float[Tensor, "B T R"], Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """(each channel less its mean and over its spread in the series, these means, these spreads), of readings there."""
    x, there = batch.chunk(2, -1)
    n = there.sum(1, keepdim=True).clamp(min=1)
    mean = x.sum(1, keepdim=True) / n
    spread = (
        (((x - mean) * there).square().sum(1, keepdim=True) / n).sqrt().clamp(min=MIN_RELATIVE_STD)
    )
    return torch.cat([(x - mean) / spread * there, there], -1), mean[:, 0], spread[:, 0]


class WindowEmbedding(nn.Module):
    """Series → Tokens: windows of `patch` steps, readings and which of them are there, each through one linear layer.

    Each channel is brought to its own mean and spread over the series, and both are said to every window: what is small
    in one series is as plain to see as what is large in another, and how large it was is not lost. A window in which
    nothing is there is not valid. No token stands for the whole: the mean of all does. places: sines of where in time
    windows are, for a trunk that would not know.
    """

    def __init__(self, dim: int, series: Series, patch_size: int, *, add_positions: bool = True):
        super().__init__()
        channels = max(1, len(series.channels))
        self.patch_size, self.projection, self.stats_projection = (
            patch_size,
            Linear(2 * channels * patch_size, dim),
            Linear(2 * channels, dim),
        )
        self.register_buffer(
            "position_embedding",
            sinusoidal_positions(math.ceil(series.length / patch_size), dim)
            if add_positions
            else None,
        )
        self.position_embedding: Tensor | None

    def pool_index(self, series: Float[Tensor, "B T R"]) -> None:
        return None

    def forward(self, series: Float[Tensor, "B T R"]) -> Tokens:
        series, mean, spread = standardize(
            F.pad(series, (0, 0, 0, -series.shape[1] % self.patch_size))
        )
        x = self.projection(rearrange(series, "b (t p) c -> b t (p c)", p=self.patch_size))
        x = x + self.stats_projection(torch.cat([mean.asinh(), spread.log()], -1))[:, None]
        x = x if self.position_embedding is None else x + self.position_embedding[: x.shape[1]]
        valid = rearrange(valid_steps(series), "b (t p) -> b t p", p=self.patch_size).any(-1)
        return Tokens(x, sequence_positions(x), valid=valid_or_none(valid))
