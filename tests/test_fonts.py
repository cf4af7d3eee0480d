"""Tests of text in images: a font that has every letter, or a note; never a box.

They pass without any font of the system; those marked `system_fonts` need one with the letters.
"""

# pyright: reportPrivateUsage=false

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.io import fonts
from sensorium.io.fonts import clean_text, default_font, fit_line, has_glyphs, needs_shaping
from sensorium.search.render import render_contact_sheet
from sensorium.search.results import Hit, RowInfo, SearchResult

SIZE = 16
SCRIPTS = {
    "Cyrillic": "Привет мир",
    "Greek": "ελληνικά",
    "Japanese": "猫が好き",
    "Korean": "고양이",
    "mixed": "猫 cat Кот",
}
SHAPED = {"Arabic": "قطة جميلة", "Hebrew": "שלום עולם", "Hindi": "हिन्दी बिल्ली", "Thai": "ภาษาไทย"}
CACHES = ("_find_font", "_candidates", "_font_files", "_open_font", "_has_glyph", "_has_shaping")


def clear_caches() -> None:
    for name in CACHES:
        getattr(fonts, name).cache_clear()


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the fonts of the system: Pillow's own is the only one."""
    monkeypatch.setattr(fonts.shutil, "which", lambda _: None)
    monkeypatch.setattr(fonts, "_font_folders", list)
    clear_caches()
    yield
    monkeypatch.undo()
    clear_caches()


def draw_line(text: str, width: int = 400) -> np.ndarray | None:
    line = fit_line(text, SIZE, width)
    if line is None:
        return None
    image = Image.new("L", (width, 2 * SIZE))
    line.draw(ImageDraw.Draw(image), (0, 4), "white")
    return np.asarray(image)


def make_result(captions: list[str], query: str = "cat") -> SearchResult:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    hits = [Hit(i, 0.5, RowInfo(f"{i}.png", "image", [c])) for i, c in enumerate(captions)]
    return SearchResult(query, hits, [out.getvalue()] * len(hits))


def open_sheet(result: SearchResult) -> Image.Image:
    return Image.open(io.BytesIO(render_contact_sheet([result])))


# Pillow's font alone


@pytest.mark.usefixtures("no_system_fonts")
def test_latin_is_drawn_without_a_font_of_the_system() -> None:
    drawn = draw_line("a cat, 2 dogs")
    assert drawn is not None
    assert drawn.any()


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize("text", [*SCRIPTS.values(), *SHAPED.values(), "🦫", "a 猫"])
def test_letters_without_a_font_are_not_drawn(text: str) -> None:
    assert fit_line(text, SIZE, 400) is None


@pytest.mark.usefixtures("no_system_fonts")
def test_glyphs_are_told_from_the_box() -> None:
    font = default_font(SIZE)
    assert font is not None
    assert has_glyphs(font, "abcXYZ019.,:;-_()[]/&%<>")
    assert not has_glyphs(font, "猫")
    assert not has_glyphs(font, "aК")  # noqa: RUF001
    assert has_glyphs(font, "")


@pytest.mark.usefixtures("no_system_fonts")
def test_sheet_says_that_texts_are_left_out() -> None:
    plain, left_out = open_sheet(make_result(["cat"])), open_sheet(make_result(["猫"]))
    assert left_out.height == plain.height + 28
    footer = np.asarray(left_out.convert("L"))[plain.height :]
    assert footer.min() < 160, "the line at the end is drawn"
    named = open_sheet(make_result(["[0.png]"]))
    rows = slice(0, plain.height)
    assert np.array_equal(np.asarray(left_out)[rows], np.asarray(named)[rows])


@pytest.mark.usefixtures("no_system_fonts")
def test_query_and_names_without_a_font_have_a_stand_in() -> None:
    result = SearchResult("猫", [Hit(0, 0.5, RowInfo("猫.png", "image", ["猫"]))], [b""])
    expected = SearchResult("[query]", [Hit(0, 0.5, RowInfo("a", "image", ["[caption]"]))], [b""])
    sheet, other = open_sheet(result), open_sheet(expected)
    assert np.array_equal(np.asarray(sheet)[: other.height], np.asarray(other))


