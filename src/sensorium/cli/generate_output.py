"""The verb `generate` for the command line: pictures into a file, words to the terminal as they come."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from sensorium.errors import SensoriumError
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.io import atomic
from sensorium.training.checkpoint import Model


def output_modality(model: Model) -> str:
    """What a model generates, "image" or "text". Raises SensoriumError where it generates neither from words."""
    found = getattr(model.generate, "output_modality", None)
    if found is None:
        raise SensoriumError(
            f"a model of recipe {model.config.recipe} neither paints words nor tells of pictures; "
            "dalle, captioner and gpt do"
        )
    return found


def generate_images(model: Model, out: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures in a PNG file: one as it is, several as a sheet with a line for each caption."""
    if out.suffix.lower() != ".png":
        raise SensoriumError(f"{out}: pictures are written as .png; give the file that ending")
    pictures, captions = model.generate("image", **options), list(options.get("text", [""]))
    atomic.write_file(
        out,
        _encode_png(
            pictures[0]
            if len(pictures) == 1
            else draw_contact_sheet(_group_by_caption(captions, pictures))
        ),
    )
    return {"file": str(out), "pictures": len(pictures), "captions": captions}


def generate_text(
    model: Model, options: Mapping[str, Any], write: Callable[[str], object]
) -> list[str]:
    """Words; those to one picture, if nothing else is asked, are written as they are said."""
    rows = max((len(values) for values in options.values() if isinstance(values, list)), default=1)
    if rows > 1 or options.get("n", 1) > 1 or options.get("beams", 0):
        words = model.generate("text", **options)
        write("\n".join(words) + "\n")
        return words
    pieces = []
    for (piece,) in model.generate.stream("text", **options):  # pyright: ignore[reportFunctionMemberAccess]
        pieces.append(piece)
        write(piece)
    write("\n")
    return ["".join(pieces)]


def _group_by_caption(
    captions: Sequence[str], images: Sequence[PIL.Image.Image]
) -> list[tuple[str, list[PIL.Image.Image]]]:
    each = len(images) // len(captions)
    return [(words, list(images[i * each : (i + 1) * each])) for i, words in enumerate(captions)]


def _encode_png(image: PIL.Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()
