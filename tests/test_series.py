"""Time series: missing values and padding, hostile files, augmentation, from table to batch."""

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
from sensorium.nn.conv1d import Convolutions, max_pool_pairs
from sensorium.nn.tokens import valid_mask

NAN = float("nan")
TWO = Series(("x", "y"), (1.0, 10.0), (2.0, 5.0))


def write_file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Reading ------------------------------------------------------------------------------------------


def test_array_list_npy_and_csv_give_the_same_series(tmp_path: Path) -> None:
    x = np.array([[1.0, 10.0], [NAN, 20.0], [5.0, NAN]])
    np.save(tmp_path / "x.npy", x)
    file = write_file(tmp_path / "x.csv", "time,y,x\n0,10,1\n1,20,\n\n2,n/a,5\n")
    expected = np.array([[0, 0], [NAN, 2], [2, NAN]], np.float32)
    for raw in (x, x.tolist(), tmp_path / "x.npy", file, str(file)):
        np.testing.assert_array_equal(TWO.load(raw), expected)
    assert TWO.load(x).dtype == np.float32


def test_csv_with_byte_order_mark_semicolons_or_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffx;y\r\n1;10\r\n".encode())
    (tmp_path / "b.csv").write_bytes(b"x\ty\n1\t10\n")
    assert [TWO.load(tmp_path / name).tolist() for name in ("a.csv", "b.csv")] == [[[0, 0]]] * 2


def test_channel_missing_from_a_file_is_nan(tmp_path: Path) -> None:
    x = TWO.load(write_file(tmp_path / "x.csv", "y\n15\n20\n"))
    np.testing.assert_array_equal(x, np.array([[NAN, 1], [NAN, 2]], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no channels"),
        ("time\n1\n", "no channels"),
        ("1,2\n3,4\n", "first line holds numbers"),
        ("x,y\n", "got shape"),
        ("x,x\n1,2\n", "'x' occurs twice"),
        ("x,y\n1\n", "line 2 has 1 cells"),
        ("x,y\n1,2\n3,four\n", "line 3, channel 'y': expected a number, got 'four'"),
        ("x,y\n1,inf\n", "infinite"),
        ("x,z\n1,2\n", "'z' is not one of x, y"),
        ('x,y\n"1,2\n', "cells"),
        ("x\n" + "9" * 400 + "\n", "infinite"),
    ],
)
def test_invalid_csv_is_rejected_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TWO.load(write_file(tmp_path / "x.csv", text))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (3.0, "got float"),
        ({"x": 1}, "got dict"),
        ([[1, 2], [3]], "the same count at each step"),
        (["a"], "expected numbers"),
        ([], "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((3, 3)), "3 channels, expected the 2 channels x, y"),
        (np.array([1j]), "complex"),
        (np.array(["a"], object), "object"),
        ([1.0, float("inf")], "infinite"),
        (Path("nowhere.csv"), "no such file"),
        (Path("a.xlsx"), "got .xlsx"),
        ("", "got none"),
    ],
)
def test_invalid_value_is_rejected_with_the_reason(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TWO.load(raw)


def test_hostile_files_are_rejected_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def assert_rejected(path: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Series().load(path)

    big = tmp_path / "big.csv"
    with big.open("wb") as file:
        file.truncate(series_io.MAX_FILE_BYTES + 1)  # sparse: nothing is written
    assert_rejected(big, "more than the limit of 67,108,864")
    huge = np.lib.format.open_memmap(tmp_path / "huge.npy", "w+", np.float32, (1 << 22, 8))
    del huge
    assert_rejected(tmp_path / "huge.npy", "4,194,304 steps of 8 channels")
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    assert_rejected(tmp_path / "object.npy", "not an array of numbers")
    with (tmp_path / "several.npy").open("wb") as file:
        np.savez(file, a=np.zeros(2))
    assert_rejected(tmp_path / "several.npy", "several arrays")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "object.npy").read_bytes()[:40])
    assert_rejected(tmp_path / "cut.npy", "damaged")
    (tmp_path / "bytes.csv").write_bytes(b"x\n\xff\xfe\n")
    assert_rejected(tmp_path / "bytes.csv", "UTF-8")
    write_file(
        tmp_path / "wide.csv",
        ",".join(f"c{i}" for i in range(1025)) + "\n" + ",".join(["1"] * 1025),
    )
    assert_rejected(tmp_path / "wide.csv", "1,024 channels")
    os.mkfifo(tmp_path / "pipe.csv")
    assert_rejected(tmp_path / "pipe.csv", "not a regular file")
    monkeypatch.setattr(series_io, "MAX_VALUES", 3)
    assert_rejected(write_file(tmp_path / "long.csv", "x\n1\n2\n3\n4\n"), "3 values")


