"""Evaluators of captions, compared with captions of the nearest training images, and of answers.

A model captions with `model.generate("text", image=[...])` and answers with
`model.generate("text", image=[...], question=[...])`; an image that is None is missing.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

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
from sensorium.evaluation.spec import Evaluator, picklable
from sensorium.inference.generate_image import EmbeddingModel
from sensorium.metrics.text_generation import chrf, cider_d, exact_match, normalize_text
from sensorium.nn.tokens import ColumnKey, column_label

CAPTION_DEFINITIONS = """\
chrF (0 to 100) and CIDEr-D (0 to 10) compare the generated caption with all captions of the row,
in lower case and without punctuation; exact match is the fraction that equals one of them. CIDEr-D
weights words by their rarity in the split: compare it only within one split.
Baselines: pixel neighbour is the first caption of the training image with the most similar
inverted pixels; CLIP neighbour is the same in the embedding space of the feature model; most
common is the most frequent first caption of the training images.
Of the dataset scenes: exact is the fraction of captions that name all objects and nothing else,
all of it right; objects and relations are the fractions of those stated that are present (a text
that is no caption of a scene counts as 0)."""
ANSWER_DEFINITIONS = """\
accuracy: fraction of answers that equal the right one, apart from case, punctuation and articles.
Baselines on the same rows: majority is the most common training answer; question majority is the
most common training answer to the same question, or else the majority; without image is the same
model without the image (for which it was not trained) or, with a blind model, a model trained
without images; other image is the same model with the image of another row. accuracy of K: of the
questions of kind K."""


@picklable
def caption_evaluator(image_column: str, text_column: ColumnKey) -> Evaluator:
    """Return an evaluator of captions for the columns of a recipe."""

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 1000,
        feature_model: EmbeddingModel | None = None,
    ) -> EvaluationReport:
        """Evaluate captions of distinct images.

        Args:
            model: the captioner.
            dataset: the dataset.
            splits: names of the splits.
            max_samples: images per split, evenly spaced.
            feature_model: a model with `embed(image=)`; adds the baseline of the nearest training
                image in its embedding space.
        """
        prepared = dataset.prepare(model.schema, (image_column, text_column))
        baselines = _CaptionBaselines(dataset, prepared, image_column, text_column, feature_model)
        metrics: dict[str, dict[str, float]] = {}
        for split in splits:
            rows = prepared.complete_rows(dataset.splits[split])
            rows = sample_evenly(unique_image_rows(prepared, image_column, rows), max_samples)
            if not len(rows):
                continue
            captions = model.generate("text", image=dataset.raw(image_column, rows))
            metrics[split] = {"images": float(len(rows))}
            metrics[split] |= _caption_metrics(dataset, text_column, rows, captions)
            for name, texts in baselines.predict(rows).items():
                values = _caption_metrics(dataset, text_column, rows, texts)
                metrics[split] |= {f"{name} {metric}": value for metric, value in values.items()}
        metadata = {"text": column_label(text_column)}
        if feature_model is not None:
            metadata["CLIP"] = str(feature_model)
        return EvaluationReport(
            metrics, metadata, task="captioning", definitions=CAPTION_DEFINITIONS
        )

    return evaluate


def _caption_metrics(
    dataset: Dataset, text_column: ColumnKey, rows: Int[np.ndarray, "N"], captions: Sequence[str]
) -> dict[str, float]:
    """Compare captions with the references of their rows."""
    normalized = [normalize_text(text) for text in captions]
    expected = [
        [normalize_text(text) for text in texts] for texts in references(dataset, text_column, rows)
    ]
    metrics = {
        "chrF": chrf(normalized, expected),
        "CIDEr-D": cider_d(normalized, expected),
        "exact match": exact_match(normalized, expected),
    }
    if not is_scenes_dataset(dataset):
        return metrics
    from sensorium.evaluation.scenes import caption_metrics  # not needed for other data

    return metrics | caption_metrics(dataset, rows.tolist(), captions)


class _CaptionBaselines:
    """Captions of the nearest training images, and the most common caption."""

    def __init__(
        self,
        dataset: Dataset,
        prepared: PreparedDataset,
        image_column: str,
        text_column: ColumnKey,
        feature_model: EmbeddingModel | None,
    ):
        rows = training_rows(dataset, prepared)
        self.train_rows = unique_image_rows(prepared, image_column, rows)
        self.captions = [prepared.caption(text_column, row) for row in self.train_rows.tolist()]
        self.feature_extractors: dict[str, Callable[..., Tensor]] = {
            "pixel neighbour": partial(inverted_pixels, prepared, image_column)
        }
        if feature_model is not None:
            self.feature_extractors["CLIP neighbour"] = lambda rows: torch.from_numpy(
                feature_model.embed(image=dataset.raw(image_column, rows))
            )
        self.train_features: dict[str, Tensor] = {}
        if len(self.train_rows):
            self.train_features = {
                name: extract(self.train_rows) for name, extract in self.feature_extractors.items()
            }

    def predict(self, rows: Int[np.ndarray, "N"]) -> dict[str, list[str]]:
        """Return the captions of each baseline for these rows."""
        if not len(self.train_rows):
            return {}
        predictions = {}
        for name, features in self.train_features.items():
            nearest = nearest_indices(self.feature_extractors[name](rows), features)
            predictions[name] = [self.captions[i] for i in nearest.tolist()]
        most_common = Counter(self.captions).most_common(1)[0][0]
        predictions["most common"] = [most_common] * len(rows)
        return predictions


@dataclass(frozen=True)
class _AnswerPrior:
    """Counts of the training answers, of all rows and by question."""

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
        """Count the first answer to the first question of each training row."""
        overall = Counter[str]()
        by_question = defaultdict[str, Counter[str]](Counter)
        questions = references(dataset, question_column, train_rows)
        answers = references(dataset, answer_column, train_rows)
        for question, answer in zip(questions, answers, strict=True):
            overall[answer[0]] += 1
            by_question[question[0]][answer[0]] += 1
        return cls(overall, dict(by_question))

    def compute_metrics(
        self, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> dict[str, float]:
        """Return the accuracy of the majority answers."""
        if not self.overall:
            return {}
        majority = self.overall.most_common(1)[0][0]
        predictions = [
            self.by_question[question].most_common(1)[0][0]
            if question in self.by_question
            else majority
            for question in questions
        ]
        return {
            "majority": exact_match([majority] * len(questions), answers),
            "question majority": exact_match(predictions, answers),
        }


@dataclass(frozen=True)
class _AnswerColumns:
    """The columns of visual question answering."""

    image: str
    question: str
    answer: ColumnKey


@picklable
def answer_evaluator(
    image_column: str, question_column: str, answer_column: ColumnKey
) -> Evaluator:
    """Return an evaluator of answers to questions about images, for the columns of a recipe."""
    columns = _AnswerColumns(image_column, question_column, answer_column)

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 2000,
        blind_model: Trained | None = None,
    ) -> EvaluationReport:
        """Evaluate answers.

        Args:
            model: the model that answers.
            dataset: the dataset.
            splits: names of the splits.
            max_samples: rows per split, evenly spaced.
            blind_model: a model of the same questions, trained without images.
        """
        prepared = dataset.prepare(model.schema, (image_column, question_column, answer_column))
        train = training_rows(dataset, prepared)
        prior = _AnswerPrior.from_training(dataset, question_column, answer_column, train)
        metrics = {}
        for split in splits:
            rows = sample_evenly(prepared.complete_rows(dataset.splits[split]), max_samples)
            if len(rows):
                metrics[split] = _answer_metrics(model, blind_model, dataset, columns, rows, prior)
        metadata = {"question": question_column, "answer": column_label(answer_column)}
        return EvaluationReport(
            metrics, metadata, task="question answering", definitions=ANSWER_DEFINITIONS
        )

    return evaluate


def _answer_metrics(
    model: Trained,
    blind_model: Trained | None,
    dataset: Dataset,
    columns: _AnswerColumns,
    rows: Int[np.ndarray, "N"],
    prior: _AnswerPrior,
) -> dict[str, float]:
    """Return the accuracy of the model and of all baselines on these rows."""
    images = dataset.raw(columns.image, rows)
    questions = [texts[0] for texts in references(dataset, columns.question, rows)]
    expected = references(dataset, columns.answer, rows)
    answers = model.generate("text", image=images, question=questions)
    if blind_model is None:
        blind_answers = model.generate("text", image=[None] * len(rows), question=questions)
    else:
        blind_answers = blind_model.generate("text", question=questions)
    other_images = [images[i] for i in _other_group_indices(dataset.groups()[rows])]
    misled_answers = model.generate("text", image=other_images, question=questions)
    metrics = {
        "rows": float(len(rows)),
        "accuracy": exact_match(answers, expected),
        "without image": exact_match(blind_answers, expected),
        "other image": exact_match(misled_answers, expected),
    }
    metrics |= prior.compute_metrics(questions, expected)
    return metrics | _accuracy_by_kind(dataset, rows, answers, expected)


def _other_group_indices(groups: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Return for each row one of another group, from halfway round the list; itself if none."""
    n = len(groups)
    indices = []
    for i in range(n):
        shifts = range(n // 2, n // 2 + n)
        shift = next((s for s in shifts if groups[(i + s) % n] != groups[i]), 0)
        indices.append((i + shift) % n)
    return np.array(indices, np.int64)


def _accuracy_by_kind(
    dataset: Dataset,
    rows: Int[np.ndarray, "N"],
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
) -> dict[str, float]:
    """Return the accuracy for each value of the column `kind`, if there is one."""
    if "kind" not in dataset.table.columns:
        return {}
    indices: dict[str, list[int]] = defaultdict(list)
    for i, kind in enumerate(dataset.raw("kind", rows)):
        indices[str(kind)].append(i)
    return {
        f"accuracy of {kind}": exact_match(
            [predictions[i] for i in kind_indices], [answers[i] for i in kind_indices]
        )
        for kind, kind_indices in sorted(indices.items())
    }
