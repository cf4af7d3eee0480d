"""Text to token ids and back, token dropout, and embeddings of subword bags."""

import itertools
import math

import numpy as np
import pytest
import torch

from sensorium.errors import SensoriumError
from sensorium.modalities.subword_bag import (
    EMPTY_HASH,
    HASH_BASE,
    MAX_TOKEN_CHARS,
    NGRAM_LENGTHS,
    WORD_BOUNDARY,
    SubwordBagEmbedding,
    char_ngram_hashes,
    hash_powers,
)
from sensorium.modalities.text import END, PAD, START, Text, TextEmbedding

# ruff: noqa: RUF001 - the ambiguous characters are what is tested

CORPUS = [
    "a red bicycle",
    "the blue house by the sea",
    "two cats on a mat",
    "a house, a cat and a bicycle",
] * 20
UNUSUAL_STRINGS = [
    "",
    " ",
    "\n\t",
    "é",
    "e\u0301",
    "ﬁne",
    "你好，世界",
    "שלום",
    "🚲👩‍👩‍👧",
    "a\0b",
    "\u202egnirts",
    "x" * 10_000,
    "😀" * 500,
    "\ufeffbom",
    "<start> <end> <pad>",
    "\ud7ff\ue000",
    "a  b",
    "ﷺ" * 40,
]


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(length=12, vocab_size=500).fit(CORPUS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_decode_inverts_load(text: Text) -> None:
    long_text = Text(length=64, tokenizer=text.tokenizer)
    for value in ("a red bicycle", "two cats", "zebra", "naïve café", "你好"):
        assert text.decode(torch.from_numpy(long_text.load(value))) == value


def test_load_normalizes_case_and_compatible_characters(text: Text) -> None:
    assert np.array_equal(text.load("A Red BICYCLE"), text.load("a red bicycle"))
    assert np.array_equal(text.load("ﬁne"), text.load("fine"))
    assert np.array_equal(text.load("e\u0301"), text.load("é"))


@pytest.mark.parametrize("string", UNUSUAL_STRINGS)
def test_any_string_is_encoded(string: str, text: Text) -> None:
    ids = text.load(string)
    assert ids.dtype == np.int32
    assert 2 <= len(ids) <= text.length
    assert ids[0] == START
    assert ids[-1] == END
    assert ((ids[1:-1] > END) & (ids[1:-1] < text.vocab_size)).all(), (
        "a string must not encode special tokens"
    )


def test_truncated_text_keeps_its_end_token(text: Text) -> None:
    ids = text.load("a red bicycle " * 50)
    assert len(ids) == text.length
    assert ids[-1] == END


def test_load_equals_batched_encode(text: Text) -> None:
    texts = UNUSUAL_STRINGS + CORPUS[:4]
    for one, many in zip(map(text.load, texts), text.encode(texts), strict=True):
        assert np.array_equal(one, many)


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["a", "b"]])
def test_value_that_is_not_a_string_is_rejected(wrong: object, text: Text) -> None:
    with pytest.raises(ValueError, match="expected text"):
        text.load(wrong)


def test_unfitted_text_column_is_rejected() -> None:
    with pytest.raises(ValueError, match="fit"):
        Text().load("text")


def test_fit_accepts_missing_values_and_lists_and_is_idempotent(text: Text) -> None:
    fitted = Text(vocab_size=400).fit(["a cat", None, ["two cats", "three cats"]])
    assert fitted.tokenizer is not None
    assert fitted.vocab_size == fitted.tokenizer.get_vocab_size() <= 400
    assert fitted.fit(["other text"]) is fitted
    assert text.fit([]) is text


def test_collate_pads_to_the_longest(text: Text) -> None:
    values = text.encode(["a cat", "", "the blue house by the sea"])
    batch = text.collate(values)
    assert batch.dtype == torch.int64
    assert batch.shape == (3, max(map(len, values)))
    for row, ids in zip(batch, values, strict=True):
        assert row[: len(ids)].tolist() == ids.tolist()
        assert (row[len(ids) :] == PAD).all()


def inner_ids(row: torch.Tensor) -> list[int]:
    return [i for i in row.tolist() if i > END]


