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

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.splits import sample_evenly
from sensorium.evaluation.baselines import (
    inverted_pixels,
    is_scenes_dataset,
    nearest_indices,
    references,
    training_rows,
    unique_image_rows,
)
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.metrics.text_generation import chrf, cider_d, exact_match, normalize_text
from sensorium.nn.tokens import ColumnKey, column_label

Evaluator = Callable[..., EvaluationReport]
CAPTION_DEFINITIONS = """\
chrF (0 to 100) and CIDEr-D (0 to 10) hold what is said against all captions of a row, lower case, without punctuation;
exact is the share that is one of them. CIDEr-D weighs words by how rare they are in the split: compare it within one.
neighbour: the first caption of the training picture whose inverted pixels are most similar; CLIP neighbour: the same by
the vectors of the model named above. most common: the first caption that most training rows share.
Of the data set scenes: true is the share of captions that name all there is and nothing else, all of it right; things
and relations are the shares of what is claimed that is so (a text that is no caption claims nothing that is so)."""
ANSWER_DEFINITIONS = """\
accuracy: share of answers that are the right one, case, punctuation and articles aside. Beside it, on the same rows:
majority, the most common training answer; question's majority, the most common training answer to the same words, or
else the majority; without picture, the same model given no picture (it was not trained for that) or, with `blind`, a
model trained without; other picture, the same model given the picture of another row with another content. A model that
looks is far above all four. accuracy of K: of the questions of kind K."""


def caption_evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    """A judge of captions for the columns of a recipe."""

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 1000,
        feature_model: Any = None,
    ) -> EvaluationReport:
        """most: pictures of a split that are judged, evenly spaced. by: a model with `embed(image=)`, by whose vectors
        the nearest training picture is found too."""
        prepared = dataset.prepare(model.schema, (image_column, text_column))
        cheap, figures = (
            _CaptionBaselines(dataset, prepared, (image_column, text_column), feature_model),
            {},
        )
        for split in splits:
            rows = sample_evenly(
                unique_image_rows(
                    prepared, image_column, prepared.complete_rows(dataset.splits[split])
                ),
                max_samples,
            )
            if len(rows):
                said = model.generate("text", image=dataset.raw(image_column, rows))
                figures[split] = {
                    "pictures": float(len(rows)),
                    **_caption_metrics(dataset, text_column, rows, said),
                }
                for name, texts in cheap.predict(rows).items():
                    figures[split] |= {
                        f"{name} {k}": v
                        for k, v in _caption_metrics(dataset, text_column, rows, texts).items()
                    }
        about = {
            "text": column_label(text_column),
            **({} if feature_model is None else {"CLIP": str(feature_model)}),
        }
        return EvaluationReport(figures, about, "captions", (), CAPTION_DEFINITIONS)

    return evaluate


def _caption_metrics(
    dataset: Dataset, text_column: ColumnKey, rows: Int[np.ndarray, "N"], captions: Sequence[str]
) -> dict[str, float]:
    bare, others = (
        [normalize_text(t) for t in captions],
        [[normalize_text(t) for t in texts] for texts in references(dataset, text_column, rows)],
    )
    found = {
        "chrF": chrf(bare, others),
        "CIDEr-D": cider_d(bare, others),
        "exact": exact_match(bare, others),
    }
    if not is_scenes_dataset(dataset):
        return found
    from sensorium.evaluation.scenes import caption_metrics  # not needed for other data

    return found | caption_metrics(dataset, rows.tolist(), captions)


class _CaptionBaselines:
    """Captions that cost nothing: those of the nearest training pictures, and the most common one."""

    def __init__(
        self,
        dataset: Dataset,
        prepared: PreparedDataset,
        columns: tuple[str, ColumnKey],
        feature_model: Any,
    ):
        self.train_rows = unique_image_rows(prepared, columns[0], training_rows(dataset, prepared))
        self.captions = [prepared.caption(columns[1], row) for row in self.train_rows.tolist()]
        self.feature_extractors: dict[str, Callable[..., Tensor]] = {
            "neighbour": partial(inverted_pixels, prepared, columns[0])
        }
        if feature_model is not None:
            self.feature_extractors["CLIP neighbour"] = lambda rows: torch.from_numpy(
                feature_model.embed(image=dataset.raw(columns[0], rows))
            )
        self.train_features = {
            name: of(self.train_rows)
            for name, of in self.feature_extractors.items()
            if len(self.train_rows)
        }

    def predict(self, rows: Int[np.ndarray, "N"]) -> dict[str, list[str]]:
        """For each row, by each way that there is."""
        if not len(self.train_rows):
            return {}
        near = {
            name: nearest_indices(self.feature_extractors[name](rows), known).tolist()
            for name, known in self.train_features.items()
        }
        common = Counter(self.captions).most_common(1)[0][0]
        return {
            **{name: [self.captions[i] for i in found] for name, found in near.items()},
            "most common": [common] * len(rows),
        }


