"""The number of updates that fit into a time budget (`--minutes`)."""

import copy
import time
from dataclasses import replace

import torch

from sensorium.errors import SensoriumError
from sensorium.training.run import TrainingRun
from sensorium.training.train_step import TrainStep

MEASURED_SHARE = 0.05  # of the budget: for how long steps are measured
MAX_MEASURED_SECONDS = 10.0
MIN_MEASURED_STEPS = 3
WARM_UP_STEPS = 2  # not measured
USABLE_SHARE = 0.9  # of the budget: the rest is for a machine that slows down
ON_END_SHARE = 0.75  # of that, where a recipe fits more after the last step


def fit_to_budget(run: TrainingRun, start: float) -> str:
    """Reduce the number of updates so that training with its evaluations ends in time.

    The recipe's own number of epochs is the most that is trained. The number chosen replaces the
    keyword `epochs`, so that a resumed run takes the same steps.

    Args:
        run: a new run; its weights are left as they are.
        start: `time.monotonic()` when its creation began; that time is part of the budget.

    Returns:
        What was chosen, as a sentence.

    Raises:
        SensoriumError: not even one step fits.
    """
    training = run.recipe.training
    budget = 60 * training.minutes
    step_seconds, eval_seconds = _measure(run, min(MAX_MEASURED_SECONDS, MEASURED_SHARE * budget))
    usable = USABLE_SHARE * (ON_END_SHARE if run.recipe.hooks.on_end else 1.0) * budget
    left = usable - _elapsed(start) - eval_seconds  # the last step is evaluated too
    per_epoch = run.loader.steps_per_epoch
    per_step = step_seconds
    if training.eval_interval:
        per_step += eval_seconds / max(1, round(training.eval_interval * per_epoch))
    steps = min(run.total_steps, int(left / per_step))
    if steps < 1:
        needed = (budget - left + per_step) / 60
        raise SensoriumError(
            f"--minutes {training.minutes:g} is too short: reading the data, one step "
            f"({step_seconds:.2g} s) and evaluation ({eval_seconds:.2g} s) take longer. Give at "
            f"least --minutes {needed:.2g}, or reduce --batch-size."
        )
    epochs = steps / per_epoch
    message = (
        f"--minutes {training.minutes:g}: {steps:,} of {run.total_steps:,} steps fit "
        f"({epochs:.3g} of {training.epochs:g} epochs; {step_seconds:.2g} s a step, "
        f"{eval_seconds:.2g} s an evaluation)"
    )
    if steps < run.total_steps:
        _set_epochs(run, epochs, steps)
    return message


def _elapsed(start: float) -> float:
    """Return the seconds since `start`."""
    return time.monotonic() - start


def _set_epochs(run: TrainingRun, epochs: float, steps: int) -> None:
    """Change the length of a run before its first step."""
    run.recipe = replace(run.recipe, training=replace(run.recipe.training, epochs=epochs))
    run.config = replace(run.config, keywords={**run.config.keywords, "epochs": epochs})
    run.total_steps = steps
    run.train_step = TrainStep(run.recipe, steps, run.train_step.precision)


def _measure(run: TrainingRun, max_seconds: float) -> tuple[float, float]:
    """Return the seconds of a step and of an evaluation, measured on a copy of the model."""
    with torch.random.fork_rng():
        trial = replace(run.recipe, model=copy.deepcopy(run.recipe.model))
        train_step = TrainStep(trial, run.total_steps, run.train_step.precision)
        num_steps = 0
        start = time.monotonic()
        while True:
            position = num_steps % run.loader.steps_per_epoch
            train_step(run.loader.batch(0, position), num_steps)
            num_steps += 1
            if num_steps == WARM_UP_STEPS:
                start = time.monotonic()
            measured = num_steps - WARM_UP_STEPS
            seconds = time.monotonic() - start
            if measured >= MIN_MEASURED_STEPS and seconds >= max_seconds:
                break
        evaluation = trial.evaluation
        start = time.monotonic()
        if evaluation.validate and len(run.validation_rows):
            evaluation.validate(trial.model.eval(), run.prepared, run.validation_rows)
        return seconds / measured, time.monotonic() - start
