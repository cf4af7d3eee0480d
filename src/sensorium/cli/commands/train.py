"""Commands that train: `train`, `compare`."""

from typing import Any

from sensorium.cli.options import (
    DEFAULT_DATA_OPTIONS,
    ComparisonOutputOption,
    DataArgument,
    DataOptionsGroup,
    FoldsOption,
    JsonOption,
    NewRowsOption,
    OutputOption,
    ReferenceOption,
    ResumeOption,
    SplitOption,
    SynonymsOption,
    TestDataOption,
)
from sensorium.cli.output import emit, log
from sensorium.cli.recipe_signature import resolve_recipe


def train(
    recipe: str,
    data: DataArgument,
    /,
    *,
    split: SplitOption = None,
    test: TestDataOption = None,
    synonyms: SynonymsOption = (),
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    out: OutputOption = None,
    resume: ResumeOption = False,
    new_rows: NewRowsOption = False,
    reference: ReferenceOption = None,
    **overrides: Any,
) -> None:
    """Train a model: sensorium train RECIPE DATA.

    Every keyword of the recipe is an option: sensorium train RECIPE --help.
    """
    from sensorium.recipes.recipe import dry_build
    from sensorium.training.loop import train

    recipe_fn = resolve_recipe(recipe)
    dataset = data_options.open(data, split=split, test=test, synonyms=synonyms)
    if not overrides.get("init"):
        dry_build(recipe_fn, dataset.schema, overrides)  # reports bad keywords before any work
    original = data_options.open(reference) if reference else None
    train(
        recipe_fn,
        dataset,
        out=out,
        resume=resume,
        reference=original,
        new_rows=new_rows,
        **overrides,
    )


def compare(
    recipe: str,
    data: DataArgument,
    /,
    *,
    split: SplitOption = None,
    test: TestDataOption = None,
    synonyms: SynonymsOption = (),
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    out: ComparisonOutputOption = None,
    folds: FoldsOption = 0,
    as_json: JsonOption = False,
    **overrides: Any,
) -> None:
    """Compare settings of a recipe on the same rows: sensorium compare RECIPE DATA.

    Any keyword may have several values: comma-separated (--dim 64,128), or repeated where the value
    is text (--optimizer adamw --optimizer muon). Repeated column options are read as one input, not
    compared. Each combination is trained once per --seed (0,1,2) and per fold. Without --folds,
    settings are compared on the validation split; with it, on held-out parts of the training split.
    Test rows are never used. Finished runs in --out are not trained again.
    """
    from sensorium.tuning.compare import compare

    dataset = data_options.open(data, split=split, test=test, synonyms=synonyms)
    comparison = compare(
        resolve_recipe(recipe), dataset, out=out, folds=folds, log=log, **overrides
    )
    emit(comparison.to_json() if as_json else comparison, as_json)
