"""Words to ids and back: whatever the string, a text begins, ends, and fits."""

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
    char_ngrams,
    hash_powers,
)
from sensorium.modalities.text import END, PAD, START, Text, TextEmbedding

CORPUS = [
    "a red bicycle",
    "the blue house by the sea",
    "two cats on a mat",
    "a house, a cat and a bicycle",
] * 20
ODD = [
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


def test_words_come_back(text: Text) -> None:
    roomy = Text(length=64, tokenizer=text.tokenizer)
    for words in ("a red bicycle", "two cats", "zebra", "naïve café", "你好"):
        assert text.decode(torch.from_numpy(roomy.load(words))) == words


def test_case_and_compatible_forms_are_one(text: Text) -> None:
    assert np.array_equal(text.load("A Red BICYCLE"), text.load("a red bicycle"))
    assert np.array_equal(text.load("ﬁne"), text.load("fine"))
    assert np.array_equal(text.load("e\u0301"), text.load("é"))


@pytest.mark.parametrize("odd", ODD)
def test_any_string_becomes_a_text(odd: str, text: Text) -> None:
    ids = text.load(odd)
    assert ids.dtype == np.int32
    assert 2 <= len(ids) <= text.length
    assert ids[0] == START
    assert ids[-1] == END
    assert ((ids[1:-1] > END) & (ids[1:-1] < text.vocab_size)).all(), (
        "a text cannot spell start, end, pad"
    )


def test_a_cut_text_keeps_its_end(text: Text) -> None:
    ids = text.load("a red bicycle " * 50)
    assert len(ids) == text.length
    assert ids[-1] == END


def test_one_by_one_is_as_many_at_once(text: Text) -> None:
    texts = ODD + CORPUS[:4]
    for one, many in zip(map(text.load, texts), text.encode(texts), strict=True):
        assert np.array_equal(one, many)


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["a", "b"]])
def test_only_a_string_is_text(wrong: object, text: Text) -> None:
    with pytest.raises(ValueError, match="expected text"):
        text.load(wrong)  # type: ignore[arg-type]


def test_a_text_column_must_be_fitted_first() -> None:
    with pytest.raises(ValueError, match="fit"):
        Text().load("words")


def test_fit_takes_gaps_and_lists_and_happens_once(text: Text) -> None:
    fitted = Text(vocab_size=400).fit(["a cat", None, ["two cats", "three cats"]])
    assert fitted.vocab_size == fitted.tokenizer.get_vocab_size() <= 400
    assert fitted.fit(["other words"]) is fitted
    assert text.fit([]) is text


def test_collate_pads_to_the_longest(text: Text) -> None:
    values = text.encode(["a cat", "", "the blue house by the sea"])
    batch = text.collate(values)
    assert batch.dtype == torch.int64
    assert batch.shape == (3, max(map(len, values)))
    for row, ids in zip(batch, values, strict=True):
        assert row[: len(ids)].tolist() == ids.tolist()
        assert (row[len(ids) :] == PAD).all()


def words_of(row: torch.Tensor) -> list[int]:
    return [i for i in row.tolist() if i > END]


def test_dropped_words_leave_order_start_and_end(text: Text) -> None:
    batch = text.collate(text.encode(CORPUS[:4] + ["", "a"]))
    kept = 0
    for seed in range(20):
        dropped = text.augment(batch, generator(seed), token_dropout=0.5)
        assert torch.equal(dropped, text.augment(batch, generator(seed), token_dropout=0.5))
        for before, after in zip(batch, dropped, strict=True):
            left, ids = iter(words_of(before)), after.tolist()
            assert all(word in left for word in words_of(after)), "words must keep their order"
            assert bool(words_of(after)) == bool(words_of(before)), (
                "a text must not lose every word"
            )
            end = ids.index(END)
            assert ids[0] == START
            assert all(i == PAD for i in ids[end + 1 :])
            assert PAD not in ids[:end]
            kept += len(words_of(after))
    share = kept / (20 * sum(len(words_of(row)) for row in batch))
    assert 0.45 < share < 0.65


def test_no_word_is_dropped_unless_asked(text: Text) -> None:
    batch = text.collate(text.encode(CORPUS[:4]))
    assert torch.equal(text.augment(batch, generator()), batch)
    with pytest.raises(TypeError):
        text.augment(batch, generator(), dorp=0.5)  # type: ignore[call-arg]


def test_settings_go_to_json_and_back(text: Text) -> None:
    again = Text.from_json(text.to_json())
    assert again == text
    assert again.tokenizer is None
    with pytest.raises(SensoriumError, match="lenght"):
        Text.from_json({"lenght": 3})


def test_fake_texts_look_like_texts(text: Text) -> None:
    ids = text.fake(50, generator())
    ends = TextEmbedding(8, text).pool_index(ids)
    assert ids.shape[0] == 50
    assert (ids[:, 0] == START).all()
    for row, end in zip(ids.tolist(), ends.tolist(), strict=True):
        assert row[end] == END
        assert all(i > END for i in row[1:end])
        assert all(i == PAD for i in row[end + 1 :])


# ------------------------------------------------------------------------------------------------- words by letters


