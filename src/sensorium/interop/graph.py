"""A tower or a classifier as a graph without Python: torch.export's .pt2, and ONNX, each checked against the model."""
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sensorium.checkpoint import Model
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.spelling import Spelling
from sensorium.modalities.text import Text
from sensorium.models import Towers

ROWS = 3                                # of an example: neither 0 nor 1, which graphs take for constants


def parts(model: Model) -> dict[str, tuple[nn.Module, Tensor, dict[int, str]]]:
    """What can be a graph: each tower by its name, an example of what it reads, and the axes that may vary.

    Raises SensoriumError where the model has no towers, or reads what a graph cannot.
    """
    if not isinstance(model.module, Towers):
        raise SensoriumError(f"{model.folder} has no towers; graphs are made of those")
    rng, found = torch.Generator().manual_seed(0), {}
    for name in model.module:
        settings = model.schema[name]
        if not isinstance(settings, Image | Text):
            raise SensoriumError(f"the tower {name} reads neither pictures nor words")
        if any(isinstance(part, Spelling) for part in model.module[name].modules()):
            raise SensoriumError(f"the tower {name} reads words by their pieces too, which no graph can: train with "
                                 "--no-pieces (pieces=False)")
        axes = {0: "batch"} if isinstance(settings, Image) else {0: "batch", 1: "words"}
        found[name] = model.module[name].eval(), settings.fake(ROWS, rng), axes
    return found


def program(module: nn.Module, example: Tensor, axes: dict[int, str]) -> torch.export.ExportedProgram:
    """The module as torch.export sees it, for any size of those axes."""
    dynamic = {axis: torch.export.Dim.AUTO for axis in axes}
    with torch.no_grad():
        return torch.export.export(module, (example,), dynamic_shapes=(dynamic,))


def as_torch(module: nn.Module, example: Tensor, axes: dict[int, str], path: Path) -> float:
    """Write PATH.pt2; how far its answers are from the module's, at most, on more rows than the example has."""
    made = program(module, example, axes)
    torch.export.save(made, path.with_suffix(".pt2"))
    again, more = torch.export.load(path.with_suffix(".pt2")).module(), torch.cat([example, example])
    with torch.inference_mode():
        return float((again(more) - module(more)).abs().max())


def as_onnx(module: nn.Module, example: Tensor, axes: dict[int, str], path: Path) -> float:
    """Write PATH.onnx; how far onnxruntime's answers are from the module's, at most, on more rows than the example has.

    Raises SensoriumError where the extra `export` is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise SensoriumError('ONNX needs more: pip install "sensorium[export]"') from e
    file = path.with_suffix(".onnx")
    torch.onnx.export(program(module, example, axes), (), file, input_names=["values"], output_names=["vectors"],
                      dynamo=True, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    more = torch.cat([example, example])
    said, = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    with torch.inference_mode():
        return float((torch.from_numpy(said) - module(more)).abs().max())
