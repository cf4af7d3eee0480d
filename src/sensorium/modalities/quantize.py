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
from sensorium.kernels import drawn

COOLEST, STRONGEST = 1 / 16, 6.6        # temperature and KL weight at the end of a dVAE's schedule (Ramesh et al. 2021)
DEAD = 1 / 32                           # a code used less than this part of its fair share is restarted


@dataclass(frozen=True)
class Quantized:
    """x: the vectors of the codes, through which the gradient reaches the features. loss: to be added to the rest."""

    x: Float[Tensor, "*rows E"]
    ids: Int[Tensor, "*rows"]
    loss: Float[Tensor, ""]


@runtime_checkable
class Quantizer(Protocol):
    """vocab: K. inside, outside: widths D and E."""

    vocab: int
    inside: int
    outside: int

    def __call__(self, z: Float[Tensor, "*rows D"], /) -> Quantized: ...

    def ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """The code of each feature vector."""
        ...

    def vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        """What each code stands for."""
        ...

    def after_step(self) -> None:
        """Take in what was seen since the last update of the weights."""
        ...


class FSQ(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023): each channel is bounded and rounded to one of its levels.

    A code is a number in mixed radix, the first channel its lowest digit. Nothing is learned, and nothing collapses.
    """

    middle: Tensor
    shift: Tensor
    place: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int] = (8, 8, 8)):
        super().__init__()
        if not levels or min(levels) < 2:
            raise SensoriumError(f"FSQ levels={tuple(levels)}: each channel needs at least 2.")
        self.levels, self.vocab = tuple(levels), math.prod(levels)
        self.inside = self.outside = len(levels)
        self.register_buffer("middle", torch.tensor([n // 2 for n in levels]), persistent=False)
        self.register_buffer("shift", torch.tensor([0.5 * (n % 2 == 0) for n in levels]), persistent=False)
        self.register_buffer("place", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]),
                             persistent=False)
        self.register_buffer("radix", torch.tensor(levels), persistent=False)

    def forward(self, z: Float[Tensor, "*rows D"]) -> Quantized:
        bounded = self._bounded(z)
        level = bounded.detach().round()
        return Quantized(_straight(level, bounded) / self.middle, self._number(level), bounded.new_zeros(()))

    def ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        return self._number(self._bounded(z).round())

    def vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        digits = ids[..., None] // self.place % self.radix
        return (digits - self.middle).float() / self.middle

    def after_step(self) -> None:
        return None

    def _bounded(self, z: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Just beyond -n/2 .. n/2 - 1 for an even number n of levels, ±(n - 1)/2 for an odd one, so that rounding
        meets n of them; 0 stays at 0."""
        span = (self.radix - 1) * 1.001 / 2
        return (z.float() + (self.shift / span).atanh()).tanh() * span - self.shift

    def _number(self, level: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        """`level` is rounded already: casting a sum of floats would cut 2.9999 down to 2."""
        return ((level.long() + self.middle) * self.place).sum(-1)


class VQ(nn.Module):
    """Vector quantization (van den Oord et al. 2017): the nearest vector of a codebook that follows its users' mean.

    decay: of the moving means. commitment: weight of |z - sg(e)|². restart: codes that hardly any feature uses begin
    anew as features of the last batch (Dhariwal et al. 2020).
    """

    codebook: Tensor
    counts: Tensor
    seen_counts: Tensor
    seen_sums: Tensor

    def __init__(self, vocab: int, width: int, *, decay: float = 0.99, commitment: float = 0.25, restart: bool = True):
        super().__init__()
        _check(vocab, width)
        self.vocab, self.inside, self.outside = vocab, width, width
        self.decay, self.commitment, self.restart = decay, commitment, restart
        self.register_buffer("codebook", drawn(vocab, width, std=width ** -0.5).detach())
        self.register_buffer("counts", torch.zeros(vocab))                  # of features, a moving mean
        self.register_buffer("seen_counts", torch.zeros(vocab), persistent=False)       # since the last update
        self.register_buffer("seen_sums", torch.zeros(vocab, width), persistent=False)
        self.recent: Tensor | None = None                                   # features of the last batch [N D]

    def forward(self, z: Float[Tensor, "*rows D"]) -> Quantized:
        z = z.float()
        ids = self.ids(z)
        e = self.vectors(ids)
        if self.training:
            self._see(z.detach().reshape(-1, self.inside), ids.reshape(-1))
        return Quantized(_straight(e, z), ids, self.commitment * F.mse_loss(z, e))

    @torch.no_grad()
    def ids(self, z: Float[Tensor, "*rows D"]) -> Int[Tensor, "*rows"]:
        with torch.autocast(z.device.type, enabled=False):                  # bf16 would mistake near neighbours
            flat = z.float().reshape(-1, self.inside)
            distance = torch.addmm(self.codebook.square().sum(1), flat, self.codebook.T, alpha=-2)
        return distance.argmin(1).reshape(z.shape[:-1])

    def vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        return self.codebook[ids]

    @torch.no_grad()
    def after_step(self) -> None:
        """Move every code towards the mean of the features that chose it; restart those that none chooses."""
        if self.recent is None:
            return
        counts = self.counts * self.decay + self.seen_counts * (1 - self.decay)
        sums = self.codebook * (self.counts * self.decay)[:, None] + self.seen_sums * (1 - self.decay)
        used = counts > 1e-6
        self.codebook.copy_(torch.where(used[:, None], sums / counts.clamp(min=1e-6)[:, None], self.codebook))
        self.counts.copy_(counts)
        if self.restart:
            self._restart(self.recent)
        self.seen_counts.zero_()
        self.seen_sums.zero_()
        self.recent = None

    def _see(self, z: Float[Tensor, "N D"], ids: Int[Tensor, "N"]) -> None:
        self.seen_counts.add_(torch.bincount(ids, minlength=self.vocab))
        self.seen_sums.index_add_(0, ids, z)
        self.recent = z

    def _restart(self, z: Float[Tensor, "N D"]) -> None:
        fair = self.counts.sum() / self.vocab
        dead = (self.counts < DEAD * fair).nonzero().flatten()
        drawn = torch.randint(len(z), (len(dead),), device=z.device)
        self.codebook[dead] = z[drawn]
        self.counts[dead] = fair


class Gumbel(nn.Module):
    """The discrete VAE of DALL-E (Ramesh et al. 2021): features are logits over codes, drawn by the Gumbel relaxation.

    While it learns, a soft draw at a temperature that falls from 1 to 1/16; afterwards the likeliest code. loss: the KL
    divergence from the uniform prior, in nats a code, times `weight` and a factor that grows from 0 to 6.6. Both follow
    half a cosine over the first `anneal` updates. weight: codes per value of what is coded, where the reconstruction is
    a mean over values (the paper's 1/192 is 32² / (256² · 3)). sharp: what features are multiplied with. Of the size
    that first weights give them, they are lost in the noise of the draw, and a short training hardly leaves it.
    """

    step: Tensor

    def __init__(self, vocab: int, width: int, *, anneal: int, weight: float = 1.0, sharp: float = 1.0):
        super().__init__()
        _check(vocab, width)
        self.vocab, self.inside, self.outside = vocab, vocab, width
        self.anneal, self.weight, self.sharp = anneal, weight, sharp
        self.codebook = drawn(vocab, width, std=width ** -0.5)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, z: Float[Tensor, "*rows K"]) -> Quantized:
        z = self.sharp * z.float()
        ids = self.ids(z)
        x = self._drawn(z) @ self.codebook if self.training else self.vectors(ids)
        return Quantized(x, ids, strength(self.progress) * self.weight * kl_to_uniform(z))

    @property
    def progress(self) -> Float[Tensor, ""]:
        """Of the schedule, from 0 to 1."""
        return (self.step / self.anneal).clamp(max=1)

    def ids(self, z: Float[Tensor, "*rows K"]) -> Int[Tensor, "*rows"]:
        return z.argmax(-1)

    def vectors(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows E"]:
        return self.codebook[ids]

    @torch.no_grad()
    def after_step(self) -> None:
        self.step.add_(1)

    def _drawn(self, z: Float[Tensor, "*rows K"]) -> Float[Tensor, "*rows K"]:
        noise = -torch.empty_like(z).exponential_().clamp(min=torch.finfo(z.dtype).tiny).log()
        return ((z + noise) / temperature(self.progress)).softmax(-1)


def temperature(progress: Float[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """Of the relaxation, at a progress from 0 to 1: 1 at first, 1/16 at last."""
    return 1 + (COOLEST - 1) * _risen(progress)


def strength(progress: Float[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """Of the KL term, at a progress from 0 to 1: 0 at first, 6.6 at last."""
    return STRONGEST * _risen(progress)


def kl_to_uniform(logits: Float[Tensor, "*rows K"]) -> Float[Tensor, ""]:
    """KL(softmax(logits) | uniform) in nats, the mean over all rows: a batch twice over has the same."""
    log = logits.log_softmax(-1)
    return (log.exp() * log).sum(-1).mean() + math.log(logits.shape[-1])


def _check(vocab: int, width: int) -> None:
    if vocab < 2 or width < 1:
        raise SensoriumError(f"vocab={vocab}, width={width}: expected 2 codes or more, and a width of 1 or more.")


def _risen(progress: Float[Tensor, "*at"]) -> Float[Tensor, "*at"]:
    """Half a cosine from 0 to 1."""
    return (1 - (math.pi * progress).cos()) / 2


def _straight(value: Tensor, through: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `through` (straight-through estimator)."""
    return value.detach() + (through - through.detach())
