"""Emoji sets: contents of the bundled one, building and reading a set, and hostile packages."""

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import numpy as np
import pytest

from sensorium.data.bundled import emoji_build, emoji_packages
from sensorium.data.bundled.emoji import BUNDLED_FOLDER, open_sheets, read_sheets_header
from sensorium.data.bundled.emoji_build import build_emoji
from sensorium.data.bundled.emoji_draw import check_svg
from sensorium.data.bundled.emoji_names import concept_family, concept_split
from sensorium.data.bundled.emoji_packages import NAMES_PACKAGE, PERMISSIVE_LICENCES, STYLE_PACKAGES
from sensorium.data.bundled.emoji_pixels import measure_pixel_similarity
from sensorium.data.bundled.registry import BUNDLED_DATASETS, is_sheets_folder
from sensorium.errors import SensoriumError


@pytest.fixture(scope="module")
def table():
    return BUNDLED_DATASETS["emoji"]()


# The bundled set


def test_bundled_counts(table):
    c = table.columns
    assert len(table) == len(c["image"]) == 9770
    assert all(len(column) == 9770 for column in c.values())
    assert c["image"].shape == (9770, 32, 32, 3)
    assert c["image"].dtype == np.uint8
    assert len(set(c["concept"])) == 1644
    assert len(set(c["family"])) == 1281
    assert len(set(c["category"])) == 8
    assert Counter(c["style"]) == {
        "noto": 1644,
        "twemoji": 1644,
        "fluent-emoji": 1587,
        "fluent-emoji-flat": 1587,
        "noto-v1": 1214,
        "emojione": 1086,
        "streamline-emojis": 542,
        "fxemoji": 466,
    }
    assert len(set(table.locations)) == 9770
    assert c["image"].min(axis=(1, 2, 3)).max() <= 250, "no drawing is blank"


def test_bundled_splits_cross_concepts_and_artists(table):
    c = table.columns
    assert Counter(c["split"]) == {
        "train": 7411,
        "val": 908,
        "test_unseen_concept": 909,
        "test_unseen_artist": 433,
        "test_unseen_both": 58,
        "extra": 51,
    }
    unseen = ("test_unseen_artist", "test_unseen_both")
    assert {a for a, s in zip(c["artist"], c["split"], strict=True) if s in unseen} == {
        "streamline"
    }
    concept_splits = {
        "test_unseen_artist": "train",
        "test_unseen_both": "test",
        "test_unseen_concept": "test",
    }
    by_family = {}
    for name, split in zip(c["family"], c["split"], strict=True):
        by_family.setdefault(name, set()).add(concept_splits.get(split, split))
    for name, splits in by_family.items():
        assert len(splits - {"extra"}) <= 1, f"family {name} is in two splits: {splits}"
        assert splits <= {concept_split(name), "extra"}
    concepts = {}
    for concept, name in zip(c["concept"], c["family"], strict=True):
        assert concepts.setdefault(concept, name) == name == concept_family(concept)


def test_styles_of_the_test_artist_are_not_in_training(table):
    c = table.columns
    artists = dict(zip(c["style"], c["artist"], strict=True))
    assert artists["fluent-emoji"] == artists["fluent-emoji-flat"]
    held_out = {
        a
        for a, s in zip(c["artist"], c["split"], strict=True)
        if s in ("test_unseen_artist", "test_unseen_both")
    }
    assert held_out == {"streamline"}
    assert not held_out & {a for a, s in zip(c["artist"], c["split"], strict=True) if s == "train"}


def test_test_artist_has_the_lowest_recorded_similarity():
    header = read_sheets_header(BUNDLED_FOLDER)
    assert header.test_artist == min(
        header.neighbours, key=lambda artist: header.neighbours[artist]["same"]
    )
    assert header.neighbours["streamline"] == {"drawings": 542, "same": 0.236, "twin": 0.006}


@pytest.mark.slow
def test_recorded_similarity_is_reproduced(table):
    recorded = read_sheets_header(BUNDLED_FOLDER).neighbours
    for artist, similarity in measure_pixel_similarity(table).items():
        assert similarity.same == pytest.approx(recorded[artist]["same"], abs=0.002), artist
        assert similarity.twin == pytest.approx(recorded[artist]["twin"], abs=0.002), artist


