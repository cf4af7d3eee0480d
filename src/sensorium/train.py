"""The loop. Nothing here knows what a modality or a family is: a recipe says what to train, a data set on what."""
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sensorium.card import card, farewell
from sensorium.checkpoint import Model
from sensorium.config import WEIGHTS
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.kernels import settle_allocator
from sensorium.progress import Log
from sensorium.recipes.recipe import Make, Recipe, planned, split_keywords
from sensorium.run import Run, Say, alone, begin, go_on, place
from sensorium.step import NonFinite
from sensorium.stored import digest, read_weights


class Stopped(SensoriumError):
    """The run was asked to stop (Ctrl-C, SIGTERM), has saved, and can go on. `code` is what a shell expects of it."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.code = code


def train(recipe: Make[Any], dataset: Dataset, *, out: str | Path | None = None, resume: bool = False, quiet: bool = False,
          reference: Dataset | None = None, **keywords: Any) -> Model:
    """Train a recipe on a data set; the best model by the recipe's metric on the validation rows.

    out: the run's folder; None: the next free of runs/RECIPE-0001, ... It must be new or empty unless resume is True:
    then the run goes on from its last save exactly as if it had never stopped, and keeps its keywords.
    reference: where a run begins with trained weights, data of what they could do before; both are judged at the end.
    keywords: the recipe's own and those of `TrainingConfig` (epochs, batch_size, lr, ...).
    Raises TypeError for an unknown keyword; Stopped on SIGINT or SIGTERM, after a save; SensoriumError where the data,
    the folder, the disk or the numbers (a loss that is not finite) do not allow to go on.
    """
    split_keywords(recipe, keywords)                    # a slip of the pen is said before any work
    say: Say = (lambda text: None) if quiet else print
    with torch.random.fork_rng():                       # the caller's chance is left as it was
        plan = None if resume else planned(recipe, dataset.schema, keywords)
        folder, again = place(out, recipe.__name__, resume)
        with alone(folder):
            settle_allocator()
            if again:
                run = go_on(recipe, dataset, folder, keywords, say)
            else:
                run = _begun(recipe, dataset, folder, keywords, plan or planned(recipe, dataset.schema, keywords), say)
            _complete(run, dataset, again, quiet)
            say(farewell(run))
    model = _model(run)
    if run.recipe.measures_forgetting and len(run.validation):
        _guard(model, dataset, reference, say)
    return model


def _begun(recipe: Make[Any], dataset: Dataset, folder: Path, keywords: dict[str, Any], plan: Recipe[Any],
           say: Say) -> Run:
    """A new run, after those that it builds on."""
    if plan.prerequisites:
        keywords = keywords | _stages(plan, dataset, folder, say)
        plan = planned(recipe, dataset.schema, keywords)
    return begin(recipe, dataset, folder, keywords, plan)


def _complete(run: Run, dataset: Dataset, again: bool, quiet: bool) -> None:
    """Take all steps that are left, and write the model card."""
    training, start = run.recipe.training, run.reached.step
    with Log(run.folder, run.steps, start, training.batch_size, quiet) as log:
        log.say(f"{training.epochs:g} epochs of {len(run.rows):,} rows into {run.folder}"
                + (f", from step {start} on" if again else ""))
        with interruptions() as asked:
            _loop(run, dataset, log, asked)
        if found := run.finish():
            log.evaluation(run.reached.best_step, found, run.recipe.evaluation.metric)
            log.say("at the end: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))
    card(run, log.entries)


def _model(run: Run) -> Model:
    """The model of a finished run, with its best weights: what `load` makes of its folder."""
    read_weights(run.recipe.model, run.folder / WEIGHTS)
    run.recipe.model.zero_grad()
    return Model(run.recipe, run.schema, run.config, digest(run.folder / WEIGHTS), run.folder)


def _stages(plan: Recipe[Any], dataset: Dataset, folder: Path, say: Say) -> dict[str, str]:
    """Train first what a recipe builds on where no run of it is named: in folder/KEYWORD, from where it was stopped."""
    for keyword, (first, settings) in plan.prerequisites.items():
        at = folder / keyword
        if not (at / "README.md").exists():             # what a run writes last
            say(f"first {first.__name__}, in {at}; to take a finished run instead, name it with {keyword}=")
            begun = (at / "config.json").exists()
            try:
                train(first, dataset, out=at, resume=begun, quiet=say is not print, **settings)
            except Stopped as stopped:
                raise Stopped(f"stopped in its first stage, and all is saved in {folder}. To go on, give the same "
                              f"command with --out {folder} --resume", stopped.code) from None
    return {keyword: str(folder / keyword) for keyword in plan.prerequisites}


def _guard(model: Model, dataset: Dataset, reference: Dataset | None, say: Say) -> None:
    """Say what the weights it began with could do, and whether that is still there."""
    from sensorium.blend import curve  # not needed where weights begin anew
    ends = curve(model, dataset, reference, (0.0, 1.0))
    say(f"before and after: {ends.metric} on these data {ends.new[0]:.3f}, {ends.new[1]:.3f}; "
        f"{ends.reference} {ends.old[0]:.3f}, {ends.old[1]:.3f}")
    if ends.collapsed:
        say(f"WARNING: much of what it could do before is gone. The weights in between may keep both: sensorium blend "
            f"{model.folder}")


def _loop(run: Run, dataset: Dataset, log: Log, asked: "Asked") -> None:
    training, batches = run.recipe.training, iter(run.loader)
    try:
        while not run.over:
            figures = run.step(next(batches), run.reached.step)
            run.reached.step += 1
            log.step(run.reached.step, figures)
            if run.due(training.eval_interval):
                _evaluate(run, log)
            if asked.signal or run.due(training.checkpoint_interval):
                log.sync()
                run.save()
            if asked.signal:
                raise _stopped(run, asked.signal)
    except NonFinite as fault:
        raise _explained(fault, run, dataset) from fault
    except OSError as e:
        raise SensoriumError(f"stuck after step {run.reached.step}: {e}. {run.folder} is as it was last saved. "
                             "Mend it, then give the same command with --resume (resume=True)") from e


def _evaluate(run: Run, log: Log) -> None:
    """Figures, curve and sample pictures of the model as it would be kept, and the model itself if it is the best."""
    recipe, evaluation, step = run.recipe, run.recipe.evaluation, run.reached.step
    with run.step.average.worn() if run.step.average else nullcontext(), torch.random.fork_rng():
        recipe.model.eval()
        validate = evaluation.validate if len(run.validation) else None
        result = validate(recipe.model, run.prepared, run.validation) if validate else None
        log.evaluation(step, result.figures if result else {}, evaluation.metric)
        if evaluation.write_samples and len(run.validation):
            (folder := run.folder / "samples").mkdir(exist_ok=True)
            evaluation.write_samples(recipe.model, run.prepared, run.validation, folder / f"step-{step:06d}.png")
        run.keep_best(result)


def _stopped(run: Run, number: int) -> Stopped:
    return Stopped(f"stopped after step {run.reached.step}; all is saved in {run.folder}. To go on, give the same "
                   f"command with --out {run.folder} --resume (out={str(run.folder)!r}, resume=True)", 128 + number)


def _explained(fault: NonFinite, run: Run, dataset: Dataset) -> NonFinite:
    """The same fault with the step, the samples' names and what to do."""
    names = ", ".join(f"{dataset.where(row)} (row {row})" for row in fault.rows[:4])
    more = f" and {len(fault.rows) - 4} more" if len(fault.rows) > 4 else ""
    return NonFinite(f"step {run.reached.step + 1}: {fault.what}", f"{fault.place}, samples {names}{more}. The weights "
                     f"were not touched, and {run.folder} is as it was last saved. Lower lr, raise warmup_ratio, use "
                     "precision=fp32, or take these samples out; then train into a new folder", fault.rows)


class Asked:
    """Which signal asked the run to stop; 0: none."""

    signal: int = 0


@contextmanager
def interruptions() -> Iterator[Asked]:
    """For a while SIGINT and SIGTERM ask instead of kill; a second one does what it did before. Main thread only."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        asked.signal = number
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
