"""ONNX exports run without Sensorium: in a process with onnxruntime, numpy, Pillow, tokenizers.

The tolerance is 1e-5, absolute for unit vectors and probabilities, relative for numbers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.export_cases import TEXTS, untrained_run
from fixtures.shape_checks import unchecked_shapes as unchecked_shapes
from fixtures.squares import clip_folder as clip_folder
from test_export_graph import COLUMNS, SERIES, untrained_predictor

import sensorium as sn
from sensorium.cli import app
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.export.example import decode, interval_of
from sensorium.export.export import export_model
from sensorium.export.preprocessing import Preprocessor
from sensorium.io.run_config import RunConfig
from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.calibration import Calibration
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import build_recipe
from sensorium.training.checkpoint import Model

TOLERANCE = 1e-5
EXAMPLE = """
import json, sys
sys.path.insert(0, ".")
from pathlib import Path
from example import ExportedModel

model, request = ExportedModel("."), json.loads(Path(sys.argv[1]).read_text())
result = {}
for column, values in request.get("embed", {}).items():
    result[column] = model.embed(column, values).tolist()
if "match" in request:
    result["match"] = model.match(*request["match"]).tolist()
if "rows" in request:
    result["rows"] = model.predict(request["rows"])
unwanted = {"sensorium", "torch", "transformers"}
loaded = sorted(unwanted & {name.split(".")[0] for name in sys.modules})
print(json.dumps({"result": result, "loaded": loaded}))
"""


def run_without_sensorium(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Return the answers of a second process, in which neither Sensorium nor torch is loaded."""
    file = folder.parent / "request.json"
    file.write_text(json.dumps(request))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE, str(file)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["loaded"] == []
    return answer["result"]


