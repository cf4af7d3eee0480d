"""Decoded once, drawn in an order that can be resumed: the cache of pictures, batches, and the loader."""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from sensorium.data.cache import image_cache, prefetch
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader, epoch_order
from sensorium.data.schema import Column, Schema
from sensorium.data.tables import BadSample
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch, column_key

BOTH = ("caption", "german")  # read as one
TEXT = Text(length=8, vocab_size=400).fit(
    ["a cat", "a dog", "un chat", "un chien", "two cats and a dog"] * 5
)


class Rows:
    """A data set in memory."""

    def __init__(self, columns: dict[str, list[Any]], groups: list[int] | None = None):
        self.columns, self.bad = columns, list[BadSample]()
        self._groups = np.array(groups if groups is not None else range(len(self)), np.int64)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def raw(self, column: str, rows: Any) -> list[Any]:
        return [self.columns[column][i] for i in rows]

    def where(self, row: int) -> str:
        return f"row {row}"

    def groups(self) -> np.ndarray:
        return self._groups


def schema(**modalities: Any) -> Schema:
    return Schema({name: Column(name, modality) for name, modality in modalities.items()})


def picture(i: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)


def files(folder: Path, n: int = 6) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        PIL.Image.fromarray(picture(i)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def of_pictures(values: list[Any], image: Image | None = None, **how: Any) -> PreparedDataset:
    return PreparedDataset(
        Rows({"image": values}), schema(image=image or Image(size=8)), ["image"], quiet=True, **how
    )


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was decoded since the test began."""
    seen: list[Any] = []
    load = Image.load
    monkeypatch.setattr(
        Image, "load", lambda self, raw, into=None: (seen.append(raw), load(self, raw, into))[1]
    )
    return seen


# ---------------------------------------------------------------- decoded once


def test_pictures_come_as_loaded(tmp_path: Path) -> None:
    paths, image = files(tmp_path / "a"), Image(size=8, margin=2)
    raw = [paths[0], paths[1].read_bytes(), picture(2), None, paths[4]]
    prepared = of_pictures(raw, image)
    batch = prepared.batch([4, 0, 1, 3, 2])
    expected = image.collate([image.load(r) for r in (raw[4], raw[0], raw[1], raw[2])])
    assert torch.equal(batch["image"][[0, 1, 2, 4]], expected)
    assert batch.present["image"].tolist() == [True, True, True, False, True]
    assert batch.row.tolist() == [4, 0, 1, 3, 2]
    assert prepared.complete_rows().tolist() == [0, 1, 2, 4]
    assert np.array_equal(np.asarray(prepared.image("image", 2)), image.load(raw[2]))


@pytest.mark.parametrize("quick", [1e9, 0.0])
def test_pieces_come_in_order_from_one_thread_or_several(
    quick: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "QUICK", quick)
    threads = set[int]()

    def work(piece: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.002 * (piece % 3))  # they do not end in order
        return piece

    assert list(prefetch.prefetch(work, iter(range(60)), io_bound=True)) == list(range(60))
    assert (threads == {threading.get_ident()}) == (quick > 1)
    assert list(prefetch.prefetch(work, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch.prefetch(lambda piece: 1 // (5 - piece), range(9)))


@pytest.mark.parametrize("kind", ["path", "bytes", "array"])
def test_nothing_is_decoded_twice(kind: str, tmp_path: Path, decodes: list[Any]) -> None:
    paths = files(tmp_path / "a")
    arrays = list(map(picture, range(6)))
    values: list[Any] = {"path": paths, "bytes": [p.read_bytes() for p in paths], "array": arrays}[
        kind
    ]
    first = of_pictures(values).batch(range(6))["image"]
    assert len(decodes) == 6
    assert torch.equal(of_pictures(values).batch(range(6))["image"], first)
    assert len(decodes) == 6
    of_pictures(values, Image(size=8, mean=(0.1, 0.2, 0.3)))  # normalised after the cache
    assert len(decodes) == 6


def test_other_settings_or_files_are_decoded_anew(tmp_path: Path, decodes: list[Any]) -> None:
    paths = files(tmp_path / "a")
    of_pictures(paths)
    for image in (Image(size=9), Image(size=8, margin=2), Image(size=8, resize_mode="pad")):
        decodes.clear()
        assert of_pictures(paths, image).batch([0])["image"].shape[-1] == image.size
        assert len(decodes) == 6
    for values in (paths[:5], paths[::-1], [*paths[:5], None]):
        decodes.clear()
        of_pictures(values)
        assert decodes
    decodes.clear()
    PIL.Image.fromarray(picture(99)).save(paths[3])
    os.utime(paths[3], ns=(1, time.time_ns() + 5))
    assert torch.equal(
        of_pictures(paths).batch([3])["image"],
        Image(size=8).collate([Image(size=8).load(picture(99))]),
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "notes", "longer", "magic"])
def test_a_damaged_cache_is_said_and_made_anew(
    damage: str, home: Path, capfd: pytest.CaptureFixture
) -> None:
    values = [picture(i) for i in range(6)]
    expected = of_pictures(values).batch(range(6))["image"].clone()
    (path,) = (home / "cache" / "pictures").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[700] ^= 4
    elif damage == "notes":
        data[8 * 8 * 3 * 6 + 4] ^= 4
    elif damage == "magic":
        data[-1] ^= 4
    path.write_bytes({"cut": data[:-100], "empty": b"", "longer": data + b"x"}.get(damage, data))
    prepared = PreparedDataset(Rows({"image": values}), schema(image=Image(size=8)), ["image"])
    assert torch.equal(prepared.batch(range(6))["image"], expected)
    assert "damaged" in capfd.readouterr().err
    again = PreparedDataset(Rows({"image": values}), schema(image=Image(size=8)), ["image"])
    assert torch.equal(again.batch([1])["image"], expected[1:2])
    assert "damaged" not in capfd.readouterr().err


def test_many_blocks_are_all_checked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "BLOCK", 100)
    values = [picture(i) for i in range(100)]
    of_pictures(values)
    (path,) = (home / "cache" / "pictures").iterdir()
    good = path.read_bytes()
    for at in (0, 99, 100, 8 * 8 * 3 * 50, 8 * 8 * 3 * 100 - 1):
        data = bytearray(good)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match="have changed"):
            image_cache._open_image_cache(path, 100, 8)


def test_bad_pictures_are_named_and_counted(
    tmp_path: Path, decodes: list[Any], capfd: pytest.CaptureFixture
) -> None:
    values: list[Any] = [picture(i) for i in range(100)]
    values[7], values[8] = b"not a picture", None
    prepared = PreparedDataset(Rows({"image": values}), schema(image=Image(size=8)), ["image"])
    for p in (
        prepared,
        PreparedDataset(Rows({"image": values}), schema(image=Image(size=8)), ["image"]),
    ):
        assert [(b.row, b.column, b.location) for b in p.bad_samples] == [(7, "image", "row 7")]
        assert "JPEG" in p.bad_samples[0].reason
        assert not p.batch([7]).present["image"]
        assert len(p.complete_rows([6, 7, 8, 9])) == 2
    assert len(decodes) == 99, "what is bad is remembered too"
    assert "left out: row 7" in capfd.readouterr().err
    values[9] = b"another"
    with pytest.raises(SensoriumError, match=r"2 of 100 rows(.|\n)*row 7(.|\n)*row 9"):
        of_pictures(values)
    assert len(of_pictures(values, max_invalid_fraction=0.02).bad_samples) == 2


def test_files_used_least_are_removed_over_the_budget(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [[picture(10 * k + i) for i in range(4)] for k in range(4)]
    for k, values in enumerate(sets):
        of_pictures(values)
        newest = max((home / "cache" / "pictures").iterdir(), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (1000 + k, 1000 + k))
    of_pictures(sets[0])  # used again just now
    left_over = home / "cache" / "pictures" / ".x.1.tmp"
    left_over.write_bytes(b"x")
    os.utime(left_over, (1, 1))
    size = max(p.stat().st_size for p in (home / "cache" / "pictures").iterdir())
    monkeypatch.setenv("SENSORIUM_CACHE_GB", str(2.5 * size / 1e9))
    of_pictures([picture(100 + i) for i in range(4)])
    assert len(list((home / "cache" / "pictures").iterdir())) == 2
    seen = list[Any]()
    monkeypatch.setattr(Image, "load", lambda self, raw: seen.append(raw))
    of_pictures(sets[0])
    assert not seen
    assert not left_over.exists()
    monkeypatch.setenv("SENSORIUM_CACHE_GB", "much")
    with pytest.raises(SensoriumError, match="SENSORIUM_CACHE_GB"):
        image_cache.prune_cache(home / "cache" / "pictures" / "x")


def test_a_home_that_cannot_be_written_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "file"))
    with pytest.raises(SensoriumError, match="SENSORIUM_HOME"):
        of_pictures([picture(0)])


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENSORIUM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert image_cache.image_cache_folder() == Path("/x/sensorium/pictures")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert image_cache.image_cache_folder() == Path.home() / ".cache" / "sensorium" / "pictures"


def _prepare(start: Any, ready: Any, done: Any) -> None:
    ready.set()
    start.wait(60)
    done.put(
        float(
            of_pictures([picture(i) for i in range(300)]).batch(range(300))["image"].double().sum()
        )
    )


def test_two_processes_at_once() -> None:
    context = multiprocessing.get_context("spawn")
    start, ready, done = context.Event(), context.Event(), context.Queue()
    other = context.Process(target=_prepare, args=(start, ready, done))
    other.start()
    assert ready.wait(120)
    start.set()
    _prepare(start, ready, done)
    assert done.get(timeout=60) == done.get(timeout=60)
    other.join()
    assert other.exitcode == 0
    assert [p.name[0] for p in image_cache.image_cache_folder().iterdir()] != ["."]


def test_no_rows_and_no_pictures() -> None:
    assert len(of_pictures([])) == 0
    assert of_pictures([]).batch([])["image"].shape == (0, 3, 8, 8)
    batch = of_pictures([None, None]).batch([1, 0])
    assert not batch.present["image"].any()
    assert batch["image"].isfinite().all()


# ---------------------------------------------------------------- words, numbers, categories

CAPTIONS = ["a cat", None, ["a dog", "two cats and a dog"], [], ["un chat"]]
GERMAN = [["un chat", "a dog"], "un chien", None, None, "a cat"]


def of_words(**columns: Any) -> PreparedDataset:
    return PreparedDataset(
        Rows(columns),
        schema(**dict.fromkeys(columns, TEXT)),
        [column_key([*columns])],
        quiet=True,
        max_invalid_fraction=1.0,
    )


def test_the_first_caption_without_a_generator() -> None:
    prepared = of_words(caption=CAPTIONS)
    batch = prepared.batch(np.arange(5))
    assert torch.equal(
        batch["caption"][[0, 2, 4]], TEXT.collate(TEXT.encode(["a cat", "a dog", "un chat"]))
    )
    assert batch.present["caption"].tolist() == [True, False, True, False, True]
    assert (batch["caption"][[1, 3]] == TEXT.pad).all()
    assert prepared.caption("caption", 2) == "a dog"
    assert prepared.caption("caption", 1) == ""
    assert prepared.batch([1])["caption"].shape == (1, 1)


def test_joined_columns_are_one_with_all_captions() -> None:
    prepared = of_words(caption=CAPTIONS, german=GERMAN)
    assert list(prepared.columns) == [BOTH]
    seen: dict[int, set[str]] = {}
    for seed in range(60):
        batch = prepared.batch(np.arange(5), torch.Generator().manual_seed(seed))
        for row, ids in enumerate(batch[BOTH]):
            seen.setdefault(row, set()).add(TEXT.decode(ids))
    assert seen == {
        0: {"a cat", "un chat", "a dog"},
        1: {"un chien"},
        2: {"a dog", "two cats and a dog"},
        3: {""},
        4: {"un chat", "a cat"},
    }
    assert batch.present[BOTH].tolist() == [True, True, True, False, True]
    assert prepared.caption(BOTH, 1) == "un chien"


def test_captions_are_drawn_evenly_and_again_alike() -> None:
    prepared = of_words(caption=[["a cat", "a dog", "un chat", "un chien"]])
    rows = np.zeros(4000, int)
    drawn = prepared.batch(rows, torch.Generator().manual_seed(1))["caption"]
    assert torch.equal(drawn, prepared.batch(rows, torch.Generator().manual_seed(1))["caption"])
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 850


def test_several_captions_lie_evenly_over_the_list() -> None:
    """As many as there are columns of equal length: one of each, whatever the start."""
    prepared = of_words(
        caption=[["a cat", "a dog"]] * 9 + [None], german=[["un chat", "un chien"]] * 9 + [None]
    )
    how = {BOTH: {"captions": 2.0}}
    drawn = prepared.batch(range(10), torch.Generator().manual_seed(0), how)[BOTH]
    assert drawn.shape[:2] == (10, 2)
    assert (drawn[9] == TEXT.pad).all()
    said = {tuple(TEXT.decode(ids) for ids in row) for row in drawn[:9]}
    assert said == {("a cat", "un chat"), ("a dog", "un chien")}
    assert prepared.batch(range(10), None, how)[BOTH].ndim == 2
    fewer = prepared.batch(
        range(9), torch.Generator(), {BOTH: {"captions": 2.0, "token_dropout": 0.5}}
    )
    assert fewer[BOTH].shape[:2] == (9, 2)


def test_words_are_dropped_when_asked() -> None:
    prepared = of_words(caption=["two cats and a dog"] * 50)
    plain = prepared.batch(range(50), torch.Generator())["caption"]
    fewer = prepared.batch(range(50), torch.Generator(), {"caption": {"token_dropout": 0.5}})[
        "caption"
    ]
    assert (fewer != TEXT.pad).sum() < (plain != TEXT.pad).sum()
    with pytest.raises(SensoriumError, match="captoin"):
        prepared.batch([0], torch.Generator(), {"captoin": {"token_dropout": 0.5}})


def test_what_is_no_text_is_bad() -> None:
    assert [(b.row, b.reason) for b in of_words(caption=["a", 3, ["a", None]]).bad_samples] == [
        (1, "expected text, found int"),
        (2, "expected text, found NoneType"),
    ]


def test_numbers_and_categories() -> None:
    columns = {"price": [1.0, None, 3.0, float("inf")], "kind": ["a", "b", None, "c"]}
    known = schema(price=Numeric(2.0, 2.0), kind=Category(("a", "b")))
    prepared = PreparedDataset(
        Rows(columns), known, ["price", "kind"], quiet=True, max_invalid_fraction=0.5
    )
    batch = prepared.batch(range(4))
    assert batch["price"][[0, 2]].tolist() == [-0.5, 0.5]
    assert batch["kind"][:2].tolist() == [0, 1]
    assert batch.present["price"].tolist() == [True, False, True, False]
    assert batch.present["kind"].tolist() == [True, True, False, True]
    assert batch["kind"][3] == 2, "a class that training did not see is one of its own"
    assert [(b.row, b.column) for b in prepared.bad_samples] == [(3, "price")]


def test_columns_that_are_not_there_or_do_not_join() -> None:
    with pytest.raises(SensoriumError, match="foo"):
        PreparedDataset(Rows({"a": ["x"]}), schema(a=TEXT), ["foo"])
    with pytest.raises(SensoriumError, match="must hold text"):
        PreparedDataset(
            Rows({"a": [1.0], "b": [2.0]}), schema(a=Numeric(), b=Numeric()), [("a", "b")]
        )


# ---------------------------------------------------------------- the loader


@pytest.fixture
def mixed() -> PreparedDataset:
    n = 23
    captions = [["a cat", "a dog", f"two cats {i}"] for i in range(n)]
    rows = Rows(
        {"image": [picture(i) for i in range(n)], "caption": captions}, [i // 3 for i in range(n)]
    )
    return PreparedDataset(
        rows, schema(image=Image(size=8), caption=TEXT), ["image", "caption"], quiet=True
    )


AUGMENT = {
    "image": {"flip": 0.5, "shift": 0.2, "brightness": 0.3, "erase": 0.5},
    "caption": {"token_dropout": 0.3},
}


def taken(loader: BatchLoader, n: int) -> list[Batch]:
    return [batch for _, batch in zip(range(n), loader, strict=False)]


def same(a: Batch, b: Batch) -> bool:
    one, other = (
        {**batch.columns, "mask of": batch.present, "row of": batch.row, "group of": batch.group}
        for batch in (a, b)
    )
    assert one.pop("mask of").keys() == other.pop("mask of").keys()
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[k], other[k]) for k in one)
        and all(torch.equal(a.present[k], b.present[k]) for k in a.present)
    )


def test_every_row_once_an_epoch(mixed: PreparedDataset) -> None:
    rows = np.arange(2, 20)
    loader = BatchLoader(mixed, rows, 5, drop_last=False)
    assert loader.steps_per_epoch == 4
    orders = []
    for _ in range(3):
        batches = taken(loader, 4)
        assert [len(b) for b in batches] == [5, 5, 5, 3]
        orders.append(torch.cat([b.row for b in batches]).tolist())
        assert sorted(orders[-1]) == rows.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_dropped_rows_differ_from_epoch_to_epoch(mixed: PreparedDataset) -> None:
    loader = BatchLoader(mixed, np.arange(23), 5)
    assert loader.steps_per_epoch == 4
    left = []
    for _ in range(6):
        seen = torch.cat([b.row for b in taken(loader, 4)]).tolist()
        assert len(set(seen)) == 20
        left.append(frozenset(range(23)) - set(seen))
    assert len(set(left)) > 1
    assert [len(b) for b in taken(BatchLoader(mixed, [3, 1], 5), 3)] == [2, 2, 2]


def test_batches_depend_on_seed_epoch_and_position_alone(mixed: PreparedDataset) -> None:
    a, b = (BatchLoader(mixed, np.arange(23), 4, seed=3, augment=AUGMENT) for _ in range(2))
    in_order = taken(a, 15)
    for i in (14, 0, 7, 5, 6):
        assert same(b.batch(i // 5, i % 5), in_order[i])
    assert not same(
        BatchLoader(mixed, np.arange(23), 4, seed=4, augment=AUGMENT).batch(0, 0), in_order[0]
    )
    assert not torch.equal(
        in_order[0]["image"][0], mixed.batch(in_order[0].row.numpy())["image"][0]
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    b.batch(0, 0)
    assert torch.equal(torch.get_rng_state(), before), (
        "the state of the program's own generator is left alone"
    )


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 11])
def test_resumed_is_uninterrupted(stop: int, mixed: PreparedDataset) -> None:
    import json

    make = lambda seed=7: BatchLoader(
        mixed, np.arange(23), 4, seed=seed, augment=AUGMENT, samples_per_group=2
    )  # noqa: E731
    whole = taken(make(), 16)
    first = make()
    taken(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    again = make(0)
    again.load_state_dict(state)
    assert again.state_dict() == first.state_dict()
    for expected, batch in zip(whole[stop:], again, strict=False):
        assert same(batch, expected)


def test_restore_refuses_what_it_was_not_saved_from(mixed: PreparedDataset) -> None:
    state = BatchLoader(mixed, np.arange(20), 4).state_dict()
    for n, size, each in ((19, 4, 0), (20, 5, 0), (20, 4, 2)):
        other = BatchLoader(mixed, np.arange(n), size, samples_per_group=each)
        with pytest.raises(SensoriumError, match="cannot go on"):
            other.load_state_dict(state)


@pytest.mark.parametrize("each", [2, 3, 4])
def test_pieces_of_one_group(each: int) -> None:
    groups = np.random.default_rng(0).integers(0, 9, 50)
    rows = np.arange(100, 150)
    a, b = (epoch_order(rows, groups, each, epoch, 0) for epoch in range(2))
    assert len(a) % each == 0
    assert set(a) == set(rows)
    assert not np.array_equal(a, b)
    pieces = groups[a - 100].reshape(-1, each)
    assert (pieces == pieces[:, :1]).all()
    for g in set(groups):
        assert (groups[a - 100] == g).sum() == -(-(groups == g).sum() // each) * each
    assert (pieces[1:, 0] != pieces[:-1, 0]).any()


def test_a_batch_holds_each_group_once_where_it_can() -> None:
    groups = np.repeat(np.arange(100), 6)
    found = groups[epoch_order(np.arange(600), groups, 2, 0, 0)].reshape(-1, 2)[:, 0]
    assert all(len(set(batch)) == 20 for batch in found.reshape(-1, 20))


def test_rows_of_a_piece_differ_where_they_can() -> None:
    found = epoch_order(np.arange(12), np.repeat(np.arange(4), 3), 2, 0, 0).reshape(-1, 2)
    assert len(found) == 8
    assert (found[:, 0] != found[:, 1]).all()
    lonely = epoch_order(np.arange(4), np.arange(4), 2, 0, 0).reshape(-1, 2)
    assert (lonely[:, 0] == lonely[:, 1]).all(), "a row without a partner is its own"


def test_wrong_settings_of_a_loader(mixed: PreparedDataset) -> None:
    for rows, size, each in (([], 4, 0), ([1], 0, 0), ([1, 2], 5, 2), ([1], 4, -1)):
        with pytest.raises(SensoriumError):
            BatchLoader(mixed, rows, size, samples_per_group=each)


def test_a_real_folder(tmp_path: Path) -> None:
    files(tmp_path / "a", 12)
    for i in range(12):
        (tmp_path / "a" / f"{i}.txt").write_text(f"picture {i}")
    data = Dataset.open(tmp_path / "a")
    fitted = data.schema.fit(data, np.arange(12))
    columns = [fitted.resolve_column("image", None), fitted.resolve_column("text", None)]
    batch = next(iter(BatchLoader(data.prepare(fitted, columns, quiet=True), np.arange(12), 6)))
    assert batch[columns[0]].shape[:2] == (6, 3)
    assert batch[columns[1]].shape[0] == 6
    assert len(batch.group.unique()) == 6
