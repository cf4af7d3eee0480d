"""Say what comes next, token by token; below the loss its sampler.

    B batch   T tokens   V vocabulary   N real targets of a batch   K beams
"""
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.attention import Cache
from sensorium.data.cache import beside
from sensorium.data.loader import generator
from sensorium.errors import SensoriumError
from sensorium.models import Decoder
from sensorium.tokens import Batch, ColumnKey, Tokens, present

NOTHING = -100                              # a target that does not count
Length = int | Int[Tensor, "B"]             # for all rows, or for each (where rows can end)


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of every real token after the first of a part, given all before it.

    columns: part of the Decoder → column of the batch. shares: part with a head → its share of the loss, as in
    {"text": 1, "image": 7} (DALL-E, Ramesh et al. 2021). drop: part → how often a row does without it while training,
    so that a sampler can be guided (classifier-free guidance, Ho & Salimans 2022); a part dropped is a part missing.
    """

    columns: Mapping[str, ColumnKey]
    shares: Mapping[str, float]
    drop: Mapping[str, float] = field(default_factory=dict)
    smoothing: float = 0.0

    def __call__(self, model: Decoder, batch: Batch) -> dict[str, Tensor]:
        given = self.given(batch)
        given = given.changed({part: model.said(part).spelt(given[part]) for part in self.shares})
        if model.training:
            given = given.changed(present={part: given.there(part) & (torch.rand(len(given)) >= often)
                                           for part, often in self.drop.items() if often})
        said = model(given)
        losses = {part: self._of(model, part, said[part], given[part]) for part in self.shares}
        whole = sum(self.shares.values())
        return {"model": torch.stack([losses[part] * share / whole for part, share in self.shares.items()]).sum()}

    def given(self, batch: Batch) -> Batch:
        """A batch of columns as parts; of a picture, what a frozen eye said of it before, where that is at hand."""
        read = {part: key for part, column in self.columns.items() if column in batch
                for key in [beside(column) if beside(column) in batch else column]}
        return replace(batch, columns={part: batch[key] for part, key in read.items()},
                       present={part: batch.present[key] for part, key in read.items() if key in batch.present})

    def _of(self, model: Decoder, part: str, said: Tokens, ids: Int[Tensor, "B T"]) -> Float[Tensor, ""]:
        x, ids, ahead = said.x[:, :-1], ids[:, 1:said.x.shape[1]], present(said)[:, 1:]
        if x.device.type == "cpu":
            x, ids = x[ahead], ids[ahead]                               # nothing is said about padding
        else:
            ids = ids.masked_fill(~ahead, NOTHING)
        logits = model.heads[part](x).float().flatten(0, -2)
        loss = F.cross_entropy(logits, ids.flatten(), ignore_index=NOTHING, reduction="sum",
                               label_smoothing=self.smoothing)
        return loss / ahead.sum().clamp(min=1)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The same seed draws the same, row by row, whatever the size of the batch."""

    temperature: float = 1.0                # 0: always the likeliest
    top_k: int = 0                          # only among so many of the likeliest; 0: all
    top_p: float = 1.0                      # only among the likeliest that together have this probability
    guidance: float = 1.0                   # how far from what would be said without `guide`; 1: not at all
    guide: tuple[str, ...] = ()             # parts that guide
    seed: int = 0
    rows: tuple[int, ...] = ()              # the number of each row, by which it draws; (): 0, 1, 2, ...

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise SensoriumError(f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}: expected a "
                                 "temperature and a top_k of 0 or more, and a top_p above 0 and at most 1")


