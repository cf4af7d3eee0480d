"""Train a recipe with several settings on the same rows and compare the results.

out/fusion=gated/, out/fusion=gated,fold=1,seed=0/, ...     run folders
out/comparison.json, out/comparison.md                      results, written after each run
"""

import hashlib
import inspect
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.recipes.recipe import InvalidKeywordError, RecipeFunction, dry_build, split_keywords
from sensorium.training.checkpoint import Model, get_recipe_name, load_checkpoint
from sensorium.training.interruption import Interrupted
from sensorium.training.loop import train
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.run_folder import lock_folder, next_numbered
from sensorium.training.run_setup import fingerprint
from sensorium.training.train_step import check_training_config
from sensorium.tuning.comparison import Comparison, RunResult

RESULTS_FILE = "comparison.json"
DEFAULT_MAX_INVALID_FRACTION = 0.01
LIST_ANNOTATIONS = (
    "Sequence[str]",
    "tuple[str",
    "list[str",
)  # annotations of keywords that are lists
DATA_OPTIONS = ("split", "group", "test", "max_invalid_fraction")
LogFunction = Callable[[str], object]


@dataclass(frozen=True)
class Trial:
    """One run of a comparison.

    Attributes:
        name: name of its folder and of its result.
        setting: the varied keywords.
        keywords: all keywords.
        dataset: the data it is trained on.
        split: the split it is evaluated on.
        repetition: its fold and seed, such as "fold=1,seed=0".
    """

    name: str
    setting: dict[str, Any]
    keywords: dict[str, Any]
    dataset: Dataset
    split: str
    repetition: str


def compare(
    recipe: RecipeFunction[Any],
    dataset: Dataset,
    *,
    out: str | Path | None = None,
    folds: int = 0,
    log: LogFunction = print,
    **keywords: Any,
) -> Comparison:
    """Train a recipe with every combination of the keywords that have several values.

    All settings see the same rows, epochs and seed. With several seeds or folds, each setting is
    trained repeatedly and its metrics are averaged. Without folds, metrics are those of the
    validation split, which also selected each run's weights; with folds, each run is evaluated on
    training rows that it did not see. Test rows are never used.

    Args:
        recipe: the recipe.
        dataset: the data.
        out: output folder; None: the next free runs/compare-0001. Finished runs in it are not
            trained again.
        folds: number of cross-validation folds of the training split (see `Dataset.folds`); 0:
            none.
        log: receives progress messages.
        **keywords: keywords of the recipe and of its training; a list has several values to
            compare, and so has a tuple unless the keyword takes several names (columns). With
            nothing varied, the recipe's own sweep is used (`EvaluationSpec.sweep`; fusion: the
            fusion methods).

    Returns:
        The comparison. A run that became non-finite is marked as failed in it.

    Raises:
        SensoriumError: before any training, for keywords that do not fit.
        Interrupted: on SIGINT or SIGTERM, after saving; the same call resumes.
    """
    fixed, varied = _split_varied(recipe, dataset, keywords)
    trials = list(_iter_trials(recipe, dataset, folds, fixed, varied))
    folder = _resolve_output_folder(out)
    plan = {
        "recipe": get_recipe_name(recipe),
        "keywords": json.loads(json.dumps(fixed)),
        "varied": sorted(varied),
        "folds": folds,
        "data": fingerprint(dataset),
    }
    with lock_folder(folder):
        state = _ComparisonState(folder, plan)
        log(f"{len(trials)} runs into {folder}")
        for i, trial in enumerate(trials, 1):
            summary = _format_result(state.run_trial(recipe, trial))
            log(f"[{i}/{len(trials)}] {trial.name or 'defaults'}: {summary}")
        evaluation = dry_build(recipe, dataset.schema, trials[0].keywords).evaluation
        comparison = Comparison(
            recipe.__name__,
            _dataset_arguments(dataset),
            evaluation.metric,
            evaluation.mode,
            folds,
            fixed,
            [(trial.setting, trial.repetition, state.results[trial.name]) for trial in trials],
            folder,
        )
        atomic.write_file(folder / "comparison.md", comparison.to_markdown().encode())
    return comparison


