"""Zero-shot classification: the verb `classify`, with own runs, CLIP, SigLIP and text encoders."""

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.export_cases import example_images, untrained_run
from fixtures.squares import clip_folder as clip_folder

import sensorium as sn
from sensorium.errors import SensoriumError, require_type
from sensorium.inference.classification import Classification
from sensorium.inference.classify import ZeroShotClassifier
from sensorium.inference.embed import Embedder
from sensorium.inference.request import Unreadable
from sensorium.modalities.audio import Audio
from sensorium.modalities.text import Text
from sensorium.models.towers import Encoder, Tower, Towers
from sensorium.nn.tokens import Tokens
from sensorium.pretrained.load import load_pretrained_model

transformers = pytest.importorskip("transformers")
LABELS = ["red", "green", "a blue square"]


def tiny_siglip(folder: Path, clip_folder: Path) -> Path:
    """Write a SigLIP of transformers with random weights and the tokenizer of a CLIP folder."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.SiglipConfig(
        text_config={**sizes, "vocab_size": 300, "max_position_embeddings": 12, "pad_token_id": 0},
        vision_config={**sizes, "image_size": 16, "patch_size": 4},
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-0.5)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((clip_folder / name).read_bytes())
    return folder


def square(colour: tuple[int, int, int]) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (20, 16), colour)


def probability(found: Classification) -> np.ndarray:
    assert found.probability is not None
    return found.probability


IMAGES = [square((230, 20, 20)), square((20, 30, 220)), square((250, 250, 250))]


def test_pretrained_clip_gives_the_probabilities_of_transformers(clip_folder: Path) -> None:
    model = load_pretrained_model(clip_folder)
    found = model.classify(image=IMAGES, labels=LABELS, templates="{}")
    theirs = transformers.CLIPModel.from_pretrained(clip_folder)
    image = model.preprocessing["image"].collate(
        [model.preprocessing["image"].load(i) for i in IMAGES]
    )
    text = require_type(model.preprocessing["text"], Text)
    ids = text.collate(text.encode(LABELS))
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=image).logits_per_image.softmax(1)
    assert np.allclose(probability(found), expected.numpy(), atol=1e-4)
    assert found.value == [LABELS[i] for i in expected.argmax(1)]
    assert found.sums_to_one


def test_pretrained_siglip_gives_the_probabilities_of_transformers(
    clip_folder: Path, tmp_path: Path
) -> None:
    folder = tiny_siglip(tmp_path, clip_folder)
    model = load_pretrained_model(folder)
    found = model.classify(image=IMAGES, labels=LABELS, templates=["{}"])
    theirs = transformers.SiglipModel.from_pretrained(folder).eval()
    settings = model.preprocessing
    image = settings["image"].collate([settings["image"].load(i) for i in IMAGES])
    text = require_type(settings["text"], Text)
    ids = text.collate(text.encode(LABELS))
    ids = torch.nn.functional.pad(ids, (0, 12 - ids.shape[1]), value=text.pad)
    with torch.no_grad():
        logits = theirs(input_ids=ids, pixel_values=image).logits_per_image
    assert np.allclose(probability(found), logits.sigmoid().numpy(), atol=1e-4)
    assert not found.sums_to_one
    alone = model.classify(image=IMAGES, labels=LABELS[:1], templates="{}")
    assert np.allclose(probability(alone), probability(found)[:, :1], atol=1e-5)


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_run_classifies_by_the_objective_it_was_trained_with(tmp_path: Path, loss: str) -> None:
    model = untrained_run(tmp_path, loss=loss)
    with torch.no_grad():
        model.module.logit_scale.fill_(1.0)
    labels, images = ["red", "blue", "two cats", "sofa"], example_images()
    found = model.classify(image=images, labels=labels)
    cosine = model.embed(image=images) @ model.embed(text=labels).T
    logits = torch.from_numpy(cosine) * model.module.logit_scale.exp().detach()
    if loss == "siglip":
        expected = (logits + model.module.logit_bias.detach() - np.log(3)).sigmoid()
    else:
        expected = logits.softmax(1)
    assert np.allclose(found.similarity, cosine, atol=1e-6)
    assert np.allclose(probability(found), expected.numpy(), atol=1e-6)


def test_templates_are_averaged(clip_folder: Path) -> None:
    model = sn.load(clip_folder)
    templates = ["{}", "a photo of {}, {}"]
    found = model.classify(image=IMAGES, labels=["red", "blue"], templates=templates)
    means = []
    for name in ("red", "blue"):
        mean = model.embed(text=[name, f"a photo of {name}, {name}"]).mean(0)
        means.append(mean / np.linalg.norm(mean))
    expected = model.embed(image=IMAGES) @ np.stack(means).T
    assert np.allclose(found.similarity, expected, atol=1e-6)
    default = model.classify(image=IMAGES, labels=["red", "blue"])
    named = model.classify(image=IMAGES, labels=["red", "blue"], templates=["{}", "a photo of {}"])
    assert np.array_equal(default.similarity, named.similarity)


def test_braces_of_a_label_are_text(clip_folder: Path) -> None:
    found = sn.load(clip_folder).classify(image=IMAGES, labels=["{0}", "{x}", "a {} b"])
    assert found.classes == ("{0}", "{x}", "a {} b")


def test_top_labels_are_sorted_and_cut(clip_folder: Path) -> None:
    found = sn.load(clip_folder).classify(image=IMAGES, labels=LABELS)
    top = found.top(2)
    assert [len(scores) for scores in top] == [2, 2, 2]
    assert [scores[0].label for scores in top] == found.value
    assert all((first.probability or 0) >= (second.probability or 0) for first, second in top)
    assert len(found.top(99)[0]) == len(LABELS)


def test_batches_and_order_do_not_matter(clip_folder: Path) -> None:
    model = sn.load(clip_folder)
    whole = model.classify(image=IMAGES, labels=LABELS)
    single = model.classify(image=IMAGES, labels=LABELS, batch_size=1)
    assert np.allclose(probability(whole), probability(single), atol=1e-6)
    one = model.classify(image=IMAGES[0], labels=LABELS)
    assert one.value == whole.value[:1]


def test_missing_and_unreadable_values_keep_their_rows(clip_folder: Path, tmp_path: Path) -> None:
    model = sn.load(clip_folder)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 cut")
    values = [IMAGES[0], broken, None, tmp_path / "nowhere.png", IMAGES[1]]
    unreadable: list[Unreadable] = []
    found = model.classify(image=values, labels=LABELS, unreadable=unreadable, batch_size=2)
    whole = model.classify(image=IMAGES[:2], labels=LABELS)
    assert [found.value[0], found.value[4]] == whole.value
    assert found.value[1:4] == [None] * 3
    assert np.isnan(probability(found)[1:4]).all()
    assert [(bad.row, bad.column) for bad in unreadable] == [(1, "image"), (3, "image")]
    assert found.top(1)[1] == []
    with pytest.raises(SensoriumError, match=r"broken\.jpg"):
        model.classify(image=values, labels=LABELS)


def test_text_is_classified_by_similarity_without_a_probability(clip_folder: Path) -> None:
    model = sn.load(clip_folder)
    found = model.classify(text=["a red square", "red"], labels=["red", "green"], templates="{}")
    assert found.probability is None
    assert found.value[1] == "red"
    assert found.similarity[1, 0] == pytest.approx(1, abs=1e-5)
    assert found.top(1)[1][0].probability is None
    assert model.classify(text="red", labels=["red"]).value == ["red"]  # a similarity has a scale


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, "no label"),
        ("cat", {}, "list of labels"),
        (["cat", " "], {}, "Label 2 is empty"),
        (["cat", 3], {}, "Label 2 is int '3'"),
        (["cat", "dog", " cat "], {}, "'cat' is given twice"),
        (["cat", "CAT"], {}, "'cat' and 'CAT' are the same text"),
        (["cat"], {}, "always 1"),
        (["cat", "dog"], {"templates": []}, "no template"),
        (["cat", "dog"], {"templates": ["a photo"]}, "'a photo' has no {}"),
        (["cat", "dog"], {"audio": ["x.wav"]}, "image, audio"),
        (["cat", "dog"], {"image": None, "audio": ["x.wav"]}, "cannot classify audio"),
    ],
)
def test_unusable_requests_are_refused(
    clip_folder: Path, labels: Any, options: dict[str, Any], message: str
) -> None:
    inputs = {"image": IMAGES, **options}
    if inputs["image"] is None:
        del inputs["image"]
    with pytest.raises(SensoriumError, match=message):
        sn.load(clip_folder).classify(labels=labels, **inputs)


def test_models_without_text_do_not_classify(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    model = sn.load(tmp_path)
    assert not hasattr(model, "classify")
    assert "classify" not in dir(model)
    with pytest.raises(SensoriumError, match="cannot classify"):
        model.classify(image=IMAGES, labels=LABELS)


class MeanOfFrames(torch.nn.Module):
    """Audio frames as tokens, for a tower of sounds."""

    def pool_index(self, raw: torch.Tensor) -> None:
        """Return None: tokens are averaged."""

    def forward(self, raw: torch.Tensor) -> Tokens:
        """Return one token per frame."""
        x = raw.clamp(min=-10).transpose(1, 2)
        return Tokens(x, x.new_zeros(*x.shape[:2], 3))


def test_audio_is_classified_where_a_model_embeds_it(clip_folder: Path) -> None:
    embed = sn.load(clip_folder).embed
    assert isinstance(embed, Embedder)
    text = embed.modalities["text"]
    torch.manual_seed(0)
    sound = Tower(Encoder(MeanOfFrames()), torch.nn.Linear(80, 16), 16)
    towers = Towers({"audio": sound, "text": require_type(text[0], Tower)})
    classify = ZeroShotClassifier(
        Embedder(towers, {"audio": (sound, Audio()), "text": text}), ["{}"], is_pretrained=True
    )
    noise = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    found = classify(audio=[noise, noise[:4000]], labels=["a bell", "rain"])
    assert found.probability is not None
    assert np.allclose(probability(found).sum(1), 1, atol=1e-6)


def test_quantized_models_classify(clip_folder: Path) -> None:
    whole = sn.load(clip_folder).classify(image=IMAGES, labels=LABELS)
    quantized = sn.load(clip_folder, quantize="int8").classify(image=IMAGES, labels=LABELS)
    assert np.allclose(whole.similarity, quantized.similarity, atol=0.05)
