"""Pictures and series as numbers worked out without learning: what trees see of them beside the fused vector.

B batch   H, W sides   T steps   R = 2 C: readings of a step, then which of them are there   M measures
N rows   W = WIDE
"""

import itertools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.series import Series, standardize, valid_steps
from sensorium.nn.tokens import ColumnKey

THUMBNAIL_SIZE, HOG_CELLS = 16, 8  # of a picture: pixels of a side, cells of a side
COLOR_BINS, HOG_ORIENTATIONS = 4, 8  # steps of a colour, ways of an edge
PCA_COMPONENTS = 64  # the main ones of the measures of a picture, which trees see
MIN_RELATIVE_VARIANCE = 1e-6  # a direction of less spread than this part of the widest is none
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
SPECTRUM_BANDS = 16  # of the spectrum of a channel, each wider than the one below
RAW_IMAGE_FEATURES = (
    3 * THUMBNAIL_SIZE**2 + COLOR_BINS**3 + HOG_ORIENTATIONS * HOG_CELLS**2
)  # all measures of a picture
ColumnTensors = Mapping[ColumnKey, Tensor]


class HandcraftedFeatures(nn.Module):
    """Columns → numbers, NaN where a value is missing. Those of pictures, which are many, come along the directions in
    which training rows differ most; until `fit` has seen some they are zeros."""

    def __init__(self, columns: Mapping[str, Modality]):
        super().__init__()
        self.columns = dict(columns)
        pictures = sum(isinstance(of, Image) for of in columns.values())
        self.mean = nn.Buffer(torch.zeros(pictures, RAW_IMAGE_FEATURES))
        self.components = nn.Buffer(torch.zeros(pictures, RAW_IMAGE_FEATURES, PCA_COMPONENTS))
        self.num_features = sum(num_handcrafted_features(of) for of in columns.values())

    def forward(
        self, inputs: ColumnTensors, present: Mapping[str, Bool[Tensor, "B"]]
    ) -> Float[Tensor, "B M"]:
        """`there`: of each column, which rows have a value."""
        some = next(iter(present.values()))
        parts, picture = [torch.zeros(len(some), 0, device=some.device)], 0
        for name, of in self.columns.items():
            if name in inputs:
                found = compute_features(of, inputs[name])
                if isinstance(of, Image):
                    found = (found - self.mean[picture]) @ self.components[picture]
            else:
                found = parts[0].new_zeros(len(some), num_handcrafted_features(of))
            picture += isinstance(of, Image)
            parts.append(found.masked_fill(~present[name][:, None], torch.nan))
        return torch.cat(parts, 1)

    def fit(self, features: Sequence[Float[Tensor, "N W"]]) -> None:
        """Take the main directions of each column of pictures; rows: all of its measures, where there are values."""
        for picture, x in enumerate(features):
            if len(x) > 1:
                self.mean[picture] = x.mean(0)
                level = x - x.mean(0)
                spread, found = torch.linalg.eigh(level.T @ level)
                found = found * (spread > MIN_RELATIVE_VARIANCE * spread[-1])
                self.components[picture] = found[:, -PCA_COMPONENTS:].flip(1)


def has_handcrafted_features(modality: Modality) -> bool:
    """Whether there are measures of such a column."""
    return isinstance(modality, Image | Series)


def num_handcrafted_features(modality: Modality) -> int:
    """How many numbers trees see of a column."""
    if isinstance(modality, Image):
        return PCA_COMPONENTS
    assert isinstance(modality, Series)
    return 1 + max(1, len(modality.channels)) * (7 + len(QUANTILES) + SPECTRUM_BANDS)


def compute_features(modality: Modality, values: Tensor) -> Float[Tensor, "B M"]:
    """All measures of a batch, as `collate` gives it."""
    if isinstance(modality, Image):
        mean, std = (values.new_tensor(x)[:, None, None] for x in (modality.mean, modality.std))
        return image_features((values * std + mean).clamp(0, 1))
    assert isinstance(modality, Series)
    return (
        series_features(values, modality.length)
        if len(values)
        else values.new_zeros(0, num_handcrafted_features(modality))
    )


