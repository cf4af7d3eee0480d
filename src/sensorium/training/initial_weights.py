"""Start a run from the weights of another run of the same recipe, on the same or other data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.data.schema import SET_BY_USER, Schema
from sensorium.errors import SensoriumError
from sensorium.io.run_config import WEIGHTS_FILE, RunConfig
from sensorium.io.tensors import VariableSizeBuffers, read_tensors, state_tensors
from sensorium.modalities.base import Modality, SharesVectors
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, spell_class
from sensorium.modalities.text import Text
from sensorium.models.lora import ORIGINAL_WEIGHT, merge_lora_tensors
from sensorium.models.towers import Encoder, module_name
from sensorium.nn.tokens import ColumnKey, column_label, column_names
from sensorium.pretrained.source import from_config
from sensorium.recipes.recipe import RecipeFunction, dry_build, split_keywords
from sensorium.training.checkpoint import get_recipe_name
from sensorium.training.run import TrainingRun

MAX_TENSORS_NAMED = 4  # in a message


@dataclass(frozen=True)
class SourceRun:
    """A run whose weights another run starts from.

    Attributes:
        folder: the run folder.
        keywords: its keywords.
        schema: its columns.
        columns: the columns that its model reads, in the order of the model.
    """

    folder: Path
    keywords: Mapping[str, Any]
    schema: Schema
    columns: tuple[ColumnKey, ...]

    @classmethod
    def load(cls, folder: str | Path, recipe_fn: RecipeFunction[Any]) -> "SourceRun":
        """Read the config of a run.

        Raises:
            SensoriumError: the folder is not a run, or a run of another recipe.
        """
        folder = Path(folder)
        config, schema = RunConfig.load(folder), Schema.load(folder)
        recipe_name = get_recipe_name(recipe_fn)
        if config.recipe != recipe_name:
            raise SensoriumError(
                f"--init {folder}: this run was trained with recipe {config.recipe}, not "
                f"{recipe_name}. Name a run of the same recipe."
            )
        plan = dry_build(recipe_fn, schema, config.keywords)
        return cls(folder, config.keywords, schema, plan.data.columns)

    def pair_columns(
        self, columns: Sequence[ColumnKey], schema: Schema
    ) -> dict[ColumnKey, ColumnKey]:
        """Return the column of this run for each column of a new run, which must be of its type.

        Raises:
            SensoriumError: the columns do not correspond.
        """
        own = [(self.schema[key].kind, key) for key in self.columns]
        new = [(schema[key].kind, key) for key in columns]
        same_kinds = [kind for kind, _ in own] == [kind for kind, _ in new]
        same_names = {key for _, key in own} == {key for _, key in new}
        if not same_kinds or (same_names and own != new):
            listed = [
                ", ".join(f"{column_label(key)} ({kind})" for kind, key in pairs)
                for pairs in (own, new)
            ]
            raise SensoriumError(
                f"--init {self.folder}: this run reads the columns {listed[0]}, the new one "
                f"{listed[1]}. The types must be the same in the same order: choose the columns "
                "with the options of the recipe, or set a type with --type NAME=TYPE."
            )
        return dict(zip(columns, self.columns, strict=True))


def inherit_keywords(
    recipe_fn: RecipeFunction[Any], schema: Schema, keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Return keywords in which what is not given about the model is as in the run `init`.

    Names of columns are taken over where the data have these columns. Settings of the training
    are not taken over.

    Args:
        recipe_fn: the recipe function.
        schema: the columns of the new data.
        keywords: the given keywords, with `init`.
    """
    folder = str(keywords["init"])
    source = SourceRun.load(folder, recipe_fn)
    stored, _ = split_keywords(recipe_fn, from_config(source.keywords))
    inherited = {
        name: value
        for name, value in stored.items()
        if value is not None and not _names_lost_column(value, source.schema, schema)
    }
    return {**inherited, **keywords, "init": folder}


def inherit_settings(source: SourceRun, schema: Schema, columns: Sequence[ColumnKey]) -> Schema:
    """Return a schema whose images are read as in a run, unless the user set their type."""
    new_images = [schema.columns[name] for key in columns for name in column_names(key)]
    new_images = [column for column in new_images if isinstance(column.modality, Image)]
    old_images = [source.schema[key] for key in source.columns]
    old_images = [modality for modality in old_images if isinstance(modality, Image)]
    if len(new_images) != len(old_images):
        return schema  # which `copy_weights` reports
    return schema.with_settings(
        {
            column.name: settings
            for column, settings in zip(new_images, old_images, strict=True)
            if column.reason != SET_BY_USER
        }
    )


