"""Autoregressive cross-entropy loss and sampling.

Sampling supports temperature, top-k, top-p, classifier-free guidance and beam search.

B batch   T tokens   V vocabulary   N real targets of a batch   K beams
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sensorium.data.cache.prepared import embedding_key
from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, valid_mask
from sensorium.rng import generator

IGNORE_INDEX = -100
"""Target id that does not count in the loss."""

TokenLimit = int | Int[Tensor, "B"]
"""Largest number of new tokens, for all rows or for each."""


@dataclass(frozen=True)
class NextTokenLoss:
    """Cross-entropy of every real token after the first of a part, given all tokens before it.

    Attributes:
        columns: Input column of each part of the Decoder.
        loss_weights: Weight of the loss of each part with a head, such as {"text": 1, "image": 7}
            (DALL-E, Ramesh et al. 2021).
        part_dropout: Probability that a part is masked in a row while training, for
            classifier-free guidance (Ho & Salimans 2022).
        label_smoothing: Label smoothing of the cross-entropy.
    """

    columns: Mapping[str, ColumnKey]
    loss_weights: Mapping[str, float]
    part_dropout: Mapping[str, float] = field(default_factory=dict[str, float])
    label_smoothing: float = 0.0

    def __call__(self, model: Decoder, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted mean of the parts' losses."""
        return {"model": self._compute_loss(model, self._prepare_inputs(model, batch))}

    def accumulate(self, model: Decoder, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradients of one large batch, given as micro-batches, to the parameters.

        Each part's loss is divided by the number of its tokens in all micro-batches. Returns the
        loss of the large batch, without a graph.
        """
        inputs = self._prepare_inputs(model, Batch.concat(batches))
        num_targets, total = self._count_targets(model, inputs), torch.zeros(())
        for micro_batch in inputs.split(len(batches)):
            loss = self._compute_loss(model, micro_batch, num_targets)
            torch.autograd.backward(loss)
            total = total + loss.detach()
        return {"model": total}

    def _prepare_inputs(self, model: Decoder, batch: Batch) -> Batch:
        """Return the inputs by part, tokenized and, while training, with parts dropped."""
        inputs = self.select_inputs(batch)
        ids: dict[ColumnKey, Tensor] = {
            part: model.output_part(part).tokenize(inputs[part]) for part in self.loss_weights
        }
        inputs = inputs.with_columns(ids)
        return self._drop_parts(inputs) if model.training else inputs

    @torch.no_grad()
    def _count_targets(self, model: Decoder, inputs: Batch) -> dict[str, Int[Tensor, ""]]:
        """Return the number of tokens of each part that the model learns to predict."""
        embedded = model.embed_inputs(inputs.select(self.loss_weights))
        return {part: valid_mask(embedded[part])[:, 1:].sum() for part in self.loss_weights}

    def _compute_loss(
        self, model: Decoder, inputs: Batch, num_targets: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, ""]:
        """Return the weighted mean of the parts' losses.

        Each is divided by `num_targets`, by default the number of its tokens in `inputs`.
        """
        outputs = model(inputs)
        total_weight = sum(self.loss_weights.values())
        losses: list[Tensor] = []
        for part, weight in self.loss_weights.items():
            loss_sum, num_tokens = self._part_loss(model, part, outputs[part], inputs[part])
            count = num_tokens if num_targets is None else num_targets[part]
            losses.append(loss_sum / count.clamp(min=1) * weight / total_weight)
        return torch.stack(losses).sum()

    def select_inputs(self, batch: Batch) -> Batch:
        """Return the inputs of the Decoder by part.

        Cached embeddings of a column are preferred to its values.
        """
        columns: dict[ColumnKey, Tensor] = {}
        present: dict[ColumnKey, Tensor] = {}
        for part, column in self.columns.items():
            if column not in batch:
                continue
            cached = embedding_key(column)
            key = cached if cached in batch else column
            columns[part] = batch[key]
            if key in batch.present:
                present[part] = batch.present[key]
        return replace(batch, columns=columns, present=present)

    def _drop_parts(self, inputs: Batch) -> Batch:
        """Mask each part in a random subset of the rows."""
        present: dict[ColumnKey, Tensor] = {}
        for part, probability in self.part_dropout.items():
            if probability:
                keep = torch.rand(len(inputs)) >= probability
                present[part] = inputs.presence(part) & keep
        return inputs.with_columns(present=present)

    def _part_loss(
        self, model: Decoder, part: str, output: Tokens, ids: Int[Tensor, "B T"]
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Return the summed cross-entropy of a part's tokens after the first, and their number."""
        x = output.x[:, :-1]
        targets = ids[:, 1 : output.x.shape[1]]
        is_target = valid_mask(output)[:, 1:]
        if x.device.type == "cpu":  # compute no logits for padding
            x, targets = x[is_target], targets[is_target]
        else:
            targets = targets.masked_fill(~is_target, IGNORE_INDEX)
        logits = model.heads[part](x).float().flatten(0, -2)
        loss = F.cross_entropy(
            logits,
            targets.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return loss, is_target.sum()


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is sampled; the same seed samples the same, whatever the batch size.

    Attributes:
        temperature: Divisor of the logits; 0 is greedy decoding.
        top_k: Sample only among this many of the most likely tokens; 0 for all.
        top_p: Sample only among the most likely tokens that together have this probability.
        guidance_scale: Scale of classifier-free guidance; 1 for none.
        guided_parts: Parts that are left out of the unguided prediction.
        seed: Random seed.
        row_ids: Number of each row, which seeds its samples; by default 0, 1, 2, ...

    Raises:
        SensoriumError: A value is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    guided_parts: tuple[str, ...] = ()
    seed: int = 0
    row_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise SensoriumError(f"--temperature {self.temperature} is invalid. Use 0 or more.")
        if self.top_k < 0:
            raise SensoriumError(f"--top-k {self.top_k} is invalid. Use 0 or more.")
        if not 0 < self.top_p <= 1:
            raise SensoriumError(f"--top-p {self.top_p} is invalid. Use more than 0, at most 1.")


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
    """Yield the next token of `part` for each row, step by step. Call `model.eval()` first.

    Args:
        model: Decoder to sample from.
        inputs: Parts before `part`, and `part` with its start token and any prefix.
        part: Part to generate.
        max_tokens: Largest number of new tokens.
        sampling: How tokens are sampled.
        end_token: Token that ends a row, which then repeats it.
        suppressed_tokens: Tokens that are never generated.
    """
    guided = sampling.guidance_scale != 1 and bool(sampling.guided_parts)
    num_rows = len(inputs)
    if guided:
        inputs = _append_unguided_rows(inputs, sampling.guided_parts)
    max_steps, limits = _token_limits(max_tokens, num_rows)
    cache = KVCache(max_steps)
    lengths = _part_lengths(model, inputs, part)
    ended = limits < 1
    uniform = _sample_uniform(max_steps, sampling, num_rows)
    logits = model.prefill(inputs, part, cache)
    for step in range(max_steps):
        if guided:
            logits = _apply_guidance(logits, sampling.guidance_scale)
        if suppressed_tokens:
            logits[:, list(suppressed_tokens)] = -torch.inf
        ids = sample_token(logits, uniform[:, step], sampling)
        if end_token is not None:
            ids = torch.where(ended, end_token, ids)
            ended = ended | (ids == end_token) | (limits <= step + 1)
        yield ids
        if ended.all() or step + 1 == max_steps:
            return
        positions = lengths + limits.clamp(max=step + 1).repeat(len(lengths) // num_rows) - 1
        logits = model.decode_step(part, ids.repeat(2) if guided else ids, positions, cache)


def sample_token(
    logits: Float[Tensor, "B V"], uniform: Float[Tensor, "B"], sampling: SamplingConfig
) -> Int[Tensor, "B"]:
    """Sample one token per row by inverting the cumulative distribution.

    Args:
        logits: Logits of the next token.
        uniform: A random number in [0, 1) for each row.
        sampling: Temperature, top-k and top-p.
    """
    if sampling.temperature == 0:
        return greedy(logits)
    scaled = logits.float() / sampling.temperature
    ranked, ids = scaled.sort(stable=True, dim=1, descending=True)
    if sampling.top_k:
        ranked[:, sampling.top_k :] = -torch.inf
    p = ranked.softmax(1)
    p = p * (p.cumsum(1) - p < sampling.top_p)  # the most likely token always stays
    cumulative = p.cumsum(1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    index = (cumulative <= threshold).sum(1).clamp(max=p.shape[1] - 1)
    return ids.gather(1, index[:, None])[:, 0]


def greedy(logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
    """Return the first most likely token of each row; on a CPU by NumPy, five times as fast."""
    if logits.device.type != "cpu" or logits.dtype is not torch.float32:
        return logits.argmax(1)
    return torch.from_numpy(logits.detach().numpy().argmax(1))  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@dataclass(frozen=True)
class BeamConfig:
    """Beam search.

    Attributes:
        num_beams: Number of hypotheses per row.
        length_penalty: Hypotheses are ranked by log p / length^length_penalty.
    """

    num_beams: int = 4
    length_penalty: float = 1.0


@dataclass(frozen=True)
class _Hypotheses:
    """The hypotheses of a beam search, best first."""

    ids: Int[Tensor, "B K T"]
    log_p: Float[Tensor, "B K"]
    lengths: Float[Tensor, "B K"]
    ended: Bool[Tensor, "B K"]


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
    """Return the most likely continuation of each row; one that has ended repeats `end_token`.

    Args:
        model: Decoder to search.
        inputs: Parts before `part`, and `part` with its start token and any prefix.
        part: Part to generate.
        max_tokens: Largest number of new tokens.
        beam_config: Number of beams and length penalty.
        end_token: Token that ends a hypothesis.
        suppressed_tokens: Tokens that are never generated.
    """
    num_rows = len(inputs)
    num_beams = beam_config.num_beams
    max_steps, limits = _token_limits(max_tokens, num_rows)
    cache = KVCache(max_steps)
    lengths = _part_lengths(model, inputs, part)
    logits = model.prefill(inputs, part, cache)
    cache.reorder(torch.arange(num_rows).repeat_interleave(num_beams))
    logits = logits.repeat_interleave(num_beams, 0)
    beams = _initial_hypotheses(num_rows, num_beams)
    for step in range(max_steps):
        logits[:, list(suppressed_tokens)] = -torch.inf
        log_p = logits.float().log_softmax(1).view(num_rows, num_beams, -1)
        beams, parents = _extend(beams, log_p, end_token, beam_config.length_penalty)
        beams = replace(beams, ended=beams.ended | (limits <= step + 1)[:, None])
        if beams.ended.all() or step + 1 == max_steps:
            break
        cache.reorder((parents + torch.arange(num_rows)[:, None] * num_beams).flatten())
        positions = (lengths + limits.clamp(max=step + 1) - 1).repeat_interleave(num_beams)
        logits = model.decode_step(part, beams.ids[..., -1].flatten(), positions, cache)
    return beams.ids[:, 0]


def _initial_hypotheses(num_rows: int, num_beams: int) -> _Hypotheses:
    """Return empty hypotheses, of which only the first of each row counts."""
    log_p = torch.full((num_rows, num_beams), -torch.inf)
    log_p[:, 0] = 0.0
    return _Hypotheses(
        ids=torch.zeros(num_rows, num_beams, 0, dtype=torch.long),
        log_p=log_p,
        lengths=torch.zeros(num_rows, num_beams),
        ended=torch.zeros(num_rows, num_beams, dtype=torch.bool),
    )


def _extend(
    beams: _Hypotheses, log_p: Float[Tensor, "B K V"], end_token: int, length_penalty: float
) -> tuple[_Hypotheses, Int[Tensor, "B K"]]:
    """Return the best continuations by one token, and the hypothesis that each continues.

    Args:
        beams: Hypotheses so far.
        log_p: Log probability of each next token.
        end_token: Token that an ended hypothesis repeats at no cost.
        length_penalty: Exponent of the length that log probabilities are divided by.
    """
    log_p[beams.ended] = -torch.inf
    log_p[..., end_token].masked_fill_(beams.ended, 0.0)
    total = beams.log_p[..., None] + log_p
    lengths = (beams.lengths + ~beams.ended)[..., None].clamp(min=1)
    num_beams, vocab = log_p.shape[1:]
    best = (total / lengths**length_penalty).flatten(1).topk(num_beams).indices
    parents = best // vocab
    ids = best % vocab
    prefixes = beams.ids.gather(1, parents[..., None].expand(-1, -1, beams.ids.shape[2]))
    extended = _Hypotheses(
        ids=torch.cat([prefixes, ids[..., None]], 2),
        log_p=total.flatten(1).gather(1, best),
        lengths=lengths[..., 0].gather(1, parents),
        ended=beams.ended.gather(1, parents) | (ids == end_token),
    )
    return extended, parents


def _token_limits(max_tokens: TokenLimit, num_rows: int) -> tuple[int, Int[Tensor, "B"]]:
    """Return the largest number of steps, and that of each row."""
    limits = torch.as_tensor(max_tokens).expand(num_rows)
    return int(limits.max()), limits


def _part_lengths(model: Decoder, inputs: Batch, part: str) -> Int[Tensor, "B"]:
    """Return the number of tokens of `part` that each row has."""
    return valid_mask(model.embed_inputs(Batch({part: inputs[part]}))[part]).sum(1)


def _sample_uniform(
    max_steps: int, sampling: SamplingConfig, num_rows: int
) -> Float[Tensor, "B T"]:
    """Return a random number for each row and step, seeded by row."""
    row_ids = sampling.row_ids or range(num_rows)
    return torch.stack(
        [torch.rand(max_steps, generator=generator(sampling.seed, row)) for row in row_ids]
    )


def _append_unguided_rows(inputs: Batch, guided_parts: Sequence[str]) -> Batch:
    """Return all rows, then all rows with the guided parts masked."""
    missing = torch.zeros(len(inputs), dtype=torch.bool)
    present: dict[ColumnKey, Tensor] = {
        part: torch.cat([inputs.presence(part), missing]) for part in guided_parts
    }
    return Batch.concat([inputs, inputs]).with_columns(present=present)


def _apply_guidance(logits: Float[Tensor, "B2 V"], guidance_scale: float) -> Float[Tensor, "B V"]:
    """Extrapolate from the unguided logits towards the guided ones (classifier-free guidance)."""
    guided, unguided = logits.chunk(2)
    return unguided + guidance_scale * (guided - unguided)
