"""A tower, or a model that predicts, as a graph without Python: torch.export's .pt2, and ONNX, each checked against it.

B batch   C classes
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.inference.predict import Predictor
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Numeric
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.models.towers import Towers, module_name
from sensorium.nn.tokens import Batch, ColumnKey, column_label
from sensorium.training.checkpoint import Model

EXAMPLE_ROWS = 3, 7  # of examples: neither 0 nor 1, which graphs take for constants
VARIABLE_LENGTH_AXES = {
    "text": 1,
    "series": 1,
    "audio": 2,
}  # the axis along which values of a kind are of any length


@dataclass(frozen=True)
class ExportableGraph:
    """What becomes one graph, and two examples, unlike in size, of what it reads: a tensor, or several by name."""

    module: nn.Module
    example_inputs: Tensor | dict[str, Tensor]  # that the graph is made by
    check_inputs: Tensor | dict[str, Tensor]  # that it is tried on
    dynamic_axes: Mapping[str, int]  # of inputs, the axis along which values are of any length
    output_names: tuple[str, ...] = ("vectors",)  # names of what it answers
    column: ColumnKey = ""  # that it reads, or the first of them
    changed: Mapping[str, str] = field(
        default_factory=dict
    )  # inputs and answers that are not called as a column is

    @property
    def input_names(self) -> list[str]:
        """Names of what it reads."""
        return [*self.example_inputs] if isinstance(self.example_inputs, dict) else ["values"]

    def max_error(self, graph: Any) -> float:
        """How far a graph's answers are from the module's, at most, as a share of the largest if that is above 1.

        Endless where one of them is no number.
        """
        with torch.inference_mode():
            said, wanted = (_as_dict(one(self.check_inputs)) for one in (graph, self.module))
        far = [
            (said[name] - value).abs().max() / value.abs().max().clamp(min=1)
            for name, value in wanted.items()
        ]
        return float(torch.stack(far).nan_to_num(nan=math.inf).max())


class PredictionGraph(nn.Module):
    """What a model predicts, as its verb does, from values that are tensors: "COLUMN.valid" says in which rows one is
    there. Of a class, rank or tag the probabilities, of a number what is expected, and "TARGET.spread" around it.
    """

    def __init__(
        self, model: MultimodalPredictor, columns: Iterable[str], targets: Mapping[str, Modality]
    ):
        super().__init__()
        self.model, self.targets, self.names = model, dict(targets), Names.of(columns, targets)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Float[Tensor, "B *C"]]:
        found: dict[str, Tensor] = {}
        batch = Batch(
            {name: inputs[key] for name, key in self.names.values.items()},
            {name: inputs[key] for name, key in self.names.masks.items()},
        )
        for name, said in self.model(batch).items():
            of, calibration, key = (
                self.targets[name],
                self.model.get_calibration(name),
                self.names.answers[name],
            )
            if isinstance(of, Numeric):
                amount = calibration.distribution(said)
                found |= {
                    key: amount.mean * of.std + of.mean,
                    self.names.spreads[name]: amount.std * of.std,
                }
            else:
                found[key] = calibration.probabilities(of, said)
        return found


@dataclass(frozen=True)
class Names:
    """What a graph calls what it reads of each column and says of each target; no two are called the same."""

    values: dict[str, str]
    masks: dict[str, str]  # in which rows a column has a value
    answers: dict[str, str]
    spreads: dict[str, str]

    @classmethod
    def of(cls, columns: Iterable[str], targets: Iterable[str]) -> Names:
        """COLUMN, COLUMN.valid, TARGET and TARGET.spread; with "_" in the place of signs that the code of a graph has
        no place for, and after a name that is taken."""
        taken: set[str] = set()

        def free(name: str) -> str:
            name = "".join(
                sign if sign.isprintable() and sign not in "'\"`\\|" else "_" for sign in name
            )
            while name in taken:
                name += "_"
            taken.add(name)
            return name

        columns, targets = list(columns), list(targets)
        values, answers = ({name: free(name) for name in names} for names in (columns, targets))
        return cls(
            values,
            {name: free(f"{name}.valid") for name in columns},
            answers,
            {name: free(f"{name}.spread") for name in targets},
        )

    @property
    def changed(self) -> dict[str, str]:
        """What is not called as one would think: its name → what it is."""
        usual = [
            (self.values, "the column {}"),
            (self.masks, "whether {} is there"),
            (self.answers, "the target {}"),
            (self.spreads, "the spread of {}"),
        ]
        ends = ("", ".valid", "", ".spread")
        return {
            key: what.format(json.dumps(name, ensure_ascii=False))
            for (keys, what), end in zip(usual, ends, strict=True)
            for name, key in keys.items()
            if key != f"{name}{end}"
        }


def build_graphs(model: Model) -> dict[str, ExportableGraph]:
    """What can be a graph, by the name of its file: each tower by its column, or "predict".

    Raises SensoriumError where the model has neither, or reads what a graph cannot.
    """
    predict = model.recipe.verbs.get("predict")
    if isinstance(model.module, Towers):
        return {
            file_name(key): _tower_graph(key, tower.eval(), model.schema[key])
            for key, tower in model.module.by_column().items()
        }
    if not isinstance(predict, Predictor):
        raise SensoriumError(
            f"{model.folder} neither has towers nor predicts; graphs are made of those"
        )
    if len(predict.model.tree_heads):
        raise SensoriumError(
            f"{model.folder} has trees (head=boosting), which no graph holds: train it without"
        )

    module = PredictionGraph(predict.model, predict.columns, predict.targets).eval()
    names = module.names

    def given(rows: int) -> dict[str, Tensor]:
        found, there = dict[str, Tensor](), torch.arange(rows)
        for i, (name, settings) in enumerate(predict.columns.items()):
            found |= {
                names.values[name]: _example_input(name, settings, rows),
                names.masks[name]: (there + i) % 3 > 0,
            }
        return found

    one, other = map(given, EXAMPLE_ROWS)
    with torch.inference_mode():
        free = {names.values[name]: axis for name, axis in _dynamic_axes(predict.columns).items()}
        return {
            "predict": ExportableGraph(
                module,
                one,
                other,
                free,
                tuple(module(one)),
                next(iter(predict.columns)),
                names.changed,
            )
        }


def file_name(key: ColumnKey) -> str:
    """A column's name as that of a file: the same, but for signs that files do not have everywhere, and for length."""
    name = module_name(key)
    plain = re.sub(r"[^\w ,=+()-]+", "-", name)[:50]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _tower_graph(key: ColumnKey, tower: nn.Module, settings: Modality) -> ExportableGraph:
    one, other = (_example_input(column_label(key), settings, rows) for rows in EXAMPLE_ROWS)
    return ExportableGraph(tower, one, other, _dynamic_axes({"values": settings}), column=key)


