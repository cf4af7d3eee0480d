"""GGUF and CTranslate2: values match the formats' own tools; damaged files are refused."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from sensorium.errors import SensoriumError
from sensorium.pretrained.weight_files import open_weights

WEIGHTS = Path(os.environ.get("SENSORIUM_WEIGHTS", "weights"))
real = pytest.mark.weights
QUANTS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32")
RNG = np.random.default_rng(0)
PLAIN = {
    "general.name": "toy",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10_000.0,
    "flag": True,
    "tokenizer.ggml.tokens": ["<s>", "é", "▁a"],
    "tokenizer.ggml.scores": [0.5, -1.0, -2.0],
}


# GGUF


def write_gguf(
    path: Path, tensors: dict[str, tuple[np.ndarray, str]], keys: dict[str, Any] = PLAIN
) -> None:
    """Write with the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    for gguf_key, value in keys.items():
        add = {
            str: writer.add_string,
            int: writer.add_uint32,
            float: writer.add_float32,
            bool: writer.add_bool,
            list: writer.add_array,
        }[type(value)]
        add(gguf_key, value)
    for name, (values, kind) in tensors.items():
        quant = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(values, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "toy.gguf"
    write_gguf(path, {kind: (RNG.standard_normal((5, 64), np.float32), kind) for kind in QUANTS})
    return path.read_bytes()


@pytest.fixture
def gguf_file(tmp_path: Path, gguf_bytes: bytes) -> Path:
    path = tmp_path / "toy.gguf"
    path.write_bytes(gguf_bytes)
    return path


def test_gguf_tensors_match_the_gguf_package(gguf_file: Path) -> None:
    opened = open_weights(gguf_file)
    reference = {t.name: t for t in gguf.GGUFReader(gguf_file).tensors}
    assert opened.layout == "gguf"
    assert set(opened.tensors) == set(reference) == set(QUANTS)
    for name, t in reference.items():
        expected = (
            t.data.view(np.uint16) if name == "BF16" else gguf.dequantize(t.data, t.tensor_type)
        )
        values = opened.tensors[name]
        assert values.shape == opened.tensors.get_shape(name) == (5, 64)
        assert opened.tensors.entries[name].dtype == name
        if name == "BF16":
            assert values.dtype == torch.bfloat16
            assert np.array_equal(values.view(torch.uint16).numpy(), expected)
        else:
            assert np.array_equal(values.float().numpy(), expected)
    assert {gguf_key: opened.config[gguf_key] for gguf_key in PLAIN} == PLAIN
    assert opened.config["general.architecture"] == "llama"


def test_folder_with_one_gguf_file_opens(gguf_file: Path) -> None:
    opened = open_weights(gguf_file.parent)
    assert opened.layout == "gguf"
    assert opened.path == gguf_file.parent
    assert len(opened.tensors) == len(QUANTS)


def test_truncated_gguf_is_refused(gguf_file: Path, gguf_bytes: bytes) -> None:
    for length in [*range(0, 600, 7), len(gguf_bytes) // 2, len(gguf_bytes) - 40]:
        gguf_file.write_bytes(gguf_bytes[:length])
        with pytest.raises(SensoriumError, match=r"toy.gguf"):
            open_weights(gguf_file)


def gguf_header(tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def gguf_key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def gguf_tensor(name: bytes, *sizes: int, kind: int = 0, place: int = 0) -> bytes:
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, place)
    )


HUGE = struct.pack("<Q", 1 << 60)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gguf_header(tensors=1 << 60), "no room"),
        (gguf_header(keys=1 << 60), "no room"),
        (gguf_header(version=1), "version"),
        (gguf_header(version=0x03000000), "little-endian"),
        (gguf_header(keys=1, rest=gguf_key(b"a", 9, struct.pack("<I", 4) + HUGE)), "no room"),
        (gguf_header(keys=1, rest=gguf_key(b"a", 8, HUGE) + bytes(9)), "no room"),
        (gguf_header(keys=1, rest=gguf_key(b"a", 99, bytes(9))), "unknown type 99"),
        (
            gguf_header(keys=1, rest=gguf_key(b"a", 9, struct.pack("<IQ", 9, 1) + bytes(99))),
            "unknown type 9",
        ),
        (gguf_header(keys=1, rest=gguf_key(b"\xff\xfe", 4, bytes(4))), "UTF-8"),
        (gguf_header(keys=1, rest=gguf_key(b"general.alignment", 4, bytes(4))), "alignment"),
        (gguf_header(tensors=1, rest=gguf_tensor(b"a", 1 << 40, 1 << 40)), "ends"),
        (gguf_header(tensors=1, rest=gguf_tensor(b"a", *[1] * 90)), "90 axes"),
        (gguf_header(tensors=1, rest=gguf_tensor(b"a", 32, place=1 << 62) + bytes(999)), "ends"),
        (
            gguf_header(tensors=1, rest=gguf_tensor(b"a", 32, kind=77) + bytes(999)),
            "unknown type 77",
        ),
        (
            gguf_header(tensors=1, rest=gguf_tensor(b"a", 33, kind=3) + bytes(999)),
            "Q4_1 cannot hold",
        ),
        (gguf_header(tensors=1, rest=gguf_tensor(b"a", 256, kind=15) + bytes(999)), "Q8_K"),
        (
            gguf_header(
                tensors=2, rest=gguf_tensor(b"a", 4) + gguf_tensor(b"a", 4, place=32) + bytes(999)
            ),
            "twice",
        ),
        (
            gguf_header(
                tensors=2, rest=gguf_tensor(b"a", 99) + gguf_tensor(b"b", 4, place=32) + bytes(999)
            ),
            "inside of what lies before",
        ),
        (gguf_header(keys=2, rest=2 * gguf_key(b"a", 4, bytes(4)) + bytes(99)), "twice"),
    ],
)
def test_inconsistent_gguf_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "toy.gguf"
    path.write_bytes(content)
    with pytest.raises(SensoriumError, match=f"toy.gguf.*{expected}"):
        open_weights(path)


