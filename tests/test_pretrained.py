"""Published weights: what is read is what lies there, and what is hostile or damaged is refused in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.pretrained.describe import describe_pretrained
from sensorium.pretrained.family import (
    PretrainedFamily,
    WeightMapping,
    concat,
    export_from,
    load_into,
    rename,
    reshape,
    transpose,
)
from sensorium.pretrained.load import load_pretrained_model
from sensorium.pretrained.weight_files import WeightFiles, open_weights


class Toy(nn.Module):
    """Two layers, the second tied to nothing; qkv of unequal parts, a flat convolution, a transposed matrix."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv, self.patch, self.out = (
            nn.Linear(dim, 2 * dim),
            nn.Linear(3 * 4, dim, bias=False),
            nn.Linear(dim, 5),
        )


def names(config: Any) -> list[WeightMapping]:
    dim = config["dim"]
    return [
        *(
            concat(f"qkv.{part}", *(f"{x}.{part}" for x in "qkv"), sizes=(dim, dim // 2, dim // 2))
            for part in ("weight", "bias")
        ),
        reshape("patch.weight", "conv.weight", (dim, 12), (dim, 3, 2, 2)),
        transpose("out.weight", "out.weight"),
        rename("out.bias", "out.bias"),
    ]


TOY = PretrainedFamily(
    "toy",
    lambda opened: opened.config if opened.config.get("model_type") == "toy" else None,
    lambda config: Toy(config["dim"]),
    names,
    lambda config, opened: {},
    lambda module, senses: {"predict": lambda **given: given},
    unused_tensors=("*.position_ids",),
)
FAMILIES = {"toy": TOY}
DIM = 4


def theirs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return export_from(Toy(DIM), names({"dim": DIM}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "toy"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"model_type": "toy", "dim": DIM}))
    save_file(theirs(), place / "model.safetensors")
    return place


def shard(folder: Path) -> dict[str, Any]:
    """The same folder in two files and an index; the index."""
    values = theirs()
    (folder / "model.safetensors").unlink()
    where = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(values))
    }
    for file in set(where.values()):
        save_file({name: values[name] for name in values if where[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


# ------------------------------------------------------------------------------------------------ names


def test_there_and_back_is_the_same() -> None:
    before, module = theirs(), Toy(DIM)
    load_into(module, before, names({"dim": DIM}))
    after = export_from(module, names({"dim": DIM}))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(module.qkv.weight, torch.cat([before[f"{x}.weight"] for x in "qkv"]))
    assert torch.equal(module.out.weight, before["out.weight"].T)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.pop("k.bias"), "lacks tensor k.bias"),
        (lambda x: x.update(lora=torch.ones(1)), "unknown tensor lora"),
        (lambda x: x.update({"q.weight": torch.ones(3, DIM)}), r"q\.weight.*\(3, 4\).*\(4, 4\)"),
        (lambda x: x.update({"conv.weight": torch.ones(DIM, 12)}), "conv.weight"),
    ],
)
def test_what_does_not_fit_is_said(
    change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    values = theirs()
    change(values)
    with pytest.raises(SensoriumError, match=said):
        load_into(Toy(DIM), values, names({"dim": DIM}))


def test_a_buffer_that_is_not_learned_may_be_there() -> None:
    load_into(
        Toy(DIM),
        {**theirs(), "x.position_ids": torch.arange(3)},
        names({"dim": DIM}),
        unused_tensors=TOY.unused_tensors,
    )


def test_tied_weights_stored_twice_must_agree() -> None:
    twice = [*names({"dim": DIM}), rename("out.bias", "head.bias", optional=True)]
    values = theirs()
    load_into(Toy(DIM), values, twice)
    load_into(Toy(DIM), {**values, "head.bias": values["out.bias"].clone()}, twice)
    assert "head.bias" not in export_from(Toy(DIM), twice)
    with pytest.raises(SensoriumError, match="tied"):
        load_into(Toy(DIM), {**values, "head.bias": values["out.bias"] + 1}, twice)


def test_a_family_must_speak_of_all_its_weights() -> None:
    with pytest.raises(ValueError, match="out.bias"):
        load_into(Toy(DIM), theirs(), names({"dim": DIM})[:-1])


# ------------------------------------------------------------------------------------------------ files


def test_a_folder_becomes_a_model_with_its_verbs(folder: Path) -> None:
    model = load_pretrained_model(folder, families=FAMILIES)
    assert all(
        torch.equal(v, export_from(model.module, names({"dim": DIM}))[k])
        for k, v in theirs().items()
    )
    assert model.predict(a=1) == {"a": 1}
    assert not model.module.training
    with pytest.raises(SensoriumError, match="cannot embed; it can predict"):
        model.embed()
    with pytest.raises(AttributeError):
        _ = model.nonsense


def test_shards_are_one(folder: Path) -> None:
    whole = load_pretrained_model(folder, families=FAMILIES)
    shard(folder)
    parts = load_pretrained_model(folder, families=FAMILIES)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True)
    )
    assert whole.fingerprint == parts.fingerprint


def test_half_precision_is_widened_or_kept(folder: Path) -> None:
    save_file({k: v.to(torch.bfloat16) for k, v in theirs().items()}, folder / "model.safetensors")
    assert load_pretrained_model(folder, families=FAMILIES).module.out.bias.dtype == torch.float32
    assert (
        load_pretrained_model(folder, families=FAMILIES, dtype=torch.bfloat16).module.out.bias.dtype
        == torch.bfloat16
    )


