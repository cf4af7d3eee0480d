"""One run of training: how it begins, what of it is saved, and how it goes on from there as if nothing had happened."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.run_config import (
    FORMAT_VERSION,
    INITIAL_WEIGHTS_FILE,
    WEIGHTS_FILE,
    RunConfig,
    package_versions,
)
from sensorium.io.snapshots import CheckpointStore
from sensorium.io.tensors import load_weights, read_tensors, state_tensors, tensor_writer
from sensorium.recipes.recipe import (
    Recipe,
    RecipeFunction,
    ValidationResult,
    build_recipe,
    check_extras,
    split_keywords,
)
from sensorium.training import optimizers
from sensorium.training.checkpoint import get_recipe_name
from sensorium.training.train_step import TrainStep, check_training_config, choose_precision

MIN_STEPS_TO_BENCHMARK = 100  # steps from which on it pays to measure bf16


FILES_BEFORE_CONFIG = (
    "schema.json",
    "tokenizer.json",
    "quarantine.jsonl",
    INITIAL_WEIGHTS_FILE,
)  # all that a run killed so early leaves


LogFunction = Callable[[str], object]


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    best_metric: float | None = None  # of the metric
    best_step: int = 0
    evals_since_best: int = 0  # evaluations since the best


@dataclass
class TrainingRun:
    """Everything that a run needs to go on."""

    folder: Path
    config: RunConfig
    recipe: Recipe[Any]
    schema: Schema  # fitted on the training rows
    prepared: PreparedDataset
    train_rows: np.ndarray  # that it trains on
    validation_rows: np.ndarray  # rows that it is judged on
    loader: BatchLoader
    total_steps: int
    train_step: TrainStep
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.checkpoints = CheckpointStore(self.folder / "state")

    @property
    def is_finished(self) -> bool:
        """Every step is done, or the metric has not moved for `early_stopping_patience` evaluations."""
        patience = self.recipe.training.early_stopping_patience
        return (
            self.progress.step >= self.total_steps or 0 < patience <= self.progress.evals_since_best
        )

    def is_due(self, epochs: float) -> bool:
        """Whether something that is done every so many epochs is to be done after this step; all is due at the end."""
        every = max(1, round(epochs * self.loader.steps_per_epoch)) if epochs else self.total_steps
        return self.is_finished or self.progress.step % every == 0

    def save(self) -> Path:
        """Save what the next step depends on, durably, as one set."""
        files = {
            "model.safetensors": tensor_writer(state_tensors(self.train_step.model)),
            "optimizer.safetensors": tensor_writer(
                optimizers.state_dict(self.train_step.optimizers)
            ),
            "random.safetensors": tensor_writer({"torch": torch.get_rng_state()}),
            "state.json": json.dumps(
                {
                    "format": FORMAT_VERSION,
                    "reached": asdict(self.progress),
                    "loader": self.loader.state_dict(),
                }
            ).encode(),
        }
        if self.train_step.ema:
            files["average.safetensors"] = tensor_writer(self.train_step.ema.weights)
        return self.checkpoints.save(self.progress.step, files)

    def initialize(self) -> None:
        """What the recipe takes from its training rows before it learns."""
        if self.recipe.hooks.on_start:
            self.recipe.hooks.on_start(self.recipe.model, self.prepared, self.train_rows)

    def restore(self, path: Path) -> None:
        """Go back to a whole save, whose weights the model has already."""
        state = json.loads((path / "state.json").read_text())
        if state.get("format") != FORMAT_VERSION:
            raise SensoriumError(
                f"{path} is of format {state.get('format')!r}, and not {FORMAT_VERSION}: start anew"
            )
        optimizers.load_state_dict(
            self.train_step.optimizers, read_tensors(path / "optimizer.safetensors")
        )
        if self.train_step.ema:
            for name, value in read_tensors(path / "average.safetensors").items():
                self.train_step.ema.weights[name].copy_(value)
        self.loader.load_state_dict(state["loader"])
        self.progress = Progress(**state["reached"])
        torch.set_rng_state(read_tensors(path / "random.safetensors")["torch"].clone())

    def save_best(self, result: ValidationResult | None) -> bool:
        """Calibrate and write model.safetensors if the metric is the best so far; without validation, always."""
        now, evaluation = self.progress, self.recipe.evaluation
        value = None if result is None else result.figures[evaluation.metric]
        better = (
            value is None
            or now.best_metric is None
            or math.isnan(now.best_metric)
            or (value < now.best_metric if evaluation.mode == "min" else value > now.best_metric)
        )
        now.evals_since_best = 0 if better else now.evals_since_best + 1
        if better:
            now.best_metric, now.best_step = value, now.step
            self._save_best_weights(result)
        return better

    def finalize(self) -> dict[str, float]:
        """What the recipe does with the best weights, once they are known: figures of it, and of what is kept then."""
        if self.recipe.hooks.on_end is None:
            return {}
        check_extras(self.recipe)
        model = self.train_step.model.eval()
        load_weights(model, self.folder / WEIGHTS_FILE)
        figures, result = (
            self.recipe.hooks.on_end(model, self.prepared, self.train_rows, self.validation_rows),
            None,
        )
        if self.recipe.evaluation.validate:
            result = self.recipe.evaluation.validate(model, self.prepared, self.validation_rows)
            figures = {**result.figures, **figures}
            self.progress.best_metric = figures[self.recipe.evaluation.metric]
        self._save_best_weights(result)
        return figures

    def _save_best_weights(self, result: ValidationResult | None) -> None:
        if self.recipe.hooks.calibrate and len(self.validation_rows):
            predictions = None if result is None else result.predictions
            self.recipe.hooks.calibrate(
                self.train_step.model, self.prepared, self.validation_rows, predictions
            )
        atomic.write_file(
            self.folder / WEIGHTS_FILE,
            tensor_writer(
                state_tensors(self.train_step.model), {"step": str(self.progress.best_step)}
            ),
        )


def create_run(
    recipe_fn: RecipeFunction[Any],
    dataset: Dataset,
    folder: Path,
    keywords: Mapping[str, Any],
    plan: Recipe[Any],
) -> TrainingRun:
    """A new run: fit the schema on the training rows, build, prepare; config.json, written last, makes it one.

    plan: a dry build of the same recipe (`planned`), which says what is read before there is anything to learn from.
    """
    rows = dataset.splits.get("train", np.zeros(0, dtype=np.int64))
    if len(rows) == 0:
        raise SensoriumError(
            f"{dataset.name} has no rows to train on: its splits are {', '.join(dataset.splits)}"
        )
    schema = dataset.schema.fit(dataset, rows, plan.data.columns, plan.data.column_settings)
    recipe, keywords = _build_recipe(recipe_fn, schema, keywords)
    config = RunConfig(
        get_recipe_name(recipe_fn),
        keywords,
        "fp32",
        fingerprint(dataset) | {"source": dataset.source},
        package_versions(),
    )
    run = _assemble(config, recipe, dataset, schema, folder)
    run.initialize()
    if recipe.hooks.on_end and not len(run.validation_rows):
        raise SensoriumError(
            f"{dataset.name} has no validation rows, by which {recipe_fn.__name__} so told ends its "
            "training: name some val"
        )
    if recipe.training.precision == "bf16" or (
        recipe.training.precision == "auto" and _bf16_is_faster(run)
    ):
        run.config, run.train_step.precision = replace(config, precision="bf16"), "bf16"
    schema.save(folder)
    if recipe.measures_forgetting:
        atomic.write_file(folder / INITIAL_WEIGHTS_FILE, tensor_writer(state_tensors(recipe.model)))
    run.config.save(folder)
    return run


def resume_run(
    recipe_fn: RecipeFunction[Any],
    dataset: Dataset,
    folder: Path,
    keywords: Mapping[str, Any],
    log: LogFunction,
) -> TrainingRun:
    """The run in `folder`, where its last whole save left it. Raises SensoriumError where recipe or data differ."""
    config = RunConfig.load(folder)
    if config.recipe != get_recipe_name(recipe_fn):
        raise SensoriumError(
            f"{folder} was begun with recipe {config.recipe}, not {get_recipe_name(recipe_fn)}"
        )
    for name, value in keywords.items():
        kept = _restore_sources({name: config.keywords.get(name)})[
            name
        ]  # where pretrained weights lay
        kept = kept["source"] if isinstance(kept, dict) and "source" in kept else kept
        if isinstance(value, Mapping) and isinstance(kept, str):
            continue  # settings of a stage that is trained
        if name in config.keywords and json.loads(json.dumps([kept, kept])) != json.loads(
            json.dumps([kept, value])
        ):
            raise SensoriumError(
                f"{folder} was begun with {name}={kept!r}, not {value!r}. A resumed "
                f"run keeps its settings: leave {name} out, or train into a new folder."
            )
    if {**config.data, "source": {}} != fingerprint(dataset) | {
        "source": {}
    }:  # wherever they lie now
        raise SensoriumError(
            f"the data are not those {folder} was begun with: then {config.data}, now "
            f"{fingerprint(dataset)}. Give the same data, or train into a new folder."
        )
    schema, snapshots = Schema.load(folder), CheckpointStore(folder / "state")
    saved = snapshots.latest(log)
    recipe, _ = _build_recipe(
        recipe_fn, schema, config.keywords if saved else _restore_sources(config.keywords)
    )
    if saved:
        load_weights(recipe.model, saved / "model.safetensors")  # columns may be derived by them
    run = _assemble(config, recipe, dataset, schema, folder)
    run.checkpoints = snapshots
    for litter in (
        *folder.glob(".*.tmp"),
        *folder.glob(".tmp??????"),
    ):  # a killed durable's and safetensors' own
        litter.unlink()
    if saved:
        run.restore(saved)
    else:
        run.initialize()
    return run


def _restore_sources(keywords: dict[str, Any]) -> dict[str, Any]:
    """Of a run that holds no weights yet: published ones are named by where they lie, as they were at first."""
    from sensorium.pretrained.source import from_config  # not needed once weights are saved

    return from_config(keywords)


def _build_recipe(
    recipe_fn: RecipeFunction[Any], schema: Schema, keywords: Mapping[str, Any]
) -> tuple[Recipe[Any], dict[str, Any]]:
    """The recipe, its first weights drawn from the seed."""
    _, loop = split_keywords(recipe_fn, keywords)
    torch.manual_seed(loop.get("seed", 0))
    recipe, keywords = build_recipe(recipe_fn, schema, keywords)
    check_training_config(recipe.training)
    try:
        return recipe, json.loads(json.dumps(keywords, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise SensoriumError(
            f"a keyword of {recipe_fn.__name__} cannot be stored in config.json: {e}"
        ) from e


def _assemble(
    config: RunConfig, recipe: Recipe[Any], dataset: Dataset, schema: Schema, folder: Path
) -> TrainingRun:
    training, data = recipe.training, recipe.data
    derived = data.derived_columns(dataset) if data.derived_columns else {}
    prepared = dataset.prepare(schema, data.columns, derived_columns=derived)
    if prepared.bad_samples:
        lines = [json.dumps(asdict(b), ensure_ascii=False) + "\n" for b in prepared.bad_samples]
        atomic.write_file(folder / "quarantine.jsonl", "".join(lines).encode())
    bad = np.array([b.row for b in prepared.bad_samples], dtype=np.int64)
    splits = {name: np.setdiff1d(rows, bad) for name, rows in dataset.splits.items()}
    rows = splits["train"]
    if len(rows) == 0:
        raise SensoriumError(
            f"{dataset.name} has no training row that can be read: see {folder / 'quarantine.jsonl'}"
        )
    loader = BatchLoader(
        prepared,
        rows,
        training.batch_size,
        seed=training.seed,
        samples_per_group=training.samples_per_group,
        augment=data.augment.get(training.augment),
    )
    steps = max(1, round(training.epochs * loader.steps_per_epoch))
    return TrainingRun(
        folder,
        config,
        recipe,
        schema,
        prepared,
        rows,
        splits.get("val", rows[:0]),
        loader,
        steps,
        TrainStep(recipe, steps, config.precision),
    )


def _bf16_is_faster(run: TrainingRun) -> bool:
    """Whether bf16 is faster here, measured on the first rows, where the run is long enough to win the time back."""
    if run.total_steps < MIN_STEPS_TO_BENCHMARK:
        return False
    training = run.recipe.training
    batch = run.prepared.batch(run.train_rows[: training.batch_size])
    return choose_precision(run.recipe, batch.split(training.grad_accumulation_steps)[0]) == "bf16"


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What config.json says of the data: enough to notice other ones."""
    whole = hashlib.sha256(f"{len(dataset)} {sorted(dataset.schema.columns)}".encode())
    for name, rows in dataset.splits.items():
        whole.update(name.encode() + np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    words = {name: found.fingerprint for name, found in dataset.synonyms.items()}
    return {
        "name": dataset.name,
        "rows": len(dataset),
        "splits": {k: len(v) for k, v in dataset.splits.items()},
        "sha256": whole.hexdigest(),
        **({"synonyms": words} if words else {}),
    }
