"""The training loop, for any recipe and any dataset."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.run_config import CONFIG_FILE, MODEL_CARD_FILE, WEIGHTS_FILE
from sensorium.io.tensors import file_sha256, load_weights
from sensorium.nn.cpu_dispatch import configure_allocator
from sensorium.nn.tokens import column_label
from sensorium.recipes.recipe import (
    Recipe,
    RecipeFunction,
    dry_build,
    option_name,
    split_keywords,
)
from sensorium.training.checkpoint import Model
from sensorium.training.interruption import Interrupted, StopRequest, handle_signals
from sensorium.training.metrics_log import MetricsLog
from sensorium.training.model_card import summary_message, write_model_card
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.run import LogFunction, TrainingRun
from sensorium.training.run_folder import lock_folder, resolve_folder
from sensorium.training.run_setup import create_run, resume_run

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_ROWS_NAMED = 4  # in an error message


def train(
    recipe_fn: RecipeFunction[Any],
    dataset: Dataset,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    reference: Dataset | None = None,
    new_rows: bool = False,
    **keywords: Any,
) -> Model:
    """Train a recipe on a dataset.

    Args:
        recipe_fn: the recipe function, such as `sensorium.recipes.clip`.
        dataset: the data.
        out: the run folder, new or empty; None: the next free one of runs/RECIPE-0001, ...
        resume: continue the run in `out` from its last checkpoint, with its keywords; the result
            equals that of an uninterrupted run. More `epochs` than before extend the run, also a
            finished one: the learning rate is then that of a run of this length from the start,
            so it may rise again.
        quiet: print nothing.
        reference: data of the original task of pretrained weights, to measure forgetting.
        new_rows: with `resume`: train on rows that were added to the data, too. A new epoch begins
            with them, and the best weights are measured on the validation rows of now.
        keywords: keywords of the recipe and fields of `TrainingConfig` (epochs, batch_size, ...).

    Returns:
        The best model by the recipe's metric on the validation rows.

    Raises:
        TypeError: a keyword is unknown.
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
        SensoriumError: the data, the folder or the disk do not allow training, or a loss is not
            finite.
    """
    split_keywords(recipe_fn, keywords)  # refuse an unknown keyword before any work
    if new_rows and not resume:
        raise SensoriumError(
            "--new-rows (new_rows=True) is for a run that is resumed. Add --resume (resume=True)."
        )
    if "init" in keywords:
        keywords["init"] = str(keywords["init"] or "")
    log: LogFunction = _discard if quiet else print
    with torch.random.fork_rng():  # keep the caller's random state
        plan = None if resume else _plan(recipe_fn, dataset, keywords)
        folder, has_run = resolve_folder(out, recipe_fn.__name__, resume)
        with lock_folder(folder):
            configure_allocator()
            if has_run:
                run = resume_run(recipe_fn, dataset, folder, keywords, log, new_rows)
            else:
                plan = plan or _plan(recipe_fn, dataset, keywords)
                run = _start_run(recipe_fn, dataset, folder, *plan, log)
            entries = _run_to_end(run, dataset, has_run, quiet)
            log(summary_message(run, entries))
    model = _load_best(run)
    if run.recipe.measures_forgetting and len(run.validation_rows):
        _check_forgetting(model, dataset, reference, log)
    return model


def _discard(message: str) -> None:
    """Log nothing."""


def _plan(
    recipe_fn: RecipeFunction[Any], dataset: Dataset, keywords: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Recipe[Any]]:
    """Return all keywords of a new run, with those of the run `init`, and a dry build."""
    if keywords.get("init"):
        from sensorium.training.initial_weights import inherit_keywords

        keywords = inherit_keywords(recipe_fn, dataset.schema, keywords)
    return keywords, dry_build(recipe_fn, dataset.schema, keywords)


def _start_run(
    recipe_fn: RecipeFunction[Any],
    dataset: Dataset,
    folder: Path,
    keywords: Mapping[str, Any],
    plan: Recipe[Any],
    log: LogFunction,
) -> TrainingRun:
    """Create a run, after training the runs that it builds on."""
    if plan.prerequisites:
        keywords = {**keywords, **_train_prerequisites(plan, dataset, folder, log)}
        plan = dry_build(recipe_fn, dataset.schema, keywords)
    return create_run(recipe_fn, dataset, folder, keywords, plan)


def _run_to_end(
    run: TrainingRun, dataset: Dataset, resumed: bool, quiet: bool
) -> list[dict[str, Any]]:
    """Take all remaining steps, finalize the model and write the model card.

    Returns:
        All entries of metrics.jsonl.
    """
    training = run.recipe.training
    start_step = run.progress.step
    with MetricsLog(run.folder, run.total_steps, start_step, training.batch_size, quiet) as log:
        for note in _starting_notes(run):
            log.log(note)
        resumed_from = f", resuming at step {start_step}" if resumed else ""
        log.log(
            f"training {training.epochs:g} epochs of {len(run.train_rows):,} rows into "
            f"{run.folder}{resumed_from}"
        )
        with handle_signals() as stop_request:
            _training_loop(run, dataset, log, stop_request)
        metrics = run.finalize()
        if metrics:
            log.log_evaluation(run.progress.best_step, metrics, run.recipe.evaluation.metric)
            values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            log.log(f"final: {values}")
    write_model_card(run, log.entries)
    return log.entries


def _starting_notes(run: TrainingRun) -> Iterator[str]:
    """Yield what to know before the first step: the task, too few rows, rows left out, ..."""
    if run.recipe.task:
        yield run.recipe.task
    if run.recipe.evaluation.assess:
        yield from run.recipe.evaluation.assess({}, len(run.train_rows), len(run.validation_rows))
    yield from run.notes
    if run.incomplete_rows:
        required = " and ".join(column_label(key) for key in run.recipe.data.required)
        yield f"{run.incomplete_rows:,} rows without {required} are not trained on"
    steps = run.recipe.training.grad_accumulation_steps
    modules = run.recipe.model.modules()
    if steps > 1 and any(isinstance(module, BATCH_NORMS) for module in modules):
        yield (
            f"batch norm takes its statistics from each of the {steps} micro-batches "
            "(--grad-accumulation-steps), not from the whole batch: results differ slightly from "
            "those of --grad-accumulation-steps 1"
        )


def _load_best(run: TrainingRun) -> Model:
    """Return the model of a finished run with its best weights, as loading its folder does."""
    path = run.folder / WEIGHTS_FILE
    load_weights(run.recipe.model, path)
    run.recipe.model.zero_grad()
    return Model(run.recipe, run.schema, run.config, file_sha256(path), run.folder)


def _train_prerequisites(
    plan: Recipe[Any], dataset: Dataset, folder: Path, log: LogFunction
) -> dict[str, str]:
    """Train, or finish, the runs that a recipe builds on in folder/KEYWORD; return the folders."""
    folders: dict[str, str] = {}
    for keyword, (recipe_fn, settings) in plan.prerequisites.items():
        stage_folder = folder / keyword
        folders[keyword] = str(stage_folder)
        if (stage_folder / MODEL_CARD_FILE).exists():  # written last: the run is finished
            continue
        log(
            f"first training {recipe_fn.__name__} into {stage_folder}; to use a finished run "
            f"instead, name it with {option_name(keyword)}"
        )
        has_run = (stage_folder / CONFIG_FILE).exists()
        try:
            train(
                recipe_fn,
                dataset,
                out=stage_folder,
                resume=has_run,
                quiet=log is not print,
                **settings,
            )
        except Interrupted as interrupted:
            raise Interrupted(
                f"Interrupted while training {recipe_fn.__name__}. Progress is saved in {folder}. "
                f"{_resume_hint(folder)}",
                interrupted.exit_code,
            ) from None
    return folders


def _check_forgetting(
    model: Model, dataset: Dataset, reference: Dataset | None, log: LogFunction
) -> None:
    """Log the metrics before and after training, and warn if the original task is forgotten."""
    from sensorium.training.weight_interpolation import evaluate_interpolations  # fine-tuning only

    curve = evaluate_interpolations(model, dataset, reference, (0.0, 1.0))
    log(
        f"before and after: {curve.metric_name} on this dataset {curve.target_values[0]:.3f}, "
        f"{curve.target_values[1]:.3f}; {curve.reference_name} {curve.reference_values[0]:.3f}, "
        f"{curve.reference_values[1]:.3f}"
    )
    if curve.has_forgotten:
        log(
            "WARNING: the model has forgotten much of its original task. Weights between the "
            "pretrained and the fine-tuned ones may keep both: sensorium interpolate "
            f"{model.folder}"
        )


def _training_loop(
    run: TrainingRun, dataset: Dataset, metrics_log: MetricsLog, stop_request: StopRequest
) -> None:
    """Take steps, evaluate and save until the run is finished or interrupted."""
    training, progress = run.recipe.training, run.progress
    batches = iter(run.loader)
    try:
        while not run.is_finished:
            metrics = run.train_step(next(batches), progress.step)
            progress.step += 1
            metrics_log.log_step(progress.step, metrics)
            if run.is_due(training.eval_interval):
                _evaluate(run, metrics_log)
            if stop_request.signal_number or run.is_due(training.checkpoint_interval):
                metrics_log.sync()
                run.save()
            if stop_request.signal_number:
                raise _interrupted_error(run, stop_request.signal_number)
    except NonFiniteError as e:
        raise _add_context(e, run, dataset) from e
    except OSError as e:
        raise SensoriumError(
            f"Training stopped after step {progress.step}: {e}. The last checkpoint in "
            f"{run.folder} is intact. Fix the cause, then continue. {_resume_hint(run.folder)}"
        ) from e


def _evaluate(run: TrainingRun, metrics_log: MetricsLog) -> None:
    """Validate the (averaged) model, write samples, and save the weights if they are the best."""
    evaluation = run.recipe.evaluation
    model = run.recipe.model
    averaged = run.train_step.ema.applied() if run.train_step.ema else nullcontext()
    with averaged, torch.random.fork_rng():
        model.eval()
        result = None
        if evaluation.validate and len(run.validation_rows):
            result = evaluation.validate(model, run.prepared, run.validation_rows)
        metrics = result.metrics if result else {}
        metrics_log.log_evaluation(run.progress.step, metrics, evaluation.metric)
        if evaluation.write_samples and len(run.validation_rows):
            folder = run.folder / "samples"
            folder.mkdir(exist_ok=True)
            path = folder / f"step-{run.progress.step:06d}.png"
            evaluation.write_samples(model, run.prepared, run.validation_rows, path)
        run.save_best(result)


def _interrupted_error(run: TrainingRun, signal_number: int) -> Interrupted:
    """Return the error of a run that has saved its state on a signal."""
    return Interrupted(
        f"Interrupted after step {run.progress.step}. Progress is saved in {run.folder}. "
        f"{_resume_hint(run.folder)}",
        128 + signal_number,
    )


def _resume_hint(folder: Path) -> str:
    """Return how to resume a run, as a sentence."""
    return (
        f'Resume with the same command and --out {folder} --resume (out="{folder}", resume=True).'
    )


def _add_context(error: NonFiniteError, run: TrainingRun, dataset: Dataset) -> NonFiniteError:
    """Return the error with the step, the names of the rows and what to do."""
    named, others = error.rows[:MAX_ROWS_NAMED], error.rows[MAX_ROWS_NAMED:]
    names = ", ".join(f"{dataset.location(row)} (row {row})" for row in named)
    more = f" and {len(others)} more" if others else ""
    return NonFiniteError(
        f"Step {run.progress.step + 1}: {error.reason}",
        f"{error.location}, samples {names}{more}. The weights were not updated, and the last "
        f"checkpoint in {run.folder} is intact. Lower --lr, raise --warmup-ratio, use --precision "
        "fp32, or remove these samples; then train into a new folder.",
        error.rows,
    )
