"""Build a set of emoji contact sheets, which `emoji` reads, from packages of drawings and names.

The bundled set was made with

    python -c "from sensorium.data.bundled.emoji_build import build_emoji as b;
    b('src/sensorium/data/bundled/assets/emoji', size=32)"

and `sensorium data build emoji --full` makes the full one: ten styles, 28 languages, 64 pixels. The
same packages give the same pixels and texts; the files are identical where the same version of
Pillow writes them.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium.data.bundled import emoji
from sensorium.data.bundled.emoji_draw import draw_sheet, import_renderer, num_sheet_columns
from sensorium.data.bundled.emoji_names import Concept, ConceptMatcher, concept_split, read_concepts
from sensorium.data.bundled.emoji_packages import (
    LANGUAGES,
    NAMES_PACKAGE,
    PERMISSIVE_LICENCES,
    STYLE_PACKAGES,
    Package,
    PackageContents,
    fetch_packages,
    find_tarballs,
    open_package,
)
from sensorium.data.bundled.emoji_pixels import PixelSimilarity, measure_pixel_similarity
from sensorium.errors import SensoriumError
from sensorium.io import atomic

BUNDLED_LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "nl", "ru", "ja", "zh")
ATTRIBUTION_FILE = "ATTRIBUTION.md"
MIN_IMAGE_SIZE = 8
MAX_SKIPPED_FRACTION = 0.01  # of the drawings of a style


@dataclass(frozen=True)
class EmojiBuildReport:
    """Contents of a set that was built.

    Attributes:
        folder: where it is.
        size: side of a drawing in pixels.
        concepts: number of concepts.
        families: number of families of concepts.
        languages: languages of names and keywords.
        drawings: style -> number of drawings.
        splits: split -> number of drawings.
        neighbours: artist -> similarity to other artists, the lowest first.
        skipped: drawings that were left out, with the reason.
        megabytes: size of the folder.
        seconds: time of the build.
    """

    folder: Path
    size: int
    concepts: int
    families: int
    languages: tuple[str, ...]
    drawings: dict[str, int]
    splits: dict[str, int]
    neighbours: dict[str, PixelSimilarity]
    skipped: tuple[str, ...]
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {sum(self.drawings.values()):,} drawings of {self.concepts:,} "
            f"concepts ({self.families:,} families), {len(self.languages)} languages, "
            f"{self.size} pixels, {self.megabytes:.1f} MB, {self.seconds:.0f} s",
            "  styles  " + ", ".join(f"{name} {n:,}" for name, n in self.drawings.items()),
            "  splits  " + ", ".join(f"{name} {n:,}" for name, n in self.splits.items()),
        ]
        lines += [
            f"  {artist:<18} nearest shows same concept {n.same:.3f}, near duplicate {n.twin:.3f} "
            f"of {n.drawings:,}"
            for artist, n in self.neighbours.items()
        ]
        lines += [f"  skipped {drawing}" for drawing in self.skipped]
        return "\n".join(lines)


def build_emoji(
    output_folder: str | Path,
    *,
    full: bool = False,
    size: int = 64,
    languages: Sequence[str] | None = None,
    include_flags: bool = False,
    packages_folder: str | Path | None = None,
    log: Callable[[str], object] = print,
) -> EmojiBuildReport:
    """Build a set of contact sheets, replacing an existing set.

    Args:
        output_folder: the folder to write.
        full: use all ten styles and 28 languages and hold out two artists. Two of the styles are
            CC-BY-SA: do not redistribute them under another licence. Otherwise the eight styles
            under Apache-2.0, MIT or CC-BY-4.0, ten languages and one held-out artist.
        size: side of a drawing in pixels.
        languages: languages of names and keywords, instead of the default.
        include_flags: include the 270 flags.
        packages_folder: a folder with the tarballs; None: fetch them with npm.
        log: called with progress messages.

    Raises:
        SensoriumError: if a package is missing, broken, unsafe or under another licence, or if
            the output folder holds other files.
    """
    start, folder = time.monotonic(), Path(output_folder)
    codes = _check_languages(languages or (LANGUAGES if full else BUNDLED_LANGUAGES))
    _check_size(size)
    import_renderer()
    _check_output_folder(folder)
    styles = [style for style in STYLE_PACKAGES if full or style.licence in PERMISSIVE_LICENCES]
    with atomic.working_folder(folder) as work:
        if packages_folder is None:
            log(f"fetching {len(styles) + 1} packages (about {36 if full else 31} MB)")
            fetch_packages(work, [NAMES_PACKAGE, *styles])
        names, icons = _open_packages(Path(packages_folder or work), styles, codes)
        concepts = read_concepts(names, codes, include_flags)
        staging = work / "set"
        staging.mkdir()
        sheets, skipped = _draw_sheets(staging, icons, concepts, size, log)
        lines = b"".join(_concept_json_line(concept) for concept in concepts)
        (staging / emoji.CONCEPTS_FILE).write_bytes(lines)
        log("measuring the similarity of artists")
        header = _hold_out_artists(staging, _build_header(size, concepts, codes, sheets), full)
        (staging / ATTRIBUTION_FILE).write_bytes(_format_attribution(names, header, full))
        _move_into_place(staging, folder)
    return _build_report(folder, header, concepts, skipped, time.monotonic() - start)


def _build_header(
    size: int,
    concepts: list[Concept],
    languages: Sequence[str],
    sheets: list[emoji.ContactSheet],
) -> emoji.SheetsHeader:
    """The header of a set that holds out no artist yet."""
    return emoji.SheetsHeader(
        format=emoji.FORMAT_NAME,
        version=emoji.FORMAT_VERSION,
        size=size,
        columns=num_sheet_columns(concepts),
        concepts=len(concepts),
        languages=list(languages),
        test_artist="",
        val_artist="",
        neighbours={},
        sheets=sheets,
    )


def _check_size(size: int) -> None:
    if not MIN_IMAGE_SIZE <= size <= emoji.MAX_IMAGE_SIZE:
        raise SensoriumError(
            f"--size {size} is out of bounds. "
            f"Choose {MIN_IMAGE_SIZE} to {emoji.MAX_IMAGE_SIZE} pixels."
        )


def _check_languages(requested: Sequence[str]) -> tuple[str, ...]:
    """The distinct languages, English first."""
    for code in requested:
        if code not in LANGUAGES:
            raise SensoriumError(
                f"There are no emoji names in {code!r}. Choose from {', '.join(LANGUAGES)}."
            )
    return tuple(dict.fromkeys(["en", *requested]))


def _open_packages(
    folder: Path, styles: list[Package], languages: Sequence[str]
) -> tuple[PackageContents, list[PackageContents]]:
    """The package of names, and those of the styles."""
    paths = find_tarballs(folder, [NAMES_PACKAGE, *styles])
    name_files = [f"{code}/data.json" for code in languages]
    names = open_package(paths[NAMES_PACKAGE.name], NAMES_PACKAGE, name_files)
    icon_files = ["icons.json", "chars.json"]
    return names, [open_package(paths[style.name], style, icon_files) for style in styles]


def _check_output_folder(folder: Path) -> None:
    """Check that a folder is new, empty, or a set of sheets that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise SensoriumError(f"{folder} is a file. Choose a new or empty folder.")
    own = {emoji.HEADER_FILE, emoji.CONCEPTS_FILE, ATTRIBUTION_FILE}
    others = [
        path.name
        for path in folder.glob("*")
        if path.name not in own and path.suffix not in (".webp", ".tmp")
    ]
    if others:
        examples = ", ".join(sorted(others)[:3])
        raise SensoriumError(
            f"{folder} holds other files ({examples}). Choose a new or empty folder."
        )


