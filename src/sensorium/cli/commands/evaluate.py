"""Commands that evaluate: `evaluate`, `interpolate`."""

from pathlib import Path
from typing import Annotated

from sensorium.cli.models import is_run, load_for_data, load_model, load_run, open_data
from sensorium.cli.options import (
    DEFAULT_DATA_OPTIONS,
    DEFAULT_EVAL_OPTIONS,
    FLAG,
    DataOptionsGroup,
    EvalOptionsGroup,
    JsonOption,
    ModelArgument,
    OptionalDataArgument,
    RecipeOption,
    ReferenceOption,
    RunArgument,
)
from sensorium.cli.output import emit


def evaluate(
    model: ModelArgument,
    data: OptionalDataArgument = None,
    /,
    *,
    split: Annotated[tuple[str, ...], FLAG] = (),
    eval_options: EvalOptionsGroup = DEFAULT_EVAL_OPTIONS,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    out: Path | None = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on each split and compare it with chance and simple baselines.

    Retrieval, captioning, question answering, text-to-image or prediction, by the model's recipe. A
    pretrained CLIP or SigLIP is evaluated as it is (zero-shot retrieval). The report is written as
    evaluation.json, evaluation.md and evaluation.html.

    Args:
        data: Dataset. Default: the one that the run was trained on.
        split: Split to evaluate. Repeatable. Default: all but train and extra.
        out: Folder of the report. Default: the run folder; pretrained weights have none.
    """
    from sensorium.evaluation.evaluate import evaluate

    loaded, dataset = load_for_data(model, recipe, data, data_options)
    options = eval_options.to_keywords(lambda source: load_model(source, None))
    report = evaluate(loaded, dataset, splits=split or None, **options)
    folder = out or (loaded.folder if is_run(model) else None)
    if folder:
        report.save(folder)
    emit(report.to_dict() if as_json else report, as_json)


def interpolate(
    run: RunArgument,
    data: OptionalDataArgument = None,
    /,
    *,
    reference: ReferenceOption = None,
    alpha: float | None = None,
    out: Path | None = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Interpolate between the pretrained and the fine-tuned weights of a run (WiSE-FT).

    Prints a table of the metric along the way; with --out, writes one interpolation as a run.

    Args:
        data: Dataset. Default: the one that the run was trained on.
        alpha: Weight of the fine-tuned weights, 0 to 1. Default: the best of the table.
        out: Folder for the interpolated run.
    """
    from sensorium.training.weight_interpolation import evaluate_interpolations, save_interpolation

    loaded = load_run(run, recipe, "interpolate")
    if alpha is None or not out:
        dataset = open_data(loaded, data, data_options)
        original = data_options.open(reference) if reference else None
        curve = evaluate_interpolations(loaded, dataset, original)
        emit(curve, as_json)
        alpha = curve.best_alpha
    if out:
        print(f"alpha {alpha:g} in {save_interpolation(loaded, alpha, out)}")
