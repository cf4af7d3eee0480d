"""Create a training run, or resume one from its last checkpoint."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader
from sensorium.data.schema import Schema, split_pair
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.run_config import (
    INITIAL_WEIGHTS_FILE,
    WEIGHTS_FILE,
    RunConfig,
)
from sensorium.io.snapshots import CheckpointStore
from sensorium.io.tensors import load_weights, state_tensors, tensor_writer
from sensorium.nn.tokens import column_label
from sensorium.recipes.recipe import (
    Recipe,
    RecipeFunction,
    build_recipe,
    option_name,
    split_keywords,
)
from sensorium.training.checkpoint import get_recipe_name
from sensorium.training.data_fingerprint import fingerprint, hash_columns, save_trained_rows
from sensorium.training.run import LogFunction, TrainingRun
from sensorium.training.train_step import TrainStep, check_training_config, choose_precision

MIN_STEPS_TO_BENCHMARK = 100  # a shorter run does not repay the time of measuring bf16
QUARANTINE_FILE = "quarantine.jsonl"
# Temporary files of a killed process of version 0.1, and those of safetensors.
TEMPORARY_PATTERNS = (".*.tmp", ".tmp??????")


def create_run(
    recipe_fn: RecipeFunction[Any],
    dataset: Dataset,
    folder: Path,
    keywords: Mapping[str, Any],
    plan: Recipe[Any],
) -> TrainingRun:
    """Create a run: fit the schema on the training rows, build the model, prepare the data.

    config.json is written last; until then the folder holds no run.

    Args:
        recipe_fn: the recipe function.
        dataset: the data.
        folder: the run folder.
        keywords: keywords of the recipe and of `TrainingConfig`.
        plan: a dry build of the same recipe, for the columns that it reads.

    Raises:
        SensoriumError: the data lack training rows, or validation rows that the recipe needs.
    """
    start = time.monotonic()
    rows = dataset.splits.get("train", np.zeros(0, dtype=np.int64))
    if len(rows) == 0:
        raise SensoriumError(
            f"{dataset.name} has no training rows; its splits are {', '.join(dataset.splits)}. "
            "Mark rows as train with --split."
        )
    data = plan.data
    schema = _unfitted_schema(recipe_fn, dataset, keywords, plan)
    schema = schema.fit(dataset, rows, data.columns, data.column_settings, data.max_text_length)
    recipe, all_keywords = _build_recipe(recipe_fn, schema, keywords)
    schema = schema.with_settings(recipe.data.column_settings)
    hashes = hash_columns(dataset, data.columns)
    config = RunConfig(
        recipe=get_recipe_name(recipe_fn),
        keywords=all_keywords,
        precision="fp32",
        data=fingerprint(dataset, hashes) | {"source": dataset.source},
    )
    run = _assemble(config, recipe, dataset, schema, folder)
    _initialize(run, recipe_fn)
    if recipe.hooks.needs_validation and not len(run.validation_rows):
        raise SensoriumError(
            f"{dataset.name} has no validation rows, which {recipe_fn.__name__} needs with these "
            "options. Mark rows as val with --split."
        )
    if _use_bf16(run):
        run.config = replace(config, precision="bf16")
        run.train_step.precision = "bf16"
    if recipe.training.minutes:
        from sensorium.training.time_budget import fit_to_budget  # only with --minutes

        run.notes.append(fit_to_budget(run, start))
    schema.save(folder)
    save_trained_rows(folder, dataset, hashes, rows)
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
    new_rows: bool = False,
) -> TrainingRun:
    """Restore the run in a folder from its last intact checkpoint.

    Args:
        recipe_fn: the recipe function of the run.
        dataset: the data of the run, which may have moved.
        folder: the run folder.
        keywords: keywords of this call; only `epochs` may differ from that of the run, and only be
            more.
        log: called with messages.
        new_rows: allow data to which rows were added.

    Raises:
        SensoriumError: the recipe, a keyword or the data differ from those of the run.
    """
    from sensorium.training.extension import extend_config, save_extension  # only to resume

    stored = RunConfig.load(folder)
    _check_unchanged(stored, recipe_fn, folder, keywords)
    checkpoints = CheckpointStore(folder / "state")
    checkpoint = checkpoints.latest(log)
    config = extend_config(stored, keywords, dataset, folder, checkpoint, new_rows)
    schema = Schema.load(folder)
    stored_keywords = config.keywords if checkpoint else _restore_sources(config.keywords)
    recipe, _ = _build_recipe(recipe_fn, schema, stored_keywords)
    if checkpoint:  # before the data are prepared: derived columns may depend on the weights
        load_weights(recipe.model, checkpoint / WEIGHTS_FILE)
    run = _assemble(config, recipe, dataset, schema, folder)
    run.checkpoints = checkpoints
    atomic.sweep(folder)
    for pattern in TEMPORARY_PATTERNS:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink()
    if checkpoint:
        run.restore(checkpoint)
    else:
        _initialize(run, recipe_fn)
    if config != stored:
        save_extension(run, stored, dataset, log)
    return run


def _unfitted_schema(
    recipe_fn: RecipeFunction[Any],
    dataset: Dataset,
    keywords: Mapping[str, Any],
    plan: Recipe[Any],
) -> Schema:
    """Return the schema of a dataset, in which images are read as in the run `init`, if any."""
    if not keywords.get("init"):
        return dataset.schema
    from sensorium.training.initial_weights import SourceRun, inherit_settings

    source = SourceRun.load(keywords["init"], recipe_fn)
    return inherit_settings(source, dataset.schema, plan.data.columns)


def _initialize(run: TrainingRun, recipe_fn: RecipeFunction[Any]) -> None:
    """Fit a new model on the training rows, and copy weights of the run `init` into it."""
    run.initialize()
    if run.recipe.training.init:
        from sensorium.training.initial_weights import copy_weights

        run.notes.append(copy_weights(run, recipe_fn))


def _check_unchanged(
    config: RunConfig,
    recipe_fn: RecipeFunction[Any],
    folder: Path,
    keywords: Mapping[str, Any],
) -> None:
    """Raise SensoriumError where recipe or keywords, but for more epochs, are not of the run."""
    recipe_name = get_recipe_name(recipe_fn)
    if config.recipe != recipe_name:
        raise SensoriumError(
            f"{folder} was trained with recipe {config.recipe}, not {recipe_name}. Resume it with "
            "that recipe, or train into a new folder."
        )
    for name, value in keywords.items():
        is_number = isinstance(value, int | float)
        more_epochs = name == "epochs" and is_number and value > config.keywords[name]
        if name in config.keywords and not more_epochs:
            _check_keyword_unchanged(config, folder, name, value)


def _check_keyword_unchanged(config: RunConfig, folder: Path, name: str, value: Any) -> None:
    """Raise SensoriumError where the value of a keyword differs from that of the run."""
    if value in (None, "auto"):
        return  # leaves the choice to the recipe, which made it when the run was created
    stored = _restore_sources({name: config.keywords[name]})[name]
    if isinstance(stored, dict) and "source" in stored:  # pretrained weights
        stored = stored["source"]
    if isinstance(value, Mapping) and isinstance(stored, str):
        return  # settings of a prerequisite run, of which the config stores the folder
    if isinstance(stored, Mapping) and isinstance(value, str | list | tuple):
        value = _parse_pairs(value, stored)
    if _as_json(stored) != _as_json(value):
        option = option_name(name)
        raise SensoriumError(
            f"{folder} was trained with {option} {stored!r}, not {value!r}. A resumed run keeps "
            f"its settings, and only --epochs may be raised: leave out {option}, or train into a "
            f"new folder, from the weights of this run with --init {folder}."
        )


def _parse_pairs(pairs: str | Sequence[str], known: Mapping[str, Any]) -> dict[str, str]:
    """Return COLUMN=VALUE pairs as a mapping, which is how a run stores them."""
    pairs = [pairs] if isinstance(pairs, str) else pairs
    return dict(split_pair(pair, known) for pair in pairs if pair)


def _as_json(value: Any) -> Any:
    """Return a value as it is after a round trip through JSON, in which tuples are lists."""
    return json.loads(json.dumps(value))


def _restore_sources(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return keywords in which the config of pretrained weights is replaced by their source."""
    from sensorium.pretrained.source import from_config  # not needed once weights are saved

    return from_config(keywords)