def test_bundled_languages(table):
    captions = {name for name in table.columns if name.startswith("caption")}
    assert captions == {
        "caption",
        *(f"caption_{code}" for code in ("de", "fr", "es", "it", "pt", "nl", "ru", "ja", "zh")),
    }
    row = table.locations.index("noto.webp:red apple")
    assert table.columns["caption"][row][0] == "red apple"
    assert table.columns["caption_de"][row][0] == "roter Apfel"
    assert table.columns["caption_fr"][row][0] == "pomme rouge"
    assert all(captions and all(captions) for name in captions for captions in table.columns[name])
    each = open_sheets(BUNDLED_FOLDER, languages=["en"], styles=["noto"], captions="each")
    assert len(each) == 1644
    assert len(each.columns["caption"][each.locations.index("noto.webp:red apple")]) > 2


def test_bundled_licences_and_size(table):
    header, text = (
        read_sheets_header(BUNDLED_FOLDER),
        (BUNDLED_FOLDER / "ATTRIBUTION.md").read_text("utf-8"),
    )
    for sheet in header.sheets:
        assert sheet.licence in PERMISSIVE_LICENCES
        assert all(
            part in text
            for part in (sheet.author, sheet.project, sheet.licence, sheet.package, sheet.version)
        )
    assert "Unicode, Inc." in text
    assert "Miles Johnson" in text
    assert "Permission is hereby granted" in text
    assert sum(path.stat().st_size for path in BUNDLED_FOLDER.iterdir()) <= 8e6
    assert {path.name for path in BUNDLED_FOLDER.iterdir()} == {
        "ATTRIBUTION.md",
        "concepts.jsonl",
        "sheets.json",
        *(sheet.file for sheet in header.sheets),
    }


def test_other_artists_can_be_held_out():
    one = open_sheets(BUNDLED_FOLDER, languages=["en"], test_artist="twitter", val_artist="mozilla")
    pairs = {(a, s) for a, s in zip(one.columns["artist"], one.columns["split"], strict=True)}
    assert {a for a, s in pairs if s == "test_unseen_artist"} == {"twitter"}
    assert {a for a, s in pairs if s == "val"} == {"mozilla"}
    with pytest.raises(SensoriumError, match="no artist 'banksy'"):
        open_sheets(BUNDLED_FOLDER, test_artist="banksy")
    with pytest.raises(SensoriumError, match="no language 'tlh'"):
        open_sheets(BUNDLED_FOLDER, languages=["tlh"])


# Families


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("man running", "woman running facing right"),
        ("one o\u2019clock", "six-thirty"),
        ("full moon face", "waning crescent moon"),
        ("red heart", "two hearts"),
        ("left arrow", "up arrow"),
        ("kiss: man, man", "family: woman, girl"),
        ("magnifying glass tilted left", "magnifying glass tilted right"),
        ("keycap: 1", "input numbers"),
    ],
)
def test_similar_emoji_are_one_family(a, b):
    assert concept_family(a) == concept_family(b)


def test_different_concepts_are_different_families():
    labels = [
        "red apple",
        "green apple",
        "smiling face with hearts",
        "heart hands",
        "rocket",
        "flag: France",
    ]
    assert len({concept_family(label) for label in labels}) == len(labels)


# A tiny build from made-up packages

LABELS = [
    "red apple",
    "rocket",
    "dog face",
    "man running",
    "woman running",
    "tree",
    "fish",
    "house",
    "car",
    "moon",
]


def tarball(folder, package, members, name=None, licence=None, entry=None):
    metadata = {
        "name": name or package.name,
        "version": package.version,
        "license": licence or package.licence,
    }
    with tarfile.open(folder / package.tarball_name, "w:gz") as tar:
        for path, content in {"package.json": metadata, **members}.items():
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{path}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
        if entry:
            tar.addfile(entry)


