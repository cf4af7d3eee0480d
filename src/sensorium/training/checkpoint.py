"""Load a finished run.

Files of a run folder:

config.json          recipe, keywords, versions, dataset
schema.json          the columns and their settings; tokenizer.json next to it
model.safetensors    the best weights (averaged, where the run averages)
start.safetensors    the initial weights, where the run starts from pretrained ones
trained_rows.safetensors   a hash of each row that was trained on
state/               checkpoints that `train(resume=True)` continues from
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.io.run_config import RunConfig
from sensorium.nn.tokens import ColumnKey, column_label, column_names
from sensorium.recipes.from_run import restore_run
from sensorium.recipes.recipe import Recipe, RecipeFunction


class Model(VerbModel):
    """A trained model with the verbs of its recipe: some of `embed`, `generate`, `predict`.

    A model that embeds text also has `classify`.

    Args:
        recipe: the recipe, with the trained weights in `recipe.model`.
        schema: the columns that the model reads.
        config: the config of the run.
        fingerprint: SHA-256 of the weights file.
        folder: the run folder.
        is_pretrained: whether the weights are pretrained ones, untrained here.

    Attributes:
        module: the torch module, in eval mode.
    """

    def __init__(
        self,
        recipe: Recipe[Any],
        schema: Schema,
        config: RunConfig,
        fingerprint: str,
        folder: Path,
        *,
        is_pretrained: bool = False,
    ):
        kind = f"model of recipe {config.recipe}"
        super().__init__(kind, recipe.verbs, is_pretrained=is_pretrained)
        self.recipe = recipe
        self.schema = schema
        self.config = config
        self.fingerprint = fingerprint
        self.folder = folder
        self.module = recipe.model.eval()

    def __repr__(self) -> str:
        verbs = ", ".join(self.verbs)
        return f"Model({self.config.recipe} from {self.folder}, verbs: {verbs})"

    def _repr_html_(self) -> str:
        from sensorium.io.web_page import notebook_html

        kinds = {name: column.kind for name, column in self.schema.columns.items()}
        return notebook_html(
            f"{self.config.recipe} from {self.folder}",
            [(column_label(key), _kind(key, kinds)) for key in self.recipe.data.columns],
            header=("column", "type"),
            facts={
                "verbs": ", ".join(self.verbs) or "none",
                "parameters": f"{sum(p.numel() for p in self.module.parameters()):,}",
            },
        )


def _kind(key: ColumnKey, kinds: Mapping[str, str]) -> str:
    """Return the type of a column; of several text columns, that of the first."""
    return kinds.get(column_names(key)[0], "")


def load_checkpoint(folder: str | Path, *, recipe_fn: RecipeFunction[Any] | None = None) -> Model:
    """Load the best model of a run.

    Args:
        folder: the run folder.
        recipe_fn: the recipe function of the run; None: the built-in recipe that config.json names.
            A custom recipe must be passed: code that a file names is never imported.

    Raises:
        SensoriumError: the folder is not a run, incomplete, damaged or of another format version.
    """
    folder = Path(folder)
    if recipe_fn is None:
        recipe_fn = resolve_builtin_recipe(RunConfig.load(folder), folder)
    run = restore_run(folder, recipe_fn)
    return Model(run.recipe, run.schema, run.config, run.fingerprint, run.folder)


def resolve_builtin_recipe(config: RunConfig, folder: Path) -> RecipeFunction[Any]:
    """Return the built-in recipe that a run's config names.

    Raises:
        SensoriumError: the run was trained with a custom recipe.
    """
    from sensorium.recipes import RECIPES

    if config.recipe not in RECIPES:
        raise SensoriumError(
            f"{folder} was trained with {config.recipe}, which is not a built-in recipe "
            f"({', '.join(RECIPES)}). Code that a file names is never run by itself: add --recipe "
            f'{config.recipe}, or in Python sn.load("{folder}", recipe_fn=...).'
        )
    return RECIPES[config.recipe]


def get_recipe_name(recipe_fn: RecipeFunction[Any]) -> str:
    """Return how config.json names a recipe: its name if built in, otherwise FILE:FUNCTION."""
    from sensorium.recipes import RECIPES

    name = recipe_fn.__name__
    if RECIPES.get(name) is recipe_fn:
        return name
    source = Path(inspect.getsourcefile(recipe_fn) or "")
    location = source.resolve() if source.is_file() else recipe_fn.__module__
    return f"{location}:{name}"
