"""The index: exact results, and nothing acknowledged is ever lost."""

import io
import json
import os
import shutil
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
from sensorium.io import atomic
from sensorium.modalities.image_decode import decode_image
from sensorium.search import index, store
from sensorium.search.exact import ExactEngine, int8_is_faster
from sensorium.search.index import Index
from sensorium.search.render import render_html, save_results
from sensorium.search.results import Hit, RowInfo, SearchResult
from sensorium.search.store import IndexHeader, Store

KILLS = 24
DIM = 16


class Words:
    """A model of two senses: a text is a direction, and so is a picture of one colour."""

    fingerprint = "f" * 64

    def embed(self, **given: Sequence[Any]) -> np.ndarray:
        ((kind, values),) = given.items()
        if kind == "text":
            out = np.stack(
                [
                    np.bincount(np.frombuffer(v.encode(), np.uint8) % DIM, minlength=DIM)
                    for v in values
                ]
            )
        else:
            try:
                out = np.stack([np.resize(decode_image(v, 8)[0, 0] + 1.0, DIM) for v in values])
            except ValueError as e:
                raise SensoriumError(f"cannot read {values[0]}: {e}") from e
        return (out / np.linalg.norm(out, axis=1, keepdims=True)).astype(np.float32)


def brute(x: np.ndarray, q: np.ndarray, k: int, alive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = (q.astype(np.float64) @ x.astype(np.float64).T).astype(np.float32)
    scores[:, ~alive] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, 1)
    rows = np.where(best > -np.inf, rows, -1)
    more = ((0, 0), (0, k - best.shape[1]))
    return np.pad(best, more, constant_values=-np.inf), np.pad(rows, more, constant_values=-1)


