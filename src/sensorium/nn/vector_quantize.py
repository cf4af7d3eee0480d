"""Vector quantizers: FSQ, VQ with an EMA codebook, and the Gumbel relaxation of DALL-E's dVAE.

D width of the features   E width of the code vectors   K codes (vocab_size)   N rows of a batch

All take features of any leading shape: `quantizer(z)` returns a QuantizerOutput while training,
`to_ids(z)` and `to_vectors(ids)` convert afterwards, and `after_step()` follows each optimizer
step. State that is learned without a gradient (VQ's codebook, the dVAE's step count) is kept in
buffers, saved with the weights, and changes in `after_step` only.
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

MIN_TEMPERATURE = 1 / 16
"""Temperature of the dVAE at the end of its schedule (Ramesh et al. 2021)."""

MAX_KL_WEIGHT = 6.6
"""KL weight of the dVAE at the end of its schedule (Ramesh et al. 2021)."""

DEAD_CODE_SHARE = 1 / 32
"""A code used less than this part of its fair share is restarted."""

MIN_EMA_COUNT = 1e-6
"""A code with a smaller moving count keeps its vector."""


@dataclass(frozen=True)
class QuantizerOutput:
    """Quantized features.

    Attributes:
        x: Code vectors, through which the gradient reaches the features.
        ids: Code of each feature vector.
        loss: Loss to add to that of the task.
    """

    x: Float[Tensor, "*rows E"]
    ids: Int[Tensor, "*rows"]
    loss: Float[Tensor, ""]


@runtime_checkable
class Quantizer(Protocol):
    """A module that maps features to codes and back.

    Attributes:
        vocab_size: Number of codes K.
        in_dim: Width D of the features.
        out_dim: Width E of the code vectors.
    """

    vocab_size: int
    in_dim: int
    out_dim: int

    def __call__(self, z: Float[Tensor, "*rows D"], /) -> QuantizerOutput:
        """Quantize features."""
        ...

    def to_ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """Return the code of each feature vector."""
        ...

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        """Return the vector of each code."""
        ...

    def after_step(self) -> None:
        """Update buffers from the batches since the last optimizer step."""
        ...


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023): each channel is rounded to a few levels.

    A code is a number in mixed radix; the first channel is its lowest digit. Nothing is learned,
    so no code can die.

    Args:
        levels: Number of levels of each channel, at least 2.

    Raises:
        SensoriumError: A channel has fewer than 2 levels.
    """

    zero_level: Tensor
    shift: Tensor
    place_value: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int] = (8, 8, 8)):
        super().__init__()
        if not levels or min(levels) < 2:
            raise SensoriumError(
                f"FSQ levels {tuple(levels)} are invalid. Each channel needs at least 2 levels."
            )
        self.levels = tuple(levels)
        self.vocab_size = math.prod(levels)
        self.in_dim = self.out_dim = len(levels)
        zero_level = torch.tensor([n // 2 for n in levels])
        shift = torch.tensor([0.5 * (n % 2 == 0) for n in levels])
        place_value = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        self.register_buffer("zero_level", zero_level, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("place_value", place_value, persistent=False)
        self.register_buffer("radix", torch.tensor(levels), persistent=False)

    def forward(self, z: Float[Tensor, "*rows D"]) -> QuantizerOutput:
        """Round features to levels, with a straight-through gradient."""
        bounded = self.bound(z)
        level = bounded.detach().round()
        x = _straight_through(level, bounded) / self.zero_level
        return QuantizerOutput(x, self.levels_to_ids(level), bounded.new_zeros(()))

    def to_ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """Return the code of each feature vector."""
        return self.levels_to_ids(self.bound(z).round())

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        """Return the vector of each code, with values in -1..1."""
        digits = ids[..., None] // self.place_value % self.radix
        return (digits - self.zero_level).float() / self.zero_level

    def after_step(self) -> None:
        """Do nothing: FSQ has no state."""

    def bound(self, z: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Squash features so that rounding gives exactly n levels; 0 stays at 0.

        The range is slightly more than -n/2 .. n/2 - 1 for an even number n of levels and
        ±(n - 1)/2 for an odd one.
        """
        span = (self.radix - 1) * 1.001 / 2
        return (z.float() + (self.shift / span).atanh()).tanh() * span - self.shift

    def levels_to_ids(self, level: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """Return the code of rounded levels.

        Levels are cast before they are summed: casting the sum would truncate 2.9999 to 2.
        """
        return ((level.long() + self.zero_level) * self.place_value).sum(-1)


class VQ(nn.Module):
    """Vector quantization with an EMA codebook (van den Oord et al. 2017).

    Args:
        vocab_size: Number of codes K.
        dim: Width of features and code vectors.
        decay: Decay of the moving averages.
        commitment_weight: Weight of |z - sg(e)|².
        restart_dead_codes: Whether rarely used codes are reset to features of the last batch
            (Dhariwal et al. 2020).

    Raises:
        SensoriumError: `vocab_size` or `dim` is too small.
    """

    codebook: Tensor
    ema_counts: Tensor
    batch_counts: Tensor
    batch_sums: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_dead_codes: bool = True,
    ):
        super().__init__()
        _validate_codebook(vocab_size, dim)
        self.vocab_size = vocab_size
        self.in_dim = self.out_dim = dim
        self.decay = decay
        self.commitment_weight = commitment_weight
        self.restart_dead_codes = restart_dead_codes
        self.register_buffer("codebook", normal_parameter(vocab_size, dim, std=dim**-0.5).detach())
        # Moving average of the number of features of each code.
        self.register_buffer("ema_counts", torch.zeros(vocab_size))
        # Number and sum of the features of each code since the last step.
        self.register_buffer("batch_counts", torch.zeros(vocab_size), persistent=False)
        self.register_buffer("batch_sums", torch.zeros(vocab_size, dim), persistent=False)
        self.last_features: Tensor | None = None  # features of the last batch [N D]

    def forward(self, z: Float[Tensor, "*rows D"]) -> QuantizerOutput:
        """Return the nearest code vectors, with a straight-through gradient."""
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
        """Return the nearest code of each feature vector."""
        with torch.autocast(z.device.type, enabled=False):  # bf16 would confuse close codes
            rows = z.float().reshape(-1, self.in_dim)
            distance = torch.addmm(self.codebook.square().sum(1), rows, self.codebook.T, alpha=-2)
        return distance.argmin(1).reshape(z.shape[:-1])

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        """Return the vector of each code."""
        return self.codebook[ids]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move each code towards the mean of its features, and restart dead codes."""
        if self.last_features is None:
            return
        old_weight = self.ema_counts * self.decay
        counts = old_weight + self.batch_counts * (1 - self.decay)
        sums = self.codebook * old_weight[:, None] + self.batch_sums * (1 - self.decay)
        used = counts > MIN_EMA_COUNT
        means = sums / counts.clamp(min=MIN_EMA_COUNT)[:, None]
        self.codebook.copy_(torch.where(used[:, None], means, self.codebook))
        self.ema_counts.copy_(counts)
        if self.restart_dead_codes:
            self._restart_dead_codes(self.last_features)
        self.batch_counts.zero_()
        self.batch_sums.zero_()
        self.last_features = None

    def _accumulate_batch(self, z: Float[Tensor, "N D"], ids: Int[Tensor, "N"]) -> None:
        """Add a batch to the counts and sums of its codes."""
        self.batch_counts.add_(torch.bincount(ids, minlength=self.vocab_size))
        self.batch_sums.index_add_(0, ids, z)
        self.last_features = z

    def _restart_dead_codes(self, z: Float[Tensor, "N D"]) -> None:
        """Replace rarely used codes by randomly chosen features."""
        fair_share = self.ema_counts.sum() / self.vocab_size
        dead = (self.ema_counts < DEAD_CODE_SHARE * fair_share).nonzero().flatten()
        sampled = torch.randint(len(z), (len(dead),), device=z.device)
        self.codebook[dead] = z[sampled]
        self.ema_counts[dead] = fair_share


class GumbelQuantizer(nn.Module):
    """The discrete VAE of DALL-E (Ramesh et al. 2021): features are logits over codes.

    Training samples a relaxed one-hot vector at a temperature that falls from 1 to 1/16; inference
    takes the most likely code. The loss is the KL divergence from the uniform prior, in nats per
    code, times `kl_weight` and a factor that rises from 0 to 6.6. Both follow half a cosine over
    the first `anneal_steps` steps.

    Args:
        vocab_size: Number of codes K.
        dim: Width E of the code vectors.
        anneal_steps: Steps of both schedules.
        kl_weight: Codes per input value, if the reconstruction loss is a mean over values (the
            paper's 1/192 is 32² / (256² · 3)).
        logit_scale: Factor on the features. At their initial size the sampling noise dominates
            them, and a short training hardly overcomes it.

    Raises:
        SensoriumError: `vocab_size` or `dim` is too small.
    """

    step: Tensor

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        *,
        anneal_steps: int,
        kl_weight: float = 1.0,
        logit_scale: float = 1.0,
    ):
        super().__init__()
        _validate_codebook(vocab_size, dim)
        self.vocab_size = self.in_dim = vocab_size
        self.out_dim = dim
        self.anneal_steps = anneal_steps
        self.kl_weight = kl_weight
        self.logit_scale = logit_scale
        self.codebook = normal_parameter(vocab_size, dim, std=dim**-0.5)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, z: Float[Tensor, "*rows K"]) -> QuantizerOutput:
        """Return relaxed code vectors in training, those of the most likely codes otherwise."""
        logits = self.logit_scale * z.float()
        ids = self.to_ids(logits)
        x = self._sample_relaxed(logits) @ self.codebook if self.training else self.to_vectors(ids)
        kl = kl_schedule(self.progress) * self.kl_weight * kl_to_uniform(logits)
        return QuantizerOutput(x, ids, kl)

    @property
    def progress(self) -> Float[Tensor, ""]:
        """Progress of the schedules, from 0 to 1."""
        return (self.step / self.anneal_steps).clamp(max=1)

    def to_ids(self, z: Float[Tensor, "*rows K"]) -> Int[Tensor, "*rows"]:
        """Return the most likely code of each feature vector."""
        return z.argmax(-1)

    def to_vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        """Return the vector of each code."""
        return self.codebook[ids]

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the step, which advances the schedules."""
        self.step.add_(1)

    def _sample_relaxed(self, logits: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows K"]:
        """Sample from the Gumbel-softmax distribution at the current temperature."""
        tiny = torch.finfo(logits.dtype).tiny
        noise = -torch.empty_like(logits).exponential_().clamp(min=tiny).log()
        return ((logits + noise) / temperature_schedule(self.progress)).softmax(-1)


def temperature_schedule(progress: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the temperature of the relaxation: 1 at progress 0, 1/16 at progress 1."""
    return 1 + (MIN_TEMPERATURE - 1) * _cosine_ramp(progress)


def kl_schedule(progress: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the factor on the KL term: 0 at progress 0, 6.6 at progress 1."""
    return MAX_KL_WEIGHT * _cosine_ramp(progress)


def kl_to_uniform(logits: Float[Tensor, "*rows K"]) -> Float[Tensor, ""]:
    """Return KL(softmax(logits) | uniform) in nats, the mean over all rows."""
    log_p = logits.log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1).mean() + math.log(logits.shape[-1])


def _validate_codebook(vocab_size: int, dim: int) -> None:
    if vocab_size < 2 or dim < 1:
        raise SensoriumError(
            f"A codebook of {vocab_size} codes of width {dim} is too small. It needs at least 2 "
            "codes and a width of at least 1."
        )


def _cosine_ramp(progress: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return half a cosine from 0 to 1."""
    return (1 - (math.pi * progress).cos()) / 2


def _straight_through(value: Tensor, gradient_source: Tensor) -> Tensor:
    """Return `value` exactly, with the gradient of `gradient_source`."""
    return value.detach() + (gradient_source - gradient_source.detach())
