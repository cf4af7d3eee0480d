"""Text: a byte-pair tokenizer trained on the column, and embeddings of token ids as Tokens.

B batch   T tokens   S tokens of the longest text   L full length   D width
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.io.untrusted import replace_surrogates
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.nn.tokens import CAUSAL, Tokens, sequence_positions

PAD, START, END = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<start>", "<end>"]

MAX_LENGTH_TEXTS = 2000  # texts by which the length of a column is chosen
COVERED_TEXTS = 0.95  # fraction of them that are read in full
LENGTH_STEP = 32  # chosen lengths are multiples of this


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer trained on `texts`.

    Text is normalized by NFKC and lower case. All bytes are in the vocabulary, so no text is out
    of vocabulary.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class Text:
    """Settings of a text column.

    Attributes:
        length: Largest number of tokens, start and end included; longer texts are truncated.
        vocab_size: Size of the vocabulary; for a new tokenizer, its upper limit.
        start: Id of the start token; None if texts have none.
        end: Id of the end token.
        pad: Id of the padding token.
        tokenizer: The tokenizer; trained by `fit` if there is none, and stored in its own file.
    """

    kind: ClassVar[str] = "text"
    length: int = 32
    vocab_size: int = 8192
    start: int | None = START
    end: int = END
    pad: int = PAD
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            # "<end>" in a text is encoded as plain characters, not as the end token.
            self.tokenizer.encode_special_tokens = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # a pickled tokenizer forgets this setting

    def fit(self, values: Iterable[str | Sequence[str] | None]) -> Text:
        """Return settings with a tokenizer trained on `values`, or self if there is one already.

        Args:
            values: One text or several texts per row; None is a missing value.
        """
        if self.tokenizer is not None:
            return self
        tokenizer = train_tokenizer(_iter_texts(values), self.vocab_size)
        return replace(self, tokenizer=tokenizer, vocab_size=tokenizer.get_vocab_size())

    def fit_length(self, texts: Sequence[object], max_length: int) -> Text:
        """Return settings of a column of the default length that cover most of its texts.

        Args:
            texts: Training texts; other values are skipped.
            max_length: Largest length.
        """
        if self.length != Text().length:
            return self
        step = -(-len(texts) // MAX_LENGTH_TEXTS) or 1
        sample = [text for text in texts[::step] if isinstance(text, str)]
        if not sample:
            return self
        sizes = [len(ids) for ids in replace(self, length=max_length).encode(sample)]
        covered = int(np.quantile(sizes, COVERED_TEXTS, method="higher"))
        rounded = -(-covered // LENGTH_STEP) * LENGTH_STEP
        return replace(self, length=min(max_length, max(self.length, rounded)))

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, with start and end token, as int32 [n <= length].

        Raises:
            ValueError: If the column has no tokenizer yet.
        """
        with tokenizer_errors():
            rows = self._fitted_tokenizer().encode_batch_fast(
                replace_surrogates(list(texts)), add_special_tokens=False
            )
        prefix = [] if self.start is None else [self.start]
        max_ids = self.length - len(prefix) - 1
        return [np.array([*prefix, *row.ids[:max_ids], self.end], dtype=np.int32) for row in rows]

    def load(self, raw: Any) -> np.ndarray:
        """Return one text as int32 ids [n <= length].

        Raises:
            ValueError: If `raw` is not a string, or the column has no tokenizer yet.
        """
        if not isinstance(raw, str):
            raise ValueError(f"expected text, got {type(raw).__name__}")
        return self.encode([raw])[0]

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Return the ids of several texts, padded to the longest."""
        longest = max((len(v) for v in values), default=1)
        batch = np.full((len(values), longest), self.pad, dtype=np.int64)
        for row, ids in zip(batch, values, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(batch)

    def augment(
        self, batch: Int[Tensor, "B T"], rng: torch.Generator, *, token_dropout: float = 0.0
    ) -> Int[Tensor, "B S"]:
        """Return the texts with tokens removed at random.

        Args:
            batch: Ids as `collate` returns them.
            rng: Random generator.
            token_dropout: Probability of removing a token. Start and end stay, and at least one
                other token of a text.
        """
        if token_dropout <= 0:
            return batch
        inner = (batch != self.pad) & (batch != self.end)
        inner &= batch != (self.end if self.start is None else self.start)
        removed = inner & (torch.rand(batch.shape, generator=rng) < token_dropout)
        removed &= ((inner & ~removed).sum(1) > 0)[:, None]  # a text never loses all tokens
        remaining_first = removed.to(torch.int8).argsort(dim=1, stable=True)
        compacted = batch.masked_fill(removed, self.pad).gather(1, remaining_first)
        return compacted[:, : int((~removed & (batch != self.pad)).sum(1).max())]

    def fake(self, n: int, rng: torch.Generator) -> Int[Tensor, "n T"]:
        """Return n random texts of 3 to `length` tokens, for tests and dry runs."""
        sizes = torch.randint(3, self.length + 1, (n,), generator=rng)
        texts = torch.randint(
            len(SPECIAL_TOKENS), self.vocab_size, (n, int(sizes.max())), generator=rng
        )
        position = torch.arange(texts.shape[1])
        if self.start is not None:
            texts[:, 0] = self.start
        texts[position == sizes[:, None] - 1] = self.end
        return texts.masked_fill(position >= sizes[:, None], self.pad)

    def decode(self, ids: Int[Tensor, "T"]) -> str:
        """Return the text of token ids, without start, end and padding.

        Raises:
            ValueError: If the column has no tokenizer yet.
        """
        special = (self.pad, self.start, self.end)
        inner = [i for i in ids.tolist() if i not in special]
        with tokenizer_errors():
            return self._fitted_tokenizer().decode(inner).strip()

    def _fitted_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("the text column has no tokenizer yet; fit it on training texts first")
        return self.tokenizer

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values, without the tokenizer."""
        return settings_to_dict(self, exclude=("tokenizer",))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Text:
        """Return settings from plain JSON values."""
        return cls(**validate_settings(cls, data))


