"""Text from data: what could command a terminal or deceive a reader is escaped, nothing else."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from sensorium.cli import app
from sensorium.errors import SensoriumError, escape_controls, escape_html, escape_line
from sensorium.io.terminal import SafeConsole, SafeStream, safe_output
from sensorium.search.render import render_html
from sensorium.search.results import Hit, RowInfo, SearchResult

HOSTILE = (
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\ \x1b[2J\x1b[31mred \x9b8m \x9d0;title\x07 "
    "\u202egpj.exe \u2066iso\u2069 pay\u200bpal back\x08\x7f over\rwritten [red]markup[/] :smile:"
)
# What a terminal or a reader must not meet: C0 but tab and newline, DEL, C1, bidi, zero width.
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060-\u206f\ufeff]")
TINY = ["--dim", "64", "--epochs", "1", "--batch-size", "4"]


@pytest.mark.parametrize(
    "text",
    [
        "مرحبا\u200f بالعالم 12",
        "שלום \u200eABC\u200f!",
        "می\u200cخواهم",  # noqa: RUF001 - Persian
        "क्\u200dष क्\u200cष",
        "👩🏽\u200d🚒 👨\u200d👩\u200d👧 ❤️\u200d🔥 1️⃣ #️⃣ ☺︎",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🇩🇪",
        "e\u0301\u0302 nai\u0308ve Ω ж ß",
        "ไทย\u200bภาษา ភាសា\u200bខ្មែរ",
        "葛\U000e0100 한글 漢字 かな",
        "ᠮᠣᠩᠭᠣᠯ\u180eᠠ",
        "a\tb\nc \ufffd \ufffc \\x1b C:\\new",
    ],
)
def test_text_of_every_script_stays_as_it_is(text: str) -> None:
    assert escape_controls(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J", "\\u001b[2J"),
        ("a\rb", "a\\u000db"),
        ("\x9b31m\x85", "\\u009b31m\\u0085"),
        ("a\u202eb\u2066c\u2069", "a\\u202eb\\u2066c\\u2069"),
        ("pay\u200bpal\u200d.com\u200c", "pay\\u200bpal\\u200d.com\\u200c"),
        ("x\u200ey\u200fz", "x\\u200ey\\u200fz"),
        ("na\u00adme\ufeff\u2060", "na\\u00adme\\ufeff\\u2060"),
        ("a\ufe0f\ufe0f\U000e0100", "a\\ufe0f\\ufe0f\\udb40\\udd00"),
        ("\U000e0041 \ud83d", "\\udb40\\udc41 \\ud83d"),
        ("❤\ufe0f\ufe0f", "❤\ufe0f\\ufe0f"),
        ("\u2028\u2029\u115f\u3164", "\\u2028\\u2029\\u115f\\u3164"),
    ],
)
def test_deceiving_characters_are_escaped_as_json_escapes_them(text: str, expected: str) -> None:
    assert escape_controls(text) == expected
    assert escape_controls(expected) == expected
    quoted = json.dumps(text, ensure_ascii=False)
    assert json.loads(escape_controls(quoted)) == text


def test_a_text_for_one_line_has_no_line_breaks() -> None:
    assert escape_line("a\nb\tc\x1b") == "a\\nb\\tc\\u001b"
    assert escape_html("<b>\u202e&\x1b'") == "&lt;b&gt;\\u202e&amp;\\u001b&#x27;"


def test_errors_are_safe_to_show_and_keep_what_they_were_given() -> None:
    error = SensoriumError(HOSTILE)
    assert not FORBIDDEN.search(str(error))
    assert error.args == (HOSTILE,)


def test_results_are_one_line_each_and_pages_hold_no_overrides() -> None:
    hits = [Hit(0, 0.5, RowInfo(f"a\n0.999 {HOSTILE}", "image", [HOSTILE]))]
    result = SearchResult(HOSTILE, hits, [b""])
    assert len(str(result).splitlines()) == 1
    assert not FORBIDDEN.search(str(result))
    assert not FORBIDDEN.search(render_html([result]))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_console_sends_its_own_sequences_and_those_of_no_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", SafeStream(terminal))
    monkeypatch.setattr(sys, "stderr", SafeStream(terminal))
    console = SafeConsole()
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, "bold"))
    console.print(table)
    console.print(HOSTILE, soft_wrap=True)
    console.print(Text("link", "link http://evil.example"))
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task(HOSTILE)
        print(HOSTILE)  # rich redirects it through the console meanwhile
        sys.stderr.write("\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\\n")
    print(HOSTILE)
    shown = terminal.getvalue()
    assert "\x1b[1m" in shown  # the console's own bold
    assert "[red]markup[/] :smile:" in shown
    own = re.sub(r"\x1b\[(\?25[hl]|[0-9;]*[mAK]|2K|1A)|\r", "", shown)
    assert not FORBIDDEN.search(own)
    assert "\x1b]8" not in shown


def test_streams_write_what_the_terminal_can_encode() -> None:
    raw = io.BytesIO()
    stream = SafeStream(io.TextIOWrapper(raw, "ascii"))
    stream.write("né 漢 \x1b\n")
    stream.flush()
    assert raw.getvalue() == b"n\\xe9 \\u6f22 \\u001b\n"


def test_output_is_protected_only_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with safe_output():
        print("a\x1bb")
        print("a\x1bb", file=sys.stderr)
    assert sys.stdout is before
    assert capsys.readouterr() == ("a\\u001bb\n", "a\\u001bb\n")


# --- every command, on hostile names ---------------------------------------------------------


def _checkpoint(path: Path, name: str) -> None:
    """Write an archive as torch.save does, with one tensor and a step of this name."""
    import torch

    torch.save({"state_dict": {name: torch.ones(2)}, f"step {name}": 3}, path)


def _text_as_file_name(text: str) -> str:
    return re.sub(r"[/\\]", "", text)[:60]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Change to a folder with hostile files: images with captions, a table, checkpoints."""
    here, before = tmp_path_factory.mktemp("hostile"), Path.cwd()
    os.chdir(here)
    Path("photos\x1b[31m\u202e").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    cell = HOSTILE.replace(";", "")  # another separator
    for i in range(16):
        name = f"photos\x1b[31m\u202e/{_text_as_file_name(HOSTILE)}{i}"
        colour = tuple(rng.integers(0, 256, 3).tolist())
        Image.new("RGB", (40, 30), colour).save(f"{name}.png")
        Path(f"{name}.txt").write_text(f"caption {i} {HOSTILE}\n", newline="")
        value = "broken\x1b[31m" if i == 3 else str(i / 7)
        rows.append(f'"{i % 2} {cell}","{i} {cell}","{value}"')
    shutil.copytree("photos\x1b[31m\u202e", "good\x1b")
    Path("photos\x1b[31m\u202e/broken\x1b.png").write_bytes(b"no image \x1b[31m")
    header = f'"label\x1b[31m\u202e","text {cell}","number\x9b"'
    Path("table.csv").write_text("\n".join([header, *rows]) + "\n", newline="", encoding="utf-8")
    _checkpoint(Path("weights\x1b[31m.pt"), f"layer {HOSTILE}")
    Path("bad\x1b.pt").write_bytes(b"cos\nsystem\x1b\n.")
    with zipfile.ZipFile("bad.zip\x1b.pt", "w") as archive:
        archive.writestr("a\x1b/data.pkl", b"\x80\x02cos\nsy\x9bstem\n(S'\x1b'\ntR.")
    yield here
    os.chdir(before)


