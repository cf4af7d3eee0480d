"""What an export of graphs needs to run without Sensorium: preprocessing, names, calibration.

schema.json               the columns and their settings
tokenizer.json            the tokenizer, which adds start and end tokens; tokenizer_config.json
preprocessor_config.json  the image processor of transformers, where it can do the same
model.json                graphs, names of inputs and outputs, classes, calibration
preprocessing.py          raw values to inputs, with numpy, Pillow and tokenizers
example.py                runs the graphs with onnxruntime
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sensorium.export.clip_folder import processor_config, write_tokenizer
from sensorium.export.graph import ExportableGraph, PredictionGraph
from sensorium.inference.classify import ZeroShotClassifier
from sensorium.io import atomic
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.text import Text
from sensorium.models.calibration import Calibration
from sensorium.models.towers import Towers
from sensorium.nn.tokens import column_names
from sensorium.training.checkpoint import Model

COVERAGES = (0.5, 0.8, 0.9, 0.95, 0.99)
ACCURACIES = (0.8, 0.9, 0.95, 0.99)
SOURCE_FOLDER = Path(__file__).parent
IMPORTS = {  # of the copied files
    "from sensorium.export.preprocessing import": "from preprocessing import",
    "from sensorium.modalities.date_formats import": "from date_formats import",
}


def write_standalone(
    model: Model, graphs: dict[str, ExportableGraph], out: Path, extension: str
) -> None:
    """Write all but schema.json, the graphs and the model card into an export.

    Args:
        model: the exported model.
        graphs: its graphs, by file name.
        out: the folder, with schema.json.
        extension: of the files of the graphs.
    """
    modalities = [column.modality for column in model.schema.columns.values()]
    texts = [m for m in modalities if isinstance(m, Text) and m.tokenizer is not None]
    if texts:
        write_tokenizer(max(texts, key=lambda text: text.length), out)
    image = shared_image_settings(model)
    if image is not None and is_transformers_image(image):
        atomic.write_json(out / "preprocessor_config.json", processor_config(image))
    atomic.write_json(out / "model.json", describe_graphs(model, graphs, extension))
    copy_source(SOURCE_FOLDER / "preprocessing.py", out)
    if any(m.kind == "datetime" for m in modalities):
        copy_source(SOURCE_FOLDER.parent / "modalities" / "date_formats.py", out)
    if extension == "onnx":
        copy_source(SOURCE_FOLDER / "example.py", out)


def copy_source(source: Path, out: Path) -> None:
    """Copy a file of this package that imports nothing but others that are copied beside it."""
    text = source.read_text(encoding="utf-8")
    for name, local_name in IMPORTS.items():
        text = text.replace(name, local_name)
    atomic.write_file(out / source.name, text.encode())


def shared_image_settings(model: Model) -> Image | None:
    """Return the settings of the image columns that the model reads, if they are the same."""
    names = [name for key in model.recipe.data.columns for name in column_names(key)]
    images = [model.schema[name] for name in names]
    distinct = list(dict.fromkeys(image for image in images if isinstance(image, Image)))
    return distinct[0] if len(distinct) == 1 else None


def is_transformers_image(image: Image) -> bool:
    """Return whether an image processor of transformers makes nearly the same pixels."""
    return image.resize_mode in ("crop", "centre", "stretch")


def describe_graphs(
    model: Model, graphs: dict[str, ExportableGraph], extension: str
) -> dict[str, Any]:
    """Return the content of model.json."""
    towers = model.module
    if isinstance(towers, Towers):
        encoders = {
            column_names(graph.column)[0]: {
                "file": f"{name}.{extension}",
                "kind": model.schema[graph.column].kind,
                "columns": list(column_names(graph.column)),
            }
            for name, graph in graphs.items()
        }
        return {"version": 1, "encoders": encoders, **_describe_logits(model, towers)}
    ((name, graph),) = graphs.items()
    if not isinstance(graph.module, PredictionGraph):
        raise TypeError(f"expected a PredictionGraph, got {type(graph.module).__name__}")
    return {"version": 1, "file": f"{name}.{extension}", **_describe_predictor(graph.module)}


def _describe_logits(model: Model, towers: Towers) -> dict[str, Any]:
    """Return the temperature, and the bias of a sigmoid loss, of which runs learn the offset."""
    classify = model.verbs.get("classify")
    is_pretrained = isinstance(classify, ZeroShotClassifier) and classify.is_pretrained
    return {
        "logit_scale": float(towers.logit_scale.detach().exp()),
        "logit_bias": None if towers.logit_bias is None else float(towers.logit_bias.detach()),
        "subtract_log_of_other_texts": towers.logit_bias is not None and not is_pretrained,
    }


def _describe_predictor(graph: PredictionGraph) -> dict[str, Any]:
    names = graph.names
    columns = {
        column: {"values": value, "valid": names.masks[column]}
        for column, value in names.values.items()
    }
    targets: dict[str, dict[str, Any]] = {}
    for target, modality in graph.targets.items():
        entry: dict[str, Any] = {"kind": modality.kind, "output": names.predictions[target]}
        calibration = graph.model.get_calibration(target)
        if isinstance(modality, Numeric):
            entry["std"] = names.stds[target]
            offset = calibration.log_offset
            entry["lower"], entry["upper"] = modality.lower, modality.upper
            entry["log_offset"] = None if offset is None else offset.item() * modality.std
            entry["interval_quantiles"] = _by_level(calibration, "conformal_quantile", COVERAGES)
        elif isinstance(modality, Category):
            entry["classes"] = list(modality.classes)
            entry["set_quantiles"] = _by_level(calibration, "conformal_quantile", COVERAGES)
            thresholds = _by_level(calibration, "selective_threshold", ACCURACIES)
            entry["min_probabilities"] = thresholds
        elif isinstance(modality, Multilabel):
            entry["classes"] = list(modality.tags)
        targets[target] = entry
    return {"columns": columns, "targets": targets}


def _by_level(
    calibration: Calibration, method: str, levels: tuple[float, ...]
) -> dict[str, float | None]:
    """Return the calibrated value of each level; None where the validation rows were too few."""
    values = {f"{level:g}": getattr(calibration, method)(level) for level in levels}
    return {level: value if math.isfinite(value) else None for level, value in values.items()}
