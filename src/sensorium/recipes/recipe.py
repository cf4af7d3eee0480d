"""A recipe is a function of a schema; its keyword arguments are the whole configuration of a run.

    def my_clip(schema: Schema, *, dim: int = 256) -> Recipe: ...

N rows of the dataset   T training rows   V validation rows
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from typing import (
    Any,
    Generic,
    Protocol,
    TypeVar,
    get_args,
    runtime_checkable,
)

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.data.cache.columns import ColumnStore
from sensorium.data.cache.prepared import DataSource, PreparedDataset
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.evaluation.spec import Calibrate, EvaluationSpec
from sensorium.modalities.base import FitsOnData, Modality
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.pretrained.family import skip_init
from sensorium.recipes.training_config import TrainingConfig

M = TypeVar("M", bound=nn.Module)
M_contra = TypeVar("M_contra", bound=nn.Module, contravariant=True)
Augment = Mapping[ColumnKey, Mapping[str, float]]


class InvalidKeywordError(SensoriumError, TypeError):
    """An unknown keyword, or an invalid value of a keyword."""


@runtime_checkable
class Objective(Protocol[M_contra]):
    """Compute the training losses: {"model": loss}, or one per player of an adversarial game."""

    def __call__(self, model: M_contra, batch: Batch, /) -> dict[str, Tensor]:
        """Return the loss of each player on a batch."""
        ...


@runtime_checkable
class DeriveColumns(Protocol):
    """Compute columns once from the dataset, instead of reading them."""

    def __call__(self, data: DataSource, /) -> Mapping[ColumnKey, ColumnStore]:
        """Return the derived columns by key."""
        ...


@runtime_checkable
class OnStart(Protocol[M_contra]):
    """Fit buffers of a new model on the training rows, before the first step."""

    def __call__(
        self, model: M_contra, prepared: PreparedDataset, rows: Int[np.ndarray, " T"], /
    ) -> None:
        """Fit the model on the training rows."""
        ...


@runtime_checkable
class AfterStep(Protocol[M_contra]):
    """Restore invariants of the weights after each optimizer step."""

    def __call__(self, model: M_contra, /) -> None:
        """Change the weights in place."""
        ...


@runtime_checkable
class OnEnd(Protocol[M_contra]):
    """Extend the trained model, which has its best weights, and return metrics."""

    def __call__(
        self,
        model: M_contra,
        prepared: PreparedDataset,
        rows: Int[np.ndarray, " T"],
        validation: Int[np.ndarray, " V"],
        /,
    ) -> dict[str, float]:
        """Extend the model in place, and return metrics by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """The columns that a recipe reads.

    Attributes:
        columns: columns that are read; a tuple of names is several text columns read as one.
        column_settings: fixed settings of columns, instead of settings fitted on the training rows.
        derived_columns: computes further columns once from the data.
        required: columns that a row must all have to be trained on.
        augment: random augmentation during training: strength -> column -> parameters.
        max_text_length: tokens up to which long texts are read; 0: as the schema says.
    """

    columns: tuple[ColumnKey, ...]
    column_settings: Mapping[ColumnKey, Modality] = field(default_factory=dict)
    derived_columns: DeriveColumns | None = None
    required: tuple[ColumnKey, ...] = ()
    augment: Mapping[str, Augment] = field(default_factory=dict)
    max_text_length: int = 0


@dataclass(frozen=True, kw_only=True)
class Hooks(Generic[M]):
    """Functions that a recipe adds to the training loop.

    Attributes:
        on_start: called once, before the first step.
        after_step: called after each optimizer step.
        calibrate: called on the validation rows before new best weights are saved.
        on_end: called once with the best weights, unless there are no validation rows; the
            weights are saved again afterwards.
        needs_validation: whether training without validation rows is an error.
    """

    on_start: OnStart[M] | None = None
    after_step: AfterStep[M] | None = None
    calibrate: Calibrate[M] | None = None
    on_end: OnEnd[M] | None = None
    needs_validation: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe(Generic[M]):
    """A model with everything that is needed to train and use it.

    Attributes:
        model: the model, with its initial weights.
        objective: the training loss.
        data: the columns it reads.
        verbs: inference functions of raw values, by name: `embed`, `generate`, `predict`.
        training: defaults of the training loop.
        hooks: functions that it adds to the training loop.
        evaluation: how it is evaluated.
        stored_keywords: keywords as config.json stores them, where that differs from what was
            passed. Those that the recipe function does not take are not stored: they are of
            another recipe, which it calls.
        measures_forgetting: whether the abilities of its pretrained weights are measured before
            and after training.
        prerequisites: keyword -> (recipe, keywords) of a run to train first; the folder of that
            run becomes the value of the keyword.
        task: what the model learns, which training says first; "" for nothing to say.
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
    task: str = ""
    extras: Mapping[str, str] = field(default_factory=dict)


RecipeFunction = Callable[..., Recipe[M]]


def option_name(keyword: str) -> str:
    """Return a keyword as a command-line option: "--label-smoothing"."""
    return f"--{keyword.replace('_', '-')}"


def split_keywords(
    recipe_fn: RecipeFunction[Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keywords into those of the recipe and those of `TrainingConfig`.

    Returns:
        (keywords of the recipe function, fields of TrainingConfig).

    Raises:
        InvalidKeywordError: for a keyword that is neither, with the closest known one.
    """
    parameters = inspect.signature(recipe_fn).parameters.values()
    model_keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    training_keywords = {f.name for f in fields(TrainingConfig)}
    for name in keywords:
        if name not in model_keywords | training_keywords:
            raise _unknown_keyword(recipe_fn.__name__, name, model_keywords | training_keywords)
    model_values = {k: v for k, v in keywords.items() if k in model_keywords}
    training_values = {k: v for k, v in keywords.items() if k not in model_keywords}
    return model_values, training_values


