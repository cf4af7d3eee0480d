"""Tests of what training says about a retrieval model: near chance, too few rows, what helps."""

from pathlib import Path

import pytest
from fixtures.colored_squares import TINY_CLIP, colored_squares

import sensorium as sn
from sensorium.evaluation.retrieval_verdict import RetrievalVerdict, is_near_chance
from sensorium.recipes import clip
from sensorium.recipes.recipe import dry_build

VERDICT = RetrievalVerdict(500, ("more pairs", "a pretrained model"))


def metrics_of(rows: int, recall_at_1: float, recall_at_10: float) -> dict[str, float]:
    """Return metrics of a split whose captions all differ."""
    return {
        "rows": rows,
        "captions": rows,
        "recall@1": recall_at_1,
        "recall@10": recall_at_10,
        "random recall@1": 1 / rows,
        "random recall@10": min(1.0, 10 / rows),
    }


@pytest.mark.parametrize(
    ("rows", "recall_at_1", "recall_at_10", "expected"),
    [
        (65, 0.05, 0.2, True),  # three hits, where one is expected
        (65, 0.31, 0.6, False),
        (65, 0.09, 0.25, True),  # enough hits, but hardly more among the first ten
        (1000, 0.004, 0.03, False),
        (1000, 0.002, 0.03, True),
        (8, 0.25, 1.0, True),
        (8, 0.75, 1.0, False),
        (1, 1.0, 1.0, True),  # one candidate: nothing to choose
    ],
)
def test_near_chance(rows: int, recall_at_1: float, recall_at_10: float, expected: bool) -> None:
    assert is_near_chance(metrics_of(rows, recall_at_1, recall_at_10)) == expected


def test_verdict_says_what_helps() -> None:
    sentences = VERDICT(metrics_of(200, 0.005, 0.06), 800, 200)
    assert sentences == [
        "Verdict: near chance, do not rely on this model: on 200 validation rows recall@1 is 0.005 "
        "(0.005 by chance), recall@10 0.060 (0.050 by chance).",
        "What helps: more pairs; a pretrained model.",
    ]


def test_good_model_is_told_by_its_lift() -> None:
    (sentence,) = VERDICT(metrics_of(200, 0.31, 0.6), 800, 200)
    assert sentence.startswith("Verdict: 62 times chance: on 200 validation rows recall@1 is 0.310")


def test_too_few_rows_are_said() -> None:
    few_rows, few_validation_rows = VERDICT({}, 40, 16)
    assert few_rows.startswith("Only 40 training rows")
    assert few_rows.endswith("What helps: more pairs; a pretrained model.")
    assert few_validation_rows.startswith(
        "Only 16 validation rows: recall is uncertain by up to 0.25"
    )
    assert VERDICT({}, 500, 100) == []
    (no_validation,) = VERDICT({}, 500, 0)
    assert no_validation.startswith("No validation rows")


def test_training_starts_with_a_caution_and_ends_with_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {**TINY_CLIP, "epochs": 1, "embed_dim": 8}
    sn.train(clip, colored_squares(), out=tmp_path / "run", **settings)
    out, err = capsys.readouterr()
    assert "Only 32 training rows" in err.split("training 1 epochs")[0]
    verdict = next(line for line in out.splitlines() if line.startswith("Verdict: "))
    assert "on 8 validation rows recall@1 is" in verdict
    assert "Only 32 training rows" in out
    assert "sensorium train finetune DATA --weights WEIGHTS" in out
    assert verdict in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_base_names_the_small_size_as_a_remedy() -> None:
    schema = colored_squares().schema
    for size, expected in (("base", True), ("small", False)):
        assess = dry_build(clip, schema, {"size": size}).evaluation.assess
        assert assess is not None
        assert ("--size small" in " ".join(assess({}, 1, 100))) == expected
