"""One run of training: how it begins, what of it is saved, and how it goes on from there as if nothing had happened."""
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium import durable, optim
from sensorium.checkpoint import recipe_name
from sensorium.config import FORMAT, START, WEIGHTS, Config, versions
from sensorium.data.cache import Prepared
from sensorium.data.dataset import Dataset
from sensorium.data.loader import Loader
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.recipes.recipe import Make, Recipe, ValidationResult, build, ready, split_keywords
from sensorium.snapshot import Snapshots
from sensorium.step import Step, check, measured_precision
from sensorium.stored import read_tensors, read_weights, tensors, weights

WORTH_MEASURING = 100                                   # steps from which on it pays to measure bf16
BEFORE_CONFIG = ("schema.json", "tokenizer.json", "quarantine.jsonl", START)   # all that a run killed so early leaves
Say = Callable[[str], object]


@dataclass
class Reached:
    """How far a run has come."""

    step: int = 0
    best: float | None = None                           # of the metric
    best_step: int = 0
    stale: int = 0                                      # evaluations since the best


@dataclass
class Run:
    """Everything that a run needs to go on."""

    folder: Path
    config: Config
    recipe: Recipe[Any]
    schema: Schema                                      # fitted on the training rows
    prepared: Prepared
    rows: np.ndarray                                    # that it trains on
    validation: np.ndarray                              # rows that it is judged on
    loader: Loader
    steps: int
    step: Step
    reached: Reached = field(default_factory=Reached)

    def __post_init__(self) -> None:
        self.snapshots = Snapshots(self.folder / "state")

    @property
    def over(self) -> bool:
        """Every step is done, or the metric has not moved for `early_stopping_patience` evaluations."""
        patience = self.recipe.training.early_stopping_patience
        return self.reached.step >= self.steps or 0 < patience <= self.reached.stale

    def due(self, epochs: float) -> bool:
        """Whether something that is done every so many epochs is to be done after this step; all is due at the end."""
        every = max(1, round(epochs * self.loader.steps_per_epoch)) if epochs else self.steps
        return self.over or self.reached.step % every == 0

    def save(self) -> Path:
        """Save what the next step depends on, durably, as one set."""
        files = {"model.safetensors": tensors(weights(self.step.model)),
                 "optimizer.safetensors": tensors(optim.memory(self.step.optimizers)),
                 "random.safetensors": tensors({"torch": torch.get_rng_state()}),
                 "state.json": json.dumps({"format": FORMAT, "reached": asdict(self.reached),
                                           "loader": self.loader.state()}).encode()}
        if self.step.average:
            files["average.safetensors"] = tensors(self.step.average.weights)
        return self.snapshots.save(self.reached.step, files)

    def start(self) -> None:
        """What the recipe takes from its training rows before it learns."""
        if self.recipe.hooks.on_start:
            self.recipe.hooks.on_start(self.recipe.model, self.prepared, self.rows)

    def restore(self, path: Path) -> None:
        """Go back to a whole save, whose weights the model has already."""
        state = json.loads((path / "state.json").read_text())
        if state.get("format") != FORMAT:
            raise SensoriumError(f"{path} is of format {state.get('format')!r}, and not {FORMAT}: start anew")
        optim.remember(self.step.optimizers, read_tensors(path / "optimizer.safetensors"))
        if self.step.average:
            for name, value in read_tensors(path / "average.safetensors").items():
                self.step.average.weights[name].copy_(value)
        self.loader.restore(state["loader"])
        self.reached = Reached(**state["reached"])
        torch.set_rng_state(read_tensors(path / "random.safetensors")["torch"].clone())

    def keep_best(self, result: ValidationResult | None) -> bool:
        """Calibrate and write model.safetensors if the metric is the best so far; without validation, always."""
        now, evaluation = self.reached, self.recipe.evaluation
        value = None if result is None else result.figures[evaluation.metric]
        better = value is None or now.best is None or math.isnan(now.best) or (
            value < now.best if evaluation.mode == "min" else value > now.best)
        now.stale = 0 if better else now.stale + 1
        if better:
            now.best, now.best_step = value, now.step
            self._keep(result)
        return better

    def finish(self) -> dict[str, float]:
        """What the recipe does with the best weights, once they are known: figures of it, and of what is kept then."""
        if self.recipe.hooks.on_end is None:
            return {}
        ready(self.recipe)
        model = self.step.model.eval()
        read_weights(model, self.folder / WEIGHTS)
        figures, result = self.recipe.hooks.on_end(model, self.prepared, self.rows, self.validation), None
        if self.recipe.evaluation.validate:
            result = self.recipe.evaluation.validate(model, self.prepared, self.validation)
            figures = {**result.figures, **figures}
            self.reached.best = figures[self.recipe.evaluation.metric]
        self._keep(result)
        return figures

    def _keep(self, result: ValidationResult | None) -> None:
        if self.recipe.hooks.calibrate and len(self.validation):
            predictions = None if result is None else result.predictions
            self.recipe.hooks.calibrate(self.step.model, self.prepared, self.validation, predictions)
        durable.write(self.folder / WEIGHTS, tensors(weights(self.step.model), {"step": str(self.reached.best_step)}))


