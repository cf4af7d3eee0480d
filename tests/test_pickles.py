"""Pickles become safetensors, number for number; what asks for anything else is refused, and nothing of it is run."""

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
    "turned": BASE.T,
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


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k].dtype == expected[k].dtype
        and torch.equal(found[k].nan_to_num(9), expected[k].nan_to_num(9))
        for k in expected
    )


def converted(
    value: Any, folder: Path, legacy: bool = False, key: str | None = None
) -> tuple[dict[str, Tensor], list[str]]:
    path = folder / "model.pt"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    made = convert_checkpoint(path, key=key)
    assert made.path == folder / "model.safetensors"
    return load_file(made.path), made.dropped_keys


# ------------------------------------------------------------------------------------------------ number for number


@pytest.mark.parametrize("legacy", [False, True])
def test_every_kind_of_tensor_comes_over(legacy: bool, tmp_path: Path) -> None:
    assert same(converted(STATE, tmp_path, legacy)[0], STATE)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_no_weight_is_left_out_and_listed(legacy: bool, tmp_path: Path) -> None:
    about = argparse.Namespace(lr=1e-3, out=Path("runs"))
    value = {
        "step": 3,
        "optimizer_state": {"state": {0: {"exp_avg": BASE}}, "lists": [1, (2, None, True)]},
        "model": OrderedDict(STATE),
        "args": about,
        "log": defaultdict(list),
    }
    found, dropped = converted(value, tmp_path, legacy)
    assert same(found, STATE)
    assert dropped == ["step", "optimizer_state", "args", "log"]


