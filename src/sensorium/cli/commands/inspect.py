"""Commands that describe models and this machine: `summary`, `demo`, `doctor`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from sensorium.cli.models import is_run, load_run
from sensorium.cli.options import (
    DEFAULT_DATA_OPTIONS,
    DataOptionsGroup,
    JsonOption,
    ModelArgument,
    RecipeOption,
)
from sensorium.cli.output import emit
from sensorium.cli.recipe_signature import builtin_recipes, resolve_recipe
from sensorium.errors import SensoriumError


def summarize_recipe(
    recipe: str,
    /,
    *,
    data: Annotated[str | None, Parameter(help="Take the columns of this dataset.")] = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Show the parameters, FLOPs and memory of a model before training."""
    from sensorium.cli.model_summary import default_schema, summarize_recipe

    schema = data_options.open(data).schema if data else default_schema(data_options.column_types())
    emit(summarize_recipe(resolve_recipe(recipe), schema, overrides), as_json)


def summarize_source(
    model: ModelArgument, /, *, recipe: RecipeOption = None, as_json: JsonOption = False
) -> None:
    """Show the size of a run or of pretrained weights.

    Of a run: parameters, FLOPs and memory of a training step. With a recipe instead of a model
    (sensorium summary RECIPE), nothing needs to be trained.
    """
    if recipe or is_run(model):
        from sensorium.cli.model_summary import summarize_model

        emit(summarize_model(load_run(model, recipe, "summary")), as_json)
        return
    if not Path(model).exists() and len(Path(model).parts) != 2:
        raise SensoriumError(
            f"{model} is neither a run, pretrained weights nor a recipe. Recipes are "
            f"{', '.join(builtin_recipes())}."
        )
    from sensorium.pretrained.describe import describe_pretrained

    emit(describe_pretrained(model), as_json)


def demo(*, out: Path = Path("demo")) -> None:
    """Run the whole workflow on the bundled emoji: train, evaluate, index, search.

    The results become a page, index.html, in the output folder.

    Args:
        out: Output folder. What is already finished there is not repeated.
    """
    from sensorium.cli.demo import demo

    demo(out)


def doctor(*, as_json: JsonOption = False) -> None:
    """Check this machine and installation: versions, extras, devices, disk, known problems."""
    from sensorium.cli.doctor import check_environment

    emit(check_environment(), as_json)
