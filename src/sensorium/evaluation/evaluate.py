"""How good is a trained model? Every split by itself, as its recipe says it is judged (`EvaluationSpec.evaluator`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sensorium.errors import SensoriumError
from sensorium.evaluation.report import EvaluationReport

if TYPE_CHECKING:
    from sensorium.data.dataset import Dataset
    from sensorium.training.checkpoint import Model


def evaluate(
    model: Model, dataset: Dataset, *, splits: Sequence[str] | None = None, **options: Any
) -> EvaluationReport:
    """The figures of each split, beside those of chance and of trivial answers.

    splits: by default all but train and spare. asked: what the recipe's judge may be asked besides (of retrieval: see
    `recipes.judge_retrieval.retrieval`; of words, answers and pictures: the files beside it).
    Raises SensoriumError for a split or column that is not there, a question the judge does not take, or a recipe that
    does not say how it is judged.
    """
    judge = model.recipe.evaluation.evaluator
    if judge is None:
        raise SensoriumError(
            f"recipe {model.config.recipe} does not say how it is judged: give its "
            "EvaluationSpec an evaluator"
        )
    _check_options(judge, options, model.config.recipe)
    for split in splits or ():
        if split not in dataset.splits:
            raise SensoriumError(
                f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}"
            )
    known = [s for s in dataset.splits if s not in ("train", "spare")] or list(dataset.splits)
    report = judge(model, dataset, splits or known, **options)
    about = {"run": str(model.folder), "fingerprint": model.fingerprint, "data": dataset.name}
    return replace(report, metadata={**about, **report.metadata})


def _check_options(
    evaluator: Callable[..., EvaluationReport], options: dict[str, Any], recipe_name: str
) -> None:
    takes = [
        p.name for p in inspect.signature(evaluator).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    for name in options:
        if name not in takes:
            raise SensoriumError(
                f"a model of recipe {recipe_name} is not judged by {name!r}; it takes "
                f"{', '.join(takes) or 'nothing more'}"
            )