def _build_recipe(
    recipe_fn: RecipeFunction[Any], schema: Schema, keywords: Mapping[str, Any]
) -> tuple[Recipe[Any], dict[str, Any]]:
    """Build a recipe with initial weights sampled from the seed; return all keywords as JSON."""
    _, training_keywords = split_keywords(recipe_fn, keywords)
    torch.manual_seed(training_keywords.get("seed", 0))
    recipe, all_keywords = build_recipe(recipe_fn, schema, keywords)
    check_training_config(recipe.training)
    try:
        return recipe, json.loads(json.dumps(all_keywords, allow_nan=False))
    except (TypeError, ValueError) as e:
        raise SensoriumError(
            f"A keyword of {recipe_fn.__name__} cannot be stored in config.json: {e}. Use numbers, "
            "text, lists or dicts."
        ) from e


def _assemble(
    config: RunConfig, recipe: Recipe[Any], dataset: Dataset, schema: Schema, folder: Path
) -> TrainingRun:
    """Prepare the data and put the parts of a run together."""
    training = recipe.training
    prepared, splits = _prepare_data(recipe, dataset, schema, folder)
    train_rows = prepared.complete_rows(splits["train"], recipe.data.required)
    if len(splits["train"]) and not len(train_rows):
        raise SensoriumError(
            f"No training row of {dataset.name} has a value in each of the columns "
            f"{', '.join(map(column_label, recipe.data.required))}, which a row needs to be "
            "trained on. Check these columns."
        )
    if len(train_rows) == 0:
        raise SensoriumError(
            f"{dataset.name} has no valid training row. See {folder / QUARANTINE_FILE} for the "
            "reasons."
        )
    loader = BatchLoader(
        prepared,
        train_rows,
        training.batch_size,
        seed=training.seed,
        samples_per_group=training.samples_per_group,
        augment=recipe.data.augment.get(training.augment),
    )
    total_steps = _count_steps(config, training.epochs, loader.steps_per_epoch)
    return TrainingRun(
        folder=folder,
        config=config,
        recipe=recipe,
        schema=schema,
        prepared=prepared,
        train_rows=train_rows,
        incomplete_rows=len(splits["train"]) - len(train_rows),
        validation_rows=splits.get("val", train_rows[:0]),
        loader=loader,
        total_steps=total_steps,
        train_step=TrainStep(recipe, total_steps, config.precision),
    )