def _unknown_keyword(recipe: str, name: str, known: set[str]) -> InvalidKeywordError:
    close = difflib.get_close_matches(name, sorted(known), 1)
    hint = f"Did you mean {close[0]!r}?" if close else f"It takes {', '.join(sorted(known))}."
    return InvalidKeywordError(f"{recipe}() got an unexpected keyword argument {name!r}. {hint}")


def build_recipe(
    recipe_fn: RecipeFunction[M], schema: Schema, keywords: Mapping[str, Any]
) -> tuple[Recipe[M], dict[str, Any]]:
    """Build a recipe and apply the training settings among the keywords.

    Args:
        recipe_fn: the recipe function.
        schema: the columns of the data.
        keywords: keywords of the recipe and fields of `TrainingConfig`.

    Returns:
        The recipe, and all keywords with their defaults as plain values, for config.json.

    Raises:
        InvalidKeywordError: for an unknown keyword or an invalid value.
    """
    model_values, training_values = split_keywords(recipe_fn, keywords)
    for setting in fields(TrainingConfig):
        choices = get_args(setting.type)
        if setting.name in training_values and choices:
            check_choice(setting.name, training_values[setting.name], choices)
    bound = inspect.signature(recipe_fn).bind(schema, **model_values)
    bound.apply_defaults()
    recipe = recipe_fn(schema, **model_values)
    recipe = replace(recipe, training=replace(recipe.training, **training_values))
    if recipe.data.augment:
        check_choice("augment", recipe.training.augment, ["none", *recipe.data.augment])
    stored = {k: v for k, v in recipe.stored_keywords.items() if k in bound.kwargs}
    return recipe, {**bound.kwargs, **stored, **asdict(recipe.training)}


def dry_build(
    recipe_fn: RecipeFunction[M], schema: Schema, keywords: Mapping[str, Any]
) -> Recipe[M]:
    """Build a recipe on the meta device: fast, without allocating weights.

    Raises:
        SensoriumError: where a keyword does not fit, or a required extra is not installed.
    """
    if keywords.get("minutes") and "epochs" in keywords:
        raise InvalidKeywordError(
            "--minutes and --epochs both say how long to train. Leave one of them out."
        )
    try:
        with torch.device("meta"), skip_init():
            recipe, _ = build_recipe(recipe_fn, schema, keywords)
    except SensoriumError:
        raise
    except (TypeError, ValueError, AssertionError) as e:
        raise SensoriumError(
            f"{recipe_fn.__name__} cannot be built with these options: {e}."
        ) from e
    check_extras(recipe)
    return recipe


def check_extras(recipe: Recipe[Any]) -> None:
    """Raise SensoriumError where a package that training needs is not installed."""
    for module, extra in recipe.extras.items():
        if find_spec(module) is None:
            raise SensoriumError(
                f'Training this model needs {module}. Install it: pip install "sensorium[{extra}]".'
            )


def require_weights(keyword: str, weights: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
    """Return the value of a keyword that must name pretrained weights.

    Raises:
        InvalidKeywordError: where it is empty.
    """
    if not weights:
        raise InvalidKeywordError(
            f"{option_name(keyword)} is missing. Name pretrained weights: a folder, a file or a "
            "Hugging Face id such as openai/clip-vit-base-patch32."
        )
    return weights


def check_choice(keyword: str, value: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of the choices of a keyword.

    Raises:
        InvalidKeywordError: naming the choices, otherwise.
    """
    if value not in choices:
        option = option_name(keyword)
        raise InvalidKeywordError(f"{option} {value!r} is not one of {', '.join(choices)}.")
    return value


@torch.no_grad()
def fit_encoders(
    encoders: Mapping[ColumnKey, nn.Module], prepared: PreparedDataset, rows: Int[np.ndarray, " N"]
) -> None:
    """Fit the data-dependent parts of the encoders, such as vocabularies, on these rows.

    Args:
        encoders: the encoder of each column.
        prepared: the dataset.
        rows: rows of the dataset to fit on.
    """
    for name, encoder in encoders.items():
        for module in encoder.modules():
            if isinstance(module, FitsOnData):
                module.fit_on_data(prepared.iter_values(name, rows))
