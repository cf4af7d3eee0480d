"""Fixed (not learned) features of images and series, as inputs of boosted trees.

B batch   H, W sides in pixels   T steps   C channels   M features   N rows   Q quantiles
R = 2 C: values of a step, then their presence mask   F = RAW_IMAGE_FEATURES
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

THUMBNAIL_SIZE = 16  # side of the thumbnail in pixels
COLOR_BINS = 4  # bins of the color histogram, per channel
HOG_CELLS = 8  # side of the grid of HOG cells
HOG_ORIENTATIONS = 8  # edge directions of a HOG cell
RAW_IMAGE_FEATURES = 3 * THUMBNAIL_SIZE**2 + COLOR_BINS**3 + HOG_ORIENTATIONS * HOG_CELLS**2
PCA_COMPONENTS = 64  # image features after the projection
MIN_RELATIVE_VARIANCE = 1e-6  # smaller components, relative to the largest, are set to zero
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
SPECTRUM_BANDS = 16  # log-spaced bands of the power spectrum of a channel
ColumnTensors = Mapping[ColumnKey, Tensor]


class HandcraftedFeatures(nn.Module):
    """Features of image and series columns, NaN where a value is missing.

    Image features are projected to their principal components; they are zero until `fit`.

    Args:
        columns: The image and series columns.

    Attributes:
        mean: [images F] Mean raw features of each image column.
        components: [images F PCA_COMPONENTS] Principal components of each image column.
        num_features: M.
    """

    def __init__(self, columns: Mapping[str, Modality]):
        super().__init__()
        self.columns = dict(columns)
        num_images = sum(isinstance(modality, Image) for modality in columns.values())
        self.mean = nn.Buffer(torch.zeros(num_images, RAW_IMAGE_FEATURES))
        self.components = nn.Buffer(torch.zeros(num_images, RAW_IMAGE_FEATURES, PCA_COMPONENTS))
        self.num_features = sum(num_handcrafted_features(m) for m in columns.values())

    def forward(
        self, inputs: ColumnTensors, present: Mapping[str, Bool[Tensor, "B"]]
    ) -> Float[Tensor, "B M"]:
        """Return the features of all columns.

        Args:
            inputs: The columns of a batch; some may be absent.
            present: Which rows have a value of each column.
        """
        any_mask = next(iter(present.values()))
        features = [torch.zeros(len(any_mask), 0, device=any_mask.device)]
        image_index = 0
        for name, modality in self.columns.items():
            if name in inputs:
                values = compute_features(modality, inputs[name])
                if isinstance(modality, Image):
                    values = (values - self.mean[image_index]) @ self.components[image_index]
            else:
                values = features[0].new_zeros(len(any_mask), num_handcrafted_features(modality))
            image_index += isinstance(modality, Image)
            features.append(values.masked_fill(~present[name][:, None], torch.nan))
        return torch.cat(features, 1)

    def fit(self, features: Sequence[Float[Tensor, "N F"]]) -> None:
        """Compute the principal components of each image column.

        Args:
            features: For each image column, the raw features of all training rows with a value.
        """
        for image_index, x in enumerate(features):
            if len(x) > 1:
                self.mean[image_index] = x.mean(0)
                centered = x - x.mean(0)
                variances, directions = _eigh(centered.T @ centered)
                directions = directions * (variances > MIN_RELATIVE_VARIANCE * variances[-1])
                self.components[image_index] = directions[:, -PCA_COMPONENTS:].flip(1)


def has_handcrafted_features(modality: Modality) -> bool:
    """Return whether a column has handcrafted features: images and series do."""
    return isinstance(modality, Image | Series)


def num_handcrafted_features(modality: Modality) -> int:
    """Return the number of features of an image or series column.

    Raises:
        TypeError: If the column has another type.
    """
    if isinstance(modality, Image):
        return PCA_COMPONENTS
    if not isinstance(modality, Series):
        raise _no_features(modality)
    return 1 + max(1, len(modality.channels)) * (7 + len(QUANTILES) + SPECTRUM_BANDS)


def compute_features(modality: Modality, values: Tensor) -> Float[Tensor, "B M"]:
    """Return the raw features of a collated batch of images or series.

    Raises:
        TypeError: If the column has another type.
    """
    if isinstance(modality, Image):
        mean = values.new_tensor(modality.mean)[:, None, None]
        std = values.new_tensor(modality.std)[:, None, None]
        return image_features((values * std + mean).clamp(0, 1))
    if not isinstance(modality, Series):
        raise _no_features(modality)
    if not len(values):
        return values.new_zeros(0, num_handcrafted_features(modality))
    return series_features(values, modality.length)


def _no_features(modality: Modality) -> TypeError:
    """Return the error for a column that is neither image nor series."""
    return TypeError(f"A column of type {modality.kind} has no handcrafted features.")


def image_features(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M"]:
    """Return a thumbnail, a color histogram and HOG features (Dalal & Triggs 2005).

    Args:
        pixels: Images of any size, in 0..1.
    """
    thumbnail = F.adaptive_avg_pool2d(pixels, THUMBNAIL_SIZE).flatten(1)
    return torch.cat([thumbnail, _color_histogram(pixels), _oriented_gradients(pixels)], 1)


def _color_histogram(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M"]:
    """Return the share of pixels in each of COLOR_BINS³ colors."""
    bins = (pixels * (COLOR_BINS - 0.001)).long()
    color = (bins[:, 0] * COLOR_BINS + bins[:, 1]) * COLOR_BINS + bins[:, 2]
    color = color.flatten(1)
    pixel_share = pixels.new_full(color.shape, 1 / color.shape[1])
    return pixels.new_zeros(len(pixels), COLOR_BINS**3).scatter_add(1, color, pixel_share)


def _oriented_gradients(pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M"]:
    """Return the mean gradient magnitude per direction and cell, of unit norm."""
    gray = F.pad(pixels.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dy = gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1]
    dx = gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]
    angle = torch.atan2(dy, dx) % torch.pi
    orientation = (angle / torch.pi * (HOG_ORIENTATIONS - 0.001)).long()
    empty = pixels.new_zeros(len(pixels), HOG_ORIENTATIONS, *pixels.shape[2:])
    magnitude = empty.scatter(1, orientation, dy.hypot(dx))
    cells = F.adaptive_avg_pool2d(magnitude, HOG_CELLS).flatten(1)
    return F.normalize(cells, dim=1)


def series_features(series: Float[Tensor, "B T R"], max_length: int) -> Float[Tensor, "B M"]:
    """Return the features of a batch of series; padding does not change them.

    They are the length, then for each channel: mean, standard deviation, quantiles, first and last
    value, mean absolute step, slope, share of steps with a value, and log power in SPECTRUM_BANDS
    bands.

    Args:
        series: Collated series.
        max_length: The longest that a series of the column may be, in steps.
    """
    x, present = series.chunk(2, -1)
    index = torch.arange(x.shape[1], device=x.device)
    counts = present.sum(1).clamp(min=1)
    lengths = (valid_steps(series) * (index + 1)).amax(1, keepdim=True)
    standardized, mean, std = standardize(series)
    centered = standardized.chunk(2, -1)[0] * std[:, None]
    first, last = _first_and_last(x, present)
    quantiles = torch.where(present.any(1)[..., None], _quantiles(x, present, counts), 0)
    return torch.cat(
        [
            lengths,
            mean,
            std,
            quantiles.transpose(1, 2).flatten(1),
            first,
            last,
            _mean_absolute_step(x, present),
            _slope(centered, present, counts),
            present.sum(1) / lengths.clamp(min=1),
            *_band_powers(centered, counts, max_length),
        ],
        1,
    )


def _first_and_last(
    x: Float[Tensor, "B T C"], present: Float[Tensor, "B T C"]
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Return the first and the last value of each channel."""
    index = torch.arange(x.shape[1], device=x.device)[:, None]
    first = torch.where(present > 0, index, x.shape[1]).amin(1).clamp(max=x.shape[1] - 1)
    last = torch.where(present > 0, index, 0).amax(1).clamp(max=x.shape[1] - 1)
    return x.gather(1, first[:, None])[:, 0], x.gather(1, last[:, None])[:, 0]


