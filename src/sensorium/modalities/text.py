"""Words: a byte-pair tokenizer learned from the user's own text, and the embedding that turns ids into Tokens.

B batch   T tokens   L full length   D width
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.nn.tokens import CAUSAL, Tokens, sequence_positions

PAD, START, END = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<start>", "<end>"]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair merges learned from `texts`. Lower-cased, NFKC; any byte can be spelt, so no word is ever unknown."""
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
    """Settings of a text column. `length` counts the end token and the start, if there is one; longer texts are cut."""

    kind: ClassVar[str] = "text"
    length: int = 32
    vocab_size: int = 8192
    start: int | None = START
    end: int = END
    pad: int = PAD
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            self.tokenizer.encode_special_tokens = (
                True  # "<end>" in a text is five letters, not its end
            )

    def fit(self, values: Iterable[str | Sequence[str] | None]) -> Text:
        """Train the tokenizer on `values` (several captions a row are fine) unless it is there already."""
        if self.tokenizer is not None:
            return self
        texts = (t for v in values if v is not None for t in ([v] if isinstance(v, str) else v))
        tokenizer = train_tokenizer(texts, self.vocab_size)
        return replace(self, tokenizer=tokenizer, vocab_size=tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text between its start and end token, int32 [n <= length]."""
        if self.tokenizer is None:
            raise ValueError("this text column has no tokenizer yet: fit it on training text first")
        rows = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        before = [] if self.start is None else [self.start]
        room = self.length - len(before) - 1
        return [np.array([*before, *row.ids[:room], self.end], dtype=np.int32) for row in rows]

    def load(self, raw: Any) -> np.ndarray:
        """One text as int32 ids [n <= length]. Raises ValueError for anything but a string."""
        if not isinstance(raw, str):
            raise ValueError(f"expected text, found {type(raw).__name__}")
        return self.encode([raw])[0]

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B T"]:
        """Rows padded with `pad` to the longest of them."""
        longest = max((len(v) for v in values), default=1)
        batch = np.full((len(values), longest), self.pad, dtype=np.int64)
        for row, ids in zip(batch, values, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(batch)

    def augment(
        self, batch: Int[Tensor, "B T"], rng: torch.Generator, *, token_dropout: float = 0.0
    ) -> Int[Tensor, "B S"]:
        """Leave out each token with probability `drop`, start and end excepted, never all of a text."""
        if token_dropout <= 0:
            return batch
        inner = (batch != self.pad) & (batch != self.end)
        inner &= batch != (self.end if self.start is None else self.start)
        gone = inner & (torch.rand(batch.shape, generator=rng) < token_dropout)
        gone &= ((inner & ~gone).sum(1) > 0)[:, None]  # never every word
        kept_first = gone.to(torch.int8).argsort(dim=1, stable=True)  # closes the gaps, order kept
        closed = batch.masked_fill(gone, self.pad).gather(1, kept_first)
        return closed[:, : int((~gone & (batch != self.pad)).sum(1).max())]

    def fake(self, n: int, rng: torch.Generator) -> Int[Tensor, "n T"]:
        """n made-up texts of 3 to `length` tokens, for tests and dry runs."""
        sizes = torch.randint(3, self.length + 1, (n,), generator=rng)
        texts = torch.randint(
            len(SPECIAL_TOKENS), self.vocab_size, (n, int(sizes.max())), generator=rng
        )
        place = torch.arange(texts.shape[1])
        if self.start is not None:
            texts[:, 0] = self.start
        texts[place == sizes[:, None] - 1] = self.end
        return texts.masked_fill(place >= sizes[:, None], self.pad)

    def decode(self, ids: Int[Tensor, "T"]) -> str:
        """Ids back to words."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(
            [i for i in ids.tolist() if i not in (self.pad, self.start, self.end)]
        ).strip()

    def to_json(self) -> dict[str, Any]:
        """Plain settings; the tokenizer has a file of its own."""
        return settings_to_dict(self, exclude=("tokenizer",))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Text:
        return cls(**validate_settings(cls, data))


