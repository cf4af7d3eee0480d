"""A recipe is a function of a schema; its keyword arguments are the whole configuration of a run.

def myclip(schema: Schema, *, dim: int = 256, ...) -> Recipe

N rows of the data set   T training rows   V validation rows
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    runtime_checkable,
)

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.data.cache.prepared import ColumnStore, PreparedDataset, Source
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.base import FitsOnData, Modality
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.pretrained.family import skip_init
from sensorium.recipes.training_config import TrainingConfig

if TYPE_CHECKING:
    from sensorium.data.dataset import Dataset
    from sensorium.evaluation.protocol import Trained
    from sensorium.evaluation.report import EvaluationReport

M = TypeVar("M", bound=nn.Module)
M_contra = TypeVar("M_contra", bound=nn.Module, contravariant=True)
Augment = Mapping[ColumnKey, Mapping[str, float]]
Evaluator = Callable[Concatenate["Trained", "Dataset", Sequence[str], ...], "EvaluationReport"]


class BadKeyword(SensoriumError, TypeError):
    """A keyword that is not known, or has a value it cannot take."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for rows of a data set, and their targets.

    Attributes:
        outputs: raw model outputs (logits, means) by target column.
        targets: the target columns of the same rows.
    """

    outputs: Mapping[str, Tensor]
    targets: Batch


@dataclass(frozen=True)
class ValidationResult:
    """What `EvaluationSpec.validate` returns.

    Attributes:
        figures: metrics by name.
        predictions: what they were computed from, where `Hooks.calibrate` needs it.
    """

    figures: Mapping[str, float]
    predictions: Predictions | None = None


@runtime_checkable
class Objective(Protocol[M_contra]):
    """The training loss of each player: {"model": loss}, or {"generator": ..., "discriminator": ...}."""

    def __call__(self, model: M_contra, batch: Batch, /) -> dict[str, Tensor]: ...


@runtime_checkable
class DeriveColumns(Protocol):
    """Compute columns once from the data set, instead of reading them."""

    def __call__(self, data: Source, /) -> Mapping[ColumnKey, ColumnStore]: ...


@runtime_checkable
class OnStart(Protocol[M_contra]):
    """Fit buffers of a new model on the training rows, before the first step."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " T"], /
    ) -> None: ...


@runtime_checkable
class AfterStep(Protocol[M_contra]):
    """Restore what must hold of the weights after each optimizer step."""

    def __call__(self, model: M_contra, /) -> None: ...


@runtime_checkable
class Calibrate(Protocol[M_contra]):
    """Fit calibration buffers on the validation rows, each time that new best weights are about to be saved.

    `predictions`: those of the same weights on the same rows, where `validate` returned them.
    """

    def __call__(
        self,
        model: M_contra,
        prepared: PreparedDataset,
        rows: Int[np.ndarray, " V"],
        predictions: Predictions | None,
        /,
    ) -> None: ...


@runtime_checkable
class OnEnd(Protocol[M_contra]):
    """Extend the trained model, which has its best weights, from the training and validation rows; returns metrics."""

    def __call__(
        self,
        model: M_contra,
        prepared: PreparedDataset,
        rows: Int[np.ndarray, " T"],
        validation: Int[np.ndarray, " V"],
        /,
    ) -> dict[str, float]: ...


