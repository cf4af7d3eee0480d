"""Series: what a gap and padding change (nothing), files that are hostile, and the walk from a table to a batch."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.modalities import series_io
from sensorium.modalities.series import Series, WindowEmbedding, standardize, subsample, valid_steps
from sensorium.modalities.series_pyramid import MultiscaleConv
from sensorium.models.towers import Encoder
from sensorium.nn.conv1d import Convolutions, max_pool_pairs
from sensorium.nn.tokens import valid_mask

NAN = float("nan")
TWO = Series(("x", "y"), (1.0, 10.0), (2.0, 5.0))


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- reading


def test_one_series_four_ways(tmp_path: Path) -> None:
    x = np.array([[1.0, 10.0], [NAN, 20.0], [5.0, NAN]])
    np.save(tmp_path / "x.npy", x)
    file = written(tmp_path / "x.csv", "time,y,x\n0,10,1\n1,20,\n\n2,n/a,5\n")
    expected = np.array([[0, 0], [NAN, 2], [2, NAN]], np.float32)
    for raw in (x, x.tolist(), tmp_path / "x.npy", file, str(file)):
        np.testing.assert_array_equal(TWO.load(raw), expected)
    assert TWO.load(x).dtype == np.float32


def test_german_and_tabbed_files_with_a_mark_at_their_head(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffx;y\r\n1;10\r\n".encode())
    (tmp_path / "b.csv").write_bytes(b"x\ty\n1\t10\n")
    assert [TWO.load(tmp_path / name).tolist() for name in ("a.csv", "b.csv")] == [[[0, 0]]] * 2


def test_a_channel_that_a_file_lacks_is_missing_throughout(tmp_path: Path) -> None:
    x = TWO.load(written(tmp_path / "x.csv", "y\n15\n20\n"))
    np.testing.assert_array_equal(x, np.array([[NAN, 1], [NAN, 2]], np.float32))


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "no channel"),
        ("time\n1\n", "no channel"),
        ("1,2\n3,4\n", "first line holds numbers"),
        ("x,y\n", "expected readings of some steps"),
        ("x,x\n1,2\n", "'x' twice"),
        ("x,y\n1\n", "line 2 has 1 cells"),
        ("x,y\n1,2\n3,four\n", "line 3, channel 'y': expected a number, found 'four'"),
        ("x,y\n1,inf\n", "infinite"),
        ("x,z\n1,2\n", "'z' is none of x, y"),
        ('x,y\n"1,2\n', "cells"),
        ("x\n" + "9" * 400 + "\n", "infinite"),
    ],
)
def test_a_file_that_is_no_series_says_why(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TWO.load(written(tmp_path / "x.csv", text))


@pytest.mark.parametrize(
    "raw, says",
    [
        (3.0, "found float"),
        ({"x": 1}, "found dict"),
        ([[1, 2], [3]], "as many at each step"),
        (["a"], "expected numbers"),
        ([], "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((3, 3)), "3 channels, where 2 are known"),
        (np.array([1j]), "complex"),
        (np.array(["a"], object), "object"),
        ([1.0, float("inf")], "infinite"),
        (Path("nowhere.csv"), "no such file"),
        (Path("a.xlsx"), "ends in .xlsx"),
        ("", "ends in neither"),
    ],
)
def test_a_value_that_is_no_series_says_why(raw: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        TWO.load(raw)


def test_hostile_files_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Series().load(path)

    big = tmp_path / "big.csv"
    with open(big, "wb") as file:
        file.truncate(series_io.MAX_FILE_BYTES + 1)  # a hole: nothing is written
    refused(big, "bytes: 67,108,864 are the most")
    huge = np.lib.format.open_memmap(tmp_path / "huge.npy", "w+", np.float32, (1 << 22, 8))
    del huge
    refused(tmp_path / "huge.npy", "4,194,304 steps of 8 channels")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    refused(tmp_path / "object.npy", "no array of numbers")
    with open(tmp_path / "several.npy", "wb") as file:
        np.savez(file, a=np.zeros(2))
    refused(tmp_path / "several.npy", "several arrays")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "object.npy").read_bytes()[:40])
    refused(tmp_path / "cut.npy", "damaged")
    (tmp_path / "bytes.csv").write_bytes(b"x\n\xff\xfe\n")
    refused(tmp_path / "bytes.csv", "UTF-8")
    written(
        tmp_path / "wide.csv",
        ",".join(f"c{i}" for i in range(1025)) + "\n" + ",".join(["1"] * 1025),
    )
    refused(tmp_path / "wide.csv", "1,024 channels")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "no such file")
    monkeypatch.setattr(series_io, "READINGS", 3)
    refused(written(tmp_path / "long.csv", "x\n1\n2\n3\n4\n"), "the most")


# ------------------------------------------------------------------------------------------------------ settings


def test_fit_learns_from_what_is_there_and_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    good = written(tmp_path / "a.csv", "time,v,w\n0,1,\n1,3,7\n")
    found = Series().fit(
        [None, tmp_path / "lost.csv", good, written(tmp_path / "b.csv", "w\n7\n"), "no"]
    )
    assert found == Series(("v", "w"), (2.0, 7.0), (1.0, 1.0), typical_length=1)
    assert Series().fit([]) == Series()
    assert Series().fit([[1.0, 2.0], [[3.0], [4.0]]]).channels == ("0",)


def test_settings_there_and_back() -> None:
    assert Series.from_json(json.loads(json.dumps(TWO.to_json()))) == TWO
    with pytest.raises(SensoriumError, match="unknown key 'colour'"):
        Series.from_json({"colour": 1})
    for wrong in ({"length": 0}, {"longer": "stretch"}, {"channels": ("x",)}):
        with pytest.raises(SensoriumError, match="series"):
            Series(**wrong)


def test_longer_ones_are_subsampled_or_cut() -> None:
    x = np.array([1.0, 3.0, NAN, 4.0, NAN, NAN, 8.0])
    np.testing.assert_array_equal(Series(length=4).load(x)[:, 0], [2, 4, NAN, 8])
    np.testing.assert_array_equal(Series(length=3, truncation="cut").load(x)[:, 0], [1, 3, NAN])
    np.testing.assert_array_equal(subsample(x[:, None], 7), x[:, None])


# --------------------------------------------------------------------------------------- gaps and padding


def test_a_gap_and_padding_are_the_same_and_zero_is_neither() -> None:
    batch = TWO.collate(
        [
            np.array([[0, NAN], [0, 1]], np.float32),
            np.array([[2, 3]], np.float32),
            np.zeros((0, 2), np.float32),
        ]
    )
    assert batch.tolist() == [
        [[0, 0, 1, 0], [0, 1, 1, 1]],
        [[2, 3, 1, 1], [0, 0, 0, 0]],
        [[0] * 4] * 2,
    ]
    assert valid_steps(batch).tolist() == [[True, True], [True, False], [False, False]]


def test_windows_without_a_reading_are_not_valid() -> None:
    torch.manual_seed(0)
    windows = WindowEmbedding(8, TWO, 2)
    x = torch.randn(7, 2).numpy()
    x[2:4] = NAN  # a gap of a whole window
    t = windows(TWO.collate([x, x[:3], x[:0]]))
    assert t.valid is not None
    assert t.valid.tolist() == [[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert t.pos[0, :, 0].tolist() == [0, 1, 2, 3]
    alone = windows(TWO.collate([x[:2]]))
    assert alone.valid is None
    torch.testing.assert_close(alone.x[0], t.x[1][t.valid[1]])


def test_each_series_is_seen_at_its_own_scale() -> None:
    x = torch.randn(9, 2).numpy()
    x[4, 0] = NAN
    small, large = (TWO.collate([scale * x + shift]) for scale, shift in ((0.01, 3.0), (1.0, 0.0)))
    (a, mean_a, spread_a), (b, mean_b, spread_b) = standardize(small), standardize(large)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    torch.testing.assert_close(mean_a, 0.01 * mean_b + 3, atol=1e-5, rtol=0)
    torch.testing.assert_close(spread_a, 0.01 * spread_b, atol=1e-5, rtol=0)
    windows = WindowEmbedding(8, TWO, 3)
    assert (windows(small).x - windows(large).x).abs().max() > 0.1, "how large it was is not lost"


def test_a_reading_that_is_missing_is_not_one_of_zero() -> None:
    windows = WindowEmbedding(8, TWO, 1)
    zero, missing = (
        windows(TWO.collate([np.array([[value, 1]], np.float32)])).x for value in (0, NAN)
    )
    assert (zero - missing).abs().max() > 1e-3


def test_convolutions_do_not_see_what_is_not_there() -> None:
    torch.manual_seed(0)
    read = Encoder(WindowEmbedding(8, TWO, 1), Convolutions(8, 2)).eval()
    x = torch.randn(9, 2).numpy()
    holes = x.copy()
    holes[3:5] = NAN
    t = read.embed(TWO.collate([holes]))
    noise = torch.where(t.valid[0, :, None], t.x, 1e3)  # pyright: ignore[reportOptionalSubscript]
    torch.testing.assert_close(read.trunk(t).x[t.valid], read.trunk(replace(t, x=noise)).x[t.valid])  # pyright: ignore


# --------------------------------------------------------------------------------------------------- augment, show


@pytest.mark.parametrize("usual", [12, 200])
def test_levels_do_not_see_what_is_not_there(usual: int) -> None:
    torch.manual_seed(0)
    levels = MultiscaleConv(
        16, Series(("a", "b"), (0.0,) * 2, (1.0,) * 2, typical_length=usual)
    ).eval()
    short = torch.cat([torch.randn(3, 90, 2), torch.ones(3, 90, 2)], -1)
    short[1, 60:] = 0
    said, padded = levels(short), levels(torch.nn.functional.pad(short, (0, 0, 0, 70)))
    n = said.x.shape[1]
    assert torch.allclose(padded.x[:, :n][valid_mask(said)], said.x[valid_mask(said)], atol=1e-5)
    assert not valid_mask(padded)[:, n:].any()
    alone = levels(short[1:2, :60])
    assert torch.allclose(alone.x[0], said.x[1, : alone.x.shape[1]], atol=1e-5)
    assert valid_mask(said)[1].sum() == alone.x.shape[1]


def test_of_each_pair_of_steps_the_larger_stays_of_those_that_are_there() -> None:
    x = torch.tensor([[[-3.0], [5.0], [-2.0], [-1.0], [7.0], [7.0]]])
    there = torch.tensor([[True, False, True, True, False, False]])
    left, valid = max_pool_pairs(x, there)
    assert left.flatten().tolist() == [-3.0, -1.0, 0.0]
    assert valid.tolist() == [[True, True, False]]


def test_noise_is_in_proportion_to_what_a_series_does() -> None:
    loud = torch.cat([torch.randn(1, 500, 1), torch.ones(1, 500, 1)], -1)
    both = torch.cat([loud, loud * torch.tensor([1e-2, 1.0])])
    noise = (Series().augment(both, torch.Generator().manual_seed(0), jitter=0.1) - both)[
        ..., 0
    ].std(1)
    assert noise / both[..., 0].std(1) == pytest.approx(torch.full((2,), 0.1), rel=0.15)


def test_changes_are_repeatable_and_keep_what_is_missing_missing() -> None:
    how = {"jitter": 0.1, "scale": 0.2, "crop": 0.6, "warp": 0.2, "channel_dropout": 0.3}
    batch = TWO.fake(16, torch.Generator().manual_seed(0))
    a, b = (TWO.augment(batch, torch.Generator().manual_seed(1), **how) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == batch.shape
    assert not torch.equal(a, batch)
    x, there = a.chunk(2, -1)
    assert not x[there == 0].any()
    assert set(there.unique().tolist()) == {0, 1}
    assert (valid_steps(a).sum(1) > 0).all()
    assert torch.equal(TWO.augment(batch, torch.Generator()), batch)


def test_a_crop_is_a_window_of_the_series() -> None:
    line = np.arange(20, dtype=np.float32)[:, None]
    one = Series(("x",), (0.0,), (1.0,))
    batch = one.collate([line + 100] * 32 + [line[:10] + 100])
    cut = one.augment(batch, torch.Generator().manual_seed(0), crop=0.5)
    lengths = valid_steps(cut).sum(1)
    assert lengths[:32].min() >= 10
    assert lengths[:32].max() <= 20
    assert lengths[32] >= 5
    for row, length in zip(cut[:, :, 0], lengths.tolist(), strict=True):
        assert (row[1:length] - row[: length - 1] == 1).all()
        assert not row[length:].any()
        assert row[0] >= 100
    assert cut[:32, 0, 0].max() > 100


def test_dropped_channels_are_never_all() -> None:
    x, there = TWO.augment(
        torch.ones(64, 3, 4), torch.Generator().manual_seed(0), channel_dropout=0.9
    ).chunk(2, -1)
    assert ((there.sum((1, 2)) == 3) | (there.sum((1, 2)) == 6)).all()
    assert (there[:, :, 0] != there[:, :, 1]).any()


def test_a_picture_of_it() -> None:
    batch = TWO.collate(
        [np.array([[0, 1], [NAN, 2], [1, NAN], [2, 0]], np.float32), np.zeros((0, 2), np.float32)]
    )
    seen, empty = (np.asarray(TWO.decode(row)) for row in batch)
    assert seen.shape == (160, 480, 3)
    assert (seen < 250).any(-1).sum() > (empty < 250).any(-1).sum() > 0


# ------------------------------------------------------------------------------------------- from a table to a batch


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    (tmp_path / "runs").mkdir()
    for i in range(12):
        rows = "".join(f"{step},{step + i},{'' if step == 1 else -step}\n" for step in range(3 + i))
        written(tmp_path / "runs" / f"{i}.csv", "time,x,y\n" + rows)
    lines = [
        f'runs/{i}.csv,"[{i}, null, {i + 2}]",{"walk" if i % 2 else "run"}\n' for i in range(12)
    ]
    return written(tmp_path / "table.csv", "motion,short,label\n" + "".join(lines) + ",,walk\n")


def test_from_a_table_to_a_batch(table: Path) -> None:
    data = Dataset.open(table)
    kinds = {name: column.kind for name, column in data.schema.columns.items()}
    assert kinds == {"motion": "series", "short": "series", "label": "category"}
    assert len(data) == 13
    assert "12 of 12 values end in .csv and 12 exist" in data.schema.columns["motion"].reason
    assert data.raw("motion", [0, 12]) == [table.parent / "runs/0.csv", None]
    schema = data.schema.fit(data, np.arange(13))
    motion = schema["motion"]
    assert isinstance(motion, Series)
    assert motion.channels == ("x", "y")
    assert motion.typical_length == 8
    prepared = data.prepare(schema, ["motion", "short", "label"])
    batch = prepared.batch([0, 11, 12])
    assert batch["motion"].shape == (3, 14, 4)
    assert batch.present["motion"].tolist() == [True, True, False]
    alone = motion.collate([motion.load(table.parent / "runs/11.csv")])
    assert torch.equal(batch["motion"][1], alone[0])
    assert not batch["motion"][2].any()
    assert batch["short"][0, :, 1].tolist() == [1, 0, 1]
    changed = [
        prepared.batch([0, 1], torch.Generator().manual_seed(0), {"motion": {"jitter": 1.0}})
        for _ in range(2)
    ]
    assert torch.equal(changed[0]["motion"], changed[1]["motion"])
    assert not torch.equal(changed[0]["motion"], prepared.batch([0, 1])["motion"])


def test_a_schema_there_and_back(table: Path, tmp_path: Path) -> None:
    data = Dataset.open(table, types={"motion": "series:length=4:longer=cut"})
    schema = data.schema.fit(data, np.arange(13))
    schema.save(tmp_path)
    again = Schema.load(tmp_path)
    assert again == schema
    first = [data.prepare(s, ["motion"]).batch([3])["motion"] for s in (schema, again)]
    assert torch.equal(*first)
    assert first[0].shape == (1, 4, 4)


def test_what_cannot_be_read_is_left_out_by_name(table: Path) -> None:
    written(table.parent / "runs" / "3.csv", "x,y\n1,zwei\n")
    (table.parent / "runs" / "4.csv").unlink()
    data = Dataset.open(table, max_invalid_fraction=0.5)
    assert [(b.location, b.column) for b in data.bad_samples] == [("table.csv:6", "motion")]
    assert "no file" in data.bad_samples[0].reason
    prepared = data.prepare(data.schema.fit(data, np.arange(12)), ["motion"], quiet=True)
    found = [b for b in prepared.bad_samples if b.location == "table.csv:5"]
    assert len(found) == 1
    assert "line 2, channel 'y': expected a number, found 'zwei'" in found[0].reason
    assert any("zwei" in b.reason for b in data.describe().bad_samples)
    written(table, "motion\n../outside.csv\nruns/1.csv\n")
    outside = Dataset.open(table, types={"motion": "series"}, max_invalid_fraction=0.5)
    assert "leads out of the folder" in outside.bad_samples[0].reason


def test_rows_of_one_series_are_the_same_thing(table: Path) -> None:
    (table.parent / "runs" / "1.csv").write_bytes((table.parent / "runs" / "0.csv").read_bytes())
    groups = Dataset.open(table, types={"short": "ignore"}).groups()
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 12
    numbers = Dataset.open(table, types={"motion": "ignore"}).groups()
    assert len(set(numbers.tolist())) == 13