def rows_of(kind: str, n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((n, dim), dtype=np.float32)
    if kind == "copies":
        return x[rng.integers(0, max(1, n // 5), n)]
    if kind == "all equal":
        return np.repeat(x[:1], n, 0)
    if kind == "sparse":
        return x * (rng.random((n, dim)) < 0.1)
    if kind == "narrow":  # all in one direction, as real embeddings are
        return x * 0.02 + 1
    return x


@pytest.mark.parametrize("bytes_first", [True, False])
@pytest.mark.parametrize("kind", ["plain", "copies", "all equal", "sparse", "narrow"])
def test_exact_is_brute_force(kind: str, bytes_first: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = (
        (1, 16, 1, 1),
        (7, 16, 3, 2),
        (9, 33, 100, 1),
        (100, 17, 10, 130),
        (4097, 16, 10, 3),
        (5000, 24, 5, 9),
    )
    for n, dim, k, queries in sizes:
        x, q = rows_of(kind, n, dim, rng), rng.standard_normal((queries, dim), dtype=np.float32)
        engine, alive = ExactEngine(bytes_first), np.ones(n, bool)
        engine.add(x[: n // 3])
        engine.add(x)
        for dead in (0.0, 0.6, 1.0):
            gone = np.flatnonzero((rng.random(n) < dead) & alive)
            engine.remove(gone)
            alive[gone] = False
            found, expected = engine.search(q, k), brute(x, q, k, alive)
            assert np.array_equal(found[0], expected[0]) and np.array_equal(
                found[1], expected[1]
            ), (n, dim, k, dead)


def test_an_engine_with_nothing_in_it_finds_nothing() -> None:
    scores, rows = ExactEngine().search(np.ones((2, 4), np.float32), 3)
    assert (scores == -np.inf).all()
    assert (rows == -1).all()
    assert scores.shape == (2, 3)


def test_a_product_that_is_wrong_is_never_chosen() -> None:
    assert not int8_is_faster(1)  # torch 2.13 gets width 1 wrong


def filled(path: Path, n: int = 40) -> tuple[np.ndarray, list[bytes]]:
    x = np.random.default_rng(1).standard_normal((n, DIM), dtype=np.float32)
    payloads = [RowInfo(f"row {i}", "text", [f"caption {i}"]).pack(b"") for i in range(n)]
    with Store.create(path, IndexHeader(DIM, Words.fingerprint)) as made:
        made.publish()
        for start in range(0, n, 10):
            made.add(x[start : start + 10], payloads[start : start + 10])
    return x, payloads


def test_store_keeps_what_it_was_given(tmp_path: Path) -> None:
    x, payloads = filled(tmp_path / "i")
    with Store.open(tmp_path / "i") as kept:
        assert np.array_equal(kept.vectors, x)
        assert [kept.read_payload(r) for r in range(40)] == payloads
        kept.delete([3, 39])
        with pytest.raises(SensoriumError, match="no row 3"):
            kept.delete([2, 3])
        assert kept.add(x[:1], payloads[:1]) == [40]
        assert len(kept) == 39
    with Store.open(tmp_path / "i").compact() as small:
        assert len(small.ids) == len(small) == 39
        assert 3 not in small.ids
        small.delete([40])
    with Store.open(tmp_path / "i").compact() as again:
        assert again.add(x[:1], payloads[:1]) == [41]  # an id is never used twice
        again.verify()
    assert sorted(p.name for p in (tmp_path / "i").iterdir()) == [
        "index.json",
        "lock",
        "log.3.jsonl",
        "payload.3.bin",
        "vectors.3.f32",
    ]


def test_one_writer_at_a_time_and_readers_meanwhile(tmp_path: Path) -> None:
    x, payloads = filled(tmp_path / "i")
    with Store.open(tmp_path / "i") as first, Store.open(tmp_path / "i") as second:
        first.add(x[:1], payloads[:1])
        with pytest.raises(SensoriumError, match="being changed by another process"):
            second.add(x[:1], payloads[:1])
        assert len(Store.open(tmp_path / "i")) == 41
        first.close()
        assert second.add(x[:1], payloads[:1]) == [41]  # and it has seen what the first one did


ADDER = """
import sys, numpy as np
from sensorium.tasks.store import Store
sys.path.insert(0, {tests!r})
{acknowledge}
with {store}.open(sys.argv[1]) as s:
    while True:
        n = len(s.ids)
        ids = s.add(np.full((2, {dim}), n, np.float32), [b"%d" % n] * 2)
        print("added", ids[0], flush=True)
        if n % 6 == 0:
            s.delete(ids[1:])
            print("deleted", ids[1], flush=True)
"""
HASTY = """
class Hasty(Store):
    held = []
    def add(self, vectors, payloads):                               # the fault: says so first, writes later
        self.held.append((vectors, payloads))
        if len(self.held) > 50:
            for v, p in self.held:
                super().add(v, p)
            self.held.clear()
        self.said = getattr(self, "said", len(self.ids)) + len(payloads)
        return [self.said - 2, self.said - 1]
    def delete(self, ids): ...
"""


def killed(path: Path, seconds: float, code: str) -> list[tuple[str, int]]:
    """What a child had acknowledged when it was killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout
    first = child.stdout.readline()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    os.kill(child.pid, signal.SIGKILL)
    lines = (first + child.stdout.read()).splitlines(keepends=True)
    child.stdout.close()
    child.wait()
    return [
        (words[0], int(words[1]))
        for line in lines
        if line.endswith("\n") and (words := line.split())
    ]


def lost(path: Path, said: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """What was acknowledged and is not so."""
    with Store.open(path) as kept:
        kept.verify()
        row = {i: r for r, i in enumerate(kept.ids)}
        return [
            (did, i)
            for did, i in said
            if i not in row
            or (did == "deleted") != (not kept.alive[row[i]])
            or kept.read_payload(row[i]) != b"%d" % (i - i % 2)
            or kept.vectors[row[i], 0] != i - i % 2
        ]


def test_what_is_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    with Store.create(tmp_path / "i", IndexHeader(DIM, "")) as made:
        made.publish()
    code = ADDER.format(tests=".", acknowledge="", store="Store", dim=DIM)
    said: list[tuple[str, int]] = []
    rng = np.random.default_rng(0)
    for _ in range(KILLS):
        said += killed(tmp_path / "i", rng.uniform(0, 0.06), code)
        with Store.open(tmp_path / "i") as kept:  # the next writer's numbers must stay even
            if len(kept.ids) % 2:
                raise AssertionError("half of an add was kept")
        assert not lost(tmp_path / "i", said)
    assert len(said) >= KILLS


def test_acknowledging_before_writing_is_found_out(tmp_path: Path) -> None:
    with Store.create(tmp_path / "i", IndexHeader(DIM, "")) as made:
        made.publish()
    said = killed(
        tmp_path / "i", 0.05, ADDER.format(tests=".", acknowledge=HASTY, store="Hasty", dim=DIM)
    )
    assert said
    assert lost(tmp_path / "i", said)


@pytest.mark.parametrize("honest", [True, False])
def test_power_cut_after_any_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    """Only what was synced is on the disk. With the last sync forgotten, rows are missing: the control."""
    synced: dict[str, bytes] = {}

    def sync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if honest or not path.name.startswith("log"):
            synced[path.name] = path.read_bytes()

    if not Path("/proc/self/fd").exists():
        pytest.skip("names of open files are read from /proc")
    monkeypatch.setattr(atomic, "sync", sync)
    x, payloads = filled(tmp_path / "i", 0)
    missing = 0
    with Store.open(tmp_path / "i") as kept:
        for i in range(6):
            kept.add(np.full((1, DIM), i, np.float32), [b"p"])
            after = tmp_path / f"cut{i}"
            after.mkdir()
            for name in ("vectors.1.f32", "payload.1.bin", "log.1.jsonl"):
                (after / name).write_bytes(synced.get(name, b""))
            shutil.copy(tmp_path / "i" / "index.json", after)
            missing += i + 1 - len(Store.open(after))
    assert (missing == 0) == honest


def test_a_torn_tail_is_cut_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x, payloads = filled(tmp_path / "i")
    log, vectors = tmp_path / "i" / "log.1.jsonl", tmp_path / "i" / "vectors.1.f32"
    whole = log.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for size in (last + 1, last + 9, last + 30, len(whole) - 2):
        log.write_bytes(whole[:size])
        with Store.open(tmp_path / "i") as kept:
            assert len(kept) == 30  # a reader passes over it: it may be being written
            caplog.clear()
            kept.lock()
            assert "log.1.jsonl: the last change was never finished" in caplog.text
        assert log.read_bytes() == whole[:last]
    log.write_bytes(whole[:-1])  # all but its end: nothing is missing
    assert len(Store.open(tmp_path / "i")) == 40
    log.write_bytes(whole[:last])
    with open(vectors, "ab") as file:
        file.write(b"half of a row")
    with Store.open(tmp_path / "i") as kept:
        kept.add(x[:1], payloads[:1])
    with Store.open(tmp_path / "i") as kept:
        kept.verify()
        assert np.array_equal(kept.vectors[-1], x[0])


@pytest.mark.parametrize("name", ["log.1.jsonl", "vectors.1.f32", "payload.1.bin"])
def test_damage_is_reported_with_the_file(tmp_path: Path, name: str) -> None:
    filled(tmp_path / "i")
    path = tmp_path / "i" / name
    whole = path.read_bytes()
    for at in (0, len(whole) // 3, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SensoriumError, match=f"{name} is damaged"):
            Store.open(tmp_path / "i").verify()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if name.startswith("log") else whole)
    Store.open(tmp_path / "i").verify()  # the end of the last line carries nothing
    path.unlink()
    with pytest.raises(SensoriumError, match=f"{name} is damaged: it is missing"):
        Store.open(tmp_path / "i")


def test_the_head_is_closed(tmp_path: Path) -> None:
    filled(tmp_path / "i")
    head = tmp_path / "i" / "index.json"
    good = json.loads(head.read_text())
    less = {k: v for k, v in good.items() if k != "dim"}
    for bad in (good | {"more": 1}, less, good | {"dim": "16"}, [], good | {"format": 9}):
        head.write_text(json.dumps(bad))
        with pytest.raises(SensoriumError, match="index.json"):
            Store.open(tmp_path / "i")
    with pytest.raises(SensoriumError, match="there is no index in"):
        Index.open(tmp_path)


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, payloads = filled(tmp_path / "i")
    real = os.pwrite
    with Store.open(tmp_path / "i") as kept:
        for part in range(3):
            calls: list[int] = []

            def full(
                fd: int, data: bytes, at: int, part: int = part, calls: list[int] = calls
            ) -> int:
                calls.append(1)
                if len(calls) > part:
                    real(fd, data[: len(data) // 2], at)
                    raise OSError(28, "No space left on device")
                return real(fd, data, at)

            with (
                monkeypatch.context() as patched,
                pytest.raises(SensoriumError, match="No space left"),
            ):
                patched.setattr(os, "pwrite", full)
                kept.add(x[:1], payloads[:1])
        assert kept.add(x[:1], payloads[:1]) == [40]
    Store.open(tmp_path / "i").verify()


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, colour in COLOURS.items():
        PIL.Image.new("RGB", (40, 24), colour).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name} <b>thing</b>")
    return Dataset.open(folder)


def test_index_from_pictures_to_answers(tmp_path: Path, data: Dataset) -> None:
    model = Words()
    with Index.build(model, data, tmp_path / "i") as index:
        assert len(index) == 4
        red, green = (tmp_path / "data" / f"{name}.png" for name in ("red", "green"))
        answer = index.search(image=red, k=9)
        assert len(answer) == 4
        assert "red" in answer[0].payload.name
        assert answer[0].score == pytest.approx(1, abs=1e-6)
        assert answer[0].payload.captions == ["red <b>thing</b>"]
        both = index.search(image=[red, green], k=1)
        assert ["red" in both[0][0].payload.name, "green" in both[1][0].payload.name] == [
            True,
            True,
        ]
        vectors = model.embed(image=[red, green])
        mixed = vectors[0] * 3 + vectors[1]
        one = index.search(image=red, vector=vectors[1], k=4, weights={"image": 3})
        assert [h.id for h in one] == [h.id for h in index.search(vector=mixed, k=4)]
        assert index.search(text="red", image=red, k=2)[0].score <= 1
        json.dumps(asdict(answer))
        index.delete([answer[0].id])
        assert "red" not in index.search(image=red, k=1)[0].payload.name
        new = index.add(image=[red])
        assert index.search(image=red, k=1)[0].id == new[0]
        index.compact()
        assert index.search(image=red, k=1)[0].id == new[0]
        assert len(index) == 4
    again = Index.open(tmp_path / "i", model=model)
    assert len(again.search(text=["red", "green"], k=2)) == 2


def test_index_of_words(tmp_path: Path, data: Dataset) -> None:
    column = data.schema.resolve_column("text")
    with Index.build(Words(), data, tmp_path / "i", column=column) as index:
        assert index.search(text="green <b>thing</b>", k=1)[0].payload.captions == [
            "green <b>thing</b>"
        ]
    temporary = Index.build(Words(), data)
    assert len(temporary) == 4


def test_what_index_refuses(tmp_path: Path, data: Dataset) -> None:
    index = Index.build(Words(), data, tmp_path / "i")
    nan = np.full(DIM, np.nan, np.float32)
    for ask, what in (
        ({"vector": np.ones(3)}, "16 numbers a vector"),
        ({"vector": nan}, "no direction"),
        ({}, "none"),
        ({"text": ["a", "b"], "image": ["c"]}, "2 text, 1 image"),
        ({"text": "a", "k": 0}, "k of 1"),
        ({"text": "a", "weights": {"image": 1}}, "weights"),
        ({"image": __file__}, "test_index.py"),
        ({"vector": np.zeros(DIM)}, "no direction"),
    ):
        with pytest.raises(SensoriumError, match=what):
            index.search(**ask)
    with pytest.raises(SensoriumError, match="no direction"):
        index.add(vector=[nan])
    other = Words()
    other.fingerprint = "e" * 64
    with pytest.raises(SensoriumError, match="another model"):
        Index.open(tmp_path / "i", model=other)
    with pytest.raises(SensoriumError, match="model=sn.load"):
        Index.open(tmp_path / "i").search(text="a")
    with pytest.raises(SensoriumError, match="not one of: exact, faiss"):
        Index.open(tmp_path / "i", engine="fast")
    with pytest.raises(SensoriumError, match="no split 'dev'"):
        Index.build(Words(), data, tmp_path / "j", split="dev")
    with pytest.raises(SensoriumError, match="something other than an index"):
        Index.build(Words(), data, tmp_path / "data")


def test_a_rebuild_takes_the_place_at_once(tmp_path: Path, data: Dataset) -> None:
    old = Index.build(Words(), data, tmp_path / "i")
    Index.build(Words(), data.take([0, 1]), tmp_path / "i")
    assert len(old.search(vector=np.ones(DIM), k=9)) == 4  # it still reads what it opened
    assert len(Index.open(tmp_path / "i")) == 2
    with pytest.raises(SensoriumError, match="rebuilt since"):
        old.delete([0])


def test_faiss_behind_the_same_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    x = np.random.default_rng(0).standard_normal((3000, DIM), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    with Store.create(tmp_path / "i", IndexHeader(DIM, "")) as made:
        made.add(x, [RowInfo(str(i), "vector", []).pack(b"") for i in range(3000)])
        made.publish()
    with Index.open(tmp_path / "i", engine="faiss") as index:
        assert index.search(vector=x[5], k=3)[0].id == 5
        assert "of the ten nearest" in capsys.readouterr().out
        index.delete([5])
        assert index.search(vector=x[5], k=1)[0].id != 5
        new = index.add(vector=[x[5]])
        assert index.search(vector=x[5], k=1)[0].id == new[0]


HOSTILE = '<script>alert(1)</script>" onerror="x" \' &'


def test_the_page_escapes_what_comes_from_data(tmp_path: Path) -> None:
    out = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(out, "PNG")
    hits = [
        Hit(0, 0.5, RowInfo(HOSTILE, "image", [HOSTILE])),
        Hit(1, -0.5, RowInfo("b", "image", [])),
    ]
    answer = SearchResult(HOSTILE, hits, [out.getvalue(), b""], out.getvalue())
    text = render_html([answer])
    assert "<script" not in text
    assert HOSTILE not in text
    assert '" onerror' not in text
    assert text.count("data:image/png;base64,") == 2
    assert "&lt;script&gt;" in text
    for name in ("a.png", "a.html"):
        save_results([answer, SearchResult("nothing", [])], tmp_path / name)
    with PIL.Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 500
    with pytest.raises(SensoriumError, match=r"\.png or \.html"):
        save_results([answer], tmp_path / "a.pdf")


def test_nothing_here_needs_more_than_it_says() -> None:
    assert index.HEADER_FILE == store.HEADER_FILE == "index.json"
