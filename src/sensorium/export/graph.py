"""Models as graphs without Python: torch.export (.pt2) and ONNX, each compared with the model.

B batch   C classes
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.errors import SensoriumError, require_type
from sensorium.inference.predict import Predictor
from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Numeric
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.models.towers import Towers, module_name
from sensorium.nn.tokens import Batch, ColumnKey, column_label
from sensorium.training.checkpoint import Model

NUM_EXAMPLE_ROWS = 3
NUM_CHECK_ROWS = 7  # both other than 0 and 1, which torch.export specializes on
VARIABLE_LENGTH_AXES = {"text": 1, "series": 1, "audio": 2}  # axis of any length, by column type
GraphValues = Tensor | dict[str, Tensor]
RunGraph = Callable[[GraphValues], GraphValues]


@dataclass(frozen=True)
class ExportableGraph:
    """A module to export, with example inputs.

    Attributes:
        module: reads one tensor, or several by name.
        example_inputs: inputs that it is traced with.
        check_inputs: inputs of other sizes that the exported graph is compared on.
        dynamic_axes: input -> axis of any length, besides the batch.
        output_names: names of the outputs.
        column: the column that it reads, or the first of them.
        renamed: inputs and outputs not named after their column -> their description.
    """

    module: nn.Module
    example_inputs: GraphValues
    check_inputs: GraphValues
    dynamic_axes: Mapping[str, int]
    output_names: tuple[str, ...] = ("vectors",)
    column: ColumnKey = ""
    renamed: Mapping[str, str] = field(default_factory=dict)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs."""
        return [*self.example_inputs] if isinstance(self.example_inputs, dict) else ["values"]

    def max_error(self, run: RunGraph) -> float:
        """Return the largest difference between an exported graph and the module.

        It is relative to the largest output if that is above 1, and infinite where one is NaN.

        Args:
            run: runs the exported graph.
        """
        with torch.inference_mode():
            outputs = _as_dict(run(self.check_inputs))
            expected = _as_dict(self.module(self.check_inputs))
        errors = [
            (outputs[name] - value).abs().max() / value.abs().max().clamp(min=1)
            for name, value in expected.items()
        ]
        return float(torch.stack(errors).nan_to_num(nan=math.inf).max())


class PredictionGraph(nn.Module):
    """The verb `predict` on tensors.

    Its inputs are COLUMN and COLUMN.valid, the mask of the rows that have a value. Its outputs are
    the probabilities of a category, ordinal or multilabel target, and the mean and standard
    deviation (TARGET.std) of a numeric one.

    Args:
        model: the model.
        columns: names of the input columns.
        targets: settings of the target columns.
    """

    def __init__(
        self, model: MultimodalPredictor, columns: Iterable[str], targets: Mapping[str, Modality]
    ):
        super().__init__()
        self.model = model
        self.targets = dict(targets)
        self.names = GraphNames.from_columns(columns, targets)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Float[Tensor, "B *C"]]:
        """Return the calibrated predictions by output name."""
        batch = Batch(
            {column: inputs[name] for column, name in self.names.values.items()},
            {column: inputs[name] for column, name in self.names.masks.items()},
        )
        outputs: dict[str, Tensor] = {}
        for target, logits in self.model(batch).items():
            modality = self.targets[target]
            calibration = self.model.get_calibration(target)
            name = self.names.predictions[target]
            if isinstance(modality, Numeric):
                prediction = calibration.decode(modality, logits)
                outputs[name] = prediction.mean
                outputs[self.names.stds[target]] = prediction.std.float()
            else:
                outputs[name] = calibration.probabilities(modality, logits)
        return outputs