def _iter_texts(values: Iterable[str | Sequence[str] | None]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif value is not None:
            yield from value


class TextEmbedding(nn.Module):
    """Token ids → Tokens: token embeddings plus learned positions, as in CLIP and GPT-2.

    A text extends to its first end token, or to its last id that is not padding; the rest is not
    valid. The last token represents the text.

    Args:
        dim: Width of the tokens.
        text: Settings of the column.
        causal: Let a token attend to earlier tokens only.
    """

    def __init__(self, dim: int, text: Text, *, causal: bool = True):
        super().__init__()
        self.token_embedding = nn.Embedding(text.vocab_size, dim)
        self.position_embedding = nn.Parameter(torch.empty(text.length, dim))
        self.end = text.end
        self.pad = text.pad
        self.causal = causal
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def pool_index(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """Return the index of the last token of each text."""
        return last_token_index(ids, self.end, self.pad)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return one token per id."""
        ids, valid = trim_padding(ids, self.pool_index(ids))
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL if self.causal else None, valid)

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Return tokens for ids at these positions of their texts, for step-by-step decoding."""
        x = self.token_embedding(ids) + self.position_embedding[positions]
        return Tokens(x, _time_positions(positions), CAUSAL)

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Return the ids unchanged: texts are collated as token ids."""
        return ids


class BagEmbedding(nn.Module):
    """Token ids → Tokens: token embeddings without positions; their mean represents the text.

    Args:
        dim: Width of the tokens.
        text: Settings of the column.
        dropout: Dropout probability.
    """

    def __init__(self, dim: int, text: Text, dropout: float = 0.0):
        super().__init__()
        self.token_embedding = nn.Embedding(text.vocab_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.end = text.end
        self.pad = text.pad
        nn.init.normal_(self.token_embedding.weight, std=dim**-0.5)

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        """Return None: the mean of all tokens represents the text."""

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return one token per id."""
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        x = self.dropout(self.token_embedding(ids))
        return Tokens(x, sequence_positions(x), valid=valid)


class PaddedTokenEmbedding(nn.Module):
    """Token ids → Tokens of full length: padding has learned tokens, one for each position.

    What follows the text in a decoder thus always starts at the same position (DALL-E, Ramesh et
    al. 2021).

    Args:
        dim: Width of the tokens.
        text: Settings of the column.
    """

    def __init__(self, dim: int, text: Text):
        super().__init__()
        self.vocab_size = text.vocab_size + text.length
        self.length = text.length
        self.token_embedding = nn.Embedding(self.vocab_size, dim)
        self.position_embedding = nn.Parameter(torch.empty(text.length, dim))
        self.end = text.end
        self.pad = text.pad
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B L"]:
        """Return the ids padded to the full length with the padding id of each position."""
        position = torch.arange(self.length, device=ids.device)
        padding = (self.vocab_size - self.length + position).expand(ids.shape[0], -1)
        padded = nn.functional.pad(ids, (0, self.length - ids.shape[1]))
        last = last_token_index(ids, self.end, self.pad)
        return torch.where(position <= last[:, None], padded, padding)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return one token per id."""
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL)

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Return tokens for ids at these positions of their texts, for step-by-step decoding."""
        x = self.token_embedding(ids) + self.position_embedding[positions]
        return Tokens(x, _time_positions(positions), CAUSAL)


def last_token_index(ids: Int[Tensor, "B T"], end: int, pad: int) -> Int[Tensor, "B"]:
    """Return where each text ends: at its first `end`, or at its last id that is not `pad`."""
    is_end = ids == end
    position = torch.arange(ids.shape[1], device=ids.device)
    last_unpadded = ((ids != pad) * position).amax(1)
    return torch.where(is_end.any(1), is_end.int().argmax(1), last_unpadded)


def trim_padding(
    ids: Int[Tensor, "B T"], last_index: Int[Tensor, "B"]
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """Cut a batch of texts to the longest of them.

    Args:
        ids: Padded ids.
        last_index: Index of the last token of each text.

    Returns:
        The ids, and True for those that belong to their text. Off the CPU, and in compiled code,
        the ids keep their length.
    """
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        ids = ids[:, : int(last_index.max()) + 1]
    return ids, torch.arange(ids.shape[1], device=ids.device) <= last_index[:, None]


def _time_positions(positions: Int[Tensor, "B T"]) -> Float[Tensor, "B T 3"]:
    """Return positions along time; row and column are 0."""
    time = positions.float()
    return torch.stack([time, torch.zeros_like(time), torch.zeros_like(time)], -1)


@contextmanager
def tokenizer_errors(source: str = "the tokenizer") -> Iterator[None]:
    """Turn a panic of the tokenizers library, which is no Exception, into an error.

    Args:
        source: what messages call the tokenizer.

    Raises:
        SensoriumError: the library failed, such as on a pattern that takes too long.
    """
    try:
        yield
    except BaseException as e:
        if type(e).__name__ != "PanicException":
            raise
        raise SensoriumError(
            f"{source} failed: {str(e)[:200]}. Its file is damaged, or one of its patterns takes "
            "too long on a text: use the tokenizer of its authors."
        ) from None
