"""Texts by their words and pieces of words, in no order: words never seen are known by what they share with others.

    B batch   T tokens   V ids   L letters of an id   N, M, S letters of a text   P pieces   D width
"""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Int
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
        self.register_buffer("letters", letters(text), persistent=False)
        self.register_buffer("known", torch.full((size,), NOTHING))         # hashes of pieces, in their order
        self.register_buffer("rarity", torch.ones(size))

    def summary(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def meet(self, texts: Iterable[Tensor]) -> None:
        """Choose the pieces that have a vector, and how much each counts, by how many of these texts, batches of ids
        [B T], have it."""
        seen, counts, rows = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 0
        for ids in texts:
            spelt, _ = self._spelt(ids)
            where, piece = pieces(spelt)
            once = torch.stack([where // spelt.shape[1], piece], 1).unique(dim=0)[:, 1]
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
        where, piece = pieces(spelt)
        known, rarity = self.get_buffer("known"), self.get_buffer("rarity")
        begins, word = where.unique(return_inverse=True)
        place = torch.searchsorted(known, piece).clamp(max=len(known) - 1)
        found = known[place] == piece
        if self.training and self.drop:
            found &= torch.rand(len(found), device=found.device) >= self.drop
        place, word = place[found], word[found]
        weight, row = rarity[place, None], begins // spelt.shape[1]
        x = self.vectors(place) * weight
        x = x.new_zeros(len(begins), x.shape[1]).index_add(0, word, x)
        long = weight.new_zeros(len(ids), 1).index_add(0, row[word], weight.square()).clamp(min=1).sqrt()
        words = row.bincount(minlength=len(ids))
        there = torch.arange(max(1, int(words.max())), device=x.device) < words[:, None]
        laid = x.new_zeros(*there.shape, x.shape[1])
        laid[there] = self.dropout(x * (QUICK * words[:, None] / long)[row])
        return Tokens(laid, line(laid), valid=there)

    def _spelt(self, ids: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B S"]]:
        """(the letters of each text, its ids)."""
        ids, valid = real(ids, last_place(ids, self.end, self.pad))
        return closed(self.get_buffer("letters")[ids].masked_fill(~valid[..., None], 0).flatten(1)), ids


def letters(text: Text) -> Int[Tensor, "V L"]:
    """The letters of each id, SPACE before the first of a word, then zeros; without a tokenizer an id is a word."""
    said = [text.tokenizer.id_to_token(i) or "" if text.tokenizer else chr(i + FAR) for i in range(text.vocab_size)]
    if not any(token[:1] in ("Ġ", "▁") for token in said):                  # then what goes on with a word says ##
        said = [token[2:] if token[:2] == "##" else f"Ġ{token}" for token in said]
    table = np.zeros((len(said), LONGEST), np.int64)
    for i, token in enumerate(said):
        if i not in (text.pad, text.start, text.end):
            table[i, :len(token)] = [SPACE if letter in "Ġ▁" else ord(letter) for letter in token[:LONGEST]]
    return torch.tensor(table)


def closed(spelt: Int[Tensor, "B N"]) -> Int[Tensor, "B M"]:
    """Letters without the zeros between them, and a space after the last."""
    there = spelt > 0
    out = spelt.new_zeros(len(spelt), int(there.sum(1).max()) + 1)
    row, at = there.nonzero(as_tuple=True)
    out[row, there.cumsum(1)[row, at] - 1] = spelt[row, at]
    return out.scatter(1, there.sum(1, keepdim=True), SPACE)


def pieces(spelt: Int[Tensor, "B M"]) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """(row x M + where its word begins, hash) of each piece of a word and of each whole word, by polynomials of their
    letters in 64 bits: a word's is the difference of two running sums, brought back to where it begins."""
    space, most = spelt == SPACE, spelt.shape[1]
    place, rows = (torch.arange(k, device=spelt.device) for k in spelt.shape[::-1])
    begins = torch.where(space, place, 0).cummax(1).values + most * rows[:, None]
    up, down = (torch.tensor([1, *[base] * (most - 1)], device=spelt.device).cumprod(0) for base in (BASE, UNBASE))
    row, at = space.nonzero(as_tuple=True)
    whole = (row[1:] == row[:-1]) & (at[1:] - at[:-1] > 1)
    row, first, last = row[:-1][whole], at[:-1][whole], at[1:][whole]
    sums = (spelt * up).cumsum(1)
    found = [(begins[row, first], (sums[row, last] - sums[row, first]) * down[first])]
    hashes = spelt
    for n in range(2, min(PIECES.stop, most + 1)):
        hashes = hashes[:, :-1] * BASE + spelt[:, n - 1:]
        if n in PIECES:                                                     # the last letter may be the space after
            within = (begins[:, :1 - n] == begins[:, n - 2:-1]) & (spelt[:, n - 1:] > 0)
            found.append((begins[:, :1 - n][within], hashes[within]))
    return torch.cat([where for where, _ in found]), torch.cat([what for _, what in found])