PHOTOS, COLUMN = "photos\x1b[31m\u202e", "label\x1b[31m\u202e"
TARGET = ["--target", COLUMN, "--type", f"{COLUMN}=category"]
COMMANDS = [
    ["data", PHOTOS],
    ["data", PHOTOS, "--json"],
    ["data", "table.csv"],
    ["data", f"missing {HOSTILE}"],
    ["train", "clip", PHOTOS, "--out", "run\x1b[31m", "--max-invalid-fraction", "0.2", *TINY],
    ["train", "clip", PHOTOS, "--out", "run\x1b[31m", "--name", "already", *TINY],
    ["train", "fusion", "table.csv", "--out", "fused\u202e", *TARGET, "--epochs", "1"],
    ["train", "fusion", "table.csv", "--target", f"missing {HOSTILE}"],
    ["train", "gpt", PHOTOS, "--out", "gpt\x1b", "--max-invalid-fraction", "0.2", *TINY],
    ["train", f"./mine{HOSTILE}.py:x", PHOTOS],
    [f"command {HOSTILE}"],
    ["train", "clip", PHOTOS, f"--option{HOSTILE}", "3"],
    ["compare", "fusion", "table.csv", *TARGET, "--epochs", "1", "--dim", "64,32"],
    ["evaluate", "run\x1b[31m", PHOTOS, "--max-invalid-fraction", "0.2"],
    ["evaluate", "fused\u202e", "table.csv"],
    ["interpolate", "run\x1b[31m", PHOTOS],
    ["index", "run\x1b[31m", PHOTOS, "--out", "index bad\x1b"],
    ["index", "run\x1b[31m", "good\x1b", "--out", "index\x1b"],
    ["search", "index\x1b", f"query {HOSTILE}"],
    ["search", "index\x1b", f"query {HOSTILE}", "--json"],
    ["search", f"missing {HOSTILE}", "x"],
    ["generate", "gpt\x1b", "\x1b[31m\u202e", "--max-tokens", "4"],
    ["generate", f"missing {HOSTILE}", "x"],
    ["predict", "fused\u202e", "table.csv", "--out", "out\x1b.csv"],
    ["predict", "fused\u202e", f"missing {HOSTILE}.csv", "--out", "out.csv"],
    ["export", f"missing {HOSTILE}", "--format", "onnx"],
    ["summary", "run\x1b[31m"],
    ["summary", f"missing {HOSTILE}"],
    ["convert-checkpoint", "weights\x1b[31m.pt"],
    ["convert-checkpoint", "weights\x1b[31m.pt", "--key", HOSTILE, "--out", "other\x1b"],
    ["convert-checkpoint", "bad\x1b.pt"],
    ["convert-checkpoint", "bad.zip\x1b.pt"],
    ["classify", f"missing {HOSTILE}", "good\x1b", "--labels", HOSTILE],
    ["doctor"],
    ["completion", "bash"],
]
FAILING = re.compile("missing|bad|mine|other|command |--option|interpolate|already")
SUCCEEDING = [argv for argv in COMMANDS if not FAILING.search(" ".join(argv))]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: escape_line(" ".join(argv)[:50]))
def test_commands_print_no_control_characters(
    argv: list[str], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status = app.run(argv)
    out, err = capfd.readouterr()
    assert out or err
    assert status == 0 or argv not in SUCCEEDING, err
    assert "Traceback" not in err
    assert not FORBIDDEN.search(out), FORBIDDEN.findall(out)
    assert not FORBIDDEN.search(err), FORBIDDEN.findall(err)
    if "--json" in argv:
        json.loads(out)


def test_all_commands_are_among_the_hostile_ones() -> None:
    names = {name for name in app.build_app() if not name.startswith("-")}
    assert names - {argv[0] for argv in COMMANDS} <= {"demo"}  # its data are our own


def test_a_process_prints_an_error_without_control_characters() -> None:
    command = [sys.executable, "-m", "sensorium", "search", f"missing {HOSTILE}", "x"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    assert not FORBIDDEN.search((done.stdout + done.stderr).decode())


def test_written_files_keep_the_data(place: Path) -> None:
    predictions = Path("out\x1b.csv")
    assert predictions.is_file()
    assert "\\u001b" not in predictions.read_text(encoding="utf-8")
