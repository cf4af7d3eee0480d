"""Tests of sparse rows and TF-IDF features: against dense products and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from sensorium.modalities.text import Text
from sensorium.models.tfidf import TfidfFeatures
from sensorium.nn.sparse import SparseRows

TEXTS = [
    "Red shoe, size 42!",
    "the red shoe",
    "größe der Schuhe: 42",
    "die größe",
    "東京の赤い靴",
    "赤い靴 東京",
    "a 😀 red-shoe",
    "😀 shoe shoe shoe",
]


def dense(x: SparseRows, width: int) -> Tensor:
    result = torch.zeros(x.rows, width)
    result[x.row, x.index] = x.value
    return result


def fitted(texts: list[str]) -> tuple[Text, TfidfFeatures]:
    text = Text().fit(texts).fit_length(texts, 512)
    features = TfidfFeatures(text)
    features.fit([text.collate(text.encode(texts))], 10_000)
    return text, features


def ids(text: Text, texts: list[str]) -> Tensor:
    return text.collate(text.encode(texts))


class TestSparseRows:
    def test_products_equal_those_of_dense_matrices(self) -> None:
        generator = torch.Generator().manual_seed(0)
        matrix = torch.rand(7, 5, generator=generator)
        matrix[matrix < 0.6] = 0
        matrix[[0, 3, 6]] = 0
        row, index = matrix.nonzero().unbind(1)
        x = SparseRows(7, row, index, matrix[row, index])
        weight = torch.rand(5, 3, generator=generator)
        assert torch.allclose(x.matmul(weight), matrix @ weight)
        other = torch.rand(7, 3, generator=generator)
        assert torch.allclose(x.transposed(5).matmul(other), matrix.T @ other)
        mask = torch.tensor([True, False, True, True, False, False, True])
        assert torch.equal(dense(x.take(mask), 5), matrix[mask])
        assert torch.equal(dense(x.zero_rows(mask), 5), matrix * ~mask[:, None])
        both = SparseRows.join([x, x], [5, 5])
        assert torch.equal(dense(both, 10), torch.cat([matrix, matrix], 1))
        assert both.row.equal(both.row.sort().values)
        assert torch.equal(dense(SparseRows.concat([x, x]), 5), torch.cat([matrix, matrix]))

    def test_rows_without_entries_give_zeros(self) -> None:
        assert not SparseRows.empty(3).matmul(torch.ones(4, 2)).any()


class TestTfidfFeatures:
    def test_words_and_pairs_equal_those_of_scikit_learn(self) -> None:
        texts = ["red shoe", "red boot", "blue shoe red shoe", "blue boot and red shoe"] * 3
        text, features = fitted(texts)
        x = dense(features(ids(text, texts)), features.num_features)[:, features.is_word]
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+"
        )
        reference = vectorizer.fit_transform(texts).toarray()
        assert x.shape == reference.shape
        similarities = (x @ x.T).numpy()
        assert np.allclose(similarities, reference @ reference.T, atol=1e-5)

    def test_punctuation_separates_words_in_every_script(self) -> None:
        text, features = fitted(TEXTS)
        x = dense(features(ids(text, TEXTS)), features.num_features)
        same = x @ x.T
        assert same[0, 1] > same[0, 2], '"shoe," is the word "shoe"'
        assert same[2, 3] > 0.3, "größe is one word, also before a colon"
        assert same[4, 5] > 0.3, "ideographs share pairs without spaces between words"
        assert same[6, 7] > 0
        for block in (features.is_word, ~features.is_word):
            norms = x[:, block].square().sum(1)
            assert torch.allclose(norms, (norms > 0).float()), "both blocks have unit norm"

    def test_padding_and_batch_size_do_not_matter(self) -> None:
        text, features = fitted(TEXTS)
        together = dense(features(ids(text, TEXTS)), features.num_features)
        for i, value in enumerate(TEXTS):
            alone = dense(features(ids(text, [value])), features.num_features)
            assert torch.allclose(alone[0], together[i])

    def test_most_frequent_ngrams_are_kept(self) -> None:
        text = Text().fit(TEXTS)
        features = TfidfFeatures(text)
        features.fit([ids(text, TEXTS)], 5)
        assert features.num_features == 5
        assert float(features.idf.max()) < 1 + np.log(9 / 3)

    @pytest.mark.parametrize("name", ["ngram_hashes", "idf", "is_word"])
    def test_damaged_buffers_are_an_error(self, name: str) -> None:
        _, features = fitted(TEXTS)
        buffers = dict(features.state_dict())
        for value in (torch.zeros(3), torch.full((2,), torch.nan), buffers[name][1:]):
            with pytest.raises(ValueError, match="n-gram"):
                features.load_buffers({**buffers, name: value})


def test_length_of_texts_is_fitted_up_to_a_limit() -> None:
    long = ["word " * 90] * 20
    text = Text().fit(long)
    assert text.fit_length(["short"] * 99, 512) == text
    assert 90 <= text.fit_length(long, 512).length <= 128
    assert text.fit_length(long, 64).length == 64
    assert text.fit_length([], 512) == text
    chosen = Text(length=16).fit(long)
    assert chosen.fit_length(long, 512).length == 16, "a length that was set stays"
