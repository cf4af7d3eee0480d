"""Text as a bag of words and character n-grams, which unseen words share with known ones.

B batch   T tokens   V token ids   L characters of a token   N, M, S characters of a text
P n-grams of a text   W words   K known n-grams   D width
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int64
from tokenizers import decoders
from torch import Tensor, nn

from sensorium.modalities.text import Text, last_token_index, trim_padding
from sensorium.nn.tokens import Tokens, sequence_positions

WORD_BOUNDARY = 1  # character code of the space before a word
VECTORS_PER_TOKEN = 4  # n-grams with a vector, at most, for each id of the tokenizer
EMPTY_HASH = (1 << 63) - 1  # marks unused entries of the table of hashes
NGRAM_LENGTHS = range(3, 6)  # characters of an n-gram, including word boundaries
MAX_TOKEN_CHARS = 30  # characters of a token that are used
MAX_BYTES_PER_CHAR = 3  # of UTF-8, but for rare ones
ID_CHAR_OFFSET = 0x20000  # without a tokenizer, id i is the character ID_CHAR_OFFSET + i
HASH_BASE = 0x100000001B3  # base of the polynomial hash: FNV's prime
BASE_INVERSE = pow(HASH_BASE, -1, 1 << 64) - (1 << 64)  # HASH_BASE * BASE_INVERSE = 1 mod 2^64
LR_MULTIPLIER = 10.0  # effective learning-rate factor of the vectors, which few texts update


class SubwordBagEmbedding(nn.Module):
    """One token per word: the sum of the vectors of the word and of its 3- to 5-grams (fastText).

    Unseen words share n-grams with known ones (Bojanowski et al. 2017). `fit_on_data` selects the
    n-grams that get a vector, those in the most training texts, and weights each by the square
    root of its inverse document frequency. A text's weights are scaled to unit norm. Tokens are
    unordered.

    Args:
        dim: D.
        text: Settings of the column.
        dropout: Dropout probability of the output.
        subword_dropout: Share of a text's n-grams that are left out while training.
        unicode: Read the tokens of a byte-level tokenizer as the characters that their bytes
            encode, rather than as one character per byte; and give Chinese, Japanese and Korean,
            whose words are short, n-grams of one and two characters too.
    """

    def __init__(
        self,
        dim: int,
        text: Text,
        dropout: float = 0.0,
        subword_dropout: float = 0.5,
        *,
        unicode: bool = False,
    ):
        super().__init__()
        self.unicode = unicode
        table_size = VECTORS_PER_TOKEN * text.vocab_size
        self.embedding = nn.Embedding(table_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.subword_dropout = subword_dropout
        self.end = text.end
        self.pad = text.pad
        nn.init.normal_(self.embedding.weight, std=0.01 / LR_MULTIPLIER)
        self.is_byte_level = unicode and _is_byte_level(text)
        max_chars = MAX_BYTES_PER_CHAR * MAX_TOKEN_CHARS if self.is_byte_level else MAX_TOKEN_CHARS
        chars = token_chars(text, max_chars)
        if self.is_byte_level:
            symbols = byte_of_symbol()
            chars = symbols[np.minimum(chars, len(symbols) - 1)]
            chars = chars[:, : max(1, int((chars > 0).sum(1).max()))]
        self.max_words_per_token = int((chars == WORD_BOUNDARY).sum(1).max())
        self.register_buffer("token_chars", torch.tensor(chars), persistent=False)
        powers = hash_powers(text.length * max_chars + 1)
        self.register_buffer("hash_powers", powers, persistent=False)
        self.register_buffer("ngram_hashes", torch.full((table_size,), EMPTY_HASH))  # ascending
        self.register_buffer("idf", torch.ones(table_size))  # square root of the usual idf

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        """Return None: the pooled embedding is the mean over words."""

    def fit_on_data(self, token_ids: Iterable[Tensor]) -> None:
        """Select the n-grams that get a vector and compute their weights.

        Args:
            token_ids: Training texts, as batches of ids [B T].
        """
        known = torch.zeros(0, dtype=torch.long)
        text_counts = torch.zeros(0, dtype=torch.long)
        num_texts = 0
        for ids in token_ids:
            unique = self._unique_ngrams(ids)
            known, index = torch.cat([known, unique]).unique(return_inverse=True)
            added = torch.cat([text_counts, torch.ones_like(unique)])
            text_counts = torch.zeros_like(known).index_add(0, index, added)
            num_texts += len(ids)
        hashes = self.get_buffer("ngram_hashes")
        idf = self.get_buffer("idf")
        repeated = text_counts.masked_fill(text_counts < 2, 0)
        top = repeated.topk(min(len(repeated), len(hashes)))
        selected, order = known[top.indices[top.values > 0]].sort()
        hashes.fill_(EMPTY_HASH)[: len(selected)] = selected
        inverse_frequency = (1 + num_texts) / (1 + top.values[order])
        idf.fill_(1)[: len(selected)] = (1 + inverse_frequency.log()).sqrt()

    @torch.no_grad()
    def take_vectors(self, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
        """Take the vectors of the n-grams that another module of this kind knows, too.

        Args:
            tensors: Parameters and buffers of the other module, by name.

        Returns:
            The number of known n-grams, and of how many the vectors were taken.
        """
        hashes = self.get_buffer("ngram_hashes")
        own = hashes[hashes != EMPTY_HASH]
        vectors = tensors.get("embedding.weight")
        if vectors is None or vectors.shape[1] != self.embedding.embedding_dim:
            return len(own), 0
        index, is_known = _lookup(tensors["ngram_hashes"], own)
        self.embedding.weight[: len(own)][is_known] = vectors[index[is_known]]
        return len(own), int(is_known.sum())

    def _unique_ngrams(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "P"]:
        """Return the hashes of a batch's n-grams, each once for every text that has it."""
        chars, _ = self.text_chars(ids)
        _, hashes, present = self.ngrams(chars)
        row = present.nonzero()[:, 0]
        return torch.stack([row, hashes[present]], 1).unique(dim=0)[:, 1]

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return one token per word, padded to the text with the most words."""
        if ids.is_meta:  # no characters to hash: estimate as many n-grams as ids
            x = self.dropout(self.embedding(ids))
            return Tokens(x, sequence_positions(x))
        chars, ids = self.text_chars(ids)
        word, hashes, present = self.ngrams(chars)
        if torch.compiler.is_exporting():
            return self._forward_padded(word, hashes, present, ids)
        return self._forward_packed(word, hashes, present, max_words=chars.shape[1])

    def _forward_packed(
        self,
        word: Int[Tensor, "B P"],
        hashes: Int[Tensor, "B P"],
        present: Bool[Tensor, "B P"],
        max_words: int,
    ) -> Tokens:
        """Embed only the known n-grams of a batch, then pad to the text with the most words."""
        batch_size = len(word)
        row = present.nonzero()[:, 0]
        word_ids, word_index = (word[present] + max_words * row).unique(return_inverse=True)
        word_row = word_ids // max_words
        index, is_known = _lookup(self.get_buffer("ngram_hashes"), hashes[present])
        if self.training and self.subword_dropout:
            is_known &= torch.rand(len(is_known), device=index.device) >= self.subword_dropout
        index = index[is_known]
        word_index = word_index[is_known]
        weight = self.get_buffer("idf")[index, None]
        x = self.embedding(index) * weight
        x = x.new_zeros(len(word_ids), x.shape[1]).index_add(0, word_index, x)
        squared_norm = weight.new_zeros(batch_size, 1)
        squared_norm = squared_norm.index_add(0, word_row[word_index], weight.square())
        text_norm = squared_norm.clamp(min=1).sqrt()
        num_words = word_row.bincount(minlength=batch_size)
        scale = LR_MULTIPLIER * num_words[:, None] / text_norm
        longest = max(1, int(num_words.max()))
        valid = torch.arange(longest, device=x.device) < num_words[:, None]
        padded = x.new_zeros(*valid.shape, x.shape[1])
        padded[valid] = self.dropout(x * scale[word_row])
        return Tokens(padded, sequence_positions(padded), valid=valid)

    def _forward_padded(
        self,
        word: Int[Tensor, "B P"],
        hashes: Int[Tensor, "B P"],
        present: Bool[Tensor, "B P"],
        ids: Int[Tensor, "B T"],
    ) -> Tokens:
        """Compute the same with shapes that do not depend on values, for export.

        No text has more than `max_words` words; the tokens of words that it lacks are invalid.
        tests/test_export_graph.py checks that both paths agree.
        """
        max_words = 2 + self.max_words_per_token * ids.shape[1]
        index, is_known = _lookup(self.get_buffer("ngram_hashes"), hashes)
        weight = self.get_buffer("idf")[index] * (present & is_known)
        x = self.embedding(index) * weight[..., None]
        word = word.clamp(max=max_words - 1)  # n-grams that are not present have any word number
        empty = x.new_zeros(x.shape[0], max_words, x.shape[2])
        x = empty.scatter_add(1, word[..., None].expand_as(x), x)
        ngram_counts = weight.new_zeros(x.shape[0], max_words)
        ngram_counts = ngram_counts.scatter_add(1, word, present.to(weight.dtype))
        valid = ngram_counts > 0
        text_norm = weight.square().sum(1).clamp(min=1).sqrt()
        x = x * (LR_MULTIPLIER * valid.sum(1) / text_norm)[:, None, None]
        return Tokens(x, sequence_positions(x), valid=valid)

    def text_chars(self, ids: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B S"]]:
        """Return the characters of each text, and its ids without common padding."""
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        chars = self.get_buffer("token_chars")[ids].masked_fill(~valid[..., None], 0)
        chars = compact(chars.flatten(1))
        return decode_utf8(chars) if self.is_byte_level else chars, ids

    def ngrams(self, chars: Int[Tensor, "B M"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return word number, hash and presence of each n-gram."""
        ngrams = char_ngram_hashes(chars, self.get_buffer("hash_powers"))
        if not self.unicode:
            return ngrams
        if not torch.compiler.is_exporting() and not bool(_is_cjk(chars, self.is_byte_level).any()):
            return ngrams
        groups = [ngrams, *_short_ngram_hashes(chars, _is_cjk(chars, self.is_byte_level))]
        words, hashes, present = (torch.cat(parts, 1) for parts in zip(*groups, strict=True))
        return words, hashes, present


