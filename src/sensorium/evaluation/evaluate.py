"""Evaluate a trained model on each split, with the evaluator of its recipe."""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.evaluation.spec import Evaluator

EXCLUDED_SPLITS = ("train", "extra")  # evaluated only on request


def evaluate(
    model: Trained, dataset: Dataset, *, splits: Sequence[str] | None = None, **options: Any
) -> EvaluationReport:
    """Return metrics of each split, compared with chance and simple baselines.

    Args:
        model: the model, as `sensorium.load` returns it.
        dataset: the dataset; it needs the columns that the model reads.
        splits: names of the splits; by default all but `train` and `extra`.
        **options: keyword arguments of the recipe's evaluator, see `evaluate_retrieval`,
            `caption_evaluator`, `answer_evaluator`, `image_generation_evaluator` and
            `prediction_evaluator`.

    Raises:
        SensoriumError: if a split or column is missing, if the evaluator does not take an option,
            if the recipe has no evaluator, or if weights of the model are not finite.
    """
    recipe_name = model.config.recipe
    evaluator = model.recipe.evaluation.evaluator
    if evaluator is None:
        raise SensoriumError(
            f"{recipe_name} has no evaluation report. Compare runs by their validation metric; "
            "a recipe of your own needs an EvaluationSpec with an evaluator."
        )
    _check_weights(model)
    _check_options(evaluator, options, recipe_name)
    for split in splits or ():
        if split not in dataset.splits:
            raise SensoriumError(
                f"{dataset.name} has no split {split!r}. Choose from {', '.join(dataset.splits)}."
            )
    evaluated = splits or [name for name in dataset.splits if name not in EXCLUDED_SPLITS]
    report = evaluator(model, dataset, evaluated or list(dataset.splits), **options)
    metadata = {
        "run": str(model.folder),
        "fingerprint": model.fingerprint,
        "data": dataset.name,
    }
    return replace(report, metadata={**metadata, **report.metadata})


def _check_weights(model: Trained) -> None:
    """Reject a model with NaN or infinity in its weights, of which no metric means anything."""
    for name, weight in model.module.named_parameters():
        if not weight.isfinite().all():
            raise SensoriumError(
                f"{model.folder} holds NaN or infinity in the weight {name}, so that its output "
                "means nothing. Train it again, or download it again."
            )


def _check_options(evaluator: Evaluator, options: dict[str, Any], recipe_name: str) -> None:
    """Reject options that the evaluator does not take."""
    parameters = inspect.signature(evaluator).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            names = ", ".join(map(_option_name, known)) or "none"
            raise SensoriumError(
                f"{_option_name(name)} is not an evaluation option of {recipe_name}. "
                f"Options of this model: {names}."
            )


def _option_name(keyword: str) -> str:
    """Return a keyword as it is typed on the command line."""
    return f"--{keyword.replace('_', '-')}"
