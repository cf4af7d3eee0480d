"""Tests of chrF and CIDEr-D against reference implementations, and by identity.

The reference values are written by benchmarks/text_metric_reference.py.
"""

import json
from pathlib import Path

import pytest

from sensorium.metrics.text_generation import chrf, cider_d, exact_match, normalize_text

CORPUS = json.loads((Path(__file__).parent / "fixtures" / "text_metric_reference.json").read_text())
PREDICTIONS, REFERENCES = CORPUS["predictions"], CORPUS["references"]


def test_chrf_equals_sacrebleu() -> None:
    assert chrf(PREDICTIONS, REFERENCES) == pytest.approx(CORPUS["chrf"], abs=1e-9)
    each = [chrf([text], [options]) for text, options in zip(PREDICTIONS, REFERENCES, strict=True)]
    assert each == pytest.approx(CORPUS["chrf per text"], abs=1e-9)


def test_cider_d_equals_pycocoevalcap() -> None:
    assert cider_d(PREDICTIONS, REFERENCES) == pytest.approx(CORPUS["cider-d"], abs=1e-9)
    assert cider_d(PREDICTIONS[:5], REFERENCES[:5]) == pytest.approx(
        CORPUS["cider-d first five"], abs=1e-9
    )


def test_references_themselves_score_highest() -> None:
    texts = [options[0] for options in REFERENCES if len(options[0].split()) >= 4]
    references = [[text] for text in texts]
    assert chrf(texts, references) == pytest.approx(100)
    assert cider_d(texts, references) == pytest.approx(10)
    assert chrf(["xyz"], [["abc"]]) == 0
    assert cider_d(["xyz"] * 2, [["abc"], ["def"]]) == 0


def test_order_of_rows_and_references_does_not_matter() -> None:
    reversed_references = [options[::-1] for options in REFERENCES[::-1]]
    assert chrf(PREDICTIONS[::-1], reversed_references) == pytest.approx(
        chrf(PREDICTIONS, REFERENCES)
    )
    assert cider_d(PREDICTIONS[::-1], reversed_references) == pytest.approx(
        cider_d(PREDICTIONS, REFERENCES)
    )


def test_no_texts_score_zero() -> None:
    assert chrf([], []) == cider_d([], []) == exact_match([], []) == 0


def test_exact_match_ignores_case_punctuation_and_articles() -> None:
    assert normalize_text("  A red, round ring. ") == "a red round ring"
    assert normalize_text("don't!") == "don't"
    assert exact_match(
        ["The ring.", "2", "yes"], [["ring"], ["two", "2"], ["no"]]
    ) == pytest.approx(2 / 3)
