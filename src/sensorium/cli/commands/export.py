"""Commands that write a model in another format: `export`, `convert-checkpoint`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sensorium.cli.models import load_exportable
from sensorium.cli.options import JsonOption, ModelArgument, RecipeOption
from sensorium.cli.output import emit


def export(
    model: ModelArgument,
    /,
    *,
    format: Literal["hf", "open_clip", "onnx", "torch"],
    out: Path,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a model and report its numerical difference from the original.

    To Hugging Face (CLIPModel), OpenCLIP, ONNX or torch.export. A pretrained CLIP can be exported,
    too.

    Args:
        format: hf (CLIPModel of transformers), open_clip, onnx, or torch (torch.export). ONNX and
            torch.export hold the towers of a CLIP, or a predictor of any columns with any of them
            missing.
        out: New output folder.
    """
    from sensorium.export.export import export_model

    loaded = load_exportable(model, recipe)
    errors = export_model(loaded, format, out)
    lines = [
        f"{part}: maximum difference from the original {error:.1e}"
        for part, error in errors.items()
    ]
    if format == "onnx":
        lines.append(f"Without Sensorium: see {out / 'README.md'} and {out / 'example.py'}.")
    emit(errors if as_json else "\n".join(lines), as_json)


def convert_checkpoint(
    source: Annotated[Path, Parameter(help="A PyTorch checkpoint: .pt, .pth, .bin, .ckpt.")],
    /,
    *,
    out: Path | None = None,
    key: str | None = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a pickled checkpoint to safetensors without executing anything in it.

    The file is read in a sandboxed process that accepts tensors and plain values only. Weights are
    copied exactly; other entries (step, optimizer state) are left out and listed.

    Args:
        out: Output file. Default: the same name with .safetensors.
        key: Entry that holds the weights, if it is not one of the usual (state_dict, model, ...).
    """
    from sensorium.io.pickles import convert

    emit(convert.convert_checkpoint(source, out, key=key), as_json)