def _dataset_arguments(dataset: Dataset) -> list[str]:
    """Return the dataset as command-line arguments."""
    source = dict(dataset.source)
    path = str(source.pop("path", dataset.name))
    pairs = {"type": source.pop("types", {}), "synonyms": source.pop("synonyms", {})}
    if source.get("max_invalid_fraction") == DEFAULT_MAX_INVALID_FRACTION:
        del source["max_invalid_fraction"]
    options = [name for name in DATA_OPTIONS if name in source]
    arguments = [path, *(f"--{name.replace('_', '-')}={source.pop(name)}" for name in options)]
    for option, values in pairs.items():
        for name, value in values.items():
            arguments += [f"--{option}", f"{name}={value}"]
    for name, value in source.items():
        arguments += ["--source-option", f"{name}={value}"]
    return arguments


def _resolve_output_folder(out: str | Path | None) -> Path:
    try:
        folder = next_numbered(Path("runs"), "compare") if out is None else Path(out)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SensoriumError(
            f"Cannot write to {out or 'runs'}: {e.strerror or e}. Choose another folder with --out."
        ) from e
    return folder


def _split_varied(
    recipe: RecipeFunction[Any], dataset: Dataset, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Return (keywords that are the same in all runs, values of those that vary)."""
    split_keywords(recipe, keywords)
    fixed: dict[str, Any] = {}
    varied: dict[str, list[Any]] = {}
    for name, value in keywords.items():
        if not _is_several(recipe, name, value):
            fixed[name] = value
            continue
        distinct = [item for i, item in enumerate(value) if item not in value[:i]]
        if not distinct:
            raise InvalidKeywordError(f"{name} has no value. Give at least one.")
        if len(distinct) == 1:
            fixed[name] = distinct[0]
        else:
            varied[name] = distinct
    if not varied.keys() - {"seed"}:
        first = {**fixed, **{name: values[0] for name, values in varied.items()}}
        sweep = dry_build(recipe, dataset.schema, first).evaluation.sweep
        varied |= {name: list(values) for name, values in sweep.items() if name not in fixed}
    return fixed, varied


def _is_several(recipe: RecipeFunction[Any], name: str, value: Any) -> bool:
    """Return whether a keyword has several values to compare."""
    return isinstance(value, list) or (isinstance(value, tuple) and not _takes_names(recipe, name))


def _takes_names(recipe: RecipeFunction[Any], keyword: str) -> bool:
    """Return whether a keyword takes several names at once, such as columns read as one input."""
    parameter = inspect.signature(recipe).parameters.get(keyword)
    return parameter is not None and any(
        annotation in str(parameter.annotation) for annotation in LIST_ANNOTATIONS
    )


def _iter_trials(
    recipe: RecipeFunction[Any],
    dataset: Dataset,
    folds: int,
    fixed: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
) -> Iterator[Trial]:
    """Yield every setting once, then again for each further seed and fold."""
    names = [name for name in varied if name != "seed"]
    settings = [
        dict(zip(names, values, strict=True))
        for values in product(*(varied[name] for name in names))
    ]
    if len(settings) == 1 and not folds and "seed" not in varied:
        raise SensoriumError(
            f"There is nothing to compare. Give a keyword of {recipe.__name__} several values "
            "(--dim 64,128), or use --folds 5."
        )
    for setting in settings:
        check_training_config(dry_build(recipe, dataset.schema, {**fixed, **setting}).training)
    if not folds and not len(dataset.splits.get("val", ())):
        raise SensoriumError(
            f"{dataset.name} has no validation rows to compare on. Use cross-validation: --folds 5."
        )
    parts = [("", dataset)]
    if folds:
        parts = [(f"fold={i}", part) for i, part in enumerate(dataset.folds(folds), 1)]
    seeds = [{"seed": seed} for seed in varied["seed"]] if "seed" in varied else [{}]
    for (fold, part), seed in product(parts, seeds):
        repetition = ",".join([*filter(None, [fold]), *(f"seed={s}" for s in seed.values())])
        for setting in settings:
            labels = [f"{name}={value}" for name, value in setting.items()]
            yield Trial(
                ",".join([*labels, *filter(None, [repetition])]),
                setting,
                {**fixed, **setting, **seed},
                part,
                "fold" if folds else "val",
                repetition,
            )


class _ComparisonState:
    """comparison.json: the plan, and the results of the finished runs."""

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self.plan = folder, plan
        self.results: dict[str, RunResult] = {}
        self.cpu_seconds: dict[str, float] = {}  # of runs that were interrupted
        others = sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp"))
        if (folder / RESULTS_FILE).exists():
            self._load()
        elif others:
            raise SensoriumError(
                f"{folder} is not empty ({others[0]}, ...). Choose a new folder for the comparison."
            )
        self.save()

    def _load(self) -> None:
        path = self.folder / RESULTS_FILE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            self.results = {name: RunResult(**result) for name, result in state["runs"].items()}
            self.cpu_seconds = state["cpu_seconds"]
            stored_plan = state["plan"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise SensoriumError(f"{path} cannot be read: {e}. Choose a new folder.") from e
        for name, value in self.plan.items():
            if stored_plan.get(name) != value:
                raise SensoriumError(
                    f"{self.folder} holds a comparison with other {name}: "
                    f"{stored_plan.get(name)}, not {value}. Choose a new folder."
                )

    def save(self) -> None:
        """Write comparison.json durably."""
        runs = {name: asdict(result) for name, result in self.results.items()}
        state = {"plan": self.plan, "cpu_seconds": self.cpu_seconds, "runs": runs}
        atomic.write_json(self.folder / RESULTS_FILE, state)

    def run_trial(self, recipe: RecipeFunction[Any], trial: Trial) -> RunResult:
        """Return the result of a run; train or resume it if it is not finished."""
        folder = self.folder / _folder_name(trial.name)
        result = self.results.get(trial.name)
        if result and (result.error or (folder / "README.md").exists()):
            return result
        start = time.process_time()
        earlier_seconds = self.cpu_seconds.get(trial.name, 0.0)
        metrics: dict[str, float] = {}
        parameters = 0
        error = ""
        try:
            metrics, parameters = _evaluate_trial(_train_or_load(recipe, trial, folder), trial)
            error = _nonfinite_metric(metrics)
        except NonFiniteError as e:
            error = str(e)
        except Interrupted as e:
            self.cpu_seconds[trial.name] = earlier_seconds + time.process_time() - start
            self.save()
            raise Interrupted(
                f"Interrupted; progress is saved in {self.folder}. Resume with the same command "
                f"and --out {self.folder}.",
                e.exit_code,
            ) from None
        seconds = earlier_seconds + time.process_time() - start
        result = RunResult(folder.name, {} if error else metrics, parameters, seconds, error)
        self.results[trial.name] = result
        self.save()
        return result


def _nonfinite_metric(metrics: Mapping[str, float]) -> str:
    """Return a message about the first metric that is not finite; "" if all are."""
    return next((f"{k} is {v}" for k, v in metrics.items() if not math.isfinite(v)), "")


def _train_or_load(recipe: RecipeFunction[Any], trial: Trial, folder: Path) -> Model:
    if (folder / "README.md").exists():  # written last by a run
        return load_checkpoint(folder, recipe_fn=recipe)
    resume = (folder / "config.json").exists()
    return train(recipe, trial.dataset, out=folder, resume=resume, quiet=True, **trial.keywords)


def _evaluate_trial(model: Model, trial: Trial) -> tuple[dict[str, float], int]:
    """Return (metrics on the rows of the trial's split, number of parameters)."""
    data, validate = model.recipe.data, model.recipe.evaluation.validate
    if validate is None:
        raise SensoriumError(
            f"The recipe {model.config.recipe} has no validation metric to compare by. Give its "
            "EvaluationSpec a `validate`."
        )
    derived = data.derived_columns(trial.dataset) if data.derived_columns else {}
    prepared = trial.dataset.prepare(
        model.schema, data.columns, derived_columns=derived, quiet=True
    )
    rows = np.setdiff1d(trial.dataset.splits[trial.split], [b.row for b in prepared.bad_samples])
    result = validate(model.module, prepared, rows)
    metrics = {name: float(value) for name, value in result.metrics.items()}
    if baselines := model.recipe.evaluation.baselines:
        metrics |= baselines(model.module, prepared, rows)
    return metrics, sum(p.numel() for p in model.module.parameters())


def _folder_name(name: str) -> str:
    """Return a setting as a folder name."""
    plain = re.sub(r"[^\w.,=+-]+", "-", name)[:100] or "defaults"
    if plain == name or not name:
        return plain
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _format_result(result: RunResult) -> str:
    if result.error:
        return f"failed: {result.error}"
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    return f"{metrics}; {result.cpu_seconds:.1f} CPU seconds"
