"""The few shapes a multimodal model takes. No family has a name in here.

    B batch   T tokens   D width of a tower   E width of the shared space   V vocabulary
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.align import TokenAndGlobalProjection
from sensorium.attention import KVCache
from sensorium.tokens import CAUSAL, Batch, ColumnKey, Tokens, take_token, column_names, join, valid_mask, order_tensor
from sensorium.transformer import Transformer


@runtime_checkable
class InputEmbedding(Protocol):
    """Raw values → Tokens."""

    def __call__(self, raw: Tensor, /) -> Tokens: ...

    def pool_index(self, raw: Tensor, /) -> Int[Tensor, "B"] | None:
        """The place of the token that speaks for the whole, for each sequence; None: the mean of all speaks."""
        ...


class Encoder(nn.Module):
    """embed → trunk: raw values in, tokens out. `pool` makes one token of all, if none speaks for the whole.

    The trunk is a Transformer, or whatever else takes Tokens (and `only`) as it does.
    """

    def __init__(self, embed: InputEmbedding, trunk: nn.Module | None = None, pool: nn.Module | None = None):
        super().__init__()
        self.embed, self.trunk, self.pool = embed, trunk, pool

    def forward(self, raw: Tensor) -> Tokens:
        t = self.embed(raw)
        return t if self.trunk is None else self.trunk(t)

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """One vector for each raw value; where a token speaks for the whole, only it passes the last block."""
        at = self.embed.pool_index(raw)
        if at is None:
            return self._pool_tokens(self(raw))
        t = self.embed(raw)
        return (take_token(t, at) if self.trunk is None else self.trunk(t, only=at)).x[:, 0]

    def pooled_and_tokens(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        """The vector of the whole, and all tokens."""
        at, t = self.embed.pool_index(raw), self(raw)
        return (self._pool_tokens(t) if at is None else take_token(t, at).x[:, 0]), t

    def _pool_tokens(self, t: Tokens) -> Float[Tensor, "B D"]:
        return mean_pool(t) if self.pool is None else self.pool(t).x[:, 0]


def mean_pool(t: Tokens) -> Float[Tensor, "B D"]:
    """Mean over real tokens; zero where there are none."""
    real = valid_mask(t)[..., None].to(t.x.dtype)
    return (t.x * real).sum(1) / real.sum(1).clamp(min=1)


@dataclass(frozen=True)
class TowerOutput:
    """What a tower says in the shared space, in vectors of length one."""

    vector: Float[Tensor, "B E"]
    tokens: Tokens | None = None


class Tower(nn.Module):
    """An encoder that ends in the shared space."""

    def __init__(self, encoder: Encoder, projection: nn.Module, embed_dim: int):
        super().__init__()
        self.encoder, self.projection, self.embed_dim = encoder, projection, embed_dim

    def forward(self, raw: Tensor) -> Float[Tensor, "B E"]:
        return l2_normalize(self.projection(self.encoder.pooled(raw)))

    def encode(self, raw: Tensor) -> TowerOutput:
        """The vector, and the tokens too where the alignment is multi-scale."""
        if not isinstance(self.projection, TokenAndGlobalProjection):
            return TowerOutput(self(raw))
        whole, tokens = self.encoder.pooled_and_tokens(raw)
        return TowerOutput(l2_normalize(self.projection(whole)), replace(tokens, x=l2_normalize(self.projection.token_projection(tokens.x))))


def module_name(key: ColumnKey) -> str:
    """A column's name as that of a module: the same, but for what torch or another key would take it for.

    Other keys have other names. A dot, a comma and "%" are written as in a URL; "%" comes before a name that modules
    have themselves.
    """
    name = ",".join(part.replace("%", "%25").replace(".", "%2E").replace(",", "%2C") for part in column_names(key))
    return f"%{name}" if not name or name in TAKEN else name


TAKEN = frozenset([*dir(nn.ModuleDict()), "log_scale", "bias"])


class Towers(nn.ModuleDict):
    """Several towers that meet in one space, by the column that each reads, with the temperature their similarities are
    read at.

    With `biased`, also an offset that a sigmoid loss needs; it is learned on top of the one that fits a batch's size.
    """

    def __init__(self, towers: Mapping[ColumnKey, Tower], *, temperature: float = 0.07, use_logit_bias: bool = False):
        super().__init__({module_name(key): tower for key, tower in towers.items()})
        self.columns: list[ColumnKey] = list(towers)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if use_logit_bias else None

    def __getitem__(self, key: ColumnKey) -> Tower:
        tower = super().__getitem__(module_name(key))
        assert isinstance(tower, Tower)
        return tower

    def by_column(self) -> dict[ColumnKey, Tower]:
        """Every tower."""
        return {key: self[key] for key in self.columns}

    def renamed(self, names: Mapping[ColumnKey, ColumnKey]) -> "Towers":
        """The same towers, those named as keys, under other names."""
        others = Towers({new: self[old] for old, new in names.items()}, use_logit_bias=self.logit_bias is not None)
        others.logit_scale, others.logit_bias = self.logit_scale, self.logit_bias
        return others

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the scale within [1, 100], after each step (CLIP)."""
        self.logit_scale.clamp_(0, math.log(100))


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

    def __init__(self, parts: dict[str, nn.Module], heads: dict[str, nn.Module], trunk: Transformer,
                 context_encoders: dict[str, nn.Module] | None = None):
        super().__init__()
        if list(parts)[len(parts) - len(heads):] != list(heads):
            raise ValueError(f"the parts with a head must stand last: parts {list(parts)}, heads {list(heads)}")
        self.parts, self.heads, self.trunk = nn.ModuleDict(parts), nn.ModuleDict(heads), trunk
        self.context_encoders = nn.ModuleDict(context_encoders or {})

    def forward(self, inputs: Batch) -> dict[str, Tokens]:
        """What the trunk makes of each part that has a head: `heads[part]` of it are logits for the token after."""
        read = self.embed_inputs(inputs)
        said = self.trunk(concat_parts(read), self.encode_context(inputs))
        starts = dict(zip(read, accumulate((t.x.shape[1] for t in read.values()), initial=0), strict=False))
        return {name: replace(t, x=said.x[:, starts[name]:starts[name] + t.x.shape[1]], order=None)
                for name, t in read.items() if name in self.heads}

    def prefill(self, inputs: Batch, part: str, cache: KVCache) -> Float[Tensor, "B V"]:
        """Read all that is given, up to and including what there is of `part`: logits for its next token."""
        read = self.embed_inputs(inputs.only(self._parts_through(part)))
        at = sum(t.x.shape[1] for t in read.values()) - read[part].x.shape[1] + valid_mask(read[part]).sum(1) - 1
        return self.heads[part](self.trunk(concat_parts(read), self.encode_context(inputs), only=at, cache=cache).x[:, 0])

    def decode_step(self, part: str, ids: Int[Tensor, "B"], positions: Int[Tensor, "B"], cache: KVCache) -> Float[Tensor, "B V"]:
        """Read one more token of `part`, which stands at these places of it: logits for the one after."""
        t = self.output_part(part).embed_at(ids[:, None], positions[:, None])
        return self.heads[part](self.trunk(t, cache=cache).x[:, 0])

    def encode_context(self, inputs: Batch) -> Tokens | None:
        """What stands beside the line, end to end; None where nothing does."""
        there = [encode(inputs[name]) for name, encode in self.context_encoders.items() if name in inputs]
        return join(*there) if there else None

    def output_part(self, part: str) -> TokenEmbedding:
        """A part that has a head."""
        said = self.parts[part]
        assert isinstance(said, TokenEmbedding)
        return said

    def _parts_through(self, part: str) -> list[str]:
        names = list(self.parts)
        return names[:names.index(part) + 1]

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


def l2_normalize(x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Vectors brought to length one, in float32."""
    return nn.functional.normalize(x.float(), dim=-1)


def freeze(module: nn.Module, except_types: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    """Stop learning everywhere, except in parts of the types named in `but`."""
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, except_types):
            part.requires_grad_(True)
    return module
