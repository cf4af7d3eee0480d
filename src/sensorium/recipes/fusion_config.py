"""Settings of the recipe `fusion`: fusion module, column encoders, and presets of sizes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Numeric
from sensorium.pretrained.source import PretrainedSource
from sensorium.recipes.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the columns of a row become one vector.

    Attributes:
        fusion: name of the fusion module, in `FUSIONS`.
        projection: name of the projection from each encoder to the fusion, in `PROJECTIONS`.
        modality_dropout: fraction of the training rows of which some values are hidden.
        dim: width of the model.
        layers: layers of each encoder, and of a fusion module that has layers.
        dropout: dropout rate.
    """

    fusion: str
    projection: str
    modality_dropout: float
    dim: int
    layers: int
    dropout: float


@dataclass(frozen=True)
class ColumnInput:
    """One input column.

    Attributes:
        modality: its settings.
        encoder: its encoder: a name in `ENCODERS`, or pretrained weights; "" for a scalar column.
        train: how much of pretrained weights is trained, one of `TRAIN_MODES`.
    """

    modality: Modality
    encoder: str | PretrainedSource = ""
    train: str = "none"

    @property
    def pretrained(self) -> bool:
        """Whether its encoder has pretrained weights."""
        return isinstance(self.encoder, PretrainedSource)


@dataclass(frozen=True)
class Preset:
    """Default sizes for a number of training rows.

    Attributes:
        max_rows: the largest number of training rows that it is for.
        dim: width of the model.
        layers: layers of each encoder.
        dropout: dropout rate.
        epochs: passes over the training rows.
        batch_size: rows per optimizer step.
    """

    max_rows: int
    dim: int
    layers: int
    dropout: float
    epochs: int
    batch_size: int

    def with_overrides(
        self, dim: int | None, layers: int | None, dropout: float | None
    ) -> "Preset":
        """Return a copy with those of the values that are not None."""
        return replace(
            self,
            dim=self.dim if dim is None else dim,
            layers=self.layers if layers is None else layers,
            dropout=self.dropout if dropout is None else dropout,
        )

    def training_config(self) -> TrainingConfig:
        """Return the settings of the training loop."""
        return TrainingConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=2e-3,
            ema_decay=0.99,
            early_stopping_patience=max(2, self.epochs // 4),
        )


UNLIMITED_ROWS = 1 << 62
PRESETS = (
    Preset(1_000, 64, 1, 0.2, 60, 16),
    Preset(2_000, 64, 1, 0.2, 60, 32),
    Preset(10_000, 96, 2, 0.15, 30, 64),
    Preset(100_000, 128, 3, 0.1, 15, 128),
    Preset(UNLIMITED_ROWS, 192, 4, 0.1, 4, 512),
)


def select_preset(targets: Sequence[Modality]) -> Preset:
    """Return the preset for the number of training rows with a value of the rarest target."""
    num_rows = min(_num_training_rows(modality) for modality in targets)
    return next(preset for preset in PRESETS if num_rows <= preset.max_rows)


def _num_training_rows(modality: Modality) -> int:
    """Return the number of training rows that the settings of a column were fitted on."""
    if isinstance(modality, Multilabel):
        return modality.rows
    if isinstance(modality, Numeric):
        return modality.count
    return sum(getattr(modality, "counts", ()))
