"""The interface of a trained model that evaluators are written against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import nn

from sensorium.data.schema import Schema
from sensorium.recipes.recipe import Recipe


@runtime_checkable
class Trained(Protocol):
    """A recipe with its trained weights, and its verbs (`embed`, `generate`, `predict`) as methods."""

    recipe: Recipe[Any]
    schema: Schema
    module: nn.Module

    def __getattr__(self, name: str) -> Callable[..., Any]: ...
