"""Tests of retrieval by the captions of the nearest training image."""

import numpy as np
import pytest

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Schema
from sensorium.data.tables import Table
from sensorium.evaluation.caption_baseline import PixelCaptionBaseline, Vectorizer, terms
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text


def colors(train: list[tuple[int, str]], test: list[tuple[int, str]]) -> Dataset:
    """Return images of one grey value each, with their captions."""
    rows = [*train, *test]
    columns = {
        "image": np.stack([np.full((8, 8, 3), [v, 255 - v, 0], np.uint8) for v, _ in rows]),
        "caption": [caption for _, caption in rows],
    }
    schema = Schema(
        {
            "image": Column("image", Image(size=8)),
            "caption": Column("caption", Text(length=8, vocab_size=300)),
        }
    )
    splits = {"train": np.arange(len(train)), "test": np.arange(len(train), len(rows))}
    table = Table(columns, [str(i) for i in range(len(rows))])
    return Dataset(table, schema, splits=(splits, "by hand"))


def metrics_of(dataset: Dataset) -> dict[str, float]:
    train, test = dataset.splits["train"], dataset.splits["test"]
    pair = ("image", "caption")
    prepared = dataset.prepare(dataset.schema.fit(dataset, train), pair)
    return PixelCaptionBaseline(dataset, prepared, pair, train).metrics(test)


TRAIN = [(0, "eine schwarze Katze"), (120, "ein roter Apfel"), (250, "das grüne Haus")]


def test_shared_words_find_the_caption_and_the_image() -> None:
    metrics = metrics_of(
        colors(TRAIN, [(5, "zwei Katzen"), (125, "viele Äpfel"), (245, "ein Gartenhaus")])
    )
    assert metrics["pixel caption image to text recall@1"] == pytest.approx(1.0)
    assert metrics["pixel caption text to image recall@1"] == pytest.approx(1.0)
    assert metrics["pixel caption recall@10"] == 1.0


def test_captions_of_the_wrong_images_find_nothing() -> None:
    metrics = metrics_of(colors(TRAIN, [(5, "das Haus"), (125, "eine Katze"), (245, "ein Apfel")]))
    assert metrics["pixel caption recall@1"] == 0.0


def test_words_without_spaces_are_compared_by_characters() -> None:
    train = [(0, "黒い猫の顔"), (120, "赤いりんご"), (250, "緑の家")]
    metrics = metrics_of(colors(train, [(5, "白い猫の顔"), (125, "青いりんご"), (245, "木の家")]))
    assert metrics["pixel caption recall@1"] == 1.0


def test_ties_are_broken_at_random_rather_than_lost() -> None:
    """Captions without a common term: recall is that of chance, not zero."""
    test = [(i, f"{i * 7919 + 10**6}") for i in range(250)]
    metrics = metrics_of(colors(TRAIN, test))
    assert 0.0 < metrics["pixel caption recall@10"] < 0.1


def test_similarity_is_the_cosine_of_tf_idf() -> None:
    """Compare with scikit-learn, of which the library needs none."""
    text = pytest.importorskip("sklearn.feature_extraction.text")
    texts = ["a red car", "two red apples", "the Cat", "a cat and a car", "über"]
    queries = ["red cat", "cars", "nothing known"]
    reference = text.TfidfVectorizer(analyzer=terms).fit(texts)
    # scikit-learn leaves out terms that no text has
    known = [[t for t in terms(query) if t in reference.vocabulary_] for query in queries]
    assert any(known)
    expected = reference.transform(texts) @ reference.transform(texts).T
    assert np.allclose(Vectorizer(texts).similarity(texts, texts), expected.toarray(), atol=1e-6)
    assert Vectorizer(texts).similarity(queries, texts)[2].max() < 0.5


def test_no_training_rows_give_no_metrics() -> None:
    dataset = colors(TRAIN, [(5, "x")])
    pair = ("image", "caption")
    prepared = dataset.prepare(dataset.schema.fit(dataset, [0, 1]), pair)
    rows = dataset.splits["test"]
    assert PixelCaptionBaseline(dataset, prepared, pair, rows[:0]).metrics(rows) == {}
