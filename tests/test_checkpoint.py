"""What a run leaves on the disk is read again exactly, or refused with one clear sentence."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures import tiny_recipe
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import UnsupportedVerb
from sensorium.io import atomic, snapshots, tensors
from sensorium.io.run_config import RunConfig
from sensorium.io.snapshots import CheckpointStore, verify
from sensorium.io.tensors import (
    file_sha256,
    load_weights,
    read_tensors,
    state_tensors,
    tensor_writer,
)
from sensorium.training.checkpoint import Model, load_checkpoint
from sensorium.training.loop import train


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=folder, epochs=1, quiet=True)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def opened(folder: Path) -> Model:
    return load_checkpoint(folder, recipe=tiny_recipe.guess)


def test_it_answers_as_it_was_kept(folder: Path) -> None:
    model, again = opened(folder), opened(folder)
    x = [[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]]
    assert (model.predict(x=x) == again.predict(x=x)).all()
    assert model.fingerprint == file_sha256(folder / "model.safetensors") == again.fingerprint
    assert not model.module.training
    assert model.config.keywords["epochs"] == 1
    assert set(model.schema.columns) == {*"abcy"}


def test_loading_leaves_chance_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    opened(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_a_verb_it_does_not_have_is_absent_and_says_so(folder: Path) -> None:
    model = opened(folder)
    assert hasattr(model, "predict")
    assert not hasattr(model, "embed")
    assert "predict" in dir(model)
    with pytest.raises(UnsupportedVerb, match="cannot embed; it can predict"):
        model.embed(image=["a.jpg"])
    with pytest.raises(AttributeError, match="no attribute 'folders'"):
        model.folders()


def test_code_named_in_a_file_is_not_run(folder: Path) -> None:
    with pytest.raises(
        SensoriumError, match=r"tiny.py:guess, which is no recipe of sensorium's own .*recipe="
    ):
        load_checkpoint(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace(json.loads(text)["recipe"], "os.system"))
    with pytest.raises(SensoriumError, match="os.system, which is no recipe"):
        load_checkpoint(folder)


def changed(name: str, change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def do(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return do


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda f: shutil.rmtree(f), "is not a run of sensorium: it has no config.json"),
        (
            lambda f: (f / "config.json").unlink(),
            "is not a run of sensorium: it has no config.json",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "does not hold a JSON object"),
        (
            changed("config.json", lambda c: c.update(format=99)),
            "is a run of format 99; sensorium .* reads 1",
        ),
        (changed("config.json", lambda c: c.update(extra=1)), "missing or unknown keys: extra"),
        (changed("config.json", lambda c: c.pop("data")), "missing or unknown keys: data"),
        (
            changed("config.json", lambda c: c["keywords"].update(dim=9)),
            "does not fit the recipe: .* tensors",
        ),
        (lambda f: (f / "schema.json").unlink(), "schema.json"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda f: flip(f / "model.safetensors"),
            "model.safetensors is damaged: its content is not what was written",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 500), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
    ],
)
def test_what_is_not_whole_is_refused(
    folder: Path, harm: Callable[[Path], object], message: str
) -> None:
    harm(folder)
    with pytest.raises(SensoriumError, match=message):
        opened(folder)


def test_the_same_values_are_the_same_bytes(tmp_path: Path) -> None:
    values = {name: torch.randn(3) for name in "zyxabc"}
    for path in (tmp_path / "1", tmp_path / "2"):
        atomic.write_file(path, tensor_writer(values, {"step": "7", "more": "x"}))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic.write_file(tmp_path / "w", tensor_writer({"a": torch.ones(1)}))
    finally:
        os.umask(before)
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "value",
    [torch.tensor(3.0), torch.zeros(0, 2), torch.ones(2, 3).T, torch.ones(2, dtype=torch.bfloat16)],
)
def test_tensors_come_back(tmp_path: Path, value: torch.Tensor) -> None:
    atomic.write_file(tmp_path / "t", tensor_writer({"a": value}))
    back = read_tensors(tmp_path / "t")["a"]
    assert torch.equal(back, value)
    assert back.dtype == value.dtype


def test_weights_with_two_names_are_kept_once(tmp_path: Path) -> None:
    a, b = tiny_recipe.Guess(4, 0.0), tiny_recipe.Guess(4, 0.0)
    assert "second.weight" in state_tensors(a)
    assert "third.weight" not in state_tensors(a)
    assert "norm.running_mean" in state_tensors(a)
    atomic.write_file(tmp_path / "w", tensor_writer(state_tensors(a)))
    load_weights(b, tmp_path / "w")
    assert b.third.weight is b.second.weight
    assert torch.equal(a.third.weight, b.third.weight)


def test_weights_keep_their_layout(tmp_path: Path) -> None:
    a = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    atomic.write_file(tmp_path / "w", tensor_writer(state_tensors(a)))
    b = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    load_weights(b, tmp_path / "w")
    assert torch.equal(a.weight, b.weight)
    assert b.weight.stride() == a.weight.stride()


def test_a_set_is_current_whole_or_not_at_all(tmp_path: Path) -> None:
    sets = CheckpointStore(tmp_path / "state")
    assert sets.latest() is None
    for step in (1, 2, 3):
        sets.save(step, {"a": b"%d" % step, "b": b"x"})
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-000002", "step-000003"]
    (tmp_path / "state" / "step-000004.tmp").mkdir()
    said: list[str] = []
    again = CheckpointStore(tmp_path / "state")
    assert again.latest(said.append) == tmp_path / "state" / "step-000003"
    assert not said
    (tmp_path / "state" / "step-000003" / "a").write_bytes(b"4")
    assert again.latest(said.append) == tmp_path / "state" / "step-000002"
    assert "step-000003 is damaged (a is not what was written)" in said[0]
    assert "step-000002" in said[0]
    again.save(3, {"a": b"3", "b": b"x"})  # written again over the damaged one
    assert verify(tmp_path / "state" / "step-000003") is None
    for name in ("step-000002", "step-000003"):
        (tmp_path / "state" / name / "b").unlink()
    with pytest.raises(SensoriumError, match="b is missing.*nothing whole is left"):
        CheckpointStore(tmp_path / "state").latest()


@pytest.mark.parametrize(
    "harm",
    [
        lambda p: p.unlink(),
        lambda p: p.write_text("{"),
        lambda p: p.write_text("[1]"),
        lambda p: p.write_bytes(b"\xff"),
    ],
)
def test_a_set_without_a_sound_manifest_is_damaged(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    path = CheckpointStore(tmp_path / "state").save(1, {"a": b"1"})
    assert verify(path) is None
    harm(path / "manifest.json")
    assert verify(path)


@pytest.mark.parametrize("place", ["write", "rename", "verify"])
def test_a_save_that_fails_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    sets = CheckpointStore(tmp_path / "state")
    sets.save(1, {"a": b"1", "b": b"1"})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if place == "verify":
        monkeypatch.setattr(snapshots, "damage", lambda path: "a is not what was written")
    else:
        monkeypatch.setattr(
            *((Path, "write_bytes", full) if place == "write" else (os, "rename", full))
        )
    with pytest.raises(
        SensoriumError, match="check the disk" if place == "verify" else "No space left on device"
    ):
        sets.save(2, {"a": b"2", "b": b"2"})
    monkeypatch.undo()
    if place == "verify":
        (tmp_path / "state" / "step-000002" / "a").unlink()
    path = CheckpointStore(tmp_path / "state").latest(lambda text: None)
    assert path is not None
    assert path.name == "step-000001"
    assert (path / "a").read_bytes() == b"1"


def test_a_full_disk_is_said_for_weights_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise tensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(SensoriumError, match="could not write .*No space left on device"):
        atomic.write_file(tmp_path / "w", tensor_writer({"a": torch.ones(1)}))
    assert not list(tmp_path.iterdir())


def test_config_keeps_every_key(tmp_path: Path) -> None:
    config = RunConfig("clip", {"dim": 3, "lr": 0.1}, "fp32", {"name": "x"})
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config
    assert set(config.versions) == {"sensorium", "torch", "numpy", "python"}
