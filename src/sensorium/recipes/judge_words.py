"""How good are words for pictures? Captions beside those of the nearest training picture; answers beside guesses.

A judged model says `model.generate("text", image=[...])`, or `model.generate("text", image=[...], question=[...])`, and
gives a text for each row; None stands for a picture that is not there.
"""
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.data.cache import Prepared
from sensorium.data.dataset import Dataset
from sensorium.data.splits import spaced
from sensorium.metrics.words import chrf, cider_d, exact, plain
from sensorium.recipes.judging import alike, distinct, ink, made_of_things, references, training_rows
from sensorium.recipes.protocol import Trained
from sensorium.report import Report
from sensorium.tokens import ColumnKey, column_label

Judge = Callable[..., Report]
CAPTIONS = """\
chrF (0 to 100) and CIDEr-D (0 to 10) hold what is said against all captions of a row, lower case, without punctuation;
exact is the share that is one of them. CIDEr-D weighs words by how rare they are in the split: compare it within one.
neighbour: the first caption of the training picture whose inverted pixels are most similar; CLIP neighbour: the same by
the vectors of the model named above. most common: the first caption that most training rows share.
Of the data set scenes: true is the share of captions that name all there is and nothing else, all of it right; things
and relations are the shares of what is claimed that is so (a text that is no caption claims nothing that is so)."""
ANSWERS = """\
accuracy: share of answers that are the right one, case, punctuation and articles aside. Beside it, on the same rows:
majority, the most common training answer; question's majority, the most common training answer to the same words, or
else the majority; without picture, the same model given no picture (it was not trained for that) or, with `blind`, a
model trained without; other picture, the same model given the picture of another row with another content. A model that
looks is far above all four. accuracy of K: of the questions of kind K."""


def captions(picture: str, words: ColumnKey) -> Judge:
    """A judge of captions for the columns of a recipe."""
    def judge(model: Trained, dataset: Dataset, splits: Sequence[str], *, most: int = 1000, by: Any = None) -> Report:
        """most: pictures of a split that are judged, evenly spaced. by: a model with `embed(image=)`, by whose vectors
        the nearest training picture is found too."""
        prepared = dataset.prepare(model.schema, (picture, words))
        cheap, figures = _Cheap(dataset, prepared, (picture, words), by), {}
        for split in splits:
            rows = spaced(distinct(prepared, picture, prepared.complete(dataset.splits[split])), most)
            if len(rows):
                said = model.generate("text", image=dataset.raw(picture, rows))
                figures[split] = {"pictures": float(len(rows)), **_compared(dataset, words, rows, said)}
                for name, texts in cheap.said(rows).items():
                    figures[split] |= {f"{name} {k}": v for k, v in _compared(dataset, words, rows, texts).items()}
        about = {"text": column_label(words), **({} if by is None else {"CLIP": str(by)})}
        return Report(figures, about, "captions", (), CAPTIONS)
    return judge


def _compared(dataset: Dataset, words: ColumnKey, rows: Int[np.ndarray, "N"], said: Sequence[str]) -> dict[str, float]:
    bare, others = [plain(t) for t in said], [[plain(t) for t in texts] for texts in references(dataset, words, rows)]
    found = {"chrF": chrf(bare, others), "CIDEr-D": cider_d(bare, others), "exact": exact(bare, others)}
    if not made_of_things(dataset):
        return found
    from sensorium.recipes.judge_scenes import true_captions  # not needed for other data
    return found | true_captions(dataset, rows.tolist(), said)


class _Cheap:
    """Captions that cost nothing: those of the nearest training pictures, and the most common one."""

    def __init__(self, dataset: Dataset, prepared: Prepared, columns: tuple[str, ColumnKey], by: Any):
        self.known = distinct(prepared, columns[0], training_rows(dataset, prepared))
        self.captions = [prepared.caption(columns[1], row) for row in self.known.tolist()]
        self.spaces: dict[str, Callable[..., Tensor]] = {"neighbour": partial(ink, prepared, columns[0])}
        if by is not None:
            self.spaces["CLIP neighbour"] = lambda rows: torch.from_numpy(by.embed(image=dataset.raw(columns[0], rows)))
        self.vectors = {name: of(self.known) for name, of in self.spaces.items() if len(self.known)}

    def said(self, rows: Int[np.ndarray, "N"]) -> dict[str, list[str]]:
        """For each row, by each way that there is."""
        if not len(self.known):
            return {}
        near = {name: alike(self.spaces[name](rows), known).tolist() for name, known in self.vectors.items()}
        common = Counter(self.captions).most_common(1)[0][0]
        return {**{name: [self.captions[i] for i in found] for name, found in near.items()},
                "most common": [common] * len(rows)}


