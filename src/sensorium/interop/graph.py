"""A tower, or a model that predicts, as a graph without Python: torch.export's .pt2, and ONNX, each checked against it.

    B batch   C classes
"""
from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.checkpoint import Model
from sensorium.errors import SensoriumError
from sensorium.fused import Fused
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Number
from sensorium.models import Batch, Towers
from sensorium.verbs.predict import Predictor

ROWS = 3, 7                             # of examples: neither 0 nor 1, which graphs take for constants
LONG = {"text": 1, "series": 1, "audio": 2}             # the axis along which values of a kind are of any length


@dataclass(frozen=True)
class Part:
    """What becomes one graph, and two examples, unlike in size, of what it reads: a tensor, or several by name."""

    module: nn.Module
    given: Tensor | dict[str, Tensor]                   # that the graph is made by
    other: Tensor | dict[str, Tensor]                   # that it is tried on
    free: Mapping[str, int]                             # of inputs, the axis along which values are of any length
    said: tuple[str, ...] = ("vectors",)                # names of what it answers

    @property
    def inputs(self) -> list[str]:
        """Names of what it reads."""
        return [*self.given] if isinstance(self.given, dict) else ["values"]

    def off(self, graph: Any) -> float:
        """How far a graph's answers are from the module's, at most, as a share of the largest if that is above 1.

        Endless where one of them is no number.
        """
        with torch.inference_mode():
            said, wanted = (_named(one(self.other)) for one in (graph, self.module))
        far = [(said[name] - value).abs().max() / value.abs().max().clamp(min=1) for name, value in wanted.items()]
        return float(torch.stack(far).nan_to_num(nan=math.inf).max())


class Predictions(nn.Module):
    """What a model predicts, as its verb does, from values that are tensors: "COLUMN.valid" says in which rows one is
    there. Of a class, rank or tag the probabilities, of a number what is expected, and "TARGET.spread" around it."""

    def __init__(self, model: Fused, targets: Mapping[str, Modality]):
        super().__init__()
        self.model, self.targets = model, dict(targets)

    def forward(self, given: Batch) -> dict[str, Float[Tensor, "B *C"]]:
        found: dict[str, Tensor] = {}
        for name, said in self.model(given).items():
            of, calibration = self.targets[name], self.model.calibration(name)
            if isinstance(of, Number):
                amount = calibration.amount(said)
                found |= {name: amount.mean * of.std + of.mean, f"{name}.spread": amount.spread * of.std}
            else:
                found[name] = calibration.probabilities(of, said)
        return found


def parts(model: Model) -> dict[str, Part]:
    """What can be a graph: each tower by its name, or "predict".

    Raises SensoriumError where the model has neither, or reads what a graph cannot.
    """
    predict = model.recipe.verbs.get("predict")
    if isinstance(model.module, Towers):
        return {name: _tower(name, model.module[name].eval(), model.schema[name]) for name in model.module}
    if not isinstance(predict, Predictor):
        raise SensoriumError(f"{model.folder} neither has towers nor predicts; graphs are made of those")
    if len(predict.model.boosted):
        raise SensoriumError(f"{model.folder} has trees (head=boosting), which no graph holds: train it without")

    def given(rows: int) -> dict[str, Tensor]:
        found, there = dict[str, Tensor](), torch.arange(rows)
        for i, (name, settings) in enumerate(predict.columns.items()):
            found |= {name: _made(name, settings, rows), f"{name}.valid": (there + i) % 3 > 0}
        return found
    module, (one, other) = Predictions(predict.model, predict.targets).eval(), map(given, ROWS)
    with torch.inference_mode():
        return {"predict": Part(module, one, other, _free(predict.columns), tuple(module(one)))}


def _tower(name: str, tower: nn.Module, settings: Modality) -> Part:
    one, other = (_made(name, settings, rows) for rows in ROWS)
    return Part(tower, one, other, _free({"values": settings}))


def _free(columns: Mapping[str, Modality]) -> dict[str, int]:
    return {name: LONG[settings.kind] for name, settings in columns.items() if settings.kind in LONG}


def _made(name: str, settings: Modality, rows: int) -> Tensor:
    fake = getattr(settings, "fake", None)
    if fake is None:
        raise SensoriumError(f"the column {name} is of the kind {settings.kind}, which has no method fake(n, rng): "
                             "a graph is made by an example")
    return fake(rows, torch.Generator().manual_seed(rows))


def program(name: str, part: Part) -> torch.export.ExportedProgram:
    """The module as torch.export sees it, for any number of rows, and values as long as it takes them.

    Raises SensoriumError where it is made of what torch.export cannot follow.
    """
    free = {one: dict.fromkeys([0, part.free[one]] if one in part.free else [0], torch.export.Dim.DYNAMIC)
            for one in part.inputs}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attributes", UserWarning)     # of recurrent layers: weights
            return torch.export.export(part.module, (part.given,), strict=False,
                                       dynamic_shapes=(free if isinstance(part.given, dict) else free["values"],))
    except Exception as e:                              # of modules that are not ours, it may raise anything
        raise SensoriumError(f"{name} cannot be a graph: {str(e).strip().splitlines()[0]}") from e


def shapes(made: torch.export.ExportedProgram) -> list[str]:
    """Of each input in turn, its type and shape: "int64 [rows, any]"."""
    names, found = set(made.graph_signature.user_inputs), []
    for node in made.graph.nodes:
        if node.name in names:
            value = node.meta["val"]
            sizes = ["rows", *(str(size) if isinstance(size, int) else "any" for size in value.shape[1:])]
            found.append(f"{str(value.dtype).removeprefix('torch.')} [{', '.join(sizes)}]")
    return found


def as_torch(part: Part, made: torch.export.ExportedProgram, path: Path) -> float:
    """Write PATH.pt2; how far its answers are from the module's (see `Part.off`)."""
    torch.export.save(made, path.with_suffix(".pt2"))
    return part.off(torch.export.load(path.with_suffix(".pt2")).module())


def as_onnx(part: Part, made: torch.export.ExportedProgram, path: Path) -> float:
    """Write PATH.onnx; how far onnxruntime's answers are from the module's (see `Part.off`).

    Raises SensoriumError where the extra `export` is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise SensoriumError('ONNX needs more: pip install "sensorium[export]"') from e
    file = path.with_suffix(".onnx")
    with _quiet():
        torch.onnx.export(made, (), file, input_names=part.inputs, output_names=[*part.said], dynamo=True,
                          external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(given: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        values = given if isinstance(given, dict) else {"values": given}
        asked = {one.name: values[one.name].numpy() for one in session.get_inputs()}
        return dict(zip(part.said, map(torch.from_numpy, session.run(None, asked)), strict=True))
    return part.off(run)


@contextmanager
def _quiet() -> Iterator[None]:
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


def _named(said: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return said if isinstance(said, dict) else {"vectors": said}
