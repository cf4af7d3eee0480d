"""Tests of converting pickles to safetensors, and of refusing hostile ones."""

import argparse
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.io.pickles.convert import WORKER_SCRIPT, convert_checkpoint

WEIGHTS = Path(os.environ.get("SENSORIUM_WEIGHTS", "weights"))
BASE = torch.arange(48, dtype=torch.float32).view(6, 8)
STATE = {
    "plain": BASE,
    "transposed": BASE.T,
    "strided": BASE[1:4, ::3],
    "tied": BASE,
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 3),
    "expanded": torch.ones(1, 1).expand(3, 4),
    "parameter": nn.Parameter(BASE + 1),
    "half": BASE.half(),
    "bfloat": BASE.bfloat16(),
    "double": BASE.double(),
    "long": torch.arange(5),
    "int": torch.arange(5, dtype=torch.int32),
    "byte": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "nan": torch.tensor([float("nan"), float("inf")]),
}


def assert_tensors_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name].nan_to_num(9), value.nan_to_num(9)), name


def save_and_convert(
    value: Any, folder: Path, legacy: bool = False, key: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    path = folder / "model.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    result = convert_checkpoint(path, key=key)
    assert result.path == folder / "model.safetensors"
    return load_file(result.path), result.dropped_keys


# Weights


@pytest.mark.parametrize("legacy", [False, True])
def test_every_tensor_dtype_and_layout_is_converted(legacy: bool, tmp_path: Path) -> None:
    assert_tensors_equal(save_and_convert(STATE, tmp_path, legacy)[0], STATE)


@pytest.mark.parametrize("legacy", [False, True])
def test_entries_without_weights_are_dropped_and_listed(legacy: bool, tmp_path: Path) -> None:
    arguments = argparse.Namespace(lr=1e-3, out=Path("runs"))
    value = {
        "step": 3,
        "optimizer_state": {"state": {0: {"exp_avg": BASE}}, "lists": [1, (2, None, True)]},
        "model": OrderedDict(STATE),
        "args": arguments,
        "log": defaultdict(list),
    }
    tensors, dropped = save_and_convert(value, tmp_path, legacy)
    assert_tensors_equal(tensors, STATE)
    assert dropped == ["step", "optimizer_state", "args", "log"]


def test_module_and_data_parallel_state_dicts(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert_tensors_equal(
        save_and_convert(module.state_dict(), tmp_path / "a")[0], module.state_dict()
    )
    parallel = {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}
    assert_tensors_equal(save_and_convert(parallel, tmp_path / "b")[0], module.state_dict())


def test_nested_state_dicts_get_dotted_names(tmp_path: Path) -> None:
    tensors, dropped = save_and_convert(
        {"encoder": {"w": BASE}, "decoder": {"w": BASE + 1}, "version": "2"}, tmp_path
    )
    assert_tensors_equal(tensors, {"encoder.w": BASE, "decoder.w": BASE + 1})
    assert dropped == ["version"]


def test_key_selects_the_entry(tmp_path: Path) -> None:
    value = {"model": {"w": BASE}, "ema": {"w": BASE + 1}}
    tensors, dropped = save_and_convert(value, tmp_path, key="ema")
    assert_tensors_equal(tensors, {"w": BASE + 1})
    assert dropped == ["model"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SensoriumError, match="no entry 'emma'; it has model, ema"):
        save_and_convert(value, tmp_path, key="emma")


def test_existing_output_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(SensoriumError, match="already exists"):
        save_and_convert(STATE, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


# Hostile files


class Evil:
    """An object whose pickle calls a function."""

    def __init__(self, *call: Any):
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], tuple(self.call[1:])


def assert_refused(path: Path, message: str) -> None:
    """Check that a file is refused in one line, and that nothing is written."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(SensoriumError, match=message) as caught:
        convert_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["weight", "extra", "key"])
def test_call_is_refused_by_name_and_not_executed(place: str, legacy: bool, tmp_path: Path) -> None:
    evil = Evil(os.system, f"touch {tmp_path}/executed")
    value = {
        "weight": {"w": evil, "v": BASE},
        "extra": {"model": {"w": BASE}, "step": evil},
        "key": {evil: BASE},
    }[place]
    torch.save(value, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    assert_refused(tmp_path / "model.pt", r"posix\.system|nt\.system")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "call",
    [
        (eval, "1"),
        (exec, "1"),
        (__import__, "os"),
        (getattr, "a", "b"),
        (open, "x", "w"),
        (subprocess.Popen, "ls"),
        (torch.load, "x"),
        (nn.Linear, 2, 2),
    ],
)
def test_call_outside_the_table_is_refused(call: tuple[Any, ...], tmp_path: Path) -> None:
    torch.save({"w": Evil(*call)}, tmp_path / "model.pt")
    assert_refused(tmp_path / "model.pt", "it calls .*, and only tensors")


def test_pickled_module_is_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    assert_refused(tmp_path / "model.pt", r"torch\.nn\.modules\.linear\.Linear.*state_dict")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            archive.writestr(name, pickle.dumps({}))
    assert_refused(tmp_path / "model.pt", "TorchScript")


def test_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}." + bytes(50_000_000))
    assert (tmp_path / "model.pt").stat().st_size < 100_000
    assert_refused(tmp_path / "model.pt", "compressed")


def test_huge_expanded_view_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "model.pt")
    assert_refused(tmp_path / "model.pt", "would fill 4,398,046,511,104 bytes")


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_checkpoint_is_refused(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        assert_refused(path, "not converted")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged|torch"),
        (b"junk", "damaged|torch"),
        (b"\x80\x02K\x01.", "not a torch checkpoint"),
        (b"cos\nsystem\n(S'touch executed'\ntR.", "system"),
        (b"\x80\x04\x95" + b"\xff" * 8, "damaged"),
        (b"(" * 100_000 + b".", "damaged"),
        (b"\x80\x02]" + b"q\x00h\x00a" * 10 + b".", "torch"),
        (b"i" + b"os\nsystem\n.", "INST"),
    ],
    ids=["empty", "text", "int", "call", "frame", "marks", "memo", "inst"],
)
def test_other_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    assert_refused(tmp_path / "model.pt", message)


def test_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": BASE}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    entries[pickled] = entries[pickled].replace(b"K\x06K\x08\x86", b"K\x7fK\x08\x86")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert_refused(path, r"\(127, 8\) reaches beyond its 48")


# The sandbox


def run_sandboxed(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in the worker process, within its limits."""
    setup = WORKER_SCRIPT[: WORKER_SCRIPT.index("from sensorium.io.pickles.worker")]
    root = str(Path(sys.modules["sensorium"].__file__ or "").parents[1])
    code = f"{setup}\nfrom sensorium.io.pickles.sandbox import enter\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-c", code, root, "", str(tmp_path / "out"), "", "1000"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "code",
    [
        "import socket; enter(); socket.socket()",
        "import os; enter(); os.system('true')",
        "enter(); import xml",
        "enter(); eval('1')",
        "import os; enter(); os.remove('x')",
    ],
)
def test_forbidden_operation_is_stopped(code: str, tmp_path: Path) -> None:
    completed = run_sandboxed(code, tmp_path)
    assert completed.returncode == 1
    assert "is not allowed while a pickle is read" in completed.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits of this system differ")
def test_memory_and_output_are_limited(tmp_path: Path) -> None:
    assert "MemoryError" in run_sandboxed("bytearray(4 << 30)", tmp_path).stderr
    completed = run_sandboxed(
        "open(out, 'wb', 0).write(bytes(8 << 20)); open(out, 'ab', 0).write(bytes(8 << 20))",
        tmp_path,
    )
    assert completed.returncode
    assert (tmp_path / "out").stat().st_size < 8 << 20


# Pretrained weights


@pytest.mark.weights
@pytest.mark.parametrize(
    ("file", "tensors", "dropped"),
    [
        ("resemblyzer/pretrained.pt", 16, ["step", "optimizer_state"]),
        ("efficientnet-lite0/efficientnet-lite0-57934424.pth", 296, []),
    ],
)
def test_pretrained_pickles(file: str, tensors: int, dropped: list[str], tmp_path: Path) -> None:
    result = convert_checkpoint(WEIGHTS / file, tmp_path / "out.safetensors")
    assert result.num_tensors == tensors
    assert result.dropped_keys == dropped
    expected = torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)
    assert_tensors_equal(load_file(result.path), dict(expected.get("model_state", expected)))


@pytest.mark.weights
def test_pretrained_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="TorchScript"):
        convert_checkpoint(WEIGHTS / "silero-vad" / "silero_vad.jit", tmp_path / "out.safetensors")