def by_hand(spelt: list[int]) -> list[tuple[int, int]]:
    """(where its word begins, hash) of all that `pieces` finds in one text, one letter after the other."""

    def whole(letters: list[int]) -> int:
        value = 0
        for k, letter in enumerate(letters):
            value += letter * HASH_BASE**k
        return (value + (1 << 63)) % (1 << 64) - (1 << 63)

    def part(letters: list[int]) -> int:
        return whole(letters[::-1])

    spaces = [i for i, letter in enumerate(spelt) if letter == WORD_BOUNDARY]
    words = [(a, b) for a, b in itertools.pairwise(spaces) if b - a > 1]
    found = [(a, whole([0, *spelt[a + 1 : b + 1]])) for a, b in words]
    return found + [
        (a, part(spelt[i : i + n]))
        for a, b in words
        for n in NGRAM_LENGTHS
        for i in range(a, b - n + 2)
    ]


def test_pieces_and_words_are_those_found_by_hand() -> None:
    texts = [[1, 5, 6, 7, 8, 9, 1, 5, 1], [1, 1, 4, 1, 9, 9, 1, 0, 0], [1] + [0] * 8]
    word, what, there = char_ngrams(torch.tensor(texts), hash_powers(9))
    for row, spelt in enumerate(texts):
        found = zip(word[row][there[row]].tolist(), what[row][there[row]].tolist(), strict=True)
        assert sorted(found) == sorted(
            (spelt[: a + 1].count(WORD_BOUNDARY), h) for a, h in by_hand(spelt)
        )


def spelling(dim: int, text: Text, *seen: str) -> tuple[SubwordBagEmbedding, Text]:
    """One that has met these texts twice, and has no favourites among their pieces; settings with room for any text."""
    roomy = Text(length=64, tokenizer=text.tokenizer)
    read = SubwordBagEmbedding(dim, roomy).eval()
    read.fit_on_data([roomy.collate([*map(roomy.load, seen)])] * 2)
    read.get_buffer("rarity").fill_(1)
    return read, roomy


def known_of(word: str) -> set[int]:
    _, what, there = char_ngrams(
        torch.tensor([[WORD_BOUNDARY, *map(ord, word), WORD_BOUNDARY]]), hash_powers(len(word) + 2)
    )
    return set(what[there].tolist())


def test_pieces_of_two_texts_or_more_are_known_the_common_ones_first(text: Text) -> None:
    roomy = Text(length=64, tokenizer=text.tokenizer)
    read = SubwordBagEmbedding(8, roomy).eval()
    read.fit_on_data(
        [
            roomy.collate([*map(roomy.load, part)])
            for part in (["red sun", "red"], ["sun sun red", "blue"])
        ]
    )
    known, rarity = read.get_buffer("known"), read.get_buffer("rarity")
    n = int((known != EMPTY_HASH).sum())
    hashes = {word: known_of(word) for word in ("red", "sun", "blue")}
    assert set(known[:n].tolist()) == hashes["red"] | hashes["sun"]
    assert known.diff().ge(0).all()
    weight = dict(zip(known.tolist(), rarity.tolist(), strict=True))
    for word, texts in (("red", 3), ("sun", 2)):  # of 4
        assert all(
            weight[h] == pytest.approx((1 + math.log(5 / (1 + texts))) ** 0.5) for h in hashes[word]
        )
    small = SubwordBagEmbedding(8, Text(vocab_size=1))
    small.fit_on_data([torch.tensor([[0]])])  # nothing to know
    assert (small.get_buffer("known") == EMPTY_HASH).all()
    assert not small(torch.tensor([[0]])).x.any()


def test_pieces_left_out_in_training_are_others_each_time(text: Text) -> None:
    read, roomy = spelling(8, text, "a red bicycle")
    read.embedding.weight.data.normal_()
    ids = roomy.collate([roomy.load("a red bicycle")])
    assert torch.equal(read(ids).x, read(ids).x)
    read.train()
    assert not torch.allclose(read(ids).x, read(ids).x)


def test_a_word_is_read_alike_wherever_it_stands(text: Text) -> None:
    read, roomy = spelling(8, text, "a red bicycle", "house")
    t = read(
        roomy.collate(
            [roomy.load(words) for words in ("bicycle", "a  red bicycle", "", "house", "xyz")]
        )
    )
    assert t.valid is not None
    assert t.valid.sum(1).tolist() == [1, 3, 0, 1, 1]
    of = {"a": 2, "red": 7, "bicycle": 19}  # pieces of each, the whole word with them
    torch.testing.assert_close(t.x[0, 0] * 3 * (of["bicycle"] / sum(of.values())) ** 0.5, t.x[1, 2])
    assert not torch.allclose(t.x[0, 0], t.x[3, 0], atol=1e-4)
    assert not t.x[2].any()
    assert not t.x[4].any()


def test_a_word_never_seen_is_like_one_that_shares_its_letters(text: Text) -> None:
    read, roomy = spelling(
        1024, text, "bicycle", "zebra", "motor"
    )  # so wide that chance vectors are square
    bicycle, motorcycle, zebra = read(
        roomy.collate([*map(roomy.load, ("bicycle", "motorcycle", "zebra"))])
    ).x[:, 0]
    assert (
        torch.cosine_similarity(bicycle, motorcycle, 0)
        > torch.cosine_similarity(bicycle, zebra, 0) + 0.2
    )


def test_any_string_is_spelt(text: Text) -> None:
    read, ids = SubwordBagEmbedding(8, text), text.collate([*map(text.load, ODD)])
    read.fit_on_data([ids, ids])
    t = read(ids)
    assert (read.get_buffer("known") != EMPTY_HASH).any()
    assert t.x.isfinite().all()
    assert t.x.shape[0] == len(ODD)
    assert SubwordBagEmbedding(8, text).get_buffer("letters").shape == (
        text.vocab_size,
        MAX_TOKEN_CHARS,
    )
