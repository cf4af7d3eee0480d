"""TF-IDF of a text column: words, pairs of words, and character n-grams, as sparse features.

B batch   T tokens   V token ids   L, M, S characters   P n-grams of a text   F known n-grams
N entries that are not zero
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from tokenizers import decoders
from torch import Tensor, nn

from sensorium.modalities.subword_bag import (
    HASH_BASE,
    MAX_TOKEN_CHARS,
    WORD_BOUNDARY,
    char_ngram_hashes,
    compact,
    hash_powers,
    token_chars,
)
from sensorium.modalities.text import Text, last_token_index, trim_padding
from sensorium.nn.sparse import SparseRows, unique_counts, unique_inverse

MIN_TEXTS = 2  # an n-gram of fewer training texts is not known
MAX_PENDING = 1 << 22  # n-grams that are counted at a time
PAIR_BASE = 0x2545F4914F6CDD1D  # odd multiplier of the first word of a pair
FIRST_IDEOGRAPH = 0x2E80  # from here on a character may be a word of its own
UTF8_LEADS = ((0xC0, 0xE0, 2), (0xE0, 0xF0, 3), (0xF0, 0xF8, 4))  # first byte from, below, bytes


class TfidfFeatures(nn.Module):
    """Sparse TF-IDF features of texts, computed from token ids.

    A known n-gram is one that several training texts have; there are none until `fit`. Its weight
    in a text is (1 + log count) times its inverse document frequency. Words with their pairs, and
    character n-grams, are scaled to unit norm separately.

    Args:
        text: Settings of the column.

    Attributes:
        ngram_hashes: [F] Hashes of the known n-grams, ascending.
        idf: [F] Inverse document frequency of each.
        is_word: [F] Whether it is a word or a pair of words.
    """

    def __init__(self, text: Text):
        super().__init__()
        self.end = text.end
        self.pad = text.pad
        self.is_bytes = text.tokenizer is not None and isinstance(
            text.tokenizer.decoder, decoders.ByteLevel
        )
        chars = _split_punctuation(token_chars(text), self.is_bytes)
        self.register_buffer("token_chars", torch.tensor(chars), persistent=False)
        powers = hash_powers(text.length * MAX_TOKEN_CHARS + 1)
        self.register_buffer("hash_powers", powers, persistent=False)
        self.ngram_hashes = nn.Buffer(torch.zeros(0, dtype=torch.long))
        self.idf = nn.Buffer(torch.zeros(0))
        self.is_word = nn.Buffer(torch.zeros(0, dtype=torch.bool))

    @property
    def num_features(self) -> int:
        """F."""
        return len(self.idf)

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Replace the known n-grams.

        Raises:
            ValueError: If the tensors do not form a table of n-grams.
        """
        hashes, idf, is_word = (
            buffers.get(name, torch.zeros(())) for name in ("ngram_hashes", "idf", "is_word")
        )
        dtypes = (hashes.dtype, idf.dtype, is_word.dtype)
        if dtypes != (torch.long, torch.float32, torch.bool) or hashes.dim() != 1:
            raise ValueError("The n-grams of a text column need hashes, weights and their kind.")
        if not hashes.shape == idf.shape == is_word.shape:
            raise ValueError("The sizes of the n-gram tensors do not match.")
        if (hashes[1:] <= hashes[:-1]).any() or not idf.isfinite().all():
            raise ValueError("The n-grams of a text column are not sorted, or not finite.")
        self.ngram_hashes, self.idf, self.is_word = hashes, idf, is_word

    def fit(self, token_ids: Iterable[Tensor], max_features: int) -> None:
        """Select the n-grams that are known: those of the most training texts.

        Args:
            token_ids: Training texts, as batches of ids [B T].
            max_features: Largest F.
        """
        known = torch.zeros(0, dtype=torch.long)
        counts = torch.zeros(0, dtype=torch.long)
        pending: list[Tensor] = []
        num_texts = 0
        for ids in token_ids:
            pending.append(self._unique_ngrams(ids))
            num_texts += len(ids)
            if sum(map(len, pending)) > MAX_PENDING:
                known, counts = _merge_counts(known, counts, pending)
                pending = []
        known, counts = _merge_counts(known, counts, pending)
        top = counts.masked_fill(counts < MIN_TEXTS, 0).topk(min(len(counts), max_features))
        chosen = top.indices[top.values > 0].sort().values
        self.ngram_hashes = known[chosen]
        self.is_word = self.ngram_hashes % 2 == 0
        self.idf = 1 + ((1 + num_texts) / (1 + counts[chosen])).log()

    def _unique_ngrams(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "P"]:
        """Return the hashes of a batch's n-grams, each once for every text that has it."""
        hashes, present = self._hash_ngrams(ids)
        row = present.nonzero()[:, 0]
        pairs = torch.stack([row, hashes[present]], 1)
        return _unique_rows(pairs)[:, 1]

    def forward(self, ids: Int[Tensor, "B T"]) -> SparseRows:
        """Return the features of texts."""
        hashes, present = self._hash_ngrams(ids)
        if not self.num_features:
            return SparseRows.empty(len(ids), ids.device)
        index = torch.searchsorted(self.ngram_hashes, hashes[present])
        index = index.clamp(max=self.num_features - 1)
        is_known = self.ngram_hashes[index] == hashes[present]
        row = present.nonzero()[:, 0][is_known]
        entries, count = unique_counts(row * self.num_features + index[is_known])
        row, index = entries // self.num_features, entries % self.num_features
        value = (1 + count.to(self.idf.dtype).log()) * self.idf[index]
        block = 2 * row + self.is_word[index]  # each is scaled to unit norm
        norms = value.new_zeros(2 * len(ids)).index_add(0, block, value.square()).sqrt()
        return SparseRows(len(ids), row, index, value / norms[block])

    def _hash_ngrams(self, ids: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B P"], Tensor]:
        """Return hashes of all n-grams, even for words and pairs of words, and which are real."""
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        chars = self.get_buffer("token_chars")[ids].masked_fill(~valid[..., None], 0).flatten(1)
        if self.is_bytes:
            chars = _join_utf8(chars)
        chars = compact(chars)
        _, hashes, present = char_ngram_hashes(chars, self.get_buffer("hash_powers"))
        num_words = chars.shape[1] - 1
        words, is_word = hashes[:, :num_words], present[:, :num_words]
        pairs = words[:, :-1] * PAIR_BASE + words[:, 1:]
        even = torch.cat([words, pairs], 1) * 2
        short, is_short = _ideographs(chars)
        odd = torch.cat([hashes[:, num_words:], short], 1) * 2 + 1
        is_pair = is_word[:, :-1] & is_word[:, 1:]
        return (
            torch.cat([even, odd], 1),
            torch.cat([is_word, is_pair, present[:, num_words:], is_short], 1),
        )


def _split_punctuation(chars: Int64[np.ndarray, "V L"], is_bytes: bool) -> Int64[np.ndarray, "V L"]:
    """Return the characters of tokens with a word boundary for each ASCII punctuation mark.

    Args:
        chars: Characters of each token; those of a byte-level tokenizer stand for bytes.
        is_bytes: Whether they do; they are replaced by the byte, plus 1 where it is not ASCII.
    """
    if is_bytes:
        table = np.arange(int(chars.max(initial=0)) + 1, dtype=np.int64)
        for byte, char in _byte_chars().items():
            if char < len(table):
                table[char] = byte if byte < 0x80 else byte + 1  # 0x80 + 1: no ASCII character
        chars = np.where(chars > WORD_BOUNDARY, table[chars], chars)
    is_mark = np.array([not chr(code).isalnum() for code in range(0x80)])
    is_mark = is_mark[chars.clip(max=0x7F)] & (chars < 0x80) & (chars > 0)
    return np.where(is_mark, WORD_BOUNDARY, chars)


def _byte_chars() -> dict[int, int]:
    """Return the character that byte-level tokenizers (GPT-2) write for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {b: b for b in plain} | {byte: 256 + i for i, byte in enumerate(others)}


def _join_utf8(chars: Int[Tensor, "B M"]) -> Int[Tensor, "B S"]:
    """Return characters with those of several bytes joined to their code point, zeros between.

    Args:
        chars: ASCII characters, and other bytes plus 1; zeros are skipped.
    """
    chars = compact(chars)[:, :-1]
    byte = chars - (chars > 0x80).long()
    padded = torch.nn.functional.pad(byte, (0, 3))
    result = byte.masked_fill((chars > 0x80) & (byte < 0xC0), 0)  # no continuation bytes
    for low, high, size in UTF8_LEADS:
        code = byte % (0x100 >> (size + 1))
        for i in range(1, size):
            code = code * 64 + padded[:, i : i + byte.shape[1]] % 64
        result = torch.where((byte >= low) & (byte < high), code, result)
    return result


def _ideographs(chars: Int[Tensor, "B M"]) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Return hashes of single ideographs and of pairs, which 3-grams are too long for."""
    is_ideograph = chars >= FIRST_IDEOGRAPH
    pairs = chars[:, :-1] * HASH_BASE + chars[:, 1:]
    is_pair = is_ideograph[:, :-1] & is_ideograph[:, 1:]
    return torch.cat([chars, pairs], 1), torch.cat([is_ideograph, is_pair], 1)


def _unique_rows(x: Int[Tensor, "N 2"]) -> Int[Tensor, "M 2"]:
    """Return the distinct rows (torch.unique, typed)."""
    return x.unique(dim=0)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _merge_counts(
    known: Int[Tensor, "F"], counts: Int[Tensor, "F"], added: list[Tensor]
) -> tuple[Int[Tensor, "M"], Int[Tensor, "M"]]:
    """Return distinct hashes, ascending, and in how many texts each of them is."""
    if not added:
        return known, counts
    new, new_counts = unique_counts(torch.cat(added))
    merged, index = unique_inverse(torch.cat([known, new]))
    total = torch.zeros_like(merged).index_add(0, index, torch.cat([counts, new_counts]))
    return merged, total