@pytest.mark.usefixtures("no_system_fonts")
def test_sample_sheet_says_that_a_caption_is_left_out() -> None:
    image = Image.new("RGB", (8, 8), "red")
    sheets = [
        np.asarray(draw_contact_sheet([(text, [image])]))
        for text in ("猫", "犬", "[no font here has the letters of this text]", "cat")
    ]
    assert np.array_equal(sheets[0], sheets[1])
    assert (sheets[0] < 200).any()
    assert not np.array_equal(sheets[0], sheets[3])


# Fitting


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize("width", [20, 60, 200])
def test_long_text_is_cut_to_the_width(width: int) -> None:
    line = fit_line("many words " * 100, SIZE, width)
    assert line is not None
    assert line.width <= width
    assert line.runs[-1][0].endswith("…")
    longer = fit_line("many words " * 100, SIZE, width + 40)
    assert longer is not None
    assert longer.width > line.width


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  two\n lines\t here ", "two lines here"),
        ("\u202eevil\u202c text\u200b", "evil text"),
        ("e\u0301", "é"),
        ("heart\ufe0f", "heart"),
        ("a\x00\x1b[31mb", "a[31mb"),
        ("می\u200cخواهم", "می\u200cخواهم"),  # noqa: RUF001
        ("x" * 999, "x" * 200),
        ("\U0001f9ab", "\U0001f9ab"),
    ],
)
def test_invisible_marks_are_left_out(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@pytest.mark.parametrize("text", [*SHAPED.values(), "ŏ̈", "a̱"])
def test_scripts_that_need_shaping(text: str) -> None:
    assert needs_shaping(clean_text(text))


@pytest.mark.parametrize("text", ["plain", "é ü ß", *SCRIPTS.values()])
def test_scripts_that_need_no_shaping(text: str) -> None:
    assert not needs_shaping(clean_text(text))


@pytest.mark.parametrize("text", SHAPED.values())
def test_without_shaping_such_scripts_are_not_drawn(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear_caches()
    monkeypatch.setattr(fonts.features, "check", lambda _: False)
    assert fit_line(text, SIZE, 400) is None
    assert fit_line("cat", SIZE, 400) is not None
    monkeypatch.undo()
    clear_caches()


# Fonts of the system


def test_fonts_in_the_usual_folders_are_found_without_fontconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    font = default_font(SIZE)
    assert font is not None
    content = font.font_bytes
    for name in ("x/Zapf.ttf", "x/NotoSans-Bold.ttf", "x/NotoSans-Regular.ttf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "x" / "Arial.ttf").write_bytes(b"no font")
    (tmp_path / "x" / "readme.txt").write_bytes(b"")
    monkeypatch.setattr(fonts.shutil, "which", lambda _: None)
    monkeypatch.setattr(fonts, "_font_folders", lambda: [str(tmp_path), str(tmp_path / "none")])
    monkeypatch.setattr(fonts, "default_font", lambda _: None)
    clear_caches()
    names = [Path(path).name for path in fonts._font_files()]
    assert names == ["Arial.ttf", "NotoSans-Regular.ttf", "NotoSans-Bold.ttf", "Zapf.ttf"]
    line = fit_line("cat", SIZE, 400)
    assert line is not None
    assert str(line.runs[0][1].path).endswith("NotoSans-Regular.ttf")
    assert fit_line("猫", SIZE, 400) is None
    monkeypatch.undo()
    clear_caches()


@pytest.mark.parametrize("text", [*SCRIPTS.values(), *SHAPED.values()])
def test_scripts_of_the_world_are_drawn_with_fonts_of_the_system(text: str) -> None:
    line = fit_line(text, SIZE, 400)
    if line is None:
        pytest.skip("no font of the system has these letters")
    for run, font in line.runs:
        assert has_glyphs(font, set(run) - {" "})
    drawn = draw_line(text)
    assert drawn is not None
    assert drawn.any()


def test_a_text_in_two_scripts_is_drawn_in_runs() -> None:
    line = fit_line("हिन्दी cat", SIZE, 400)
    if line is None:
        pytest.skip("no font of the system has these letters")
    assert "".join(run for run, _ in line.runs) == "हिन्दी cat"
    assert line.runs[0][0].strip() in ("हिन्दी", "हिन्दी cat")
