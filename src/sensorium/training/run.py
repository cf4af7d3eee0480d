"""A training run: its state, and how that is saved and restored bit for bit."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.loader import BatchLoader
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.evaluation.spec import ValidationResult
from sensorium.io import atomic
from sensorium.io.run_config import CHECKPOINT_FOLDER, FORMAT_VERSION, WEIGHTS_FILE, RunConfig
from sensorium.io.snapshots import CheckpointStore
from sensorium.io.tensors import load_weights, read_tensors, state_tensors, tensor_writer
from sensorium.recipes.recipe import Recipe, check_extras
from sensorium.training import optimizers
from sensorium.training.train_step import TrainStep

# Files of a checkpoint
STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
EMA_FILE = "ema.safetensors"
RNG_FILE = "random.safetensors"
LogFunction = Callable[[str], object]


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps taken.
        best_metric: best value of the recipe's metric; None: never evaluated.
        best_step: the step of the best value.
        evals_since_best: evaluations since then.
    """

    step: int = 0
    best_metric: float | None = None
    best_step: int = 0
    evals_since_best: int = 0


@dataclass
class TrainingRun:
    """Everything that a run needs to continue.

    Attributes:
        folder: the run folder.
        config: what config.json holds.
        recipe: the recipe, with the model.
        schema: the columns, fitted on the training rows.
        prepared: the cached dataset.
        train_rows: rows trained on.
        incomplete_rows: number of training rows that are left out because they lack a column
            that the recipe requires.
        validation_rows: rows evaluated on; may be empty.
        loader: the batches.
        total_steps: optimizer steps of the whole run.
        train_step: the optimizer step.
        progress: how far it has come.
        notes: what to tell the user before the first step.
        checkpoints: the saved states.
    """

    folder: Path
    config: RunConfig
    recipe: Recipe[Any]
    schema: Schema
    prepared: PreparedDataset
    train_rows: Int[np.ndarray, " T"]
    validation_rows: Int[np.ndarray, " V"]
    loader: BatchLoader
    total_steps: int
    train_step: TrainStep
    progress: Progress = field(default_factory=Progress)
    incomplete_rows: int = 0
    notes: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.checkpoints = CheckpointStore(self.folder / CHECKPOINT_FOLDER)

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done, or the run stops early."""
        patience = self.recipe.training.early_stopping_patience
        stops_early = 0 < patience <= self.progress.evals_since_best
        return self.progress.step >= self.total_steps or stops_early

    def is_due(self, epochs: float) -> bool:
        """Return whether an action of every `epochs` epochs is due now; at the end all are due.

        Args:
            epochs: the interval; 0: at the end only.
        """
        interval = self.total_steps
        if epochs:
            interval = max(1, round(epochs * self.loader.steps_per_epoch))
        return self.is_finished or self.progress.step % interval == 0

    def save(self) -> Path:
        """Save everything that the next step depends on as one checkpoint."""
        state = {
            "format": FORMAT_VERSION,
            "progress": asdict(self.progress),
            "total_steps": self.total_steps,
            "loader": self.loader.state_dict(),
        }
        optimizer_state = optimizers.state_dict(self.train_step.optimizers)
        files = {
            WEIGHTS_FILE: tensor_writer(state_tensors(self.train_step.model)),
            OPTIMIZER_FILE: tensor_writer(optimizer_state),
            RNG_FILE: tensor_writer({"torch": torch.get_rng_state()}),
            STATE_FILE: json.dumps(state).encode(),
        }
        if self.train_step.ema:
            files[EMA_FILE] = tensor_writer(self.train_step.ema.weights)
        return self.checkpoints.save(self.progress.step, files)

    def initialize(self) -> None:
        """Run the recipe's `on_start` hook, before the first step."""
        if self.recipe.hooks.on_start:
            self.recipe.hooks.on_start(self.recipe.model, self.prepared, self.train_rows)

    def restore(self, path: Path) -> None:
        """Restore all state but the weights, which the model has already, from a checkpoint.

        Where rows were added since, a new epoch begins, and the best weights are measured anew.
        Where the run has become longer, it has its patience again.

        Raises:
            SensoriumError: the checkpoint is of another format version.
        """
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if state.get("format") != FORMAT_VERSION:
            raise SensoriumError(
                f"{path} is of format {state.get('format')!r}; this version reads format "
                f"{FORMAT_VERSION}. Train into a new folder."
            )
        optimizer_state = read_tensors(path / OPTIMIZER_FILE)
        optimizers.load_state_dict(self.train_step.optimizers, optimizer_state)
        if self.train_step.ema:
            for name, value in read_tensors(path / EMA_FILE).items():
                self.train_step.ema.weights[name].copy_(value)
        self.progress = Progress(**state["progress"])
        rows_added = self.progress.step <= self.config.data.get("from_step", -1)
        if rows_added:
            self.loader.epoch = math.ceil(self.config.data["from_epochs"])
            self._revalidate_best(path / WEIGHTS_FILE)
        else:
            self.loader.load_state_dict(state["loader"])
        if rows_added or state.get("total_steps", self.total_steps) != self.total_steps:
            self.progress.evals_since_best = 0
        torch.set_rng_state(read_tensors(path / RNG_FILE)["torch"].clone())

    def _revalidate_best(self, current: Path) -> None:
        """Evaluate the best weights on the validation rows of now, then load the current ones.

        What `on_end` adds to the best weights is not compared: then any weights are better.
        """
        validate, best = self.recipe.evaluation.validate, self.folder / WEIGHTS_FILE
        self.progress.best_metric = None
        if not (validate and len(self.validation_rows) and best.is_file()):
            return
        if self.recipe.hooks.on_end:
            return
        model = self.recipe.model
        load_weights(model, best)
        result = validate(model.eval(), self.prepared, self.validation_rows)
        self.progress.best_metric = result.metrics[self.recipe.evaluation.metric]
        load_weights(model, current)

    def save_best(self, result: ValidationResult | None) -> bool:
        """Calibrate the model and write its weights if the metric is the best so far.

        Args:
            result: the validation result; None: there are no validation rows, and the weights are
                always written.

        Returns:
            Whether the weights were written.
        """
        progress = self.progress
        value = None if result is None else result.metrics[self.recipe.evaluation.metric]
        if not self._is_better(value):
            progress.evals_since_best += 1
            return False
        progress.evals_since_best = 0
        progress.best_metric = value
        progress.best_step = progress.step
        self._save_best_weights(result)
        return True

    def finalize(self) -> dict[str, float]:
        """Run the recipe's `on_end` hook on the best weights, and save them again.

        Returns:
            Metrics of the final model; empty without such a hook or validation rows.
        """
        hooks, evaluation = self.recipe.hooks, self.recipe.evaluation
        if hooks.on_end is None or not len(self.validation_rows):
            return {}
        check_extras(self.recipe)
        model = self.train_step.model.eval()
        load_weights(model, self.folder / WEIGHTS_FILE)
        metrics = hooks.on_end(model, self.prepared, self.train_rows, self.validation_rows)
        result = None
        if evaluation.validate:
            result = evaluation.validate(model, self.prepared, self.validation_rows)
            metrics = {**result.metrics, **metrics}
            self.progress.best_metric = metrics[evaluation.metric]
        self._save_best_weights(result)
        return metrics

    def _is_better(self, value: float | None) -> bool:
        """Return whether a value of the metric is better than the best; None always is."""
        best = self.progress.best_metric
        if value is None or best is None or math.isnan(best):
            return True
        return value < best if self.recipe.evaluation.mode == "min" else value > best

    def _save_best_weights(self, result: ValidationResult | None) -> None:
        """Calibrate the model on the validation rows and write its weights."""
        model = self.train_step.model
        if self.recipe.hooks.calibrate and len(self.validation_rows):
            predictions = None if result is None else result.predictions
            self.recipe.hooks.calibrate(model, self.prepared, self.validation_rows, predictions)
        writer = tensor_writer(state_tensors(model), {"step": str(self.progress.best_step)})
        atomic.write_file(self.folder / WEIGHTS_FILE, writer)
