"""Simple features of any columns, for linear models and for boosted trees.

B batch   D dense features   F all features   R components of a text   T steps   K columns
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.modalities.audio import PADDING_VALUE, Audio
from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text
from sensorium.models.handcrafted_features import (
    RAW_IMAGE_FEATURES,
    compute_features,
    num_handcrafted_features,
)
from sensorium.models.tfidf import TfidfFeatures
from sensorium.nn.sparse import SparseRows
from sensorium.nn.tokens import ColumnKey

MAX_TEXT_FEATURES = 1 << 17  # n-grams of a text column
MAX_LINEAR_WEIGHTS = 1 << 24  # of all text columns and outputs together
MAX_DEVIATION = 10.0  # standardized features are clipped to this
MIN_STD = 1e-6  # smaller deviations count as none
CALENDAR = ((6, 24, 0.5), (4, 7, 1e-3), (2, 12, 1e-3))  # first cyclic feature, units, rounding
CALENDAR_FEATURES = sum(units for _, units, _ in CALENDAR)
DATETIME_FEATURES = 9
ColumnTensors = Mapping[ColumnKey, Tensor]
PresenceMasks = Mapping[str, Bool[Tensor, "B"]]


@dataclass(frozen=True)
class WideRows:
    """Features of rows: dense ones, then sparse ones.

    Attributes:
        dense: Standardized features; zero where a value is missing.
        sparse: Classes and n-grams.
    """

    dense: Float[Tensor, "B D"]
    sparse: SparseRows

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, mask: Bool[Tensor, "B"]) -> "WideRows":
        """Return the rows that are True."""
        return WideRows(self.dense[mask], self.sparse.take(mask))

    @classmethod
    def concat(cls, batches: Sequence["WideRows"]) -> "WideRows":
        """Return the rows of several batches."""
        sparse = SparseRows.concat([batch.sparse for batch in batches])
        return cls(torch.cat([batch.dense for batch in batches]), sparse)

    def matmul(self, weight: Float[Tensor, "F K"]) -> Float[Tensor, "B K"]:
        """Return the product with a matrix of weights."""
        width = self.dense.shape[1]
        return self.dense @ weight[:width] + self.sparse.matmul(weight[width:])


class WideFeatures(nn.Module):
    """Features of columns, of which a missing value contributes none.

    Dense: numbers, ranks, dates with their hour, weekday and month, tags, and statistics of images,
    series and audio. Sparse: classes, and TF-IDF of texts. Dense features are standardized.

    Args:
        columns: The columns; those of other types are left out.

    Attributes:
        columns: The columns that have features.
        mean: [D] Mean of each dense feature.
        scale: [D] Factor of each dense feature.
        text_columns: The text columns among them.
        texts: The TF-IDF features of these.
        num_dense: D.
    """

    def __init__(self, columns: Mapping[str, Modality]):
        super().__init__()
        self.columns = {name: m for name, m in columns.items() if has_wide_features(m)}
        self.text_columns = {n: m for n, m in self.columns.items() if isinstance(m, Text)}
        self.texts = nn.ModuleList(TfidfFeatures(text) for text in self.text_columns.values())
        self.num_dense = sum(map(num_dense_features, self.columns.values()))
        self.mean = nn.Buffer(torch.zeros(self.num_dense))
        self.scale = nn.Buffer(torch.ones(self.num_dense))

    @property
    def class_widths(self) -> list[int]:
        """The number of one-hot features of each categorical column."""
        return [len(m.classes) for m in self.columns.values() if isinstance(m, Category)]

    @property
    def text_widths(self) -> list[int]:
        """The number of features of each text column."""
        return [len(part.get_buffer("idf")) for part in self.texts]

    @property
    def num_features(self) -> int:
        """F."""
        return self.num_dense + sum(self.class_widths) + sum(self.text_widths)

    def forward(
        self, inputs: ColumnTensors, present: PresenceMasks, texts: Sequence[SparseRows]
    ) -> WideRows:
        """Return the features of a batch.

        Args:
            inputs: The columns of the batch; some may be absent.
            present: Which rows have a value of each column.
            texts: What `encode_texts` returned.
        """
        dense, has_value = self.raw_dense(inputs, present)
        standardized = (dense - self.mean) * self.scale
        standardized = standardized.clamp(-MAX_DEVIATION, MAX_DEVIATION)
        standardized = standardized.masked_fill(~has_value, 0)
        parts = [*self._classes(inputs, present), *texts]
        if not parts:
            return WideRows(standardized, SparseRows.empty(len(dense), dense.device))
        return WideRows(standardized, SparseRows.join(parts, self.class_widths + self.text_widths))

    def encode_texts(self, inputs: ColumnTensors, present: PresenceMasks) -> list[SparseRows]:
        """Return the features of each text column, none in rows without a value."""
        num_rows = len(next(iter(present.values())))
        result: list[SparseRows] = []
        for name, tfidf in zip(self.text_columns, self.texts, strict=True):
            if name in inputs:
                result.append(tfidf(inputs[name]).zero_rows(~present[name]))
            else:
                result.append(SparseRows.empty(num_rows, next(iter(present.values())).device))
        return result

    def raw_dense(
        self, inputs: ColumnTensors, present: PresenceMasks
    ) -> tuple[Float[Tensor, "B D"], Bool[Tensor, "B D"]]:
        """Return the dense features before standardization, and which of them have a value."""
        first = next(iter(present.values()))
        features = [torch.zeros(len(first), 0, device=first.device)]
        masks = [torch.zeros(len(first), 0, dtype=torch.bool, device=first.device)]
        for name, modality in self.columns.items():
            width = num_dense_features(modality)
            if not width:
                continue
            mask = present[name]
            values = features[0].new_zeros(len(mask), width)
            if name in inputs and mask.any():
                values[mask] = dense_features(modality, inputs[name][mask]).float()
            features.append(values)
            masks.append(mask[:, None].expand(-1, width))
        return torch.cat(features, 1), torch.cat(masks, 1)

    def _classes(self, inputs: ColumnTensors, present: PresenceMasks) -> Iterable[SparseRows]:
        """Yield the one-hot features of each categorical column, none for an unseen class."""
        for name, modality in self.columns.items():
            if not isinstance(modality, Category):
                continue
            mask = present[name]
            if name not in inputs:
                yield SparseRows.empty(len(mask), mask.device)
                continue
            row = (mask & (inputs[name] < len(modality.classes))).nonzero()[:, 0]
            ones = torch.ones(len(row), device=mask.device)
            yield SparseRows(len(mask), row, inputs[name][row], ones)

    def fit_scale(self, mean: Float[Tensor, "D"], std: Float[Tensor, "D"]) -> None:
        """Set the standardization from the mean and deviation of the dense training features."""
        start = 0
        for modality in self.columns.values():
            width = num_dense_features(modality)
            part = slice(start, start + width)
            self.mean[part] = mean[part]
            deviation = std[part]
            if isinstance(modality, Datetime | Multilabel):  # on one scale as they are
                deviation = torch.ones_like(deviation).where(deviation > MIN_STD, 0)
            factor = RAW_IMAGE_FEATURES**-0.5 if isinstance(modality, Image) else 1.0
            is_varying = deviation > MIN_STD
            self.scale[part] = factor / deviation.where(is_varying, 1) * is_varying
            start += width


def has_wide_features(modality: Modality) -> bool:
    """Return whether a column has features."""
    known = (Numeric, Category, Datetime, Multilabel, Text, Image, Series, Audio)
    return isinstance(modality, known)


def num_dense_features(modality: Modality) -> int:
    """Return the number of dense features of a column."""
    match modality:
        case Numeric() | Ordinal():
            return 1
        case Category() | Text():
            return 0
        case Datetime():
            return DATETIME_FEATURES + CALENDAR_FEATURES
        case Multilabel(tags=tags):
            return len(tags) + 1
        case Audio(n_mels=n_mels):
            return 1 + 3 * n_mels
        case Image():
            return RAW_IMAGE_FEATURES
        case _:
            return num_handcrafted_features(modality)


def dense_features(modality: Modality, values: Tensor) -> Float[Tensor, "B D"]:
    """Return the dense features of collated values."""
    match modality:
        case Numeric():
            return values[:, None]
        case Ordinal(classes=classes):
            return values[:, None].float().clamp(max=max(0, len(classes) - 1))
        case Datetime():
            return torch.cat([values, calendar_features(values)], 1)
        case Multilabel():
            return values
        case Audio():
            return audio_features(values)
        case _:
            return compute_features(modality, values)


def calendar_features(dates: Float[Tensor, "B 9"]) -> Float[Tensor, "B D"]:
    """Return hour, weekday and month, one-hot, from the cyclic features of dates."""
    columns: list[Tensor] = []
    for first, units, rounding in CALENDAR:
        sine, cosine = dates[:, first].double(), dates[:, first + 1].double()
        position = torch.atan2(sine, cosine) / (2 * torch.pi) % 1
        unit: Int[Tensor, "B"] = (position * units + rounding).long() % units
        columns.append((unit[:, None] == torch.arange(units, device=dates.device)).float())
    return torch.cat(columns, 1)


def audio_features(spectrograms: Float[Tensor, "B M T"]) -> Float[Tensor, "B D"]:
    """Return the log length of recordings, and mean, deviation and maximum of each mel band."""
    is_real = spectrograms > PADDING_VALUE
    x = spectrograms.masked_fill(~is_real, 0)
    count = is_real.sum(2).clamp(min=1)
    mean = x.sum(2) / count
    deviation = ((x - mean[..., None]).masked_fill(~is_real, 0).square().sum(2) / count).sqrt()
    highest = spectrograms.masked_fill(~is_real, -torch.inf).amax(2)
    highest = highest.where(is_real.any(2), 0)
    length = is_real.any(1).sum(1, keepdim=True).float().log1p()
    return torch.cat([length, mean, deviation, highest], 1)