@runtime_checkable
class Validate(Protocol[M_contra]):
    """Compute metrics on the validation rows."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " V"], /
    ) -> ValidationResult: ...


@runtime_checkable
class WriteSamples(Protocol[M_contra]):
    """Write an image that shows what the model does with some validation rows."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " V"], path: Path, /
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The columns that a recipe reads.

    Attributes:
        columns: names of the columns read; a tuple of names is several text columns read as one.
        column_settings: settings of columns that are given, and not fitted on the training rows.
        derived_columns: computes further columns once from the data.
        augment: random augmentation while training: strength -> column -> parameters.
    """

    columns: tuple[ColumnKey, ...]
    column_settings: Mapping[ColumnKey, Modality] = field(default_factory=dict)
    derived_columns: DeriveColumns | None = None
    augment: Mapping[str, Augment] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Hooks(Generic[M]):
    """What a recipe adds to the training loop.

    Attributes:
        on_start: called once, before the first step.
        after_step: called after each optimizer step.
        calibrate: called on the validation rows before new best weights are saved.
        on_end: called once with the best weights; the weights are saved again afterwards.
    """

    on_start: OnStart[M] | None = None
    after_step: AfterStep[M] | None = None
    calibrate: Calibrate[M] | None = None
    on_end: OnEnd[M] | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec(Generic[M]):
    """How a model is measured, while training and afterwards.

    Attributes:
        metric: the figure of `validate` that chooses the best weights.
        mode: whether the lowest ("min") or the highest ("max") value of the metric is the best.
        validate: computes metrics on the validation rows.
        write_samples: draws what the model does with some validation rows.
        evaluator: what `sensorium evaluate` runs: (trained model, data set, names of splits, options) -> Report.
        sweep: keywords with values worth comparing, for `sensorium compare` where none is varied.
    """

    metric: str
    mode: Literal["min", "max"]
    validate: Validate[M] | None = None
    write_samples: WriteSamples[M] | None = None
    evaluator: Evaluator | None = None
    sweep: Mapping[str, Sequence[object]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[M]):
    """What a family of models is made of, ready to train.

    Attributes:
        model: the model, with its first weights.
        objective: the training loss.
        data: the columns it reads.
        verbs: what a trained model answers (`embed`, `generate`, `predict`): functions of raw values.
        training: defaults of the training loop.
        hooks: what it adds to the training loop.
        evaluation: how it is measured.
        stored_keywords: keywords as config.json stores them, where that differs from what was passed.
        measures_forgetting: whether it starts from pretrained weights whose abilities are measured before and after.
        prerequisites: keyword -> (recipe, keywords) of a run to train first, whose folder becomes the keyword's value.
        extras: modules that training imports -> the extra of Sensorium that installs each.
    """

    model: M
    objective: Objective[M]
    data: DataSpec
    verbs: Mapping[str, Callable[..., Any]]
    training: TrainingConfig = field(default_factory=TrainingConfig)
    hooks: Hooks[M] = field(default_factory=lambda: Hooks())
    evaluation: EvaluationSpec[M] = field(
        default_factory=lambda: EvaluationSpec(metric="loss", mode="min")
    )
    stored_keywords: Mapping[str, Any] = field(default_factory=dict)
    measures_forgetting: bool = False
    prerequisites: Mapping[str, tuple[Callable[..., Recipe[Any]], Mapping[str, Any]]] = field(
        default_factory=dict
    )
    extras: Mapping[str, str] = field(default_factory=dict)


RecipeFunction = Callable[..., Recipe[M]]


def split_keywords(
    recipe_fn: RecipeFunction[Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`given` as (the recipe's own keywords, fields of TrainingConfig).

    Raises BadKeyword, naming the nearest known keyword, for one that is neither.
    """
    own = {
        p.name for p in inspect.signature(recipe_fn).parameters.values() if p.kind is p.KEYWORD_ONLY
    }
    loop = {f.name for f in fields(TrainingConfig)}
    for name in keywords:
        if name not in own | loop:
            near = difflib.get_close_matches(name, sorted(own | loop), 1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"it takes {', '.join(sorted(own | loop))}"
            )
            raise BadKeyword(
                f"{recipe_fn.__name__}() got an unexpected keyword argument {name!r}; {hint}"
            )
    return {k: v for k, v in keywords.items() if k in own}, {
        k: v for k, v in keywords.items() if k not in own
    }


def build_recipe(
    recipe_fn: RecipeFunction[M], schema: Schema, keywords: Mapping[str, Any]
) -> tuple[Recipe[M], dict[str, Any]]:
    """The recipe with its training settings, and every keyword that went into it: plain values for the checkpoint."""
    own, loop = split_keywords(recipe_fn, keywords)
    for setting in fields(TrainingConfig):
        if setting.name in loop and (choices := get_args(setting.type)):
            check_choice(setting.name, loop[setting.name], choices)
    bound = inspect.signature(recipe_fn).bind(schema, **own)
    bound.apply_defaults()
    recipe = recipe_fn(schema, **own)
    recipe = replace(recipe, training=replace(recipe.training, **loop))
    if recipe.data.augment:
        check_choice("augment", recipe.training.augment, ["none", *recipe.data.augment])
    return recipe, {**bound.kwargs, **recipe.stored_keywords, **asdict(recipe.training)}


def dry_build(
    recipe_fn: RecipeFunction[M], schema: Schema, keywords: Mapping[str, Any]
) -> Recipe[M]:
    """The recipe on the meta device: quickly made, of no weight. Raises SensoriumError where a keyword does not fit."""
    try:
        with torch.device("meta"), skip_init():
            recipe = build_recipe(recipe_fn, schema, keywords)[0]
    except SensoriumError:
        raise
    except (TypeError, ValueError, AssertionError) as e:
        raise SensoriumError(f"{recipe_fn.__name__} cannot be built so: {e}") from e
    check_extras(recipe)
    return recipe


def check_extras(recipe: Recipe[Any]) -> None:
    """Raises SensoriumError where an extra that training needs is not installed."""
    for module, extra in recipe.extras.items():
        if find_spec(module) is None:
            raise SensoriumError(f'to train this needs {module}: pip install "sensorium[{extra}]"')


def check_choice(option: str, value: str, choices: Sequence[str]) -> str:
    """`given`, if it is among the `known` choices of an option; BadKeyword naming them otherwise."""
    if value not in choices:
        raise BadKeyword(f"{option}={value!r} is not one of {', '.join(choices)}")
    return value


@torch.no_grad()
def fit_encoders(
    encoders: Mapping[ColumnKey, nn.Module], prepared: PreparedDataset, rows: Int[np.ndarray, " N"]
) -> None:
    """Show the encoder of each column what these rows hold of it, where it takes something from that."""
    for name, encoder in encoders.items():
        for part in encoder.modules():
            if isinstance(part, FitsOnData):
                part.fit_on_data(prepared.iter_values(name, rows))