@dataclass(frozen=True)
class _Guess:
    """Answers without looking: the most common one, and the most common one to the same words."""

    every: Counter[str]
    of: dict[str, Counter[str]]

    @classmethod
    def learned(cls, dataset: Dataset, question: str, words: ColumnKey, train: Int[np.ndarray, "T"]) -> "_Guess":
        every, of = Counter[str](), defaultdict[str, Counter[str]](Counter)
        for asked, said in zip(*(references(dataset, name, train) for name in (question, words)), strict=True):
            every[said[0]] += 1
            of[asked[0]][said[0]] += 1
        return cls(every, dict(of))

    def figures(self, asked: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
        if not self.every:
            return {}
        (common, _), = self.every.most_common(1)
        guessed = [self.of[text].most_common(1)[0][0] if text in self.of else common for text in asked]
        return {"majority": exact([common] * len(asked), right), "question's majority": exact(guessed, right)}


def answers(picture: str, question: str, words: ColumnKey) -> Judge:
    """A judge of answers to questions about pictures, for the columns of a recipe."""
    def judge(model: Trained, dataset: Dataset, splits: Sequence[str], *, most: int = 2000,
              blind: Trained | None = None) -> Report:
        """most: rows of a split that are judged, evenly spaced. blind: a model of the same trained without pictures."""
        prepared = dataset.prepare(model.schema, (picture, question, words))
        guess = _Guess.learned(dataset, question, words, training_rows(dataset, prepared))
        figures = {}
        for split in splits:
            rows = spaced(prepared.complete(dataset.splits[split]), most)
            if len(rows):
                figures[split] = _answered(model, blind, dataset, (picture, question, words), rows, guess)
        return Report(figures, {"question": question, "answer": column_label(words)}, "answers", (), ANSWERS)
    return judge


def _answered(model: Trained, blind: Trained | None, dataset: Dataset, columns: tuple[str, str, ColumnKey],
              rows: Int[np.ndarray, "N"], guess: _Guess) -> dict[str, float]:
    picture, question, words = columns
    seen, asked = dataset.raw(picture, rows), [texts[0] for texts in references(dataset, question, rows)]
    right = references(dataset, words, rows)
    said = model.generate("text", image=seen, question=asked)
    if blind is None:
        unseen = model.generate("text", image=[None] * len(rows), question=asked)
    else:
        unseen = blind.generate("text", question=asked)
    other = model.generate("text", image=[seen[i] for i in _elsewhere(dataset.groups()[rows])], question=asked)
    found = {"rows": float(len(rows)), "accuracy": exact(said, right), "without picture": exact(unseen, right),
             "other picture": exact(other, right)}
    return found | guess.figures(asked, right) | _by_kind(dataset, rows, said, right)


def _elsewhere(groups: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """For each row another, of another group where there is one: half way round, and on from there."""
    n = len(groups)
    steps = (next((s for s in range(n // 2, n // 2 + n) if groups[(i + s) % n] != groups[i]), 0) for i in range(n))
    return np.array([(i + step) % n for i, step in enumerate(steps)], np.int64)


def _by_kind(dataset: Dataset, rows: Int[np.ndarray, "N"], said: Sequence[str],
             right: Sequence[Sequence[str]]) -> dict[str, float]:
    if "kind" not in dataset.table.columns:
        return {}
    of: dict[str, list[int]] = defaultdict(list)
    for i, kind in enumerate(dataset.raw("kind", rows)):
        of[str(kind)].append(i)
    return {f"accuracy of {kind}": exact([said[i] for i in at], [right[i] for i in at])
            for kind, at in sorted(of.items())}
