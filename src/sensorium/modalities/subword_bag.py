"""Texts by their words and pieces of words, in no order: words never seen are known by what they share with others.

B batch   T tokens   V ids   L letters of an id   N, M, S letters of a text   P pieces   W words   D width
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int64
from torch import Tensor, nn

from sensorium.modalities.text import Text, last_token_index, trim_padding
from sensorium.nn.tokens import Tokens, sequence_positions

WORD_BOUNDARY = 1  # the letter that a word begins with
VECTORS_PER_TOKEN = 4  # pieces that have a vector, at most, for each id of the tokenizer
EMPTY_HASH = (1 << 63) - 1  # in the place of a piece's hash
NGRAM_LENGTHS = range(3, 6)  # letters of a piece of a word, the spaces around the word included
MAX_TOKEN_CHARS = 30  # letters of an id
ID_CHAR_OFFSET = 0x20000  # from here on letters stand for ids that are not spelt
HASH_BASE = 0x100000001B3  # of a hash: FNV's prime
BASE_INVERSE = pow(HASH_BASE, -1, 1 << 64) - (1 << 64)  # BASE * UNBASE is 1 in 64 bits
LR_MULTIPLIER = 10.0  # vectors that few texts have learn so many times as fast


class SubwordBagEmbedding(nn.Module):
    """Ids → Tokens, one a word: the sum of the vectors of the word and of its pieces of 3 to 5 letters, so that a word
    never seen is known by what it shares with others (fastText, Bojanowski et al. 2017).

    Which pieces have a vector, and how much each counts, is learned from training texts before anything else (`meet`):
    those in most texts, if in two or more; the rarer the more (the root of the usual idf). While training,
    `drop` of a text's pieces are left out. No order is known. A text's pieces are together as long as one of them.
    """

    def __init__(self, dim: int, text: Text, dropout: float = 0.0, subword_dropout: float = 0.5):
        super().__init__()
        size = VECTORS_PER_TOKEN * text.vocab_size
        self.embedding, self.dropout, self.subword_dropout = (
            nn.Embedding(size, dim),
            nn.Dropout(dropout),
            subword_dropout,
        )
        self.end, self.pad = text.end, text.pad
        nn.init.normal_(self.embedding.weight, std=0.01 / LR_MULTIPLIER)
        table = token_chars(text)
        self.max_words_per_token = int(
            (table == WORD_BOUNDARY).sum(1).max()
        )  # that an id can begin, at most
        self.register_buffer("token_chars", torch.tensor(table), persistent=False)
        self.register_buffer(
            "hash_powers", hash_powers(text.length * MAX_TOKEN_CHARS + 1), persistent=False
        )
        self.register_buffer(
            "ngram_hashes", torch.full((size,), EMPTY_HASH)
        )  # hashes of pieces, in their order
        self.register_buffer("idf", torch.ones(size))

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def fit_on_data(self, token_ids: Iterable[Tensor]) -> None:
        """Choose the pieces that have a vector, and how much each counts, by how many of these texts, batches of ids
        [B T], have it."""
        seen, counts, rows = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 0
        for ids in token_ids:
            _, piece, there = char_ngrams(self._text_chars(ids)[0], self.get_buffer("hash_powers"))
            row = there.nonzero()[:, 0]
            once = torch.stack([row, piece[there]], 1).unique(dim=0)[:, 1]
            seen, place = torch.cat([seen, once]).unique(return_inverse=True)
            counts = torch.zeros_like(seen).index_add(
                0, place, torch.cat([counts, torch.ones_like(once)])
            )
            rows += len(ids)
        known, rarity = self.get_buffer("ngram_hashes"), self.get_buffer("idf")
        common = counts.masked_fill(counts < 2, 0).topk(min(len(counts), len(known)))
        seen, at = seen[common.indices[common.values > 0]].sort()
        known.fill_(EMPTY_HASH)[: len(seen)] = seen
        rarity.fill_(1)[: len(seen)] = (1 + ((1 + rows) / (1 + common.values[at])).log()).sqrt()

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        if ids.is_meta:  # a plan has no letters: as many pieces as ids
            x = self.dropout(self.embedding(ids))
            return Tokens(x, sequence_positions(x))
        spelt, ids = self._text_chars(ids)
        word, piece, there = char_ngrams(spelt, self.get_buffer("hash_powers"))
        if torch.compiler.is_exporting():
            return self._forward_export(
                word, piece, there, 2 + self.max_words_per_token * ids.shape[1]
            )
        row, known = there.nonzero()[:, 0], self.get_buffer("ngram_hashes")
        begins, word = (word[there] + spelt.shape[1] * row).unique(return_inverse=True)
        place, found = _lookup(known, piece[there])
        if self.training and self.subword_dropout:
            found &= torch.rand(len(found), device=found.device) >= self.subword_dropout
        place, word = place[found], word[found]
        weight, row = self.get_buffer("idf")[place, None], begins // spelt.shape[1]
        x = self.embedding(place) * weight
        x = x.new_zeros(len(begins), x.shape[1]).index_add(0, word, x)
        long = (
            weight.new_zeros(len(ids), 1)
            .index_add(0, row[word], weight.square())
            .clamp(min=1)
            .sqrt()
        )
        words = row.bincount(minlength=len(ids))
        there = torch.arange(max(1, int(words.max())), device=x.device) < words[:, None]
        laid = x.new_zeros(*there.shape, x.shape[1])
        laid[there] = self.dropout(x * (LR_MULTIPLIER * words[:, None] / long)[row])
        return Tokens(laid, sequence_positions(laid), valid=there)

    def _forward_export(
        self,
        word: Int[Tensor, "B P"],
        ngram: Int[Tensor, "B P"],
        present: Bool[Tensor, "B P"],
        max_words: int,
    ) -> Tokens:
        """forward without a shape that hangs on values: of `most` words, which no text has more of, many not valid."""
        place, found = _lookup(self.get_buffer("ngram_hashes"), ngram)
        weight = self.get_buffer("idf")[place] * (present & found)
        x = self.embedding(place) * weight[..., None]
        word = word.clamp(max=max_words - 1)  # numbers of words that are not there
        x = x.new_zeros(x.shape[0], max_words, x.shape[2]).scatter_add(
            1, word[..., None].expand_as(x), x
        )
        valid = (
            weight.new_zeros(x.shape[0], max_words).scatter_add(1, word, present.to(weight.dtype))
            > 0
        )
        long = weight.square().sum(1).clamp(min=1).sqrt()
        x = x * (LR_MULTIPLIER * valid.sum(1) / long)[:, None, None]
        return Tokens(x, sequence_positions(x), valid=valid)

    def _text_chars(self, ids: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B S"]]:
        """(the letters of each text, its ids)."""
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        return compact(
            self.get_buffer("token_chars")[ids].masked_fill(~valid[..., None], 0).flatten(1)
        ), ids


def token_chars(text: Text) -> Int64[np.ndarray, "V L"]:
    """The letters of each id, SPACE before the first of a word, then zeros; without a tokenizer an id is a word."""
    said = [
        text.tokenizer.id_to_token(i) or "" if text.tokenizer else chr(i + ID_CHAR_OFFSET)
        for i in range(text.vocab_size)
    ]
    if not any(token[:1] in ("Ġ", "▁") for token in said):  # then what goes on with a word says ##
        said = [token[2:] if token[:2] == "##" else f"Ġ{token}" for token in said]
    table = np.zeros((len(said), MAX_TOKEN_CHARS), np.int64)
    for i, token in enumerate(said):
        if i not in (text.pad, text.start, text.end):
            table[i, : len(token)] = [
                WORD_BOUNDARY if letter in "Ġ▁" else ord(letter)
                for letter in token[:MAX_TOKEN_CHARS]
            ]
    return table


def hash_powers(n: int) -> Int[Tensor, "2 n"]:
    """Of BASE and of what undoes it, from 0 on, in 64 bits."""
    return torch.tensor(
        np.cumprod([[1, *[base] * (n - 1)] for base in (HASH_BASE, BASE_INVERSE)], 1)
    )


def compact(chars: Int[Tensor, "B N"]) -> Int[Tensor, "B M"]:
    """Letters without the zeros between them, and a space after the last."""
    there, n = chars > 0, chars.shape[1]
    ends = there.sum(1, keepdim=True)
    most = n if torch.compiler.is_exporting() else int(ends.max())
    at = torch.where(there, there.cumsum(1) - 1, n)  # what is nothing, behind all letters
    return (
        chars.new_zeros(chars.shape[0], n + 1)
        .scatter(1, at, chars)[:, : most + 1]
        .scatter(1, ends, WORD_BOUNDARY)
    )


def char_ngrams(
    chars: Int[Tensor, "B M"], powers: Int[Tensor, "2 S"]
) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """(number of its word in the text, hash, whether it is one) of each piece of a word and of each whole word, by
    polynomials of their letters in 64 bits: a word's is the difference of two running sums, brought back to where it
    begins. `powers`: of as many letters as there are, or more.
    """
    space, (up, down), most = chars == WORD_BOUNDARY, powers, chars.shape[1]
    word, place = space.cumsum(1), torch.arange(most, device=chars.device).expand_as(chars)
    first = torch.zeros_like(F.pad(chars, (0, 1))).scatter(
        1, torch.where(space, word, 0), place
    )  # of each word
    first, last = first[:, 1:-1], first[:, 2:]
    sums = (chars * up[:most]).cumsum(1)
    found = [
        (
            place[:, 1:],
            (sums.gather(1, last) - sums.gather(1, first)) * down[first],
            last - first > 1,
        )
    ]
    hashes = chars
    for n in range(2, NGRAM_LENGTHS.stop):
        hashes = hashes[:, :-1] * HASH_BASE + chars[:, n - 1 :]
        if n in NGRAM_LENGTHS:  # the last letter may be the space after
            found.append(
                (
                    word[:, : 1 - n],
                    hashes,
                    (word[:, : 1 - n] == word[:, n - 2 : -1]) & (chars[:, n - 1 :] > 0),
                )
            )
    word, hashes, there = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return word, hashes, there


def _lookup(
    sorted_hashes: Int[Tensor, "K"], hashes: Int[Tensor, "*rows"]
) -> tuple[Int[Tensor, "*rows"], Bool[Tensor, "*rows"]]:
    """(where each stands among what is known, in order; whether it does)."""
    most = sorted_hashes.shape[0]
    if torch.compiler.is_exporting():  # ONNX has no search: half by half
        place = torch.zeros_like(hashes)
        for bit in reversed(range(most.bit_length())):
            ahead = place + (1 << bit)
            place = torch.where(
                (ahead <= most) & (sorted_hashes[ahead.clamp(max=most) - 1] < hashes), ahead, place
            )
    else:
        place = torch.searchsorted(sorted_hashes, hashes)
    place = place.clamp(max=most - 1)
    return place, sorted_hashes[place] == hashes
