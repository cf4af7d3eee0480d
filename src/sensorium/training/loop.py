"""The loop. Nothing here knows what a modality or a family is: a recipe says what to train, a data set on what."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.run_config import WEIGHTS_FILE
from sensorium.io.tensors import file_sha256, load_weights
from sensorium.nn.cpu_dispatch import configure_allocator
from sensorium.recipes.recipe import Recipe, RecipeFunction, dry_build, split_keywords
from sensorium.training.checkpoint import Model
from sensorium.training.metrics_log import MetricsLog
from sensorium.training.model_card import summary_message, write_model_card
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.run import LogFunction, TrainingRun, create_run, resume_run
from sensorium.training.run_folder import lock_folder, resolve_folder


class Interrupted(SensoriumError):
    """The run was asked to stop (Ctrl-C, SIGTERM), has saved, and can go on. `code` is what a shell expects of it."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def train(
    recipe: RecipeFunction[Any],
    dataset: Dataset,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    reference: Dataset | None = None,
    **keywords: Any,
) -> Model:
    """Train a recipe on a data set; the best model by the recipe's metric on the validation rows.

    out: the run's folder; None: the next free of runs/RECIPE-0001, ... It must be new or empty unless resume is True:
    then the run goes on from its last save exactly as if it had never stopped, and keeps its keywords.
    reference: where a run begins with trained weights, data of what they could do before; both are judged at the end.
    keywords: the recipe's own and those of `TrainingConfig` (epochs, batch_size, lr, ...).
    Raises TypeError for an unknown keyword; Stopped on SIGINT or SIGTERM, after a save; SensoriumError where the data,
    the folder, the disk or the numbers (a loss that is not finite) do not allow to go on.
    """
    split_keywords(recipe, keywords)  # a slip of the pen is said before any work
    say: LogFunction = (lambda text: None) if quiet else print
    with torch.random.fork_rng():  # the caller's chance is left as it was
        plan = None if resume else dry_build(recipe, dataset.schema, keywords)
        folder, again = resolve_folder(out, recipe.__name__, resume)
        with lock_folder(folder):
            configure_allocator()
            if again:
                run = resume_run(recipe, dataset, folder, keywords, say)
            else:
                run = _begun(
                    recipe,
                    dataset,
                    folder,
                    keywords,
                    plan or dry_build(recipe, dataset.schema, keywords),
                    say,
                )
            _complete(run, dataset, again, quiet)
            say(summary_message(run))
    model = _model(run)
    if run.recipe.measures_forgetting and len(run.validation_rows):
        _check_forgetting(model, dataset, reference, say)
    return model


def _begun(
    recipe: RecipeFunction[Any],
    dataset: Dataset,
    folder: Path,
    keywords: dict[str, Any],
    plan: Recipe[Any],
    say: LogFunction,
) -> TrainingRun:
    """A new run, after those that it builds on."""
    if plan.prerequisites:
        keywords = keywords | _train_prerequisites(plan, dataset, folder, say)
        plan = dry_build(recipe, dataset.schema, keywords)
    return create_run(recipe, dataset, folder, keywords, plan)