# CTranslate2

KINDS = (np.float32, np.int8, np.int16, np.int32, np.float16)


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def variable(name: str, values: np.ndarray) -> bytes:
    kind = [np.dtype(k) for k in KINDS].index(values.dtype)
    return (
        string(name)
        + struct.pack(f"<B{values.ndim}IBI", values.ndim, *values.shape, kind, values.nbytes)
        + values.tobytes()
    )


def model_bin(
    variables: dict[str, np.ndarray], aliases: dict[str, str] | None = None, version: int = 6
) -> bytes:
    """The bytes that CTranslate2's converter writes."""
    names = b"".join(string(a) + string(b) for a, b in (aliases or {}).items())
    return (
        struct.pack("<I", version)
        + string("WhisperSpec")
        + struct.pack("<II", 3, len(variables))
        + b"".join(variable(*item) for item in variables.items())
        + struct.pack("<I", len(aliases or {}))
        + names
    )


MATRIX = RNG.standard_normal((6, 8)).astype(np.float32)
ROWS = 127 / np.abs(MATRIX).max(1)
BIN = model_bin(
    {
        "encoder/num_heads": np.array(2, np.int16),
        "half": MATRIX.astype(np.float16),
        "plain": MATRIX,
        "int8": np.round(MATRIX * ROWS[:, None]).astype(np.int8),
        "int8_scale": ROWS.astype(np.float32),
        "int16": np.round(MATRIX * 1000).astype(np.int16),
        "int16_scale": np.array(1000, np.float32),
    },
    {"tied": "plain"},
)


