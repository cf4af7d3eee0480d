"""Emoji by several artists with names in many languages: the bundled set, or one you built.

A set is a folder that can be inspected: one contact sheet per style (`noto.webp`; a concept has the
same cell on every sheet, empty where the style has no drawing), `concepts.jsonl` (one concept per
line: names, keywords, family, the styles that draw it), `sheets.json` (sizes, licences, held-out
artists and their similarity to others) and `ATTRIBUTION.md`.

Whole families of concepts are held out (see `emoji_names`), and whole artists. The column `split`:

    train                 known concept, known artist
    val                   known concept by the validation artist; in a set without one, validation
                          concept by a known artist
    val_unseen_concept    validation concept by a known artist, in a set with a validation artist
    test_unseen_artist    known concept by the test artist
    test_unseen_concept   test concept by a known artist
    test_unseen_both      test concept by the test artist
    extra                 other combinations (a validation concept by the test artist, ...), unused

The test artist is the one whose drawings are least similar in pixels to those of all other artists
(see `emoji_pixels`): fraction of drawings whose nearest neighbour by another artist shows the same
concept / fraction with a near duplicate there. Bundled set: streamline 0.236 / 0.006 (held out),
microsoft-fluent 0.270 / 0.018, emojione-2 0.291 / 0.090, twitter 0.296 / 0.056, google-blob 0.345 /
0.048, google-noto 0.379 / 0.060, mozilla 0.386 / 0.086. Two styles by the same studio are one
artist.

The set holds out no language: leave a caption column out of training (Dutch is `caption_nl`) and
evaluate on it.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from sensorium.data.tables import Table
from sensorium.errors import SensoriumError
from sensorium.io.json_files import check_keys

# 1,644 concepts at 32 pixels, under permissive licences.
BUNDLED_FOLDER = Path(__file__).parent / "assets" / "emoji"
HEADER_FILE, CONCEPTS_FILE = "sheets.json", "concepts.jsonl"
FORMAT_NAME, FORMAT_VERSION = "sensorium-sheets", 1
MAX_IMAGE_SIZE, MAX_CONCEPTS = 192, 8192

T = TypeVar("T", "ContactSheet", "SheetsHeader")
CaptionMode = Literal["varied", "joined", "each", "label"]

_CONCEPT_TYPES: dict[str, type] = {
    "code": str,
    "emoji": str,
    "category": str,
    "family": str,
    "split": str,
    "label": dict,
    "keywords": dict,
    "styles": list,
}
_SPLIT_NAMES = {  # (split of the concept, side of the artist) -> split of the row
    ("train", "train"): "train",
    ("train", "val"): "val",
    ("val", "train"): "val_unseen_concept",
    ("train", "test"): "test_unseen_artist",
    ("test", "train"): "test_unseen_concept",
    ("test", "test"): "test_unseen_both",
}


@dataclass(frozen=True)
class ContactSheet:
    """The contact sheet of one style, and its source.

    Attributes:
        style: name of the style.
        artist: who drew it; several styles may share an artist.
        file: name of the sheet in the folder.
        sha256: of the file.
        drawings: number of drawings.
        package: npm package of the drawings.
        version: version of the package.
        licence: SPDX identifier.
        author: author named by the package.
        project: web page of the project.
    """

    style: str
    artist: str
    file: str
    sha256: str
    drawings: int
    package: str
    version: str
    licence: str
    author: str
    project: str


@dataclass(frozen=True)
class SheetsHeader:
    """The contents of sheets.json.

    Attributes:
        format: `FORMAT_NAME`.
        version: `FORMAT_VERSION`.
        size: side of a drawing in pixels.
        columns: drawings in a row of a sheet.
        concepts: number of concepts.
        languages: languages of names and keywords.
        test_artist: artist held out for testing; "" for none.
        val_artist: artist held out for validation; "" for none.
        neighbours: artist -> `PixelSimilarity`, measured when the set was built.
        sheets: the contact sheets.
    """

    format: str
    version: int
    size: int
    columns: int
    concepts: int
    languages: list[str]
    test_artist: str
    val_artist: str
    neighbours: dict[str, dict[str, float]]
    sheets: list[ContactSheet]


def is_sheets_folder(path: str | Path) -> bool:
    """Return whether `path` is a folder that `build_emoji` wrote."""
    return (Path(path) / HEADER_FILE).is_file()


def open_sheets(
    path: str | Path,
    *,
    languages: Sequence[str] | None = None,
    styles: Sequence[str] | None = None,
    captions: CaptionMode = "varied",
    test_artist: str | None = None,
    val_artist: str | None = None,
) -> Table:
    """Open a set of contact sheets as a table: a row per drawing, a caption column per language.

    Args:
        path: the folder.
        languages: languages to read; None: all.
        styles: styles to read; None: all.
        captions: "varied": the name, the name with a few keywords, and a few keywords alone, each
            twice; "joined": the name, and all keywords in one text; "each": the name, and every
            keyword; "label": the name.
        test_artist: artist to hold out for testing instead of the set's own choice; "" for none.
        val_artist: artist to hold out for validation, likewise.

    Raises:
        SensoriumError: if the set is damaged, or lacks a language, style or artist.
    """
    folder = Path(path)
    header = read_sheets_header(folder)
    concepts = list(_read_concepts(folder, header))
    style_names = _check_names("style", styles, [sheet.style for sheet in header.sheets])
    sheets = [sheet for sheet in header.sheets if sheet.style in style_names]
    test = _resolve_artist(header, test_artist, header.test_artist)
    val = _resolve_artist(header, val_artist, header.val_artist)
    rows = [(s, concept) for s in sheets for concept in concepts if s.style in concept["styles"]]
    columns: dict[str, Any] = {"image": _load_drawings(folder, header, sheets, concepts)}
    for language in _check_names("language", languages, header.languages):
        texts = _build_captions(concepts, language, captions)
        columns[caption_column(language)] = [texts[concept["code"]] for _, concept in rows]
    types = dict.fromkeys(columns, "text") | {"image": "image"}
    labels = _label_columns(rows)
    columns |= labels
    types |= dict.fromkeys(labels, "category")
    columns["split"] = [_row_split(c["split"], sheet.artist, test, val) for sheet, c in rows]
    return Table(
        columns,
        [f"{sheet.file}:{concept['label']['en']}" for sheet, concept in rows],
        split_column="split",
        group_column="concept",
        kinds=types,
        reasons=dict.fromkeys(types, f"defined by the format {FORMAT_NAME}"),
        root=folder,
    )


def _label_columns(rows: Sequence[tuple[ContactSheet, dict[str, Any]]]) -> dict[str, list[str]]:
    """The category columns."""
    return {
        "concept": [concept["label"]["en"] for _, concept in rows],
        "family": [concept["family"] for _, concept in rows],
        "category": [concept["category"] for _, concept in rows],
        "artist": [sheet.artist for sheet, _ in rows],
        "style": [sheet.style for sheet, _ in rows],
    }


def caption_column(language: str) -> str:
    """Return the name of a caption column: 'en' -> 'caption', 'en-gb' -> 'caption_en_gb'."""
    return "caption" if language == "en" else f"caption_{language.replace('-', '_')}"


def read_sheets_header(folder: Path) -> SheetsHeader:
    """Read and check sheets.json.

    Raises:
        SensoriumError: if it is missing, of another version or damaged.
    """
    path = folder / HEADER_FILE
    values = _parse_json(path, _read_bytes(path))
    if not isinstance(values, dict):
        raise _damaged_file_error(path, "it is not a JSON object")
    if values.get("format") != FORMAT_NAME or values.get("version") != FORMAT_VERSION:
        raise SensoriumError(
            f"{path} has format {values.get('format')!r} version {values.get('version')!r}, not "
            f"{FORMAT_NAME!r} version {FORMAT_VERSION}. "
            "Build the set again: sensorium data build emoji."
        )
    sheets = values.get("sheets") or []
    values["sheets"] = [_parse_dataclass(ContactSheet, sheet, path, "a sheet") for sheet in sheets]
    header = _parse_dataclass(SheetsHeader, values, path, "the file")
    if not 0 < header.size <= MAX_IMAGE_SIZE:
        raise _damaged_file_error(path, f"size {header.size} is out of bounds")
    if not 0 < header.columns <= header.concepts <= MAX_CONCEPTS:
        raise _damaged_file_error(path, "its number of columns or concepts is out of bounds")
    files = [sheet.file for sheet in header.sheets]
    if not files:
        raise _damaged_file_error(path, "it lists no sheets")
    if any(Path(file).name != file or not file.endswith(".webp") for file in files):
        raise _damaged_file_error(path, "it lists sheets outside of its folder")
    if "en" not in header.languages:
        raise _damaged_file_error(path, "it has no English names")
    return header


def _load_drawings(
    folder: Path, header: SheetsHeader, sheets: list[ContactSheet], concepts: list[dict[str, Any]]
) -> np.ndarray:
    """All drawings in the order of the rows: uint8 [N, size, size, 3]."""
    present = [
        np.array([sheet.style in concept["styles"] for concept in concepts], bool)
        for sheet in sheets
    ]
    num_drawings = sum(int(flags.sum()) for flags in present)
    drawings = np.empty((num_drawings, header.size, header.size, 3), np.uint8)
    start = 0
    for sheet, flags in zip(sheets, present, strict=True):
        if flags.sum() != sheet.drawings:
            raise _damaged_file_error(
                folder / CONCEPTS_FILE,
                f"it lists {flags.sum()} drawings of {sheet.style}, not {sheet.drawings}",
            )
        cells = _load_sheet_cells(folder / sheet.file, sheet.sha256, header)
        drawings[start : start + sheet.drawings] = cells[: len(flags)][flags]
        start += sheet.drawings
    return drawings


def _load_sheet_cells(path: Path, sha256: str, header: SheetsHeader) -> np.ndarray:
    """The cells of one sheet in reading order: uint8 [rows * columns, size, size, 3], a view."""
    size, columns = header.size, header.columns
    rows = -(-header.concepts // columns)
    raw = _read_bytes(path)
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise _damaged_file_error(path, "it is not the file that was built")
    try:
        with Image.open(io.BytesIO(raw), formats=["WEBP"]) as image:
            if image.size != (columns * size, rows * size):
                raise _damaged_file_error(path, f"it is {image.width} x {image.height} pixels")
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise _damaged_file_error(path, str(e)) from e
    grid = pixels.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
    return grid.reshape(rows * columns, size, size, 3)


def _read_concepts(folder: Path, header: SheetsHeader) -> Iterator[dict[str, Any]]:
    """Yield the checked lines of concepts.jsonl."""
    path = folder / CONCEPTS_FILE
    lines = _read_bytes(path).splitlines()
    if len(lines) != header.concepts:
        raise _damaged_file_error(path, f"it has {len(lines)} lines, not {header.concepts}")
    for number, line in enumerate(lines, 1):
        concept = check_keys(path, f"line {number}", _parse_json(path, line), _CONCEPT_TYPES)
        for name, value in concept.items():
            if not isinstance(value, _CONCEPT_TYPES[name]):
                raise _damaged_file_error(path, f"{name} in line {number} has the wrong type")
        if "en" not in concept["label"]:
            raise _damaged_file_error(path, f"line {number} has no English name")
        yield concept


def _build_captions(
    concepts: list[dict[str, Any]], language: str, mode: CaptionMode
) -> dict[str, list[str] | None]:
    """Code of a concept -> its captions in one language; None where it has no name there."""
    if mode not in get_args(CaptionMode):
        raise SensoriumError(
            f"captions={mode!r} is unknown. Choose from {', '.join(get_args(CaptionMode))}."
        )
    captions: dict[str, list[str] | None] = {}
    for concept in concepts:
        label = concept["label"].get(language)
        keywords = concept["keywords"].get(language)
        if label is None:
            captions[concept["code"]] = None
        elif not keywords or mode == "label":
            captions[concept["code"]] = [label]
        elif mode == "joined":
            captions[concept["code"]] = [label, ", ".join(keywords)]
        elif mode == "varied":
            varied = _sample_captions(label, keywords, concept["code"] + language)
            captions[concept["code"]] = [label, *varied]
        else:
            captions[concept["code"]] = [label, *keywords]
    return captions


def _sample_captions(label: str, keywords: list[str], seed: str) -> list[str]:
    """The further captions of the mode "varied"; the same for the same seed."""
    digest = hashlib.md5(seed.encode(), usedforsecurity=False).digest()
    rng = np.random.default_rng(list(digest))
    few = [", ".join(rng.permutation(keywords)[: rng.integers(1, 5)]) for _ in range(4)]
    return [label, f"{label}, {few[0]}", f"{label}, {few[1]}", few[2], few[3]]


def _row_split(concept_split: str, artist: str, test_artist: str, val_artist: str) -> str:
    if artist == test_artist:
        side = "test"
    elif artist == val_artist:
        side = "val"
    else:
        side = "train"
    if concept_split == "val" and side == "train" and not val_artist:
        return "val"
    return _SPLIT_NAMES.get((concept_split, side), "extra")


def _resolve_artist(header: SheetsHeader, requested: str | None, default: str) -> str:
    """The artist to hold out: "" for none, None for the default."""
    if requested is None:
        return default
    if requested:
        _check_names("artist", [requested], [sheet.artist for sheet in header.sheets])
    return requested


def _check_names(kind: str, requested: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """The distinct requested names, or all available ones."""
    if isinstance(requested, str):
        requested = [requested]
    names = list(dict.fromkeys(available if requested is None else requested))
    for name in names:
        if name not in available:
            known = ", ".join(dict.fromkeys(available))
            raise SensoriumError(f"The set has no {kind} {name!r}. Choose from {known}.")
    return names


def _parse_dataclass(cls: type[T], values: Any, path: Path, label: str) -> T:
    """A dataclass from a JSON object with exactly its fields, each of its type."""
    types = {field.name: field.type for field in fields(cls)}  # type: ignore[arg-type]
    for name, value in check_keys(path, label, values, types).items():
        expected = types[name]
        if type(value) is not getattr(expected, "__origin__", expected):
            raise _damaged_file_error(path, f"{name} is {value!r}")
    return cls(**values)


def _parse_json(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise _damaged_file_error(path, f"it is not JSON: {e}") from e


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise _damaged_file_error(path, e.strerror or str(e)) from e


def _damaged_file_error(path: Path, reason: str) -> SensoriumError:
    return SensoriumError(
        f"{path} cannot be used: {reason}. Build the set again (sensorium data build emoji), or "
        "reinstall Sensorium if it is the bundled one."
    )
