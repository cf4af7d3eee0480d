"""Settings of a recipe trained like for like, each in a run of its own, and held beside each other.

out/fuse=gated/, out/fuse=gated,fold=1,seed=0/, ...     the runs
out/comparison.json, out/comparison.md                  what they came to, written after each
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
from sensorium.recipes.recipe import BadKeyword, RecipeFunction, dry_build, split_keywords
from sensorium.training.checkpoint import Model, get_recipe_name, load_checkpoint
from sensorium.training.loop import Interrupted, train
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.run import fingerprint
from sensorium.training.run_folder import lock_folder, next_numbered
from sensorium.training.train_step import check_training_config
from sensorium.tuning.comparison import Comparison, RunResult

RESULTS_FILE = "comparison.json"
LogFunction = Callable[[str], object]


@dataclass(frozen=True)
class Trial:
    """One run that is to be made. rows: the split it is judged on."""

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
    """Train a recipe with each combination of the keywords that are given several values (a list or tuple).

    Of a keyword that may be several names at once (columns), a tuple is one value, and a list several.
    All see the same rows, the same epochs and the same chance (`seed`). Of several seeds, and with `folds`, each
    setting is trained so many times, and its figures are means. Without folds, figures are those of the validation
    rows, which also chose each run's weights. With them, the rows of train are dealt into so many parts (see
    `Dataset.folds`); each run is judged on the one it was not trained on, which chose nothing. Rows of test are never
    looked at. Where no keyword is varied, those are that the recipe names (`EvaluationSpec.sweep`; fusion: how parts
    meet).
    out: the folder; None: the next of runs/compare-0001, .... What is finished there is not trained again.
    Raises SensoriumError, before any run is made, for keywords that one could not be built with; Stopped on SIGINT or
    SIGTERM, after a save: the same call then goes on. A run whose numbers do not stay finite is told of in the table.
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
        record = _ComparisonState(folder, plan)
        log(f"{len(trials)} runs into {folder}")
        for i, trial in enumerate(trials, 1):
            told = _format_result(record.run_trial(recipe, trial))
            log(f"[{i}/{len(trials)}] {trial.name or 'as it comes'}: {told}")
        judged = dry_build(recipe, dataset.schema, trials[0].keywords).evaluation
        found = Comparison(
            recipe.__name__,
            _dataset_arguments(dataset),
            judged.metric,
            judged.mode,
            folds,
            fixed,
            [(trial.setting, trial.repetition, record.results[trial.name]) for trial in trials],
            folder,
        )
        atomic.write_file(folder / "comparison.md", found.to_markdown().encode())
    return found


def _dataset_arguments(dataset: Dataset) -> list[str]:
    """A data set as a command line names it."""
    said = dict(dataset.source)
    path, columns = str(said.pop("path", dataset.name)), said.pop("types", {})
    own = [
        f"--{name}={said.pop(name)}"
        for name in ("split", "group", "test", "max_invalid_fraction")
        if name in said
    ]
    kinds = [
        part
        for what, named in (("type", columns), ("synonyms", said.pop("synonyms", {})))
        for name, value in named.items()
        for part in (f"--{what}", f"{name}={value}")
    ]
    return [
        path,
        *(o.replace("max_invalid_fraction", "max-invalid-fraction") for o in own if o != "--max_invalid_fraction=0.01"),
        *kinds,
        *(part for name, value in said.items() for part in ("--source-option", f"{name}={value}")),
    ]


def _resolve_output_folder(out: str | Path | None) -> Path:
    try:
        folder = next_numbered(Path("runs"), "compare") if out is None else Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError as e:
        raise SensoriumError(
            f"cannot write to {out or 'runs'}: {e.strerror or e}. Choose another folder with out= "
            "(--out)"
        ) from e


