"""What says words for a family that speaks: a decoder that learns from nothing, or a published one, as it is.

B batch   T tokens
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.modalities.text import Text, TextEmbedding, last_token_index, trim_padding
from sensorium.models.decoder import Decoder
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import Tokens
from sensorium.nn.transformer import build_transformer
from sensorium.pretrained.chat import TextPrompt
from sensorium.pretrained.decoder import PAD_ID, CausalTokenEmbedding
from sensorium.pretrained.source import PretrainedSource
from sensorium.pretrained.tokenizers import find_bos_eos_ids
from sensorium.recipes.vision_encoders import NUM_PREFIX_TOKENS

HEAD_DIM = 64  # width of one attention head


@dataclass(frozen=True)
class ScratchDecoder:
    """A decoder that learns to speak from what it is shown."""

    dim: int
    depth: int
    dropout: float

    def build_prompt_embedding(self, text: Text) -> nn.Module:
        """What reads words before others are said."""
        return TextEmbedding(self.dim, text, causal=False)

    def build_decoder(self, prefix_parts: dict[str, nn.Module], text: Text) -> Decoder:
        """The whole, whose parts `before` are read before `text` is said."""
        head = Linear(self.dim, text.vocab_size, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        trunk = build_transformer(
            self.dim, self.depth, max(1, self.dim // HEAD_DIM), dropout=self.dropout
        )
        return Decoder(
            {**prefix_parts, "text": TextEmbedding(self.dim, text)}, {"text": head}, trunk
        )


class PretrainedTextEmbedding(nn.Module):
    """Texts of a column → Tokens of a published decoder's ids, `ahead` of the words that it says."""

    def __init__(self, token_embedding: CausalTokenEmbedding, text: Text, position_offset: int = 0):
        super().__init__()
        self.token_embedding, self.position_offset, self.end, self.pad = (
            token_embedding,
            position_offset,
            text.end,
            text.pad,
        )

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        t = self.token_embedding(ids.masked_fill(~valid, PAD_ID))
        return replace(t, pos=t.pos - self.position_offset) if self.position_offset else t

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        return ids

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        return self.token_embedding.embed_at(ids, positions)


@dataclass(frozen=True)
class PretrainedDecoder:
    """A published decoder of text that learns nothing: what it is to speak of must reach it as tokens of its own width
    (Frozen, Tsimpoukelli et al. 2021; ClipCap, Mokady et al. 2021)."""

    source: PretrainedSource
    model: Decoder
    token_embedding: CausalTokenEmbedding

    @classmethod
    def from_pretrained(cls, source: str | Mapping[str, Any]) -> "PretrainedDecoder":
        """A folder, file or hub id; or what `told` said of one. Raises SensoriumError where it does not write."""
        start = PretrainedSource.from_source(source)
        model = start.build_module()
        words = (
            model.parts["text"] if isinstance(model, Decoder) and "text" in model.parts else None
        )
        if (
            not isinstance(model, Decoder)
            or not isinstance(words, CausalTokenEmbedding)
            or len(model.context_encoders)
        ):
            raise SensoriumError(
                f"voice={start.source!r} is a {start.family.name}, which does not go on from words: "
                "name a published decoder of text (SmolLM2, Llama, GPT-2, ...)"
            )
        return cls(start, model.requires_grad_(False), words)

    @property
    def dim(self) -> int:
        return self.token_embedding.token_embedding.embedding_dim

    @property
    def metadata(self) -> dict[str, Any]:
        return self.source.to_config()

    def text_settings(self, column: Text) -> Text:
        """The settings of a text column in this voice's ids; as they are where a run has them already.

        Words begin with the id that its tokenizer puts before a text, or else with a new line, which is never said.
        """
        if self.source.weight_files is None:
            return column
        found = self.source.preprocessing().get("text")
        if not isinstance(found, TextPrompt) or not found.stop_ids:
            raise SensoriumError(
                f"voice={self.source.source!r} comes without a tokenizer, or without an id that ends a "
                "text: put its tokenizer's files beside the weights"
            )
        before = find_bos_eos_ids(found.tokenizer)[0]
        first = (
            found.tokenizer.encode("\n", add_special_tokens=False).ids[-1]
            if before is None
            else before
        )
        return replace(
            column,
            tokenizer=found.tokenizer,
            vocab_size=self.token_embedding.token_embedding.num_embeddings,
            start=first,
            end=found.stop_ids[0],
            pad=first,
        )

    def build_prompt_embedding(self, text: Text) -> nn.Module:
        """What reads words before others are said: they stand before what is seen."""
        return PretrainedTextEmbedding(self.token_embedding, text, NUM_PREFIX_TOKENS + text.length)

    def build_decoder(self, prefix_parts: dict[str, nn.Module], text: Text) -> Decoder:
        """The whole, whose parts `before` are read before `text` is said."""
        return Decoder(
            {**prefix_parts, "text": PretrainedTextEmbedding(self.token_embedding, text)},
            {"text": self.model.heads["text"]},
            self.model.trunk,
        )
