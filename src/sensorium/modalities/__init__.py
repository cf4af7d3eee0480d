"""Modalities: settings, loading, augmentation and embedding of each kind of column."""

from sensorium.modalities.audio import Audio, AudioStem
from sensorium.modalities.base import (
    FitsOnData,
    Modality,
    settings_to_dict,
    validate_settings,
)
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image, PatchEmbedding
from sensorium.modalities.image_augment import ImageAugmentation
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series, WindowEmbedding
from sensorium.modalities.series_pyramid import MultiscaleConv
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.tabular_embedding import TabularEmbedding
from sensorium.modalities.text import BagEmbedding, PaddedTokenEmbedding, Text, TextEmbedding

__all__ = [
    "Audio",
    "AudioStem",
    "BagEmbedding",
    "Category",
    "Datetime",
    "FitsOnData",
    "Image",
    "ImageAugmentation",
    "Modality",
    "Multilabel",
    "MultiscaleConv",
    "Numeric",
    "Ordinal",
    "PaddedTokenEmbedding",
    "PatchEmbedding",
    "Series",
    "SubwordBagEmbedding",
    "TabularEmbedding",
    "Text",
    "TextEmbedding",
    "WindowEmbedding",
    "settings_to_dict",
    "validate_settings",
]