def _count_steps(config: RunConfig, epochs: float, steps_per_epoch: int) -> int:
    """Return the optimizer steps of a whole run; epochs before rows were added were shorter.

    Args:
        config: the config, which records at which step and epoch rows were added last.
        epochs: epochs of the run.
        steps_per_epoch: optimizer steps of an epoch of all rows.
    """
    first_step, first_epoch = config.data.get("from_step", 0), config.data.get("from_epochs", 0)
    return max(1, first_step + round((epochs - first_epoch) * steps_per_epoch))


def _prepare_data(
    recipe: Recipe[Any], dataset: Dataset, schema: Schema, folder: Path
) -> tuple[PreparedDataset, dict[str, np.ndarray]]:
    """Return the prepared dataset, and its splits without invalid rows, which a file lists."""
    data = recipe.data
    derived = data.derived_columns(dataset) if data.derived_columns else {}
    prepared = dataset.prepare(schema, data.columns, derived_columns=derived)
    bad_samples = prepared.bad_samples
    if bad_samples:
        lines = [json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in bad_samples]
        atomic.write_file(folder / QUARANTINE_FILE, "".join(lines).encode())
    bad_rows = np.array([sample.row for sample in bad_samples], dtype=np.int64)
    splits = {name: np.setdiff1d(rows, bad_rows) for name, rows in dataset.splits.items()}
    return prepared, splits


def _use_bf16(run: TrainingRun) -> bool:
    """Return whether a new run trains in bf16."""
    precision = run.recipe.training.precision
    return precision == "bf16" or (precision == "auto" and _bf16_is_faster(run))


def _bf16_is_faster(run: TrainingRun) -> bool:
    """Return whether bf16 is faster on this machine; False for runs too short to measure it."""
    if run.total_steps < MIN_STEPS_TO_BENCHMARK:
        return False
    training = run.recipe.training
    batch = run.prepared.batch(run.train_rows[: training.batch_size])
    micro_batch = batch.split(training.grad_accumulation_steps)[0]
    return choose_precision(run.recipe, micro_batch) == "bf16"
