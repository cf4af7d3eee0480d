"""Turn raw values into the inputs of exported graphs, with numpy, Pillow and tokenizers alone.

`sensorium export --format onnx` copies this file into the folder of the graphs, where it reads
schema.json (the columns and their settings) and tokenizer.json.

N values   H side as stored   S side of the model input   T tokens
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

Settings = dict[str, Any]
SECONDS_PER_DAY = 86_400.0
FIRST_MONDAY = 4 * SECONDS_PER_DAY  # 1970-01-05
BORDER_TOLERANCE = 24
ORIENTATION_TAG = 0x112
TRANSPOSES = {  # EXIF orientation -> what makes the image upright
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class Preprocessor:
    """The columns of a folder of exported graphs.

    Args:
        folder: The folder, with schema.json and, for texts, tokenizer.json.
    """

    def __init__(self, folder: str | Path):
        schema = json.loads((Path(folder) / "schema.json").read_text(encoding="utf-8"))
        self.columns: dict[str, dict[str, Any]] = schema["columns"]
        self.tokenizer: Any = None
        if schema["tokenizer"]:
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            self.tokenizer.encode_special_tokens = True  # their names in a text are plain text

    def __call__(self, column: str, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of a column as one array, and bool [N], which of them are present.

        Args:
            column: Its name.
            values: Raw values: a path, bytes, a Pillow image or an array uint8 of an image; a text;
                a number; the name of a class; a date as text or `datetime`; a list of tags, or text
                with their separator; the numbers [T] or [T, channels] of a series. None and NaN
                are missing.

        Raises:
            ValueError: If a value cannot be read, or the type of the column is not supported.
        """
        kind, settings = self.columns[column]["kind"], self.columns[column]["settings"]
        present = np.array([not _is_missing(value) for value in values], bool)
        if kind == "text":
            texts = [value if ok else "" for value, ok in zip(values, present, strict=True)]
            return encode_texts(self.tokenizer, settings, texts), present
        if kind not in LOADERS:
            raise ValueError(
                f"column {column!r} has the type {kind}, which this file cannot read; compute its "
                "input with Sensorium, as schema.json describes"
            )
        load, collate, blank = LOADERS[kind]
        loaded = [
            load(value, settings) if ok else blank(settings)
            for value, ok in zip(values, present, strict=True)
        ]
        return collate(loaded, settings), present