@dataclass(frozen=True)
class GraphNames:
    """Unique names of the inputs and outputs of a graph.

    Attributes:
        values: column -> name of its values.
        masks: column -> name of its presence mask.
        predictions: target -> name of its prediction.
        stds: target -> name of its standard deviation.
    """

    values: dict[str, str]
    masks: dict[str, str]
    predictions: dict[str, str]
    stds: dict[str, str]

    @classmethod
    def from_columns(cls, columns: Iterable[str], targets: Iterable[str]) -> GraphNames:
        """Name inputs COLUMN and COLUMN.valid, and outputs TARGET and TARGET.std.

        Characters that the code of a graph cannot hold become "_", and "_" is appended to a name
        that is taken.
        """
        taken: set[str] = set()

        def unique(name: str) -> str:
            name = "".join(
                char if char.isprintable() and char not in "'\"`\\|" else "_" for char in name
            )
            while name in taken:
                name += "_"
            taken.add(name)
            return name

        columns, targets = list(columns), list(targets)
        return cls(
            values={name: unique(name) for name in columns},
            predictions={name: unique(name) for name in targets},
            masks={name: unique(f"{name}.valid") for name in columns},
            stds={name: unique(f"{name}.std") for name in targets},
        )

    @property
    def renamed(self) -> dict[str, str]:
        """Names that are not formed from their column as usual, with their description."""
        roles = [
            (self.values, "", "the column {}"),
            (self.masks, ".valid", "whether {} has a value"),
            (self.predictions, "", "the target {}"),
            (self.stds, ".std", "the standard deviation of {}"),
        ]
        return {
            name: description.format(json.dumps(column, ensure_ascii=False))
            for names, suffix, description in roles
            for column, name in names.items()
            if name != f"{column}{suffix}"
        }


def build_graphs(model: Model) -> dict[str, ExportableGraph]:
    """Return the graphs of a model by file name: one for each tower, or "predict".

    Raises:
        SensoriumError: where the model has neither towers nor `predict`, or has parts that cannot
            be exported.
    """
    if isinstance(model.module, Towers):
        return {
            file_name(key): _tower_graph(key, tower.eval(), model.schema[key])
            for key, tower in model.module.by_column().items()
        }
    predictor = model.recipe.verbs.get("predict")
    if not isinstance(predictor, Predictor):
        raise SensoriumError(
            f"{model.folder} can be exported neither as towers nor as a predictor. Graphs are "
            "exported of runs of clip, finetune, lit and fusion."
        )
    if predictor.model.is_blended:
        raise SensoriumError(
            f"{model.folder} is a blend, which has no graph. Train it with --head network."
        )
    return {"predict": _prediction_graph(predictor)}


def file_name(key: ColumnKey) -> str:
    """Return a portable file name for a column, with a hash where it is not the column's name."""
    name = module_name(key)
    portable = re.sub(r"[^\w ,=+()-]+", "-", name)[:50]
    if portable == name:
        return name
    return f"{portable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _prediction_graph(predictor: Predictor) -> ExportableGraph:
    network = predictor.model.without_blend()
    module = PredictionGraph(network, predictor.columns, predictor.targets).eval()
    names = module.names

    def example(num_rows: int) -> dict[str, Tensor]:
        inputs: dict[str, Tensor] = {}
        rows = torch.arange(num_rows)
        for i, (column, settings) in enumerate(predictor.columns.items()):
            inputs[names.values[column]] = _example_input(column, settings, num_rows)
            inputs[names.masks[column]] = (rows + i) % 3 > 0
        return inputs

    example_inputs = example(NUM_EXAMPLE_ROWS)
    with torch.inference_mode():
        output_names = tuple(module(example_inputs))
    axes = _dynamic_axes(predictor.columns).items()
    return ExportableGraph(
        module,
        example_inputs,
        example(NUM_CHECK_ROWS),
        {names.values[column]: axis for column, axis in axes},
        output_names,
        next(iter(predictor.columns)),
        names.renamed,
    )


def _tower_graph(key: ColumnKey, tower: nn.Module, settings: Modality) -> ExportableGraph:
    example_inputs, check_inputs = (
        _example_input(column_label(key), settings, num_rows)
        for num_rows in (NUM_EXAMPLE_ROWS, NUM_CHECK_ROWS)
    )
    dynamic_axes = _dynamic_axes({"values": settings})
    return ExportableGraph(tower, example_inputs, check_inputs, dynamic_axes, column=key)


def _dynamic_axes(columns: Mapping[str, Modality]) -> dict[str, int]:
    return {
        name: VARIABLE_LENGTH_AXES[settings.kind]
        for name, settings in columns.items()
        if settings.kind in VARIABLE_LENGTH_AXES
    }