def picture(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """A smooth image with sharp edges, as photographs have."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    image = coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)
    image.paste((250, 20, 30), (width // 3, height // 3, width // 2, height // 2))
    return image


def save_pictures(folder: Path) -> list[Path]:
    """Save images in the formats, modes, sizes and orientations that people have."""
    folder.mkdir(exist_ok=True)
    files: list[Path] = []

    def save(name: str, image: PIL.Image.Image, **options: Any) -> None:
        files.append(folder / name)
        image.save(files[-1], **options)

    save("small.jpg", picture(40, 23))
    save("large.jpg", picture(641, 433), quality=95)
    save("tall.jpg", picture(203, 517))
    save("gray.jpg", picture(300, 200).convert("L"))
    save("cmyk.jpg", picture(120, 90).convert("CMYK"))
    save("plain.png", picture(61, 47))
    for mode in ("RGBA", "LA", "P", "L", "1"):
        image = picture(50, 40).convert("RGBA")
        if mode in ("RGBA", "LA"):
            image.putalpha(PIL.Image.linear_gradient("L").resize((50, 40)))
        save(f"{mode}.png", image.convert(mode))
    wide = np.random.default_rng(0).integers(0, 65536, (30, 40)).astype(np.uint16)
    save("wide.png", PIL.Image.fromarray(wide))
    save("photo.webp", picture(90, 60), quality=90)
    save("photo.bmp", picture(33, 44))
    save("photo.tif", picture(55, 44))
    save("photo.gif", picture(44, 44).convert("P"))
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x112] = orientation
        save(f"turned{orientation}.jpg", picture(160, 97, orientation), exif=exif)
    return files


@pytest.mark.parametrize(
    "image",
    [
        Image(size=16),
        Image(size=24, margin=4),
        Image(size=16, resize_mode="pad"),
        Image(size=16, resize_mode="trim"),
        Image(size=16, resize_mode="stretch"),
        Image(size=16, resample="bicubic"),
        Image(size=16, resample="bicubic", shortest_edge=20),
        Image(size=16, resample="bilinear", resize_mode="stretch"),
        Image(size=16, resample="lanczos", resize_mode="centre", shortest_edge=19),
    ],
    ids=str,
)
def test_images_are_preprocessed_as_in_training(image: Image, tmp_path: Path) -> None:
    Schema({"photo": Column("photo", image)}).save(tmp_path)
    preprocess = Preprocessor(tmp_path)
    files = save_pictures(tmp_path / "photos")
    raw: list[Any] = [*map(str, files), files[0].read_bytes(), picture(30, 30)]
    arrays = np.random.default_rng(1).integers(0, 256, (20, 31, 4), dtype=np.uint8)
    raw += [arrays, arrays[..., :3], arrays[..., 0], arrays[..., :1]]
    values, present = preprocess("photo", raw)
    assert present.all()
    expected = image.collate([image.load(value) for value in raw]).numpy()
    assert values.dtype == expected.dtype
    worst = np.abs(values - expected).reshape(len(raw), -1).max(1)
    names = [str(value)[-20:] for value in raw]
    assert dict(zip(names, (worst > TOLERANCE).tolist(), strict=True)) == dict.fromkeys(
        names, False
    )


DATES = [
    "2026-03-31",
    "31.03.2026 14:05",
    "03/04/2023",
    "3 April 2021",
    "2026-03-31T14:05:06.5+02:00",
    "14:05",
    date(2024, 2, 29),
    datetime(2024, 2, 29, 5, 6, tzinfo=UTC),
]
CASES: dict[str, tuple[Modality, Sequence[Any]]] = {
    "number": (Numeric(mean=3.5, std=0.3), [1, 2.5, -1e6, np.float32(0.1), None, float("nan")]),
    "class": (
        Category(classes=("1", "007", "true", "a b")),
        [1, 1.0, "1.0", "+1", "007", 7, True, "TRUE", " a b ", "new", None],
    ),
    "rank": (Ordinal(classes=("1", "2", "10")), [2, "2.0", "10", "11"]),
    "day": (Datetime(mean=1.7e9, std=3e7, order="dmy"), [*DATES, None]),
    "american day": (Datetime(order="mdy"), DATES),
    "tags": (
        Multilabel(tags=("x", "y z")),
        ["x|y z", "new| x ", "", ["y z", "x"], None],
    ),
    "series": (
        Series().fit([SERIES[0], SERIES[1]]),
        [SERIES[0], SERIES[2], [[1.0, float("nan")]], None],
    ),
    "long series": (
        Series(channels=("a",), mean=(0.5,), std=(2.0,), length=7),
        [list(range(30)), [1.0, 2.0]],
    ),
    "cut series": (
        Series(channels=("a",), mean=(0.5,), std=(2.0,), length=7, truncation="cut"),
        [list(range(30))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_columns_are_preprocessed_as_in_training(name: str, tmp_path: Path) -> None:
    modality, raw = CASES[name]
    Schema({name: Column(name, modality)}).save(tmp_path)
    values, present = Preprocessor(tmp_path)(name, raw)
    readable = [value for value, ok in zip(raw, present, strict=True) if ok]
    expected = modality.collate([modality.load(value) for value in readable]).numpy()
    assert values.dtype == expected.dtype
    assert np.array_equal(values[present][:, ...], expected)
    assert present.tolist() == [
        value is not None and not (isinstance(value, float) and np.isnan(value)) for value in raw
    ]
    assert np.isfinite(values[~present].astype(np.float64)).all()


def test_texts_are_tokenized_as_in_training(tmp_path: Path) -> None:
    text = COLUMNS["words"]
    Schema({"words": Column("words", text)}).save(tmp_path)
    raw = [*TEXTS, "", "漢字 ü", "half \ud83d", "<start> x <pad>", None]
    values, present = Preprocessor(tmp_path)("words", raw)
    expected = text.collate(text.encode([value or "" for value in raw])).numpy()
    assert np.array_equal(values, expected)
    assert present.tolist() == [*[True] * (len(raw) - 1), False]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_two_encoders_run_without_sensorium(tmp_path: Path, size: str, loss: str) -> None:
    pytest.importorskip("onnxruntime")
    model = untrained_run(tmp_path, size=size, loss=loss)
    fit_subword_features(model)
    out = tmp_path / "out"
    export_model(model, "onnx", out)
    files = [str(file) for file in save_pictures(tmp_path / "photos")]
    request = {"embed": {"picture": files, "words": TEXTS}, "match": [files, TEXTS]}
    answer = run_without_sensorium(out, request)
    for column, vectors in (
        ("picture", model.embed(image=files)),
        ("words", model.embed(text=TEXTS)),
    ):
        assert np.abs(np.array(answer[column]) - vectors).max() < TOLERANCE
    expected = model.classify(image=files, labels=TEXTS).probability
    assert expected is not None
    assert np.abs(np.array(answer["match"]) - expected).max() < 1e-4  # times the logit scale


def fit_subword_features(model: Model) -> None:
    from test_export_graph import fit_subwords

    fit_subwords(model.module, model.schema["words"])


@pytest.mark.usefixtures("unchecked_shapes")
def test_pretrained_clip_runs_without_sensorium(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    assert app.run(["export", str(clip_folder), "--format", "onnx", "--out", str(out)]) == 0
    assert "example.py" in capsys.readouterr().out
    files = [str(file) for file in save_pictures(tmp_path / "photos")]
    texts = ["a red square", "Ein <end> Bild", "x" * 99]
    encoders = json.loads((out / "model.json").read_text())["encoders"]
    names = {entry["kind"]: name for name, entry in encoders.items()}
    request = {"embed": {names["image"]: files, names["text"]: texts}, "match": [files, texts]}
    answer = run_without_sensorium(out, request)
    model = sn.load(clip_folder)
    assert np.abs(np.array(answer[names["image"]]) - model.embed(image=files)).max() < TOLERANCE
    assert np.abs(np.array(answer[names["text"]]) - model.embed(text=texts)).max() < TOLERANCE


def trained_predictor(folder: Path) -> Model:
    """Return a fusion run of all supported types of columns with fitted calibration."""
    model = untrained_predictor(folder)
    rng = torch.Generator().manual_seed(0)
    for name, modality in (
        (name, model.schema[name]) for name in ("label", "price", "rank", "tags")
    ):
        calibration = model.module.get_calibration(name)
        width = {"label": 3, "price": 2, "rank": 3, "tags": 2}[name]
        logits = torch.randn(200, width, generator=rng)
        calibration.fit(modality, logits, getattr(modality, "fake")(200, rng))  # noqa: B009
    return model


@pytest.mark.usefixtures("unchecked_shapes")
def test_predictor_runs_without_sensorium(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, out = trained_predictor(tmp_path), tmp_path / "out"
    export_model(model, "onnx", out)
    files = [str(file) for file in save_pictures(tmp_path / "photos")]
    full = {
        "photo": files[0],
        "words": "two reddish cats, <end> long ago",
        "walk": SERIES[1].tolist(),
        "size": 1.5,
        "kind": "b",
        "when": "2020-02-03",
        "marks": ["x", "never seen"],
    }
    rows: list[dict[str, Any]] = [full, *({**full, name: None} for name in full)]
    rows += [{name: full[name]} for name in full]
    rows += [{**full, "photo": file} for file in files]
    rows += [{**full, "kind": "never seen", "when": "3 April 2021", "marks": "x|z"}]
    answer = run_without_sensorium(out, {"rows": rows})["rows"]
    expected = model.predict(rows)
    for target, prediction in expected.items():
        found = [row[target] for row in answer]
        if prediction.probability is None:
            low_high = np.array([entry["interval"] for entry in found])
            assert np.allclose(
                [entry["value"] for entry in found],
                prediction.value,
                rtol=TOLERANCE,
                atol=TOLERANCE,
            )
            assert np.allclose([entry["std"] for entry in found], prediction.std, rtol=1e-4)
            assert np.allclose(low_high, prediction.interval, rtol=1e-4, atol=1e-4)
            continue
        assert [entry["value"] for entry in found] == prediction.value
        p = np.array([list(entry["probability"].values()) for entry in found])
        assert list(found[0]["probability"]) == list(prediction.classes)
        assert np.abs(p - prediction.probability).max() < TOLERANCE


@pytest.mark.usefixtures("unchecked_shapes")
def test_example_reads_a_file_of_rows(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, out = trained_predictor(tmp_path), tmp_path / "out"
    export_model(model, "onnx", out)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"size": 1.5, "kind": "a"}\n\n{"words": "a red bicycle"}\n')
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "example.py", str(rows)],
        cwd=out,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    assert [set(row) for row in predictions] == [{"label", "price", "rank", "tags"}] * 2
    config = json.loads((out / "model.json").read_text())
    assert config["targets"]["label"]["classes"] == ["u", "v", "w"]
    assert set(config["targets"]["price"]["interval_quantiles"]) == {
        *("0.5", "0.8", "0.9", "0.95", "0.99")
    }


@pytest.mark.usefixtures("unchecked_shapes")
def test_exported_tokenizer_and_processor_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    model, out = untrained_run(tmp_path), tmp_path / "out"
    export_model(model, "onnx", out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    theirs = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="np")["input_ids"]
    text = model.schema["words"]
    expected = text.collate([text.load(value) for value in TEXTS]).numpy()
    assert np.array_equal(theirs, expected)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(out)
    image = picture(61, 47)
    pixels = processor(image, return_tensors="np")["pixel_values"]
    settings = model.schema["picture"]
    assert np.allclose(pixels, settings.collate([settings.load(image)]).numpy(), atol=1e-5)


@pytest.mark.parametrize("log_scale", [False, True])
def test_intervals_are_those_of_the_model(log_scale: bool) -> None:
    price = Numeric(mean=20.0, std=15.0, lower=0.0, edges=(0.0, 2.0, 10.0, 60.0), count=99)
    calibration = Calibration()
    calibration.conformal_quantiles.fill_(1.7)
    calibration.log_offset = torch.tensor(0.2) if log_scale else None
    output = torch.tensor([[-2.0, 0.1], [0.0, -1.0], [1.5, 0.3]])
    expected = calibration.interval(price, output, 1.7)
    prediction = calibration.decode(price, output)
    target = {
        "interval_quantiles": {"0.9": 1.7},
        "lower": 0.0,
        "upper": None,
        "log_offset": 0.2 * 15 if log_scale else None,
    }
    found = [
        interval_of(target, mean, std)
        for mean, std in zip(prediction.mean.tolist(), prediction.std.tolist(), strict=True)
    ]
    assert np.allclose(np.array(found), expected.numpy(), rtol=1e-5, atol=1e-5)


def test_decode_of_ordinal_and_uncalibrated_targets() -> None:
    rank = {"kind": "ordinal", "classes": ["1", "2", "3"]}
    assert decode(rank, np.array([0.2, 0.4, 0.4], np.float32))["value"] == "2"
    price = {"kind": "numeric", "interval_quantiles": {"0.9": None}}
    assert decode(price, np.float32(2), np.float32(1))["interval"] is None


@pytest.mark.parametrize("format", ["onnx", "torch", "hf", "open_clip"])
def test_models_that_generate_say_why_they_are_not_exported(tmp_path: Path, format: Any) -> None:
    schema = Schema({"words": Column("words", COLUMNS["words"])})
    recipe, stored_keywords = build_recipe(RECIPES["gpt"], schema, {"dim": 32, "layers": 1})
    model = Model(recipe, schema, RunConfig("gpt", stored_keywords, "fp32", {}), "", tmp_path / "g")
    with pytest.raises(SensoriumError, match="model of gpt with the verb generate"):
        export_model(model, format, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pretrained_model_without_two_encoders_says_why_it_is_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=4)
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    argv = ["export", str(tmp_path / "vit"), "--format", "onnx", "--out", str(tmp_path / "out")]
    assert app.run(argv) == 1
    assert "is a pretrained vit model" in capsys.readouterr().err