def encode_texts(tokenizer: Any, settings: Settings, texts: Sequence[str]) -> np.ndarray:
    """Return token ids, int64 [N T], with start and end token, padded to the longest text."""
    cleaned = [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts]  # half characters
    prefix = [] if settings["start"] is None else [settings["start"]]
    most = settings["length"] - len(prefix) - 1
    encoded = tokenizer.encode_batch(cleaned, add_special_tokens=False)
    rows = [[*prefix, *row.ids[:most], settings["end"]] for row in encoded]
    ids = np.full((len(rows), max(map(len, rows), default=1)), settings["pad"], np.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids


# Images


def load_image(raw: Any, settings: Settings) -> np.ndarray:
    """Return an image as uint8 [H H 3], upright and resized as in training."""
    side = settings["size"] + settings["margin"]
    image, extent = _open_image(raw, side, settings)
    exif = PIL.Image.Exif()
    exif.load(image.info.get("exif", b""))
    turn = TRANSPOSES.get(exif.get(ORIENTATION_TAG, 1))
    image = _to_rgb(image)
    if settings["resample"]:
        upright = image if turn is None else image.transpose(turn)
        return _resize_exactly(upright, side, settings)
    square = _resize(image, side, settings["resize_mode"], extent or image.size)
    return np.array(square if turn is None else square.transpose(turn))


def normalize_images(loaded: list[np.ndarray], settings: Settings) -> np.ndarray:
    """Return the central pixels, normalized, as float32 [N 3 S S]."""
    size, margin = settings["size"], settings["margin"] // 2
    pixels = np.stack(loaded)[:, margin : margin + size, margin : margin + size]
    std = np.array(settings["std"], np.float32).reshape(3, 1, 1)
    mean = np.array(settings["mean"], np.float32).reshape(3, 1, 1)
    scaled = pixels.transpose(0, 3, 1, 2).astype(np.float32) * (1 / (255 * std))
    return (scaled - mean / std).astype(np.float32)


def _open_image(
    raw: Any, side: int, settings: Settings
) -> tuple[PIL.Image.Image, tuple[float, float] | None]:
    """Return an image, a large JPEG at 1/2, 1/4 or 1/8, and then the size that it stands for."""
    if isinstance(raw, np.ndarray):
        return PIL.Image.fromarray(raw[..., 0] if raw.shape[2:] == (1,) else raw), None
    if isinstance(raw, PIL.Image.Image):
        return raw, None
    image = PIL.Image.open(io.BytesIO(raw if isinstance(raw, bytes) else Path(raw).read_bytes()))
    if image.format != "JPEG" or settings["resample"] or settings["resize_mode"] == "trim":
        return image, None
    edge = min(image.size)
    if settings["resize_mode"] == "pad":
        edge = min(max(image.size), 2 * side * edge)
    scale = 1 << min(3, max(0, (edge // (2 * side)).bit_length() - 1))
    if scale == 1:
        return image, None
    extent = (image.width / scale, image.height / scale)
    image.draft(None, (image.width // scale, image.height // scale))
    return image, extent


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert to RGB: 16 bits to 8, transparency to white."""
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _resize_exactly(image: PIL.Image.Image, side: int, settings: Settings) -> np.ndarray:
    """Resize with the filter of a pretrained model, and cut out the center."""
    method = PIL.Image.Resampling[settings["resample"].upper()]
    edge, short = max(settings["shortest_edge"], side), min(image.size)
    if settings["resize_mode"] == "stretch":
        width = height = edge
    else:
        width, height = (
            edge if length == short else int(edge * length / short) for length in image.size
        )
    left, top = (width - side) // 2, (height - side) // 2
    if settings["resize_mode"] == "centre":
        left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), method)
    return np.array(resized.crop((left, top, left + side, top + side)))


def _resize(
    image: PIL.Image.Image, side: int, mode: str, extent: tuple[float, float]
) -> PIL.Image.Image:
    """Resize to a square with antialiasing: crop, stretch, pad or trim."""
    width, height = extent
    if mode == "trim":
        image = _trim_border(image)
        width, height = image.size
    if mode in ("pad", "trim"):
        scale = side / max(width, height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = image.resize(
            size, PIL.Image.Resampling.BICUBIC, (0, 0, width, height), reducing_gap=3.0
        )
        square = PIL.Image.new("RGB", (side, side), "white")
        square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
        return square
    edge = min(width, height)
    box = (0.0, 0.0, width, height)
    if mode == "crop":
        left, top = (width - edge) / 2, (height - edge) / 2
        box = (left, top, (width + edge) / 2, (height + edge) / 2)
    return image.resize((side, side), PIL.Image.Resampling.BICUBIC, box, reducing_gap=3.0)


def _trim_border(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image without its plain border, but for a thirtieth of the content's size."""
    pixels = np.asarray(image).astype(np.int16)
    content = np.abs(pixels - pixels[0, 0]).max(-1) > BORDER_TOLERANCE
    rows, columns = np.flatnonzero(content.any(1)), np.flatnonzero(content.any(0))
    if not len(rows):
        return image
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    margin = max(1, round(max(bottom - top, right - left) / 30))
    box = (max(0, left - margin), max(0, top - margin))
    return image.crop((*box, min(image.width, right + margin), min(image.height, bottom + margin)))


# Columns of tables


def load_number(raw: Any, settings: Settings) -> float:  # noqa: ARG001 - as all loaders
    """Return a number."""
    value = float(raw)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {raw}")
    return value


def standardize(loaded: list[float], settings: Settings) -> np.ndarray:
    """Return (value - mean) / std as float32 [N]."""
    values = (np.asarray(loaded, np.float64) - settings["mean"]) / settings["std"]
    return values.astype(np.float32)


def spell_class(value: Any) -> str:
    """Return the one spelling of a class: 1, 1.0, "1.0" and "1" are one, "007" stays."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    text = (repr(value.item()) if isinstance(value, np.generic) else str(value)).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if re.fullmatch(r"[+-]?(0|[1-9]\d{0,308})(\.0*)?", text):
        return str(int(text.partition(".")[0] or 0))
    digits = text.lstrip("+-")
    is_code = digits[:1] == "0" and digits[1:2].isdigit()
    number_pattern = r"[+-]?(0|[1-9]\d*)?\.?\d+(e[+-]?\d+)?"
    if is_code or not re.fullmatch(number_pattern, text, re.IGNORECASE):
        return text
    number = float(text)
    if not math.isfinite(number):
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def load_class(raw: Any, settings: Settings) -> int:
    """Return the index of a class; the number of classes for one that training did not see."""
    classes = [spell_class(name) for name in settings["classes"]]
    name = spell_class(raw)
    return classes.index(name) if name in classes else len(classes)


def load_tags(raw: Any, settings: Settings) -> np.ndarray:
    """Return a multi-hot vector; its last entry is any tag that training did not see."""
    tags = list(settings["tags"])
    parts = raw.split(settings["separator"]) if isinstance(raw, str) else raw
    row = np.zeros(len(tags) + 1, np.float32)
    for part in parts:
        if part.strip():
            row[tags.index(part.strip()) if part.strip() in tags else len(tags)] = 1
    return row


def load_date(raw: Any, settings: Settings) -> float:
    """Return a date, a `datetime` or a text as seconds since 1970, in UTC without a zone."""
    parsed = raw
    if isinstance(raw, str):
        from sensorium.modalities.date_formats import parse_date

        parsed = parse_date(raw, settings["order"])
    if isinstance(parsed, date) and not isinstance(parsed, datetime):
        parsed = datetime(parsed.year, parsed.month, parsed.day)
    if not isinstance(parsed, datetime):
        raise ValueError(f"expected a date such as 2026-03-31, got {str(raw)[:40]!r}")
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def date_features(loaded: list[float], settings: Settings) -> np.ndarray:
    """Return standardized time, its square, cycles of year, week and day, and the weekend."""
    seconds = np.asarray(loaded, np.float64)
    time = (seconds - settings["mean"]) / settings["std"]
    features = [time, time**2]
    week = (seconds - FIRST_MONDAY) / (7 * SECONDS_PER_DAY)
    for cycle in (seconds / (365.2425 * SECONDS_PER_DAY), week, seconds / SECONDS_PER_DAY):
        angle = 2 * np.pi * (cycle % 1)
        features += [np.sin(angle), np.cos(angle)]
    weekday = (seconds - FIRST_MONDAY) // SECONDS_PER_DAY % 7
    features.append((weekday >= 5).astype(np.float64))
    return np.stack(features, 1).astype(np.float32)


def load_series(raw: Any, settings: Settings) -> np.ndarray:
    """Return the numbers of a series [T] or [T, channels], standardized; NaN is missing."""
    values = np.asarray(raw, np.float64)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[1] != len(settings["channels"]):
        raise ValueError(f"expected numbers of the channels {', '.join(settings['channels'])}")
    length = settings["length"]
    stride = -(-len(values) // length)
    if settings["truncation"] == "cut":
        values = values[:length]
    elif stride > 1:  # the mean of consecutive steps
        padded = np.full((-(-len(values) // stride) * stride, values.shape[1]), np.nan)
        padded[: len(values)] = values
        steps = padded.reshape(-1, stride, values.shape[1]).transpose(1, 0, 2)
        count = (~np.isnan(steps)).sum(0)
        values = np.where(count, np.nansum(steps, 0) / np.maximum(count, 1), np.nan)
    return ((values - np.array(settings["mean"])) / np.array(settings["std"])).astype(np.float32)


def pad_series(loaded: list[np.ndarray], settings: Settings) -> np.ndarray:
    """Return the values, 0 where missing, then their presence, as float32 [N T 2*channels]."""
    channels, steps = len(settings["channels"]), max(1, *map(len, loaded))
    batch = np.zeros((len(loaded), steps, 2 * channels), np.float32)
    for row, values in zip(batch, loaded, strict=True):
        present = ~np.isnan(values)
        row[: len(values), :channels] = np.where(present, values, 0)
        row[: len(values), channels:] = present
    return batch


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _blank_image(settings: Settings) -> np.ndarray:
    side = settings["size"] + settings["margin"]
    return np.zeros((side, side, 3), np.uint8)


Loader = tuple[Callable[..., Any], Callable[..., np.ndarray], Callable[[Settings], Any]]
CLASS_LOADER: Loader = (load_class, lambda loaded, _: np.array(loaded, np.int64), lambda _: 0)
LOADERS: dict[str, Loader] = {  # column type -> how to load a value, to join them, and a blank
    "image": (load_image, normalize_images, _blank_image),
    "numeric": (load_number, standardize, lambda settings: settings["mean"]),
    "category": CLASS_LOADER,
    "ordinal": CLASS_LOADER,
    "multilabel": (
        load_tags,
        lambda loaded, _: np.stack(loaded),
        lambda settings: np.zeros(len(settings["tags"]) + 1, np.float32),
    ),
    "datetime": (load_date, date_features, lambda settings: settings["mean"]),
    "series": (
        load_series,
        pad_series,
        lambda settings: np.full((1, len(settings["channels"])), np.nan, np.float32),
    ),
}
