"""Decoders: several inputs as one line of tokens, generated one by one.

B batch   T tokens   D width   V vocabulary
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.attention import KVCache
from sensorium.nn.tokens import CAUSAL, Batch, Tokens, join, order_tensor, valid_mask
from sensorium.nn.transformer import Transformer


@runtime_checkable
class TokenEmbedding(Protocol):
    """A part that can be generated: ids → Tokens, the first of which is a start token."""

    def tokenize(self, raw: Tensor, /) -> Int[Tensor, "B T"]:
        """Raw values of a batch as ids, the start token first."""
        ...

    def __call__(self, ids: Int[Tensor, "B T"], /) -> Tokens: ...

    def embed_at(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "B T"], /) -> Tokens:
        """Ids that stand at these places of their part, each seeing what came before."""
        ...


class Decoder(nn.Module):
    """Parts read one after the other as one line; what comes next in a part is said by the part's head.

    A part with a head is read causally and begins with a start token, so its token i + 1 is said at its token i. Parts
    without one come first, a prefix that everything after sees; those of no order see each other. A part that a batch
    does not have, or that is not present in a row, is not there: nobody sees it. `beside`: encoders of parts that
    are not in line; blocks that look at a context look at what they make of them.
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
                f"the parts with a head must stand last: parts {list(parts)}, heads {list(heads)}"
            )
        self.parts, self.heads, self.trunk = nn.ModuleDict(parts), nn.ModuleDict(heads), trunk
        self.context_encoders = nn.ModuleDict(context_encoders or {})

    def forward(self, inputs: Batch) -> dict[str, Tokens]:
        """What the trunk makes of each part that has a head: `heads[part]` of it are logits for the token after."""
        read = self.embed_inputs(inputs)
        said = self.trunk(concat_parts(read), self.encode_context(inputs))
        starts = dict(
            zip(read, accumulate((t.x.shape[1] for t in read.values()), initial=0), strict=False)
        )
        return {
            name: replace(t, x=said.x[:, starts[name] : starts[name] + t.x.shape[1]], order=None)
            for name, t in read.items()
            if name in self.heads
        }

    def prefill(self, inputs: Batch, part: str, cache: KVCache) -> Float[Tensor, "B V"]:
        """Read all that is given, up to and including what there is of `part`: logits for its next token."""
        read = self.embed_inputs(inputs.select(self._parts_through(part)))
        at = (
            sum(t.x.shape[1] for t in read.values())
            - read[part].x.shape[1]
            + valid_mask(read[part]).sum(1)
            - 1
        )
        return self.heads[part](
            self.trunk(
                concat_parts(read), self.encode_context(inputs), query_positions=at, cache=cache
            ).x[:, 0]
        )

    def decode_step(
        self, part: str, ids: Int[Tensor, "B"], positions: Int[Tensor, "B"], cache: KVCache
    ) -> Float[Tensor, "B V"]:
        """Read one more token of `part`, which stands at these places of it: logits for the one after."""
        t = self.output_part(part).embed_at(ids[:, None], positions[:, None])
        return self.heads[part](self.trunk(t, cache=cache).x[:, 0])

    def encode_context(self, inputs: Batch) -> Tokens | None:
        """What stands beside the line, end to end; None where nothing does."""
        there = [
            encode(inputs[name]) for name, encode in self.context_encoders.items() if name in inputs
        ]
        return join(*there) if there else None

    def output_part(self, part: str) -> TokenEmbedding:
        """A part that has a head."""
        said = self.parts[part]
        assert isinstance(said, TokenEmbedding)
        return said

    def _parts_through(self, part: str) -> list[str]:
        names = list(self.parts)
        return names[: names.index(part) + 1]

    def embed_inputs(self, inputs: Batch) -> dict[str, Tokens]:
        """Tokens of the parts that are there."""
        read = {name: embed(inputs[name]) for name, embed in self.parts.items() if name in inputs}
        for name, t in read.items():
            if name in inputs.present:
                t = replace(t, valid=valid_mask(t) & inputs.present[name][:, None])
            read[name] = t
        return read


def concat_parts(parts: Mapping[str, Tokens]) -> Tokens:
    """Parts end to end: those of no order first come first seen, the others each after all that stands before it."""
    several, start = [], 0
    for t in parts.values():
        several.append(t if t.order is None else replace(t, order=order_tensor(t) + start))
        start += 0 if t.order is None else t.x.shape[1]
    padded = [t.valid is not None for t in parts.values()]
    joined = join(*several)
    plain = all(t.order is CAUSAL for t in parts.values()) and not any(padded[:-1])
    return replace(joined, order=CAUSAL) if plain else joined
