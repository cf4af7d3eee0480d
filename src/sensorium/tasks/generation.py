"""The verb `generate` for the command line: pictures into a file, words to the terminal as they come."""
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from sensorium import durable
from sensorium.checkpoint import Model
from sensorium.errors import SensoriumError
from sensorium.recipes.drawing import sheet


def makes(model: Model) -> str:
    """What a model generates, "image" or "text". Raises SensoriumError where it generates neither from words."""
    found = getattr(model.generate, "makes", None)
    if found is None:
        raise SensoriumError(f"a model of recipe {model.config.recipe} neither paints words nor tells of pictures; "
                             "dalle, captioner and gpt do")
    return found


def painted(model: Model, out: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Pictures in a PNG file: one as it is, several as a sheet with a line for each caption."""
    if out.suffix.lower() != ".png":
        raise SensoriumError(f"{out}: pictures are written as .png; give the file that ending")
    pictures, captions = model.generate("image", **asked), list(asked.get("text", [""]))
    durable.write(out, _png(pictures[0] if len(pictures) == 1 else sheet(_lines(captions, pictures))))
    return {"file": str(out), "pictures": len(pictures), "captions": captions}


def told(model: Model, asked: Mapping[str, Any], write: Callable[[str], object]) -> list[str]:
    """Words; those to one picture, if nothing else is asked, are written as they are said."""
    rows = max((len(values) for values in asked.values() if isinstance(values, list)), default=1)
    if rows > 1 or asked.get("n", 1) > 1 or asked.get("beams", 0):
        words = model.generate("text", **asked)
        write("\n".join(words) + "\n")
        return words
    pieces = []
    for piece, in model.generate.stream("text", **asked):       # pyright: ignore[reportFunctionMemberAccess]
        pieces.append(piece)
        write(piece)
    write("\n")
    return ["".join(pieces)]


def _lines(captions: Sequence[str], pictures: Sequence[PIL.Image.Image]) -> list[tuple[str, list[PIL.Image.Image]]]:
    each = len(pictures) // len(captions)
    return [(words, list(pictures[i * each:(i + 1) * each])) for i, words in enumerate(captions)]


def _png(picture: PIL.Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()