def test_numbers_are_read_when_they_are_asked_for(folder: Path) -> None:
    opened = open_weights(folder)
    assert opened.tensors.get_shape("conv.weight") == (DIM, 3, 2, 2)
    assert opened.tensors.get_shape("none") is None
    assert set(opened.tensors) == set(theirs())
    assert opened.config["dim"] == DIM
    assert opened.layout == "safetensors"
    assert torch.equal(
        open_weights(folder / "model.safetensors").tensors["out.bias"], theirs()["out.bias"]
    )


def test_a_folder_is_described_before_its_numbers_are_read(folder: Path) -> None:
    said = describe_pretrained(folder, families=FAMILIES)
    assert said.family == "toy"
    assert said.layout == "safetensors"
    assert said.verbs == ["predict"]
    assert (
        said.num_parameters
        == sum(v.numel() for v in theirs().values())
        == sum(said.elements_by_dtype.values())
    )
    assert said.parameters_by_module == {"qkv": 40, "patch": 48, "out": 25}
    assert set(said.elements_by_dtype) == {"F32"}


def test_two_models_have_two_fingerprints(folder: Path) -> None:
    one = open_weights(folder).fingerprint
    save_file({**theirs(), "out.bias": torch.ones(5)}, folder / "model.safetensors")
    assert open_weights(folder).fingerprint != one


# ------------------------------------------------------------------------------------------------ hostile


def test_the_front_door_says_what_it_takes(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="neither a folder nor a file"):
        sn.load(tmp_path / "nothing")
    with pytest.raises(SensoriumError, match="holds no weights"):
        sn.load(tmp_path)


def test_another_family_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(SensoriumError, match="'mamba'"):
        load_pretrained_model(folder, families=FAMILIES)


def test_code_that_comes_along_is_refused(folder: Path) -> None:
    config = {"model_type": "toy", "dim": DIM, "auto_map": {"AutoModel": "modeling_toy.Toy"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_toy.py").write_text("raise SystemExit('executed')")
    with pytest.raises(SensoriumError, match="asks for code to be run .auto_map"):
        load_pretrained_model(folder, families=FAMILIES)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", '{"a": 1}' + "}" * 9])
def test_a_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SensoriumError, match="config.json"):
        open_weights(folder)


def header(entries: dict[str, Any], data: int = 0, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        header({}, length=1 << 62),
        header({}, length=(1 << 64) - 1),
        header({"a": entry(0, 16, [4])}, 16, length=99_999_999),
        header({"a": entry(0, 16, [4])}, 15),
        header({"a": entry(0, 16, [4])}, 17),
        header({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, 24),
        header({"a": entry(0, 16, [4]), "b": entry(0, 16, [4])}, 16),
        header({"a": entry(0, 16, [5])}, 16),
        header({"a": entry(0, 16, [1 << 40, 1 << 40])}, 16),
        header({"a": entry(16, 0, [4])}, 16),
        header({"a": entry(0, 16, [4], "PICKLE")}, 16),
        header({"a": entry(0, 16, [-4])}, 16),
        header({"a": 7}),
        b'\x10\0\0\0\0\0\0\0{"a":' + b" " * 10,
    ],
    ids=str,
)
def test_a_damaged_file_of_weights_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SensoriumError, match=r"model\.safetensors is damaged"):
        open_weights(folder)


def test_a_truncated_file_is_refused_at_any_length(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for length in range(0, len(whole), 37):
        (folder / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(SensoriumError, match="damaged"):
            open_weights(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "shard.bin",
        "",
        "..",
        "missing.safetensors",
    ],
)
def test_an_index_may_not_lead_elsewhere(folder: Path, name: str) -> None:
    index = shard(folder)
    index["weight_map"]["q.bias"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SensoriumError, match="index.json"):
        open_weights(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda where: where.pop("q.bias"),
        lambda where: where.update(extra=where["q.bias"]),
        lambda where: where.update(
            {"q.bias": next(v for v in where.values() if v != where["q.bias"])}
        ),
        lambda where: where.update({"q.bias": 3}),
    ],
)
def test_an_index_must_tell_the_truth(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    index = shard(folder)
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SensoriumError, match="index.json"):
        open_weights(folder)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.safetensors"
    os.rename(folder / "model.safetensors", outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(SensoriumError, match="leads out of its folder"):
        open_weights(folder)


def test_links_of_the_hubs_cache_are_followed_to_its_blobs_alone(
    folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "models--owner--toy"
    snapshot, blobs = model / "snapshots" / "abc", model / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for i, name in enumerate(("config.json", "model.safetensors")):
        os.rename(folder / name, blobs / str(i))
        (snapshot / name).symlink_to(Path("../../blobs") / str(i))
    assert set(open_weights(snapshot).tensors) == set(theirs())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "stray.json")
    (tmp_path / "stray.json").write_text("{}")
    with pytest.raises(SensoriumError, match="leads out"):
        open_weights(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_a_pickle_is_refused_with_the_way_out(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    for source in (folder, folder / name):
        with pytest.raises(SensoriumError, match="sensorium convert .*" + name):
            open_weights(source)


def test_not_a_number_is_carried_over(folder: Path) -> None:
    save_file({**theirs(), "out.bias": torch.full((5,), torch.nan)}, folder / "model.safetensors")
    assert load_pretrained_model(folder, families=FAMILIES).module.out.bias.isnan().all()


def test_opened_is_what_families_are_told_by(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[UNK]\n")
    opened = open_weights(folder)
    assert isinstance(opened, WeightFiles)
    assert list(opened.files) == ["vocab.txt"]
    assert opened.read_json("tokenizer.json") == {}
