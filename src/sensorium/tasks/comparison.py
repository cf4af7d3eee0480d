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

from sensorium import durable
from sensorium.checkpoint import Model, load, recipe_name
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.recipes.recipe import BadKeyword, Make, planned, split_keywords
from sensorium.run import alone, fingerprint, numbered
from sensorium.step import NonFinite, check
from sensorium.tasks.compared import Comparison, Result
from sensorium.train import Stopped, train

RECORD = "comparison.json"
Say = Callable[[str], object]


@dataclass(frozen=True)
class Trial:
    """One run that is to be made. rows: the split it is judged on."""

    name: str
    setting: dict[str, Any]
    keywords: dict[str, Any]
    data: Dataset
    rows: str
    repeat: str


def compare(recipe: Make[Any], dataset: Dataset, *, out: str | Path | None = None, folds: int = 0, say: Say = print,
            **keywords: Any) -> Comparison:
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
    fixed, varied = _asked(recipe, dataset, keywords)
    trials = list(_trials(recipe, dataset, folds, fixed, varied))
    folder = _folder(out)
    plan = {"recipe": recipe_name(recipe), "keywords": json.loads(json.dumps(fixed)), "varied": sorted(varied),
            "folds": folds, "data": fingerprint(dataset)}
    with alone(folder):
        record = _Record(folder, plan)
        say(f"{len(trials)} runs into {folder}")
        for i, trial in enumerate(trials, 1):
            told = _told(record.result(recipe, trial))
            say(f"[{i}/{len(trials)}] {trial.name or 'as it comes'}: {told}")
        judged = planned(recipe, dataset.schema, trials[0].keywords).evaluation
        found = Comparison(recipe.__name__, _asked_for(dataset), judged.metric, judged.mode, folds, fixed,
                           [(trial.setting, trial.repeat, record.results[trial.name]) for trial in trials], folder)
        durable.write(folder / "comparison.md", found.markdown().encode())
    return found


def _asked_for(dataset: Dataset) -> list[str]:
    """A data set as a command line names it."""
    said = dict(dataset.source)
    path, columns = str(said.pop("path", dataset.name)), said.pop("columns", {})
    own = [f"--{name}={said.pop(name)}" for name in ("split", "group", "test", "max_bad") if name in said]
    kinds = [part for what, named in (("column", columns), ("synonyms", said.pop("synonyms", {})))
             for name, value in named.items() for part in (f"--{what}", f"{name}={value}")]
    return [path, *(o.replace("max_bad", "max-bad") for o in own if o != "--max_bad=0.01"), *kinds,
            *(part for name, value in said.items() for part in ("--option", f"{name}={value}"))]


def _folder(out: str | Path | None) -> Path:
    try:
        folder = numbered(Path("runs"), "compare") if out is None else Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError as e:
        raise SensoriumError(f"cannot write to {out or 'runs'}: {e.strerror or e}. Choose another folder with out= "
                             "(--out)") from e


