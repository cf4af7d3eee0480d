"""Features ↔ codes, for any modality: FSQ, VQ with a moving codebook, and the Gumbel relaxation of DALL-E's dVAE.

    D width of the features that come in   E width of the vectors that go out   K codes (vocab)   N rows of a batch

All three take features of any leading shape and are used alike: `z → Quantized` while they learn, `ids(z)` and
`vectors(ids)` afterwards, `after_step()` after each update of the weights. What they learn without a gradient (VQ's
codebook, the dVAE's count of updates) are buffers, saved with the weights; nothing of it moves before `after_step`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.nn.linear import normal_parameter

MIN_TEMPERATURE, MAX_KL_WEIGHT = (
    1 / 16,
    6.6,
)  # temperature and KL weight at the end of a dVAE's schedule (Ramesh et al. 2021)
DEAD_CODE_SHARE = 1 / 32  # a code used less than this part of its fair share is restarted


@dataclass(frozen=True)
class QuantizerOutput:
    """x: the vectors of the codes, through which the gradient reaches the features. loss: to be added to the rest."""

    x: Float[Tensor, "*rows E"]
    ids: Int[Tensor, "*rows"]
    loss: Float[Tensor, ""]


@runtime_checkable
class Quantizer(Protocol):
    """vocab: K. inside, outside: widths D and E."""

    vocab: int
    in_dim: int
    out_dim: int

    def __call__(self, z: Float[Tensor, "*rows D"], /) -> QuantizerOutput: ...

    def to_ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """The code of each feature vector."""
        ...

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        """What each code stands for."""
        ...

    def after_step(self) -> None:
        """Take in what was seen since the last update of the weights."""
        ...


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023): each channel is bounded and rounded to one of its levels.

    A code is a number in mixed radix, the first channel its lowest digit. Nothing is learned, and nothing collapses.
    """

    zero_level: Tensor
    shift: Tensor
    place_value: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int] = (8, 8, 8)):
        super().__init__()
        if not levels or min(levels) < 2:
            raise SensoriumError(f"FSQ levels={tuple(levels)}: each channel needs at least 2.")
        self.levels, self.vocab = tuple(levels), math.prod(levels)
        self.in_dim = self.out_dim = len(levels)
        self.register_buffer("zero_level", torch.tensor([n // 2 for n in levels]), persistent=False)
        self.register_buffer(
            "shift", torch.tensor([0.5 * (n % 2 == 0) for n in levels]), persistent=False
        )
        self.register_buffer(
            "place_value",
            torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]),
            persistent=False,
        )
        self.register_buffer("radix", torch.tensor(levels), persistent=False)

    def forward(self, z: Float[Tensor, "*rows D"]) -> QuantizerOutput:
        bounded = self._bound(z)
        level = bounded.detach().round()
        return QuantizerOutput(
            _straight_through(level, bounded) / self.zero_level,
            self._to_id(level),
            bounded.new_zeros(()),
        )

    def to_ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        return self._to_id(self._bound(z).round())

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        digits = ids[..., None] // self.place_value % self.radix
        return (digits - self.zero_level).float() / self.zero_level

    def after_step(self) -> None:
        return None

    def _bound(self, z: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Just beyond -n/2 .. n/2 - 1 for an even number n of levels, ±(n - 1)/2 for an odd one, so that rounding
        meets n of them; 0 stays at 0."""
        span = (self.radix - 1) * 1.001 / 2
        return (z.float() + (self.shift / span).atanh()).tanh() * span - self.shift

    def _to_id(self, level: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """`level` is rounded already: casting a sum of floats would cut 2.9999 down to 2."""
        return ((level.long() + self.zero_level) * self.place_value).sum(-1)


class VQ(nn.Module):
    """Vector quantization (van den Oord et al. 2017): the nearest vector of a codebook that follows its users' mean.

    decay: of the moving means. commitment: weight of |z - sg(e)|². restart: codes that hardly any feature uses begin
    anew as features of the last batch (Dhariwal et al. 2020).
    """

    codebook: Tensor
    ema_counts: Tensor
    batch_counts: Tensor
    batch_sums: Tensor

    def __init__(
        self,
        vocab: int,
        dim: int,
        *,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_dead_codes: bool = True,
    ):
        super().__init__()
        _validate_codebook(vocab, dim)
        self.vocab, self.in_dim, self.out_dim = vocab, dim, dim
        self.decay, self.commitment_weight, self.restart_dead_codes = (
            decay,
            commitment_weight,
            restart_dead_codes,
        )
        self.register_buffer("codebook", normal_parameter(vocab, dim, std=dim**-0.5).detach())
        self.register_buffer("ema_counts", torch.zeros(vocab))  # of features, a moving mean
        self.register_buffer(
            "batch_counts", torch.zeros(vocab), persistent=False
        )  # since the last update
        self.register_buffer("batch_sums", torch.zeros(vocab, dim), persistent=False)
        self.last_features: Tensor | None = None  # features of the last batch [N D]

    def forward(self, z: Float[Tensor, "*rows D"]) -> QuantizerOutput:
        z = z.float()
        ids = self.to_ids(z)
        e = self.to_vectors(ids)
        if self.training:
            self._accumulate_batch(z.detach().reshape(-1, self.in_dim), ids.reshape(-1))
        return QuantizerOutput(
            _straight_through(e, z), ids, self.commitment_weight * F.mse_loss(z, e)
        )

    @torch.no_grad()
    def to_ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        with torch.autocast(z.device.type, enabled=False):  # bf16 would mistake near neighbours
            flat = z.float().reshape(-1, self.in_dim)
            distance = torch.addmm(self.codebook.square().sum(1), flat, self.codebook.T, alpha=-2)
        return distance.argmin(1).reshape(z.shape[:-1])

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        return self.codebook[ids]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move every code towards the mean of the features that chose it; restart those that none chooses."""
        if self.last_features is None:
            return
        counts = self.ema_counts * self.decay + self.batch_counts * (1 - self.decay)
        sums = self.codebook * (self.ema_counts * self.decay)[:, None] + self.batch_sums * (
            1 - self.decay
        )
        used = counts > 1e-6
        self.codebook.copy_(
            torch.where(used[:, None], sums / counts.clamp(min=1e-6)[:, None], self.codebook)
        )
        self.ema_counts.copy_(counts)
        if self.restart_dead_codes:
            self._restart_dead_codes(self.last_features)
        self.batch_counts.zero_()
        self.batch_sums.zero_()
        self.last_features = None

    def _accumulate_batch(self, z: Float[Tensor, "N D"], ids: Int[Tensor, "N"]) -> None:
        self.batch_counts.add_(torch.bincount(ids, minlength=self.vocab))
        self.batch_sums.index_add_(0, ids, z)
        self.last_features = z

    def _restart_dead_codes(self, z: Float[Tensor, "N D"]) -> None:
        fair = self.ema_counts.sum() / self.vocab
        dead = (self.ema_counts < DEAD_CODE_SHARE * fair).nonzero().flatten()
        drawn = torch.randint(len(z), (len(dead),), device=z.device)
        self.codebook[dead] = z[drawn]
        self.ema_counts[dead] = fair


class GumbelQuantizer(nn.Module):
    """The discrete VAE of DALL-E (Ramesh et al. 2021): features are logits over codes, drawn by the Gumbel relaxation.

    While it learns, a soft draw at a temperature that falls from 1 to 1/16; afterwards the likeliest code. loss: the KL
    divergence from the uniform prior, in nats a code, times `weight` and a factor that grows from 0 to 6.6. Both follow
    half a cosine over the first `anneal` updates. weight: codes per value of what is coded, where the reconstruction is
    a mean over values (the paper's 1/192 is 32² / (256² · 3)). sharp: what features are multiplied with. Of the size
    that first weights give them, they are lost in the noise of the draw, and a short training hardly leaves it.
    """

    step: Tensor

    def __init__(
        self,
        vocab: int,
        dim: int,
        *,
        anneal_steps: int,
        kl_weight: float = 1.0,
        logit_scale: float = 1.0,
    ):
        super().__init__()
        _validate_codebook(vocab, dim)
        self.vocab, self.in_dim, self.out_dim = vocab, vocab, dim
        self.anneal_steps, self.kl_weight, self.logit_scale = anneal_steps, kl_weight, logit_scale
        self.codebook = normal_parameter(vocab, dim, std=dim**-0.5)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, z: Float[Tensor, "*rows K"]) -> QuantizerOutput:
        z = self.logit_scale * z.float()
        ids = self.to_ids(z)
        x = self._sample_relaxed(z) @ self.codebook if self.training else self.to_vectors(ids)
        return QuantizerOutput(
            x, ids, kl_schedule(self.progress) * self.kl_weight * kl_to_uniform(z)
        )

    @property
    def progress(self) -> Float[Tensor, ""]:
        """Of the schedule, from 0 to 1."""
        return (self.step / self.anneal_steps).clamp(max=1)

    def to_ids(self, z: Float[Tensor, "*rows K"]) -> Int[Tensor, "*rows"]:
        return z.argmax(-1)

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        return self.codebook[ids]

    @torch.no_grad()
    def after_step(self) -> None:
        self.step.add_(1)

    def _sample_relaxed(self, z: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows K"]:
        noise = -torch.empty_like(z).exponential_().clamp(min=torch.finfo(z.dtype).tiny).log()
        return ((z + noise) / temperature_schedule(self.progress)).softmax(-1)


def temperature_schedule(progress: Float[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """Of the relaxation, at a progress from 0 to 1: 1 at first, 1/16 at last."""
    return 1 + (MIN_TEMPERATURE - 1) * _cosine_ramp(progress)


def kl_schedule(progress: Float[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """Of the KL term, at a progress from 0 to 1: 0 at first, 6.6 at last."""
    return MAX_KL_WEIGHT * _cosine_ramp(progress)


def kl_to_uniform(logits: Float[Tensor, "*rows K"]) -> Float[Tensor, ""]:
    """KL(softmax(logits) | uniform) in nats, the mean over all rows: a batch twice over has the same."""
    log = logits.log_softmax(-1)
    return (log.exp() * log).sum(-1).mean() + math.log(logits.shape[-1])


def _validate_codebook(vocab: int, dim: int) -> None:
    if vocab < 2 or dim < 1:
        raise SensoriumError(
            f"vocab={vocab}, width={dim}: expected 2 codes or more, and a width of 1 or more."
        )


def _cosine_ramp(progress: Float[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """Half a cosine from 0 to 1."""
    return (1 - (math.pi * progress).cos()) / 2


def _straight_through(value: Tensor, gradient_source: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `through` (straight-through estimator)."""
    return value.detach() + (gradient_source - gradient_source.detach())
