"""Audio: log-mel spectrograms with 10 ms frames, and the convolutional stem of Whisper.

Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".

B batch   N samples   R samples at another rate   F frames of 10 ms   M mel bands
T tokens of 20 ms   D width
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from sensorium.io.untrusted import EmbeddedFile
from sensorium.modalities.audio_io import read_audio
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.nn.positional import sinusoidal_positions
from sensorium.nn.tokens import Tokens, sequence_positions, valid_or_none

WINDOW_SECONDS = 0.025  # length of an analysis window
HOP_SECONDS = 0.010  # from the start of one frame to the next
MAX_FILTER_SIZE = 1 << 22  # numbers in the filters of all phases
NUM_PHASES = 1024  # between which filters are interpolated, with an error below 1e-6
PADDING_VALUE = -math.inf  # padding frames in a batch: the logarithm of zero energy


@dataclass(frozen=True)
class Audio:
    """Settings of an audio column: one channel, as a log-mel spectrogram.

    Attributes:
        sample_rate: Samples per second after resampling.
        n_mels: Number of mel bands, from 0 Hz to half the sample rate.
        max_seconds: Longest audio in seconds; longer files are rejected before they are read.
        seconds: Length in seconds to which all audio is cut or zero-padded; 0 pads to the longest
            of each batch.
    """

    kind: ClassVar[str] = "audio"
    extensions: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg", ".mp3")
    sample_rate: int = 16_000
    n_mels: int = 80
    max_seconds: float = 3600.0
    seconds: float = 0.0

    def fit(self, values: Iterable[Any]) -> Audio:  # noqa: ARG002 - part of the Modality contract
        """Return self: there is nothing to learn."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """Return one recording as float32 [N] in -1..1 at `sample_rate`.

        Args:
            raw: The path of an audio file, its bytes, a tuple (samples, sample rate), or samples
                [N] at `sample_rate`.

        Raises:
            ValueError: If it cannot be read, is empty, or is longer than `max_seconds`.
        """
        if isinstance(raw, str | Path | EmbeddedFile | bytes):
            samples, rate = read_audio(raw, self.max_seconds)
        elif isinstance(raw, tuple):
            samples, rate = raw
        else:
            samples = raw
            rate = self.sample_rate
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
            raise ValueError(
                f"expected finite samples [N] of one channel, got shape {list(samples.shape)}"
            )
        if len(samples) > self.max_seconds * rate:
            raise ValueError(
                f"{len(samples) / rate:.0f} s long, more than the limit of {self.max_seconds:.0f} s"
            )
        return resample(torch.from_numpy(samples), rate, self.sample_rate).numpy()

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B M F"]:
        """Return log-mel spectrograms, padded with PADDING_VALUE to the longest.

        With `seconds`, the samples are cut or padded with zeros (silence) instead. A missing value,
        which has no samples, is padding throughout.
        """
        if self.seconds:
            size = round(self.seconds * self.sample_rate)
            values = [np.pad(v[:size], (0, max(0, size - len(v)))) if len(v) else v for v in values]
        spectrograms = [self._spectrogram(v) for v in values]
        longest = max((x.shape[1] for x in spectrograms), default=0) or 1
        return torch.stack(
            [F.pad(x, (0, longest - x.shape[1]), value=PADDING_VALUE) for x in spectrograms]
        )

    def _spectrogram(self, samples: np.ndarray) -> Float[Tensor, "M F"]:
        if not len(samples):
            return torch.zeros(self.n_mels, 0)
        return log_mel_spectrogram(torch.from_numpy(samples)[None], self.sample_rate, self.n_mels)[
            0
        ]

    def augment(
        self,
        batch: Float[Tensor, "B M F"],
        rng: torch.Generator,
        *,
        freq_mask: float = 0.0,
        time_mask: float = 0.0,
        gain: float = 0.0,
    ) -> Float[Tensor, "B M F"]:
        """Return the spectrograms with SpecAugment masks and a random gain.

        A masked span is filled with the mean of its spectrogram (Park et al. 2019, "SpecAugment").

        Args:
            batch: Spectrograms as `collate` returns them.
            rng: Random generator.
            freq_mask: Largest fraction of the mel bands in one masked span.
            time_mask: Largest fraction of the frames in one masked span.
            gain: Largest change of loudness, either way; 1 is 40 dB.
        """
        real = batch > PADDING_VALUE
        count = real.sum((1, 2), keepdim=True).clamp(min=1)
        mean = batch.where(real, 0).sum((1, 2), keepdim=True) / count
        bands = _sample_spans(batch.shape[1], freq_mask, batch, rng)
        frames = _sample_spans(batch.shape[2], time_mask, batch, rng)
        offset = gain * (2 * torch.rand(len(batch), 1, 1, generator=rng) - 1)
        masked = real & (bands[:, :, None] | frames[:, None])
        return torch.where(masked, mean, batch) + offset

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n M F"]:
        """Return n random spectrograms of 0.2 to 2 s, for tests and dry runs."""
        sizes = torch.randint(20, 200, (n,), generator=rng)
        batch = torch.rand(n, self.n_mels, int(sizes.max()), generator=rng)
        padding = torch.arange(batch.shape[2]) >= sizes[:, None, None]
        return batch.masked_fill(padding, PADDING_VALUE)

    def decode(self, spectrogram: Float[Tensor, "M F"]) -> Image.Image:
        """Return the spectrogram as a grayscale image: time to the right, frequency upward."""
        real = spectrogram[:, spectrogram[0] > PADDING_VALUE]
        gray = (real - real.min()) / (real.max() - real.min()).clamp(min=1e-6) * 255
        return Image.fromarray(gray.flip(0).byte().numpy())

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Audio:
        """Return settings from plain JSON values."""
        return cls(**validate_settings(cls, data))


def _sample_spans(
    n: int, max_fraction: float, batch: Tensor, rng: torch.Generator
) -> Bool[Tensor, "B n"]:
    """Sample one span of up to `max_fraction` of n positions for each item of a batch."""
    share, start = torch.rand(2, len(batch), 1, generator=rng)
    first = start * (1 - max_fraction * share) * n
    position = torch.arange(n)
    return (position >= first) & (position < first + max_fraction * share * n)


def resample(
    samples: Float[Tensor, "N"], source_rate: int, target_rate: int, *, num_zeros: int = 24
) -> Float[Tensor, "R"]:
    """Return the samples at another rate, by a Hann-windowed sinc filter.

    Args:
        samples: Samples at `source_rate`.
        source_rate: Samples per second of the input.
        target_rate: Samples per second of the output.
        num_zeros: Zero crossings of the sinc on each side: more is sharper and slower.
    """
    divisor = math.gcd(source_rate, target_rate)
    source = source_rate // divisor
    target = target_rate // divisor
    if source == target:
        return samples
    if target * source > MAX_FILTER_SIZE:  # rates with no small common multiple, as 16001 Hz
        return resample_interpolated(samples, source, target, num_zeros)
    filters, reach = _sinc_kernel(source, target, num_zeros)
    padded = F.pad(samples[None, None], (reach, reach + source))
    # Each step of the convolution maps `source` samples to `target` samples.
    output = F.conv1d(padded, filters, stride=source)[0].T.flatten()
    return output[: math.ceil(len(samples) * target / source)]


def resample_interpolated(
    samples: Float[Tensor, "N"], source_rate: int, target_rate: int, num_zeros: int
) -> Float[Tensor, "M"]:
    """Resample with filters interpolated between NUM_PHASES phases: bounded at any two rates.

    Far higher rates are first reduced by a whole factor, so that the filters stay short.
    """
    factor = source_rate // (4 * target_rate)
    count = math.ceil(len(samples) * target_rate / source_rate)
    if factor > 1:
        samples = resample(samples, factor, 1, num_zeros=num_zeros)
        target_rate *= factor
    cutoff = min(source_rate, target_rate) * 0.95 / source_rate
    reach = math.ceil(num_zeros / cutoff)
    phases = torch.arange(NUM_PHASES + 1, dtype=torch.float64)[:, None] / NUM_PHASES
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    table = _windowed_sinc(offsets - phases, cutoff, num_zeros).float()
    windows = F.pad(samples, (reach, reach + 2)).unfold(0, 2 * reach + 1, 1)
    output: list[Tensor] = []
    for numbers in torch.arange(count).split(max(1, MAX_FILTER_SIZE // (2 * reach + 1))):
        position = numbers * source_rate
        phase = (position % target_rate).double() * (NUM_PHASES / target_rate)
        low = phase.long()
        filters = table[low].lerp(table[low + 1], (phase - low).float()[:, None])
        output.append((windows[position // target_rate] * filters).sum(1))
    return torch.cat(output)


@cache
def _sinc_kernel(
    source_rate: int, target_rate: int, num_zeros: int
) -> tuple[Float[Tensor, "phases 1 width"], int]:
    """Return one filter for each output phase, and how many samples a filter reaches back."""
    cutoff = min(source_rate, target_rate) * 0.95 / source_rate  # of the source Nyquist frequency
    reach = math.ceil(num_zeros / cutoff)
    positions = (
        torch.arange(-reach, reach + source_rate, dtype=torch.float64)
        - torch.arange(target_rate)[:, None] * source_rate / target_rate
    )
    return _windowed_sinc(positions, cutoff, num_zeros).float()[:, None], reach


def _windowed_sinc(
    positions: Float[Tensor, "phases width"], cutoff: float, num_zeros: int
) -> Float[Tensor, "phases width"]:
    """Return a sinc of `num_zeros` zero crossings on each side under a Hann window."""
    window = torch.cos((positions * cutoff / num_zeros).clamp(-1, 1) * math.pi / 2) ** 2
    return torch.sinc(positions * cutoff) * window * cutoff


def log_mel_spectrogram(
    samples: Float[Tensor, "B N"], sample_rate: int, n_mels: int
) -> Float[Tensor, "B M F"]:
    """Return log-mel spectrograms as Whisper computes them.

    The log10 energies are clipped to 8 below the maximum of each recording, then scaled to about
    -1..1.
    """
    width = round(sample_rate * WINDOW_SECONDS)
    hop = round(sample_rate * HOP_SECONDS)
    samples = F.pad(samples, (0, max(0, width - samples.shape[1])))
    spectrum = torch.stft(
        samples, width, hop, window=torch.hann_window(width), return_complex=True
    )[..., :-1]
    power = spectrum.abs() ** 2
    log_mel = (mel_filters(sample_rate, width, n_mels) @ power).clamp(min=1e-10).log10()
    log_mel = log_mel.maximum(log_mel.amax((1, 2), keepdim=True) - 8)
    return (log_mel + 4) / 4


@cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Float[Tensor, "M bins"]:
    """Return triangular mel filters of equal area.

    They are evenly spaced on Slaney's mel scale: linear up to 1 kHz, logarithmic above.
    """
    if sample_rate > 2000:
        top = 15 + 27 * math.log(sample_rate / 2 / 1000) / math.log(6.4)
    else:
        top = sample_rate * 3 / 400
    mel = torch.linspace(0, top, n_mels + 2, dtype=torch.float64)
    hertz = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp(math.log(6.4) / 27 * (mel - 15)))
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return (rising.minimum(falling).clamp(min=0) * (2 / (hertz[2:] - hertz[:-2]))[:, None]).float()


class AudioStem(nn.Module):
    """Log-mel spectrogram → Tokens, one for every 20 ms, as in Whisper.

    Two convolutions, the second with stride 2, and sinusoidal positions. Padding frames are zero
    before each convolution, so that padding does not change the other tokens.

    Args:
        dim: Width of the tokens.
        n_mels: Number of mel bands.
        max_positions: Largest number of tokens.
    """

    def __init__(self, dim: int, n_mels: int, max_positions: int):
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        self.register_buffer("position_embedding", sinusoidal_positions(max_positions, dim))
        self.position_embedding: Tensor

    def pool_index(self, spectrogram: Float[Tensor, "B M F"]) -> None:
        """Return None: the mean of all tokens represents the recording."""

    def forward(self, spectrogram: Float[Tensor, "B M F"]) -> Tokens:
        """Return the tokens; those of padding frames are not valid.

        Raises:
            ValueError: If there are more frames than positions.
        """
        valid = valid_or_none(spectrogram[:, 0] > PADDING_VALUE)
        x = F.gelu(self.conv1(_zero_padding(spectrogram, valid)))
        x = F.gelu(self.conv2(_zero_padding(x, valid))).transpose(1, 2)
        if x.shape[1] > len(self.position_embedding):
            raise ValueError(
                f"{spectrogram.shape[2]} frames, more than the "
                f"{2 * len(self.position_embedding)} that this model has positions for"
            )
        return Tokens(
            x + self.position_embedding[: x.shape[1]],
            sequence_positions(x),
            valid=None if valid is None else valid[:, ::2],
        )


def _zero_padding(
    x: Float[Tensor, "B D F"], valid: Bool[Tensor, "B F"] | None
) -> Float[Tensor, "B D F"]:
    """Set padding frames to zero."""
    return x if valid is None else x.masked_fill(~valid[:, None], 0)
