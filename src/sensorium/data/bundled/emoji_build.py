"""Builds a set of emoji contact sheets (`emoji.py` reads it) from packages of drawings and names.

The embedded set was made with

    python -c "import sensorium.data.emoji_build as b; b.build_emoji('src/sensorium/data/embedded/emoji', size=32)"

and `sensorium data build emoji --full` makes the full one: ten styles, 28 languages, 64 pixels. On the same packages,
the same pixels and words come out; the files are the same bytes where the same version of Pillow writes them.
"""

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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


@dataclass(frozen=True)
class EmojiBuildReport:
    """What was built."""

    folder: Path
    size: int
    concepts: int
    families: int
    languages: tuple[str, ...]
    drawings: dict[str, int]  # style -> how many
    splits: dict[str, int]
    neighbours: dict[str, PixelSimilarity]  # artist -> how hard
    skipped: tuple[str, ...]  # drawings left out, and why
    megabytes: float
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"{self.folder}: {sum(self.drawings.values()):,} drawings of {self.concepts:,} concepts "
            f"({self.families:,} families), {len(self.languages)} languages, {self.size} pixels, "
            f"{self.megabytes:.1f} MB, {self.seconds:.0f} s",
            "  styles  " + ", ".join(f"{name} {n:,}" for name, n in self.drawings.items()),
            "  splits  " + ", ".join(f"{name} {n:,}" for name, n in self.splits.items()),
            *(
                f"  {artist:<18} found by pixels {n.same:.3f}, near twins {n.twin:.3f} of {n.drawings:,}"
                for artist, n in self.neighbours.items()
            ),
            *(f"  skipped {what}" for what in self.skipped),
        ]
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
    """Build a set of contact sheets in the folder `out`, replacing a set that is there.

    full: all ten styles and 28 languages, two artists held out. Two of the styles are CC-BY-SA: use them, but do not
    ship them under another licence. Not full: the eight styles under Apache-2.0, MIT or CC-BY-4.0, ten languages, one
    artist held out. size: pixels of a drawing's side. flags: also the 270 flags.
    packages_folder: a folder with the tarballs; None: they are fetched with npm. say: where progress goes, a line at a time.
    Raises SensoriumError on a package that is missing, broken, unsafe or under another licence, or if `out` holds other
    files.
    """
    start, folder = time.monotonic(), Path(output_folder)
    codes = _check_languages(languages or (LANGUAGES if full else BUNDLED_LANGUAGES))
    if not 8 <= size <= emoji.MAX_IMAGE_SIZE:
        raise SensoriumError(
            f"size={size} is out of bounds; choose 8 to {emoji.MAX_IMAGE_SIZE} pixels."
        )
    import_renderer()
    _check_output_folder(folder)
    styles = [style for style in STYLE_PACKAGES if full or style.licence in PERMISSIVE_LICENCES]
    with tempfile.TemporaryDirectory() as work:
        if packages_folder is None:
            log(f"fetching {len(styles) + 1} packages (about {36 if full else 31} MB)")
            fetch_packages(Path(work), [NAMES_PACKAGE, *styles])
        names, sets = _open_packages(Path(packages_folder or work), styles, codes)
        concepts = read_concepts(names, codes, include_flags)
        stage = Path(work) / "set"
        stage.mkdir()
        sheets, skipped = _draw_sheets(stage, sets, concepts, size, log)
        (stage / emoji.CONCEPTS_FILE).write_bytes(
            b"".join(_concept_json_line(concept) for concept in concepts)
        )
        log("measuring how hard each artist is")
        header = _hold_out_artists(
            stage,
            emoji.SheetsHeader(
                emoji.FORMAT_NAME,
                emoji.FORMAT_VERSION,
                size,
                num_sheet_columns(concepts),
                len(concepts),
                list(codes),
                "",
                "",
                {},
                sheets,
            ),
            full,
        )
        (stage / ATTRIBUTION_FILE).write_bytes(_format_attribution(names, header, full))
        _move_into_place(stage, folder)
    return _build_report(folder, header, concepts, skipped, time.monotonic() - start)