def test_token_dropout_keeps_order_start_and_end(text: Text) -> None:
    batch = text.collate(text.encode([*CORPUS[:4], "", "a"]))
    remaining_count = 0
    for seed in range(20):
        dropped = text.augment(batch, generator(seed), token_dropout=0.5)
        assert torch.equal(dropped, text.augment(batch, generator(seed), token_dropout=0.5))
        for before, after in zip(batch, dropped, strict=True):
            remaining = iter(inner_ids(before))
            ids = after.tolist()
            assert all(token in remaining for token in inner_ids(after)), (
                "tokens must keep their order"
            )
            assert bool(inner_ids(after)) == bool(inner_ids(before)), (
                "a text must not lose all tokens"
            )
            end = ids.index(END)
            assert ids[0] == START
            assert all(i == PAD for i in ids[end + 1 :])
            assert PAD not in ids[:end]
            remaining_count += len(inner_ids(after))
    share = remaining_count / (20 * sum(len(inner_ids(row)) for row in batch))
    assert 0.45 < share < 0.65


def test_augment_without_options_changes_nothing(text: Text) -> None:
    batch = text.collate(text.encode(CORPUS[:4]))
    assert torch.equal(text.augment(batch, generator()), batch)
    with pytest.raises(TypeError):
        text.augment(batch, generator(), dorp=0.5)  # pyright: ignore[reportCallIssue]


def test_settings_json_round_trip(text: Text) -> None:
    restored = Text.from_json(text.to_json())
    assert restored == text
    assert restored.tokenizer is None
    with pytest.raises(SensoriumError, match="lenght"):
        Text.from_json({"lenght": 3})


def test_fake_texts_have_start_end_and_padding(text: Text) -> None:
    ids = text.fake(50, generator())
    ends = TextEmbedding(8, text).pool_index(ids)
    assert ids.shape[0] == 50
    assert (ids[:, 0] == START).all()
    for row, end in zip(ids.tolist(), ends.tolist(), strict=True):
        assert row[end] == END
        assert all(i > END for i in row[1:end])
        assert all(i == PAD for i in row[end + 1 :])


# Subword bags -------------------------------------------------------------------------------------


def reference_hash(chars: list[int]) -> int:
    """Return the signed 64-bit polynomial hash of characters."""
    value = sum(char * HASH_BASE**k for k, char in enumerate(chars))
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def reference_hashes(chars: list[int]) -> list[tuple[int, int]]:
    """Return (start of the word, hash) of all words and n-grams of a text, one by one."""
    boundaries = [i for i, char in enumerate(chars) if char == WORD_BOUNDARY]
    words = [(start, end) for start, end in itertools.pairwise(boundaries) if end - start > 1]
    hashes = [(start, reference_hash([0, *chars[start + 1 : end + 1]])) for start, end in words]
    for start, end in words:
        for n in NGRAM_LENGTHS:
            ngrams = (chars[i : i + n][::-1] for i in range(start, end - n + 2))
            hashes.extend((start, reference_hash(ngram)) for ngram in ngrams)
    return hashes


def test_char_ngram_hashes_equal_hashes_computed_one_by_one() -> None:
    texts = [[1, 5, 6, 7, 8, 9, 1, 5, 1], [1, 1, 4, 1, 9, 9, 1, 0, 0], [1] + [0] * 8]
    words, hashes, present = char_ngram_hashes(torch.tensor(texts), hash_powers(9))
    for row, chars in enumerate(texts):
        real = present[row]
        actual = zip(words[row][real].tolist(), hashes[row][real].tolist(), strict=True)
        expected = (
            (chars[: start + 1].count(WORD_BOUNDARY), value)
            for start, value in reference_hashes(chars)
        )
        assert sorted(actual) == sorted(expected)


def fitted_embedding(dim: int, text: Text, *texts: str) -> tuple[SubwordBagEmbedding, Text]:
    """Return an embedding fitted on each text twice, with equal weights, and longer settings."""
    long_text = Text(length=64, tokenizer=text.tokenizer)
    embedding = SubwordBagEmbedding(dim, long_text).eval()
    embedding.fit_on_data([long_text.collate([*map(long_text.load, texts)])] * 2)
    embedding.get_buffer("idf").fill_(1)
    return embedding, long_text


