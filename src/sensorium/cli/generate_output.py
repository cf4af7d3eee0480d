"""Output of the command `generate`: images into a file, text to the terminal as it is generated."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL.Image

from sensorium.errors import SensoriumError
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.io import atomic

if TYPE_CHECKING:
    from sensorium.inference.base import VerbModel


def output_modality(model: VerbModel) -> str:
    """Return what a model generates: "image" or "text".

    Raises:
        SensoriumError: if it does not generate either of them.
    """
    modality = getattr(model.verbs.get("generate"), "output_modality", None)
    if modality is None:
        raise SensoriumError(
            f"{model} does not generate images or text. Models of dalle, imagen, captioner and "
            "gpt do, and pretrained language models and Whisper."
        )
    return modality


def generate_images(model: VerbModel, out: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Write generated images to a PNG file: one as it is, several as a grid with a row per caption.

    Args:
        model: model whose verb `generate` makes images.
        out: .png file.
        inputs: keywords of the verb.

    Returns:
        {"file": path, "images": how many, "captions": the prompts}.

    Raises:
        SensoriumError: if the file is not a .png, or an input does not fit.
    """
    if out.suffix.lower() != ".png":
        raise SensoriumError(f"{out} does not end in .png. Name such a file with -o.")
    captions = list(inputs.get("text", [""]))
    images: list[PIL.Image.Image] = model.generate("image", **inputs)
    sheet = images[0]
    if len(images) > 1:
        sheet = draw_contact_sheet(_group_by_caption(captions, images))
    atomic.write_file(out, _encode_png(sheet))
    return {"file": str(out), "images": len(images), "captions": captions}


def generate_text(
    model: VerbModel, inputs: Mapping[str, Any], write: Callable[[str], object]
) -> list[str]:
    """Generate text; a single text is passed to `write` piece by piece, as it is generated.

    Args:
        model: model whose verb `generate` makes text.
        inputs: keywords of the verb.
        write: receives the text.

    Raises:
        SensoriumError: if an input does not fit.
    """
    rows = max((len(values) for values in inputs.values() if isinstance(values, list)), default=1)
    stream = getattr(model.generate, "stream", None)
    if not inputs.get("num_beams"):  # streaming is sampling, which knows no beams
        inputs = {name: value for name, value in inputs.items() if name != "num_beams"}
    if stream is None or rows > 1 or inputs.get("n", 1) > 1 or "num_beams" in inputs:
        texts: list[str] = model.generate("text", **inputs)
        write("\n".join(texts) + "\n")
        return texts
    pieces: list[str] = []
    for (piece,) in stream("text", **inputs):
        pieces.append(piece)
        write(piece)
    write("\n")
    return ["".join(pieces)]


def _group_by_caption(
    captions: Sequence[str], images: Sequence[PIL.Image.Image]
) -> list[tuple[str, list[PIL.Image.Image]]]:
    each = len(images) // len(captions)
    return [(text, list(images[i * each : (i + 1) * each])) for i, text in enumerate(captions)]


def _encode_png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