def _mean_absolute_step(
    x: Float[Tensor, "B T C"], present: Float[Tensor, "B T C"]
) -> Float[Tensor, "B C"]:
    """Return the mean absolute difference of consecutive values."""
    both_present = present[:, 1:] * present[:, :-1]
    steps = (x[:, 1:] - x[:, :-1]).abs() * both_present
    return steps.sum(1) / both_present.sum(1).clamp(min=1)


def _slope(
    centered: Float[Tensor, "B T C"],
    present: Float[Tensor, "B T C"],
    counts: Float[Tensor, "B C"],
) -> Float[Tensor, "B C"]:
    """Return the least-squares slope of each channel, per step."""
    index = torch.arange(centered.shape[1], device=centered.device)[:, None]
    mean_time = (index * present).sum(1, keepdim=True) / counts[:, None]
    time = (index - mean_time) * present
    return (time * centered).sum(1) / time.square().sum(1).clamp(min=1)


def _band_powers(
    centered: Float[Tensor, "B T C"], counts: Float[Tensor, "B C"], max_length: int
) -> list[Float[Tensor, "B C"]]:
    """Return the log power of each channel in each band, from low to high frequencies."""
    num_samples = max(max_length, 2 * SPECTRUM_BANDS)
    power = _rfft(centered, num_samples).abs().square() / counts[:, None]
    edges = torch.logspace(0, 1, SPECTRUM_BANDS + 1, power.shape[1]).long().clamp(min=1)
    bands: list[tuple[int, int]] = list(itertools.pairwise(int(edge) for edge in edges))
    return [power[:, low : max(high, low + 1)].mean(1).log1p() for low, high in bands]


def _quantiles(
    x: Float[Tensor, "B T C"], present: Float[Tensor, "B T C"], counts: Float[Tensor, "B C"]
) -> Float[Tensor, "B C Q"]:
    """Return QUANTILES of the present values; torch.quantile is limited to 16 million numbers."""
    ascending = x.masked_fill(present == 0, torch.inf).sort(1).values.transpose(1, 2)
    position = (counts - 1)[..., None] * x.new_tensor(QUANTILES)
    low = ascending.gather(2, position.floor().long())
    high = ascending.gather(2, position.ceil().long())
    return low + (high - low) * position.frac()


def _eigh(matrix: Float[Tensor, "F F"]) -> tuple[Tensor, Tensor]:
    """Return ascending eigenvalues and their eigenvectors (torch.linalg.eigh, typed)."""
    return torch.linalg.eigh(matrix)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _rfft(x: Float[Tensor, "B T C"], n: int) -> Tensor:
    """Return the Fourier transform over time (torch.fft.rfft, typed)."""
    return torch.fft.rfft(x, n=n, dim=1)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