def image_features(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M"]:
    """Small pixels, how often each of 64 colours is met, and in 8 x 8 places the directions of edges (a histogram of
    oriented gradients, Dalal & Triggs 2005). unit: pixels in 0..1."""
    small = F.adaptive_avg_pool2d(pixels, THUMBNAIL_SIZE).flatten(1)
    shade = (pixels * (COLOR_BINS - 0.001)).long()
    colour = (shade[:, 0] * COLOR_BINS + shade[:, 1]) * COLOR_BINS + shade[:, 2]
    colour = colour.flatten(1)
    share = pixels.new_full(colour.shape, 1 / colour.shape[1])
    colours = pixels.new_zeros(len(pixels), COLOR_BINS**3).scatter_add(1, colour, share)
    grey = F.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    down, across = (
        grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1],
        grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2],
    )
    turn = (torch.atan2(down, across) % torch.pi / torch.pi * (HOG_ORIENTATIONS - 0.001)).long()
    steep = pixels.new_zeros(len(pixels), HOG_ORIENTATIONS, *pixels.shape[2:]).scatter(
        1, turn, down.hypot(across)
    )
    edges = F.adaptive_avg_pool2d(steep, HOG_CELLS).flatten(1)
    return torch.cat([small, colours, F.normalize(edges, dim=1)], 1)


def series_features(series: Float[Tensor, "B T R"], max_length: int) -> Float[Tensor, "B M"]:
    """How long it is, and of each channel mean, spread, quantiles, first and last reading, mean step, slope, share of
    readings there, and the power in bands of its spectrum. length: the most steps a series may have."""
    x, there = series.chunk(2, -1)
    place = torch.arange(x.shape[1], device=x.device)
    n, size = there.sum(1).clamp(min=1), (valid_steps(series) * (place + 1)).amax(1, keepdim=True)
    even, mean, spread = standardize(series)
    level = even.chunk(2, -1)[0] * spread[:, None]
    both = there[:, 1:] * there[:, :-1]
    step = ((x[:, 1:] - x[:, :-1]).abs() * both).sum(1) / both.sum(1).clamp(min=1)
    time = (place[:, None] - (place[:, None] * there).sum(1, keepdim=True) / n[:, None]) * there
    slope = (time * level).sum(1) / time.square().sum(1).clamp(min=1)
    ends = (
        torch.where(there > 0, place[:, None], x.shape[1]).amin(1),
        torch.where(there > 0, place[:, None], 0).amax(1),
    )
    first, last = (x.gather(1, at.clamp(max=x.shape[1] - 1)[:, None])[:, 0] for at in ends)
    power = (
        torch.fft.rfft(level, n=max(max_length, 2 * SPECTRUM_BANDS), dim=1).abs().square()
        / n[:, None]
    )
    edges = torch.logspace(0, 1, SPECTRUM_BANDS + 1, power.shape[1]).long().clamp(min=1).tolist()
    bands = [
        power[:, low : max(high, low + 1)].mean(1).log1p()
        for low, high in itertools.pairwise(edges)
    ]
    quantiles = (
        torch.where(there.any(1)[..., None], _quantiles(x, there, n), 0).transpose(1, 2).flatten(1)
    )
    share = there.sum(1) / size.clamp(min=1)
    return torch.cat([size, mean, spread, quantiles, first, last, step, slope, share, *bands], 1)


def _quantiles(
    x: Float[Tensor, "B T C"], present: Float[Tensor, "B T C"], counts: Float[Tensor, "B C"]
) -> Float[Tensor, "B C Q"]:
    """QUANTILES of the n readings there (torch's own takes 16 million numbers at most)."""
    rising = x.masked_fill(present == 0, torch.inf).sort(1).values.transpose(1, 2)
    at = (counts - 1)[..., None] * x.new_tensor(QUANTILES)
    low, high = rising.gather(2, at.floor().long()), rising.gather(2, at.ceil().long())
    return low + (high - low) * at.frac()