def _example_input(name: str, settings: Modality, num_rows: int) -> Tensor:
    fake = getattr(settings, "fake", None)
    if fake is None:
        raise SensoriumError(
            f"The column {name} of type {settings.kind} has no example to trace the graph with. "
            "Give its class a method fake(n, rng)."
        )
    return fake(num_rows, torch.Generator().manual_seed(num_rows))


def export_program(name: str, graph: ExportableGraph) -> torch.export.ExportedProgram:
    """Trace a graph with torch.export, for any batch size and any length of its dynamic axes.

    Args:
        name: name of the graph, for errors.
        graph: the module and its example inputs.

    Raises:
        SensoriumError: where torch.export cannot trace the module.
    """
    dynamic_shapes = {
        input_name: dict.fromkeys(
            [0, graph.dynamic_axes[input_name]] if input_name in graph.dynamic_axes else [0],
            torch.export.Dim.DYNAMIC,
        )
        for input_name in graph.input_names
    }
    single = not isinstance(graph.example_inputs, dict)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Recurrent layers hold their weights as plain attributes.
            warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)
            return torch.export.export(
                graph.module,
                (graph.example_inputs,),
                strict=False,
                dynamic_shapes=(dynamic_shapes["values"] if single else dynamic_shapes,),
            )
    except Exception as e:  # torch.export raises anything for modules of other packages
        reason = str(e).strip().splitlines()[0]
        raise SensoriumError(f"{name} cannot be exported as a graph: {reason}.") from e


def input_shapes(program: torch.export.ExportedProgram) -> list[str]:
    """Return the type and shape of each input: "int64 [rows, any]"."""
    input_nodes = set(program.graph_signature.user_inputs)
    shapes: list[str] = []
    for node in program.graph.nodes:
        if node.name in input_nodes:
            value = node.meta["val"]
            sizes = [str(size) if isinstance(size, int) else "any" for size in value.shape[1:]]
            dtype = str(value.dtype).removeprefix("torch.")
            shapes.append(f"{dtype} [{', '.join(['rows', *sizes])}]")
    return shapes


def save_onnx(graph: ExportableGraph, program: torch.export.ExportedProgram, path: Path) -> float:
    """Write PATH.onnx.

    Returns:
        The largest difference between onnxruntime and the module; see `ExportableGraph.max_error`.

    Raises:
        SensoriumError: where the extra `export` is not installed.
    """
    if find_spec("onnxruntime") is None or find_spec("onnxscript") is None:
        raise SensoriumError(
            'Exporting to ONNX needs an extra. Install it: pip install "sensorium[export]".'
        )
    import onnxruntime

    file = path.with_suffix(".onnx")
    with _silence_exporter():
        onnx_program = torch.onnx.export(
            program,
            (),
            input_names=graph.input_names,
            output_names=[*graph.output_names],
            dynamo=True,
            verbose=False,
        )
        onnx_program = require_type(onnx_program, torch.onnx.ONNXProgram)
        _rename_inner(onnx_program.model.graph, {*graph.input_names, *graph.output_names})
        onnx_program.save(file, external_data=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(inputs: GraphValues) -> dict[str, Tensor]:
        values = inputs if isinstance(inputs, dict) else {"values": inputs}
        feed = {node.name: values[node.name].numpy() for node in session.get_inputs()}
        outputs = session.run(None, feed)
        return dict(zip(graph.output_names, map(torch.from_numpy, outputs), strict=True))

    return graph.max_error(run)


def _rename_inner(graph: Any, taken: set[str]) -> None:
    """Rename weights and inner values of an `onnx_ir.Graph` with the name of an input or output."""
    for name in [name for name in graph.initializers if name in taken]:
        value = graph.initializers.pop(name)
        value.name = f"{name} (inner)"
        graph.initializers[value.name] = value
    outputs = {id(value) for value in graph.outputs}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and id(value) not in outputs:
                value.name = f"{value.name} (inner)"


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Suppress the warnings of torch's ONNX exporter about itself and about torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _as_dict(outputs: GraphValues) -> dict[str, Tensor]:
    return outputs if isinstance(outputs, dict) else {"vectors": outputs}