def _is_byte_level(text: Text) -> bool:
    """Return whether the tokens are bytes, written as the symbols of GPT-2."""
    if text.tokenizer is None:
        return False
    return isinstance(text.tokenizer.decoder, decoders.ByteLevel)


def byte_of_symbol() -> Int64[np.ndarray, "S"]:
    """Return the byte that each symbol of a byte-level tokenizer stands for, by its character code.

    Printable bytes are their own symbol; the others are counted from 256 on (GPT-2). The codes of
    padding and of WORD_BOUNDARY stay as they are, and no byte is one of them.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return np.array([*range(256), *(max(byte, WORD_BOUNDARY + 1) for byte in others)])


def decode_utf8(codes: Int[Tensor, "B M"]) -> Int[Tensor, "B M"]:
    """Merge the bytes of each character into one number: the first byte + 256 * the second + ...

    Args:
        codes: Bytes of texts, with WORD_BOUNDARY before each word, then zeros.
    """
    is_next = (codes >= 0x80) & (codes < 0xC0)  # not the first byte of a character
    target = ((codes > 0) & ~is_next).cumsum(1) - 1
    one, two = (F.pad(is_next, (n, 0))[:, : codes.shape[1]].long() for n in (1, 2))
    place = is_next * (1 + one * (1 + two))  # of a byte in its character: 0 to 3
    weight = torch.tensor([256**i for i in range(4)], device=codes.device)[place]
    return torch.zeros_like(codes).scatter_add(1, target.clamp(min=0), codes * weight)


def _is_cjk(chars: Int[Tensor, "B M"], is_byte_level: bool) -> Bool[Tensor, "B M"]:
    """Return which characters are Chinese, Japanese or Korean: U+3000 to U+DFFF."""
    if is_byte_level:
        first = chars % 256
        return (chars >= 1 << 16) & (first >= 0xE3) & (first <= 0xED)
    return (chars >= 0x3000) & (chars < 0xE000)


def _short_ngram_hashes(
    chars: Int[Tensor, "B M"], is_short: Bool[Tensor, "B M"]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return word number, hash and presence of each one and two of these characters."""
    word = (chars == WORD_BOUNDARY).cumsum(1)
    pair = chars[:, :-1] * HASH_BASE + chars[:, 1:]
    return [
        (word, chars, is_short),
        (word[:, :-1], pair, is_short[:, :-1] & is_short[:, 1:]),
    ]


