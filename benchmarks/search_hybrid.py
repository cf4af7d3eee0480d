"""Compare ways to merge search by words and by vectors: NDCG@10 on held-out queries.

    python benchmarks/search_hybrid.py train RUN en de fr ru ja zh [--epochs 10]
    python benchmarks/search_hybrid.py RUN en de fr ru ja zh
    python benchmarks/search_hybrid.py weights/minilm en --column caption

The data are the bundled emoji. Half of the keywords of each concept (by a hash) are in the captions
that the model is trained on and that are searched; the other half are queries: a row is relevant if
its concept has the keyword. So a query seldom occurs in the captions of all its rows. For each
language:

    keywords         held-out keywords as queries, captions as documents
    labels           the same queries, and the concepts' names alone as documents
    two keywords     two held-out keywords of one concept
    other language   names as queries, captions in another language as documents

and, with a German or English index as it is built by default, how often a caption finds a row with
it first. A run is searched by its image vectors (rows whose drawing or concept it was not trained
on); a sentence encoder by the vectors of captions (one row a concept). Prints, beside both halves,
reciprocal ranks (RRF), sums of scaled scores, and what Sensorium does; appends lines to
benchmarks/results/search_hybrid.jsonl.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import sensorium as sn
from sensorium.data.bundled.emoji import caption_column
from sensorium.search.hybrid import VectorCandidates, num_candidates, rank_by_both, rank_by_words
from sensorium.search.postings import Postings, RowScorer
from sensorium.search.word_index import WordMatches
from sensorium.search.words import caption_terms

RESULTS = Path(__file__).parent / "results" / "search_hybrid.jsonl"
UNSEEN = ("test_unseen_artist", "test_unseen_concept", "test_unseen_both", "val_unseen_concept")
MAX_QUERIES = 600
BATCH = 256
K = 10


@dataclass
class Trial:
    """Queries and documents.

    Attributes:
        name: of the trial.
        captions: of each row.
        vectors: of each row.
        queries: texts.
        relevant: which rows are right for each query.
    """

    name: str
    captions: list[list[str]]
    vectors: np.ndarray
    queries: list[str]
    relevant: list[np.ndarray]


def is_searched(keyword: str, concept: str) -> bool:
    """Return whether a keyword belongs to the captions, and not to the queries."""
    return bool(hashlib.md5(f"{concept}|{keyword}".encode(), usedforsecurity=False).digest()[0] & 1)


def open_half(languages: Sequence[str]) -> tuple[sn.Dataset, dict[str, list[list[str]]]]:
    """Return the emoji with half of the keywords in their captions, and the other half by row."""
    data = sn.Dataset.open(
        "emoji",
        captions="each",
        languages=list(languages),
        types={"image": "image:size=32:resize_mode=trim"},
    )
    columns, queries = dict(data.table.columns), {}
    for language in languages:
        column = caption_column(language)
        rows = [
            split_keywords(captions or [], concept)
            for captions, concept in zip(columns[column], columns["concept"], strict=True)
        ]
        columns[column] = [captions or None for captions, _ in rows]
        queries[language] = [keywords for _, keywords in rows]
    return sn.Dataset(replace(data.table, columns=columns), data.schema, "emoji-half"), queries


def split_keywords(captions: list[str], concept: str) -> tuple[list[str], list[str]]:
    """Return the captions of a concept that are searched, and the keywords that are queries."""
    label, keywords = captions[:1], captions[1:]
    searched = [word for word in keywords if is_searched(word, concept)]
    held_out = [word for word in keywords if not is_searched(word, concept)]
    if searched:
        label += [f"{label[0]}, {', '.join(searched)}", ", ".join(searched)]
    return label, held_out


def embed(model: Any, kind: str, values: Sequence[Any]) -> np.ndarray:
    """Return vectors of values."""
    parts = [model.embed(**{kind: values[i : i + BATCH]}) for i in range(0, len(values), BATCH)]
    return np.concatenate(parts)


def make_trials(model: Any, languages: Sequence[str], column: str) -> list[Trial]:
    """Return the trials of all languages."""
    data, held_out = open_half(languages)
    if column == "image":
        rows = np.concatenate([data.splits[name] for name in UNSEEN if name in data.splits])
        vectors = embed(model, "image", data.raw("image", rows))
    else:
        first: dict[str, int] = {}
        for row, concept in enumerate(data.raw("concept", np.arange(len(data)))):
            first.setdefault(concept, row)
        rows = np.array(sorted(first.values()))
        vectors = embed(model, "text", [c[min(1, len(c) - 1)] for c in data.raw(column, rows)])
    concepts = np.array(data.raw("concept", rows))
    captions = {c: [x or [] for x in data.raw(caption_column(c), rows)] for c in languages}
    trials: list[Trial] = []
    for language in languages:
        keywords = [held_out[language][row] for row in rows.tolist()]
        names = [c[0] if c else "" for c in captions[language]]
        searched = {f"{language} keywords": captions[language]}
        if column == "image":
            searched[f"{language} labels"] = [c[:1] for c in captions[language]]
        by_keyword = defaultdict(set)
        for concept, words in zip(concepts, keywords, strict=True):
            for word in words:
                by_keyword[word].add(concept)
        queries = np.random.default_rng(0).permutation(sorted(by_keyword))[:MAX_QUERIES].tolist()
        relevant = [np.isin(concepts, sorted(by_keyword[q])) for q in queries]
        trials += [Trial(name, c, vectors, queries, relevant) for name, c in searched.items()]
        pairs = {c: " ".join(w[:2]) for c, w in zip(concepts, keywords, strict=True) if len(w) > 1}
        relevant = [concepts == concept for concept in pairs]
        trials.append(
            Trial(
                f"{language} two keywords",
                captions[language],
                vectors,
                list(pairs.values()),
                relevant,
            )
        )
        other = next((c for c in languages if c != language), None)
        if other and column == "image":
            named = dict(zip(concepts.tolist(), names, strict=True))
            relevant = [concepts == concept for concept in named]
            trials.append(
                Trial(
                    f"{language} names, {other} captions",
                    captions[other],
                    vectors,
                    list(named.values()),
                    relevant,
                )
            )
    return trials


def ndcg(order: np.ndarray, relevant: np.ndarray) -> float:
    """Return NDCG@10 of a ranking."""
    discount = 1 / np.log2(np.arange(2, K + 2))
    gains = relevant[order[:K]]
    return float((gains * discount[: len(gains)]).sum() / discount[: relevant.sum()].sum())


def reciprocal_ranks(word_scores: np.ndarray, cosines: np.ndarray, constant: float) -> np.ndarray:
    """Return scores by reciprocal ranks of both halves."""
    scores = np.zeros(len(cosines))
    for part in (word_scores, cosines):
        order = np.argsort(-part, kind="stable")[:100]
        order = order[part[order] > 0] if part is word_scores else order
        scores[order] += 1 / (constant + 1 + np.arange(len(order)))
    return scores


def scaled_sum(word_scores: np.ndarray, cosines: np.ndarray, weight: float) -> np.ndarray:
    """Return the sum of both halves, each from 0 to 1."""
    scaled = (cosines - cosines.min()) / (cosines.max() - cosines.min() + 1e-9)
    return word_scores / max(word_scores.max(), 1e-9) + weight * scaled


def ours(matches: WordMatches, cosines: np.ndarray) -> list[int]:
    """Return the ranking of Sensorium."""
    near = np.argsort(-cosines, kind="stable")[: num_candidates(K)]
    rows = np.union1d(near, matches.best(num_candidates(K)))
    candidates = VectorCandidates(rows, cosines[rows], cosines, near[:K], len(cosines))
    return rank_by_both(matches, candidates, K).rows


def evaluate(model: Any, trial: Trial) -> dict[str, float]:
    """Return NDCG@10 by way of merging."""
    postings = Postings.from_rows([caption_terms(captions) for captions in trial.captions])
    scorer = RowScorer(postings, np.ones(len(postings), bool))
    all_cosines = embed(model, "text", trial.queries) @ trial.vectors.T
    merged: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        **{f"RRF {c}": lambda w, v, c=c: reciprocal_ranks(w, v, c) for c in (5, 60)},
        **{f"sum {a}": lambda w, v, a=a: scaled_sum(w, v, a) for a in (0.3, 1.0)},
    }
    values: dict[str, list[float]] = defaultdict(list)
    for text, cosines, relevant in zip(trial.queries, all_cosines, trial.relevant, strict=True):
        matches = WordMatches(scorer, text)
        by_words = np.array(rank_by_words(matches, K).rows, np.int64)
        values["vectors"].append(ndcg(np.argsort(-cosines, kind="stable"), relevant))
        values["words"].append(ndcg(by_words, relevant))
        for name, merge in merged.items():
            scores = merge(matches.scores, cosines) + 1000.0 * np.isin(
                np.arange(len(cosines)), matches.exact
            )
            values[name].append(ndcg(np.argsort(-scores, kind="stable"), relevant))
        values["Sensorium"].append(ndcg(np.array(ours(matches, cosines)), relevant))
    return {name: float(np.mean(v)) for name, v in values.items()}


def known_items(model: Any, language: str) -> dict[str, float]:
    """Return how often a caption finds a row with it first, in an index as built by default."""
    column = caption_column(language)
    data = sn.Dataset.open(
        "emoji", languages=["en", language], types={"image": "image:size=32:resize_mode=trim"}
    )
    with sn.Index.build(model, data, split="test_unseen_artist") as index:
        captions = data.raw(column, data.splits["test_unseen_artist"])
        queries = list(dict.fromkeys(text for texts in captions if texts for text in texts))
        right = [text in index.search(text=text, k=1)[0].info.captions for text in queries]
        words = [
            text in index.search(text=text, k=1, text_only=True)[0].info.captions
            for text in queries
        ]
    return {
        "queries": len(queries),
        "first": float(np.mean(right)),
        "first by words": float(np.mean(words)),
    }


def main() -> None:
    """Train or evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("arguments", nargs="+", help="[train] RUN LANGUAGE...")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--column", default="image", help="what the model embeds")
    args = parser.parse_args()
    is_training = args.arguments[0] == "train"
    run, *languages = args.arguments[is_training:]
    if is_training:
        data, _ = open_half(languages)
        text = tuple(map(caption_column, languages))
        sn.train(sn.recipes.clip, data, out=run, epochs=args.epochs, text=text)
        return
    model = sn.load(run)
    lines: list[dict[str, Any]] = [
        {"model": run, "trial": trial.name, "queries": len(trial.queries)}
        | {name: round(value, 4) for name, value in evaluate(model, trial).items()}
        for trial in make_trials(model, languages, args.column)
    ]
    if args.column == "image":
        lines += [
            {"model": run, "trial": f"{c} captions find their row"} | known_items(model, c)
            for c in languages
        ]
    with RESULTS.open("a") as file:
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), flush=True)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
