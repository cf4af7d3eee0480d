"""What a run leaves on the disk, and how it is read again: `load` makes a run folder a model that answers its verbs.

    config.json          recipe, keywords, versions, what it was trained on
    schema.json          the columns and their settings; tokenizer.json beside it
    model.safetensors    the best weights (averaged, where the run averages)
    start.safetensors    the first weights, where the run began with trained ones
    state/               what `train(resume=True)` continues from
"""
import inspect
import json
import platform
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sensorium import __version__, durable
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.recipes.recipe import Make, Recipe, build
from sensorium.stored import digest, read_tensors, weights
from sensorium.verbs.verb import Answers

FORMAT = 1                                              # of a run folder; a reader of 1 refuses any other
WEIGHTS = "model.safetensors"
START = "start.safetensors"                             # the first weights, of a run that began with trained ones


@dataclass(frozen=True)
class Config:
    """config.json: everything that went into a run but the data themselves."""

    recipe: str                                         # a name in RECIPES, or FILE:FUNCTION of the user's own
    keywords: dict[str, Any]                            # the recipe's and the training's, all of them
    precision: str                                      # fp32 or bf16: what "auto" came to
    data: dict[str, Any]                                # name, rows, splits, and a hash of which row is where
    versions: dict[str, str] = field(default_factory=lambda: versions())
    format: int = FORMAT
    library_name: str = "sensorium"                     # what a hub of models asks

    def save(self, folder: Path) -> None:
        """Write config.json."""
        durable.write_json(folder / "config.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "Config":
        """Read config.json. Raises SensoriumError where it is missing, damaged or of another version."""
        found = _json(folder / "config.json")
        if found.get("format") != FORMAT:
            raise SensoriumError(f"{folder} is a run of format {found.get('format')!r}; sensorium {__version__} reads "
                                 f"{FORMAT}. Use the one that wrote it ({found.get('versions')}) or train again.")
        if wrong := {f.name for f in fields(cls)} ^ {"library_name", *found}:
            raise SensoriumError(f"{folder / 'config.json'} has missing or unknown keys: {', '.join(sorted(wrong))}. "
                                 "It was changed by hand or damaged.")
        return cls(**found)


class Model(Answers):
    """A trained recipe. It has the verbs of its recipe (`embed`, `generate`, `predict`) and no others."""

    def __init__(self, recipe: Recipe, schema: Schema, config: Config, fingerprint: str, folder: Path):
        super().__init__(f"model of recipe {config.recipe}", recipe.verbs)
        self.recipe, self.schema, self.config = recipe, schema, config
        self.fingerprint, self.folder = fingerprint, folder     # SHA-256 of the weights' file, and the run it lies in
        self.module = recipe.model.eval()

    def __repr__(self) -> str:
        return f"Model({self.config.recipe} from {self.folder}, verbs: {', '.join(self.recipe.verbs)})"


def load(folder: str | Path, *, recipe: Make | None = None) -> Model:
    """The best model of a run, ready to answer.

    recipe: the function it was trained with, where that is not one of sensorium's own; a path found in a file is
    never imported. Raises SensoriumError where the folder is no run, incomplete, damaged or of another version.
    """
    folder = Path(folder)
    config = Config.load(folder)
    schema = Schema.load(folder)
    with torch.random.fork_rng():                       # first weights are drawn, then overwritten
        made, _ = build(recipe or known_recipe(config, folder), schema, config.keywords)
    read_weights(made.model, folder / WEIGHTS)
    return Model(made, schema, config, digest(folder / WEIGHTS), folder)


def known_recipe(config: Config, folder: Path) -> Make:
    """The function that a run's config names, from sensorium's own table."""
    from sensorium.recipes import RECIPES
    if config.recipe not in RECIPES:
        raise SensoriumError(f"{folder} was trained with {config.recipe}, which is no recipe of sensorium's own ("
                             f"{', '.join(RECIPES)}). Code that a file names is not run by itself: name it, as in "
                             f"sn.load({str(folder)!r}, recipe=mine), or --recipe {config.recipe} on the command line.")
    return RECIPES[config.recipe]


def recipe_name(make: Make) -> str:
    """How config.json names a recipe: by its name if it is one of ours, else by file and function."""
    from sensorium.recipes import RECIPES
    name, source = make.__name__, Path(inspect.getsourcefile(make) or "")
    if RECIPES.get(name) is make:
        return name
    return f"{source.resolve() if source.is_file() else make.__module__}:{name}"


def read_weights(module: nn.Module, path: Path) -> None:
    """Copy a file's tensors into a module that has exactly those names and shapes."""
    found, wanted = read_tensors(path), weights(module)
    wrong = sorted(set(found) ^ set(wanted)) + [k for k in wanted if k in found and found[k].shape != wanted[k].shape]
    if wrong:
        raise SensoriumError(f"{path} does not fit the recipe: {len(wrong)} tensors are missing, unknown or of another "
                             f"shape, the first is {wrong[0]}. The recipe has changed since the run.")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {"sensorium": __version__, "torch": torch.__version__, "numpy": np.__version__,
            "python": platform.python_version()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise SensoriumError(f"{path.parent} is not a run of sensorium: it has no {path.name}") from e
    except (OSError, ValueError) as e:
        raise SensoriumError(f"{path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise SensoriumError(f"{path} does not hold a JSON object")
    return found
