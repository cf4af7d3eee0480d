"""Pretrained models in our modules: weight files, name mappings, tokenizers; a file per family."""

from sensorium.pretrained.describe import PretrainedDescription, describe_pretrained
from sensorium.pretrained.families import PRETRAINED_FAMILIES
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.load import PretrainedModel, load_pretrained_model
from sensorium.pretrained.source import PretrainedSource
from sensorium.pretrained.weight_files import WeightFiles, open_weights

__all__ = [
    "PRETRAINED_FAMILIES",
    "PretrainedDescription",
    "PretrainedFamily",
    "PretrainedModel",
    "PretrainedSource",
    "WeightFiles",
    "describe_pretrained",
    "load_pretrained_model",
    "open_weights",
]
