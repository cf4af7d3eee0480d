"""What a run leaves on the disk, and how it is read again: `load` makes a run folder a model that answers its verbs.

config.json          recipe, keywords, versions, what it was trained on
schema.json          the columns and their settings; tokenizer.json beside it
model.safetensors    the best weights (averaged, where the run averages)
start.safetensors    the first weights, where the run began with trained ones
state/               what `train(resume=True)` continues from
"""

import inspect
from pathlib import Path
from typing import Any

from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.io.run_config import RunConfig
from sensorium.recipes.from_run import restore_run
from sensorium.recipes.recipe import Recipe, RecipeFunction


class Model(VerbModel):
    """A trained recipe. It has the verbs of its recipe (`embed`, `generate`, `predict`) and no others."""

    def __init__(
        self, recipe: Recipe[Any], schema: Schema, config: RunConfig, fingerprint: str, folder: Path
    ):
        super().__init__(f"model of recipe {config.recipe}", recipe.verbs)
        self.recipe, self.schema, self.config = recipe, schema, config
        self.fingerprint, self.folder = (
            fingerprint,
            folder,
        )  # SHA-256 of the weights' file, and the run it lies in
        self.module = recipe.model.eval()

    def __repr__(self) -> str:
        return (
            f"Model({self.config.recipe} from {self.folder}, verbs: {', '.join(self.recipe.verbs)})"
        )


def load_checkpoint(folder: str | Path, *, recipe: RecipeFunction[Any] | None = None) -> Model:
    """The best model of a run, ready to answer.

    recipe: the function it was trained with, where that is not one of sensorium's own; a path found in a file is
    never imported. Raises SensoriumError where the folder is no run, incomplete, damaged or of another version.
    """
    found = restore_run(
        folder, recipe or resolve_builtin_recipe(RunConfig.load(Path(folder)), Path(folder))
    )
    return Model(found.recipe, found.schema, found.config, found.fingerprint, found.folder)


def resolve_builtin_recipe(config: RunConfig, folder: Path) -> RecipeFunction[Any]:
    """The function that a run's config names, from sensorium's own table."""
    from sensorium.recipes import RECIPES

    if config.recipe not in RECIPES:
        raise SensoriumError(
            f"{folder} was trained with {config.recipe}, which is no recipe of sensorium's own ("
            f"{', '.join(RECIPES)}). Code that a file names is not run by itself: name it, as in "
            f"sn.load({str(folder)!r}, recipe=mine), or --recipe {config.recipe} on the command line."
        )
    return RECIPES[config.recipe]


def get_recipe_name(recipe_fn: RecipeFunction[Any]) -> str:
    """How config.json names a recipe: by its name if it is one of ours, else by file and function."""
    from sensorium.recipes import RECIPES

    name, source = recipe_fn.__name__, Path(inspect.getsourcefile(recipe_fn) or "")
    if RECIPES.get(name) is recipe_fn:
        return name
    return f"{source.resolve() if source.is_file() else recipe_fn.__module__}:{name}"