@torch.inference_mode()
def generate(model: Decoder, given: Batch, part: str, length: Length, how: Sampling, *, end: int | None = None,
             banned: Sequence[int] = ()) -> Iterator[Int[Tensor, "B"]]:
    """The next tokens of `part` for each row, step by step, at most `length`; a row that has ended says `end` again.

    given: the parts before it, and `part` itself with at least its start token; rows may be of unequal length. The
    model is used as it is: call eval() first. Tokens read are kept in a cache, so each step reads one.
    """
    rows, guided = len(given), how.guidance != 1 and bool(how.guide)
    given = _twice(given, how.guide) if guided else given
    most, limit = _limits(length, rows)
    cache, places, ended = Cache(most), _lengths(model, given, part), limit < 1
    numbers = how.rows or range(rows)
    chance = torch.stack([torch.rand(most, generator=generator(how.seed, number)) for number in numbers])
    logits = model.begin(given, part, cache)
    for step in range(most):
        logits = _guided(logits, how.guidance) if guided else logits
        if banned:
            logits[:, list(banned)] = -torch.inf
        ids = choose(logits, chance[:, step], how)
        ids = ids if end is None else torch.where(ended, end, ids)
        yield ids
        ended = ended if end is None else ended | (ids == end) | (limit <= step + 1)
        if ended.all() or step + 1 == most:
            return
        at = places + limit.clamp(max=step + 1).repeat(len(places) // rows) - 1
        logits = model.go_on(part, ids.repeat(2) if guided else ids, at, cache)


def choose(logits: Float[Tensor, "B V"], chance: Float[Tensor, "B"], how: Sampling) -> Int[Tensor, "B"]:
    """One token a row. `chance` in [0, 1) decides: the token in whose stretch of the summed probabilities it falls."""
    if how.temperature == 0:
        return likeliest(logits)
    best, ids = (logits.float() / how.temperature).sort(stable=True, dim=1, descending=True)
    if how.top_k:
        best[:, how.top_k:] = -torch.inf
    p = best.softmax(1)
    p = p * (p.cumsum(1) - p < how.top_p)                               # the first always stays
    upto = p.cumsum(1)
    at = (upto <= chance[:, None] * upto[:, -1:]).sum(1).clamp(max=p.shape[1] - 1)
    return ids.gather(1, at[:, None])[:, 0]


def likeliest(logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
    """The first of the largest of each row. On a CPU numpy finds it in a fifth of torch's time."""
    if logits.device.type != "cpu" or logits.dtype is not torch.float32:
        return logits.argmax(1)
    return torch.from_numpy(logits.detach().numpy().argmax(1))


@dataclass(frozen=True)
class Beams:
    """How the likeliest is looked for: so many continuations are followed at once, scored by log p / length^penalty."""

    width: int = 4
    penalty: float = 1.0


@torch.inference_mode()
def search(model: Decoder, given: Batch, part: str, length: Length, how: Beams, *, end: int,
           banned: Sequence[int] = ()) -> Int[Tensor, "B T"]:
    """The likeliest continuation of each row that beam search finds; one that has ended is followed by `end`."""
    rows, beams = len(given), how.width
    most, limit = _limits(length, rows)
    cache, places = Cache(most), _lengths(model, given, part)
    logits = model.begin(given, part, cache)
    cache.pick(torch.arange(rows).repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, 0)
    score = torch.full((rows, beams), -torch.inf)
    score[:, 0] = 0.0                                                   # all beams are one at first
    said, sizes = torch.zeros(rows, beams, 0, dtype=torch.long), torch.zeros(rows, beams)
    ended = torch.zeros(rows, beams, dtype=torch.bool)
    for step in range(most):
        logits[:, list(banned)] = -torch.inf
        each = logits.float().log_softmax(1).view(rows, beams, -1)
        each[ended] = -torch.inf
        each[..., end].masked_fill_(ended, 0.0)                         # an ended one goes on with `end`, for nothing
        sums, grown = score[..., None] + each, (sizes + ~ended)[..., None].clamp(min=1)
        best = (sums / grown ** how.penalty).flatten(1).topk(beams).indices
        beam, ids = best // each.shape[2], best % each.shape[2]
        score, sizes = sums.flatten(1).gather(1, best), grown[..., 0].gather(1, beam)
        said = torch.cat([said.gather(1, beam[..., None].expand(-1, -1, step)), ids[..., None]], 2)
        ended = ended.gather(1, beam) | (ids == end) | (limit <= step + 1)[:, None]
        if ended.all() or step + 1 == most:
            break
        cache.pick((beam + torch.arange(rows)[:, None] * beams).flatten())
        at = (places + limit.clamp(max=step + 1) - 1).repeat_interleave(beams)
        logits = model.go_on(part, ids.flatten(), at, cache)
    return said[:, 0]


def _limits(length: Length, rows: int) -> tuple[int, Int[Tensor, "B"]]:
    """The most steps, and how many each row may take."""
    limit = torch.as_tensor(length).expand(rows)
    return int(limit.max()), limit


def _lengths(model: Decoder, given: Batch, part: str) -> Int[Tensor, "B"]:
    """The place in `part` of the next token of each row."""
    return present(model.read(Batch({part: given[part]}))[part]).sum(1)


def _twice(given: Batch, guide: Sequence[str]) -> Batch:
    """Each row as it is, then each row without the parts that guide."""
    none = torch.zeros(len(given), dtype=torch.bool)
    return Batch.joined([given, given]).changed(
        present={part: torch.cat([given.there(part), none]) for part in guide})


def _guided(logits: Float[Tensor, "B2 V"], scale: float) -> Float[Tensor, "B V"]:
    with_it, without = logits.chunk(2)
    return without + scale * (with_it - without)
