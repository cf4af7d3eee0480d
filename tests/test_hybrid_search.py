"""Tests of search by words and vectors: what matches, in which order, and that nothing is lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.search import word_index
from sensorium.search.header import IndexHeader
from sensorium.search.index import Index
from sensorium.search.postings import Postings, RowScorer
from sensorium.search.results import RowInfo
from sensorium.search.store import Store
from sensorium.search.word_index import WordIndex
from sensorium.search.words import split_words

DIM = 8


class BlindModel(VerbModel):
    """Embeds every value as a direction that has nothing to do with its meaning."""

    fingerprint = "b" * 64

    def __init__(self) -> None:
        super().__init__("blind model", {"embed": self._embed})

    def _embed(self, **inputs: Sequence[Any]) -> np.ndarray:
        ((_, values),) = inputs.items()
        seeds = [sum(str(value).encode()) for value in values]
        x = np.stack([np.random.default_rng(seed).standard_normal(DIM) for seed in seeds])
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def make_index(path: Path, captions: Sequence[str | list[str]], **options: Any) -> Index:
    """Return an index of rows with these captions and meaningless vectors."""
    infos = [
        RowInfo(f"row {i}", "image", [c] if isinstance(c, str) else c)
        for i, c in enumerate(captions)
    ]
    with Store.create(path, IndexHeader(DIM, "b" * 64)) as store:
        store.publish()
    index = Index.open(path, model=BlindModel(), **options)
    index.add(vector=BlindModel().embed(image=list(range(len(infos)))), row_infos=infos)
    return index


def found(index: Index, text: str, **options: Any) -> list[int]:
    return [hit.id for hit in index.search(text=text, **options)]


def test_function_words_do_not_outweigh_what_is_searched(tmp_path: Path) -> None:
    """In names, "eine" may be rarer than "Katze"."""
    captions = [
        "Person, die eine Massage bekommt",
        "schwarze Katze",
        "rote Katze",
        "Haus",
        "das Haus",
    ]
    with make_index(tmp_path / "i", captions) as index:
        for query in ("eine Katze", "die Katze", "eine Katze mit"):
            assert set(found(index, query, k=2, text_only=True)) == {1, 2}, query
        assert found(index, "eine", k=1, text_only=True) == [0]  # alone, it counts
        assert found(index, "das Haus", k=1) == [4]  # a whole caption comes first


SAME_WORDS = [  # a text, and another spelling of the same words
    ("Straße", "STRASSE"),
    ("Fußball", "fussball"),
    ("Café", "cafe\u0301"),
    ("Ångström", "angstrom"),
    ("ﬁne", "FINE"),
    ("\uff21\uff22\uff43\uff11", "abc1"),  # full width
    ("Fahr\u00adrad", "Fahrrad"),
    ("ёлка", "ЕЛКА"),
    ("ΣΊΣΥΦΟΣ", "Σίσυφος"),
    ("İstanbul", "istanbul"),
    ("Đà Nẵng", "da nang"),
    ("ｶﾞﾗｽ", "ガラス"),
    ("كِتَاب", "كتاب"),
    ("نمی\u200cشود", "نمیشود"),
    ("❤\ufe0f", "❤"),
    ("rock-'n'-roll", "Rock 'n' Roll"),
]


@pytest.mark.parametrize(("text", "other"), SAME_WORDS)
def test_spellings_of_the_same_words_are_equal(text: str, other: str) -> None:
    assert split_words(text) == split_words(other) != []


def test_vowel_signs_do_not_cut_words() -> None:
    assert split_words("हिन्दी में बिल्ली") == ["हिन्दी", "में", "बिल्ली"]
    assert split_words("தமிழ் মোটরসাইকেল") == ["தமிழ்", "মোটরসাইকেল"]
    assert split_words("...!? —") == []


CAPTIONS = [
    "a red bicycle on a street",
    "a black cat on a sofa",
    "黒い猫がソファで寝ている",
    "แมวดำนอนบนโซฟา",
    "고양이가 소파에서 잔다",
    "ein Fahrrad auf der Straße",
    "чёрная кошка на диване",
    "बिल्ली सोफे पर",
    "❤️ heart",
    "a dog at night",
]


@pytest.mark.parametrize(
    ("query", "row"),
    [
        ("bicycle", 0),
        ("BLACK CATS cat", 1),
        ("猫", 2),
        ("黒猫", 2),
        ("ソファ", 2),
        ("แมว", 3),
        ("고양이는", 4),
        ("strasse", 5),
        ("кошка черная", 6),
        ("बिल्ली", 7),
        ("❤", 8),
    ],
)
def test_words_of_any_script_are_found(tmp_path: Path, query: str, row: int) -> None:
    with make_index(tmp_path / "i", CAPTIONS) as index:
        assert found(index, query, text_only=True)[0] == row
        hit = index.search(text=query)[0]
        assert hit.id == row
        assert hit.matched in ("words", "both")


def test_every_caption_finds_its_own_row(tmp_path: Path) -> None:
    """Also one whose words all occur, more often, in other rows."""
    captions = [*CAPTIONS, "cat", "cat cat cat on a cat", "black black cat", ["dog", "dog!"], "a a"]
    with make_index(tmp_path / "i", captions) as index:
        for row, caption in enumerate(captions):
            text = caption if isinstance(caption, str) else caption[0]
            hits = index.search(text=text, k=3)
            assert hits[0].id == row
            assert hits[0].score == 1.0
            assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
            assert found(index, text.upper(), text_only=True, k=1) == [row]


def test_accents_tell_captions_apart(tmp_path: Path) -> None:
    """Words are found with and without accents, but the caption as it is written comes first."""
    with make_index(tmp_path / "i", ["Bar", "Bär", "schon schön", "schön schon"]) as index:
        for row, caption in enumerate(["bar", "BÄR", "Schon schön", "schön Schon"]):
            hits = index.search(text=caption, k=1)
            assert (hits[0].id, hits[0].score) == (row, 1.0)
        index.add(text=["bar"])
        assert found(index, "bar", k=1) == [4]
        assert found(index, "Bar", k=1) == [0]
        assert set(found(index, "schon", text_only=True)) == {2, 3}
        assert found(index, "ba\u0308r", k=1) == [1]
        assert index.search(text="schòn schon", k=1)[0].score == 1.0  # as no caption is written


def test_results_say_what_matched(tmp_path: Path) -> None:
    with make_index(tmp_path / "i", [f"picture number {n}" for n in range(50)]) as index:
        assert found(index, "nothing of that", text_only=True) == []
        hits = index.search(text="nothing of that", k=5)
        assert {hit.matched for hit in hits} == {"vectors"}
        by_vector = index.search(text="number 17", k=5, vector_only=True)
        assert [hit.id for hit in hits if hit.id in range(50)]
        assert {hit.matched for hit in by_vector} == {"vectors"}
        hits = index.search(text="number 17", k=5)
        near = {hit.id for hit in by_vector}
        assert hits[0].id == 17
        assert hits[0].matched == ("both" if 17 in near else "words")
        assert {hit.matched for hit in hits[1:]} == {"vectors"}  # "number" is in every row
        assert all(hit.id in near for hit in hits[1:])
        assert "  vectors  row" in str(hits)
        assert json.loads(json.dumps(asdict(hits)))["hits"][0]["matched"] == hits[0].matched
        lists = index.search(text=["number 3", "number 4"], k=1)
        assert [hits[0].id for hits in lists] == [3, 4]


def test_other_queries_compare_vectors_alone(tmp_path: Path) -> None:
    with make_index(tmp_path / "i", CAPTIONS) as index:
        vector = BlindModel().embed(text=["a dog at night"])[0]
        for query in ({"vector": vector}, {"text": "a dog at night", "vector": vector}):
            hits = index.search(**query, k=9)
            assert {hit.matched for hit in hits} == {"vectors"}
            assert [hit.id for hit in hits] == found(index, "a dog at night", vector_only=True, k=9)
        contradictions: list[dict[str, Any]] = [
            {"text_only": True, "vector_only": True},
            {"text_only": True},
        ]
        for options in contradictions:
            with pytest.raises(SensoriumError, match="-only"):
                index.search(text="a", vector=vector, **options)


@pytest.mark.parametrize("engine", ["exact", "faiss"])
def test_words_stay_in_step_with_the_rows(tmp_path: Path, engine: str) -> None:
    if engine == "faiss":
        pytest.importorskip("faiss")
    with make_index(tmp_path / "i", CAPTIONS, engine=engine) as index:
        assert found(index, "dog", text_only=True) == [9]
        index.delete([9])
        assert found(index, "dog", text_only=True) == []
        assert 9 not in found(index, "a dog at night", k=20)
        assert index.add(text=["a dog at night", "two dogs"]) == [10, 11]
        assert found(index, "a dog at night", k=1) == [10]
        index.compact()
        index.verify()
        assert found(index, "a dog at night", k=1) == [10]
        index.add(text=["a bird"])
        assert found(index, "bird", k=1) == [12]
    with Index.open(tmp_path / "i", model=BlindModel(), engine=engine) as again:
        assert found(again, "bird", text_only=True) == [12]
        assert found(again, "BICYCLE", k=1) == [0]


def test_deleted_rows_do_not_count(tmp_path: Path) -> None:
    """Scores after deletions are those of an index that never had the rows."""
    captions = [f"word{i % 7} word{i % 5} thing" for i in range(60)]
    with make_index(tmp_path / "a", captions) as index:
        index.delete(range(0, 60, 2))
        after = index.search(text="word3 word4", text_only=True, k=30)
    with make_index(tmp_path / "b", captions[1::2]) as fresh:
        expected = fresh.search(text="word3 word4", text_only=True, k=30)
    assert [hit.info.captions for hit in after] == [hit.info.captions for hit in expected]
    assert [hit.score for hit in after] == pytest.approx([hit.score for hit in expected], abs=1e-6)


def test_scores_are_those_of_bm25() -> None:
    """Compare with the formula, written out."""
    rows: list[dict[int, int]] = [{1: 2, 2: 1}, {2: 1, 3: 4}, {1: 1}, {4: 1}] + [{5: 1}] * 8
    scorer = RowScorer(Postings.from_rows(rows), np.ones(12, bool))
    lengths = [sum(row.values()) for row in rows]
    mean = sum(lengths) / 12
    weights = {1: np.log(1 + (12 - 2 + 0.5) / 2.5), 3: np.log(1 + (12 - 1 + 0.5) / 1.5)}
    assert scorer.weights([1, 3]) == pytest.approx(weights)
    expected = [
        sum(
            w * row.get(t, 0) / (row.get(t, 0) + 1.2 * (0.25 + 0.75 * n / mean))
            for t, w in weights.items()
        )
        / sum(weights.values())
        for row, n in zip(rows, lengths, strict=True)
    ]
    assert scorer.scores(weights) == pytest.approx(expected, rel=1e-6)
    assert scorer.weights([5, 1]).keys() == {1}  # 5 is in most rows
    assert scorer.weights([5]).keys() == {5}


@pytest.fixture
def table(tmp_path: Path) -> Dataset:
    """A table with two languages, a class, tags, an identifier and named files."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["sku,photo,title,titel,colour,tags"]
    tags = ("new|sale", "summer|sale", "new", "new|summer", "sale|summer")
    for i in range(40):
        PIL.Image.new("RGB", (8, 8), (i, 2 * i, 0)).save(folder / f"IMG_{i:04}.png")
        colour = ("blue", "green", "crimson red", "grey")[i % 4]
        lines.append(
            f"AB-{1000 + i},IMG_{i:04}.png,object {i} with handle,Ding {i} mit Griff,{colour},"
            f"{tags[i % 5]}"
        )
    (folder / "table.csv").write_text("\n".join(lines))
    types = {"colour": "category", "tags": "multilabel", "title": "text", "titel": "text"}
    return Dataset.open(folder / "table.csv", types=types)