def body(style, concept):
    fill = f"#{concept * 9:02d}{style * 9:02d}40"
    return f'<circle cx="{3 + concept}" cy="{8 + style % 3}" r="{2 + style / 3}" fill="{fill}"/>'


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    names = [
        {
            "hexcode": f"1F{i:03X}-FE0F",
            "emoji": chr(0x1F000 + i),
            "label": label,
            "tags": ["thing", label],
            "group": 7,
        }
        for i, label in enumerate(LABELS)
    ]
    german = [{**entry, "label": f"de {entry['label']}", "tags": []} for entry in names]
    tarball(
        folder,
        NAMES_PACKAGE,
        {
            "en/data.json": names,
            "de/data.json": german,
            **{
                f"{code}/data.json": names
                for code in emoji_packages.LANGUAGES
                if code not in ("en", "de")
            },
        },
    )
    for s, style in enumerate(STYLE_PACKAGES):
        icons = {
            label.replace(" ", "-"): {"body": body(s, i)}
            for i, label in enumerate(LABELS[: 10 - s % 3])
        }
        tarball(
            folder,
            style,
            {"icons.json": {"prefix": style.style, "icons": icons, "width": 16, "height": 16}},
        )
    return folder


@pytest.fixture
def build(packages, tmp_path):
    pytest.importorskip("resvg_py")
    return lambda **options: build_emoji(
        tmp_path / "set",
        packages_folder=packages,
        log=lambda _: None,
        **{"size": 16, "languages": ["en", "de"], **options},
    )


def test_built_set_is_read_back(build, tmp_path):
    report = build()
    assert is_sheets_folder(tmp_path / "set")
    assert report.concepts == 10
    assert not report.skipped
    assert report.drawings["noto"] == 10
    assert report.drawings["fluent-emoji-flat"] == 8
    assert "openmoji" not in report.drawings, "share-alike drawings are not redistributed"
    table = open_sheets(tmp_path / "set", captions="joined")
    assert len(table) == sum(report.drawings.values())
    assert table.columns["image"].shape[1:] == (16, 16, 3)
    row = table.locations.index("twemoji.webp:rocket")
    image = table.columns["image"][row]  # style 4, concept 1: centre (4, 9), colour 093640
    assert tuple(image[9, 4]) == (0x09, 0x36, 0x40)
    assert tuple(image[0, 15]) == (255, 255, 255)
    assert table.columns["caption"][row] == ["rocket", "thing"]
    assert table.columns["caption_de"][row] == ["de rocket"]
    assert table.columns["concept"][row] == "rocket"
    assert table.group_column == "concept"
    assert table.split_column == "split"
    assert table.kinds["image"] == "image"
    assert table.kinds["caption_de"] == "text"


def test_full_build_holds_out_two_artists_and_has_a_share_alike_notice(build, tmp_path):
    report = build(full=True, languages=None)
    header = read_sheets_header(tmp_path / "set")
    assert len(report.drawings) == 10
    assert len(report.languages) == 28
    assert list(report.neighbours)[:2] == [header.test_artist, header.val_artist]
    assert "share-alike" in (tmp_path / "set" / "ATTRIBUTION.md").read_text("utf-8")
    assert "caption_en_gb" in open_sheets(tmp_path / "set").columns


def test_build_replaces_a_set_but_no_other_files(build, tmp_path):
    first, second = build(), build(size=24)
    assert (first.size, second.size, read_sheets_header(tmp_path / "set").size) == (16, 24, 24)
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    with pytest.raises(SensoriumError, match=r"thesis\.tex"):
        build()


def test_build_is_deterministic(build, tmp_path):
    build()
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    build()
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}


def test_mirrored_drawings_are_flipped_and_wide_ones_centred(build, packages, tmp_path):
    box = '<rect width="4" height="4" fill="#f00"/>'
    icons = {
        "icons": {"rocket": {"body": box, "width": 16, "height": 8}},
        "width": 16,
        "height": 16,
        "aliases": {"tree": {"parent": "rocket", "hFlip": True}},
    }
    tarball(packages, STYLE_PACKAGES[0], {"icons.json": icons})
    build()
    table = open_sheets(tmp_path / "set", styles=["noto"])
    plain, mirrored = (
        table.columns["image"][table.locations.index(f"noto.webp:{name}")]
        for name in ("rocket", "tree")
    )
    assert tuple(plain[6, 2]) == (255, 0, 0), "a wide drawing is centred on a square"
    assert (plain[:, ::-1] == mirrored).all()