def _dynamic_axes(columns: Mapping[str, Modality]) -> dict[str, int]:
    return {
        name: VARIABLE_LENGTH_AXES[settings.kind]
        for name, settings in columns.items()
        if settings.kind in VARIABLE_LENGTH_AXES
    }


def _example_input(name: str, settings: Modality, rows: int) -> Tensor:
    fake = getattr(settings, "fake", None)
    if fake is None:
        raise SensoriumError(
            f"the column {name} is of the kind {settings.kind}, which has no method fake(n, rng): "
            "a graph is made by an example"
        )
    return fake(rows, torch.Generator().manual_seed(rows))


def export_program(name: str, graph: ExportableGraph) -> torch.export.ExportedProgram:
    """The module as torch.export sees it, for any number of rows, and values as long as it takes them.

    Raises SensoriumError where it is made of what torch.export cannot follow.
    """
    free = {
        one: dict.fromkeys(
            [0, graph.dynamic_axes[one]] if one in graph.dynamic_axes else [0],
            torch.export.Dim.DYNAMIC,
        )
        for one in graph.input_names
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The tensor attributes", UserWarning
            )  # of recurrent layers: weights
            return torch.export.export(
                graph.module,
                (graph.example_inputs,),
                strict=False,
                dynamic_shapes=(
                    free if isinstance(graph.example_inputs, dict) else free["values"],
                ),
            )
    except Exception as e:  # of modules that are not ours, it may raise anything
        raise SensoriumError(f"{name} cannot be a graph: {str(e).strip().splitlines()[0]}") from e


def input_shapes(program: torch.export.ExportedProgram) -> list[str]:
    """Of each input in turn, its type and shape: "int64 [rows, any]"."""
    names, found = set(program.graph_signature.user_inputs), []
    for node in program.graph.nodes:
        if node.name in names:
            value = node.meta["val"]
            sizes = [
                "rows",
                *(str(size) if isinstance(size, int) else "any" for size in value.shape[1:]),
            ]
            found.append(f"{str(value.dtype).removeprefix('torch.')} [{', '.join(sizes)}]")
    return found


def save_torch(graph: ExportableGraph, program: torch.export.ExportedProgram, path: Path) -> float:
    """Write PATH.pt2; how far its answers are from the module's (see `Part.off`)."""
    torch.export.save(program, path.with_suffix(".pt2"))
    return graph.max_error(torch.export.load(path.with_suffix(".pt2")).module())


def save_onnx(graph: ExportableGraph, program: torch.export.ExportedProgram, path: Path) -> float:
    """Write PATH.onnx; how far onnxruntime's answers are from the module's (see `Part.off`).

    Raises SensoriumError where the extra `export` is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise SensoriumError('ONNX needs more: pip install "sensorium[export]"') from e
    file = path.with_suffix(".onnx")
    with _silence_exporter():
        found = torch.onnx.export(
            program,
            (),
            input_names=graph.input_names,
            output_names=[*graph.output_names],
            dynamo=True,
            verbose=False,
        )
        assert found is not None
        _rename_inner(found.model.graph, {*graph.input_names, *graph.output_names})
        found.save(file, external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(given: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        values = given if isinstance(given, dict) else {"values": given}
        asked = {one.name: values[one.name].numpy() for one in session.get_inputs()}
        return dict(
            zip(graph.output_names, map(torch.from_numpy, session.run(None, asked)), strict=True)
        )

    return graph.max_error(run)


def _rename_inner(graph: Any, taken: set[str]) -> None:
    """Have no weight and no step of an ONNX graph the name of an input or output, which columns bring along."""
    for name in [name for name in graph.initializers if name in taken]:
        value = graph.initializers.pop(name)
        value.name = f"{name} (inner)"
        graph.initializers[value.name] = value
    ends = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and id(value) not in ends:
                value.name = f"{value.name} (inner)"


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Without what torch's exporter says of itself, and of torchvision, which is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for of_itself in (FutureWarning, DeprecationWarning):
                warnings.simplefilter("ignore", of_itself)
            yield
    finally:
        logger.setLevel(level)


def _as_dict(outputs: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return outputs if isinstance(outputs, dict) else {"vectors": outputs}