def test_other_columns_are_searched_by_words(tmp_path: Path, table: Dataset) -> None:
    with Index.build(BlindModel(), table, tmp_path / "i") as index:
        assert found(index, "AB-1007", k=1) == [7]
        assert found(index, "IMG_0012.png", k=1) == [12]
        assert found(index, "img_0012", k=1) == [12]
        assert found(index, "object 5 with handle", k=1) == [5]
        assert found(index, "Ding 6 mit Griff", k=1) == [6]
        reds = index.search(text="crimson", text_only=True, k=40)
        assert sorted(hit.id for hit in reds) == list(range(2, 40, 4))
        assert {hit.info.attributes["colour"][0] for hit in reds} == {"crimson red"}
        sale = index.search(text="sale", text_only=True, k=40)
        assert all("sale" in hit.info.attributes["tags"] for hit in sale)
        assert len(sale) == 24
        assert found(index, "1007", text_only=True) == []  # a number counts in the whole only
        index.verify()


def words_file(path: Path) -> Path:
    (file,) = path.glob("words.*.safetensors")
    return file


def test_postings_are_saved_with_the_index(
    tmp_path: Path, table: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.build(BlindModel(), table, tmp_path / "i").close()
    assert words_file(tmp_path / "i").exists()
    read: list[int] = []
    real = Store.read_payload

    def record(store: Store, row: int) -> bytes:
        read.append(row)
        return real(store, row)

    monkeypatch.setattr(Store, "read_payload", record)
    monkeypatch.setattr(word_index, "MIN_UNSAVED_ROWS", 10)
    with Index.open(tmp_path / "i", model=BlindModel()) as index:
        assert found(index, "object 7 with handle", text_only=True, k=2)[0] == 7
        assert read == [7]  # that of the result
        index.add(text=["a new row"])
        read.clear()
        assert found(index, "a new row", text_only=True) == [40]
        assert set(read) == {40}
        index.add(text=[f"row {i}" for i in range(20)])  # many enough for a new file
        assert found(index, "row 19", text_only=True, k=1) == [60]
    read.clear()
    with Index.open(tmp_path / "i", model=BlindModel()) as index:
        assert found(index, "row 19", text_only=True, k=1) == [60]
        assert set(read) == {60}
        index.verify()


def test_postings_that_do_not_fit_are_read_again(
    tmp_path: Path, table: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    Index.build(BlindModel(), table, tmp_path / "i").close()
    Index.build(BlindModel(), table.take(range(1, 40)), tmp_path / "other").close()
    path = words_file(tmp_path / "i")
    whole = path.read_bytes()
    damaged = whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]
    other = words_file(tmp_path / "other").read_bytes()
    for content in (damaged, whole[:-100], other, b"", b"{}"):
        path.write_bytes(content)
        caplog.clear()
        with Index.open(tmp_path / "i", model=BlindModel()) as index:
            assert found(index, "AB-1007", k=1) == [7]
            assert path.name in caplog.text
            with pytest.raises(SensoriumError, match=path.name):
                index.verify()
    path.unlink()
    with Index.open(tmp_path / "i", model=BlindModel()) as index:
        assert found(index, "AB-1007", k=1) == [7]
        index.verify()


WRITER_SCRIPT = """
import sys, numpy as np
from sensorium.search import word_index
from sensorium.search.index import Index
from sensorium.search.results import RowInfo
word_index.MIN_UNSAVED_ROWS = 8
with Index.open(sys.argv[1]) as index:
    n = 0
    while True:
        n += 1
        run = int(sys.argv[2])
        infos = [RowInfo("r", "text", [f"run {run} change {n} part {p}"]) for p in range(2)]
        ids = index.add(vector=np.ones((2, 8), np.float32), row_infos=infos)
        print("added", n, *ids, flush=True)
        if n % 5 == 0:
            index.delete(ids[1:])
            print("deleted", n, *ids, flush=True)
        if n % 23 == 0:
            index.compact()
"""


def test_words_of_acknowledged_rows_survive_sigkill(tmp_path: Path) -> None:
    make_index(tmp_path / "i", ["first"]).close()
    rng = np.random.default_rng(0)
    num_checked = 0
    for run in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER_SCRIPT, str(tmp_path / "i"), str(run)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        lines = [process.stdout.readline()]
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.05, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
        process.stdout.close()
        process.wait()
        with Index.open(tmp_path / "i") as index:
            index.verify()
            deleted = {line.split()[1] for line in lines if line.startswith("deleted")}
            for line in lines:
                if not (line.startswith("added") and line.endswith("\n")):
                    continue
                _, n, first, second = line.split()
                hits = index.search(text=f"run {run} change {n} part 0", text_only=True, k=1)
                assert hits[0].id == int(first)
                if n in deleted:
                    hits = index.search(text=f"run {run} change {n} part 1", text_only=True, k=1)
                    assert hits[0].id != int(second)
                num_checked += 1
    assert num_checked > 8


def test_many_rows_with_common_words(tmp_path: Path) -> None:
    """Ties go to lower rows, and candidates of both kinds are merged."""
    with make_index(tmp_path / "i", ["one two", "two three"] * 300) as index:
        assert found(index, "three", text_only=True, k=4) == [1, 3, 5, 7]
        exact = index.search(text="two three", k=8)
        assert all(hit.info.captions == ["two three"] for hit in exact)
        best = {hit.id for hit in index.search(text="two three", k=600, vector_only=True)}
        assert {hit.id for hit in exact} <= best


def test_closed_index_says_so(tmp_path: Path) -> None:
    index = make_index(tmp_path / "i", CAPTIONS)
    index.search(text="cat")
    index.close()
    uses = [
        lambda: index.search(text="cat"),
        lambda: index.search(text="cat", text_only=True),
        lambda: index.search(vector=np.ones(DIM)),
        lambda: index.add(text=["a"]),
        lambda: index.delete([0]),
        index.compact,
        index.verify,
        index.__enter__,
    ]
    for use in uses:
        with pytest.raises(SensoriumError, match="is closed"):
            use()


def test_word_index_of_no_rows(tmp_path: Path) -> None:
    with Store.create(tmp_path / "i", IndexHeader(DIM, "b" * 64)) as store:
        WordIndex(store).save()
        store.publish()
    with Index.open(tmp_path / "i", model=BlindModel()) as index:
        assert found(index, "a") == found(index, "a", text_only=True) == []
        index.add(text=["a cat"])
        assert found(index, "cat") == [0]
        index.delete([0])
        assert found(index, "cat") == found(index, "cat", text_only=True) == []
        index.verify()