def _split_varied(
    recipe: RecipeFunction[Any], dataset: Dataset, keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(keywords that are the same in all runs, values of those that are varied)."""
    split_keywords(recipe, keywords)
    several = {
        name: [value for i, value in enumerate(values) if value not in values[:i]]
        for name, values in keywords.items()
        if isinstance(values, list)
        or (isinstance(values, tuple) and not _takes_names(recipe, name))
    }
    if empty := [name for name, values in several.items() if not values]:
        raise BadKeyword(f"{empty[0]} was given no value")
    varied = {name: values for name, values in several.items() if len(values) > 1}
    fixed = {
        name: several[name][0] if name in several else value
        for name, value in keywords.items()
        if name not in varied
    }
    if not varied.keys() - {"seed"}:
        usual = dry_build(
            recipe,
            dataset.schema,
            {**fixed, **{name: values[0] for name, values in varied.items()}},
        )
        varied |= {
            name: list(values)
            for name, values in usual.evaluation.sweep.items()
            if name not in fixed
        }
    return fixed, varied


def _takes_names(recipe: RecipeFunction[Any], keyword: str) -> bool:
    """Return whether a keyword may be several names at once, such as columns that are read as one."""
    parameter = inspect.signature(recipe).parameters.get(keyword)
    several = ("Sequence[str]", "tuple[str", "list[str")
    return parameter is not None and any(kind in str(parameter.annotation) for kind in several)


def _iter_trials(
    recipe: RecipeFunction[Any],
    dataset: Dataset,
    folds: int,
    fixed: Mapping[str, Any],
    varied: Mapping[str, Sequence[Any]],
) -> Iterator[Trial]:
    """Every setting once, then every setting again. Raises SensoriumError where there is nothing to compare."""
    names = [name for name in varied if name != "seed"]
    settings = [
        dict(zip(names, values, strict=True))
        for values in product(*(varied[name] for name in names))
    ]
    if len(settings) == 1 and not folds and "seed" not in varied:
        raise SensoriumError(
            f"nothing is varied: give some keyword of {recipe.__name__} several values "
            f"(--dim 64,128; dim=[64, 128]), or ask for folds"
        )
    for setting in settings:
        check_training_config(dry_build(recipe, dataset.schema, {**fixed, **setting}).training)
    parts = (
        [("", dataset)]
        if not folds
        else [(f"fold={i}", part) for i, part in enumerate(dataset.folds(folds), 1)]
    )
    if not folds and not len(dataset.splits.get("val", ())):
        raise SensoriumError(
            f"{dataset.name} has no validation rows to compare by: ask for folds (--folds 5)"
        )
    seeds = [{"seed": seed} for seed in varied["seed"]] if "seed" in varied else [{}]
    for (fold, data), seed in product(parts, seeds):
        repeat = ",".join([*filter(None, [fold]), *(f"seed={s}" for s in seed.values())])
        for setting in settings:
            name = ",".join([*(f"{k}={v}" for k, v in setting.items()), *filter(None, [repeat])])
            yield Trial(
                name,
                setting,
                {**fixed, **setting, **seed},
                data,
                "fold" if folds else "val",
                repeat,
            )


class _ComparisonState:
    """comparison.json: what was asked for, and what the runs that are finished came to."""

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self.plan = folder, plan
        self.results: dict[str, RunResult] = {}
        self.cpu_seconds: dict[str, float] = {}  # CPU seconds of runs that were stopped
        if (folder / RESULTS_FILE).exists():
            self._load()
        elif left := sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp")):
            raise SensoriumError(
                f"{folder} is not empty ({left[0]}, ...): choose a new folder for the comparison"
            )
        self.save()

    def _load(self) -> None:
        path = self.folder / RESULTS_FILE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.results = {name: RunResult(**result) for name, result in found["runs"].items()}
            self.cpu_seconds, before = found["spent"], found["plan"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise SensoriumError(f"{path} cannot be read: {e}. Compare into a new folder") from e
        if other := [name for name, value in self.plan.items() if before.get(name) != value]:
            raise SensoriumError(
                f"{self.folder} holds a comparison of other {other[0]}: then {before.get(other[0])}, "
                f"now {self.plan[other[0]]}. Choose a new folder for this one"
            )

    def save(self) -> None:
        """Write it durably."""
        atomic.write_json(
            self.folder / RESULTS_FILE,
            {
                "plan": self.plan,
                "spent": self.cpu_seconds,
                "runs": {name: asdict(result) for name, result in self.results.items()},
            },
        )

    def run_trial(self, recipe: RecipeFunction[Any], trial: Trial) -> RunResult:
        """What a run came to; it is made, or gone on with, where it is not finished."""
        at = self.folder / _folder_name(trial.name)
        if trial.name not in self.results or (
            not (at / "README.md").exists() and not self.results[trial.name].error
        ):
            start, before = time.process_time(), self.cpu_seconds.get(trial.name, 0.0)
            figures, parameters, failed = dict[str, float](), 0, ""
            try:
                figures, parameters = _evaluate_trial(_train_or_load(recipe, trial, at), trial)
                failed = next(
                    (
                        f"{name} is {value}"
                        for name, value in figures.items()
                        if not math.isfinite(value)
                    ),
                    "",
                )
            except NonFiniteError as fault:
                failed = str(fault)
            except Interrupted as stopped:
                self.cpu_seconds[trial.name] = before + time.process_time() - start
                self.save()
                raise Interrupted(
                    f"stopped, and all is saved in {self.folder}: the same command with --out {self.folder} "
                    "goes on from here",
                    stopped.exit_code,
                ) from None
            seconds = before + time.process_time() - start
            self.results[trial.name] = RunResult(
                at.name, {} if failed else figures, parameters, seconds, failed
            )
            self.save()
        return self.results[trial.name]


def _train_or_load(recipe: RecipeFunction[Any], trial: Trial, folder: Path) -> Model:
    if (folder / "README.md").exists():  # what a run writes last
        return load_checkpoint(folder, recipe=recipe)
    return train(
        recipe,
        trial.dataset,
        out=folder,
        resume=(folder / "config.json").exists(),
        quiet=True,
        **trial.keywords,
    )


def _evaluate_trial(model: Model, trial: Trial) -> tuple[dict[str, float], int]:
    """(what validation finds on the rows that are to judge, how many parameters)."""
    data, validate = model.recipe.data, model.recipe.evaluation.validate
    if validate is None:
        raise SensoriumError(
            f"recipe {model.config.recipe} has no figure to compare by: give its EvaluationSpec a "
            "validate"
        )
    derived = data.derived_columns(trial.dataset) if data.derived_columns else {}
    prepared = trial.dataset.prepare(model.schema, data.columns, derived_columns=derived, quiet=True)
    rows = np.setdiff1d(trial.dataset.splits[trial.split], [b.row for b in prepared.bad_samples])
    figures = {
        name: float(value) for name, value in validate(model.module, prepared, rows).figures.items()
    }
    return figures, sum(p.numel() for p in model.module.parameters())


def _folder_name(name: str) -> str:
    """A setting as the name of a folder."""
    plain = re.sub(r"[^\w.,=+-]+", "-", name)[:100] or "as-it-comes"
    return (
        plain
        if plain == name or not name
        else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


def _format_result(result: RunResult) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    return (
        f"failed: {result.error}"
        if result.error
        else f"{figures}; {result.cpu_seconds:.1f} CPU seconds"
    )