def _asked(recipe: Make[Any], dataset: Dataset, keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(keywords that are the same in all runs, values of those that are varied)."""
    split_keywords(recipe, keywords)
    several = {name: [value for i, value in enumerate(values) if value not in values[:i]]
               for name, values in keywords.items()
               if isinstance(values, list) or isinstance(values, tuple) and not _takes_names(recipe, name)}
    if empty := [name for name, values in several.items() if not values]:
        raise BadKeyword(f"{empty[0]} was given no value")
    varied = {name: values for name, values in several.items() if len(values) > 1}
    fixed = {name: several[name][0] if name in several else value for name, value in keywords.items()
             if name not in varied}
    if not varied.keys() - {"seed"}:
        usual = planned(recipe, dataset.schema, {**fixed, **{name: values[0] for name, values in varied.items()}})
        varied |= {name: list(values) for name, values in usual.evaluation.sweep.items() if name not in fixed}
    return fixed, varied


def _takes_names(recipe: Make[Any], keyword: str) -> bool:
    """Whether a keyword may be several names at once, such as columns that are read as one."""
    found = inspect.signature(recipe).parameters.get(keyword)
    return found is not None and any(of in str(found.annotation) for of in ("Sequence[str]", "tuple[str", "list[str"))


def _trials(recipe: Make[Any], dataset: Dataset, folds: int, fixed: Mapping[str, Any],
            varied: Mapping[str, Sequence[Any]]) -> Iterator[Trial]:
    """Every setting once, then every setting again. Raises SensoriumError where there is nothing to compare."""
    names = [name for name in varied if name != "seed"]
    settings = [dict(zip(names, values, strict=True)) for values in product(*(varied[name] for name in names))]
    if len(settings) == 1 and not folds and "seed" not in varied:
        raise SensoriumError(f"nothing is varied: give some keyword of {recipe.__name__} several values "
                             f"(--dim 64,128; dim=[64, 128]), or ask for folds")
    for setting in settings:
        check(planned(recipe, dataset.schema, {**fixed, **setting}).training)
    parts = [("", dataset)] if not folds else [(f"fold={i}", part) for i, part in enumerate(dataset.folds(folds), 1)]
    if not folds and not len(dataset.splits.get("val", ())):
        raise SensoriumError(f"{dataset.name} has no validation rows to compare by: ask for folds (--folds 5)")
    seeds = [{"seed": seed} for seed in varied["seed"]] if "seed" in varied else [{}]
    for (fold, data), seed in product(parts, seeds):
        repeat = ",".join([*filter(None, [fold]), *(f"seed={s}" for s in seed.values())])
        for setting in settings:
            name = ",".join([*(f"{k}={v}" for k, v in setting.items()), *filter(None, [repeat])])
            yield Trial(name, setting, {**fixed, **setting, **seed}, data, "fold" if folds else "val", repeat)


class _Record:
    """comparison.json: what was asked for, and what the runs that are finished came to."""

    def __init__(self, folder: Path, plan: dict[str, Any]):
        self.folder, self.plan = folder, plan
        self.results: dict[str, Result] = {}
        self.spent: dict[str, float] = {}               # CPU seconds of runs that were stopped
        if (folder / RECORD).exists():
            self._read()
        elif left := sorted(p.name for p in folder.iterdir() if not p.name.endswith(".tmp")):
            raise SensoriumError(f"{folder} is not empty ({left[0]}, ...): choose a new folder for the comparison")
        self.save()

    def _read(self) -> None:
        path = self.folder / RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.results = {name: Result(**result) for name, result in found["runs"].items()}
            self.spent, before = found["spent"], found["plan"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise SensoriumError(f"{path} cannot be read: {e}. Compare into a new folder") from e
        if other := [name for name, value in self.plan.items() if before.get(name) != value]:
            raise SensoriumError(f"{self.folder} holds a comparison of other {other[0]}: then {before.get(other[0])}, "
                                 f"now {self.plan[other[0]]}. Choose a new folder for this one")

    def save(self) -> None:
        """Write it durably."""
        durable.write_json(self.folder / RECORD, {
            "plan": self.plan, "spent": self.spent,
            "runs": {name: asdict(result) for name, result in self.results.items()}})

    def result(self, recipe: Make[Any], trial: Trial) -> Result:
        """What a run came to; it is made, or gone on with, where it is not finished."""
        at = self.folder / _safe(trial.name)
        if trial.name not in self.results or not (at / "README.md").exists() and not self.results[trial.name].failed:
            start, before = time.process_time(), self.spent.get(trial.name, 0.0)
            figures, parameters, failed = dict[str, float](), 0, ""
            try:
                figures, parameters = _judged(_trained(recipe, trial, at), trial)
                failed = next((f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)), "")
            except NonFinite as fault:
                failed = str(fault)
            except Stopped as stopped:
                self.spent[trial.name] = before + time.process_time() - start
                self.save()
                raise Stopped(f"stopped, and all is saved in {self.folder}: the same command with --out {self.folder} "
                              "goes on from here", stopped.code) from None
            seconds = before + time.process_time() - start
            self.results[trial.name] = Result(at.name, {} if failed else figures, parameters, seconds, failed)
            self.save()
        return self.results[trial.name]


def _trained(recipe: Make[Any], trial: Trial, at: Path) -> Model:
    if (at / "README.md").exists():                     # what a run writes last
        return load(at, recipe=recipe)
    return train(recipe, trial.data, out=at, resume=(at / "config.json").exists(), quiet=True, **trial.keywords)


def _judged(model: Model, trial: Trial) -> tuple[dict[str, float], int]:
    """(what validation finds on the rows that are to judge, how many parameters)."""
    data, validate = model.recipe.data, model.recipe.evaluation.validate
    if validate is None:
        raise SensoriumError(f"recipe {model.config.recipe} has no figure to compare by: give its EvaluationSpec a "
                             "validate")
    derived = data.derived_columns(trial.data) if data.derived_columns else {}
    prepared = trial.data.prepare(model.schema, data.columns, derived=derived, quiet=True)
    rows = np.setdiff1d(trial.data.splits[trial.rows], [b.row for b in prepared.bad])
    figures = {name: float(value) for name, value in validate(model.module, prepared, rows).figures.items()}
    return figures, sum(p.numel() for p in model.module.parameters())


def _safe(name: str) -> str:
    """A setting as the name of a folder."""
    plain = re.sub(r"[^\w.,=+-]+", "-", name)[:100] or "as-it-comes"
    return plain if plain == name or not name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _told(found: Result) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found.figures.items())
    return f"failed: {found.failed}" if found.failed else f"{figures}; {found.cpu_seconds:.1f} CPU seconds"
