"""Decoders of text for the captioner: trained from scratch, or pretrained and frozen.

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
from sensorium.nn.transformer import build_transformer, num_heads
from sensorium.pretrained.chat import TextPrompt
from sensorium.pretrained.decoder import PAD_ID, CausalTokenEmbedding
from sensorium.pretrained.source import PretrainedSource
from sensorium.pretrained.tokenizers import find_bos_eos_ids
from sensorium.recipes.vision_encoders import NUM_PREFIX_TOKENS


@dataclass(frozen=True)
class ScratchDecoder:
    """A decoder trained from scratch.

    Attributes:
        dim: width of the transformer.
        layers: transformer layers.
        dropout: dropout rate.
    """

    dim: int
    layers: int
    dropout: float

    def build_prompt_embedding(self, text: Text) -> nn.Module:
        """Return the embedding of a text that the decoder reads but does not generate."""
        return TextEmbedding(self.dim, text, causal=False)

    def build_decoder(self, prefix_parts: dict[str, nn.Module], text: Text) -> Decoder:
        """Return a decoder that reads the prefix parts and then generates the text."""
        head = Linear(self.dim, text.vocab_size, bias=False)
        nn.init.normal_(head.weight, std=0.02)
        trunk = build_transformer(self.dim, self.layers, num_heads(self.dim), dropout=self.dropout)
        parts = {**prefix_parts, "text": TextEmbedding(self.dim, text)}
        return Decoder(parts, {"text": head}, trunk)


class PretrainedTextEmbedding(nn.Module):
    """The token embedding of a pretrained decoder, for the texts of a column.

    Args:
        token_embedding: embeds token ids and assigns positions.
        text: settings of the column.
        position_offset: subtracted from the positions, for a text in front of the generated one.
    """

    def __init__(self, token_embedding: CausalTokenEmbedding, text: Text, position_offset: int = 0):
        super().__init__()
        self.token_embedding = token_embedding
        self.position_offset = position_offset
        self.end = text.end
        self.pad = text.pad

    def forward(self, ids: Int[Tensor, "B T"]) -> Tokens:
        """Return the embedded tokens, without trailing padding."""
        ids, valid = trim_padding(ids, last_token_index(ids, self.end, self.pad))
        t = self.token_embedding(ids.masked_fill(~valid, PAD_ID))
        return replace(t, pos=t.pos - self.position_offset) if self.position_offset else t

    def tokenize(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Return the ids themselves: the column is tokenized already."""
        return ids

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]) -> Tokens:
        """Return the embeddings of ids at these positions of the text."""
        return self.token_embedding.embed_at(ids, positions)


@dataclass(frozen=True)
class PretrainedDecoder:
    """A frozen pretrained language model that is prompted by trained prefix tokens.

    After Frozen (Tsimpoukelli et al. 2021) and ClipCap (Mokady et al. 2021).

    Attributes:
        source: the pretrained weights.
        model: the frozen language model.
        token_embedding: its token embedding.
    """

    source: PretrainedSource
    model: Decoder
    token_embedding: CausalTokenEmbedding

    @classmethod
    def from_pretrained(cls, source: str | Mapping[str, Any]) -> "PretrainedDecoder":
        """Load a pretrained decoder.

        Args:
            source: a folder, a file or a Hugging Face id; or the stored `metadata` of a run.

        Raises:
            SensoriumError: where the weights are not those of a causal language model.
        """
        pretrained = PretrainedSource.from_source(source)
        model = pretrained.build_module()
        embedding = None
        if isinstance(model, Decoder) and "text" in model.parts and not model.context_encoders:
            embedding = model.parts["text"]
        if not isinstance(model, Decoder) or not isinstance(embedding, CausalTokenEmbedding):
            raise SensoriumError(
                f"--language-model {pretrained.source!r} is a {pretrained.family.name} model, "
                "which is not a causal language model. Name one that is, such as SmolLM2, Llama or "
                "GPT-2."
            )
        return cls(pretrained, model.requires_grad_(False), embedding)

    @property
    def dim(self) -> int:
        """The width of the language model."""
        return self.token_embedding.token_embedding.embedding_dim

    @property
    def metadata(self) -> dict[str, Any]:
        """The source as a run stores it."""
        return self.source.to_config()

    def text_settings(self, column: Text) -> Text:
        """Return the settings of a text column with the tokenizer of the language model.

        A text starts with the tokenizer's BOS token, or with a newline where it has none.

        Raises:
            SensoriumError: where the weights come without a tokenizer or without an EOS token.
        """
        if self.source.weight_files is None:  # a stored run: the column has these settings already
            return column
        prompt = self.source.preprocessing().get("text")
        if not isinstance(prompt, TextPrompt) or not prompt.stop_ids:
            raise SensoriumError(
                f"--language-model {self.source.source!r} has no tokenizer, or no token that ends "
                "a text. Put the files of its tokenizer next to the weights."
            )
        start = find_bos_eos_ids(prompt.tokenizer)[0]
        if start is None:
            start = prompt.tokenizer.encode("\n", add_special_tokens=False).ids[-1]
        return replace(
            column,
            tokenizer=prompt.tokenizer,
            vocab_size=self.token_embedding.token_embedding.num_embeddings,
            start=start,
            end=prompt.stop_ids[0],
            pad=start,
        )

    def build_prompt_embedding(self, text: Text) -> nn.Module:
        """Return the embedding of a text in front of the image prefix and the generated text."""
        return PretrainedTextEmbedding(self.token_embedding, text, NUM_PREFIX_TOKENS + text.length)

    def build_decoder(self, prefix_parts: dict[str, nn.Module], text: Text) -> Decoder:
        """Return a decoder that reads the prefix parts and then generates the text."""
        parts = {**prefix_parts, "text": PretrainedTextEmbedding(self.token_embedding, text)}
        return Decoder(parts, {"text": self.model.heads["text"]}, self.model.trunk)
