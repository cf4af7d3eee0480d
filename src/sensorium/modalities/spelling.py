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

from sensorium.modalities.text import Text, last_place, real
from sensorium.tokens import Tokens, line

SPACE = 1                               # the letter that a word begins with
KNOWN = 4                               # pieces that have a vector, at most, for each id of the tokenizer
NOTHING = (1 << 63) - 1                 # in the place of a piece's hash
PIECES = range(3, 6)                    # letters of a piece of a word, the spaces around the word included
LONGEST = 30                            # letters of an id
FAR = 0x20000                           # from here on letters stand for ids that are not spelt
BASE = 0x100000001B3                    # of a hash: FNV's prime
UNBASE = pow(BASE, -1, 1 << 64) - (1 << 64)             # BASE * UNBASE is 1 in 64 bits
QUICK = 10.0                            # vectors that few texts have learn so many times as fast


class Spelling(nn.Module):
    """Ids → Tokens, one a word: the sum of the vectors of the word and of its pieces of 3 to 5 letters, so that a word
    never seen is known by what it shares with others (fastText, Bojanowski et al. 2017).

    Which pieces have a vector, and how much each counts, is learned from training texts before anything else (`meet`):
    those in most texts, if in two or more; the rarer the more (the root of the usual idf). While training,
    `drop` of a text's pieces are left out. No order is known. A text's pieces are together as long as one of them.
    """

    def __init__(self, dim: int, text: Text, dropout: float = 0.0, drop: float = 0.5):
        super().__init__()
        size = KNOWN * text.vocab_size
        self.vectors, self.dropout, self.drop = nn.Embedding(size, dim), nn.Dropout(dropout), drop
        self.end, self.pad = text.end, text.pad
        nn.init.normal_(self.vectors.weight, std=0.01 / QUICK)
        table = letters(text)
        self.words = int((table == SPACE).sum(1).max())                     # that an id can begin, at most
        self.register_buffer("letters", torch.tensor(table), persistent=False)
        self.register_buffer("powers", powers(text.length * LONGEST + 1), persistent=False)
        self.register_buffer("known", torch.full((size,), NOTHING))         # hashes of pieces, in their order
        self.register_buffer("rarity", torch.ones(size))

    def summary(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def meet(self, texts: Iterable[Tensor]) -> None:
        """Choose the pieces that have a vector, and how much each counts, by how many of these texts, batches of ids
        [B T], have it."""
        seen, counts, rows = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 0
        for ids in texts:
            _, piece, there = pieces(self._spelt(ids)[0], self.get_buffer("powers"))
            row = there.nonzero()[:, 0]
            once = torch.stack([row, piece[there]], 1).unique(dim=0)[:, 1]
            seen, place = torch.cat([seen, once]).unique(return_inverse=True)
            counts = torch.zeros_like(seen).index_add(0, place, torch.cat([counts, torch.ones_like(once)]))
            rows += len(ids)
        known, rarity = self.get_buffer("known"), self.get_buffer("rarity")
        common = counts.masked_fill(counts < 2, 0).topk(min(len(counts), len(known)))
        seen, at = seen[common.indices[common.values > 0]].sort()
        known.fill_(NOTHING)[:len(seen)] = seen
        rarity.fill_(1)[:len(seen)] = (1 + ((1 + rows) / (1 + common.values[at])).log()).sqrt()

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        if ids.is_meta:                             # a plan has no letters: as many pieces as ids
            x = self.dropout(self.vectors(ids))
            return Tokens(x, line(x))
        spelt, ids = self._spelt(ids)
        word, piece, there = pieces(spelt, self.get_buffer("powers"))
        if torch.compiler.is_exporting():
            return self._traced(word, piece, there, 2 + self.words * ids.shape[1])
        row, known = there.nonzero()[:, 0], self.get_buffer("known")
        begins, word = (word[there] + spelt.shape[1] * row).unique(return_inverse=True)
        place, found = _sought(known, piece[there])
        if self.training and self.drop:
            found &= torch.rand(len(found), device=found.device) >= self.drop
        place, word = place[found], word[found]
        weight, row = self.get_buffer("rarity")[place, None], begins // spelt.shape[1]
        x = self.vectors(place) * weight
        x = x.new_zeros(len(begins), x.shape[1]).index_add(0, word, x)
        long = weight.new_zeros(len(ids), 1).index_add(0, row[word], weight.square()).clamp(min=1).sqrt()
        words = row.bincount(minlength=len(ids))
        there = torch.arange(max(1, int(words.max())), device=x.device) < words[:, None]
        laid = x.new_zeros(*there.shape, x.shape[1])
        laid[there] = self.dropout(x * (QUICK * words[:, None] / long)[row])
        return Tokens(laid, line(laid), valid=there)

    def _traced(self, word: Int[Tensor, "B P"], piece: Int[Tensor, "B P"], there: Bool[Tensor, "B P"],
                most: int) -> Tokens:
        """forward without a shape that hangs on values: of `most` words, which no text has more of, many not valid."""
        place, found = _sought(self.get_buffer("known"), piece)
        weight = self.get_buffer("rarity")[place] * (there & found)
        x = self.vectors(place) * weight[..., None]
        word = word.clamp(max=most - 1)                                     # numbers of words that are not there
        x = x.new_zeros(x.shape[0], most, x.shape[2]).scatter_add(1, word[..., None].expand_as(x), x)
        valid = weight.new_zeros(x.shape[0], most).scatter_add(1, word, there.to(weight.dtype)) > 0
        long = weight.square().sum(1).clamp(min=1).sqrt()
        x = x * (QUICK * valid.sum(1) / long)[:, None, None]
        return Tokens(x, line(x), valid=valid)

    def _spelt(self, ids: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B S"]]:
        """(the letters of each text, its ids)."""
        ids, valid = real(ids, last_place(ids, self.end, self.pad))
        return closed(self.get_buffer("letters")[ids].masked_fill(~valid[..., None], 0).flatten(1)), ids


def letters(text: Text) -> Int64[np.ndarray, "V L"]:
    """The letters of each id, SPACE before the first of a word, then zeros; without a tokenizer an id is a word."""
    said = [text.tokenizer.id_to_token(i) or "" if text.tokenizer else chr(i + FAR) for i in range(text.vocab_size)]
    if not any(token[:1] in ("Ġ", "▁") for token in said):                  # then what goes on with a word says ##
        said = [token[2:] if token[:2] == "##" else f"Ġ{token}" for token in said]
    table = np.zeros((len(said), LONGEST), np.int64)
    for i, token in enumerate(said):
        if i not in (text.pad, text.start, text.end):
            table[i, :len(token)] = [SPACE if letter in "Ġ▁" else ord(letter) for letter in token[:LONGEST]]
    return table


def powers(n: int) -> Int[Tensor, "2 n"]:
    """Of BASE and of what undoes it, from 0 on, in 64 bits."""
    return torch.tensor(np.cumprod([[1, *[base] * (n - 1)] for base in (BASE, UNBASE)], 1))


def closed(spelt: Int[Tensor, "B N"]) -> Int[Tensor, "B M"]:
    """Letters without the zeros between them, and a space after the last."""
    there, n = spelt > 0, spelt.shape[1]
    ends = there.sum(1, keepdim=True)
    most = n if torch.compiler.is_exporting() else int(ends.max())
    at = torch.where(there, there.cumsum(1) - 1, n)                     # what is nothing, behind all letters
    return spelt.new_zeros(spelt.shape[0], n + 1).scatter(1, at, spelt)[:, :most + 1].scatter(1, ends, SPACE)


def pieces(spelt: Int[Tensor, "B M"], powers: Int[Tensor, "2 S"]) -> tuple[
        Int[Tensor, "B P"], Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """(number of its word in the text, hash, whether it is one) of each piece of a word and of each whole word, by
    polynomials of their letters in 64 bits: a word's is the difference of two running sums, brought back to where it
    begins. `powers`: of as many letters as there are, or more.
    """
    space, (up, down), most = spelt == SPACE, powers, spelt.shape[1]
    word, place = space.cumsum(1), torch.arange(most, device=spelt.device).expand_as(spelt)
    first = torch.zeros_like(F.pad(spelt, (0, 1))).scatter(1, torch.where(space, word, 0), place)      # of each word
    first, last = first[:, 1:-1], first[:, 2:]
    sums = (spelt * up[:most]).cumsum(1)
    found = [(place[:, 1:], (sums.gather(1, last) - sums.gather(1, first)) * down[first], last - first > 1)]
    hashes = spelt
    for n in range(2, PIECES.stop):
        hashes = hashes[:, :-1] * BASE + spelt[:, n - 1:]
        if n in PIECES:                                                     # the last letter may be the space after
            found.append((word[:, :1 - n], hashes, (word[:, :1 - n] == word[:, n - 2:-1]) & (spelt[:, n - 1:] > 0)))
    word, hashes, there = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return word, hashes, there


def _sought(known: Int[Tensor, "K"], what: Int[Tensor, "*rows"]) -> tuple[Int[Tensor, "*rows"], Bool[Tensor, "*rows"]]:
    """(where each stands among what is known, in order; whether it does)."""
    most = known.shape[0]
    if torch.compiler.is_exporting():                   # ONNX has no search: half by half
        place = torch.zeros_like(what)
        for bit in reversed(range(most.bit_length())):
            ahead = place + (1 << bit)
            place = torch.where((ahead <= most) & (known[ahead.clamp(max=most) - 1] < what), ahead, place)
    else:
        place = torch.searchsorted(known, what)
    place = place.clamp(max=most - 1)
    return place, known[place] == what