# Hostile and broken packages


@pytest.mark.parametrize(
    ("svg", "why"),
    [
        ('<image href="/etc/hostname" width="9" height="9"/>', "<image>"),
        ('<x:image xmlns:x="y"/>', "<x:image>"),
        ('<use href="other.svg#a"/>', "link out"),
        ("<use xlink:href = '/etc/x.svg#a'/>", "link out"),
        ('<use href="&#47;etc"/>', "link out"),
        ('<path fill="url(http://x)"/>', "link out"),
        ('<path fill="url( x)"/>', "link out"),
        ("<script>1</script>", "<script>"),
        ("<style>@import 'x'</style>", "<style>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>', "<!DOCTYPE>"),
        ("<feImage href='#a'/>", "<feImage>"),
        ("<text>a</text>", "<text>"),
        ("</svg><svg>", "<svg>"),
        ("<g/>" * 600_000, "characters"),
    ],
)
def test_unsafe_svg_is_rejected(svg, why):
    with pytest.raises(SensoriumError, match=f"noto.*{why}"):
        check_svg(svg, "noto: icon 'rocket'")


def test_allowed_svg_is_returned_unchanged():
    svg = (
        '<defs><linearGradient id="a"><stop/></linearGradient></defs>'
        '<path fill="url(#a)"/><use xlink:href="#a"/>'
    )
    assert check_svg(svg, "x") == svg


def test_unsafe_package_stops_the_build(build, packages, tmp_path):
    tarball(
        packages,
        STYLE_PACKAGES[2],
        {"icons.json": {"icons": {"rocket": {"body": '<image href="/etc/hostname"/>'}}}},
    )
    with pytest.raises(SensoriumError, match=r"fluent-emoji-flat.*rocket.*<image>"):
        build()
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({}, "has no icons.json"),
        ({"icons.json": b"{"}, "not JSON"),
        ({"icons.json": b"[" * 200_000}, "not JSON"),
        ({"icons.json": []}, "not a set of icons"),
        ({"icons.json": {"icons": []}}, "not a set of icons"),
        ({"icons.json": {"icons": {}}}, "0 drawings"),
        ({"icons.json": {"icons": {"rocket": 3}}}, "it has no drawing"),
        ({"icons.json": {"icons": {"rocket": {"body": "<g/>"}}}}, "it is blank"),
        ({"icons.json": {"icons": {"rocket": {"body": "<path", "width": "x"}}}}, "not a number"),
        ({"icons.json": {"icons": {"rocket": {"body": "<path"}}}}, "0 drawings"),
        ({"icons.json": {"icons": {}}, "chars.json": [1]}, "chars.json"),
    ],
)
def test_broken_package_is_named_in_the_error(build, packages, members, why):
    tarball(packages, STYLE_PACKAGES[0], members)
    with pytest.raises(SensoriumError, match=f"noto.*{why}"):
        build()


def test_wrong_name_licence_and_names_file_are_rejected(build, packages):
    icons = {"icons.json": {"icons": {}}}
    tarball(packages, STYLE_PACKAGES[0], icons, licence="CC-BY-NC-4.0")
    with pytest.raises(SensoriumError, match=r"CC-BY-NC-4\.0.*Review its terms"):
        build()
    tarball(packages, STYLE_PACKAGES[0], icons, name="evil")
    with pytest.raises(SensoriumError, match="is package 'evil'"):
        build()
    tarball(packages, STYLE_PACKAGES[0], icons)
    tarball(packages, NAMES_PACKAGE, {"en/data.json": [{"hexcode": 3}], "de/data.json": []})
    with pytest.raises(SensoriumError, match=r"hexcode and\s+label"):
        build()