@dataclass(frozen=True)
class _AnswerPrior:
    """Answers without looking: the most common one, and the most common one to the same words."""

    overall: Counter[str]
    by_question: dict[str, Counter[str]]

    @classmethod
    def from_training(
        cls,
        dataset: Dataset,
        question_column: str,
        answer_column: ColumnKey,
        train_rows: Int[np.ndarray, "T"],
    ) -> "_AnswerPrior":
        every, of = Counter[str](), defaultdict[str, Counter[str]](Counter)
        for asked, said in zip(
            *(references(dataset, name, train_rows) for name in (question_column, answer_column)),
            strict=True,
        ):
            every[said[0]] += 1
            of[asked[0]][said[0]] += 1
        return cls(every, dict(of))

    def compute_metrics(
        self, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        if not self.overall:
            return {}
        ((common, _),) = self.overall.most_common(1)
        guessed = [
            self.by_question[text].most_common(1)[0][0] if text in self.by_question else common
            for text in questions
        ]
        return {
            "majority": exact_match([common] * len(questions), answers),
            "question's majority": exact_match(guessed, answers),
        }


def answer_evaluator(
    image_column: str, question_column: str, answer_column: ColumnKey
) -> Evaluator:
    """A judge of answers to questions about pictures, for the columns of a recipe."""

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 2000,
        blind_model: Trained | None = None,
    ) -> EvaluationReport:
        """most: rows of a split that are judged, evenly spaced. blind: a model of the same trained without pictures."""
        prepared = dataset.prepare(model.schema, (image_column, question_column, answer_column))
        guess = _AnswerPrior.from_training(
            dataset, question_column, answer_column, training_rows(dataset, prepared)
        )
        figures = {}
        for split in splits:
            rows = sample_evenly(prepared.complete_rows(dataset.splits[split]), max_samples)
            if len(rows):
                figures[split] = _answer_metrics(
                    model,
                    blind_model,
                    dataset,
                    (image_column, question_column, answer_column),
                    rows,
                    guess,
                )
        return EvaluationReport(
            figures,
            {"question": question_column, "answer": column_label(answer_column)},
            "answers",
            (),
            ANSWER_DEFINITIONS,
        )

    return evaluate


def _answer_metrics(
    model: Trained,
    blind_model: Trained | None,
    dataset: Dataset,
    columns: tuple[str, str, ColumnKey],
    rows: Int[np.ndarray, "N"],
    prior: _AnswerPrior,
) -> dict[str, float]:
    picture, question, words = columns
    seen, asked = (
        dataset.raw(picture, rows),
        [texts[0] for texts in references(dataset, question, rows)],
    )
    right = references(dataset, words, rows)
    said = model.generate("text", image=seen, question=asked)
    if blind_model is None:
        unseen = model.generate("text", image=[None] * len(rows), question=asked)
    else:
        unseen = blind_model.generate("text", question=asked)
    other = model.generate(
        "text",
        image=[seen[i] for i in _other_group_indices(dataset.groups()[rows])],
        question=asked,
    )
    found = {
        "rows": float(len(rows)),
        "accuracy": exact_match(said, right),
        "without picture": exact_match(unseen, right),
        "other picture": exact_match(other, right),
    }
    return (
        found | prior.compute_metrics(asked, right) | _accuracy_by_kind(dataset, rows, said, right)
    )


def _other_group_indices(groups: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """For each row another, of another group where there is one: half way round, and on from there."""
    n = len(groups)
    steps = (
        next((s for s in range(n // 2, n // 2 + n) if groups[(i + s) % n] != groups[i]), 0)
        for i in range(n)
    )
    return np.array([(i + step) % n for i, step in enumerate(steps)], np.int64)


def _accuracy_by_kind(
    dataset: Dataset,
    rows: Int[np.ndarray, "N"],
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
) -> dict[str, float]:
    if "kind" not in dataset.table.columns:
        return {}
    of: dict[str, list[int]] = defaultdict(list)
    for i, kind in enumerate(dataset.raw("kind", rows)):
        of[str(kind)].append(i)
    return {
        f"accuracy of {kind}": exact_match([predictions[i] for i in at], [answers[i] for i in at])
        for kind, at in sorted(of.items())
    }
