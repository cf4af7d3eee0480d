"""convert-checkpoint on names that collide and on pickles that share their values."""

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sensorium.errors import SensoriumError
from sensorium.io.pickles.convert import convert_checkpoint

MAX_SECONDS = 20  # of a test with a file of a few kilobytes
ONES = torch.ones(2)
TENSOR = (  # the opcodes of one tensor of two values
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
    b"X\x01\0\0\x000X\x03\0\0\0cpuK\x02tQK\0K\x02\x85K\x01\x85\x89NtR"
)


def convert(value: Any, folder: Path) -> dict[str, torch.Tensor]:
    torch.save(value, folder / "model.pt")
    return load_file(convert_checkpoint(folder / "model.pt").path)


def refuse(value: Any, folder: Path) -> str:
    """Return why a checkpoint, or a pickle given as bytes, is refused; in bounded time."""
    path = folder / "model.pt"
    if isinstance(value, bytes):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("m/data.pkl", value)
            archive.writestr("m/data/0", np.ones(2, np.float32).tobytes())
    else:
        torch.save(value, path)
    start = time.monotonic()
    with pytest.raises(SensoriumError) as error:
        convert_checkpoint(path)
    assert time.monotonic() - start < MAX_SECONDS
    assert sorted(p.name for p in folder.iterdir()) == ["model.pt"]
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


# Names


@pytest.mark.parametrize(
    "value",
    [
        {"a.b": ONES, "a": {"b": ONES}},
        {"a": {"b": ONES}, "a.b": ONES},
        {"state_dict": {"a": {"b.c": ONES}, "a.b": {"c": ONES}}},
    ],
)
def test_two_tensors_of_one_name_are_refused(value: Any, tmp_path: Path) -> None:
    message = refuse(value, tmp_path)
    assert "two of its tensors would both be called 'a.b" in message
    assert "Rename one" in message


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_reserved_name_is_refused(prefix: str, tmp_path: Path) -> None:
    assert "a tensor called __metadata__" in refuse({f"{prefix}__metadata__": ONES}, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("\ud800", "half a character"), ("n" * 5_000_000, "has 5,000,000 characters")],
)
def test_a_name_that_no_file_can_hold_is_refused(name: str, message: str, tmp_path: Path) -> None:
    assert message in refuse({name: ONES}, tmp_path)


def test_a_numpy_array_among_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    message = refuse({"encoder": {"w": np.ones(2), "b": ONES}}, tmp_path)
    assert "weight 'encoder.w' is a numpy array" in message
    assert "torch.from_numpy" in message


def test_unusual_names_and_other_values_are_kept_or_listed(tmp_path: Path) -> None:
    names = ["", "ключ", "a b/c\n\x1b", "👩\u200d🚒", "x" * 2000]
    value = {name: ONES + i for i, name in enumerate(names)}
    rest = {3: ONES, (1, "two"): ONES, None: 1, 1 << 70: ONES, "seed": 1 << 5000, "set": {1, 2}}
    rest |= {(1,) * 20: 1, "x": frozenset({(1, 2)}), b"bytes": ONES, "deep": [ONES] * 3}
    torch.save({**value, **rest}, tmp_path / "model.pt")
    result = convert_checkpoint(tmp_path / "model.pt")
    tensors = load_file(result.path)
    assert set(tensors) == set(names)
    for i, name in enumerate(names):
        assert torch.equal(tensors[name], ONES + i)
    assert "(1, 'two')" in result.dropped_keys
    assert "a tuple of 20 values" in result.dropped_keys
    assert len(result.dropped_keys) == len(rest)


def test_arrays_beside_the_weights_are_dropped(tmp_path: Path) -> None:
    value = {"state_dict": {"w": ONES}, "rng": np.arange(3), "best": np.float64(0.5)}
    assert set(convert(value, tmp_path)) == {"w"}


# Tensors


