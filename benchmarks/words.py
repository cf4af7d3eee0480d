"""chrF and CIDEr-D of the corpus in tests/fixtures/text_metric_reference.json by their published implementations: what tests hold ours against.

pip install sacrebleu && pip install --no-deps pycocoevalcap && python benchmarks/words.py
"""

import json
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "tests" / "fixtures" / "text_metric_reference.json"


def cider_d(said: list[str], references: list[list[str]]) -> float:
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for text, others in zip(said, references, strict=True):
        scorer += (text, others)
    return float(scorer.compute_score()[0])


def main() -> None:
    from sacrebleu.metrics import CHRF

    corpus = json.loads(CORPUS.read_text())
    said, references = corpus["said"], corpus["references"]
    longest = max(map(len, references))
    streams = [
        [others[i] if i < len(others) else None for others in references] for i in range(longest)
    ]
    print(
        json.dumps(
            {
                "chrf": CHRF().corpus_score(said, streams).score,
                "chrf of each": [
                    CHRF().sentence_score(*both).score
                    for both in zip(said, references, strict=True)
                ],
                "cider-d": cider_d(said, references),
                "cider-d of the first five": cider_d(said[:5], references[:5]),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
