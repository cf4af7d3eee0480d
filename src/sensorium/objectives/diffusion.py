"""Diffusion and flow matching: noise schedules, predictions and their conversions, and the loss.

    x(t) = alpha(t) x0 + sigma(t) epsilon

x0 is data and epsilon standard normal noise; t = 0 is data and t = 1 is noise, in every schedule.

B batch   c channels   h, w image size
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.models.denoiser import TrainableDenoiser
from sensorium.models.prior import ImagePrior
from sensorium.nn.tokens import Batch, ColumnKey

Prediction = Literal["epsilon", "x0", "v", "flow"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "x0", "v", "flow")
TIME_SCALE = 1000.0
"""Factor on t for the denoiser's time embedding, so that t = 1 is step 1000."""

REFERENCE_SIDE = 24
REFERENCE_MEAN = 1.24
LOGIT_STD = 0.9
"""Most of an image is decided where logit t is about N(1.24, 0.71) at 24 pixels. More pixels carry
more information at the same noise, which moves the mean by the logarithm of the side."""


@runtime_checkable
class NoiseSchedule(Protocol):
    """How much of the data and how much noise x(t) has."""

    def alpha_sigma(self, t: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at each time."""
        ...


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow (Liu et al. 2022), a line from data to noise: alpha = 1 - t, sigma = t."""

    def alpha_sigma(self, t: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at each time."""
        return 1 - t, t


@dataclass(frozen=True)
class CosineSchedule:
    """The variance-preserving cosine schedule (Nichol and Dhariwal 2021) in continuous time.

    alpha = cos(pi t / 2) and sigma = sin(pi t / 2), exactly data at t = 0.

    Attributes:
        max_time: Largest t that is told apart; 1 is zero terminal SNR (Lin et al. 2024).
    """

    max_time: float = 0.999

    def alpha_sigma(self, t: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at each time."""
        if self.max_time < 1:
            t = t.clamp(max=self.max_time)
        angle = t * (math.pi / 2)
        return torch.where(t < 1, angle.cos(), 0), angle.sin()


@dataclass(frozen=True)
class DiscreteSchedule:
    """Variance preserving, in steps: step i of N, from 0, is at t = (i + 1) / N; t = 0 is data.

    Attributes:
        alphas_cumprod: Squared alpha of each step, descending.
    """

    alphas_cumprod: Float[Tensor, "N"]

    @classmethod
    def linear(
        cls, steps: int = 1000, start: float = 1e-4, end: float = 0.02, *, zero_snr: bool = False
    ) -> "DiscreteSchedule":
        """Return the schedule of DDPM (Ho et al. 2020): beta grows linearly.

        Args:
            steps: N.
            start: beta of the first step.
            end: beta of the last step.
            zero_snr: Whether alpha is rescaled to end at 0 (Lin et al. 2024).
        """
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
        alphas_cumprod = (1 - betas).cumprod(0)
        if zero_snr:
            root = alphas_cumprod.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            alphas_cumprod = root**2
        return cls(alphas_cumprod.float())

    def alpha_sigma(self, t: Float[Tensor, "*n"]) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of the nearest step."""
        with_data = torch.cat([torch.ones(1), self.alphas_cumprod]).to(t.device)
        alpha_squared = with_data[(t * len(self.alphas_cumprod)).round().long()].to(t.dtype)
        return alpha_squared.sqrt(), (1 - alpha_squared).sqrt()


@dataclass(frozen=True)
class DiffusionProcess:
    """A noise schedule, and what the denoiser predicts.

    Attributes:
        schedule: The noise schedule.
        prediction: `epsilon` (the noise), `x0` (the data), `v` = alpha epsilon - sigma x0, or
            `flow` = epsilon - x0.

    Raises:
        ValueError: The prediction is the noise and the schedule ends without signal: x0 could not
            be told from it.
    """

    schedule: NoiseSchedule
    prediction: Prediction

    def __post_init__(self) -> None:
        alpha, _ = self.schedule.alpha_sigma(torch.ones(1))
        if self.prediction == "epsilon" and alpha.item() == 0:
            raise ValueError(
                "With zero terminal SNR the noise says nothing of the data at t = 1. Predict v, x0 "
                "or flow."
            )

    def coefficients(
        self, t: Float[Tensor, "B"], like: Float[Tensor, "B *s"]
    ) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of each row, shaped to multiply `like`."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        shape = (-1, *[1] * (like.ndim - 1))
        return alpha.view(shape), sigma.view(shape)

    def add_noise(
        self, x0: Float[Tensor, "B *s"], noise: Float[Tensor, "B *s"], t: Float[Tensor, "B"]
    ) -> Float[Tensor, "B *s"]:
        """Return x(t)."""
        alpha, sigma = self.coefficients(t, x0)
        return alpha * x0 + sigma * noise

    def target(
        self, x0: Float[Tensor, "B *s"], noise: Float[Tensor, "B *s"], t: Float[Tensor, "B"]
    ) -> Float[Tensor, "B *s"]:
        """Return what the denoiser should predict."""
        alpha, sigma = self.coefficients(t, x0)
        match self.prediction:
            case "epsilon":
                return noise
            case "x0":
                return x0
            case "v":
                return alpha * noise - sigma * x0
            case "flow":
                return noise - x0

    def to_data_and_noise(
        self, prediction: Float[Tensor, "B *s"], x: Float[Tensor, "B *s"], t: Float[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B *s"], Float[Tensor, "B *s"]]:
        """Return the predicted x0 and epsilon of x(t); exact where the prediction is exact."""
        alpha, sigma = self.coefficients(t, x)
        match self.prediction:
            case "epsilon":
                return (x - sigma * prediction) / alpha, prediction
            case "x0":
                return prediction, self.noise_of(prediction, x, t)
            case "v":
                power = alpha**2 + sigma**2
                x0 = (alpha * x - sigma * prediction) / power
                return x0, (sigma * x + alpha * prediction) / power
            case "flow":
                total = alpha + sigma
                return (x - sigma * prediction) / total, (x + alpha * prediction) / total

    def noise_of(
        self, x0: Float[Tensor, "B *s"], x: Float[Tensor, "B *s"], t: Float[Tensor, "B"]
    ) -> Float[Tensor, "B *s"]:
        """Return the epsilon by which x(t) has this x0; zero where sigma is zero."""
        alpha, sigma = self.coefficients(t, x)
        noise = (x - alpha * x0) / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
        return torch.where(sigma > 0, noise, 0)

    def data_error_factor(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the squared error of x0 for a unit squared error of the prediction."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        match self.prediction:
            case "epsilon":
                return (sigma / alpha) ** 2
            case "x0":
                return torch.ones_like(t)
            case "v":
                return (sigma / (alpha**2 + sigma**2)) ** 2
            case "flow":
                return (sigma / (alpha + sigma)) ** 2


def min_snr_weight(
    process: DiffusionProcess, t: Float[Tensor, "B"], gamma: float = 5.0
) -> Float[Tensor, "B"]:
    """Return the min-SNR weight of the loss on any prediction (Hang et al. 2023).

    It equals a weight of min(SNR, gamma) on the squared error of x0.
    """
    alpha, sigma = process.schedule.alpha_sigma(t)
    snr = (alpha / sigma) ** 2
    return snr.clamp(max=gamma) * process.data_error_factor(t)


def logit_normal_times(
    n: int, mean: float = 0.0, std: float = 1.0, *, device: torch.device | None = None
) -> Float[Tensor, "n"]:
    """Sample times whose logit is normal (Esser et al. 2024), stratified over the batch.

    Each of n equally likely intervals gives one time, in random order, which lowers the variance
    of the loss and leaves the distribution of a single time as it is.

    Args:
        n: Number of times.
        mean: Mean of logit t; more than 0 favors noise.
        std: Standard deviation of logit t.
        device: Device of the result.
    """
    uniform = (torch.randperm(n, device=device) + torch.rand(n, device=device)) / n
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    return (mean + std * normal).sigmoid()


def default_logit_mean(side: int) -> float:
    """Return the mean of logit t that suits square images of this side in pixels."""
    return REFERENCE_MEAN + math.log(side / REFERENCE_SIDE)


def denoising_loss(
    process: DiffusionProcess,
    denoise: Callable[[Tensor, Tensor], Tensor],
    x0: Float[Tensor, "B *s"],
    t: Float[Tensor, "B"],
    *,
    gamma: float = 0.0,
) -> Float[Tensor, "B"]:
    """Return the squared error of the prediction for each row, in float32.

    Args:
        process: The diffusion process.
        denoise: Returns the prediction for (x(t), times from 0 to 1000).
        x0: Data.
        t: Time of each row.
        gamma: gamma of min-SNR weights; 0 for the plain error.
    """
    noise = torch.randn_like(x0)
    prediction = denoise(process.add_noise(x0, noise, t), t * TIME_SCALE).float()
    error = (prediction - process.target(x0, noise, t).float()).square().flatten(1).mean(1)
    return error * min_snr_weight(process, t, gamma) if gamma else error


@dataclass(frozen=True)
class DenoisingLoss:
    """The denoising loss of an image column, given the text column where there is one.

    Attributes:
        process: The diffusion process.
        image: Image column, with values from -1 to 1.
        text: Text column.
        caption_dropout: Probability that a text is dropped, for classifier-free guidance.
        logit_mean: Mean of logit t.
        logit_std: Standard deviation of logit t.
        gamma: gamma of min-SNR weights; 0 for the plain error.
    """

    process: DiffusionProcess
    image: str
    text: ColumnKey
    caption_dropout: float = 0.1
    logit_mean: float = 0.0
    logit_std: float = LOGIT_STD
    gamma: float = 0.0

    def __call__(self, model: TrainableDenoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the mean loss of the rows that have an image."""
        return {"model": self.row_losses(model, batch).mean()}

    def row_losses(self, model: TrainableDenoiser, batch: Batch) -> Float[Tensor, "B"]:
        """Return the loss of each row that has an image."""
        batch = batch.take(batch.presence(self.image))
        keep = batch.presence(self.text)
        if model.training and self.caption_dropout:
            keep = keep & (torch.rand(len(keep), device=keep.device) >= self.caption_dropout)
        x0 = batch[self.image]
        text = batch.columns.get(self.text)
        t = logit_normal_times(len(batch), self.logit_mean, self.logit_std, device=x0.device)
        denoise = model.training_denoiser(x0, text, keep, self.process.add_noise)
        return denoising_loss(self.process, denoise, x0, t, gamma=self.gamma)


@dataclass(frozen=True)
class PriorLoss:
    """The loss of a diffusion prior: the squared error of the predicted image embedding.

    Attributes:
        process: The diffusion process, which predicts x0.
        image: Image column, with values from -1 to 1.
        text: Text column.
        caption_dropout: Probability that a text is dropped, for classifier-free guidance.
    """

    process: DiffusionProcess
    image: str
    text: ColumnKey
    caption_dropout: float = 0.1

    def __call__(self, model: ImagePrior, batch: Batch) -> dict[str, Tensor]:
        """Return the mean loss of the rows that have an image."""
        return {"model": self.row_losses(model, batch).mean()}

    def row_losses(self, model: ImagePrior, batch: Batch) -> Float[Tensor, "B"]:
        """Return the loss of each row that has an image."""
        batch = batch.take(batch.presence(self.image))
        keep = batch.presence(self.text)
        if model.training and self.caption_dropout:
            keep = keep & (torch.rand(len(keep), device=keep.device) >= self.caption_dropout)
        condition = model.encode_texts(batch.columns.get(self.text), keep)
        x0 = model.encode_images(batch[self.image])
        n = len(x0)
        t = (torch.randperm(n, device=x0.device) + torch.rand(n, device=x0.device)) / n
        return denoising_loss(self.process, lambda x, time: model.prior(x, time, condition), x0, t)