def token_chars(text: Text, max_chars: int = MAX_TOKEN_CHARS) -> Int64[np.ndarray, "V L"]:
    """Return the characters of each token id, padded with zeros.

    A word starts with WORD_BOUNDARY. Special tokens have no characters. Without a tokenizer each
    id is a word of one character.
    """
    tokens = _word_marked_tokens(text)
    table = np.zeros((len(tokens), max_chars), np.int64)
    for i, token in enumerate(tokens):
        if i not in (text.pad, text.start, text.end):
            codes = [WORD_BOUNDARY if char in "Ġ▁" else ord(char) for char in token]
            codes = codes[:max_chars]
            table[i, : len(codes)] = codes
    return table


def _word_marked_tokens(text: Text) -> list[str]:
    """Return the string of each token id, with "Ġ" or "▁" where a word starts."""
    if text.tokenizer is None:
        return [f"Ġ{chr(i + ID_CHAR_OFFSET)}" for i in range(text.vocab_size)]
    tokens = [text.tokenizer.id_to_token(i) or "" for i in range(text.vocab_size)]
    if any(token[:1] in ("Ġ", "▁") for token in tokens):
        return tokens
    # WordPiece marks continuations with "##" instead of word starts.
    return [token[2:] if token[:2] == "##" else f"Ġ{token}" for token in tokens]


