"""Synonym lists: texts of train are said in other ways too; all other rows, groups and splits stay as they were."""

from pathlib import Path

import numpy as np
import pytest

from sensorium.cli.app import run
from sensorium.data.dataset import Dataset
from sensorium.data.synonyms import MAX_PARAPHRASES, Synonyms
from sensorium.errors import SensoriumError
from sensorium.recipes import fusion
from sensorium.training.loop import train
from sensorium.training.run import fingerprint

GROUPS = "# words\ncar, automobile, motor car\n\nbig,large\nRED, crimson\n"


def listed(folder: Path, text: str = GROUPS) -> Path:
    (folder / "words.txt").write_text(text)
    return folder / "words.txt"


def table(folder: Path) -> Path:
    rows = [
        f"a big car {i},{'red' if i % 2 else 'blue'},{split}"
        for i, split in enumerate(["train"] * 24 + ["val"] * 6 + ["test"] * 6)
    ]
    (folder / "cars.csv").write_text("\n".join(["name,target,split", *rows]) + "\n")
    return folder / "cars.csv"


def test_words_and_phrases_are_exchanged(tmp_path: Path) -> None:
    words = Synonyms.from_file(listed(tmp_path))
    found = words.paraphrase("Big red motor car, carpet")
    assert 1 <= len(found) <= MAX_PARAPHRASES
    assert len(set(found)) == len(found)
    assert found == words.paraphrase("Big red motor car, carpet")  # the same text, the same answers
    for one in found:
        rest = (
            one.lower().replace("motor car", "*").replace("automobile", "*").replace("large", "big")
        )
        rest = rest.replace("crimson", "red").replace("car, c", "*, c")
        assert rest == "big red *, carpet"
        assert one[0] in "BL"
    assert words.paraphrase("a blue house") == []
    assert {*Synonyms([("fine", "nice"), ("fine", "thin")]).paraphrase("fine")} == {"nice", "thin"}
    assert Synonyms([("car", "car")]).paraphrase("car") == []


@pytest.mark.parametrize(
    ("group", "text", "expected"),
    [
        (("पानी", "जल"), "पानी ठंडा है", "जल ठंडा है"),
        (("cafe", "bistro"), "cafe\u0301 au lait", None),
        (("motor car", "automobile"), "He has a motor. Car is red", None),
        (("hot dog", "sausage"), "It was hot; dog barked", None),
        (("hot dog", "sausage"), "a hot  dog!", "a sausage!"),
        (("C++", "cpp"), "vitamin C, code in C++.", "vitamin C, code in Cpp."),
        (("U.S.", "America"), "The U.S. army", "The America army"),
        (("well-known", "famous"), "(well-known)", "(famous)"),
        (("known", "famous"), "well-known", None),
    ],
)
def test_words_are_whole_words(group: tuple[str, str], text: str, expected: str | None) -> None:
    assert Synonyms([group]).paraphrase(text) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("car\n", "words.txt:1: 'car' is no group"),
        ("car, CAR\n", "is no group"),
        ("", "holds no words"),
        ("a, b\n,,\n", "words.txt:2"),
        (None, "cannot be read"),
    ],
)
def test_a_broken_list_is_named(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "words.txt" if text is None else listed(tmp_path, text)
    with pytest.raises(SensoriumError, match=told):
        Dataset.open(table(tmp_path), synonyms={"name": path})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("words.txt", "which column is it for"),
        ({"nmae": "words.txt"}, "did you mean 'name'"),
        ({"target": "words.txt"}, "holds category, and no text"),
    ],
)
def test_a_list_is_for_a_text_column(tmp_path: Path, words: object, told: str) -> None:
    with pytest.raises(SensoriumError, match=told):
        Dataset.open(table(tmp_path), synonyms=words)


def test_only_rows_of_train_change(tmp_path: Path) -> None:
    plain = Dataset.open(table(tmp_path))
    data = Dataset.open(table(tmp_path), synonyms={"name": listed(tmp_path)})
    rows, learned = np.arange(36), set(data.splits["train"].tolist())
    for row, before, now in zip(rows, plain.raw("name", rows), data.raw("name", rows), strict=True):
        assert now == before if row not in learned else now[0] == before and len(now) > 1
    assert data.raw("target", rows) == plain.raw("target", rows)
    assert np.array_equal(data.groups(), plain.groups())
    assert {k: v.tolist() for k, v in data.splits.items()} == {
        k: v.tolist() for k, v in plain.splits.items()
    }
    assert fingerprint(data) != fingerprint(plain)  # a resumed run notices
    again = dict(data.source)
    assert fingerprint(Dataset.open(again.pop("path"), **again)) == fingerprint(data)


def test_parts_and_folds_too(tmp_path: Path) -> None:
    data = Dataset.open(table(tmp_path), synonyms={"name": listed(tmp_path)})
    assert data.raw("name", [0]) == data.take([5, 0]).raw("name", [1])
    for part in data.folds(3):
        held = part.splits["fold"]
        assert all(isinstance(v, str) for v in part.raw("name", held))
        assert all(isinstance(v, list) for v in part.raw("name", part.splits["train"]))


def test_several_captions_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(
        "\n".join(
            f'{{"name": ["a red car {i}", "b"], "target": "{"xy"[i % 2]}"}}' for i in range(30)
        )
    )
    data = Dataset.open(tmp_path / "some.jsonl", synonyms={"name": listed(tmp_path)})
    found = data.raw("name", data.splits["train"][:1])[0]
    assert found[1] == "b"
    assert len(found) > 2
    assert all("crimson" in t or "red" in t for t in found[2:])


def test_a_model_learns_from_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset.open(table(tmp_path), synonyms={"name": listed(tmp_path)})
    model = train(fusion, data, out=tmp_path / "run", quiet=True, epochs=2)
    assert model.predict(name=["a large automobile"])["target"].value[0] in ("red", "blue")
    assert (
        run(["train", "fusion", str(table(tmp_path)), "--synonyms", f"name={tmp_path}/none.txt"])
        == 1
    )
    assert "none.txt cannot be read" in capsys.readouterr().err
