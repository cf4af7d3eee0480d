"""Samplers of diffusion processes: from noise to data, in few evaluations of the denoiser.

All samplers go through the same steps on x(t) = alpha x0 + sigma epsilon (see `diffusion.py`):

    predict x0 and epsilon, guide, threshold x0 and derive epsilon anew, then move to the next time.

`ddim` with eta 0 is Euler's method on the probability flow, for rectified flow too; eta 1 is DDPM.

B batch   c channels   h, w image size   N steps
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.objectives.diffusion import TIME_SCALE, DiffusionProcess, FlowSchedule
from sensorium.rng import generator

Sampler = Literal["ddim", "ddpm", "euler", "heun", "dpm++"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "ddpm", "euler", "heun", "dpm++")
Denoise = Callable[[Tensor, Tensor], Tensor]
"""Returns the prediction for (x(t), times from 0 to 1000)."""


class RowNoise:
    """Standard normal noise whose rows depend on their own seeds and on nothing else.

    Args:
        seeds: Seeds of each row.
        shape: Shape of a row.
    """

    def __init__(self, seeds: Sequence[Sequence[int]], shape: Sequence[int]):
        self.generators = [generator(*row) for row in seeds]
        self.shape = tuple(shape)

    def draw(self) -> Float[Tensor, "B *s"]:
        """Return the next noise of each row."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2021) over an interval of times.

    Attributes:
        scale: Guidance scale; 1 is off, and costs nothing.
        interval: Lowest and highest time at which it is on (Kynkäänniemi et al. 2024).
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def is_on(self, t: float) -> bool:
        """Return whether the unconditional prediction is needed at this time."""
        low, high = self.interval
        return self.scale != 1 and low <= t <= high

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided prediction."""
        return torch.lerp(unconditional, conditional, self.scale)


@dataclass(frozen=True)
class Threshold:
    """Limit the predicted data to its range, -1 to 1.

    Attributes:
        kind: `none`, `static` (clip), or `dynamic` (Saharia et al. 2022): divide each row by a
            quantile of its absolute values where that exceeds 1.
        quantile: The quantile of `dynamic`.
    """

    kind: Literal["none", "static", "dynamic"] = "none"
    quantile: float = 0.995

    def __call__(self, x0: Float[Tensor, "B *s"]) -> Float[Tensor, "B *s"]:
        """Return the data within its range."""
        if self.kind == "none":
            return x0
        if self.kind == "static":
            return x0.clamp(-1, 1)
        scale = x0.float().flatten(1).abs().quantile(self.quantile, dim=1).clamp(min=1)
        scale = scale.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-scale, scale) / scale


@dataclass(frozen=True)
class KnownRegion:
    """Pixels that are given, for inpainting; they are equal in the result.

    Attributes:
        x0: Images with the given pixels.
        mask: True where a pixel is generated.
        noise: Noise of the given pixels at every time.
    """

    x0: Float[Tensor, "B c h w"]
    mask: Tensor
    noise: Float[Tensor, "B c h w"]

    def restore(
        self, x: Float[Tensor, "B c h w"], process: DiffusionProcess, t: float
    ) -> Float[Tensor, "B c h w"]:
        """Return x(t) with the given pixels put back, at the noise of time t."""
        if t == 0:
            return torch.where(self.mask, x, self.x0)
        times = torch.full(x.shape[:1], t, device=x.device)
        return torch.where(self.mask, x, process.add_noise(self.x0, self.noise, times))


@dataclass(frozen=True)
class SamplerConfig:
    """Options of sampling.

    Attributes:
        sampler: `ddim`, `ddpm` (stochastic), `euler` and `heun` (flow only), `dpm++`
            (DPM-Solver++ 2M, Lu et al. 2022).
        steps: Number of steps.
        shift: Factor by which the odds of noise at inner times are raised; 1 for equal steps.
        eta: Noise added by `ddim`: 0 is deterministic, 1 as much as DDPM.
        start: Time at which sampling starts; 1 is pure noise.
        threshold: Thresholding of the predicted data.
        timesteps: Times of the steps, descending, instead of `steps`, `shift` and `start`.
    """

    sampler: Sampler = "dpm++"
    steps: int = 12
    shift: float = 3.5
    eta: float = 0.0
    start: float = 1.0
    threshold: Threshold = field(default_factory=Threshold)
    timesteps: Sequence[float] = ()

    def times(self) -> list[float]:
        """Return the times of the steps, descending."""
        if self.timesteps:
            return list(self.timesteps)
        return shifted_times(self.steps, self.shift, self.start)


def shifted_times(steps: int, shift: float = 1.0, start: float = 1.0) -> list[float]:
    """Return N + 1 times from `start` down to 0; a shift above 1 puts more at high noise."""
    fractions = [1 - i / steps for i in range(steps + 1)]
    return [start * shift * f / (1 + (shift - 1) * f) for f in fractions]


@torch.no_grad()
def sample(
    denoise: Denoise,
    process: DiffusionProcess,
    x: Float[Tensor, "B *s"],
    config: SamplerConfig,
    *,
    step_noise: Callable[[], Tensor] | None = None,
    known: KnownRegion | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Float[Tensor, "B *s"]:
    """Return data.

    Args:
        denoise: The denoiser, with condition and guidance applied.
        process: The process it was trained with.
        x: x at the first time: noise, or an image with noise.
        config: Options of sampling.
        step_noise: Returns the noise of a stochastic step.
        known: Given pixels.
        on_step: Called after each step with its number, from 1, and the predicted data.

    Raises:
        ValueError: The sampler does not suit the process, or needs `step_noise`.
    """
    eta = 1.0 if config.sampler == "ddpm" else config.eta
    if eta and step_noise is None:
        raise ValueError(f"The sampler {config.sampler} with eta {eta} needs noise for each step.")
    if config.sampler in ("euler", "heun") and not isinstance(process.schedule, FlowSchedule):
        raise ValueError(f"The sampler {config.sampler} needs a flow. Use ddim or dpm++.")
    solver = _Solver(denoise, process, config.threshold)
    schedule = config.times()
    previous: _Estimate | None = None
    for i, (t, s) in enumerate(itertools.pairwise(schedule)):
        if known is not None:
            x = known.restore(x, process, t)
        estimate = solver.predict(x, t)
        if config.sampler == "dpm++":
            x = solver.multistep(x, estimate, previous, s)
        elif config.sampler == "heun":
            x = solver.heun(x, estimate, s)
        else:
            noise = step_noise() if eta and step_noise is not None and s > 0 else None
            x = solver.ddim(estimate, s, eta, noise)
        previous = estimate
        if on_step is not None:
            on_step(i + 1, estimate.x0)
    return x if known is None else known.restore(x, process, schedule[-1])


@torch.no_grad()
def invert(
    denoise: Denoise,
    process: DiffusionProcess,
    x0: Float[Tensor, "B *s"],
    times: Sequence[float],
) -> Float[Tensor, "B *s"]:
    """Return the noise that DDIM with eta 0 turns into these data, up to its step size.

    Args:
        denoise: The denoiser with its condition, unguided.
        process: The process it was trained with.
        x0: Data.
        times: The times that sampling will use, descending.
    """
    solver = _Solver(denoise, process, Threshold())
    x = x0
    ascending = list(reversed(times))
    for t, s in itertools.pairwise(ascending):
        x = solver.ddim(solver.predict(x, t), s)
    return x


@dataclass(frozen=True)
class _Estimate:
    """What the denoiser says of x(t)."""

    t: float
    x0: Tensor
    noise: Tensor


@dataclass(frozen=True)
class _Solver:
    """Steps from one time to the next."""

    denoise: Denoise
    process: DiffusionProcess
    threshold: Threshold

    def predict(self, x: Tensor, t: float) -> _Estimate:
        """Return the predicted data and noise; thresholded data change the noise too."""
        times = torch.full(x.shape[:1], t, dtype=torch.float32, device=x.device)
        prediction = self.denoise(x, times * TIME_SCALE).float()
        x0, noise = self.process.to_data_and_noise(prediction, x, times)
        if self.threshold.kind != "none":
            x0 = self.threshold(x0)
            noise = self.process.noise_of(x0, x, times)
        return _Estimate(t, x0, noise)

    def ddim(
        self, estimate: _Estimate, s: float, eta: float = 0.0, noise: Tensor | None = None
    ) -> Tensor:
        """Return x(s) by DDIM (Song et al. 2021)."""
        alpha_t, sigma_t = self._alpha_sigma(estimate.t)
        alpha_s, sigma_s = self._alpha_sigma(s)
        fresh = 0.0
        if eta and noise is not None:
            ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
            fresh = eta * sigma_s * max(0.0, 1 - ratio**2) ** 0.5
        remaining = max(0.0, sigma_s**2 - fresh**2) ** 0.5
        x = alpha_s * estimate.x0 + remaining * estimate.noise
        return x if noise is None else x + fresh * noise

    def multistep(
        self, x: Tensor, estimate: _Estimate, previous: _Estimate | None, s: float
    ) -> Tensor:
        """Return x(s) by DPM-Solver++(2M); the first and the last step are of first order."""
        alpha_t, sigma_t = self._alpha_sigma(estimate.t)
        alpha_s, sigma_s = self._alpha_sigma(s)
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)  # exp of minus the step in log alpha/sigma
        x0 = estimate.x0
        if previous is not None and ratio > 0:
            alpha_r, sigma_r = self._alpha_sigma(previous.t)
            previous_ratio = alpha_r * sigma_t / (alpha_t * sigma_r)
            if previous_ratio > 0:  # else the step from pure noise is infinitely long
                weight = math.log(ratio) / (2 * math.log(previous_ratio))
                x0 = x0 + weight * (x0 - previous.x0)
        return sigma_s / sigma_t * x + alpha_s * (1 - ratio) * x0

    def heun(self, x: Tensor, estimate: _Estimate, s: float) -> Tensor:
        """Return x(s) of a flow by Heun's method; the last step is Euler's."""
        velocity = estimate.noise - estimate.x0
        step = s - estimate.t
        euler = x + step * velocity
        if s == 0:
            return euler
        end = self.predict(euler, s)
        return x + step * 0.5 * (velocity + end.noise - end.x0)

    def _alpha_sigma(self, t: float) -> tuple[float, float]:
        alpha, sigma = self.process.schedule.alpha_sigma(torch.tensor([t], dtype=torch.float64))
        return alpha.item(), sigma.item()