def test_the_state_of_a_module_and_of_a_parallel_one(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert same(converted(module.state_dict(), tmp_path / "a")[0], module.state_dict())
    parallel = {"state_dict": {f"module.{k}": v for k, v in module.state_dict().items()}}
    assert same(converted(parallel, tmp_path / "b")[0], module.state_dict())


def test_weights_in_parts_are_named_by_part(tmp_path: Path) -> None:
    found, dropped = converted(
        {"encoder": {"w": BASE}, "decoder": {"w": BASE + 1}, "version": "2"}, tmp_path
    )
    assert same(found, {"encoder.w": BASE, "decoder.w": BASE + 1})
    assert dropped == ["version"]


def test_another_part_is_taken_by_its_name(tmp_path: Path) -> None:
    value = {"model": {"w": BASE}, "ema": {"w": BASE + 1}}
    found, dropped = converted(value, tmp_path, key="ema")
    assert same(found, {"w": BASE + 1})
    assert dropped == ["model"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SensoriumError, match="no part 'emma'; there are model, ema"):
        converted(value, tmp_path, key="emma")


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(SensoriumError, match="there already"):
        converted(STATE, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ hostile


class Evil:
    """On loading, calls what it was given."""

    def __init__(self, *call: Any):
        self.called = call

    def __reduce__(self) -> Any:
        return self.called[0], tuple(self.called[1:])


def refuse(path: Path, said: str) -> None:
    """The file is refused with one line, and leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(SensoriumError, match=said) as caught:
        convert_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["weight", "beside", "key"])
def test_a_call_is_refused_by_its_name_and_not_made(
    place: str, legacy: bool, tmp_path: Path
) -> None:
    evil = Evil(os.system, f"touch {tmp_path}/executed")
    value = {
        "weight": {"w": evil, "v": BASE},
        "beside": {"model": {"w": BASE}, "step": evil},
        "key": {evil: BASE},
    }[place]
    torch.save(value, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    refuse(tmp_path / "model.pt", r"posix\.system|nt\.system")
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
def test_nothing_but_the_table_is_called(call: tuple[Any, ...], tmp_path: Path) -> None:
    torch.save({"w": Evil(*call)}, tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", "to be called; only tensors")


def test_a_whole_module_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", r"torch\.nn\.modules\.linear\.Linear.*state_dict")


def test_a_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        for name in ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"):
            archive.writestr(name, pickle.dumps({}))
    refuse(tmp_path / "model.pt", "TorchScript")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}." + bytes(50_000_000))
    assert (tmp_path / "model.pt").stat().st_size < 100_000
    refuse(tmp_path / "model.pt", "compressed")


def test_a_small_file_does_not_become_a_large_one(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", "would fill 4,398,046,511,104 bytes")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_cut_anywhere_is_refused(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in (0, 1, 40, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        refuse(path, "not converted")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged|torch"),
        (b"junk", "damaged|torch"),
        (b"\x80\x02K\x01.", "no checkpoint of torch"),
        (b"cos\nsystem\n(S'touch executed'\ntR.", "system"),
        (b"\x80\x04\x95" + b"\xff" * 8, "damaged"),
        (b"(" * 100_000 + b".", "damaged"),
        (b"\x80\x02]" + b"q\x00h\x00a" * 10 + b".", "torch"),
        (b"i" + b"os\nsystem\n.", "INST"),
    ],
    ids=str,
)
def test_what_is_no_checkpoint_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    refuse(tmp_path / "model.pt", said)


def test_tensors_may_not_reach_beyond_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": BASE}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    entries[pickled] = entries[pickled].replace(b"K\x06K\x08\x86", b"K\x7fK\x08\x86")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    refuse(path, r"\(127, 8\) reaches beyond its 48")


# ------------------------------------------------------------------------------------------------ the fence


def fenced(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Code where the reader of pickles would be, behind the same fence."""
    inside = WORKER_SCRIPT[: WORKER_SCRIPT.index("from sensorium.convert.child")]
    root = str(Path(sys.modules["sensorium"].__file__ or "").parents[1])
    code = f"{inside}\nfrom sensorium.convert.fence import shut\n{code}"
    return subprocess.run(
        [sys.executable, "-I", "-c", code, root, "", str(tmp_path / "out"), "", "1000"],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "code",
    [
        "import socket; shut(); socket.socket()",
        "import os; shut(); os.system('true')",
        "shut(); import xml",
        "shut(); eval('1')",
        "import os; shut(); os.remove('x')",
    ],
)
def test_a_reader_that_went_astray_is_stopped(code: str, tmp_path: Path) -> None:
    done = fenced(code, tmp_path)
    assert done.returncode == 1
    assert "is not allowed while a pickle is read" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits of this system differ")
def test_memory_and_output_are_limited(tmp_path: Path) -> None:
    assert "MemoryError" in fenced("bytearray(4 << 30)", tmp_path).stderr
    done = fenced(
        "open(out, 'wb', 0).write(bytes(8 << 20)); open(out, 'ab', 0).write(bytes(8 << 20))",
        tmp_path,
    )
    assert done.returncode
    assert (tmp_path / "out").stat().st_size < 8 << 20


# ------------------------------------------------------------------------------------------------ real weights


@pytest.mark.weights
@pytest.mark.parametrize(
    ("file", "tensors", "dropped"),
    [
        ("resemblyzer/pretrained.pt", 16, ["step", "optimizer_state"]),
        ("efficientnet-lite0/efficientnet-lite0-57934424.pth", 296, []),
    ],
)
def test_real_pickles(file: str, tensors: int, dropped: list[str], tmp_path: Path) -> None:
    made = convert_checkpoint(WEIGHTS / file, tmp_path / "out.safetensors")
    assert made.num_tensors == tensors
    assert made.dropped_keys == dropped
    theirs = torch.load(WEIGHTS / file, map_location="cpu", weights_only=True)
    assert same(load_file(made.path), dict(theirs.get("model_state", theirs)))


@pytest.mark.weights
def test_a_real_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="TorchScript"):
        convert_checkpoint(WEIGHTS / "silero-vad" / "silero_vad.jit", tmp_path / "out.safetensors")