def test_ctranslate2_tensors_are_read(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(BIN)
    (tmp_path / "config.json").write_text('{"suppress_ids": [1]}')
    opened = open_weights(tmp_path)
    assert opened.layout == "ctranslate2"
    assert opened.config["suppress_ids"] == [1]
    assert opened.config["ctranslate2"] == {
        "spec": "WhisperSpec",
        "revision": 3,
        "encoder/num_heads": 2,
    }
    assert set(opened.tensors) == {"half", "plain", "int8", "int16", "tied"}
    assert all(np.array_equal(opened.tensors[name].numpy(), MATRIX) for name in ("plain", "tied"))
    assert np.array_equal(opened.tensors["half"].numpy(), MATRIX.astype(np.float16))
    for name, tolerance in (("int8", 0.5 / ROWS[:, None]), ("int16", 0.0005)):
        values = opened.tensors[name]
        assert values.dtype == torch.float32
        assert (np.abs(values.numpy() - MATRIX) <= tolerance * 1.001).all()


def test_split_model_bin_opens(tmp_path: Path) -> None:
    for n, start in enumerate(range(0, len(BIN), 100), 1):
        (tmp_path / f"model.bin.part{n:02d}").write_bytes(BIN[start : start + 100])
    assert np.array_equal(open_weights(tmp_path).tensors["plain"].numpy(), MATRIX)
    (tmp_path / "model.bin.part02").unlink()
    with pytest.raises(SensoriumError, match="damaged"):
        open_weights(tmp_path)


def test_truncated_model_bin_is_refused(tmp_path: Path) -> None:
    for length in range(0, len(BIN), 11):
        (tmp_path / "model.bin").write_bytes(BIN[:length])
        with pytest.raises(SensoriumError, match=r"model.bin"):
            open_weights(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda b: model_bin({}, version=9), "version"),
        (lambda b: b + b"x", "follow its end"),
        (lambda b: model_bin({"a": MATRIX}, {"b": "c"}), "alias"),
        (
            lambda b: b.replace(
                struct.pack("<BIIBI", 2, 6, 8, 0, 192), struct.pack("<BIIBI", 2, 9, 9, 0, 192)
            ),
            "fill",
        ),
        (
            lambda b: b.replace(
                struct.pack("<BIIBI", 2, 6, 8, 0, 192), struct.pack("<BIIBI", 2, 6, 8, 9, 192)
            ),
            "type 9",
        ),
        (
            lambda b: b.replace(
                struct.pack("<BIIBI", 2, 6, 8, 0, 192), struct.pack("<BIIBI", 200, 6, 8, 0, 192)
            ),
            "200 axes",
        ),
        (lambda b: b[:18] + struct.pack("<II", 3, 1 << 31) + b[26:], "no room"),
        (lambda b: b.replace(b"\x06\0plain", b"\x06\0int16"), "twice"),
    ],
)
def test_inconsistent_model_bin_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], expected: str
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change(BIN))
    with pytest.raises(SensoriumError, match=f"model.bin.*{expected}"):
        open_weights(path)


# Pretrained weights


@real
def test_pretrained_gguf_decoder() -> None:
    opened = open_weights(WEIGHTS / "smollm2")
    assert len(opened.tensors) == 272
    assert opened.config["llama.block_count"] == 30
    assert opened.tensors["token_embd.weight"].shape == (49152, 576)
    for t in gguf.GGUFReader(next((WEIGHTS / "smollm2").glob("*.gguf"))).tensors[:20]:
        assert np.array_equal(
            opened.tensors[t.name].numpy(), gguf.dequantize(t.data, t.tensor_type)
        )


@real
@pytest.mark.parametrize(
    ("name", "vocabulary", "width"), [("whisper-tiny.en", 51864, 384), ("whisper-base", 51865, 512)]
)
def test_pretrained_ctranslate2_whisper(name: str, vocabulary: int, width: int) -> None:
    opened = open_weights(WEIGHTS / name)
    embedded = opened.tensors["decoder/embeddings/weight"]
    assert embedded.shape == (vocabulary, width)
    assert 0.01 < embedded.float().std() < 0.1
    assert "tokenizer.json" in opened.files
    assert opened.config["ctranslate2"]["spec"] == "WhisperSpec"


@real
def test_pretrained_sentence_encoder() -> None:
    opened = open_weights(WEIGHTS / "minilm")
    assert opened.config["model_type"] == "bert"
    assert len(opened.tensors) == 104
    assert opened.read_json("1_Pooling/config.json")["pooling_mode_mean_tokens"] is True