# Settings -----------------------------------------------------------------------------------------


def test_fit_skips_missing_and_unreadable_series(tmp_path: Path) -> None:
    good = write_file(tmp_path / "a.csv", "time,v,w\n0,1,\n1,3,7\n")
    fitted = Series().fit(
        [None, tmp_path / "lost.csv", good, write_file(tmp_path / "b.csv", "w\n7\n"), "no"]
    )
    assert fitted == Series(("v", "w"), (2.0, 7.0), (1.0, 1.0), typical_length=1)
    assert Series().fit([]) == Series()
    assert Series().fit([[1.0, 2.0], [[3.0], [4.0]]]).channels == ("0",)


def test_settings_json_round_trip() -> None:
    assert Series.from_json(json.loads(json.dumps(TWO.to_json()))) == TWO
    with pytest.raises(SensoriumError, match="unknown key 'colour'"):
        Series.from_json({"colour": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"truncation": "stretch"}, "truncation='stretch'"),
        ({"channels": ("x",)}, "1 channels, 0 means"),
        ({"channels": ("x",), "mean": (0.0,), "std": (0.0,)}, "std=0.0"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SensoriumError, match=message):
        Series(**settings)


def test_long_series_are_subsampled_or_cut() -> None:
    x = np.array([1.0, 3.0, NAN, 4.0, NAN, NAN, 8.0])
    np.testing.assert_array_equal(Series(length=4).load(x)[:, 0], [2, 4, NAN, 8])
    np.testing.assert_array_equal(Series(length=3, truncation="cut").load(x)[:, 0], [1, 3, NAN])
    np.testing.assert_array_equal(subsample(x[:, None], 7), x[:, None])


# Missing values and padding -----------------------------------------------------------------------


def test_collate_masks_missing_values_and_padding() -> None:
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


