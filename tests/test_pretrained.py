"""Pretrained weights: files are read exactly; hostile or damaged ones raise one SensoriumError."""

import json
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
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.load import load_pretrained_model
from sensorium.pretrained.weight_files import WeightFiles, open_weights
from sensorium.pretrained.weight_mapping import (
    WeightMapping,
    concat,
    export_from,
    load_into,
    rename,
    reshape,
    transpose,
)


class Toy(nn.Module):
    """A layer for each mapping: unequal qkv, a flattened convolution, a transposed matrix."""

    def __init__(self, dim: int):
        super().__init__()
        self.qkv = nn.Linear(dim, 2 * dim)
        self.patch = nn.Linear(3 * 4, dim, bias=False)
        self.out = nn.Linear(dim, 5)


def toy_mappings(config: Any) -> list[WeightMapping]:
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
    lambda files: files.config if files.config.get("model_type") == "toy" else None,
    lambda config: Toy(config["dim"]),
    toy_mappings,
    lambda config, files: {},
    lambda module, preprocessing: {"predict": lambda **inputs: inputs},
    unused_tensors=("*.position_ids",),
)
FAMILIES = {"toy": TOY}
DIM = 4


def source_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return export_from(Toy(DIM), toy_mappings({"dim": DIM}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder_path = tmp_path / "toy"
    folder_path.mkdir()
    (folder_path / "config.json").write_text(json.dumps({"model_type": "toy", "dim": DIM}))
    save_file(source_tensors(), folder_path / "model.safetensors")
    return folder_path


def shard(folder: Path) -> dict[str, Any]:
    """Split the weights of a folder into two files with an index; return the index."""
    values = source_tensors()
    (folder / "model.safetensors").unlink()
    weight_map = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(values))
    }
    for file in set(weight_map.values()):
        save_file(
            {name: values[name] for name in values if weight_map[name] == file}, folder / file
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


# Weight mappings


def test_weights_survive_the_round_trip() -> None:
    before = source_tensors()
    module = Toy(DIM)
    load_into(module, before, toy_mappings({"dim": DIM}))
    after = export_from(module, toy_mappings({"dim": DIM}))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(module.qkv.weight, torch.cat([before[f"{x}.weight"] for x in "qkv"]))
    assert torch.equal(module.out.weight, before["out.weight"].T)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x.pop("k.bias"), "lacks tensor k.bias"),
        (lambda x: x.update(lora=torch.ones(1)), "unknown tensor lora"),
        (lambda x: x.update({"q.weight": torch.ones(3, DIM)}), r"q\.weight.*\(3, 4\).*\(4, 4\)"),
        (lambda x: x.update({"conv.weight": torch.ones(DIM, 12)}), "conv.weight"),
    ],
)
def test_unfitting_tensors_are_named(
    change: Callable[[dict[str, Tensor]], object], expected: str
) -> None:
    values = source_tensors()
    change(values)
    with pytest.raises(SensoriumError, match=expected):
        load_into(Toy(DIM), values, toy_mappings({"dim": DIM}))


def test_unused_tensors_are_ignored() -> None:
    load_into(
        Toy(DIM),
        {**source_tensors(), "x.position_ids": torch.arange(3)},
        toy_mappings({"dim": DIM}),
        unused_tensors=TOY.unused_tensors,
    )


def test_tied_weights_stored_twice_must_be_equal() -> None:
    tied_mappings = [*toy_mappings({"dim": DIM}), rename("out.bias", "head.bias", optional=True)]
    values = source_tensors()
    load_into(Toy(DIM), values, tied_mappings)
    load_into(Toy(DIM), {**values, "head.bias": values["out.bias"].clone()}, tied_mappings)
    assert "head.bias" not in export_from(Toy(DIM), tied_mappings)
    with pytest.raises(SensoriumError, match="tied"):
        load_into(Toy(DIM), {**values, "head.bias": values["out.bias"] + 1}, tied_mappings)


def test_family_must_map_all_weights() -> None:
    with pytest.raises(ValueError, match=r"out.bias"):
        load_into(Toy(DIM), source_tensors(), toy_mappings({"dim": DIM})[:-1])


# Files


def test_folder_loads_as_a_model_with_verbs(folder: Path) -> None:
    model = load_pretrained_model(folder, families=FAMILIES)
    assert all(
        torch.equal(v, export_from(model.module, toy_mappings({"dim": DIM}))[k])
        for k, v in source_tensors().items()
    )
    assert model.predict(a=1) == {"a": 1}
    assert not model.module.training
    with pytest.raises(SensoriumError, match=r"cannot embed\. It supports: predict"):
        model.embed()
    with pytest.raises(AttributeError):
        _ = model.nonsense


def test_shards_load_as_one_file(folder: Path) -> None:
    whole = load_pretrained_model(folder, families=FAMILIES)
    shard(folder)
    parts = load_pretrained_model(folder, families=FAMILIES)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True)
    )
    assert whole.fingerprint == parts.fingerprint