def _complete(run: TrainingRun, dataset: Dataset, again: bool, quiet: bool) -> None:
    """Take all steps that are left, and write the model card."""
    training, start = run.recipe.training, run.progress.step
    with MetricsLog(run.folder, run.total_steps, start, training.batch_size, quiet) as log:
        log.log(
            f"{training.epochs:g} epochs of {len(run.train_rows):,} rows into {run.folder}"
            + (f", from step {start} on" if again else "")
        )
        with handle_signals() as asked:
            _training_loop(run, dataset, log, asked)
        if found := run.finalize():
            log.log_evaluation(run.progress.best_step, found, run.recipe.evaluation.metric)
            log.log(
                "at the end: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            )
    write_model_card(run, log.entries)


def _model(run: TrainingRun) -> Model:
    """The model of a finished run, with its best weights: what `load` makes of its folder."""
    load_weights(run.recipe.model, run.folder / WEIGHTS_FILE)
    run.recipe.model.zero_grad()
    return Model(
        run.recipe, run.schema, run.config, file_sha256(run.folder / WEIGHTS_FILE), run.folder
    )


def _train_prerequisites(
    plan: Recipe[Any], dataset: Dataset, folder: Path, log: LogFunction
) -> dict[str, str]:
    """Train first what a recipe builds on where no run of it is named: in folder/KEYWORD, from where it was stopped."""
    for keyword, (first, settings) in plan.prerequisites.items():
        at = folder / keyword
        if not (at / "README.md").exists():  # what a run writes last
            log(
                f"first {first.__name__}, in {at}; to take a finished run instead, name it with {keyword}="
            )
            begun = (at / "config.json").exists()
            try:
                train(first, dataset, out=at, resume=begun, quiet=log is not print, **settings)
            except Interrupted as stopped:
                raise Interrupted(
                    f"stopped in its first stage, and all is saved in {folder}. To go on, give the same "
                    f"command with --out {folder} --resume",
                    stopped.exit_code,
                ) from None
    return {keyword: str(folder / keyword) for keyword in plan.prerequisites}


def _check_forgetting(
    model: Model, dataset: Dataset, reference: Dataset | None, log: LogFunction
) -> None:
    """Say what the weights it began with could do, and whether that is still there."""
    from sensorium.training.weight_interpolation import (
        evaluate_interpolations,  # not needed where weights begin anew
    )

    ends = evaluate_interpolations(model, dataset, reference, (0.0, 1.0))
    log(
        f"before and after: {ends.metric_name} on these data {ends.target_values[0]:.3f}, {ends.target_values[1]:.3f}; "
        f"{ends.reference_name} {ends.reference_values[0]:.3f}, {ends.reference_values[1]:.3f}"
    )
    if ends.has_forgotten:
        log(
            f"WARNING: much of what it could do before is gone. The weights in between may keep both: sensorium blend "
            f"{model.folder}"
        )


def _training_loop(
    run: TrainingRun, dataset: Dataset, metrics_log: MetricsLog, stop_request: "StopRequest"
) -> None:
    training, batches = run.recipe.training, iter(run.loader)
    try:
        while not run.is_finished:
            figures = run.train_step(next(batches), run.progress.step)
            run.progress.step += 1
            metrics_log.log_step(run.progress.step, figures)
            if run.is_due(training.eval_interval):
                _evaluate(run, metrics_log)
            if stop_request.signal_number or run.is_due(training.checkpoint_interval):
                metrics_log.sync()
                run.save()
            if stop_request.signal_number:
                raise _interrupted_error(run, stop_request.signal_number)
    except NonFiniteError as fault:
        raise _add_context(fault, run, dataset) from fault
    except OSError as e:
        raise SensoriumError(
            f"stuck after step {run.progress.step}: {e}. {run.folder} is as it was last saved. "
            "Mend it, then give the same command with --resume (resume=True)"
        ) from e


def _evaluate(run: TrainingRun, metrics_log: MetricsLog) -> None:
    """Figures, curve and sample pictures of the model as it would be kept, and the model itself if it is the best."""
    recipe, evaluation, step = run.recipe, run.recipe.evaluation, run.progress.step
    with (
        run.train_step.ema.applied() if run.train_step.ema else nullcontext(),
        torch.random.fork_rng(),
    ):
        recipe.model.eval()
        validate = evaluation.validate if len(run.validation_rows) else None
        result = validate(recipe.model, run.prepared, run.validation_rows) if validate else None
        metrics_log.log_evaluation(step, result.figures if result else {}, evaluation.metric)
        if evaluation.write_samples and len(run.validation_rows):
            (folder := run.folder / "samples").mkdir(exist_ok=True)
            evaluation.write_samples(
                recipe.model, run.prepared, run.validation_rows, folder / f"step-{step:06d}.png"
            )
        run.save_best(result)


def _interrupted_error(run: TrainingRun, signal_number: int) -> Interrupted:
    return Interrupted(
        f"stopped after step {run.progress.step}; all is saved in {run.folder}. To go on, give the same "
        f"command with --out {run.folder} --resume (out={str(run.folder)!r}, resume=True)",
        128 + signal_number,
    )


def _add_context(error: NonFiniteError, run: TrainingRun, dataset: Dataset) -> NonFiniteError:
    """The same fault with the step, the samples' names and what to do."""
    names = ", ".join(f"{dataset.location(row)} (row {row})" for row in error.rows[:4])
    more = f" and {len(error.rows) - 4} more" if len(error.rows) > 4 else ""
    return NonFiniteError(
        f"step {run.progress.step + 1}: {error.reason}",
        f"{error.location}, samples {names}{more}. The weights "
        f"were not touched, and {run.folder} is as it was last saved. Lower lr, raise warmup_ratio, use "
        "precision=fp32, or take these samples out; then train into a new folder",
        error.rows,
    )


class StopRequest:
    """Which signal asked the run to stop; 0: none."""

    signal_number: int = 0


@contextmanager
def handle_signals() -> Iterator[StopRequest]:
    """For a while SIGINT and SIGTERM ask instead of kill; a second one does what it did before. Main thread only."""
    asked = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.signal_number = number
        give_back()

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        give_back()
