"""Datasets: read and typed tables, splits, prepared columns and batches."""

from sensorium.data.bad_samples import BadSample
from sensorium.data.batching import iter_batches
from sensorium.data.captions import flatten_captions
from sensorium.data.dataset import Dataset
from sensorium.data.schema import MODALITIES, Column, Role, Schema
from sensorium.data.synonyms import Synonyms
from sensorium.data.tables import Table

__all__ = [
    "MODALITIES",
    "BadSample",
    "Column",
    "Dataset",
    "Role",
    "Schema",
    "Synonyms",
    "Table",
    "flatten_captions",
    "iter_batches",
]