@torch.no_grad()
def copy_weights(run: TrainingRun, recipe_fn: RecipeFunction[Any]) -> str:
    """Copy all weights that fit from the run `init` into a new run.

    A tensor fits if name and shape are the same. Rows of a vocabulary, of classes or of tags are
    copied by name. Frozen weights and what is fitted on the data stay as they are.

    Args:
        run: the new run, fitted on its data.
        recipe_fn: the recipe function of both.

    Returns:
        What was taken and what is new, in one line.

    Raises:
        SensoriumError: no matrix of weights fits.
    """
    source = SourceRun.load(run.recipe.training.init, recipe_fn)
    pairs = source.pair_columns(run.recipe.data.columns, run.schema)
    renames = {module_name(old): module_name(new) for new, old in pairs.items()}
    old = {
        ".".join(renames.get(part, part) for part in name.split(".")): value
        for name, value in merge_lora_tensors(read_tensors(source.folder / WEIGHTS_FILE)).items()
    }
    model = run.recipe.model
    result = _CopyResult()
    any_matrix = False  # a few biases that fit by chance are no start
    skipped = _tensors_of_the_data(model)
    for prefix, module in model.named_modules():
        if isinstance(module, SharesVectors):
            own = {
                n.removeprefix(f"{prefix}."): v
                for n, v in old.items()
                if n.startswith(f"{prefix}.")
            }
            result.add(prefix, *module.take_vectors(own))
    axes = _named_axes(run, recipe_fn, source, pairs)
    for name, value in state_tensors(model).items():
        if name not in skipped:
            merged = old.get(name.replace(ORIGINAL_WEIGHT, ".weight"))
            counts = _copy_tensor(value, old.get(name, merged), axes.get(name))
            result.add(name, *counts)
            any_matrix |= value.ndim > 1 and counts[1] > 0
    if not any_matrix:
        raise SensoriumError(
            f"--init {source.folder}: no weights fit this model{_first_misfit(model, old)}. Give "
            "the options of the model the values that they have in that run (see its README.md)."
        )
    if run.train_step.ema:
        for name, parameter in model.named_parameters():
            run.train_step.ema.weights[name].copy_(parameter)
    return f"starting from the weights of {source.folder}: {result}"


@dataclass
class _CopyResult:
    """Which tensors were taken: wholly, in part, or not.

    Attributes:
        taken: number of tensors of which anything was taken.
        new: descriptions of the others, and of parts that are new.
        total: number of tensors.
    """

    taken: int = 0
    new: list[str] = field(default_factory=list)
    total: int = 0

    def add(self, name: str, num_rows: int, num_taken: int) -> None:
        self.total += 1
        self.taken += num_taken > 0
        if num_taken < num_rows:
            part = f" ({num_rows - num_taken:,} of {num_rows:,} rows)" if num_taken else ""
            self.new.append(f"{name}{part}")

    def __str__(self) -> str:
        if not self.new:
            return f"all {self.total:,} tensors"
        named = ", ".join(self.new[:MAX_TENSORS_NAMED])
        more = len(self.new) - MAX_TENSORS_NAMED
        rest = f" and {more:,} more" if more > 0 else ""
        return f"{self.taken:,} of {self.total:,} tensors; new are {named}{rest}"


@dataclass(frozen=True)
class _NamedAxis:
    """An axis of a tensor whose entries are the words, classes or tags of a column.

    Attributes:
        axis: the axis.
        new: names of its entries; entries after the last have no name.
        old: names of the entries in the other run.
    """

    axis: int
    new: list[str]
    old: list[str]

    def indices(self, new_size: int, old_size: int) -> tuple[list[int], list[int]]:
        """Return the entries to copy to, and those to copy from."""
        index = {name: i for i, name in enumerate(self.old)}
        named = [(i, index[name]) for i, name in enumerate(self.new) if name in index]
        extra = new_size - len(self.new)
        if extra == old_size - len(self.old) and extra > 0:
            named += [(len(self.new) + i, len(self.old) + i) for i in range(extra)]
        return [i for i, _ in named], [i for _, i in named]


def _copy_tensor(value: Tensor, old: Tensor | None, named: _NamedAxis | None) -> tuple[int, int]:
    """Copy what fits; return the number of rows, and how many of them were copied."""
    num_rows = value.shape[named.axis] if named else 1
    if old is None or old.ndim != value.ndim:
        return num_rows, 0
    if named is None:
        fits = old.shape == value.shape
        if fits:
            value.copy_(old)
        return 1, int(fits)
    axis = named.axis
    to, origin = named.indices(num_rows, old.shape[axis])
    others = [size for i, size in enumerate(value.shape) if i != axis]
    if others != [size for i, size in enumerate(old.shape) if i != axis] or not to:
        return num_rows, 0
    values = old.index_select(axis, torch.tensor(origin)).to(value)
    value.index_copy_(axis, torch.tensor(to), values)
    return num_rows, len(to)


