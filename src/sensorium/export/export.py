"""Export of a run to a folder in another format, with a model card that reports the accuracy."""

import io
import json
import shutil
from pathlib import Path
from typing import Literal

import torch

from sensorium.errors import SensoriumError
from sensorium.export.clip_folder import (
    MAX_VECTOR_ERROR,
    CLIPExport,
    build_clip,
    write_hugging_face,
    write_open_clip,
)
from sensorium.export.graph import (
    ExportableGraph,
    build_graphs,
    export_program,
    input_shapes,
    save_onnx,
)
from sensorium.export.standalone import shared_image_settings, write_standalone
from sensorium.inference.predict import Predictor
from sensorium.io import atomic
from sensorium.modalities.image import Image
from sensorium.models.towers import Towers
from sensorium.nn.tokens import column_names
from sensorium.training.checkpoint import Model

ExportFormat = Literal["hf", "open_clip", "onnx", "torch"]
CLIPFormat = Literal["hf", "open_clip"]
GraphFormat = Literal["onnx", "torch"]
USAGE_TEMPLATES = {
    "hf": """from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
model = CLIPModel.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
processor = CLIPImageProcessor.from_pretrained("{folder}")""",
    "open_clip": """import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")""",
}
CLIP_CARD_TEMPLATE = """---
library_name: {library}
pipeline_tag: zero-shot-image-classification
tags:
- clip
- sensorium
---
# {title}

Exported from the Sensorium run `{run}`. The embeddings differ from the run's by at most
{max_error:.1e}.

```python
{usage}
```

{image_note}
For the training data and its licence, see README.md of the run.
"""
GRAPH_CARD_TEMPLATE = """---
tags:
- sensorium
---
# {title}

Exported from the Sensorium run `{run}` as {graph_type}. The outputs differ from the run's by at
most {max_error:.1e}, relative to the largest output.

| file | input | type and shape |
|---|---|---|
{table}

{outputs}

{image_note}
## Without Sensorium

| file | contents |
|---|---|
| `preprocessing.py` | raw values to inputs, with numpy, Pillow and tokenizers, as in training |
| `schema.json` | the columns and their settings |
| `model.json` | names of inputs and outputs, classes, temperature, calibration |
{more_files}

{usage}
"""
TOKENIZER_ROW = "| `tokenizer.json` | the tokenizer, also for `AutoTokenizer` of transformers |\n"
PROCESSOR_ROW = "| `preprocessor_config.json` | for `CLIPImageProcessor` of transformers |\n"
ONNX_USAGE = """`example.py` runs it: `pip install onnxruntime numpy Pillow tokenizers`, then

```
{command}
```

or in Python, in this folder:

```python
from example import ExportedModel

model = ExportedModel(".")
{call}
```
"""
TORCH_USAGE = """```python
import torch
from preprocessing import Preprocessor

values, present = Preprocessor(".")({column}, [...])
outputs = torch.export.load("{name}.pt2").module()({arguments})
```
"""
EMBEDDING_OUTPUTS = "Each graph returns `vectors`: unit-length embeddings in a shared space."
PREDICTION_OUTPUTS = """The graph returns {names}.
Category, ordinal and multilabel targets: the probabilities of all classes, in the order of
`schema.json`. Numeric targets: the mean, and its standard deviation. `COLUMN.valid` says which
rows have a value in a column; the values of the others are ignored."""
GRAPH_TYPES = {"onnx": "an ONNX graph", "torch": "a torch.export graph"}
GRAPH_EXTENSIONS = {"onnx": "onnx", "torch": "pt2"}
EXAMPLE_COMMANDS = {  # by whether it predicts
    False: 'python example.py --image a.jpg --text "a red bicycle" "a dog"',
    True: "python example.py rows.jsonl",
}
LIBRARY_NAMES = {"hf": "transformers", "open_clip": "open_clip"}