def test_broken_archive_is_named_in_the_error(build, packages, monkeypatch):
    path = packages / STYLE_PACKAGES[0].tarball_name
    whole = path.read_bytes()
    for raw in (b"", b"not gzip", whole[:60], gzip.compress(b"not a tar" * 99)):
        path.write_bytes(raw)
        with pytest.raises(SensoriumError, match=path.name):
            build()
    path.write_bytes(whole)
    monkeypatch.setattr(emoji_packages, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(SensoriumError, match="unpacks to more than"):
        build()


def test_links_in_an_archive_are_ignored(build, packages):
    link = tarfile.TarInfo("package/icons.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    tarball(packages, STYLE_PACKAGES[0], {}, entry=link)
    with pytest.raises(SensoriumError, match=r"has no icons\.json"):
        build()


def test_missing_packages_and_tools_are_named_with_a_remedy(build, packages, tmp_path, monkeypatch):
    (packages / STYLE_PACKAGES[0].tarball_name).unlink()
    with pytest.raises(
        SensoriumError, match=f"npm pack {STYLE_PACKAGES[0].name}@{STYLE_PACKAGES[0].version}"
    ):
        build()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SensoriumError, match=r"needs the npm client.*--packages"):
        build_emoji(tmp_path / "new", log=lambda _: None)
    with pytest.raises(SensoriumError, match="no emoji names in 'tlh'"):
        build(languages=["tlh"])
    with pytest.raises(SensoriumError, match="--size 5000"):
        build(size=5000)


def test_fetched_package_with_another_checksum_is_rejected(packages, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: "npm")
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    with pytest.raises(SensoriumError, match="another checksum"):
        emoji_packages.fetch_packages(packages, [NAMES_PACKAGE])
    assert all(len(p.sha256) == 64 for p in (NAMES_PACKAGE, *STYLE_PACKAGES))


# Damaged sets


@pytest.mark.parametrize(
    ("file", "damage", "why"),
    [
        ("noto.webp", lambda raw: raw[:-9], "not the file that was built"),
        ("noto.webp", None, "No such file"),
        ("concepts.jsonl", lambda raw: raw + b"{}\n", "11 lines"),
        ("concepts.jsonl", lambda raw: b"[\n" * 10, "not JSON"),
        (
            "concepts.jsonl",
            lambda raw: raw.replace(b'"noto"', b'"nota"', 1),
            "lists 9 drawings of noto",
        ),
        ("concepts.jsonl", lambda raw: raw.replace(b'"family"', b'"fam"', 1), "unknown key 'fam'"),
        ("sheets.json", lambda raw: raw.replace(b'"version": 1', b'"version": 9', 1), "version 9"),
        (
            "sheets.json",
            lambda raw: raw.replace(b'"noto.webp"', b'"../noto.webp"', 1),
            "outside of its folder",
        ),
        (
            "sheets.json",
            lambda raw: raw.replace(b'"size": 16', b'"size": 100000', 1),
            "out of bounds",
        ),
        ("sheets.json", lambda raw: raw.replace(b'"size": 16', b'"size": 32', 1), "pixels"),
        ("sheets.json", lambda raw: raw.replace(b'"size": 16', b'"size": "16"', 1), "size is '16'"),
        (
            "sheets.json",
            lambda raw: raw.replace(b'"columns"', b'"colums"', 1),
            "no key 'columns'",
        ),
    ],
)
def test_damaged_file_of_a_set_is_named_in_the_error(build, tmp_path, file, damage, why):
    build()
    path = tmp_path / "set" / file
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    with pytest.raises(SensoriumError, match=rf"({file}|noto.webp).*{why}"):
        open_sheets(tmp_path / "set")


def test_sheet_of_another_format_is_rejected(build, tmp_path):
    build()
    path, head = tmp_path / "set" / "noto.webp", tmp_path / "set" / "sheets.json"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"GIF89a")
    head.write_text(
        head.read_text("utf-8").replace(old, hashlib.sha256(b"GIF89a").hexdigest()), "utf-8"
    )
    with pytest.raises(SensoriumError, match=r"noto\.webp cannot be used"):
        open_sheets(tmp_path / "set")


def test_missing_renderer_names_the_extra(packages, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SensoriumError, match=r'pip install "sensorium\[emoji\]"'):
        emoji_build.build_emoji(tmp_path / "set", packages_folder=packages)