def _named_axes(
    run: TrainingRun,
    recipe_fn: RecipeFunction[Any],
    source: SourceRun,
    pairs: Mapping[ColumnKey, ColumnKey],
) -> dict[str, _NamedAxis]:
    """Return the axes, by tensor, whose entries are names that differ between the runs.

    An axis belongs to a column if it grows by one where the column gets one more name.
    """
    axes: dict[str, _NamedAxis] = {}
    keywords = run.config.keywords
    shapes: dict[str, torch.Size] = {}
    for new, old in pairs.items():
        new_names, old_names = _entry_names(run.schema[new]), _entry_names(source.schema[old])
        if new_names == old_names:
            continue
        if not shapes:
            shapes = _meta_shapes(recipe_fn, run.schema, keywords)
        longer = run.schema.with_settings({new: _with_one_more(run.schema[new])})
        for name, shape in _meta_shapes(recipe_fn, longer, keywords).items():
            growth = [b - a for a, b in zip(shapes.get(name, ()), shape, strict=False)]
            if sorted(growth) == [0] * (len(growth) - 1) + [1]:
                axes[name] = _NamedAxis(growth.index(1), new_names, old_names)
    return axes


def _meta_shapes(
    recipe_fn: RecipeFunction[Any], schema: Schema, keywords: Mapping[str, Any]
) -> dict[str, torch.Size]:
    """Return the shapes of the tensors of a model."""
    model = dry_build(recipe_fn, schema, keywords).model
    return {name: value.shape for name, value in state_tensors(model).items()}


def _entry_names(modality: Modality) -> list[str]:
    """Return the names that a column's settings number: tokens, classes or tags."""
    match modality:
        case Text(tokenizer=tokenizer) if tokenizer is not None:
            return [tokenizer.id_to_token(i) or f"id {i}" for i in range(modality.vocab_size)]
        case Category():
            return [spell_class(name) for name in modality.classes]
        case Multilabel():
            return list(modality.tags)
        case _:
            return []


def _with_one_more(modality: Modality) -> Modality:
    """Return settings with one more name."""
    match modality:
        case Text():
            return replace(modality, vocab_size=modality.vocab_size + 1)
        case Category():
            return replace(
                modality, classes=(*modality.classes, "\0"), counts=(*modality.counts, 1)
            )
        case Multilabel():
            return replace(modality, tags=(*modality.tags, "\0"), counts=(*modality.counts, 1))
        case _:
            return modality


def _tensors_of_the_data(model: nn.Module) -> set[str]:
    """Return the tensors that another run does not set: of frozen parts, and fitted on data."""
    frozen = {
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and not _is_in_trained_encoder(model, name)
    }
    fitted: set[str] = set()
    for prefix, module in model.named_modules():
        names: Sequence[str] = getattr(module, "fitted_buffers", ())
        if isinstance(module, VariableSizeBuffers | SharesVectors):
            names = [name for name, _ in state_tensors(model.get_submodule(prefix)).items()]
        fitted.update(f"{prefix}.{name}" for name in names)
    return frozen | fitted | set(_buffers_of_frozen_parts(model))


def _is_in_trained_encoder(model: nn.Module, name: str) -> bool:
    """Return whether a tensor belongs to an encoder of which some part is trained (LoRA)."""
    owner = name
    while "." in owner:
        owner = owner.rpartition(".")[0]
        module = model.get_submodule(owner)
        if isinstance(module, Encoder):
            return any(p.requires_grad for p in module.parameters())
    return False


def _buffers_of_frozen_parts(model: nn.Module) -> Iterator[str]:
    """Yield the buffers whose nearest module with parameters is frozen."""
    for name, _ in model.named_buffers():
        owner = name
        while "." in owner:
            owner = owner.rpartition(".")[0]
            parameters = list(model.get_submodule(owner).parameters())
            if parameters:
                if not any(p.requires_grad for p in parameters):
                    yield name
                break


def _first_misfit(model: nn.Module, old: Mapping[str, Tensor]) -> str:
    """Return the first tensor of another shape, in words."""
    for name, value in state_tensors(model).items():
        if name in old and old[name].shape != value.shape:
            shapes = " and there ".join(str(list(t.shape)) for t in (value, old[name]))
            return f": {name} is here {shapes}"
    return ""


def _names_lost_column(value: Any, old: Schema, new: Schema) -> bool:
    """Return whether a keyword's value names a column that the new data lack."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple | dict):
        return False
    return any(name in old.columns and name not in new.columns for name in names)
