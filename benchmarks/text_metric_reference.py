"""Print chrF and CIDEr-D of a small corpus by reference implementations, for tests.

Run: pip install sacrebleu && pip install --no-deps pycocoevalcap, then
python benchmarks/text_metric_reference.py.
"""

import json
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "tests" / "fixtures" / "text_metric_reference.json"


def cider_d(hypotheses: list[str], references: list[list[str]]) -> float:
    """Return CIDEr-D by pycocoevalcap."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for text, others in zip(hypotheses, references, strict=True):
        scorer += (text, others)
    return float(scorer.compute_score()[0])


def main() -> None:
    """Print the reference values."""
    from sacrebleu.metrics import CHRF

    corpus = json.loads(CORPUS.read_text())
    hypotheses, references = corpus["predictions"], corpus["references"]
    longest = max(map(len, references))
    streams = [
        [others[i] if i < len(others) else None for others in references] for i in range(longest)
    ]
    print(
        json.dumps(
            {
                "chrf": CHRF().corpus_score(hypotheses, streams).score,
                "chrf per text": [
                    CHRF().sentence_score(*both).score
                    for both in zip(hypotheses, references, strict=True)
                ],
                "cider-d": cider_d(hypotheses, references),
                "cider-d first five": cider_d(hypotheses[:5], references[:5]),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
