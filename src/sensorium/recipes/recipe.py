"""A recipe is a function of a schema; its keyword arguments are the whole configuration of a run.

    def myclip(schema: Schema, *, dim: int = 256, ...) -> Recipe
"""
from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.data.cache import Source, Stored
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Meets, Modality
from sensorium.models import Batch
from sensorium.published.published import undrawn


class BadKeyword(SensoriumError, TypeError):
    """A keyword that is not known, or has a value it cannot take."""


Objective = Callable[[Any, Batch], dict[str, Tensor]]
Make = Callable[..., "Recipe"]
Augment = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Training:
    """How a run goes. A recipe sets defaults; every field is a keyword of `train` and an option of its command."""

    epochs: float = 20                      # passes over the training rows
    batch_size: int = 128                   # rows in a step
    accumulate: int = 1                     # split a step's rows into this many parts to save memory
    per_group: int = 0                      # rows of the same thing side by side in a batch; 0: as they come
    augment: str = "light"                  # how far training samples are changed at random: none, light, strong
    lr: float = 1e-3                        # the highest learning rate
    optimizer: str = "adamw"                # adamw, adam, sgd, lion, muon
    weight_decay: float = 0.1               # on weight matrices alone
    beta2: float = 0.98                     # memory of squared gradients
    layer_decay: float = 1.0                # of a block's learning rate, for the block below it (fine-tuning: 0.7)
    stochastic_depth: float = 0.0           # chance that the last block is left out for a sample; less for those below
    warmup: float = 0.05                    # share of the steps in which the rate rises
    clip_norm: float = 1.0                  # longest gradient; 0: any
    ema: float = 0.0                        # decay of the averaged weights that are kept; 0: no average
    precision: str = "auto"                 # fp32, bf16, or whichever measures faster
    patience: int = 0                       # evaluations without improvement before stopping; 0: never
    evaluate_every: float = 1.0             # epochs
    save_every: float = 1.0                 # epochs
    seed: int = 0                           # of first weights, order and chance: the same seed, the same run


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a family is made of, ready to train."""

    model: nn.Module
    objective: Objective                                            # (model, batch) -> {player: loss}
    columns: tuple[str, ...]                                        # what it reads; "a,b" is the union of two
    settings: Mapping[str, Modality] = field(default_factory=dict)  # of columns, where they are given and not learned
    told: Mapping[str, Any] = field(default_factory=dict)           # keywords as a run keeps them, where that differs
    keeps_start: bool = False                                       # begun with trained weights that are worth keeping
    verbs: dict[str, Callable[..., Any]]                            # embed, generate, predict: on raw values
    stages: Mapping[str, tuple[Make, Mapping[str, Any]]] = field(default_factory=dict)  # keyword -> what to train first
    derived: Callable[[Source], Mapping[str, Stored]] | None = None # further columns, computed once from the data
    begin: Callable[[Any, Any, np.ndarray], None] | None = None     # (model, prepared, rows): fit buffers, then train
    training: Training = field(default_factory=Training)
    augment: Mapping[str, Augment] = field(default_factory=dict)    # strength -> column -> how, while training
    metric: str = "loss"                                            # of `validate`; higher is better unless a loss
    validate: Callable[[Any, Any, np.ndarray], dict[str, float]] | None = None   # (model, prepared, rows) -> figures
    samples: Callable[[Any, Any, np.ndarray, Path], None] | None = None          # the same, and a picture to write
    calibrate: Callable[[Any, Any, np.ndarray], None] | None = None # the same: fit buffers before weights are kept
    finish: Callable[[Any, Any, np.ndarray, np.ndarray], dict[str, float]] | None = None    # the same of train and val
    needs: Mapping[str, str] = field(default_factory=dict)          # module that training imports -> its extra
    judge: Callable[..., Any] | None = None         # (Trained, data set, names of splits, ...) -> Report
    after_step: Callable[[Any], None] | None = None                 # what must hold after each update
    compared: Mapping[str, Sequence[Any]] = field(default_factory=dict)     # keyword -> values that are worth comparing

    @property
    def sign(self) -> int:
        """-1 where a lower metric is better."""
        return -1 if "loss" in self.metric else 1


@runtime_checkable
class Trained(Protocol):
    """What a judge is given: a recipe with its trained weights, and its verbs as methods."""

    recipe: Recipe
    schema: Schema
    module: nn.Module

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


def split_keywords(make: Make, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`given` as (the recipe's own keywords, fields of Training).

    Raises BadKeyword, naming the nearest known keyword, for one that is neither.
    """
    own = {p.name for p in inspect.signature(make).parameters.values() if p.kind is p.KEYWORD_ONLY}
    loop = {f.name for f in fields(Training)}
    for name in given:
        if name not in own | loop:
            near = difflib.get_close_matches(name, sorted(own | loop), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(sorted(own | loop))}"
            raise BadKeyword(f"{make.__name__}() got an unexpected keyword argument {name!r}; {hint}")
    return {k: v for k, v in given.items() if k in own}, {k: v for k, v in given.items() if k not in own}


def build(make: Make, schema: Schema, given: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with its training settings, and every keyword that went into it: plain values for the checkpoint."""
    own, loop = split_keywords(make, given)
    bound = inspect.signature(make).bind(schema, **own)
    bound.apply_defaults()
    recipe = make(schema, **own)
    recipe = replace(recipe, training=replace(recipe.training, **loop))
    if recipe.augment:
        one_of("augment", recipe.training.augment, ["none", *recipe.augment])
    return recipe, {**bound.kwargs, **recipe.told, **asdict(recipe.training)}


def planned(make: Make, schema: Schema, given: Mapping[str, Any]) -> Recipe:
    """The recipe on the meta device: quickly made, of no weight. Raises SensoriumError where a keyword does not fit."""
    try:
        with torch.device("meta"), undrawn():
            recipe = build(make, schema, given)[0]
    except SensoriumError:
        raise
    except (TypeError, ValueError, AssertionError) as e:
        raise SensoriumError(f"{make.__name__} cannot be built so: {e}") from e
    ready(recipe)
    return recipe


def ready(recipe: Recipe) -> None:
    """Raises SensoriumError where an extra that training needs is not installed."""
    for module, extra in recipe.needs.items():
        if find_spec(module) is None:
            raise SensoriumError(f'to train this needs {module}: pip install "sensorium[{extra}]"')


def one_of(option: str, given: str, known: Sequence[str]) -> str:
    """`given`, if it is among the `known` choices of an option; BadKeyword naming them otherwise."""
    if given not in known:
        raise BadKeyword(f"{option}={given!r} is not one of {', '.join(known)}")
    return given


@torch.no_grad()
def meet(encoders: Mapping[str, nn.Module], prepared: Any, rows: np.ndarray) -> None:
    """Show the encoder of each column what these rows hold of it, where it takes something from that."""
    for name, encoder in encoders.items():
        for part in encoder.modules():
            if isinstance(part, Meets):
                part.meet(prepared.met(name, rows))
