"""The interface of a trained model that evaluators are written against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import nn

from sensorium.data.schema import Schema
from sensorium.nn.tokens import ColumnKey

if TYPE_CHECKING:
    from sensorium.evaluation.spec import EvaluationSpec


@runtime_checkable
class TrainedData(Protocol):
    """The columns that a trained model reads."""

    @property
    def columns(self) -> tuple[ColumnKey, ...]:
        """Names of the columns; a tuple of names is several text columns read as one."""
        ...


@runtime_checkable
class TrainedRecipe(Protocol):
    """The part of a recipe that evaluation reads."""

    @property
    def data(self) -> TrainedData:
        """The columns that it reads."""
        ...

    @property
    def evaluation(self) -> EvaluationSpec[Any]:
        """How it is evaluated."""
        ...


@runtime_checkable
class TrainedConfig(Protocol):
    """The configuration that a model was trained with."""

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        ...


@runtime_checkable
class Trained(Protocol):
    """A trained recipe, with its verbs (`embed`, `generate`, `predict`) as methods."""

    @property
    def recipe(self) -> TrainedRecipe:
        """The recipe, as far as evaluation reads it."""
        ...

    @property
    def config(self) -> TrainedConfig:
        """The configuration that it was trained with."""
        ...

    @property
    def schema(self) -> Schema:
        """Its columns and their fitted settings."""
        ...

    @property
    def module(self) -> nn.Module:
        """The model."""
        ...

    @property
    def folder(self) -> Path:
        """The run that it was loaded from."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights."""
        ...

    def __getattr__(self, name: str) -> Callable[..., Any]: ...