def loaded_toy(folder: Path, dtype: torch.dtype = torch.float32) -> Toy:
    module = load_pretrained_model(folder, families=FAMILIES, dtype=dtype).module
    assert isinstance(module, Toy)
    return module


def test_bfloat16_is_loaded_as_the_requested_dtype(folder: Path) -> None:
    tensors = {k: v.to(torch.bfloat16) for k, v in source_tensors().items()}
    save_file(tensors, folder / "model.safetensors")
    assert loaded_toy(folder).out.bias.dtype == torch.float32
    assert loaded_toy(folder, torch.bfloat16).out.bias.dtype == torch.bfloat16


def test_shapes_are_known_without_reading(folder: Path) -> None:
    opened = open_weights(folder)
    assert opened.tensors.get_shape("conv.weight") == (DIM, 3, 2, 2)
    assert opened.tensors.get_shape("none") is None
    assert set(opened.tensors) == set(source_tensors())
    assert opened.config["dim"] == DIM
    assert opened.layout == "safetensors"
    assert torch.equal(
        open_weights(folder / "model.safetensors").tensors["out.bias"], source_tensors()["out.bias"]
    )


def test_description_of_a_folder(folder: Path) -> None:
    description = describe_pretrained(folder, families=FAMILIES)
    assert description.family == "toy"
    assert description.layout == "safetensors"
    assert description.verbs == ["predict"]
    assert (
        description.num_parameters
        == sum(v.numel() for v in source_tensors().values())
        == sum(description.elements_by_dtype.values())
    )
    assert description.parameters_by_module == {"qkv": 40, "patch": 48, "out": 25}
    assert set(description.elements_by_dtype) == {"F32"}


def test_fingerprint_changes_with_a_weight(folder: Path) -> None:
    one = open_weights(folder).fingerprint
    save_file({**source_tensors(), "out.bias": torch.ones(5)}, folder / "model.safetensors")
    assert open_weights(folder).fingerprint != one


# Hostile and damaged files


def test_load_refuses_a_path_without_weights(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="neither a folder nor a file"):
        sn.load(tmp_path / "nothing")
    with pytest.raises(SensoriumError, match="holds no weights"):
        sn.load(tmp_path)


def test_unknown_model_type_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(SensoriumError, match="'mamba'"):
        load_pretrained_model(folder, families=FAMILIES)


def test_code_execution_key_is_refused(folder: Path) -> None:
    config = {"model_type": "toy", "dim": DIM, "auto_map": {"AutoModel": "modeling_toy.Toy"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_toy.py").write_text("raise SystemExit('executed')")
    with pytest.raises(SensoriumError, match=r"asks for code to be run .auto_map"):
        load_pretrained_model(folder, families=FAMILIES)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", '{"a": 1}' + "}" * 9])
def test_damaged_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SensoriumError, match=r"config.json"):
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
def test_damaged_safetensors_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(SensoriumError, match=r"model\.safetensors is damaged"):
        open_weights(folder)


def test_truncated_safetensors_is_refused(folder: Path) -> None:
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
def test_index_with_a_bad_file_name_is_refused(folder: Path, name: str) -> None:
    index = shard(folder)
    index["weight_map"]["q.bias"] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SensoriumError, match=r"index.json"):
        open_weights(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight_map: weight_map.pop("q.bias"),
        lambda weight_map: weight_map.update(extra=weight_map["q.bias"]),
        lambda weight_map: weight_map.update(
            {"q.bias": next(v for v in weight_map.values() if v != weight_map["q.bias"])}
        ),
        lambda weight_map: weight_map.update({"q.bias": 3}),
    ],
)
def test_index_that_differs_from_the_shards_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    index = shard(folder)
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SensoriumError, match=r"index.json"):
        open_weights(folder)


def test_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(SensoriumError, match="leads out of its folder"):
        open_weights(folder)


def test_links_of_the_hub_cache_lead_to_its_blobs_only(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "models--owner--toy"
    snapshot, blobs = model / "snapshots" / "abc", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(("config.json", "model.safetensors")):
        (folder / name).rename(blobs / str(i))
        (snapshot / name).symlink_to(Path("../../blobs") / str(i))
    assert set(open_weights(snapshot).tensors) == set(source_tensors())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "stray.json")
    (tmp_path / "stray.json").write_text("{}")
    with pytest.raises(SensoriumError, match="leads out"):
        open_weights(snapshot)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickle_is_refused_naming_the_conversion(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    for source in (folder, folder / name):
        with pytest.raises(SensoriumError, match=r"sensorium convert-checkpoint .*" + name):
            open_weights(source)


def test_nan_weights_are_loaded(folder: Path) -> None:
    save_file(
        {**source_tensors(), "out.bias": torch.full((5,), torch.nan)}, folder / "model.safetensors"
    )
    assert loaded_toy(folder).out.bias.isnan().all()


def test_sidecar_files_are_found(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[UNK]\n")
    opened = open_weights(folder)
    assert isinstance(opened, WeightFiles)
    assert list(opened.files) == ["vocab.txt"]
    assert opened.read_json("tokenizer.json") == {}
