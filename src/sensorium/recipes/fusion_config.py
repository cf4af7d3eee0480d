"""Settings of the recipe `fusion`: how each column is encoded, and how the columns of a row are fused."""

from dataclasses import dataclass

from sensorium.modalities.base import Modality
from sensorium.pretrained.source import PretrainedSource


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the columns of a row become one vector.

    Attributes:
        fusion: name of the fusion module, in `fusion.FUSIONS`.
        projection: name of the projection from each encoder to the fusion, in `align.ALIGNS`.
        modality_dropout: fraction of the training rows of which some values are hidden.
        dim: width of the model.
        depth: blocks of each encoder, and of a fusion module that has blocks.
        dropout: fraction of activations dropped.
    """

    fusion: str
    projection: str
    modality_dropout: float
    dim: int
    depth: int
    dropout: float


@dataclass(frozen=True)
class ColumnInput:
    """One column that is predicted from.

    Attributes:
        modality: its settings.
        encoder: what reads it: a name in `encoders.ENCODERS`, or pretrained weights; "" for a single value.
        train: how much of pretrained weights is trained: none, lora or all.
    """

    modality: Modality
    encoder: str | PretrainedSource = ""
    train: str = "none"

    @property
    def pretrained(self) -> bool:
        return isinstance(self.encoder, PretrainedSource)
