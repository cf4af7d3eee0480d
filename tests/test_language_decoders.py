"""A captioner with a frozen pretrained language model and a frozen pretrained image encoder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.interruption import call_at_step, crash, run_hashes, send_signal
from fixtures.language_model import language_model as language_model
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data

import sensorium as sn
from sensorium.data.cache.prepared import embedding_key
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.models.decoder import Decoder
from sensorium.models.lora import FrozenEncoder
from sensorium.nn.tokens import Batch
from sensorium.recipes import captioner
from sensorium.recipes.recipe import InvalidKeywordError, build_recipe
from sensorium.recipes.vision_encoders import PrefixProjection
from sensorium.training.interruption import Interrupted

SHORT: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-2,
    "precision": "fp32",
    "quiet": True,
    "seed": 1,
}


def test_only_the_projection_trains_and_run_loads_without_the_pretrained_weights(
    data: Dataset,
    clip_folder: Path,
    language_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    sources = {"vision_weights": str(clip_folder), "language_model": str(language_model)}
    model = sn.train(captioner, data, out=tmp_path / "run", **sources, **SHORT)
    first = state_tensors(build_recipe(captioner, data.schema, sources)[0].model)
    for name, value in state_tensors(model.module).items():
        is_trained = name.startswith("parts.image.projection.")
        assert value.equal(first[name]) != is_trained, name
    assert isinstance(model.module.get_submodule("parts.image.tower.encoder"), FrozenEncoder)
    prefix = model.module.get_submodule("parts.image")
    assert isinstance(prefix, PrefixProjection)
    trainable = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert trainable == {
        f"parts.image.projection.{n}" for n, _ in prefix.projection.named_parameters()
    }
    pretrained = sn.load(language_model).module
    assert isinstance(pretrained, Decoder)
    assert isinstance(model.module, Decoder)
    batch = Batch({"text": torch.randint(3, 300, (2, 7))})
    torch.testing.assert_close(
        model.module.trunk(pretrained.embed_inputs(batch)["text"]).x, pretrained(batch)["text"].x
    )
    images = data.raw("image", [0, 1, 2])
    requests = [
        {},
        {"num_beams": 2},
        {"temperature": 1.0, "seed": 3},
        {"text": ["a", None, "a red"]},
    ]
    texts = [model.generate(image=images, **options) for options in requests]
    assert texts == [model.generate(image=images, batch_size=1, **options) for options in requests]
    hidden = [
        path.rename(path.with_name(f"hidden{i}"))
        for i, path in enumerate((clip_folder, language_model))
    ]
    try:
        loaded = sn.load(tmp_path / "run")
        assert [loaded.generate(image=images, **options) for options in requests] == texts
    finally:
        for path, original in zip(hidden, (clip_folder, language_model), strict=True):
            path.rename(original)


def test_cached_image_embeddings_give_the_same_loss(
    data: Dataset,
    clip_folder: Path,
    language_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    recipe, _ = build_recipe(
        captioner,
        data.schema,
        {"vision_weights": str(clip_folder), "language_model": str(language_model)},
    )
    schema = data.schema.fit(
        data, range(len(data)), recipe.data.columns, recipe.data.column_settings
    )
    recipe, _ = build_recipe(
        captioner,
        schema,
        {"vision_weights": str(clip_folder), "language_model": str(language_model)},
    )
    assert recipe.data.derived_columns is not None
    prepared = data.prepare(
        schema, recipe.data.columns, derived_columns=recipe.data.derived_columns(data)
    )
    batch = prepared.batch(range(8))
    without_cache = batch.select(schema.columns)
    assert embedding_key("image") in batch
    assert embedding_key("image") not in without_cache
    assert not recipe.model.eval().training
    torch.testing.assert_close(
        recipe.objective(recipe.model, batch), recipe.objective(recipe.model, without_cache)
    )
    assert recipe.model.get_submodule("parts.image")(batch["image"]).pos[0, :, 0].tolist() == [
        *range(-8, 0)
    ]


@pytest.mark.parametrize("step", [4, 0])
def test_resumed_run_equals_an_uninterrupted_one(
    step: int,
    data: Dataset,
    clip_folder: Path,
    language_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a checkpoint (step 0) it restarts from the pretrained weights."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path))
    keywords = {**SHORT, "vision_weights": str(clip_folder), "language_model": str(language_model)}
    whole = sn.train(captioner, data, out=tmp_path / "whole", **keywords)
    call_at_step(monkeypatch, max(step, 1), send_signal() if step else crash)
    with pytest.raises(Interrupted if step else KeyboardInterrupt):
        sn.train(captioner, data, out=tmp_path / "cut", **keywords)
    resumed = sn.train(captioner, data, out=tmp_path / "cut", resume=True, quiet=True)
    assert resumed.fingerprint == whole.fingerprint
    if step:
        assert run_hashes(tmp_path / "cut") == run_hashes(tmp_path / "whole")


def test_answers_do_not_depend_on_padding_or_missing_images(language_model: Path) -> None:
    data = Dataset.open("scenes", n=100, size=24)
    recipe, _ = build_recipe(
        captioner,
        data.schema,
        {"language_model": str(language_model), "question": "question", "text": "answer"},
    )
    schema = data.schema.fit(
        data, range(len(data)), recipe.data.columns, recipe.data.column_settings
    )
    recipe, _ = build_recipe(
        captioner,
        schema,
        {"language_model": str(language_model), "question": "question", "text": "answer"},
    )
    generate, rows = recipe.verbs["generate"], range(6)
    inputs = {
        "image": data.raw("image", rows),
        "question": [q if isinstance(q, str) else q[0] for q in data.raw("question", rows)],
    }
    answers = generate(**inputs, max_tokens=4)
    assert answers == generate(**inputs, max_tokens=4, batch_size=1)
    questions = inputs["question"]
    without_images = generate(question=questions, max_tokens=4)
    assert generate(image=[None] * 6, question=questions, max_tokens=4) == without_images


def test_unusable_weights_are_reported(
    data: Dataset, clip_folder: Path, language_model: Path, tmp_path: Path
) -> None:
    def build(**keywords: Any) -> None:
        build_recipe(captioner, data.schema, keywords)

    with pytest.raises(SensoriumError, match=r"--language-model .* is not a causal language model"):
        build(language_model=str(clip_folder))
    with pytest.raises(SensoriumError, match="no encoder for image"):
        build(vision_weights=str(language_model))
    with pytest.raises(InvalidKeywordError, match="--image '' says that there are none"):
        build(vision_weights=str(clip_folder), image="")
    with pytest.raises(InvalidKeywordError, match="Give only one of them"):
        build(vision_weights=str(clip_folder), clip_run="runs/clip")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((language_model / name).read_bytes())
    with pytest.raises(SensoriumError, match="has no tokenizer"):
        build(language_model=str(bare))