def _move_into_place(staging_folder: Path, folder: Path) -> None:
    """Move the finished set into its folder.

    The old header is deleted first and the new one written last, so that half a set is no set.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
        for old in [folder / emoji.HEADER_FILE, *folder.glob("*.webp")]:
            old.unlink(missing_ok=True)
    except OSError as e:
        raise SensoriumError(
            f"{folder} cannot be written: {e.strerror or e}. Choose another folder."
        ) from e
    paths = sorted(staging_folder.iterdir(), key=lambda p: (p.name == emoji.HEADER_FILE, p.name))
    for path in paths:
        atomic.write_file(folder / path.name, path.read_bytes())


def _draw_sheets(
    staging_folder: Path,
    icon_packages: list[PackageContents],
    concepts: list[Concept],
    size: int,
    log: Callable[[str], object],
) -> tuple[list[emoji.ContactSheet], list[str]]:
    """Write one sheet per style; return the sheets and the skipped drawings."""
    matcher = ConceptMatcher(concepts, icon_packages)
    sheets: list[emoji.ContactSheet] = []
    skipped: list[str] = []
    for i, icons in enumerate(icon_packages):
        package = icons.package
        log(f"drawing {package.style} ({i + 1} of {len(icon_packages)})")
        skipped_here: list[str] = []
        pixels = draw_sheet(icons, matcher, concepts, size, skipped_here)
        drawings = sum(package.style in concept.styles for concept in concepts)
        if not drawings or len(skipped_here) > MAX_SKIPPED_FRACTION * drawings + 1:
            raise SensoriumError(
                f"{icons.path}: {drawings} drawings are usable, {len(skipped_here)} are not "
                f"({'; '.join(skipped_here[:3])}). Fetch {package.name}@{package.version}."
            )
        skipped += skipped_here
        sheets.append(_write_sheet(staging_folder, icons, pixels, drawings))
    return sheets, skipped


def _write_sheet(
    staging_folder: Path, icons: PackageContents, pixels: np.ndarray, drawings: int
) -> emoji.ContactSheet:
    """Write the sheet of one style."""
    package = icons.package
    file = staging_folder / f"{package.style}.webp"
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=75, method=6)
    return emoji.ContactSheet(
        style=package.style,
        artist=package.artist,
        file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        drawings=drawings,
        package=package.name,
        version=icons.version,
        licence=package.licence,
        author=package.author,
        project=package.project,
    )


def _concept_json_line(concept: Concept) -> bytes:
    """The line of concepts.jsonl, without keywords that repeat the name."""
    keywords = {}
    for language, words in concept.keywords.items():
        label = concept.label[language].lower()
        keywords[language] = [word for word in dict.fromkeys(words) if word.lower() != label]
    values = {**asdict(concept), "keywords": keywords, "split": concept_split(concept.family)}
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def _hold_out_artists(
    staging_folder: Path, header: emoji.SheetsHeader, full: bool
) -> emoji.SheetsHeader:
    """Write the header, with the artists least similar to the others held out (full: two)."""
    atomic.write_json(staging_folder / emoji.HEADER_FILE, asdict(header))
    similarity = measure_pixel_similarity(emoji.open_sheets(staging_folder, languages=["en"]))
    ranked = sorted(similarity, key=lambda artist: similarity[artist].same)
    header = replace(
        header,
        test_artist=ranked[0] if len(ranked) > 1 else "",
        val_artist=ranked[1] if full and len(ranked) > 2 else "",
        neighbours={artist: asdict(similarity[artist]) for artist in ranked},
    )
    atomic.write_json(staging_folder / emoji.HEADER_FILE, asdict(header))
    return header


def _build_report(
    folder: Path,
    header: emoji.SheetsHeader,
    concepts: list[Concept],
    skipped: list[str],
    seconds: float,
) -> EmojiBuildReport:
    table = emoji.open_sheets(folder, languages=["en"], captions="label")
    return EmojiBuildReport(
        folder=folder,
        size=header.size,
        concepts=len(concepts),
        families=len({concept.family for concept in concepts}),
        languages=tuple(header.languages),
        drawings={sheet.style: sheet.drawings for sheet in header.sheets},
        splits=dict(Counter(table.columns["split"])),
        neighbours={
            artist: PixelSimilarity(int(n["drawings"]), n["same"], n["twin"])
            for artist, n in header.neighbours.items()
        },
        skipped=tuple(skipped),
        megabytes=sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
        seconds=seconds,
    )


def _format_attribution(
    names_package: PackageContents, header: emoji.SheetsHeader, full: bool
) -> bytes:
    """The text of ATTRIBUTION.md."""
    rows = [
        f"| `{s.file}` | {s.author} | <{s.project}> | {s.licence} | `{s.package}` {s.version} "
        f"| {s.drawings:,} |"
        for s in header.sheets
    ]
    similarity = [
        f"| {artist} | {n['drawings']:,} | {n['same']:.3f} | {n['twin']:.3f} |"
        for artist, n in header.neighbours.items()
    ]
    names = (
        f"`{NAMES_PACKAGE.name}` {names_package.version}, {NAMES_PACKAGE.author}, "
        f"<{NAMES_PACKAGE.project}>, {NAMES_PACKAGE.licence}"
    )
    return _ATTRIBUTION_TEMPLATE.format(
        size=header.size,
        rows="\n".join(rows),
        similarity="\n".join(similarity),
        test=header.test_artist or "nobody",
        val=f" for tests and {header.val_artist} for validation" if header.val_artist else "",
        names=names,
        languages=", ".join(header.languages),
        warning=_SHARE_ALIKE_NOTICE if full else "",
        notices=(emoji.BUNDLED_FOLDER.parent / "NOTICES.md").read_text("utf-8"),
    ).encode()


_SHARE_ALIKE_NOTICE = """
**The CC-BY-SA sheets are share-alike**: works derived from them must be published under
CC-BY-SA-4.0.
"""
_ATTRIBUTION_TEMPLATE = """# Attribution

Drawings of emoji by several artists, and their names and keywords in {languages}.
`sensorium data build emoji` made these files from the packages below. **Changes**: each drawing was
rasterised from SVG to {size} x {size} pixels on white and placed on one sheet per style; names and
keywords were merged per emoji into `concepts.jsonl`. Nothing was redrawn. None of the authors
endorses this use.

| sheet | author | project | licence | package | drawings |
|---|---|---|---|---|---|
{rows}

Names and keywords (`concepts.jsonl`): {names}, from Unicode CLDR, (c) Unicode, Inc., Unicode-3.0.
{warning}
## Similarity of artists

Fraction of an artist's drawings whose nearest neighbour in pixels among all other artists' shows
the same concept, and fraction with a near duplicate there (cosine above 0.95), both at 32 pixels.
Held out is {test}{val}.

| artist | drawings | same concept | near duplicates |
|---|---|---|---|
{similarity}

{notices}"""
