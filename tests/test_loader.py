"""The image cache, prepared columns, batches and the batch loader."""

import json
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
from fixtures.in_memory import InMemoryDataset, schema_of

from sensorium.data.cache import image_cache, prefetch
from sensorium.data.cache.columns import Augment
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.loader import BatchLoader, epoch_order
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.tabular import Category, Numeric
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch, column_key

JOINED = ("caption", "german")
TEXT = Text(length=8, vocab_size=400).fit(
    ["a cat", "a dog", "un chat", "un chien", "two cats and a dog"] * 5
)


def make_image(i: int, side: int = 12) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)


def write_images(folder: Path, n: int = 6) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        PIL.Image.fromarray(make_image(i)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def prepare_images(
    values: list[Any], image: Image | None = None, **options: Any
) -> PreparedDataset:
    return PreparedDataset(
        InMemoryDataset({"image": values}),
        schema_of(image=image or Image(size=8)),
        ["image"],
        quiet=True,
        **options,
    )


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Raw values of the images decoded since the test began."""
    decoded: list[Any] = []
    load = Image.load
    monkeypatch.setattr(
        Image, "load", lambda self, raw, out=None: (decoded.append(raw), load(self, raw, out))[1]
    )
    return decoded


# The image cache ------------------------------------------------------------


def test_prepared_images_equal_loaded_images(tmp_path: Path) -> None:
    paths, image = write_images(tmp_path / "a"), Image(size=8, margin=2)
    raw = [paths[0], paths[1].read_bytes(), make_image(2), None, paths[4]]
    prepared = prepare_images(raw, image)
    batch = prepared.batch([4, 0, 1, 3, 2])
    expected = image.collate([image.load(r) for r in (raw[4], raw[0], raw[1], raw[2])])
    assert torch.equal(batch["image"][[0, 1, 2, 4]], expected)
    assert batch.present["image"].tolist() == [True, True, True, False, True]
    assert rows_of(batch) == [4, 0, 1, 3, 2]
    assert prepared.complete_rows().tolist() == [0, 1, 2, 4]
    assert np.array_equal(np.asarray(prepared.image("image", 2)), image.load(raw[2]))


@pytest.mark.parametrize("max_serial_seconds", [1e9, 0.0])
def test_prefetch_keeps_order_on_one_or_several_threads(
    max_serial_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "MAX_SERIAL_SECONDS", max_serial_seconds)
    threads: set[int] = set()

    def identity(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.002 * (item % 3))  # so that they do not finish in order
        return item

    assert list(prefetch.prefetch(identity, iter(range(60)), io_bound=True)) == list(range(60))
    assert (threads == {threading.get_ident()}) == (max_serial_seconds > 1)
    assert list(prefetch.prefetch(identity, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(prefetch.prefetch(lambda item: 1 // (5 - item), range(9)))


@pytest.mark.parametrize("kind", ["path", "bytes", "array"])
def test_images_are_decoded_once(kind: str, tmp_path: Path, decodes: list[Any]) -> None:
    paths = write_images(tmp_path / "a")
    arrays = list(map(make_image, range(6)))
    values: list[Any] = {"path": paths, "bytes": [p.read_bytes() for p in paths], "array": arrays}[
        kind
    ]
    first = prepare_images(values).batch(range(6))["image"]
    assert len(decodes) == 6
    assert torch.equal(prepare_images(values).batch(range(6))["image"], first)
    assert len(decodes) == 6
    prepare_images(values, Image(size=8, mean=(0.1, 0.2, 0.3)))  # normalised after the cache
    assert len(decodes) == 6


def test_changed_settings_or_files_are_decoded_again(tmp_path: Path, decodes: list[Any]) -> None:
    paths = write_images(tmp_path / "a")
    prepare_images(paths)
    for image in (Image(size=9), Image(size=8, margin=2), Image(size=8, resize_mode="pad")):
        decodes.clear()
        assert prepare_images(paths, image).batch([0])["image"].shape[-1] == image.size
        assert len(decodes) == 6
    for values in (paths[:5], paths[::-1], [*paths[:5], None]):
        decodes.clear()
        prepare_images(values)
        assert decodes
    decodes.clear()
    PIL.Image.fromarray(make_image(99)).save(paths[3])
    os.utime(paths[3], ns=(1, time.time_ns() + 5))
    assert torch.equal(
        prepare_images(paths).batch([3])["image"],
        Image(size=8).collate([Image(size=8).load(make_image(99))]),
    )


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "metadata", "longer", "magic"])
def test_damaged_image_cache_is_reported_and_rebuilt(
    damage: str, home: Path, capfd: pytest.CaptureFixture
) -> None:
    values = [make_image(i) for i in range(6)]
    expected = prepare_images(values).batch(range(6))["image"].clone()
    (path,) = (home / "cache" / "images").iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[700] ^= 4
    elif damage == "metadata":
        data[8 * 8 * 3 * 6 + 4] ^= 4
    elif damage == "magic":
        data[-1] ^= 4
    path.write_bytes({"cut": data[:-100], "empty": b"", "longer": data + b"x"}.get(damage, data))
    prepared = PreparedDataset(
        InMemoryDataset({"image": values}), schema_of(image=Image(size=8)), ["image"]
    )
    assert torch.equal(prepared.batch(range(6))["image"], expected)
    assert "damaged" in capfd.readouterr().err
    again = PreparedDataset(
        InMemoryDataset({"image": values}), schema_of(image=Image(size=8)), ["image"]
    )
    assert torch.equal(again.batch([1])["image"], expected[1:2])
    assert "damaged" not in capfd.readouterr().err


def test_every_block_has_a_verified_checksum(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "CHECKSUM_BLOCK_BYTES", 100)
    values = [make_image(i) for i in range(100)]
    prepare_images(values)
    (path,) = (home / "cache" / "images").iterdir()
    good = path.read_bytes()
    for at in (0, 99, 100, 8 * 8 * 3 * 50, 8 * 8 * 3 * 100 - 1):
        data = bytearray(good)
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match="have changed"):
            image_cache.open_image_cache(path, 100, 8)


def test_bad_images_are_reported_and_counted(
    tmp_path: Path, decodes: list[Any], capfd: pytest.CaptureFixture
) -> None:
    values: list[Any] = [make_image(i) for i in range(100)]
    values[7], values[8] = b"not a picture", None
    prepared = PreparedDataset(
        InMemoryDataset({"image": values}), schema_of(image=Image(size=8)), ["image"]
    )
    for p in (
        prepared,
        PreparedDataset(
            InMemoryDataset({"image": values}), schema_of(image=Image(size=8)), ["image"]
        ),
    ):
        assert [(b.row, b.column, b.location) for b in p.bad_samples] == [(7, "image", "row 7")]
        assert "JPEG" in p.bad_samples[0].reason
        assert not p.batch([7]).present["image"]
        assert len(p.complete_rows([6, 7, 8, 9])) == 2
    assert len(decodes) == 99, "bad images are cached too"
    assert "left out: row 7" in capfd.readouterr().err
    values[9] = b"another"
    with pytest.raises(SensoriumError, match=r"2 of 100 rows(.|\n)*row 7(.|\n)*row 9"):
        prepare_images(values, max_invalid_fraction=0)
    assert len(prepare_images(values)) == 100, "two bad rows never stop"
    assert len(prepare_images(values, max_invalid_fraction=0.02).bad_samples) == 2


def test_least_recently_used_files_are_removed_over_budget(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [[make_image(10 * k + i) for i in range(4)] for k in range(4)]
    for k, values in enumerate(sets):
        prepare_images(values)
        newest = max((home / "cache" / "images").iterdir(), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (1000 + k, 1000 + k))
    prepare_images(sets[0])  # used again just now
    left_over = home / "cache" / "images" / ".x.1.tmp"
    left_over.write_bytes(b"x")
    os.utime(left_over, (1, 1))
    size = max(p.stat().st_size for p in (home / "cache" / "images").iterdir())
    monkeypatch.setenv("SENSORIUM_CACHE_GB", str(2.5 * size / 1e9))
    prepare_images([make_image(100 + i) for i in range(4)])
    assert len(list((home / "cache" / "images").iterdir())) == 2
    decoded: list[Any] = []
    monkeypatch.setattr(Image, "load", lambda self, raw, out=None: decoded.append(raw))
    prepare_images(sets[0])
    assert not decoded
    assert not left_over.exists()
    monkeypatch.setenv("SENSORIUM_CACHE_GB", "much")
    with pytest.raises(SensoriumError, match="SENSORIUM_CACHE_GB"):
        image_cache.prune_cache(home / "cache" / "images" / "x")


def test_unwritable_cache_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "file"))
    with pytest.raises(SensoriumError, match="SENSORIUM_HOME"):
        prepare_images([make_image(0)])


def test_image_cache_folder_follows_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENSORIUM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert image_cache.image_cache_folder() == Path("/x/sensorium/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert image_cache.image_cache_folder() == Path.home() / ".cache" / "sensorium" / "images"


def _prepare(start: Any, ready: Any, done: Any) -> None:
    ready.set()
    start.wait(60)
    done.put(
        float(
            prepare_images([make_image(i) for i in range(300)])
            .batch(range(300))["image"]
            .double()
            .sum()
        )
    )


def test_two_processes_write_the_same_cache() -> None:
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


def test_empty_dataset_and_missing_images() -> None:
    assert len(prepare_images([])) == 0
    assert prepare_images([]).batch([])["image"].shape == (0, 3, 8, 8)
    batch = prepare_images([None, None]).batch([1, 0])
    assert not batch.present["image"].any()
    assert batch["image"].isfinite().all()


# Texts, numbers, categories --------------------------------------------------

CAPTIONS = ["a cat", None, ["a dog", "two cats and a dog"], [], ["un chat"]]
GERMAN = [["un chat", "a dog"], "un chien", None, None, "a cat"]


def prepare_texts(**columns: Any) -> PreparedDataset:
    return PreparedDataset(
        InMemoryDataset(columns),
        schema_of(**dict.fromkeys(columns, TEXT)),
        [column_key([*columns])],
        quiet=True,
        max_invalid_fraction=1.0,
    )


def test_batch_without_generator_has_first_captions() -> None:
    prepared = prepare_texts(caption=CAPTIONS)
    batch = prepared.batch(np.arange(5))
    assert torch.equal(
        batch["caption"][[0, 2, 4]], TEXT.collate(TEXT.encode(["a cat", "a dog", "un chat"]))
    )
    assert batch.present["caption"].tolist() == [True, False, True, False, True]
    assert (batch["caption"][[1, 3]] == TEXT.pad).all()
    assert prepared.caption("caption", 2) == "a dog"
    assert prepared.caption("caption", 1) == ""
    assert prepared.batch([1])["caption"].shape == (1, 1)


def test_joined_text_columns_sample_all_captions() -> None:
    prepared = prepare_texts(caption=CAPTIONS, german=GERMAN)
    assert list(prepared.columns) == [JOINED]
    captions: dict[int, set[str]] = {}
    for seed in range(60):
        sampled = prepared.batch(np.arange(5), torch.Generator().manual_seed(seed))
        for row, ids in enumerate(sampled[JOINED]):
            captions.setdefault(row, set()).add(TEXT.decode(ids))
    assert captions == {
        0: {"a cat", "un chat", "a dog"},
        1: {"un chien"},
        2: {"a dog", "two cats and a dog"},
        3: {""},
        4: {"un chat", "a cat"},
    }
    present = prepared.batch(np.arange(5)).present
    assert present[JOINED].tolist() == [True, True, True, False, True]
    assert prepared.caption(JOINED, 1) == "un chien"


def test_captions_are_sampled_evenly_and_reproducibly() -> None:
    prepared = prepare_texts(caption=[["a cat", "a dog", "un chat", "un chien"]])
    rows = np.zeros(4000, int)
    sampled = prepared.batch(rows, torch.Generator().manual_seed(1))["caption"]
    assert torch.equal(sampled, prepared.batch(rows, torch.Generator().manual_seed(1))["caption"])
    _, counts = sampled.unique(dim=0, return_counts=True)
    assert len(counts) == 4
    assert counts.min() > 850


def test_several_captions_are_spread_over_the_list() -> None:
    """With as many captions as columns of equal length there is one of each, whatever the start."""
    prepared = prepare_texts(
        caption=[["a cat", "a dog"]] * 9 + [None], german=[["un chat", "un chien"]] * 9 + [None]
    )
    augment: Augment = {JOINED: {"captions": 2.0}}
    sampled = prepared.batch(range(10), torch.Generator().manual_seed(0), augment)[JOINED]
    assert sampled.shape[:2] == (10, 2)
    assert (sampled[9] == TEXT.pad).all()
    pairs = {tuple(TEXT.decode(ids) for ids in row) for row in sampled[:9]}
    assert pairs == {("a cat", "un chat"), ("a dog", "un chien")}
    assert prepared.batch(range(10), None, augment)[JOINED].ndim == 2
    with_dropout: Augment = {JOINED: {"captions": 2.0, "token_dropout": 0.5}}
    fewer = prepared.batch(range(9), torch.Generator(), with_dropout)
    assert fewer[JOINED].shape[:2] == (9, 2)


def test_token_dropout_removes_tokens() -> None:
    prepared = prepare_texts(caption=["two cats and a dog"] * 50)
    plain = prepared.batch(range(50), torch.Generator())["caption"]
    fewer = prepared.batch(range(50), torch.Generator(), {"caption": {"token_dropout": 0.5}})[
        "caption"
    ]
    assert (fewer != TEXT.pad).sum() < (plain != TEXT.pad).sum()
    with pytest.raises(SensoriumError, match="captoin"):
        prepared.batch([0], torch.Generator(), {"captoin": {"token_dropout": 0.5}})


def test_values_that_are_not_text_are_bad() -> None:
    assert [
        (b.row, b.reason) for b in prepare_texts(caption=["a", 3, ["a", None]]).bad_samples
    ] == [
        (1, "expected text, not int"),
        (2, "expected text, not NoneType"),
    ]


def test_numbers_and_categories_are_encoded() -> None:
    columns = {"price": [1.0, None, 3.0, float("inf")], "kind": ["a", "b", None, "c"]}
    known = schema_of(price=Numeric(2.0, 2.0), kind=Category(("a", "b")))
    prepared = PreparedDataset(
        InMemoryDataset(columns), known, ["price", "kind"], quiet=True, max_invalid_fraction=0.5
    )
    batch = prepared.batch(range(4))
    assert batch["price"][[0, 2]].tolist() == [-0.5, 0.5]
    assert batch["kind"][:2].tolist() == [0, 1]
    assert batch.present["price"].tolist() == [True, False, True, False]
    assert batch.present["kind"].tolist() == [True, True, False, True]
    assert batch["kind"][3] == 2, "an unseen class is a class of its own"
    assert [(b.row, b.column) for b in prepared.bad_samples] == [(3, "price")]


def test_unknown_or_unjoinable_columns_are_errors() -> None:
    with pytest.raises(SensoriumError, match="foo"):
        PreparedDataset(InMemoryDataset({"a": ["x"]}), schema_of(a=TEXT), ["foo"])
    with pytest.raises(SensoriumError, match="only text columns can be joined"):
        PreparedDataset(
            InMemoryDataset({"a": [1.0], "b": [2.0]}),
            schema_of(a=Numeric(), b=Numeric()),
            [("a", "b")],
        )


# The loader -----------------------------------------------------------------


@pytest.fixture
def mixed() -> PreparedDataset:
    n = 23
    captions = [["a cat", "a dog", f"two cats {i}"] for i in range(n)]
    rows = InMemoryDataset(
        {"image": [make_image(i) for i in range(n)], "caption": captions},
        [i // 3 for i in range(n)],
    )
    return PreparedDataset(
        rows, schema_of(image=Image(size=8), caption=TEXT), ["image", "caption"], quiet=True
    )


AUGMENT: Augment = {
    "image": {"flip": 0.5, "shift": 0.2, "brightness": 0.3, "erase": 0.5},
    "caption": {"token_dropout": 0.3},
}


def take_batches(loader: BatchLoader, n: int) -> list[Batch]:
    return [batch for _, batch in zip(range(n), loader, strict=False)]


def rows_of(batch: Batch) -> list[int]:
    assert batch.row is not None
    return batch.row.tolist()


def equal_batches(a: Batch, b: Batch) -> bool:
    assert a.columns.keys() == b.columns.keys()
    assert a.present.keys() == b.present.keys()
    pairs = [(a.row, b.row), (a.group, b.group)]
    pairs += [(a[key], b[key]) for key in a.columns]
    pairs += [(a.present[key], b.present[key]) for key in a.present]
    return all(
        one is not None and other is not None and torch.equal(one, other) for one, other in pairs
    )


def test_epoch_contains_every_row_once(mixed: PreparedDataset) -> None:
    rows = np.arange(2, 20)
    loader = BatchLoader(mixed, rows, 5, drop_last=False)
    assert loader.steps_per_epoch == 4
    orders = []
    for _ in range(3):
        batches = take_batches(loader, 4)
        assert [len(b) for b in batches] == [5, 5, 5, 3]
        orders.append([row for batch in batches for row in rows_of(batch)])
        assert sorted(orders[-1]) == rows.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_rows_dropped_by_drop_last_change_every_epoch(mixed: PreparedDataset) -> None:
    loader = BatchLoader(mixed, np.arange(23), 5)
    assert loader.steps_per_epoch == 4
    left = []
    for _ in range(6):
        epoch_rows = [row for batch in take_batches(loader, 4) for row in rows_of(batch)]
        assert len(set(epoch_rows)) == 20
        left.append(frozenset(range(23)) - set(epoch_rows))
    assert len(set(left)) > 1
    assert [len(b) for b in take_batches(BatchLoader(mixed, [3, 1], 5), 3)] == [2, 2, 2]


def test_batch_depends_on_seed_epoch_and_position_alone(mixed: PreparedDataset) -> None:
    a, b = (BatchLoader(mixed, np.arange(23), 4, seed=3, augment=AUGMENT) for _ in range(2))
    in_order = take_batches(a, 15)
    for i in (14, 0, 7, 5, 6):
        assert equal_batches(b.batch(i // 5, i % 5), in_order[i])
    assert not equal_batches(
        BatchLoader(mixed, np.arange(23), 4, seed=4, augment=AUGMENT).batch(0, 0), in_order[0]
    )
    assert not torch.equal(in_order[0]["image"][0], mixed.batch(rows_of(in_order[0]))["image"][0])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    b.batch(0, 0)
    assert torch.equal(torch.get_rng_state(), before), "the global random state is unchanged"


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 11])
def test_resumed_loader_yields_the_remaining_batches(stop: int, mixed: PreparedDataset) -> None:
    def make(seed: int = 7) -> BatchLoader:
        return BatchLoader(mixed, np.arange(23), 4, seed=seed, augment=AUGMENT, samples_per_group=2)

    uninterrupted = take_batches(make(), 16)
    first = make()
    take_batches(first, stop)
    state = json.loads(json.dumps(first.state_dict()))
    again = make(0)
    again.load_state_dict(state)
    assert again.state_dict() == first.state_dict()
    for expected, batch in zip(uninterrupted[stop:], again, strict=False):
        assert equal_batches(batch, expected)


def test_load_state_dict_rejects_other_rows_or_batch_size(mixed: PreparedDataset) -> None:
    state = BatchLoader(mixed, np.arange(20), 4).state_dict()
    for n, size, each in ((19, 4, 0), (20, 5, 0), (20, 4, 2)):
        other = BatchLoader(mixed, np.arange(n), size, samples_per_group=each)
        with pytest.raises(SensoriumError, match="cannot resume"):
            other.load_state_dict(state)


@pytest.mark.parametrize("each", [2, 3, 4])
def test_epoch_order_keeps_pieces_in_one_group(each: int) -> None:
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


def test_epoch_order_spreads_pieces_of_a_group() -> None:
    groups = np.repeat(np.arange(100), 6)
    first_groups = groups[epoch_order(np.arange(600), groups, 2, 0, 0)].reshape(-1, 2)[:, 0]
    assert all(len(set(batch)) == 20 for batch in first_groups.reshape(-1, 20))


def test_epoch_order_pairs_different_rows() -> None:
    pairs = epoch_order(np.arange(12), np.repeat(np.arange(4), 3), 2, 0, 0).reshape(-1, 2)
    assert len(pairs) == 8
    assert (pairs[:, 0] != pairs[:, 1]).all()
    single = epoch_order(np.arange(4), np.arange(4), 2, 0, 0).reshape(-1, 2)
    assert (single[:, 0] == single[:, 1]).all(), "a row without a partner is paired with itself"


def test_invalid_loader_arguments_are_errors(mixed: PreparedDataset) -> None:
    for rows, size, each, error in (
        ([], 4, 0, "there are no rows"),
        ([1], 0, 0, "--batch-size 0"),
        ([1, 2], 5, 2, "--batch-size 5 is not a positive multiple of --samples-per-group 2"),
        ([1], 4, -1, "--samples-per-group -1"),
    ):
        with pytest.raises(SensoriumError, match=error):
            BatchLoader(mixed, rows, size, samples_per_group=each)


def test_loader_on_an_image_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 12)
    for i in range(12):
        (tmp_path / "a" / f"{i}.txt").write_text(f"picture {i}")
    data = Dataset.open(tmp_path / "a")
    fitted = data.schema.fit(data, np.arange(12))
    columns = [fitted.resolve_column("image", None), fitted.resolve_column("text", None)]
    batch = next(iter(BatchLoader(data.prepare(fitted, columns, quiet=True), np.arange(12), 6)))
    assert batch[columns[0]].shape[:2] == (6, 3)
    assert batch[columns[1]].shape[0] == 6
    assert batch.group is not None
    assert len(batch.group.unique()) == 6