def hash_powers(n: int) -> Int[Tensor, "2 n"]:
    """Return powers 0 to n - 1 of HASH_BASE and of its inverse, modulo 2^64."""
    bases = [[1, *[base] * (n - 1)] for base in (HASH_BASE, BASE_INVERSE)]
    return torch.tensor(np.cumprod(bases, 1))


def compact(chars: Int[Tensor, "B N"]) -> Int[Tensor, "B M"]:
    """Remove the zeros between characters and append a word boundary to each text."""
    is_char = chars > 0
    n = chars.shape[1]
    lengths = is_char.sum(1, keepdim=True)
    longest = n if torch.compiler.is_exporting() else int(lengths.max())
    target = torch.where(is_char, is_char.cumsum(1) - 1, n)  # zeros go behind all characters
    shifted = chars.new_zeros(chars.shape[0], n + 1).scatter(1, target, chars)
    return shifted[:, : longest + 1].scatter(1, lengths, WORD_BOUNDARY)


def char_ngram_hashes(
    chars: Int[Tensor, "B M"], powers: Int[Tensor, "2 S"]
) -> tuple[Int[Tensor, "B P"], Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Return 64-bit polynomial hashes of all words and character n-grams of a batch.

    A word's hash must not depend on where it stands. Example, with b = HASH_BASE and "_" for
    WORD_BOUNDARY: the text "a red" is

        index   0  1  2  3  4  5  6
        chars   _  a  _  r  e  d  _

    With running sums s[i] = chars[0] b^0 + ... + chars[i] b^i, the word "red", between the
    boundaries 2 and 6, is (s[6] - s[2]) b^-2 = r b + e b^2 + d b^3 + _ b^4, as it would be anywhere
    else. b^-2 is a power of the modular inverse of b. An n-gram is hashed directly: the 3-gram
    "_re" is (_ b + r) b + e. The 3-grams of "red" are "_re", "red" and "ed_".

    Args:
        chars: Character codes, each word after a boundary, a boundary after the last, then zeros.
        powers: `hash_powers` of S >= M.

    Returns:
        The number of its word in the text (from 1), the hash, and whether it is real, for each
        word and each n-gram.
    """
    groups = [_word_hashes(chars, powers), *_ngram_hashes(chars)]
    words, hashes, present = (torch.cat(parts, 1) for parts in zip(*groups, strict=True))
    return words, hashes, present


def _word_hashes(
    chars: Int[Tensor, "B M"], powers: Int[Tensor, "2 S"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return number, hash and presence of each word, one column for each possible word."""
    base_powers, inverse_powers = powers
    length = chars.shape[1]
    is_boundary = chars == WORD_BOUNDARY
    index = torch.arange(length, device=chars.device).expand_as(chars)
    # boundaries[w] is the index of the w-th boundary, from 1; column 0 takes all other characters.
    slot = torch.where(is_boundary, is_boundary.cumsum(1), 0)
    boundaries = torch.zeros_like(F.pad(chars, (0, 1))).scatter(1, slot, index)
    start = boundaries[:, 1:-1]
    end = boundaries[:, 2:]
    sums = (chars * base_powers[:length]).cumsum(1)
    hashes = (sums.gather(1, end) - sums.gather(1, start)) * inverse_powers[start]
    return index[:, 1:], hashes, end - start > 1


def _ngram_hashes(chars: Int[Tensor, "B M"]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return word number, hash and presence of the n-grams from each index, for each length."""
    word = (chars == WORD_BOUNDARY).cumsum(1)
    groups: list[tuple[Tensor, Tensor, Tensor]] = []
    hashes = chars
    for n in range(2, NGRAM_LENGTHS.stop):
        hashes = hashes[:, :-1] * HASH_BASE + chars[:, n - 1 :]
        if n in NGRAM_LENGTHS:
            first_word = word[:, : 1 - n]
            # The last character may be the boundary after the word, which counts to the next one.
            in_one_word = first_word == word[:, n - 2 : -1]
            groups.append((first_word, hashes, in_one_word & (chars[:, n - 1 :] > 0)))
    return groups


def _lookup(
    sorted_hashes: Int[Tensor, "K"], hashes: Int[Tensor, "*rows"]
) -> tuple[Int[Tensor, "*rows"], Bool[Tensor, "*rows"]]:
    """Return the index of each hash in an ascending table, and whether it is in it."""
    size = sorted_hashes.shape[0]
    if torch.compiler.is_exporting():  # ONNX has no searchsorted: binary search, bit by bit
        index = torch.zeros_like(hashes)
        for bit in reversed(range(size.bit_length())):
            candidate = index + (1 << bit)
            is_lower = sorted_hashes[candidate.clamp(max=size) - 1] < hashes
            index = torch.where((candidate <= size) & is_lower, candidate, index)
    else:
        index = torch.searchsorted(sorted_hashes, hashes)
    index = index.clamp(max=size - 1)
    return index, sorted_hashes[index] == hashes