def _check_languages(requested: Sequence[str]) -> tuple[str, ...]:
    for code in requested:
        if code not in LANGUAGES:
            raise SensoriumError(
                f"there are no emoji names in {code!r}; known are {', '.join(LANGUAGES)}."
            )
    return tuple(dict.fromkeys(["en", *requested]))


def _open_packages(
    folder: Path, styles: list[Package], languages: Sequence[str]
) -> tuple[PackageContents, list[PackageContents]]:
    paths = find_tarballs(folder, [NAMES_PACKAGE, *styles])
    return (
        open_package(
            paths[NAMES_PACKAGE.name], NAMES_PACKAGE, [f"{code}/data.json" for code in languages]
        ),
        [open_package(paths[style.name], style, ["icons.json", "chars.json"]) for style in styles],
    )


def _check_output_folder(folder: Path) -> None:
    """See that `folder` is new, empty, or a set of sheets that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise SensoriumError(f"{folder} is a file; choose a new or empty folder.")
    ours = {emoji.HEADER_FILE, emoji.CONCEPTS_FILE, ATTRIBUTION_FILE}
    other = [
        p.name for p in folder.glob("*") if p.name not in ours and p.suffix not in (".webp", ".tmp")
    ]
    if other:
        some = ", ".join(sorted(other)[:3])
        raise SensoriumError(f"{folder} holds other files ({some}); choose a new or empty folder.")


def _move_into_place(staging_folder: Path, folder: Path) -> None:
    """Put the finished set into `folder`. Its header goes first and comes back last: half a set is no set."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.remove_temporary_files(folder)
        for old in [folder / emoji.HEADER_FILE, *folder.glob("*.webp")]:
            old.unlink(missing_ok=True)
    except OSError as e:
        raise SensoriumError(
            f"could not write {folder}: {e.strerror or e}. Choose another place."
        ) from e
    for path in sorted(
        staging_folder.iterdir(), key=lambda p: (p.name == emoji.HEADER_FILE, p.name)
    ):
        atomic.write_file(folder / path.name, path.read_bytes())


def _draw_sheets(
    staging_folder: Path,
    icon_packages: list[PackageContents],
    concepts: list[Concept],
    size: int,
    log: Callable[[str], object],
) -> tuple[list[emoji.ContactSheet], list[str]]:
    """One sheet per set, written; and the drawings that could not be used, at most 1 % of them."""
    matcher, sheets, skipped = ConceptMatcher(concepts, icon_packages), [], []
    for i, icons in enumerate(icon_packages):
        about, left_out = icons.package, len(skipped)
        log(f"drawing {about.style} ({i + 1} of {len(icon_packages)})")
        sheet = draw_sheet(icons, matcher, concepts, size, skipped)
        drawings = sum(about.style in concept.styles for concept in concepts)
        if not drawings or len(skipped) - left_out > 0.01 * drawings + 1:
            some = "; ".join(skipped[left_out:][:3])
            raise SensoriumError(
                f"{icons.path}: {drawings} drawings could be used, {len(skipped) - left_out} could "
                f"not ({some}); fetch {about.name}@{about.version}."
            )
        file = staging_folder / f"{about.style}.webp"
        Image.fromarray(sheet).save(file, "WEBP", lossless=True, quality=75, method=6)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        sheets.append(
            emoji.ContactSheet(
                about.style,
                about.artist,
                file.name,
                sha256,
                drawings,
                about.name,
                icons.version,
                about.licence,
                about.author,
                about.project,
            )
        )
    return sheets, skipped


