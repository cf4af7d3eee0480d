"""A captioner that speaks through a published decoder and sees through a published eye: both stay as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.squares import COLOURS
from fixtures.squares import data as data
from fixtures.squares import published as published
from safetensors.torch import save_file
from test_resume import ask, at_step, ended, killed

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.tensors import state_tensors
from sensorium.modalities.text import train_tokenizer
from sensorium.models.decoder import Decoder
from sensorium.models.lora import FrozenEncoder
from sensorium.nn.tokens import Batch
from sensorium.pretrained import PRETRAINED_FAMILIES
from sensorium.pretrained.family import export_from
from sensorium.recipes import captioner
from sensorium.recipes.recipe import BadKeyword, build_recipe
from sensorium.training.loop import Interrupted

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "vocab_size": 300,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
SHORT: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-2,
    "precision": "fp32",
    "quiet": True,
    "seed": 1,
}


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama as Hugging Face would hold it, with weights nobody trained."""
    folder = tmp_path_factory.mktemp("voice")
    config = {**CONFIG, "layout": "safetensors", "tied": True, "qkv_bias": False, "out_bias": False}
    torch.manual_seed(5)
    module = PRETRAINED_FAMILIES["llama"].build_module(config)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(3 if p.ndim > 1 else 1)  # far from uniform, so that choices are clear
    save_file(
        export_from(module, PRETRAINED_FAMILIES["llama"].map_weights(config)),
        folder / "model.safetensors",
    )
    atomic.write_json(folder / "config.json", CONFIG)
    train_tokenizer([f"a {colour} square" for colour in COLOURS], 300).save(
        str(folder / "tokenizer.json")
    )
    return folder


def parts(run: Any) -> tuple[Decoder, Any]:
    return run.module, run.module.get_submodule("parts.image")


def test_neither_learns_and_the_run_stands_alone(
    data: Dataset, published: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    starts = {"vision_weights": str(published), "language_model": str(voice)}
    model = sn.train(captioner, data, out=tmp_path / "run", **starts, **SHORT)
    first = state_tensors(build_recipe(captioner, data.schema, starts)[0].model)
    for name, value in state_tensors(model.module).items():
        assert value.equal(first[name]) == (".spread." not in name), name
    assert isinstance(model.module.get_submodule("parts.image.tower.encode"), FrozenEncoder)
    assert [p for p in model.module.parameters() if p.requires_grad] == [
        *parts(model)[1].spread.parameters()
    ]
    theirs, ours = sn.load(voice).module, model.module
    ids = torch.randint(3, 300, (2, 7))
    torch.testing.assert_close(
        ours.trunk(theirs.read({"text": ids})["text"]).x, theirs(Batch({"text": ids}))["text"].x
    )
    shown = data.raw("image", [0, 1, 2])
    asked = [{}, {"beams": 2}, {"temperature": 1.0, "seed": 3}, {"text": ["a", None, "a red"]}]
    said = [model.generate(image=shown, **how) for how in asked]
    assert said == [model.generate(image=shown, batch_size=1, **how) for how in asked]
    hidden = [
        path.rename(path.with_name(f"hidden{i}")) for i, path in enumerate((published, voice))
    ]
    try:
        again = sn.load(tmp_path / "run")
        assert [again.generate(image=shown, **how) for how in asked] == said
    finally:
        for path, there in zip(hidden, (published, voice), strict=True):
            path.rename(there)


def test_what_an_eye_said_before_is_what_it_says(
    data: Dataset, published: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    recipe, _ = build_recipe(
        captioner, data.schema, {"vision_weights": str(published), "language_model": str(voice)}
    )
    schema = data.schema.fit(
        data, range(len(data)), recipe.data.columns, recipe.data.column_settings
    )
    recipe, _ = build_recipe(
        captioner, schema, {"vision_weights": str(published), "language_model": str(voice)}
    )
    assert recipe.data.derived_columns is not None
    prepared = data.prepare(schema, recipe.data.columns, derived_columns=recipe.data.derived_columns(data))
    batch = prepared.batch(range(8))
    anew = {name: values for name, values in batch.items() if "vector" not in name}
    assert len(anew) < len(batch)
    assert not recipe.model.eval().training
    torch.testing.assert_close(
        recipe.objective(recipe.model, batch), recipe.objective(recipe.model, anew)
    )
    assert recipe.model.parts["image"](batch["image"]).pos[0, :, 0].tolist() == [*range(-8, 0)]


@pytest.mark.parametrize("step", [4, 0])
def test_stopped_and_resumed_it_ends_the_same(
    step: int,
    data: Dataset,
    published: Path,
    voice: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where nothing had been saved yet (0): then it begins again from the published weights."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    keywords = {**SHORT, "vision_weights": str(published), "language_model": str(voice)}
    whole = sn.train(captioner, data, out=tmp_path / "whole", **keywords)
    at_step(monkeypatch, max(step, 1), ask() if step else killed)
    with pytest.raises(Interrupted if step else KeyboardInterrupt):
        sn.train(captioner, data, out=tmp_path / "cut", **keywords)
    again = sn.train(captioner, data, out=tmp_path / "cut", resume=True, quiet=True)
    assert again.fingerprint == whole.fingerprint
    assert step == 0 or ended(tmp_path / "cut") == ended(tmp_path / "whole")


def test_a_question_is_read_before_and_padding_changes_nothing(voice: Path) -> None:
    data = Dataset.open("scenes", n=100, size=24)
    recipe, _ = build_recipe(
        captioner,
        data.schema,
        {"language_model": str(voice), "question": "question", "text": "answer"},
    )
    schema = data.schema.fit(
        data, range(len(data)), recipe.data.columns, recipe.data.column_settings
    )
    recipe, _ = build_recipe(
        captioner, schema, {"language_model": str(voice), "question": "question", "text": "answer"}
    )
    say, rows = recipe.verbs["generate"], range(6)
    asked = {
        "image": data.raw("image", rows),
        "question": [q if isinstance(q, str) else q[0] for q in data.raw("question", rows)],
    }
    said = say(**asked, length=4)
    assert said == say(**asked, length=4, batch_size=1)
    assert say(image=[None] * 6, question=asked["question"], length=4) == say(
        question=asked["question"], length=4
    )


def test_what_cannot_be_is_said(
    data: Dataset, published: Path, voice: Path, tmp_path: Path
) -> None:
    def made(**keywords: Any) -> None:
        build_recipe(captioner, data.schema, keywords)

    with pytest.raises(SensoriumError, match="does not go on from words"):
        made(voice=str(published))
    with pytest.raises(SensoriumError, match="no encoder for image"):
        made(eye_from=str(voice))
    with pytest.raises(BadKeyword, match="says that there are none"):
        made(eye_from=str(published), image="")
    with pytest.raises(BadKeyword, match="give one of them"):
        made(eye_from=str(published), clip="runs/clip")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((voice / name).read_bytes())
    with pytest.raises(SensoriumError, match="without a tokenizer"):
        made(voice=str(bare))