def test_windows_without_values_are_invalid() -> None:
    torch.manual_seed(0)
    windows = WindowEmbedding(8, TWO, 2)
    x = torch.randn(7, 2).numpy()
    x[2:4] = NAN  # all of window 1
    t = windows(TWO.collate([x, x[:3], x[:0]]))
    assert t.valid is not None
    assert t.valid.tolist() == [[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert t.pos[0, :, 0].tolist() == [0, 1, 2, 3]
    alone = windows(TWO.collate([x[:2]]))
    assert alone.valid is None
    torch.testing.assert_close(alone.x[0], t.x[1][t.valid[1]])


def test_standardize_removes_scale_and_windows_keep_it() -> None:
    x = torch.randn(9, 2).numpy()
    x[4, 0] = NAN
    small, large = (TWO.collate([scale * x + shift]) for scale, shift in ((0.01, 3.0), (1.0, 0.0)))
    a, mean_a, std_a = standardize(small)
    b, mean_b, std_b = standardize(large)
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    torch.testing.assert_close(mean_a, 0.01 * mean_b + 3, atol=1e-5, rtol=0)
    torch.testing.assert_close(std_a, 0.01 * std_b, atol=1e-5, rtol=0)
    windows = WindowEmbedding(8, TWO, 3)
    assert (windows(small).x - windows(large).x).abs().max() > 0.1, "the scale is lost"


def test_missing_value_differs_from_zero() -> None:
    windows = WindowEmbedding(8, TWO, 1)
    zero, missing = (
        windows(TWO.collate([np.array([[value, 1]], np.float32)])).x for value in (0, NAN)
    )
    assert (zero - missing).abs().max() > 1e-3


def test_convolutions_ignore_invalid_tokens() -> None:
    torch.manual_seed(0)
    embedding, convolutions = WindowEmbedding(8, TWO, 1), Convolutions(8, 2).eval()
    x = torch.randn(9, 2).numpy()
    x[3:5] = NAN
    t = embedding(TWO.collate([x]))
    assert t.valid is not None
    noisy = replace(t, x=torch.where(t.valid[0, :, None], t.x, 1e3))
    torch.testing.assert_close(convolutions(t).x[t.valid], convolutions(noisy).x[t.valid])


@pytest.mark.parametrize("typical_length", [12, 200])
def test_multiscale_convolutions_ignore_padding(typical_length: int) -> None:
    torch.manual_seed(0)
    model = MultiscaleConv(
        16, Series(("a", "b"), (0.0,) * 2, (1.0,) * 2, typical_length=typical_length)
    ).eval()
    short = torch.cat([torch.randn(3, 90, 2), torch.ones(3, 90, 2)], -1)
    short[1, 60:] = 0
    t = model(short)
    padded = model(torch.nn.functional.pad(short, (0, 0, 0, 70)))
    n = t.x.shape[1]
    assert torch.allclose(padded.x[:, :n][valid_mask(t)], t.x[valid_mask(t)], atol=1e-5)
    assert not valid_mask(padded)[:, n:].any()
    alone = model(short[1:2, :60])
    assert torch.allclose(alone.x[0], t.x[1, : alone.x.shape[1]], atol=1e-5)
    assert valid_mask(t)[1].sum() == alone.x.shape[1]


def test_max_pool_pairs_ignores_invalid_steps() -> None:
    x = torch.tensor([[[-3.0], [5.0], [-2.0], [-1.0], [7.0], [7.0]]])
    valid = torch.tensor([[True, False, True, True, False, False]])
    pooled, pooled_valid = max_pool_pairs(x, valid)
    assert pooled.flatten().tolist() == [-3.0, -1.0, 0.0]
    assert pooled_valid.tolist() == [[True, True, False]]


# Augmentation and display -------------------------------------------------------------------------


def test_jitter_is_relative_to_the_standard_deviation() -> None:
    series = torch.cat([torch.randn(1, 500, 1), torch.ones(1, 500, 1)], -1)
    batch = torch.cat([series, series * torch.tensor([1e-2, 1.0])])
    noise = (Series().augment(batch, torch.Generator().manual_seed(0), jitter=0.1) - batch)[
        ..., 0
    ].std(1)
    assert noise / batch[..., 0].std(1) == pytest.approx(torch.full((2,), 0.1), rel=0.15)


def test_augmentation_is_reproducible_and_keeps_missing_values() -> None:
    options = {"jitter": 0.1, "scale": 0.2, "crop": 0.6, "warp": 0.2, "channel_dropout": 0.3}
    batch = TWO.fake(16, torch.Generator().manual_seed(0))
    a, b = (TWO.augment(batch, torch.Generator().manual_seed(1), **options) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == batch.shape
    assert not torch.equal(a, batch)
    x, present = a.chunk(2, -1)
    assert not x[present == 0].any()
    assert set(present.unique().tolist()) == {0, 1}
    assert (valid_steps(a).sum(1) > 0).all()
    assert torch.equal(TWO.augment(batch, torch.Generator()), batch)


def test_crop_is_a_contiguous_window() -> None:
    line = np.arange(20, dtype=np.float32)[:, None]
    one = Series(("x",), (0.0,), (1.0,))
    batch = one.collate([line + 100] * 32 + [line[:10] + 100])
    cropped = one.augment(batch, torch.Generator().manual_seed(0), crop=0.5)
    lengths = valid_steps(cropped).sum(1)
    assert lengths[:32].min() >= 10
    assert lengths[:32].max() <= 20
    assert lengths[32] >= 5
    for row, length in zip(cropped[:, :, 0], lengths.tolist(), strict=True):
        assert (row[1:length] - row[: length - 1] == 1).all()
        assert not row[length:].any()
        assert row[0] >= 100
    assert cropped[:32, 0, 0].max() > 100


def test_channel_dropout_never_drops_all_channels() -> None:
    _, present = TWO.augment(
        torch.ones(64, 3, 4), torch.Generator().manual_seed(0), channel_dropout=0.9
    ).chunk(2, -1)
    assert ((present.sum((1, 2)) == 3) | (present.sum((1, 2)) == 6)).all()
    assert (present[:, :, 0] != present[:, :, 1]).any()


def test_decode_plots_values_but_not_gaps() -> None:
    batch = TWO.collate(
        [np.array([[0, 1], [NAN, 2], [1, NAN], [2, 0]], np.float32), np.zeros((0, 2), np.float32)]
    )
    plot, empty = (np.asarray(TWO.decode(row)) for row in batch)
    assert plot.shape == (160, 480, 3)
    assert (plot < 250).any(-1).sum() > (empty < 250).any(-1).sum() > 0


# From a table to a batch --------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    (tmp_path / "runs").mkdir()
    for i in range(12):
        rows = "".join(f"{step},{step + i},{'' if step == 1 else -step}\n" for step in range(3 + i))
        write_file(tmp_path / "runs" / f"{i}.csv", "time,x,y\n" + rows)
    lines = [
        f'runs/{i}.csv,"[{i}, null, {i + 2}]",{"walk" if i % 2 else "run"}\n' for i in range(12)
    ]
    return write_file(tmp_path / "table.csv", "motion,short,label\n" + "".join(lines) + ",,walk\n")


def test_series_column_from_table_to_batch(table: Path) -> None:
    data = Dataset.open(table)
    kinds = {name: column.kind for name, column in data.schema.columns.items()}
    assert kinds == {"motion": "series", "short": "series", "label": "category"}
    assert len(data) == 13
    assert "12 of 12" in data.schema.columns["motion"].reason
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
    jittered = [
        prepared.batch([0, 1], torch.Generator().manual_seed(0), {"motion": {"jitter": 1.0}})
        for _ in range(2)
    ]
    assert torch.equal(jittered[0]["motion"], jittered[1]["motion"])
    assert not torch.equal(jittered[0]["motion"], prepared.batch([0, 1])["motion"])


def test_series_settings_are_saved_with_the_schema(table: Path, tmp_path: Path) -> None:
    data = Dataset.open(table, types={"motion": "series:length=4:truncation=cut"})
    schema = data.schema.fit(data, np.arange(13))
    schema.save(tmp_path)
    loaded = Schema.load(tmp_path)
    assert loaded == schema
    batches = [data.prepare(s, ["motion"]).batch([3])["motion"] for s in (schema, loaded)]
    assert torch.equal(batches[0], batches[1])
    assert batches[0].shape == (1, 4, 4)


def test_unreadable_series_are_quarantined(table: Path) -> None:
    write_file(table.parent / "runs" / "3.csv", "x,y\n1,zwei\n")
    (table.parent / "runs" / "4.csv").unlink()
    data = Dataset.open(table, max_invalid_fraction=0.5)
    assert [(b.location, b.column) for b in data.bad_samples] == [("table.csv:6", "motion")]
    assert "no file" in data.bad_samples[0].reason
    prepared = data.prepare(data.schema.fit(data, np.arange(12)), ["motion"], quiet=True)
    quarantined = [b for b in prepared.bad_samples if b.location == "table.csv:5"]
    assert len(quarantined) == 1
    assert "line 2, channel 'y': expected a number, got 'zwei'" in quarantined[0].reason
    assert any("zwei" in b.reason for b in data.describe().bad_samples)
    write_file(table, "motion\n../outside.csv\nruns/1.csv\n")
    outside = Dataset.open(table, types={"motion": "series"}, max_invalid_fraction=0.5)
    assert "leads out of" in outside.bad_samples[0].reason


def test_equal_series_are_one_group(table: Path) -> None:
    (table.parent / "runs" / "1.csv").write_bytes((table.parent / "runs" / "0.csv").read_bytes())
    groups = Dataset.open(table, types={"short": "ignore"}).groups()
    assert groups[0] == groups[1]
    assert len(set(groups.tolist())) == 12
    numbers = Dataset.open(table, types={"motion": "ignore"}).groups()
    assert len(set(numbers.tolist())) == 13