def begin(make: Make[Any], dataset: Dataset, folder: Path, keywords: Mapping[str, Any], plan: Recipe[Any]) -> Run:
    """A new run: fit the schema on the training rows, build, prepare; config.json, written last, makes it one.

    plan: a dry build of the same recipe (`planned`), which says what is read before there is anything to learn from.
    """
    rows = dataset.splits.get("train", np.zeros(0, dtype=np.int64))
    if len(rows) == 0:
        raise SensoriumError(f"{dataset.name} has no rows to train on: its splits are {', '.join(dataset.splits)}")
    schema = dataset.schema.fit(dataset, rows, plan.data.columns, plan.data.column_settings)
    recipe, keywords = _built(make, schema, keywords)
    config = Config(recipe_name(make), keywords, "fp32", fingerprint(dataset) | {"source": dataset.source}, versions())
    run = _assembled(config, recipe, dataset, schema, folder)
    run.start()
    if recipe.hooks.on_end and not len(run.validation):
        raise SensoriumError(f"{dataset.name} has no validation rows, by which {make.__name__} so told ends its "
                             "training: name some val")
    if recipe.training.precision == "bf16" or recipe.training.precision == "auto" and _gains(run):
        run.config, run.step.precision = replace(config, precision="bf16"), "bf16"
    schema.save(folder)
    if recipe.measures_forgetting:
        durable.write(folder / START, tensors(weights(recipe.model)))
    run.config.save(folder)
    return run


def go_on(make: Make[Any], dataset: Dataset, folder: Path, keywords: Mapping[str, Any], say: Say) -> Run:
    """The run in `folder`, where its last whole save left it. Raises SensoriumError where recipe or data differ."""
    config = Config.load(folder)
    if config.recipe != recipe_name(make):
        raise SensoriumError(f"{folder} was begun with recipe {config.recipe}, not {recipe_name(make)}")
    for name, value in keywords.items():
        kept = _untold({name: config.keywords.get(name)})[name]             # of published weights, where they lay
        kept = kept["source"] if isinstance(kept, dict) and "source" in kept else kept
        if isinstance(value, Mapping) and isinstance(kept, str):
            continue                                                        # settings of a stage that is trained
        if name in config.keywords and json.loads(json.dumps([kept, kept])) != json.loads(json.dumps([kept, value])):
            raise SensoriumError(f"{folder} was begun with {name}={kept!r}, not {value!r}. A resumed "
                                 f"run keeps its settings: leave {name} out, or train into a new folder.")
    if {**config.data, "source": {}} != fingerprint(dataset) | {"source": {}}:      # wherever they lie now
        raise SensoriumError(f"the data are not those {folder} was begun with: then {config.data}, now "
                             f"{fingerprint(dataset)}. Give the same data, or train into a new folder.")
    schema, snapshots = Schema.load(folder), Snapshots(folder / "state")
    saved = snapshots.latest(say)
    recipe, _ = _built(make, schema, config.keywords if saved else _untold(config.keywords))
    if saved:
        read_weights(recipe.model, saved / "model.safetensors")             # columns may be derived by them
    run = _assembled(config, recipe, dataset, schema, folder)
    run.snapshots = snapshots
    for litter in (*folder.glob(".*.tmp"), *folder.glob(".tmp??????")):     # a killed durable's and safetensors' own
        litter.unlink()
    if saved:
        run.restore(saved)
    else:
        run.start()
    return run


def _untold(keywords: dict[str, Any]) -> dict[str, Any]:
    """Of a run that holds no weights yet: published ones are named by where they lie, as they were at first."""
    from sensorium.published.start import untold  # not needed once weights are saved
    return untold(keywords)


