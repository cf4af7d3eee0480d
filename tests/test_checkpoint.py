"""Tests of run configs, tensor files, checkpoints and loading a run."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny_recipe
from safetensors import SafetensorError
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
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=folder, epochs=1, quiet=True)
    return folder


@pytest.fixture
def folder(trained_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_folder, tmp_path / "run"))


def load_tiny(folder: Path) -> Model:
    return load_checkpoint(folder, recipe_fn=tiny_recipe.guess)


def test_loaded_model_has_the_saved_weights_and_config(folder: Path) -> None:
    model, again = load_tiny(folder), load_tiny(folder)
    x = [[0.1, 0.2, 0.3], [1.0, -1.0, 0.5]]
    assert (model.predict(x=x) == again.predict(x=x)).all()
    assert model.fingerprint == file_sha256(folder / "model.safetensors") == again.fingerprint
    assert not model.module.training
    assert model.config.keywords["epochs"] == 1
    assert set(model.schema.columns) == {*"abcy"}


def test_loading_keeps_the_random_state(folder: Path) -> None:
    before = torch.get_rng_state()
    load_tiny(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_missing_verb_is_an_attribute_error(folder: Path) -> None:
    model = load_tiny(folder)
    assert hasattr(model, "predict")
    assert not hasattr(model, "embed")
    assert "predict" in dir(model)
    with pytest.raises(UnsupportedVerb, match=r"cannot embed\. It supports: predict"):
        model.embed(image=["a.jpg"])
    with pytest.raises(AttributeError, match="no attribute 'folders'"):
        model.folders()


def test_code_named_in_a_file_is_not_run(folder: Path) -> None:
    with pytest.raises(
        SensoriumError,
        match=r"tiny_recipe.py:guess, which is not a built-in recipe .*--recipe .*recipe_fn=",
    ):
        load_checkpoint(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace(json.loads(text)["recipe"], "os.system"))
    with pytest.raises(SensoriumError, match=r"os.system, which is not a built-in recipe"):
        load_checkpoint(folder)


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def flip_last_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "is not a Sensorium run: it has no config.json"),
        (
            lambda f: (f / "config.json").unlink(),
            "is not a Sensorium run: it has no config.json",
        ),
        (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "must be a JSON object"),
        (
            edit_config(lambda c: c.update(format=1)),
            r"is a run of format 1; sensorium .* reads format 2. Train it again",
        ),
        (
            edit_config(lambda c: c.pop("format")),
            r"is not a Sensorium run: its config.json has no format. If it holds pretrained",
        ),
        (edit_config(lambda c: c.update(extra=1)), "missing or unknown keys: extra"),
        (edit_config(lambda c: c.pop("data")), "missing or unknown keys: data"),
        (
            edit_config(lambda c: c["keywords"].update(dim=9)),
            "does not fit the recipe: .* tensors",
        ),
        (lambda f: (f / "schema.json").unlink(), r"schema.json"),
        (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors is missing"),
        (
            lambda f: flip_last_bits(f / "model.safetensors"),
            r"model.safetensors is damaged: its content does not match its checksum",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 500), r"model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model.safetensors is damaged"),
    ],
)
def test_damaged_run_is_refused_in_one_line(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(SensoriumError, match=message) as caught:
        load_tiny(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_pretrained_folder_is_named_where_only_a_run_will_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(
        SensoriumError,
        match=r"is not a Sensorium run. It looks like pretrained llama weights: load them with "
        r"sn.load\(",
    ):
        load_checkpoint(tmp_path)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    values = {name: torch.randn(3) for name in "zyxabc"}
    for path in (tmp_path / "1", tmp_path / "2"):
        atomic.write_file(path, tensor_writer(values, {"step": "7", "more": "x"}))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_tensor_file_permissions_follow_the_umask(tmp_path: Path) -> None:
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
def test_tensors_round_trip(tmp_path: Path, value: torch.Tensor) -> None:
    atomic.write_file(tmp_path / "t", tensor_writer({"a": value}))
    back = read_tensors(tmp_path / "t")["a"]
    assert torch.equal(back, value)
    assert back.dtype == value.dtype


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    a, b = tiny_recipe.Guess(4, 0.0), tiny_recipe.Guess(4, 0.0)
    assert "hidden1.weight" in state_tensors(a)
    assert "hidden2.weight" not in state_tensors(a)
    assert "norm.running_mean" in state_tensors(a)
    atomic.write_file(tmp_path / "w", tensor_writer(state_tensors(a)))
    load_weights(b, tmp_path / "w")
    assert b.hidden2.weight is b.hidden1.weight
    assert torch.equal(a.hidden2.weight, b.hidden2.weight)


def test_loading_weights_keeps_the_memory_layout(tmp_path: Path) -> None:
    a, b = (nn.Conv2d(3, 4, 3) for _ in range(2))
    for module in (a, b):
        module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    atomic.write_file(tmp_path / "w", tensor_writer(state_tensors(a)))
    load_weights(b, tmp_path / "w")
    assert torch.equal(a.weight, b.weight)
    assert b.weight.stride() == a.weight.stride()


def test_latest_checkpoint_is_the_newest_intact_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    assert store.latest() is None
    for step in (1, 2, 3):
        store.save(step, {"a": b"%d" % step, "b": b"x"})
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-000002", "step-000003"]
    (tmp_path / "state" / "step-000004.tmp").mkdir()
    messages: list[str] = []
    again = CheckpointStore(tmp_path / "state")
    assert again.latest(messages.append) == tmp_path / "state" / "step-000003"
    assert not messages
    (tmp_path / "state" / "step-000003" / "a").write_bytes(b"4")
    assert again.latest(messages.append) == tmp_path / "state" / "step-000002"
    assert "step-000003 is damaged: a does not match its checksum" in messages[0]
    assert "step-000002" in messages[0]
    again.save(3, {"a": b"3", "b": b"x"})  # written again over the damaged one
    assert verify(tmp_path / "state" / "step-000003") is None
    for name in ("step-000002", "step-000003"):
        (tmp_path / "state" / name / "b").unlink()
    with pytest.raises(SensoriumError, match=r"b is missing.*No intact checkpoint is left"):
        CheckpointStore(tmp_path / "state").latest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda p: p.unlink(),
        lambda p: p.write_text("{"),
        lambda p: p.write_text("[1]"),
        lambda p: p.write_bytes(b"\xff"),
    ],
)
def test_checkpoint_without_a_valid_manifest_is_damaged(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = CheckpointStore(tmp_path / "state").save(1, {"a": b"1"})
    assert verify(path) is None
    damage(path / "manifest.json")
    assert verify(path)


@pytest.mark.parametrize("failing", ["write", "rename", "verify"])
def test_failed_save_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    store = CheckpointStore(tmp_path / "state")
    store.save(1, {"a": b"1", "b": b"1"})

    def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if failing == "verify":
        monkeypatch.setattr(snapshots, "verify", lambda _: "a does not match its checksum")
    else:
        monkeypatch.setattr(
            *(
                (Path, "write_bytes", raise_disk_full)
                if failing == "write"
                else (os, "rename", raise_disk_full)
            )
        )
    with pytest.raises(
        SensoriumError, match="Check the disk" if failing == "verify" else "No space left on device"
    ):
        store.save(2, {"a": b"2", "b": b"2"})
    monkeypatch.undo()
    if failing == "verify":
        (tmp_path / "state" / "step-000002" / "a").unlink()
    path = CheckpointStore(tmp_path / "state").latest(lambda _: None)
    assert path is not None
    assert path.name == "step-000001"
    assert (path / "a").read_bytes() == b"1"


def test_full_disk_while_writing_tensors_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_disk_full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", raise_disk_full)
    with pytest.raises(SensoriumError, match=r"could not be written: .*No space left on device"):
        atomic.write_file(tmp_path / "w", tensor_writer({"a": torch.ones(1)}))
    assert not list(tmp_path.iterdir())


def test_config_round_trips(tmp_path: Path) -> None:
    config = RunConfig("clip", {"dim": 3, "lr": 0.1}, "fp32", {"name": "x"})
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config
    assert set(config.versions) == {"sensorium", "torch", "numpy", "python"}