def ngram_hashes_of(word: str) -> set[int]:
    chars = torch.tensor([[WORD_BOUNDARY, *map(ord, word), WORD_BOUNDARY]])
    _, hashes, present = char_ngram_hashes(chars, hash_powers(len(word) + 2))
    return set(hashes[present].tolist())


def test_fit_keeps_ngrams_of_two_texts_and_weights_them_by_idf(text: Text) -> None:
    long_text = Text(length=64, tokenizer=text.tokenizer)
    embedding = SubwordBagEmbedding(8, long_text).eval()
    batches = [["red sun", "red"], ["sun sun red", "blue"]]
    embedding.fit_on_data([long_text.collate([*map(long_text.load, texts)]) for texts in batches])
    table, idf = embedding.get_buffer("ngram_hashes"), embedding.get_buffer("idf")
    n = int((table != EMPTY_HASH).sum())
    hashes = {word: ngram_hashes_of(word) for word in ("red", "sun")}
    assert set(table[:n].tolist()) == hashes["red"] | hashes["sun"]
    assert table.diff().ge(0).all()
    weight = dict(zip(table.tolist(), idf.tolist(), strict=True))
    for word, document_count in (("red", 3), ("sun", 2)):  # of 4 texts
        expected = (1 + math.log(5 / (1 + document_count))) ** 0.5
        assert [weight[h] for h in hashes[word]] == pytest.approx([expected] * len(hashes[word]))


def test_embedding_without_ngrams_returns_zeros() -> None:
    embedding = SubwordBagEmbedding(8, Text(vocab_size=1))
    embedding.fit_on_data([torch.tensor([[0]])])
    assert (embedding.get_buffer("ngram_hashes") == EMPTY_HASH).all()
    assert not embedding(torch.tensor([[0]])).x.any()


def test_subword_dropout_is_random_and_off_in_evaluation(text: Text) -> None:
    embedding, long_text = fitted_embedding(8, text, "a red bicycle")
    embedding.embedding.weight.data.normal_()
    ids = long_text.collate([long_text.load("a red bicycle")])
    assert torch.equal(embedding(ids).x, embedding(ids).x)
    embedding.train()
    assert not torch.allclose(embedding(ids).x, embedding(ids).x)


def test_word_embedding_does_not_depend_on_its_position(text: Text) -> None:
    embedding, long_text = fitted_embedding(8, text, "a red bicycle", "house")
    texts = ("bicycle", "a  red bicycle", "", "house", "xyz")
    t = embedding(long_text.collate([long_text.load(value) for value in texts]))
    assert t.valid is not None
    assert t.valid.sum(1).tolist() == [1, 3, 0, 1, 1]
    num_ngrams = {"a": 2, "red": 7, "bicycle": 19}  # the whole word included
    scale = (num_ngrams["bicycle"] / sum(num_ngrams.values())) ** 0.5
    torch.testing.assert_close(t.x[0, 0] * 3 * scale, t.x[1, 2])
    assert not torch.allclose(t.x[0, 0], t.x[3, 0], atol=1e-4)
    assert not t.x[2].any()
    assert not t.x[4].any()


def test_unseen_word_is_similar_to_a_word_that_shares_ngrams(text: Text) -> None:
    # In 1024 dimensions random vectors are nearly orthogonal.
    embedding, long_text = fitted_embedding(1024, text, "bicycle", "zebra", "motor")
    words = ("bicycle", "motorcycle", "zebra")
    t = embedding(long_text.collate([*map(long_text.load, words)]))
    bicycle, motorcycle, zebra = t.x[:, 0]
    similar = torch.cosine_similarity(bicycle, motorcycle, 0)
    assert similar > torch.cosine_similarity(bicycle, zebra, 0) + 0.2


def test_any_string_is_embedded_by_its_ngrams(text: Text) -> None:
    embedding = SubwordBagEmbedding(8, text)
    ids = text.collate([*map(text.load, UNUSUAL_STRINGS)])
    embedding.fit_on_data([ids, ids])
    t = embedding(ids)
    assert (embedding.get_buffer("ngram_hashes") != EMPTY_HASH).any()
    assert t.x.isfinite().all()
    assert t.x.shape[0] == len(UNUSUAL_STRINGS)
    assert embedding.get_buffer("token_chars").shape == (text.vocab_size, MAX_TOKEN_CHARS)
