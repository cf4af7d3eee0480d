"""The command `classify`: files, folders and tables by labels given as words."""

import csv
import json
from pathlib import Path

import PIL.Image
import pytest
from fixtures.squares import COLOURS
from fixtures.squares import clip_folder as clip_folder

import sensorium as sn
from sensorium.cli import app

LABELS = ["--label", "red", "--label", "a green square", "--label", "blue"]


def run_command(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    """Return the exit status, stdout, and the lines of stderr that the command itself writes."""
    capsys.readouterr()
    status = app.run([*map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images in a folder for each class, and one that is cut off."""
    folder = tmp_path / "photos"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(2):
            PIL.Image.new("RGB", (20, 16), colour).save(folder / name / f"{i}.png")
    (folder / "red" / "cut.png").write_bytes((folder / "red" / "0.png").read_bytes()[:40])
    return folder


def expected_labels(clip_folder: Path, paths: list[Path], labels: list[str]) -> list[str | None]:
    return sn.load(clip_folder).classify(image=paths, labels=labels).value


def test_folder_is_classified_without_losing_a_row(
    clip_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    status, printed, err = run_command(
        capsys, "classify", clip_folder, photos, *LABELS, "-o", out, "--top-k", "2"
    )
    assert status == 0, err
    assert "9 rows" in printed
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "row",
        "label",
        "probability",
        "label 2",
        "probability 2",
        "unreadable",
    ]
    assert len(rows) == 9
    (cut,) = [row for row in rows if row["row"].endswith("cut.png")]
    assert (cut["label"], cut["probability"]) == ("", "")
    assert cut["unreadable"]
    assert "1 of 9 rows cannot be read" in err
    whole = [row for row in rows if row is not cut]
    paths = [photos.parent / row["row"] for row in whole]
    paths = [
        path if path.exists() else photos / row["row"]
        for path, row in zip(paths, whole, strict=True)
    ]
    assert [row["label"] for row in whole] == expected_labels(
        clip_folder, paths, ["red", "a green square", "blue"]
    )


def test_files_are_printed_in_order_and_as_json(
    clip_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [photos / "red" / "0.png", photos / "red" / "cut.png", photos / "blue" / "1.png"]
    status, out, err = run_command(capsys, "classify", clip_folder, *files, *LABELS)
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 3), err
    assert [line.split("  ")[0] for line in lines] == [str(file) for file in files]
    assert "cannot be decoded" in lines[1] or "broken" in lines[1]
    _, out, _ = run_command(capsys, "classify", clip_folder, *files, *LABELS, "--json")
    rows = json.loads(out)
    assert [row["label"] is None for row in rows] == [False, True, False]
    assert sum(rows[0]["probability"].values()) == pytest.approx(1, abs=1e-4)


def test_table_is_classified_with_accuracy_by_its_class_column(
    clip_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "photos.csv"
    classes = ["red", "green", "blue", "red"]
    lines = [f"photos/{name}/0.png,{name}" for name in classes]
    table.write_text("\n".join(["photo,colour", *lines, "photos/nowhere.png,red"]) + "\n")
    out = tmp_path / "out.jsonl"
    status, _, err = run_command(
        capsys, "classify", clip_folder, table, "--class-column", "colour", "-o", out
    )
    assert status == 0, err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 5
    assert [set(row["probability"]) for row in rows[:4]] == [{"red", "green", "blue"}] * 4
    assert rows[4]["label"] is None
    assert rows[4]["unreadable"]
    right = sum(row["label"] == name for row, name in zip(rows[:4], classes, strict=True))
    assert f"accuracy {right / 5:.1%} of 5 rows" in err
    assert "60.0%" in err  # red is the most common class


def test_texts_are_classified_by_similarity(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, labels = tmp_path / "texts.csv", tmp_path / "labels.txt"
    table.write_text(
        "text\n" + "".join(f"a {c} square of number {i}\n" for i, c in enumerate(COLOURS))
    )
    labels.write_text("\ufeffred\n\n  a green square \nblue\n", encoding="utf-8")
    argv = ["classify", clip_folder, table, "--labels", labels, "--column", "text", "--json"]
    status, out, err = run_command(capsys, *argv)
    assert status == 0, err
    rows = json.loads(out)
    assert set(rows[0]["similarity"]) == {"red", "a green square", "blue"}
    assert "probability" not in rows[0]


def test_arguments_may_be_swapped(
    clip_folder: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run_command(capsys, "classify", photos, clip_folder, *LABELS)
    assert status == 0, err
    assert len(out.splitlines()) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "There are no labels"),
        (["--label", "red"], "always 1"),
        (["--label", "red", "--label", "red"], "'red' is given twice"),
        (["--label", "red", "--label", ""], "Label 2 is empty"),
        (["--label", "red", "--labels", "x.txt"], "not both"),
        (["--labels", "nowhere.txt"], "nowhere.txt cannot be read"),
        ([*LABELS, "--template", "a photo"], "has no {}"),
        ([*LABELS, "--top-k", "0"], "--top-k 0"),
        ([*LABELS, "-o", "out.xlsx"], "out.xlsx"),
        ([*LABELS, "--column", "nothing"], "nothing"),
        (["--label", "x", "--label", "y", "--class-column", "label"], "No label is a class"),
    ],
)
def test_unusable_options_are_refused_in_one_line(
    clip_folder: Path,
    photos: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, _, err = run_command(capsys, "classify", clip_folder, photos, *options)
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("sensorium: ")
    assert message in last


def test_models_that_cannot_classify_say_so(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = run_command(capsys, "classify", tmp_path, photos, *LABELS)
    assert status == 1
    assert "holds no" in err or "weights" in err