class TextEmbedding(nn.Module):
    """Ids → Tokens: a learned vector for each id plus one for each place (learned positions, as CLIP and GPT-2).

    A text is real up to and including its first `end`, or its last id that is not `pad`; what follows is padding. With
    `causal`, a word sees only the past, and the token to read a text from is its last.
    """

    def __init__(self, dim: int, text: Text, *, causal: bool = True):
        super().__init__()
        self.token_embedding, self.position_embedding = (
            nn.Embedding(text.vocab_size, dim),
            nn.Parameter(torch.empty(text.length, dim)),
        )
        self.end, self.pad, self.causal = text.end, text.pad, causal
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def pool_index(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B"]:
        """The place of the last real token of each text."""
        return last_token_index(ids, self.end, self.pad)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        ids, valid = trim_padding(ids, self.pool_index(ids))
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL if self.causal else None, valid)

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Ids that stand at these places of their texts: how a text is gone on with, token by token."""
        x = self.token_embedding(ids) + self.position_embedding[positions]
        return Tokens(x, _time_positions(positions), CAUSAL)

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Texts of a batch as this part reads them: as they are."""
        return ids


class BagEmbedding(nn.Module):
    """Ids → Tokens: a learned vector for each id, wherever it stands. The mean of all speaks for the text."""

    def __init__(self, dim: int, text: Text, dropout: float = 0.0):
        super().__init__()
        self.token_embedding, self.dropout = nn.Embedding(text.vocab_size, dim), nn.Dropout(dropout)
        self.end, self.pad = text.end, text.pad
        nn.init.normal_(self.token_embedding.weight, std=dim**-0.5)

    def pool_index(self, ids: Int[Tensor, "B T"]) -> None:
        return None

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        x = self.dropout(self.token_embedding(ids))
        return Tokens(x, sequence_positions(x), valid=valid)


class PaddedTokenEmbedding(nn.Module):
    """Ids → Tokens of one length: what a text leaves free is filled, at each place with an id of that place's own, so
    that whatever follows always begins at the same place (DALL-E, Ramesh et al. 2021).
    """

    def __init__(self, dim: int, text: Text):
        super().__init__()
        self.vocab_size, self.length = text.vocab_size + text.length, text.length
        self.token_embedding, self.position_embedding = (
            nn.Embedding(self.vocab_size, dim),
            nn.Parameter(torch.empty(text.length, dim)),
        )
        self.end, self.pad = text.end, text.pad
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.01)

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B L"]:
        """Texts of a batch, each filled to the full length."""
        place = torch.arange(self.length, device=ids.device)
        fill = (self.vocab_size - self.length + place).expand(ids.shape[0], -1)
        wide = nn.functional.pad(ids, (0, self.length - ids.shape[1]))
        return torch.where(place <= last_token_index(ids, self.end, self.pad)[:, None], wide, fill)

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]
        return Tokens(x, sequence_positions(x), CAUSAL)

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        return Tokens(
            self.token_embedding(ids) + self.position_embedding[positions],
            _time_positions(positions),
            CAUSAL,
        )


def last_token_index(ids: Int[Tensor, "B T"], end: int, pad: int) -> Int[Tensor, "B"]:
    """Where each text ends: at its first `end`, or else at its last id that is not `pad`."""
    found, place = ids == end, torch.arange(ids.shape[1], device=ids.device)
    return torch.where(found.any(1), found.int().argmax(1), ((ids != pad) * place).amax(1))


def trim_padding(
    ids: Int[Tensor, "B T"], last_index: Int[Tensor, "B"]
) -> tuple[Int[Tensor, "B S"], Bool[Tensor, "B S"]]:
    """(ids as far as the longest text goes, which of them are in their text), of texts that end at `ends`."""
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        ids = ids[:, : int(last_index.max()) + 1]
    return ids, torch.arange(ids.shape[1], device=ids.device) <= last_index[:, None]


def _time_positions(positions: Int[Tensor, "B T"]) -> Float[Tensor, "B T 3"]:
    """Positions along time."""
    time = positions.float()
    return torch.stack([time, torch.zeros_like(time), torch.zeros_like(time)], -1)
