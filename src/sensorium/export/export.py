"""A run → a folder that others load, with a card that says what it is and how far it is from the run."""

import json
import shutil
from pathlib import Path
from typing import Literal

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
    save_torch,
)
from sensorium.io import atomic
from sensorium.modalities.image import Image
from sensorium.nn.tokens import ColumnKey
from sensorium.training.checkpoint import Model

ExportFormat = Literal["hf", "open_clip", "onnx", "torch"]
USAGE_TEMPLATES = {
    "hf": """from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
model = CLIPModel.from_pretrained("{folder}")
tokenizer, processor = AutoTokenizer.from_pretrained("{folder}"), CLIPImageProcessor.from_pretrained("{folder}")""",
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

The run `{run}` of Sensorium in another form; its vectors are {off:.1e} from the run's, at most.

```python
{use}
```

{pictures}
What it was trained on, and what is known of its licence, says the README.md of the run.
"""
GRAPH_CARD_TEMPLATE = """---
tags:
- sensorium
---
# {title}

The run `{run}` of Sensorium as {form}. Its answers are at most {off:.1e} from the run's, as a share of the largest.

| file | reads | type and shape |
|---|---|---|
{table}

{answers}

`schema.json` (and `tokenizer.json`) says how raw values become these tensors, and Sensorium does it:

```python
from sensorium.data.schema import Schema
column = Schema.load("{folder}")[{column}]
values = column.collate([column.load(raw) for raw in ...])
```

{use}
"""
GRAPH_USAGE_TEMPLATES = {
    "onnx": """```python
import onnxruntime
session = onnxruntime.InferenceSession("{folder}/{name}.onnx")
answers = session.run(None, {{name: values.numpy(), ...}})
```""",
    "torch": """```python
import torch
answers = torch.export.load("{folder}/{name}.pt2").module()({how})
```""",
}
OUTPUT_DESCRIPTIONS = {
    "vectors": "Each answers `vectors` of length one, in the space that all of them share.",
    "predictions": """It answers {said}.
Of classes, ranks and tags it says the probabilities of all, in the order of `schema.json`; of a number what is
expected, and its standard deviation. `COLUMN.valid` says in which rows a column has a value; what stands where it has
none does not matter.""",
}
LIBRARY_NAMES = {"hf": "transformers", "open_clip": "open_clip"}


def export_model(model: Model, format: ExportFormat, out: Path) -> dict[str, float]:
    """Write a run in another form into the new folder `out`; how far each part is from the run's own vectors, at most.

    format: hf (CLIPModel of transformers), open_clip, or graphs, by onnx or torch (torch.export): a file for each tower, or
    one of what is predicted from any columns, any of them missing.
    Raises SensoriumError where `out` holds something, the form has no place for what the model is, or answers differ.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SensoriumError(f"{out} is there already: name a new folder")
    if format in LIBRARY_NAMES:
        made = build_clip(model)
        out.mkdir(parents=True, exist_ok=True)
        (write_hugging_face if format == "hf" else write_open_clip)(made, out)
        atomic.write_file(out / "README.md", _clip_card(model, made, format, out).encode())
        return {"vectors": made.max_error}
    made = {name: (part, export_program(name, part)) for name, part in build_graphs(model).items()}
    out.mkdir(parents=True, exist_ok=True)
    off = {
        name: (save_onnx if format == "onnx" else save_torch)(*found, out / name)
        for name, found in made.items()
    }
    if odd := [name for name, far in off.items() if far > MAX_VECTOR_ERROR]:
        shutil.rmtree(out)
        raise SensoriumError(
            f"as a graph {odd[0]} would answer {off[odd[0]]:.2g} off: nothing is written"
        )
    model.schema.save(out)
    told = {name: (part, input_shapes(graph)) for name, (part, graph) in made.items()}
    atomic.write_file(
        out / "README.md", _graph_card(model, told, format, out, max(off.values())).encode()
    )
    return off


def _graph_card(
    model: Model,
    graphs: dict[str, tuple[ExportableGraph, list[str]]],
    format: ExportFormat,
    out: Path,
    max_error: float,
) -> str:
    """told: file → what it holds, and the type and shape of each of its inputs."""
    ending, (name, (first, _)) = "onnx" if format == "onnx" else "pt2", next(iter(graphs.items()))
    lines = [
        f"| {file}.{ending} | `{read}` | {shape} |"
        for file, (part, each) in graphs.items()
        for read, shape in zip(part.input_names, each, strict=True)
    ]
    several = isinstance(first.example_inputs, dict)
    answers = OUTPUT_DESCRIPTIONS["predictions" if several else "vectors"].format(
        said=", ".join(f"`{s}`" for s in first.output_names)
    )
    answers += "".join(f"\n\n`{name}` is {what}." for name, what in first.changed.items())
    use = GRAPH_USAGE_TEMPLATES[format].format(
        folder=out.name, name=name, how="{name: values, ...}" if several else "values"
    )
    return GRAPH_CARD_TEMPLATE.format(
        title=out.name,
        run=model.folder.name,
        off=max_error,
        table="\n".join(lines),
        folder=out.name,
        use=use,
        answers=answers,
        form="an ONNX graph" if format == "onnx" else "a graph of torch.export",
        column=_quoted(first.column),
    )


def _quoted(key: ColumnKey) -> str:
    """A column's key as Python has it."""
    if isinstance(key, str):
        return json.dumps(key, ensure_ascii=False)
    return f"({', '.join(map(_quoted, key))})"


def _clip_card(model: Model, clip: CLIPExport, format: str, out: Path) -> str:
    return CLIP_CARD_TEMPLATE.format(
        library=LIBRARY_NAMES[format],
        title=out.name,
        run=model.folder.name,
        off=clip.max_error,
        use=USAGE_TEMPLATES[format].format(folder=out.name),
        pictures=_image_note(clip.image, format),
    )


def _image_note(image: Image, format: str) -> str:
    """How pictures should be handed over, where this is not quite what they were in training."""
    if image.resample and image.resize_mode in ("stretch", "crop" if format == "hf" else "centre"):
        return ""
    if image.resize_mode not in ("pad", "trim"):
        return (
            "Pictures: in training their middle was not cut out quite as this library does it, which moves them by "
            "a pixel at most.\n"
        )
    return (
        f"Pictures: it was trained on squares made by `{image.resize_mode}`, which this library does not know. "
        "Make them so before you hand them over.\n"
    )
