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

from sensorium.data.cache.prepared import embedding_key
from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.attention import KVCache
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, valid_mask
from sensorium.rng import generator

IGNORE_INDEX = -100  # a target that does not count
TokenLimit = int | Int[Tensor, "B"]  # for all rows, or for each (where rows can end)


@dataclass(frozen=True)
class NextTokenLoss:
    """Cross-entropy of every real token after the first of a part, given all before it.

    columns: part of the Decoder → column of the batch. shares: part with a head → its share of the loss, as in
    {"text": 1, "image": 7} (DALL-E, Ramesh et al. 2021). drop: part → how often a row does without it while training,
    so that a sampler can be guided (classifier-free guidance, Ho & Salimans 2022); a part dropped is a part missing.
    """

    columns: Mapping[str, ColumnKey]
    loss_weights: Mapping[str, float]
    part_dropout: Mapping[str, float] = field(default_factory=dict)
    label_smoothing: float = 0.0

    def __call__(self, model: Decoder, batch: Batch) -> dict[str, Tensor]:
        given = self.select_inputs(batch)
        given = given.with_columns(
            {part: model.output_part(part).tokenize(given[part]) for part in self.loss_weights}
        )
        if model.training:
            given = given.with_columns(
                present={
                    part: given.presence(part) & (torch.rand(len(given)) >= often)
                    for part, often in self.part_dropout.items()
                    if often
                }
            )
        said = model(given)
        losses = {
            part: self._part_loss(model, part, said[part], given[part])
            for part in self.loss_weights
        }
        whole = sum(self.loss_weights.values())
        return {
            "model": torch.stack(
                [losses[part] * share / whole for part, share in self.loss_weights.items()]
            ).sum()
        }

    def select_inputs(self, batch: Batch) -> Batch:
        """A batch of columns as parts; of a picture, what a frozen eye said of it before, where that is at hand."""
        read = {
            part: key
            for part, column in self.columns.items()
            if column in batch
            for key in [embedding_key(column) if embedding_key(column) in batch else column]
        }
        return replace(
            batch,
            columns={part: batch[key] for part, key in read.items()},
            present={
                part: batch.present[key] for part, key in read.items() if key in batch.present
            },
        )

    def _part_loss(
        self, model: Decoder, part: str, output: Tokens, ids: Int[Tensor, "B T"]
    ) -> Float[Tensor, ""]:
        x, ids, ahead = output.x[:, :-1], ids[:, 1 : output.x.shape[1]], valid_mask(output)[:, 1:]
        if x.device.type == "cpu":
            x, ids = x[ahead], ids[ahead]  # nothing is said about padding
        else:
            ids = ids.masked_fill(~ahead, IGNORE_INDEX)
        logits = model.heads[part](x).float().flatten(0, -2)
        loss = F.cross_entropy(
            logits,
            ids.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return loss / ahead.sum().clamp(min=1)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. The same seed draws the same, row by row, whatever the size of the batch."""

    temperature: float = 1.0  # 0: always the likeliest
    top_k: int = 0  # only among so many of the likeliest; 0: all
    top_p: float = 1.0  # only among the likeliest that together have this probability
    guidance_scale: float = 1.0  # how far from what would be said without `guide`; 1: not at all
    guided_parts: tuple[str, ...] = ()  # parts that guide
    seed: int = 0
    row_ids: tuple[int, ...] = ()  # the number of each row, by which it draws; (): 0, 1, 2, ...

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise SensoriumError(
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p}: expected a "
                "temperature and a top_k of 0 or more, and a top_p above 0 and at most 1"
            )


@torch.inference_mode()
def generate(
    model: Decoder,
    inputs: Batch,
    part: str,
    max_tokens: TokenLimit,
    sampling: SamplingConfig,
    *,
    end_token: int | None = None,
    suppressed_tokens: Sequence[int] = (),
) -> Iterator[Int[Tensor, "B"]]:
    """The next tokens of `part` for each row, step by step, at most `length`; a row that has ended says `end` again.

    inputs: the parts before it, and `part` itself with at least its start token; rows may be of unequal length. The
    model is used as it is: call eval() first. Tokens read are kept in a cache, so each step reads one.
    """
    rows, guided = len(inputs), sampling.guidance_scale != 1 and bool(sampling.guided_parts)
    inputs = _append_unguided_rows(inputs, sampling.guided_parts) if guided else inputs
    most, limit = _token_limits(max_tokens, rows)
    cache, places, ended = KVCache(most), _part_lengths(model, inputs, part), limit < 1
    numbers = sampling.row_ids or range(rows)
    chance = torch.stack(
        [torch.rand(most, generator=generator(sampling.seed, number)) for number in numbers]
    )
    logits = model.prefill(inputs, part, cache)
    for step in range(most):
        logits = _apply_guidance(logits, sampling.guidance_scale) if guided else logits
        if suppressed_tokens:
            logits[:, list(suppressed_tokens)] = -torch.inf
        ids = sample_token(logits, chance[:, step], sampling)
        ids = ids if end_token is None else torch.where(ended, end_token, ids)
        yield ids
        ended = ended if end_token is None else ended | (ids == end_token) | (limit <= step + 1)
        if ended.all() or step + 1 == most:
            return
        at = places + limit.clamp(max=step + 1).repeat(len(places) // rows) - 1
        logits = model.decode_step(part, ids.repeat(2) if guided else ids, at, cache)


def sample_token(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"], sampling: SamplingConfig
) -> Int[Tensor, "B"]:
    """One token a row. `chance` in [0, 1) decides: the token in whose stretch of the summed probabilities it falls."""
    if sampling.temperature == 0:
        return greedy(logits)
    best, ids = (logits.float() / sampling.temperature).sort(stable=True, dim=1, descending=True)
    if sampling.top_k:
        best[:, sampling.top_k :] = -torch.inf
    p = best.softmax(1)
    p = p * (p.cumsum(1) - p < sampling.top_p)  # the first always stays
    upto = p.cumsum(1)
    at = (upto <= uniform[:, None] * upto[:, -1:]).sum(1).clamp(max=p.shape[1] - 1)
    return ids.gather(1, at[:, None])[:, 0]


def greedy(logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
    """The first of the largest of each row. On a CPU numpy finds it in a fifth of torch's time."""
    if logits.device.type != "cpu" or logits.dtype is not torch.float32:
        return logits.argmax(1)
    return torch.from_numpy(logits.detach().numpy().argmax(1))


@dataclass(frozen=True)
class BeamConfig:
    """How the likeliest is looked for: so many continuations are followed at once, scored by log p / length^penalty."""

    num_beams: int = 4
    length_penalty: float = 1.0


@torch.inference_mode()
def beam_search(
    model: Decoder,
    inputs: Batch,
    part: str,
    max_tokens: TokenLimit,
    beam_config: BeamConfig,
    *,
    end_token: int,
    suppressed_tokens: Sequence[int] = (),
) -> Int[Tensor, "B T"]:
    """The likeliest continuation of each row that beam search finds; one that has ended is followed by `end`."""
    rows, beams = len(inputs), beam_config.num_beams
    most, limit = _token_limits(max_tokens, rows)
    cache, places = KVCache(most), _part_lengths(model, inputs, part)
    logits = model.prefill(inputs, part, cache)
    cache.reorder(torch.arange(rows).repeat_interleave(beams))
    logits = logits.repeat_interleave(beams, 0)
    score = torch.full((rows, beams), -torch.inf)
    score[:, 0] = 0.0  # all beams are one at first
    said, sizes = torch.zeros(rows, beams, 0, dtype=torch.long), torch.zeros(rows, beams)
    ended = torch.zeros(rows, beams, dtype=torch.bool)
    for step in range(most):
        logits[:, list(suppressed_tokens)] = -torch.inf
        each = logits.float().log_softmax(1).view(rows, beams, -1)
        each[ended] = -torch.inf
        each[..., end_token].masked_fill_(
            ended, 0.0
        )  # an ended one goes on with `end`, for nothing
        sums, grown = score[..., None] + each, (sizes + ~ended)[..., None].clamp(min=1)
        best = (sums / grown**beam_config.length_penalty).flatten(1).topk(beams).indices
        beam, ids = best // each.shape[2], best % each.shape[2]
        score, sizes = sums.flatten(1).gather(1, best), grown[..., 0].gather(1, beam)
        said = torch.cat([said.gather(1, beam[..., None].expand(-1, -1, step)), ids[..., None]], 2)
        ended = ended.gather(1, beam) | (ids == end_token) | (limit <= step + 1)[:, None]
        if ended.all() or step + 1 == most:
            break
        cache.reorder((beam + torch.arange(rows)[:, None] * beams).flatten())
        at = (places + limit.clamp(max=step + 1) - 1).repeat_interleave(beams)
        logits = model.decode_step(part, ids.flatten(), at, cache)
    return said[:, 0]


def _token_limits(max_tokens: TokenLimit, num_rows: int) -> tuple[int, Int[Tensor, "B"]]:
    """The most steps, and how many each row may take."""
    limit = torch.as_tensor(max_tokens).expand(num_rows)
    return int(limit.max()), limit


def _part_lengths(model: Decoder, inputs: Batch, part: str) -> Int[Tensor, "B"]:
    """The place in `part` of the next token of each row."""
    return valid_mask(model.embed_inputs(Batch({part: inputs[part]}))[part]).sum(1)


def _append_unguided_rows(inputs: Batch, guided_parts: Sequence[str]) -> Batch:
    """Each row as it is, then each row without the parts that guide."""
    none = torch.zeros(len(inputs), dtype=torch.bool)
    return Batch.concat([inputs, inputs]).with_columns(
        present={part: torch.cat([inputs.presence(part), none]) for part in guided_parts}
    )


def _apply_guidance(logits: Float[Tensor, "B2 V"], guidance_scale: float) -> Float[Tensor, "B V"]:
    with_it, without = logits.chunk(2)
    return without + guidance_scale * (with_it - without)
