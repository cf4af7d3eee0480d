"""Resume a run with more epochs, or with data to which rows were added."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.io.run_config import MODEL_CARD_FILE, RunConfig
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, spell_class
from sensorium.training import optimizers
from sensorium.training.data_fingerprint import (
    describe_difference,
    describe_lost_rows,
    fingerprint,
    hash_columns,
    save_trained_rows,
)
from sensorium.training.run import STATE_FILE, LogFunction, TrainingRun

MAX_VALUES_NAMED = 3  # of a column, in a message


def extend_config(
    config: RunConfig,
    keywords: Mapping[str, Any],
    dataset: Dataset,
    folder: Path,
    checkpoint: Path | None,
    new_rows: bool,
) -> RunConfig:
    """Return the config of a run that is resumed, with more epochs or rows where that is asked.

    Args:
        config: the config of the run.
        keywords: keywords of this call; only `epochs` may be larger than that of the run.
        dataset: the data.
        folder: the run folder.
        checkpoint: the checkpoint to resume from; None: the run starts anew.
        new_rows: allow data to which rows were added.

    Raises:
        SensoriumError: the data differ from those of the run, or no step is left to take.
    """
    if "epochs" in keywords:
        config = replace(config, keywords={**config.keywords, "epochs": keywords["epochs"]})
    difference = describe_difference(config.data, dataset)
    if not difference:
        return config
    if not new_rows:
        raise SensoriumError(
            f"{dataset.name} differs from the data that {folder} was trained on: {difference}. "
            "Name the same data. If rows were added, train on them, too, with --new-rows "
            "(new_rows=True). After any other change, start a new run from these weights with "
            f"--init {folder}."
        )
    columns = list(config.data.get("values", {}))
    lost = describe_lost_rows(folder, dataset, columns)
    if lost:
        raise SensoriumError(
            f"{dataset.name} is not the data that {folder} was trained on with new rows: {lost}. "
            f"Start a new run from these weights with --init {folder}."
        )
    step, epochs = _position(config, checkpoint)
    if epochs >= config.keywords["epochs"]:
        raise SensoriumError(
            f"{folder} has finished its {config.keywords['epochs']:g} epochs, so new rows would "
            f"not be trained on. Add epochs: --epochs {epochs + 5:.0f} trains 5 more."
        )
    data = fingerprint(dataset, hash_columns(dataset, columns)) | {
        "source": dataset.source,
        "from_step": step,
        "from_epochs": epochs,
    }
    return replace(config, data=data)


def save_extension(run: TrainingRun, stored: RunConfig, dataset: Dataset, log: LogFunction) -> None:
    """Store the new config of a run, and say what has changed.

    Args:
        run: the run with its new config.
        stored: the config that it had.
        dataset: the data.
        log: called with messages.
    """
    config, training = run.config, run.recipe.training
    if config.data != stored.data:
        columns = list(config.data["values"])
        hashes = hash_columns(dataset, columns)
        save_trained_rows(run.folder, dataset, hashes, dataset.splits["train"])
        log(
            f"{dataset.name} has {len(dataset):,} rows, before {stored.data['rows']:,}; all take "
            f"part from step {run.progress.step + 1:,} on, and columns keep their settings"
        )
        unknown = _describe_unknown_values(run.schema, dataset, columns)
        if unknown:
            log(
                f"values that the run does not know are read as unknown: {unknown}. To learn them, "
                f"start a new run with --init {run.folder}"
            )
    (run.folder / MODEL_CARD_FILE).unlink(missing_ok=True)  # it marks a finished run
    config.save(run.folder)
    scale = optimizers.lr_scale(run.progress.step, run.total_steps, training.warmup_ratio)
    log(
        f"the run now takes {training.epochs:g} epochs, {run.total_steps:,} steps in all. Its "
        "learning rate is that of a run of this length from the start: "
        f"{training.lr * scale:.2g} at step {run.progress.step + 1:,}, then down to 0"
    )


def _position(config: RunConfig, checkpoint: Path | None) -> tuple[int, float]:
    """Return the steps and epochs that a run has taken at a checkpoint."""
    if checkpoint is None:
        return 0, 0.0
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    step = int(state["progress"]["step"])
    first_step, first_epoch = config.data.get("from_step", 0), config.data.get("from_epochs", 0.0)
    return step, first_epoch + max(0, step - first_step) / state["loader"]["steps_per_epoch"]


def _describe_unknown_values(schema: Schema, dataset: Dataset, columns: list[str]) -> str:
    """Return the classes and tags of the training rows that a schema does not know, by column."""
    parts: list[str] = []
    for name in columns:
        modality = schema.columns[name].modality
        values = [v for v in dataset.raw(name, dataset.splits["train"]) if v is not None]
        if isinstance(modality, Category):
            known = {spell_class(c) for c in modality.classes}
            unknown = {spell_class(v) for v in values} - known
        elif isinstance(modality, Multilabel):
            unknown = {tag for v in values for tag in modality.split_tags(v)} - {*modality.tags}
        else:
            continue
        if unknown:
            named = ", ".join(sorted(unknown)[:MAX_VALUES_NAMED])
            more = ", ..." if len(unknown) > MAX_VALUES_NAMED else ""
            parts.append(f"{len(unknown):,} of {name} ({named}{more})")
    return "; ".join(parts)
