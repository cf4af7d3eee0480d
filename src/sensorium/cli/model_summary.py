"""Size of a model and cost of a training step, computed on the meta device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sensorium.data.tables import Table
from sensorium.data.type_inference import infer_schema
from sensorium.errors import escape_line
from sensorium.models.towers import Towers
from sensorium.nn.tokens import Batch, ColumnKey, column_label
from sensorium.recipes.recipe import Recipe, RecipeFunction, dry_build

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from sensorium.data.schema import Schema
    from sensorium.training.checkpoint import Model

# numbers that an optimizer keeps per weight; others keep 2
OPTIMIZER_STATES_PER_WEIGHT = {"sgd": 1, "lion": 1, "muon": 1}
BYTES_PER_FLOAT = 4


@dataclass(frozen=True)
class ModelSummary:
    """Parameters, FLOPs and memory of training in fp32.

    Attributes:
        recipe: name of the recipe.
        parameters: number of parameters.
        parameters_by_module: number of parameters of each part.
        columns: columns that are read, with their settings.
        flops_forward: FLOPs per sample; a multiplication and an addition count as two.
        flops_training: the same, with the backward pass.
        batch_size: rows per step.
        memory_bytes: bytes of weights, gradients, optimizer state and activations.
    """

    recipe: str
    parameters: int
    parameters_by_module: dict[str, int]
    columns: dict[str, str]
    flops_forward: int
    flops_training: int
    batch_size: int
    memory_bytes: dict[str, int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(
            show_header=False, title=f"{self.recipe}: {_format_si(self.parameters)} parameters"
        )
        for name, n in self.parameters_by_module.items():
            table.add_row(
                Text(escape_line(name)),
                f"{_format_si(n)} parameters",
                Text(escape_line(self.columns.get(name, ""))),
            )
        table.add_section()
        table.add_row("forward", f"{_format_si(self.flops_forward)}FLOP", "per sample")
        table.add_row("training", f"{_format_si(self.flops_training)}FLOP", "per sample")
        table.add_section()
        for name, n in self.memory_bytes.items():
            table.add_row(name, f"{_format_si(n)}B")
        total = _format_si(sum(self.memory_bytes.values()))
        table.add_row(
            "memory", f"{total}B", f"estimate for {self.batch_size} rows per step in fp32"
        )
        yield table


def summarize_recipe(
    recipe_fn: RecipeFunction[Any], schema: Schema, keywords: Mapping[str, Any]
) -> ModelSummary:
    """Summarize the model that a recipe would build.

    Args:
        recipe_fn: the recipe.
        schema: columns of the data.
        keywords: keywords of the recipe and of its training.

    Raises:
        SensoriumError: if a keyword does not fit.
    """
    return _summarize(recipe_fn.__name__, dry_build(recipe_fn, schema, keywords), schema)


def summarize_model(model: Model) -> ModelSummary:
    """Summarize a trained model, whose weights are released."""
    model.module.to("meta")
    return _summarize(model.config.recipe, model.recipe, model.schema)


def default_schema(types: Mapping[str, str]) -> Schema:
    """Return the schema of an image and a caption column, and of further columns.

    Args:
        types: column types that replace or extend these.
    """
    kinds = {"image": "image", "caption": "text"}
    table = Table({name: [None] for name in {**kinds, **types}}, ["default"], kinds=kinds)
    return infer_schema(table, dict(types))


def _summarize(name: str, recipe: Recipe[Any], schema: Schema) -> ModelSummary:
    training, model = recipe.training, recipe.model
    batch = _meta_batch(
        recipe, schema, max(1, training.batch_size // training.grad_accumulation_steps)
    )
    saved = _SavedTensors(model)
    with torch.device("meta"), _AssumeAllDistinct(), FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(saved.add, lambda x: x):
            loss = torch.stack(list(recipe.objective(model, batch).values())).sum()
        forward = counter.get_total_flops()
        loss.backward()
    rows, size = len(batch), _count_parameters(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = OPTIMIZER_STATES_PER_WEIGHT.get(training.optimizer, 2) + (
        1 if training.ema_decay else 0
    )
    memory = {"weights": size, "gradients": trained, "optimizer": states * trained}
    return ModelSummary(
        name,
        size,
        {part: _count_parameters(module) for part, module in _parts(model)},
        {column_label(column): repr(schema[column]) for column in recipe.data.columns},
        forward // rows,
        counter.get_total_flops() // rows,
        training.batch_size,
        {part: BYTES_PER_FLOAT * n for part, n in memory.items()}
        | {"activations": saved.num_bytes},
    )


def _parts(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Return the parts of a model by name; towers by their columns."""
    if isinstance(model, Towers):
        return [(column_label(column), tower) for column, tower in model.by_column().items()]
    return model.named_children()


def _meta_batch(recipe: Recipe[Any], schema: Schema, rows: int) -> Batch:
    """Return a batch without content, with texts at full length."""
    rng = torch.Generator().manual_seed(0)
    modalities: dict[ColumnKey, Any] = {column: schema[column] for column in recipe.data.columns}
    shapes = {column: modality.fake(64, rng) for column, modality in modalities.items()}
    columns = {
        column: torch.empty(rows, *x.shape[1:], dtype=x.dtype, device="meta")
        for column, x in shapes.items()
    }
    return Batch(
        columns, {}, *(torch.empty(rows, dtype=torch.long, device="meta") for _ in ("row", "group"))
    )


class _AssumeAllDistinct(TorchDispatchMode):
    """Run value-dependent code on the meta device: all present, no two equal."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.unique_dim.default:
            index = torch.empty(args[0].shape[args[1]], dtype=torch.long, device="meta")
            return args[0].clone(), index, index.clone()
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True  # any, all, and random conditions
        if func is torch.ops.aten.nonzero.default and args[0].is_meta and args[0].dim() == 1:
            return torch.arange(len(args[0]), device="meta")[:, None]
        if func is torch.ops.aten._sample_dirichlet.default and args[0].is_meta:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class _SavedTensors:
    """Bytes of the tensors that autograd saves: each storage once, without parameters."""

    def __init__(self, model: nn.Module):
        self.counted = {_storage_id(p) for p in model.parameters()}
        self.references: list[Tensor] = []
        self.num_bytes = 0

    def add(self, x: Tensor) -> Tensor:
        if _storage_id(x) not in self.counted:
            self.counted.add(_storage_id(x))
            self.references.append(x)  # or its id could be reused
            self.num_bytes += x.untyped_storage().nbytes()
        return x


def _storage_id(x: Tensor) -> int:
    """Return the identity of a storage, which on the meta device has no address."""
    return x.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage] - no public equivalent


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _format_si(n: float) -> str:
    """Return a number with its SI prefix: "12.3 M"."""
    exponent = min(4, int(math.log10(max(n, 1)) // 3))
    return f"{n / 1000**exponent:.3g} {('', 'k', 'M', 'G', 'T')[exponent]}"