def place(out: str | Path | None, name: str, resume: bool) -> tuple[Path, bool]:
    """The run's folder, and whether a run that has begun lies in it.

    A new one is `out` or else the next free of runs/NAME-0001, ...; it must be empty, but for what a run leaves that
    died before its first config.json. Raises SensoriumError where nothing is there to resume, or one cannot write.
    """
    if resume and (out is None or not Path(out).is_dir()):
        raise SensoriumError("which run is to be resumed? Name its folder with out= (--out)" if out is None else
                             f"there is no run to resume in {out}: the folder does not exist")
    try:
        folder = numbered(Path("runs"), name) if out is None else Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        begun = (folder / "config.json").exists()
        if begun and not resume:
            raise SensoriumError(f"{folder} holds a run: go on with it by resume=True (--resume), or choose another")
        foreign = [p for p in sorted(os.listdir(folder)) if p not in BEFORE_CONFIG and not p.endswith(".tmp")
                   and not (resume and (folder / p).is_dir())]              # a stage that was trained first
        if foreign and not begun:
            raise SensoriumError(f"{folder} is not empty ({foreign[0]}, ...): choose a new folder for the run")
        with tempfile.TemporaryFile(dir=folder):
            return folder, begun
    except OSError as e:
        raise SensoriumError(f"cannot write to {out or 'runs'}: {e.strerror or e}. Choose another folder with out= "
                             "(--out)") from e


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process trains into the folder meanwhile. However this one ends, the system lets go of the lock."""
    import fcntl
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise SensoriumError(f"another process is training into {folder}: wait for it, or stop it") from e
        yield
    finally:
        os.close(fd)


def numbered(parent: Path, name: str) -> Path:
    """The next free of NAME-0001, ..., made now."""
    parent.mkdir(exist_ok=True)
    for i in range(1, 10_000):
        try:
            (folder := parent / f"{name}-{i:04d}").mkdir()
            return folder
        except FileExistsError:
            continue
    raise SensoriumError(f"{parent} holds 9,999 runs of {name}: remove some, or name a folder with out= (--out)")


def _built(make: Make[Any], schema: Schema, keywords: Mapping[str, Any]) -> tuple[Recipe[Any], dict[str, Any]]:
    """The recipe, its first weights drawn from the seed."""
    _, loop = split_keywords(make, keywords)
    torch.manual_seed(loop.get("seed", 0))
    recipe, keywords = build(make, schema, keywords)
    check(recipe.training)
    try:
        return recipe, json.loads(json.dumps(keywords, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise SensoriumError(f"a keyword of {make.__name__} cannot be stored in config.json: {e}") from e


def _assembled(config: Config, recipe: Recipe[Any], dataset: Dataset, schema: Schema, folder: Path) -> Run:
    training, data = recipe.training, recipe.data
    derived = data.derived_columns(dataset) if data.derived_columns else {}
    prepared = dataset.prepare(schema, data.columns, derived=derived)
    if prepared.bad:
        lines = [json.dumps(asdict(b), ensure_ascii=False) + "\n" for b in prepared.bad]
        durable.write(folder / "quarantine.jsonl", "".join(lines).encode())
    bad = np.array([b.row for b in prepared.bad], dtype=np.int64)
    splits = {name: np.setdiff1d(rows, bad) for name, rows in dataset.splits.items()}
    rows = splits["train"]
    if len(rows) == 0:
        raise SensoriumError(f"{dataset.name} has no training row that can be read: see {folder / 'quarantine.jsonl'}")
    loader = Loader(prepared, rows, training.batch_size, seed=training.seed, per_group=training.samples_per_group,
                    augment=data.augment.get(training.augment))
    steps = max(1, round(training.epochs * loader.steps_per_epoch))
    return Run(folder, config, recipe, schema, prepared, rows, splits.get("val", rows[:0]), loader, steps,
               Step(recipe, steps, config.precision))


def _gains(run: Run) -> bool:
    """Whether bf16 is faster here, measured on the first rows, where the run is long enough to win the time back."""
    if run.steps < WORTH_MEASURING:
        return False
    training = run.recipe.training
    batch = run.prepared.batch(run.rows[:training.batch_size])
    return measured_precision(run.recipe, batch.split(training.grad_accumulation_steps)[0]) == "bf16"


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What config.json says of the data: enough to notice other ones."""
    whole = hashlib.sha256(f"{len(dataset)} {sorted(dataset.schema.columns)}".encode())
    for name, rows in dataset.splits.items():
        whole.update(name.encode() + np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    words = {name: found.name for name, found in dataset.synonyms.items()}
    return {"name": dataset.name, "rows": len(dataset), "splits": {k: len(v) for k, v in dataset.splits.items()},
            "sha256": whole.hexdigest(), **({"synonyms": words} if words else {})}
