"""How a recipe is evaluated, and the interfaces that the training loop calls.

T training rows   V validation rows
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    runtime_checkable,
)

import numpy as np
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.nn.tokens import Batch

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)
M_contra = TypeVar("M_contra", bound=nn.Module, contravariant=True)
Evaluator = Callable[Concatenate[Trained, Dataset, Sequence[str], ...], EvaluationReport]


@dataclass(frozen=True)
class Predictions:
    """Model outputs for rows of a dataset, with the targets of the same rows.

    Attributes:
        outputs: raw model outputs (logits, means) by target column.
        targets: the target columns of the same rows.
    """

    outputs: Mapping[str, Tensor]
    targets: Batch


@dataclass(frozen=True)
class ValidationResult:
    """The result of `EvaluationSpec.validate`.

    Attributes:
        metrics: values by name.
        predictions: the predictions behind the metrics, where `Hooks.calibrate` needs them.
    """

    metrics: Mapping[str, float]
    predictions: Predictions | None = None


@runtime_checkable
class Validate(Protocol[M_contra]):
    """Compute metrics on the validation rows."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " V"], /
    ) -> ValidationResult:
        """Return metrics of `model` on `rows`."""
        ...


@runtime_checkable
class Baselines(Protocol[M_contra]):
    """Compute metrics of simple models on rows, for comparison."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " V"], /
    ) -> dict[str, float]:
        """Return metrics by name."""
        ...


@runtime_checkable
class WriteSamples(Protocol[M_contra]):
    """Write an image of the model's outputs for a sample of the validation rows."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " V"], path: Path, /
    ) -> None:
        """Write the image to `path`."""
        ...


@runtime_checkable
class Calibrate(Protocol[M_contra]):
    """Fit calibration buffers on the validation rows, before new best weights are saved.

    `predictions` are those of the same weights on the same rows, where `validate` returned them.
    """

    def __call__(
        self,
        model: M_contra,
        prepared: PreparedDataset,
        rows: Int[np.ndarray, " V"],
        predictions: Predictions | None,
        /,
    ) -> None:
        """Fit the buffers of `model` in place."""
        ...


@runtime_checkable
class Assess(Protocol):
    """Say in sentences what a model is worth, before training (without metrics) and after it."""

    def __call__(
        self, metrics: Mapping[str, float], training_rows: int, validation_rows: int, /
    ) -> Sequence[str]:
        """Return a verdict, where there are validation metrics, and cautions.

        Args:
            metrics: validation metrics of the best weights; empty before training.
            training_rows: number of rows trained on.
            validation_rows: number of validation rows.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec(Generic[M]):
    """How a model is evaluated, during training and afterwards.

    Attributes:
        metric: the metric of `validate` that selects the best weights.
        mode: whether the lowest ("min") or the highest ("max") value of the metric is best.
        validate: computes metrics on the validation rows.
        write_samples: writes an image of model outputs for a sample of the validation rows.
        evaluator: runs `sensorium evaluate`: (trained model, dataset, split names, options) ->
            EvaluationReport.
        baselines: computes metrics of simple models on rows, which `sensorium compare` shows.
        assess: says what the model is worth by its validation metrics, and whether there are
            enough rows.
        sweep: keywords with the values that `sensorium compare` tries where none is varied.
    """

    metric: str
    mode: Literal["min", "max"]
    validate: Validate[M] | None = None
    write_samples: WriteSamples[M] | None = None
    evaluator: Evaluator | None = None
    baselines: Baselines[M] | None = None
    assess: Assess | None = None
    sweep: Mapping[str, Sequence[object]] = field(default_factory=dict)


class PicklableFunction:
    """A function that pickles as the factory that returned it and the arguments of that call.

    Args:
        factory: the factory, a function of a module.
        args: its positional arguments.
        kwargs: its keyword arguments.
        function: what it returned.
    """

    def __init__(
        self,
        factory: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        function: Callable[..., Any],
    ):
        functools.update_wrapper(self, function)
        self._call = (factory, args, kwargs)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _call_factory, self._call


def picklable(factory: Callable[P, R]) -> Callable[P, R]:
    """Make the functions that a factory returns pickle and deep-copy.

    Python pickles no function that is defined in another function, and a deep copy of one shares
    the values that it holds, such as the model. Return None where the factory does.
    """

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> R:
        function = factory(*args, **kwargs)
        if not callable(function):
            return function
        return cast("R", PicklableFunction(build, args, dict(kwargs), function))

    return build


def _call_factory(
    factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return factory(*args, **kwargs)