def _concept_json_line(concept: Concept) -> bytes:
    words = {
        language: [
            word for word in dict.fromkeys(words) if word.lower() != concept.label[language].lower()
        ]
        for language, words in concept.keywords.items()
    }
    values = {**asdict(concept), "keywords": words, "split": concept_split(concept.family)}
    return (json.dumps(values, ensure_ascii=False) + "\n").encode()


def _hold_out_artists(
    staging_folder: Path, header: emoji.SheetsHeader, full: bool
) -> emoji.SheetsHeader:
    """Write the header: how hard the artists are, and who is held out: the one (full: the two) pixels find least."""
    atomic.write_json(staging_folder / emoji.HEADER_FILE, asdict(header))
    neighbours = measure_pixel_similarity(emoji.open_sheets(staging_folder, languages=["en"]))
    ranked = sorted(neighbours, key=lambda artist: neighbours[artist].same)
    test, val = ranked[0] if len(ranked) > 1 else "", ranked[1] if full and len(ranked) > 2 else ""
    header = replace(
        header,
        test_artist=test,
        val_artist=val,
        neighbours={a: asdict(neighbours[a]) for a in ranked},
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
        folder,
        header.size,
        len(concepts),
        len({c.family for c in concepts}),
        tuple(header.languages),
        {s.style: s.drawings for s in header.sheets},
        dict(Counter(table.columns["split"])),
        {
            artist: PixelSimilarity(int(n["drawings"]), n["same"], n["twin"])
            for artist, n in header.neighbours.items()
        },
        tuple(skipped),
        sum(p.stat().st_size for p in folder.iterdir()) / 1e6,
        seconds,
    )


def _format_attribution(
    names_package: PackageContents, header: emoji.SheetsHeader, full: bool
) -> bytes:
    rows = [
        f"| `{s.file}` | {s.author} | <{s.project}> | {s.licence} | `{s.package}` {s.version} | {s.drawings:,} |"
        for s in header.sheets
    ]
    hard = [
        f"| {artist} | {n['drawings']:,} | {n['same']:.3f} | {n['twin']:.3f} |"
        for artist, n in header.neighbours.items()
    ]
    return _ATTRIBUTION_TEMPLATE.format(
        size=header.size,
        rows="\n".join(rows),
        hard="\n".join(hard),
        test=header.test_artist or "nobody",
        val=f" for tests and {header.val_artist} for validation" if header.val_artist else "",
        names=f"`{NAMES_PACKAGE.name}` {names_package.version}, {NAMES_PACKAGE.author}, <{NAMES_PACKAGE.project}>, {NAMES_PACKAGE.licence}",
        languages=", ".join(header.languages),
        warning=_SHARE_ALIKE_NOTICE if full else "",
        notices=(emoji.BUNDLED_FOLDER.parent / "NOTICES.md").read_text("utf-8"),
    ).encode()


_SHARE_ALIKE_NOTICE = """
**The CC-BY-SA sheets are share-alike.** Use them as you like, but what you publish of them stays under CC-BY-SA-4.0.
"""
_ATTRIBUTION_TEMPLATE = """# Whose work this is

Drawings of emoji by several artists, and their names and keywords in {languages}.
`sensorium data build emoji` made these files from the packages below. **Changed**: each drawing was rasterised from SVG
to {size} x {size} pixels on white and placed on one sheet per style; names and keywords were put together per emoji in
`concepts.jsonl`. Nothing was redrawn. None of the authors endorses this use.

| sheet | author | project | licence | package | drawings |
|---|---|---|---|---|---|
{rows}

Names and keywords (`concepts.jsonl`): {names}, from Unicode CLDR, (c) Unicode, Inc., Unicode-3.0.
{warning}
## How hard each artist is

Share of an artist's drawings whose nearest neighbour in pixels among all other artists' shows the same concept, and
share with a near twin there (cosine above 0.95), both at 32 pixels. The lowest is the hardest; held out is {test}{val}.

| artist | drawings | found by pixels | near twins |
|---|---|---|---|
{hard}

{notices}"""