def export_model(model: Model, format: ExportFormat, out: Path) -> dict[str, float]:
    """Export a model to a new folder.

    Args:
        model: a model of a run.
        format: hf (CLIPModel of transformers) or open_clip, for a clip; onnx or torch
            (torch.export), for any towers (one graph each) or for a model that predicts.
        out: the folder; it must be empty or not exist.

    Returns:
        The largest difference to the outputs of the run, for each file.

    Raises:
        SensoriumError: where `out` is not empty, the format does not support the model, or the
            outputs differ too much.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SensoriumError(f"{out} exists already. Name a new folder.")
    _check_exportable(model)
    with atomic.new_folder(out) as folder:
        match format:
            case "hf" | "open_clip":
                return _export_clip(model, format, folder)
            case "onnx" | "torch":
                return _export_graphs(model, format, folder)


def _check_exportable(model: Model) -> None:
    """Raise SensoriumError for a model that no format can hold."""
    if isinstance(model.module, Towers) or isinstance(model.verbs.get("predict"), Predictor):
        return
    verbs = " and ".join(model.verbs) or "none"
    raise SensoriumError(
        f"{model.folder} is a model of {model.config.recipe} with the verb {verbs}. Only models "
        "with two encoders (clip, finetune, lit) and predictors (fusion) can be exported."
    )


def _export_clip(model: Model, format: CLIPFormat, out: Path) -> dict[str, float]:
    clip = build_clip(model)
    out.mkdir(parents=True, exist_ok=True)
    if format == "hf":
        write_hugging_face(clip, out)
    else:
        write_open_clip(clip, out)
    atomic.write_file(out / "README.md", _clip_card(model, clip, format, out).encode())
    return {"vectors": clip.max_error}


def _export_graphs(model: Model, format: GraphFormat, out: Path) -> dict[str, float]:
    graphs = build_graphs(model)
    programs = {name: export_program(name, graph) for name, graph in graphs.items()}
    out.mkdir(parents=True, exist_ok=True)
    save = save_onnx if format == "onnx" else save_torch
    errors = {name: save(graphs[name], program, out / name) for name, program in programs.items()}
    for name, error in errors.items():
        if error > MAX_VECTOR_ERROR:
            shutil.rmtree(out)
            raise SensoriumError(
                f"The exported graph {name} differs from the run by {error:.2g}, more than "
                f"{MAX_VECTOR_ERROR:.0e}. Nothing was written."
            )
    model.schema.save(out)
    write_standalone(model, graphs, out, GRAPH_EXTENSIONS[format])
    shapes = {name: input_shapes(program) for name, program in programs.items()}
    card = _graph_card(model, graphs, shapes, format, out, max(errors.values()))
    atomic.write_file(out / "README.md", card.encode())
    return errors


def save_torch(graph: ExportableGraph, program: torch.export.ExportedProgram, path: Path) -> float:
    """Write PATH.pt2.

    Returns:
        The largest difference to the module; see `ExportableGraph.max_error`.
    """
    file = path.with_suffix(".pt2")
    buffer = io.BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, buffer)
    atomic.write_file(file, buffer.getvalue())
    return graph.max_error(torch.export.load(file).module())


def _graph_card(
    model: Model,
    graphs: dict[str, ExportableGraph],
    shapes: dict[str, list[str]],
    format: GraphFormat,
    out: Path,
    max_error: float,
) -> str:
    """Return the model card; `shapes` has the type and shape of each input of each graph."""
    name, first = next(iter(graphs.items()))
    extension = GRAPH_EXTENSIONS[format]
    table = [
        f"| {file}.{extension} | `{input_name}` | {shape} |"
        for file, graph in graphs.items()
        for input_name, shape in zip(graph.input_names, shapes[file], strict=True)
    ]
    predicts = isinstance(first.example_inputs, dict)
    return GRAPH_CARD_TEMPLATE.format(
        title=out.name,
        run=model.folder.name,
        graph_type=GRAPH_TYPES[format],
        max_error=max_error,
        table="\n".join(table),
        image_note=_graph_image_note(model),
        more_files=_more_files(out),
        outputs=_describe_outputs(first, predicts),
        usage=_graph_usage(first, name, format),
    )


def _graph_usage(graph: ExportableGraph, name: str, format: GraphFormat) -> str:
    column = json.dumps(column_names(graph.column)[0], ensure_ascii=False)
    predicts = isinstance(graph.example_inputs, dict)
    if format == "torch":
        values = "torch.from_numpy(values)"
        arguments = "{" + f"name: {values}, ..." + "}" if predicts else values
        return TORCH_USAGE.format(column=column, name=name, arguments=arguments)
    return ONNX_USAGE.format(
        command=EXAMPLE_COMMANDS[predicts],
        call=f"model.predict([{{{column}: ...}}])" if predicts else f"model.embed({column}, [...])",
    )


def _more_files(out: Path) -> str:
    rows = {"tokenizer.json": TOKENIZER_ROW, "preprocessor_config.json": PROCESSOR_ROW}
    return "".join(row for name, row in rows.items() if (out / name).is_file()).rstrip()


def _graph_image_note(model: Model) -> str:
    """Return how transformers' preprocessing of images differs from that in training."""
    image = shared_image_settings(model)
    return "" if image is None else _image_note(image, "hf")


def _describe_outputs(graph: ExportableGraph, predicts: bool) -> str:
    if not predicts:
        return EMBEDDING_OUTPUTS
    names = ", ".join(f"`{name}`" for name in graph.output_names)
    renamed = "".join(f"\n\n`{name}` is {text}." for name, text in graph.renamed.items())
    return PREDICTION_OUTPUTS.format(names=names) + renamed


def _clip_card(model: Model, clip: CLIPExport, format: CLIPFormat, out: Path) -> str:
    return CLIP_CARD_TEMPLATE.format(
        library=LIBRARY_NAMES[format],
        title=out.name,
        run=model.folder.name,
        max_error=clip.max_error,
        usage=USAGE_TEMPLATES[format].format(folder=out.name),
        image_note=_image_note(clip.image, format),
    )


def _image_note(image: Image, format: CLIPFormat) -> str:
    """Return how the library's preprocessing of images differs from that in training."""
    same_crop = "crop" if format == "hf" else "centre"
    if image.resample and image.resize_mode in ("stretch", same_crop):
        return ""
    if image.resize_mode not in ("pad", "trim"):
        return (
            "Images: in training the center crop was computed slightly differently, which shifts "
            "images by at most one pixel.\n"
        )
    return (
        f"Images: in training they were made square with resize_mode `{image.resize_mode}`, which "
        "this library does not support. Resize them in the same way first.\n"
    )
