"""Models and datasets pickle and deep-copy, and the copies answer like the originals."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.language_model import language_model as language_model
from fixtures.recipe_cases import RECIPE_CASES, build
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data
from safetensors.torch import save_file

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.inference.base import VerbModel
from sensorium.inference.predict import Prediction
from sensorium.io.run_config import RunConfig
from sensorium.modalities.subword_bag import SubwordBagEmbedding
from sensorium.modalities.text import Text
from sensorium.pretrained import PRETRAINED_FAMILIES
from sensorium.pretrained.weight_mapping import export_from
from sensorium.training.checkpoint import Model

RNG = np.random.default_rng(0)
IMAGES = list(RNG.integers(0, 256, (2, 20, 16, 3), dtype=np.uint8))
SPECIAL = ["a red <end> bicycle", "two <pad> blue cats"]  # names of special tokens are plain text
ROW = {
    "image": IMAGES[0],
    "caption": SPECIAL[0],
    "price": 0.3,
    "kind": "b",
    "stars": "2",
    "day": "2024-05-06",
    "genres": ["x"],
}
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),  # noqa: S301 - written here
    "deepcopy": copy.deepcopy,
}


def recipe_model(name: str, keywords: Mapping[str, object]) -> Model:
    """Return an untrained model of a recipe, as `sn.train` returns it."""
    case = RECIPE_CASES[name]
    recipe = build(name, {**case.small, **keywords})
    text = next(c.modality for c in case.schema.columns.values() if isinstance(c.modality, Text))
    for module in recipe.model.modules():
        if isinstance(module, SubwordBagEmbedding):
            module.fit_on_data([text.collate(text.encode(SPECIAL))])
    config = RunConfig(name, dict(keywords), "fp32", {})
    return Model(recipe, case.schema, config, "fingerprint", Path("run"))


def answers(model: VerbModel) -> list[np.ndarray]:
    """Return what the verbs of a model answer, as arrays."""
    found: list[np.ndarray] = []
    if "embed" in model.verbs:
        values = {"image": IMAGES, "text": SPECIAL}
        kinds = getattr(model.embed, "modalities", values)
        found += [model.embed(**{kind: values[kind]}) for kind in kinds]
    if "classify" in model.verbs and len(getattr(model.embed, "modalities", {})) > 1:
        found.append(model.classify(image=IMAGES, labels=["cat", "dog"]).similarity)
    if "predict" in model.verbs:
        columns = getattr(model.predict, "columns", None)
        if columns is None:
            return [*found, np.array([p[2] for p in model.predict(image=IMAGES)[0]])]
        for prediction in model.predict([{name: ROW[name] for name in columns}]).values():
            assert isinstance(prediction, Prediction)
            found.append(
                np.array(prediction.value)
                if prediction.probability is None
                else prediction.probability
            )
    if "generate" in model.verbs:
        found += [np.asarray(output) for output in generated(model)]
    assert found
    return found


def generated(model: VerbModel) -> list[Any]:
    name = model.config.recipe if isinstance(model, Model) else "pretrained"
    match name:
        case "captioner":
            return model.generate("text", image=IMAGES, max_tokens=5)
        case "image_tokenizer":
            return model.generate(image=IMAGES)
        case "dalle" | "dalle2" | "gan" | "imagen":
            return model.generate(text=SPECIAL, seed=1)
        case _:
            return model.generate(text=SPECIAL, max_tokens=5)


def assert_same_answers(model: VerbModel, other: VerbModel) -> None:
    for before, after in zip(answers(model), answers(other), strict=True):
        assert np.array_equal(before, after), (before, after)


CASES = [
    pytest.param(name, variant, id=f"{name} {index}")
    for name, case in RECIPE_CASES.items()
    for index, variant in enumerate(case.variants)
]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(("name", "keywords"), CASES)
def test_model_of_a_recipe_answers_alike_after_copying(
    name: str, keywords: Mapping[str, object], how: str
) -> None:
    model = recipe_model(name, keywords)
    copied = COPIES[how](model)
    assert_same_answers(model, copied)
    assert copied.module is copied.recipe.model
    weights, copies = model.module.state_dict(), copied.module.state_dict()
    assert weights.keys() == copies.keys()
    assert all(torch.equal(value, copies[key]) for key, value in weights.items())
    before = answers(model)
    with torch.no_grad():
        for parameter in copied.module.parameters():
            parameter.zero_()
    assert all(np.array_equal(a, b) for a, b in zip(before, answers(model), strict=True))


def test_copied_recipe_trains_its_own_model() -> None:
    copied = COPIES["pickle"](recipe_model("finetune", {"train": "lora"}))
    names = [name for name, p in copied.module.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in names)


def transformers_folder(kind: str, folder: Path, tokenizer_folder: Path) -> Path:
    """Write an untrained model of transformers with a tiny tokenizer."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = sizes | {"image_size": 16, "patch_size": 4}
    text = sizes | {"vocab_size": 300, "max_position_embeddings": 20, "pad_token_id": 0}
    labels = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    gpt2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 300}
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 1, "num_heads": 2, "vocab_size": 300}
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "siglip": ("SiglipModel", {"vision_config": vision, "text_config": text}),
        "bert": ("BertModel", text),
        "roberta": ("RobertaModel", text),
        "vit": ("ViTForImageClassification", vision | labels),
        "dinov2": ("Dinov2Model", vision),
        "t5": ("T5EncoderModel", t5),
        "gpt2": ("GPT2LMHeadModel", gpt2 | {"eos_token_id": 2, "bos_token_id": 1}),
    }
    model_name, config = configs[kind]
    cls = getattr(transformers, model_name)
    torch.manual_seed(0)
    cls(cls.config_class(**config)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    return folder


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", ["siglip", "bert", "roberta", "vit", "dinov2", "t5", "gpt2"])
def test_pretrained_model_answers_alike_after_copying(
    kind: str, how: str, clip_folder: Path, tmp_path: Path
) -> None:
    model = sn.load(transformers_folder(kind, tmp_path, clip_folder))
    assert_same_answers(model, COPIES[how](model))


@pytest.mark.parametrize("how", COPIES)
def test_pretrained_resnet_answers_alike_after_copying(how: str, tmp_path: Path) -> None:
    stages = [(1, 8, 8), (1, 8, 16), (1, 16, 16), (1, 16, 16)]
    labels = [f"class {i}" for i in range(3)]
    config = {"stem": 8, "stages": stages, "bottleneck": False, "has_batch_count": True}
    family = PRETRAINED_FAMILIES["resnet"]
    torch.manual_seed(0)
    module = family.build_module({**config, "labels": labels})
    mappings = family.map_weights({**config, "labels": labels})
    save_file(export_from(module, mappings), tmp_path / "model.safetensors")
    model = sn.load(tmp_path)
    assert_same_answers(model, COPIES[how](model))


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_pretrained_clip_and_llama_answer_alike_after_copying(
    how: str, quantize: str | None, clip_folder: Path, language_model: Path
) -> None:
    for folder in (clip_folder, language_model):
        model = sn.load(folder, quantize=quantize)
        assert_same_answers(model, COPIES[how](model))


@pytest.mark.parametrize("how", COPIES)
def test_pretrained_speech_model_answers_alike_after_copying(how: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        vocab_size=61,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=24,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    model = sn.load(tmp_path)
    copied = COPIES[how](model)
    weights = copied.module.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.module.state_dict().items())
    assert copied.verbs.keys() == model.verbs.keys()


def test_loaded_run_answers_in_another_process(tmp_path: Path, data: Dataset) -> None:
    sizes: dict[str, Any] = {"dim": 32, "image_layers": 1, "text_layers": 1, "embed_dim": 16}
    model = sn.train(sn.recipes.clip, data, out=tmp_path / "run", epochs=1, batch_size=8, **sizes)
    loaded = sn.load(tmp_path / "run")
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(loaded))
    code = (
        "import pickle, sys; from pathlib import Path\n"
        "model = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "import json; print(json.dumps(model.embed(text=['a red square']).tolist()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    expected = model.embed(text=["a red square"])
    assert np.allclose(np.array(json.loads(done.stdout)), expected, atol=1e-6)


@pytest.mark.parametrize("how", COPIES)
def test_dataset_has_the_same_rows_after_copying(how: str, data: Dataset) -> None:
    copied = COPIES[how](data)
    assert len(copied) == len(data)
    assert copied.schema.columns.keys() == data.schema.columns.keys()
    rows = range(len(data))
    assert copied.raw("caption", rows) == data.raw("caption", rows)
    assert copied.raw("image", rows) == data.raw("image", rows)
    assert {name: list(r) for name, r in copied.splits.items()} == {
        name: list(r) for name, r in data.splits.items()
    }


def test_images_of_a_dalle_copy_are_equal() -> None:
    model = recipe_model("dalle", {})
    first = model.generate(text=SPECIAL[:1], seed=3)
    second = COPIES["deepcopy"](model).generate(text=SPECIAL[:1], seed=3)
    assert isinstance(first[0], PIL.Image.Image)
    assert np.array_equal(np.asarray(first[0]), np.asarray(second[0]))
