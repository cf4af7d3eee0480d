"""chrF and CIDEr-D against their published implementations (numbers made by benchmarks/words.py), and by identity."""

import json
from pathlib import Path

import pytest

from sensorium.metrics.text_generation import chrf, cider_d, exact_match, normalize_text

CORPUS = json.loads((Path(__file__).parent / "fixtures" / "text_metric_reference.json").read_text())
SAID, REFERENCES = CORPUS["said"], CORPUS["references"]


def test_chrf_is_that_of_sacrebleu() -> None:
    assert chrf(SAID, REFERENCES) == pytest.approx(CORPUS["chrf"], abs=1e-9)
    each = [chrf([text], [others]) for text, others in zip(SAID, REFERENCES, strict=True)]
    assert each == pytest.approx(CORPUS["chrf of each"], abs=1e-9)


def test_cider_is_that_of_pycocoevalcap() -> None:
    assert cider_d(SAID, REFERENCES) == pytest.approx(CORPUS["cider-d"], abs=1e-9)
    assert cider_d(SAID[:5], REFERENCES[:5]) == pytest.approx(
        CORPUS["cider-d of the first five"], abs=1e-9
    )


def test_what_is_a_reference_scores_highest() -> None:
    texts = [others[0] for others in REFERENCES if len(others[0].split()) >= 4]
    alone = [[text] for text in texts]
    assert chrf(texts, alone) == pytest.approx(100)
    assert cider_d(texts, alone) == pytest.approx(10)
    assert chrf(["xyz"], [["abc"]]) == 0
    assert cider_d(["xyz"] * 2, [["abc"], ["def"]]) == 0


def test_order_of_rows_and_of_references_is_irrelevant() -> None:
    turned = [others[::-1] for others in REFERENCES[::-1]]
    assert chrf(SAID[::-1], turned) == pytest.approx(chrf(SAID, REFERENCES))
    assert cider_d(SAID[::-1], turned) == pytest.approx(cider_d(SAID, REFERENCES))


def test_nothing_said_is_nothing() -> None:
    assert chrf([], []) == cider_d([], []) == exact_match([], []) == 0


def test_plain_and_exact() -> None:
    assert normalize_text("  A red, round ring. ") == "a red round ring"
    assert normalize_text("don't!") == "don't"
    assert exact_match(
        ["The ring.", "2", "yes"], [["ring"], ["two", "2"], ["no"]]
    ) == pytest.approx(2 / 3)
