"""Real pretrained weights on real inputs. Opt-in: SENSORIUM_WEIGHTS=folder pytest -m weights.

benchmarks/fetch_weights.py fills that folder, and explains how to add spoken prompts.
"""

import gzip
import os
from pathlib import Path

import pytest

import sensorium as sn
from sensorium.metrics.speech import word_error_rate

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(
        "SENSORIUM_WEIGHTS" not in os.environ, reason="SENSORIUM_WEIGHTS names no folder"
    ),
]


def weights_folder(name: str) -> Path:
    return Path(os.environ["SENSORIUM_WEIGHTS"]) / name


def test_minilm_similarities() -> None:
    model = sn.load(weights_folder("minilm"))
    food, bread, baby = model.embed(
        text=[
            "A man is eating food.",
            "A man is eating a piece of bread.",
            "The girl is carrying a baby.",
        ]
    )
    assert food @ bread == pytest.approx(0.76, abs=0.01)
    assert food @ baby < 0


def test_efficientnet_classifies_photos() -> None:
    model = sn.load(weights_folder("efficientnet-lite0"))
    photos = [
        weights_folder("photos") / f"{name}.png"
        for name in ("coffee", "chelsea", "motorcycle_left")
    ]
    coffee, cat, motorcycle = (
        {prediction.class_index: prediction.probability for prediction in predictions}
        for predictions in model.predict(image=photos, top_k=1000)
    )
    assert max(coffee, key=coffee.__getitem__) == 967
    assert coffee[967] == pytest.approx(0.93, abs=0.03)
    assert sum(cat[kind] for kind in (281, 282, 285)) == pytest.approx(0.91, abs=0.03)
    assert max(motorcycle, key=motorcycle.__getitem__) == 665
    assert motorcycle[665] == pytest.approx(0.44, abs=0.05)
    assert model.embed(image=photos).shape == (3, 1280)


def test_smollm2_answers_prompts() -> None:
    model = sn.load(weights_folder("smollm2"))
    assert (
        "Paris" in model.generate("text", prompt="What is the capital of France?", max_tokens=20)[0]
    )
    assert (
        "red"
        in model.generate("text", prompt="Describe a red apple in one sentence.", max_tokens=40)[0]
    )


def test_whisper_word_error_rate() -> None:
    prompt_file = next(weights_folder("asterisk").rglob("core-sounds-en.txt.gz"))
    lines = gzip.decompress(prompt_file.read_bytes()).decode().splitlines()
    texts = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    recordings = next(weights_folder("asterisk").rglob("en_US_f_Allison"))
    rows = [
        key
        for key, text in sorted(texts.items())
        if len(text.split()) >= 5 and "[" not in text and (recordings / f"{key}.wav").is_file()
    ]
    rows = rows[:: len(rows) // 20][:20]
    texts_read = sn.load(weights_folder("whisper-tiny.en")).generate(
        "text", audio=[recordings / f"{key}.wav" for key in rows]
    )
    assert word_error_rate(texts_read, [texts[key] for key in rows]) < 0.12
