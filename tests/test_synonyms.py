"""Synonym lists: training texts get paraphrases; other rows, groups and splits stay the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.shape_checks import unchecked_shapes as unchecked_shapes

from sensorium.cli.app import run
from sensorium.data.dataset import Dataset
from sensorium.data.synonyms import MAX_PARAPHRASES, Synonyms
from sensorium.errors import SensoriumError
from sensorium.recipes import fusion
from sensorium.training.loop import train
from sensorium.training.run_setup import fingerprint

GROUPS = "# words\ncar, automobile, motor car\n\nbig,large\nRED, crimson\n"


def write_synonyms(folder: Path, text: str = GROUPS) -> Path:
    (folder / "words.txt").write_text(text)
    return folder / "words.txt"


def write_table(folder: Path) -> Path:
    rows = [
        f"a big car {i},{'red' if i % 2 else 'blue'},{split}"
        for i, split in enumerate(["train"] * 24 + ["val"] * 6 + ["test"] * 6)
    ]
    (folder / "cars.csv").write_text("\n".join(["name,target,split", *rows]) + "\n")
    return folder / "cars.csv"


def test_paraphrase_replaces_words_and_phrases(tmp_path: Path) -> None:
    synonyms = Synonyms.from_file(write_synonyms(tmp_path))
    paraphrases = synonyms.paraphrase("Big red motor car, carpet")
    assert 1 <= len(paraphrases) <= MAX_PARAPHRASES
    assert len(set(paraphrases)) == len(paraphrases)
    assert paraphrases == synonyms.paraphrase("Big red motor car, carpet")
    for paraphrase in paraphrases:
        rest = (
            paraphrase.lower()
            .replace("motor car", "*")
            .replace("automobile", "*")
            .replace("large", "big")
        )
        rest = rest.replace("crimson", "red").replace("car, c", "*, c")
        assert rest == "big red *, carpet"
        assert paraphrase[0] in "BL"
    assert synonyms.paraphrase("a blue house") == []
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
def test_paraphrase_replaces_whole_words_only(
    group: tuple[str, str], text: str, expected: str | None
) -> None:
    assert Synonyms([group]).paraphrase(text) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("car\n", "words.txt:1: 'car' is not a group of synonyms"),
        ("car, CAR\n", "is not a group of synonyms"),
        ("", "holds no words"),
        ("a, b\n,,\n", "words.txt:2"),
        (None, "cannot be read"),
    ],
)
def test_broken_synonym_file_is_an_error(tmp_path: Path, text: str | None, error: str) -> None:
    path = tmp_path / "words.txt" if text is None else write_synonyms(tmp_path, text)
    with pytest.raises(SensoriumError, match=error):
        Dataset.open(write_table(tmp_path), synonyms={"name": path})


@pytest.mark.usefixtures("unchecked_shapes")  # so that the first case gets past the type checks
@pytest.mark.parametrize(
    ("synonyms", "error"),
    [
        ("words.txt", "--synonyms words.txt names no column"),
        ({"nmae": "words.txt"}, "did you mean 'name'"),
        ({"target": "words.txt"}, "the column 'target' is category, not text"),
    ],
)
def test_synonyms_of_another_column_are_an_error(tmp_path: Path, synonyms: Any, error: str) -> None:
    with pytest.raises(SensoriumError, match=error):
        Dataset.open(write_table(tmp_path), synonyms=synonyms)


def test_synonyms_change_training_rows_alone(tmp_path: Path) -> None:
    plain = Dataset.open(write_table(tmp_path))
    data = Dataset.open(write_table(tmp_path), synonyms={"name": write_synonyms(tmp_path)})
    rows = np.arange(36)
    train_rows = set(data.splits["train"].tolist())
    texts, augmented = plain.raw("name", rows), data.raw("name", rows)
    for row, text, captions in zip(rows, texts, augmented, strict=True):
        if row in train_rows:
            assert captions[0] == text
            assert len(captions) > 1
        else:
            assert captions == text
    assert data.raw("target", rows) == plain.raw("target", rows)
    assert np.array_equal(data.groups(), plain.groups())
    assert {k: v.tolist() for k, v in data.splits.items()} == {
        k: v.tolist() for k, v in plain.splits.items()
    }
    assert fingerprint(data) != fingerprint(plain)  # a resumed run notices
    source = dict(data.source)
    assert fingerprint(Dataset.open(source.pop("path"), **source)) == fingerprint(data)


def test_synonyms_in_subsets_and_folds(tmp_path: Path) -> None:
    data = Dataset.open(write_table(tmp_path), synonyms={"name": write_synonyms(tmp_path)})
    assert data.raw("name", [0]) == data.take([5, 0]).raw("name", [1])
    for part in data.folds(3):
        fold_rows = part.splits["fold"]
        assert all(isinstance(v, str) for v in part.raw("name", fold_rows))
        assert all(isinstance(v, list) for v in part.raw("name", part.splits["train"]))


def test_paraphrases_follow_all_captions(tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(
        "\n".join(
            f'{{"name": ["a red car {i}", "b"], "target": "{"xy"[i % 2]}"}}' for i in range(30)
        )
    )
    data = Dataset.open(tmp_path / "some.jsonl", synonyms={"name": write_synonyms(tmp_path)})
    captions = data.raw("name", data.splits["train"][:1])[0]
    assert captions[1] == "b"
    assert len(captions) > 2
    assert all("crimson" in t or "red" in t for t in captions[2:])


def test_training_with_synonyms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Dataset.open(write_table(tmp_path), synonyms={"name": write_synonyms(tmp_path)})
    model = train(fusion, data, out=tmp_path / "run", quiet=True, epochs=2)
    assert model.predict(name=["a large automobile"])["target"].value[0] in ("red", "blue")
    assert (
        run(
            [
                "train",
                "fusion",
                str(write_table(tmp_path)),
                "--synonyms",
                f"name={tmp_path}/none.txt",
            ]
        )
        == 1
    )
    assert "none.txt cannot be read" in capsys.readouterr().err