def test_dtypes_without_a_storage_type_are_converted(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    value = {"e4m3": base.to(torch.float8_e4m3fn), "e5m2": base.to(torch.float8_e5m2)}
    value |= {"u16": base.to(torch.uint16), "u32": base.to(torch.uint32)}
    value |= {"u64": base.to(torch.uint64), "bf16": base.bfloat16(), "bool": base > 2}
    value["part"] = value["e4m3"][1:, ::2]
    tensors = convert(value, tmp_path)
    for name, tensor in value.items():
        assert tensors[name].dtype == tensor.dtype, name
        assert torch.equal(tensors[name].to(torch.float32), tensor.to(torch.float32)), name


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), "ComplexFloatStorage"),
        (torch.eye(2).to_sparse(), "a sparse tensor: save its to_dense()"),
        ("quantized", "a quantized tensor: save its dequantize()"),
        (torch.ones(1).expand(1 << 45), "would fill"),
        (torch.ones(1, 1).expand(1 << 30, 1 << 30), "would fill"),
    ],
    ids=["complex", "sparse", "quantized", "expanded", "expanded twice"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_written_are_refused(
    tensor: torch.Tensor | str, message: str, tmp_path: Path
) -> None:
    if tensor == "quantized":
        tensor = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)
    assert message in refuse({"w": tensor}, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x02tQ", b"K\x09tQ", "truncated"),
        (b"K\x02\x85K\x01\x85", b"K\x02\x85K\x09\x85", "reaches beyond"),
        (b"K\x02\x85K\x01\x85", b"J\xff\xff\xff\xff\x85K\x01\x85", "not a count"),
        (b"K\x02\x85K\x01\x85", b"K\x02\x85J\xff\xff\xff\xff\x85", "not a count"),
        (b"K\x02\x85K\x01\x85", b"K\x02\x85)", "invalid description"),
        (b"K\x02\x85K\x01\x85", b"\x8a\x09" + b"\xff" * 8 + b"\x7f\x85K\0\x85", "not a count"),
        (b"K\x02\x85K\x01\x85", b"(" + b"K\x01" * 65 + b"t(" + b"K\0" * 65 + b"t", "65 dimensions"),
        (b"K\0K\x02\x85K\x01\x85", b"K\x01K\x02\x85K\x01\x85", "reaches beyond"),
    ],
)
def test_descriptions_that_lie_are_refused(
    old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    assert old in TENSOR
    pickled = b"\x80\x02}X\x01\0\0\0w" + TENSOR.replace(old, new) + b"s."
    assert message in refuse(pickled, tmp_path)


def test_a_zero_sized_tensor_of_impossible_sizes_is_read_back_and_refused(tmp_path: Path) -> None:
    huge = b"\x8a\x08" + b"\xff" * 7 + b"\x7f"
    shape = b"(" + huge * 3 + b"K\0t(" + b"K\0" * 4 + b"t"
    pickled = b"\x80\x02}X\x01\0\0\0w" + TENSOR.replace(b"K\x02\x85K\x01\x85", shape) + b"s."
    assert "no safetensors file can hold" in refuse(pickled, tmp_path)


def test_many_tensors_of_one_storage_are_read_once(tmp_path: Path) -> None:
    base = torch.arange(4_000_000.0)  # 16 MB, read 2,000 times: minutes
    value = {f"w{i}": base[i * 7 : i * 7 + 3] for i in range(2000)} | {"z": base}
    start = time.monotonic()
    tensors = convert(value, tmp_path)
    assert time.monotonic() - start < MAX_SECONDS
    assert all(torch.equal(tensors[name], tensor) for name, tensor in value.items())


# Time follows the size of the file


def doubled(pair: bytes, depth: int) -> bytes:
    """Return opcodes of a value nested in itself twice at each level."""
    opcodes = b")"
    for i in range(depth):
        opcodes += b"q" + bytes([i % 200]) + b"h" + bytes([i % 200]) + pair
    return opcodes


ENTRY = b"X\x01\0\0\0w" + TENSOR + b"s"  # into the dict on the stack
BOMBS = {
    "key of a dict": b"\x80\x02}" + doubled(b"\x86", 60) + b"K\x01s" + ENTRY + b".",
    "items of a set": b"\x80\x04}X\x01\0\0\0s\x8f("
    + doubled(b"\x86", 60)
    + b"\x90s"
    + ENTRY
    + b".",
    "frozen set": b"\x80\x04}X\x01\0\0\0s(" + doubled(b"\x86", 60) + b"\x91s" + ENTRY + b".",
    "two equal keys": b"\x80\x02}" + (doubled(b"\x86", 60) + b"K\x01s") * 2 + ENTRY + b".",
    "pairs of a call": b"\x80\x02}X\x01\0\0\0oc__builtin__\ndict\n".replace(
        b"__builtin__", b"builtins"
    )
    + b"]("
    + doubled(b"\x86", 60)
    + b"K\x01\x86e\x85R"
    + b"s"
    + ENTRY
    + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_shared_values_are_not_hashed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", BOMBS[name])
        archive.writestr("m/data/0", np.ones(2, np.float32).tobytes())
    start = time.monotonic()
    result = convert_checkpoint(path)
    assert time.monotonic() - start < MAX_SECONDS
    assert torch.equal(load_file(result.path)["w"], ONES)


def shared_dicts(width: int, depth: int) -> Any:
    value: Any = {"w": ONES}
    for _ in range(depth):
        value = {f"k{i}": value for i in range(width)}
    return value


def test_shared_dicts_are_followed_within_a_budget(tmp_path: Path) -> None:
    assert "nested dicts have more than" in refuse(shared_dicts(300, 6), tmp_path)


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (  # a list of 10,000 items, copied 20,000 times
            b"\x80\x02}X\x01\0\0\0a("
            + b"ctorch\nSize\nq\x01]("
            + b"K\x01" * 10_000
            + b"eq\x02"
            + b"h\x01h\x02\x85R" * 20_000
            + b"ls.",
            "again and again",
        ),
        (  # a call with a million arguments
            b"\x80\x02ctorch._utils\n_rebuild_parameter\n(" + b"K\x01" * 1_000_000 + b"tR.",
            "invalid arguments",
        ),
        (  # names of functions of a megabyte each, joined again and again
            b"\x80\x04X\x00\x00\x10\x00"
            + b"a" * (1 << 20)
            + b"q\x01"
            + b"h\x01h\x01\x93" * 1000
            + b".",
            "short text",
        ),
    ],
    ids=["copies", "arguments", "names"],
)
def test_repeated_work_is_refused(pickled: bytes, message: str, tmp_path: Path) -> None:
    assert message in refuse(pickled, tmp_path)


def test_many_dropped_entries_are_counted(tmp_path: Path) -> None:
    torch.save({"w": ONES, **{"n" * 300 + str(i): i for i in range(5000)}}, tmp_path / "model.pt")
    result = convert_checkpoint(tmp_path / "model.pt")
    assert result.dropped_keys[-1] == "and 4,000 more"
    assert max(map(len, result.dropped_keys)) < 300


def test_the_output_is_a_file_that_every_loader_reads(tmp_path: Path) -> None:
    torch.save({"b": ONES, "a": ONES[:1], "empty": torch.ones(0, 3)}, tmp_path / "model.pt")
    with safe_open(convert_checkpoint(tmp_path / "model.pt").path, "pt") as file:
        assert sorted(file.keys()) == ["a", "b", "empty"]
        assert json.dumps(file.metadata()) == '{"format": "pt"}'
