"""Autoregressive decoders over several inputs, concatenated into one token sequence.

B batch   T tokens   D width   V vocabulary
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.kv_cache import KVCache
from sensorium.nn.tokens import CAUSAL, Batch, Tokens, join, order_tensor, valid_mask
from sensorium.nn.transformer import Transformer


@runtime_checkable
class OutputPart(Protocol):
    """The embedding of a part that the decoder generates.

    Each of its sequences begins with a start token.
    """

    def tokenize(self, raw: Tensor, /) -> Int[Tensor, "B T"]:
        """Return the token ids of a batch of values, the start token first."""
        ...

    def __call__(self, ids: Int[Tensor, "B T"], /) -> Tokens:
        """Embed token ids."""
        ...

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], /) -> Tokens:
        """Embed token ids at the given positions of the part, causally ordered."""
        ...


class Decoder(nn.Module):
    """A transformer over several parts in sequence; heads predict the next token of their part.

    Parts without a head come first and form a prefix that all later tokens attend to; within a
    part of unordered tokens, all attend to each other. A part with a head is causal and begins
    with a start token: its output i predicts its token i + 1. A part that is absent from a batch
    or missing in a row is masked.

    Args:
        parts: The input embedding of each part, in sequence order.
        heads: The output layer (D to V) of each generated part; these must be the last parts.
        trunk: The transformer.
        context_encoders: Encoders of inputs outside the sequence, to which the trunk attends by
            cross-attention.

    Raises:
        ValueError: If the parts with a head are not the last ones.
    """

    def __init__(
        self,
        parts: dict[str, nn.Module],
        heads: dict[str, nn.Module],
        trunk: Transformer,
        context_encoders: dict[str, nn.Module] | None = None,
    ):
        super().__init__()
        if list(parts)[len(parts) - len(heads) :] != list(heads):
            raise ValueError(
                f"Parts with a head must come last, but the parts are {list(parts)} and the heads "
                f"{list(heads)}."
            )
        self.parts = nn.ModuleDict(parts)
        self.heads = nn.ModuleDict(heads)
        self.trunk = trunk
        self.context_encoders = nn.ModuleDict(context_encoders or {})

    def forward(self, inputs: Batch) -> dict[str, Tokens]:
        """Return the trunk's output for each part with a head.

        `heads[part]` maps token i of it to the logits of token i + 1.
        """
        embedded = self.embed_inputs(inputs)
        output = self.trunk(concat_parts(embedded), self.encode_context(inputs))
        result: dict[str, Tokens] = {}
        start = 0
        for name, t in embedded.items():
            stop = start + t.x.shape[1]
            if name in self.heads:
                result[name] = replace(t, x=output.x[:, start:stop], order=None)
            start = stop
        return result

    def prefill(self, inputs: Batch, part: str, cache: KVCache) -> Float[Tensor, "B V"]:
        """Fill the cache with all inputs up to `part`; return the logits of its next token."""
        embedded = self.embed_inputs(inputs.select(self._parts_through(part)))
        length = sum(t.x.shape[1] for t in embedded.values())
        output_part = embedded[part]
        last = length - output_part.x.shape[1] + valid_mask(output_part).sum(1) - 1
        output = self.trunk(
            concat_parts(embedded), self.encode_context(inputs), query_positions=last, cache=cache
        )
        return self.heads[part](output.x[:, 0])

    def decode_step(
        self, part: str, ids: Int[Tensor, "B"], positions: Int[Tensor, "B"], cache: KVCache
    ) -> Float[Tensor, "B V"]:
        """Append one token of `part` to the cache; return the logits of the token after it.

        Args:
            part: The part that is being generated.
            ids: The new token of each row.
            positions: The position of each new token within its part.
            cache: Keys and values of everything before it; extended in place.
        """
        t = self.output_part(part).embed_at(ids[:, None], positions[:, None])
        return self.heads[part](self.trunk(t, cache=cache).x[:, 0])

    def encode_context(self, inputs: Batch) -> Tokens | None:
        """Return the concatenated tokens of all context encoders; None if there are none."""
        encoded: list[Tokens] = [
            encode(inputs[name]) for name, encode in self.context_encoders.items() if name in inputs
        ]
        return join(*encoded) if encoded else None

    def output_part(self, part: str) -> OutputPart:
        """Return the embedding of a part that has a head.

        Raises:
            TypeError: If the part cannot be generated.
        """
        embedding = self.parts[part]
        if not isinstance(embedding, OutputPart):
            raise TypeError(f"Part {part!r} cannot be generated: it has no tokenize or embed_at.")
        return embedding

    def embed_inputs(self, inputs: Batch) -> dict[str, Tokens]:
        """Embed all parts that the batch has, masking rows in which they are missing."""
        embedded: dict[str, Tokens] = {
            name: embed(inputs[name]) for name, embed in self.parts.items() if name in inputs
        }
        for name, t in embedded.items():
            if name in inputs.present:
                valid = valid_mask(t) & inputs.present[name][:, None]
                embedded[name] = replace(t, valid=valid)
        return embedded

    def _parts_through(self, part: str) -> list[str]:
        """Return all part names up to and including `part`."""
        names = list(self.parts)
        return names[: names.index(part) + 1]


def concat_parts(parts: Mapping[str, Tokens]) -> Tokens:
    """Concatenate parts: unordered ones stay visible to all, ordered ones follow what precedes."""
    ordered: list[Tokens] = []
    start = 0
    for t in parts.values():
        if t.order is None:
            ordered.append(t)
        else:
            ordered.append(replace(t, order=order_tensor(t) + start))
            start += t.x.shape[1]
    joined = join(*ordered)
    all_causal = all(t.order is CAUSAL for t in parts.values())
    has_padding = [t.valid is not None for t in parts.values()]
    if all_causal and not any(has_padding[:-1]):  # the mask is triangular: no tensor is needed
        return replace(joined, order=CAUSAL)
    return joined
