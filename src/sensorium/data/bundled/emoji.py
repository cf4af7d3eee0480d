"""Emoji by several artists with names in many languages: the embedded set, and any folder that `build_emoji` wrote.

A set is a folder that a person can look at: one contact sheet per style (`noto.webp`; a concept has the same cell on
every sheet, empty where the style has no drawing), `concepts.jsonl` (one concept a line: names, keywords, family, the
styles that draw it), `sheets.json` (sizes, licences, held-out artists, how hard they are) and `ATTRIBUTION.md`.

Two splits cross, because a model may fail on either side: whole families of concepts are held out (`emoji_names`), and
so are whole artists. The column `split` says what each row is good for:

    train          known concept, known artist
    val            chooses between models: known concept by the validation artist; in a set without one, unseen concept
    val_concept    validation concept by a known artist, in a set that has a validation artist
    test_artist    known concept by the unseen artist
    test_concept   unseen concept by a known artist
    test_both      unseen concept by the unseen artist
    spare          none of these (a validation concept by the test artist, ...): for nothing

The unseen artist is the one whose drawings plain pixels find least among all other artists' (`emoji_pixels`): share of
drawings whose nearest neighbour by another artist shows the same concept / share with a near twin there. Embedded set:
streamline 0.236 / 0.006 (held out), microsoft-fluent 0.270 / 0.018, emojione-2 0.291 / 0.090, twitter 0.296 / 0.056,
google-blob 0.345 / 0.048, google-noto 0.379 / 0.060, mozilla 0.386 / 0.086. Two styles of one hand are one artist.

No language is held out by the set: leave a caption column out of training (say Dutch, `caption_nl`) and test on it.
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

BUNDLED_FOLDER = (
    Path(__file__).parent / "assets" / "emoji"
)  # 1,644 concepts at 32 pixels, as their licences allow
HEADER_FILE, CONCEPTS_FILE = "sheets.json", "concepts.jsonl"
FORMAT_NAME, FORMAT_VERSION = "sensorium-sheets", 1
MAX_IMAGE_SIZE, MAX_CONCEPTS = 192, 8192

T = TypeVar("T", "ContactSheet", "SheetsHeader")
CaptionMode = Literal["varied", "joined", "each", "label"]

_SPLIT_NAMES = {
    ("train", "train"): "train",
    ("train", "val"): "val",
    ("val", "train"): "val_concept",
    ("train", "test"): "test_artist",
    ("test", "train"): "test_concept",
    ("test", "test"): "test_both",
}


@dataclass(frozen=True)
class ContactSheet:
    """One style: its contact sheet, and whose work it is."""

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
    """What sheets.json says."""

    format: str
    version: int
    size: int  # pixels of a drawing's side
    columns: int  # drawings in a row of a sheet
    concepts: int
    languages: list[str]
    test_artist: str  # "": nobody is held out
    val_artist: str
    neighbours: dict[
        str, dict[str, float]
    ]  # artist -> `Neighbour`, measured when the set was built
    sheets: list[ContactSheet]


def is_sheets_folder(path: str | Path) -> bool:
    """Whether `path` is a folder that `build_emoji` wrote."""
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
    """A set of contact sheets as a table: one row per drawing, one caption column per language (English: "caption").

    languages, styles: the ones to take; None: all.
    captions: what a caption column lists. "varied": the name twice, and twice each the name with a few keywords and a
    few keywords alone, so that a caption drawn is mostly short; "joined": the name, then all keywords in one line;
    "each": the name, then every keyword alone; "label": the name only.
    test_artist, val_artist: whom to hold out instead of the set's own choice; "": nobody.
    Raises SensoriumError on a damaged set, or on a language, style or artist it does not have.
    """
    folder = Path(path)
    header = read_sheets_header(folder)
    concepts = list(_read_concepts(folder, header))
    sheets = [
        s
        for s in header.sheets
        if s.style in _check_names("style", styles, [s.style for s in header.sheets])
    ]
    artists = [sheet.artist for sheet in header.sheets]
    test, val = (
        (own if other is None else other and _check_names("artist", [other], artists)[0])
        for own, other in ((header.test_artist, test_artist), (header.val_artist, val_artist))
    )
    rows = [
        (sheet, concept)
        for sheet in sheets
        for concept in concepts
        if sheet.style in concept["styles"]
    ]
    columns: dict[str, Any] = {"image": _load_drawings(folder, header, sheets, concepts)}
    spoken = {
        language: caption_column(language)
        for language in _check_names("language", languages, header.languages)
    }
    for language, column in spoken.items():
        lists = _build_captions(concepts, language, captions)
        columns[column] = [lists[concept["code"]] for _, concept in rows]
    columns["concept"] = [concept["label"]["en"] for _, concept in rows]
    columns |= {key: [concept[key] for _, concept in rows] for key in ("family", "category")}
    columns |= {key: [getattr(sheet, key) for sheet, _ in rows] for key in ("artist", "style")}
    columns["split"] = [
        _row_split(concept["split"], sheet.artist, test, val) for sheet, concept in rows
    ]
    kinds = {
        name: "image" if name == "image" else "text" if name in spoken.values() else "category"
        for name in columns
        if name != "split"
    }
    return Table(
        columns,
        [f"{sheet.file}:{concept['label']['en']}" for sheet, concept in rows],
        split_column="split",
        group_column="concept",
        kinds=kinds,
        reasons=dict.fromkeys(kinds, f"a set of {FORMAT_NAME} says so"),
        root=folder,
    )


def caption_column(language: str) -> str:
    """'en' -> 'caption', 'en-gb' -> 'caption_en_gb'."""
    return "caption" if language == "en" else f"caption_{language.replace('-', '_')}"


def read_sheets_header(folder: Path) -> SheetsHeader:
    """sheets.json, checked. Raises SensoriumError on anything this version would not have written."""
    values = _parse_json_object(folder / HEADER_FILE, _read_bytes(folder / HEADER_FILE))
    if values.get("format") != FORMAT_NAME or values.get("version") != FORMAT_VERSION:
        said = f"{values.get('format')!r} version {values.get('version')!r}"
        raise SensoriumError(
            f"{folder / HEADER_FILE} is of format {said}, not {FORMAT_NAME!r} version {FORMAT_VERSION}. "
            "Build the set again: sensorium data build emoji"
        )
    values["sheets"] = [
        _parse_dataclass(ContactSheet, sheet, folder / HEADER_FILE)
        for sheet in values.get("sheets") or []
    ]
    header = _parse_dataclass(SheetsHeader, values, folder / HEADER_FILE)
    names = [sheet.file for sheet in header.sheets]
    if not (
        0 < header.size <= MAX_IMAGE_SIZE and 0 < header.columns <= header.concepts <= MAX_CONCEPTS
    ):
        raise _damaged_file_error(folder / HEADER_FILE, "its sizes are out of bounds")
    if (
        not names
        or any(Path(n).name != n or not n.endswith(".webp") for n in names)
        or "en" not in header.languages
    ):
        raise _damaged_file_error(
            folder / HEADER_FILE, "it lists no sheets, sheets outside of its folder, or no English"
        )
    return header


def _load_drawings(
    folder: Path, header: SheetsHeader, sheets: list[ContactSheet], concepts: list[dict[str, Any]]
) -> np.ndarray:
    """uint8 [N, size, size, 3], in the order of the rows."""
    present = [
        np.array([sheet.style in concept["styles"] for concept in concepts], bool)
        for sheet in sheets
    ]
    out = np.empty(
        (sum(map(int, (p.sum() for p in present))), header.size, header.size, 3), np.uint8
    )
    start = 0
    for sheet, here in zip(sheets, present, strict=True):
        if here.sum() != sheet.drawings:
            raise _damaged_file_error(
                folder / CONCEPTS_FILE,
                f"it lists {here.sum()} drawings of {sheet.style}, not {sheet.drawings}",
            )
        out[start : start + sheet.drawings] = _load_sheet_cells(
            folder / sheet.file, sheet.sha256, header
        )[: len(here)][here]
        start += sheet.drawings
    return out


def _load_sheet_cells(path: Path, sha256: str, header: SheetsHeader) -> np.ndarray:
    """The cells of one sheet in reading order: uint8 [rows * columns, size, size, 3], a view."""
    size, columns, rows = header.size, header.columns, -(-header.concepts // header.columns)
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
    return (
        pixels.reshape(rows, size, columns, size, 3)
        .swapaxes(1, 2)
        .reshape(rows * columns, size, size, 3)
    )


def _read_concepts(folder: Path, header: SheetsHeader) -> Iterator[dict[str, Any]]:
    path = folder / CONCEPTS_FILE
    lines = _read_bytes(path).splitlines()
    if len(lines) != header.concepts:
        raise _damaged_file_error(path, f"it has {len(lines)} lines, not {header.concepts}")
    for line in lines:
        concept = _parse_json_object(path, line)
        if set(concept) != {
            "code",
            "emoji",
            "category",
            "family",
            "split",
            "label",
            "keywords",
            "styles",
        }:
            raise _damaged_file_error(path, f"a line has the keys {', '.join(sorted(concept))}")
        kinds = {"label": dict, "keywords": dict, "styles": list}
        right = all(isinstance(value, kinds.get(key, str)) for key, value in concept.items())
        if not right or "en" not in concept["label"]:
            raise _damaged_file_error(
                path,
                f"the line of {concept['code']!r} has values of another kind than they should be",
            )
        yield concept


def _build_captions(
    concepts: list[dict[str, Any]], language: str, mode: CaptionMode
) -> dict[str, list[str] | None]:
    """Code of a concept -> its captions in one language; None where it has no name there."""
    if mode not in get_args(CaptionMode):
        raise SensoriumError(
            f"captions={mode!r} is not known; choose {', '.join(get_args(CaptionMode))}."
        )
    lists = {}
    for concept in concepts:
        label, words = concept["label"].get(language), concept["keywords"].get(language)
        if words and mode == "joined":
            words = [", ".join(words)]
        if words and mode == "varied":
            words = _sample_captions(label, words, concept["code"] + language)
        lists[concept["code"]] = (
            None if label is None else [label, *words] if words and mode != "label" else [label]
        )
    return lists


def _sample_captions(label: str, keywords: list[str], seed: str) -> list[str]:
    """What stands beside the name in "varied" captions; the same for the same seed."""
    rng = np.random.default_rng(list(hashlib.md5(seed.encode()).digest()))
    few = [", ".join(rng.permutation(keywords)[: rng.integers(1, 5)]) for _ in range(4)]
    return [label, f"{label}, {few[0]}", f"{label}, {few[1]}", few[2], few[3]]


def _row_split(concept_split: str, artist: str, test_artist: str, val_artist: str) -> str:
    side = "test" if artist == test_artist else "val" if artist == val_artist else "train"
    name = _SPLIT_NAMES.get((concept_split, side), "spare")
    return "val" if name == "val_concept" and not val_artist else name


def _check_names(kind: str, requested: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    requested = (
        [requested]
        if isinstance(requested, str)
        else list(dict.fromkeys(available if requested is None else requested))
    )
    for name in requested:
        if name not in available:
            raise SensoriumError(
                f"the set has no {kind} {name!r}; it has {', '.join(dict.fromkeys(available))}."
            )
    return requested


def _parse_dataclass(cls: type[T], values: Any, path: Path) -> T:
    """A dataclass from JSON: exactly its fields, each of its type."""
    names = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or set(values) != set(names):
        raise _damaged_file_error(
            path, f"{cls.__name__.lower()} must have the keys {', '.join(names)}"
        )
    for name, value in values.items():
        kind = names[name].type
        if type(value) is not getattr(kind, "__origin__", kind):
            raise _damaged_file_error(path, f"{name} is {value!r}")
    return cls(**values)


def _parse_json_object(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise _damaged_file_error(path, f"it is not JSON: {e}") from e
    if not isinstance(value, dict):
        raise _damaged_file_error(path, "it is not a JSON object")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise _damaged_file_error(path, e.strerror or str(e)) from e


def _damaged_file_error(path: Path, reason: str) -> SensoriumError:
    return SensoriumError(
        f"{path} cannot be used: {reason}. Build the set again (sensorium data build emoji), or, if it "
        "is the embedded one, install Sensorium again."
    )
