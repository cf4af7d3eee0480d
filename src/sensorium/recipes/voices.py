"""What says words for a family that speaks: a decoder that learns from nothing, or a published one, as it is.

    B batch   T tokens
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.kernels import Linear
from sensorium.modalities.text import Text, Words, last_place, real
from sensorium.models import Decoder
from sensorium.published.chat import Beginning
from sensorium.published.decoder import PAD, Ids
from sensorium.published.start import Start
from sensorium.published.tokens import around
from sensorium.recipes.eyes import LOOKS
from sensorium.tokens import Tokens
from sensorium.transformer import transformer

HEAD = 64                                   # width of one attention head


@dataclass(frozen=True)
class Own:
    """A decoder that learns to speak from what it is shown."""

    dim: int
    depth: int
    dropout: float

    def asked(self, text: Text) -> nn.Module:
        """What reads words before others are said."""
        return Words(self.dim, text, causal=False)

    def decoder(self, before: dict[str, nn.Module], text: Text) -> Decoder:
        """The whole, whose parts `before` are read before `text` is said."""
        head = Linear(self.dim, text.vocab_size, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        trunk = transformer(self.dim, self.depth, max(1, self.dim // HEAD), dropout=self.dropout)
        return Decoder({**before, "text": Words(self.dim, text)}, {"text": head}, trunk)


class Spelt(nn.Module):
    """Texts of a column → Tokens of a published decoder's ids, `ahead` of the words that it says."""

    def __init__(self, words: Ids, text: Text, ahead: int = 0):
        super().__init__()
        self.words, self.ahead, self.end, self.pad = words, ahead, text.end, text.pad

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        ids, valid = real(ids, last_place(ids, self.end, self.pad))
        t = self.words(ids.masked_fill(~valid, PAD))
        return replace(t, pos=t.pos - self.ahead) if self.ahead else t

    def spelt(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return ids

    def at(self, ids: Int[Tensor, "B T"], places: Int[Tensor, "B T"]) -> Tokens:
        return self.words.at(ids, places)


@dataclass(frozen=True)
class Voice:
    """A published decoder of text that learns nothing: what it is to speak of must reach it as tokens of its own width
    (Frozen, Tsimpoukelli et al. 2021; ClipCap, Mokady et al. 2021)."""

    start: Start
    model: Decoder
    words: Ids

    @classmethod
    def of(cls, source: str | Mapping[str, Any]) -> "Voice":
        """A folder, file or hub id; or what `told` said of one. Raises SensoriumError where it does not write."""
        start = Start.of(source)
        model = start.module()
        words = model.parts["text"] if isinstance(model, Decoder) and "text" in model.parts else None
        if not isinstance(model, Decoder) or not isinstance(words, Ids) or len(model.beside):
            raise SensoriumError(f"voice={start.source!r} is a {start.family.name}, which does not go on from words: "
                                 "name a published decoder of text (SmolLM2, Llama, GPT-2, ...)")
        return cls(start, model.requires_grad_(False), words)

    @property
    def dim(self) -> int:
        return self.words.ids.embedding_dim

    @property
    def told(self) -> dict[str, Any]:
        return self.start.told()

    def text(self, column: Text) -> Text:
        """The settings of a text column in this voice's ids; as they are where a run has them already.

        Words begin with the id that its tokenizer puts before a text, or else with a new line, which is never said.
        """
        if self.start.opened is None:
            return column
        found = self.start.senses().get("text")
        if not isinstance(found, Beginning) or not found.ends:
            raise SensoriumError(f"voice={self.start.source!r} comes without a tokenizer, or without an id that ends a "
                                 "text: put its tokenizer's files beside the weights")
        before = around(found.tokenizer)[0]
        first = found.tokenizer.encode("\n", add_special_tokens=False).ids[-1] if before is None else before
        return replace(column, tokenizer=found.tokenizer, vocab_size=self.words.ids.num_embeddings, start=first,
                       end=found.ends[0], pad=first)

    def asked(self, text: Text) -> nn.Module:
        """What reads words before others are said: they stand before what is seen."""
        return Spelt(self.words, text, LOOKS + text.length)

    def decoder(self, before: dict[str, nn.Module], text: Text) -> Decoder:
        """The whole, whose parts `before` are read before `text` is said."""
        return Decoder({**before, "text": Spelt(self.words, text)}, {"text": self.model.heads["text"]},
                       self.model.trunk)
