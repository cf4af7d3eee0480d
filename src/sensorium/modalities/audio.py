"""Sound: files in, log-mel pictures of 10 ms steps, Tokens by two convolutions, as Whisper hears (Radford et al. 2022).

B batch   N samples   F frames of 10 ms   M mel bands   T tokens of 20 ms   D width
"""

from __future__ import annotations

import math
import wave
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

from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.nn.positional import sinusoidal_positions
from sensorium.nn.tokens import Tokens, sequence_positions, valid_or_none

WINDOW_SECONDS, HOP_SECONDS = (
    0.025,
    0.010,
)  # seconds that a frame looks at, and from one to the next
PADDING_VALUE = (
    -math.inf
)  # what follows a shorter sound in a batch: the logarithm of no sound at all
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000


@dataclass(frozen=True)
class Audio:
    """Settings of a column of sounds: one channel at `rate`, heard in `mels` bands up to half of it."""

    kind: ClassVar[str] = "audio"
    extensions: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".ogg", ".mp3")
    sample_rate: int = 16_000  # samples a second
    n_mels: int = 80
    max_seconds: float = 3600.0  # seconds; a longer sound is refused before it is read
    seconds: float = 0.0  # what all are brought to; 0: as long as the longest of a batch

    def fit(self, values: Iterable[Any]) -> Audio:
        """These settings: nothing is left to be learned."""
        return self

    def load(self, raw: Any) -> np.ndarray:
        """A file's path, (samples, rate), or samples at `rate`, as float32 [N] in -1..1 at `rate`.

        Raises ValueError where it cannot be read, is empty, or longer than `most`.
        """
        if isinstance(raw, str | Path):
            samples, rate = read_audio(Path(raw), self.max_seconds)
        else:
            samples, rate = raw if isinstance(raw, tuple) else (raw, self.sample_rate)
        samples = np.asarray(samples, dtype=np.float32)
        if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
            raise ValueError(f"expected numbers of one channel, found {samples.shape}")
        if len(samples) > self.max_seconds * rate:
            raise ValueError(
                f"it lasts {len(samples) / rate:.0f} s; {self.max_seconds:.0f} are the most"
            )
        return resample(torch.from_numpy(samples), rate, self.sample_rate).numpy()

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B M F"]:
        """Log-mel pictures; after a shorter sound NOTHING, unless all are brought to one length by silence.

        One of no samples at all, which is missing, is NOTHING too.
        """
        if self.seconds:
            size = round(self.seconds * self.sample_rate)
            values = [np.pad(v[:size], (0, max(0, size - len(v)))) if len(v) else v for v in values]
        heard = [
            log_mel_spectrogram(torch.from_numpy(v)[None], self.sample_rate, self.n_mels)[0]
            if len(v)
            else torch.zeros(self.n_mels, 0)
            for v in values
        ]
        longest = max((x.shape[1] for x in heard), default=0) or 1
        return torch.stack(
            [F.pad(x, (0, longest - x.shape[1]), value=PADDING_VALUE) for x in heard]
        )

    def augment(
        self,
        batch: Float[Tensor, "B M F"],
        rng: torch.Generator,
        *,
        freq_mask: float = 0.0,
        time_mask: float = 0.0,
        gain: float = 0.0,
    ) -> Float[Tensor, "B M F"]:
        """Changed at random: louder or softer by up to `loud` (1 is 40 dB), and up to the shares `bands` of pitch and
        `frames` of time, each in one piece, as loud as the sound is on average (SpecAugment, Park et al. 2019).
        """
        real = batch > PADDING_VALUE
        mean = batch.where(real, 0).sum((1, 2), keepdim=True) / real.sum(
            (1, 2), keepdim=True
        ).clamp(min=1)
        pitch, time = (
            _sample_spans(n, most, batch, rng)
            for n, most in ((batch.shape[1], freq_mask), (batch.shape[2], time_mask))
        )
        louder = gain * (2 * torch.rand(len(batch), 1, 1, generator=rng) - 1)
        return torch.where(real & (pitch[:, :, None] | time[:, None]), mean, batch) + louder

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n M F"]:
        """n made-up sounds of 0.2 to 2 s, for tests and dry runs."""
        sizes = torch.randint(20, 200, (n,), generator=rng)
        heard = torch.rand(n, self.n_mels, int(sizes.max()), generator=rng)
        return heard.masked_fill(
            torch.arange(heard.shape[2]) >= sizes[:, None, None], PADDING_VALUE
        )

    def decode(self, spectrogram: Float[Tensor, "M F"]) -> Image.Image:
        """A picture of it: time to the right, pitch upward, louder is brighter."""
        real = spectrogram[:, spectrogram[0] > PADDING_VALUE]
        grey = (real - real.min()) / (real.max() - real.min()).clamp(min=1e-6) * 255
        return Image.fromarray(grey.flip(0).byte().numpy())

    def to_json(self) -> dict[str, Any]:
        """Plain settings."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Audio:
        return cls(**validate_settings(cls, data))


def _sample_spans(
    n: int, max_fraction: float, batch: Tensor, rng: torch.Generator
) -> Bool[Tensor, "B n"]:
    """For each of a batch one stretch of n places, up to the share `most` long."""
    share, start = torch.rand(2, len(batch), 1, generator=rng)
    first, place = start * (1 - max_fraction * share) * n, torch.arange(n)
    return (place >= first) & (place < first + max_fraction * share * n)


def read_audio(path: Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """The mean of a file's channels as float32 [N] in -1..1, and its rate. WAV by Python itself, others by soundfile.

    Raises ValueError where it is damaged, of a kind that is not read, or lasts longer than `most` seconds: that is
    known from its header, before anything is read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file that can be read")
    try:
        with wave.open(str(path), "rb") as file:
            return _read_wav(file, max_seconds), file.getframerate()
    except (wave.Error, EOFError):
        return _read_soundfile(path, max_seconds)
    except OSError as e:
        raise ValueError(f"it cannot be opened: {e.strerror}") from e


def _read_wav(file: wave.Wave_read, max_seconds: float) -> np.ndarray:
    frames, width, channels = file.getnframes(), file.getsampwidth(), file.getnchannels()
    _check_duration(frames, file.getframerate(), max_seconds)
    raw = np.frombuffer(file.readframes(frames), dtype=np.uint8)
    raw = raw[: len(raw) // (width * channels) * width * channels].reshape(-1, width)
    if width == 1:
        numbers = raw[:, 0].astype(np.float32) / 128 - 1  # 8 bits are unsigned
    else:
        wide = np.zeros((len(raw), 4), dtype=np.uint8)
        wide[:, 4 - width :] = raw
        numbers = wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    return numbers.reshape(-1, channels).mean(1)


def _read_soundfile(path: Path, max_seconds: float) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as e:
        raise ValueError(
            'it is no plain WAV; for FLAC, OGG and MP3: pip install "sensorium[audio]"'
        ) from e
    try:
        with soundfile.SoundFile(path) as file:
            _check_duration(file.frames, file.samplerate, max_seconds)
            return file.read(dtype="float32", always_2d=True).mean(1), file.samplerate
    except soundfile.SoundFileError as e:
        raise ValueError(f"it is damaged, or no sound: {e}") from e


def _check_duration(frames: int, sample_rate: int, max_seconds: float) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(f"it has {sample_rate} samples a second")
    if frames > max_seconds * sample_rate:
        raise ValueError(f"it lasts {frames / sample_rate:.0f} s; {max_seconds:.0f} are the most")


def resample(
    samples: Float[Tensor, "N"], source_rate: int, target_rate: int, *, num_zeros: int = 24
) -> Float[Tensor, "M"]:
    """The same sound at another rate: a sinc under a Hann window that crosses zero `zeros` times on each side."""
    common = math.gcd(source_rate, target_rate)
    old, new = source_rate // common, target_rate // common
    if old == new:
        return samples
    filters, reach = _sinc_kernel(old, new, num_zeros)
    padded = F.pad(samples[None, None], (reach, reach + old))
    made = F.conv1d(padded, filters, stride=old)[0].T.flatten()  # `new` samples for every `old`
    return made[: math.ceil(len(samples) * new / old)]


@cache
def _sinc_kernel(
    source_rate: int, target_rate: int, num_zeros: int
) -> tuple[Float[Tensor, "new 1 width"], int]:
    """A filter for each of the `new` samples that stand for `old`, and how far it reaches back."""
    cutoff = min(source_rate, target_rate) * 0.95 / source_rate  # of half the old rate
    reach = math.ceil(num_zeros / cutoff)
    places = (
        torch.arange(-reach, reach + source_rate, dtype=torch.float64)
        - torch.arange(target_rate)[:, None] * source_rate / target_rate
    )
    window = torch.cos((places * cutoff / num_zeros).clamp(-1, 1) * math.pi / 2) ** 2
    return (torch.sinc(places * cutoff) * window * cutoff).float()[:, None], reach


def log_mel_spectrogram(
    samples: Float[Tensor, "B N"], sample_rate: int, n_mels: int
) -> Float[Tensor, "B M F"]:
    """Loudness of each band in each frame, log10, at most 8 below a sound's loudest, to about -1..1 (Whisper)."""
    width, step = round(sample_rate * WINDOW_SECONDS), round(sample_rate * HOP_SECONDS)
    samples = F.pad(samples, (0, max(0, width - samples.shape[1])))
    power = (
        torch.stft(samples, width, step, window=torch.hann_window(width), return_complex=True)[
            ..., :-1
        ].abs()
        ** 2
    )
    heard = (mel_filters(sample_rate, width, n_mels) @ power).clamp(min=1e-10).log10()
    heard = heard.maximum(heard.amax((1, 2), keepdim=True) - 8)
    return (heard + 4) / 4


@cache
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Float[Tensor, "M bins"]:
    """Triangles of equal area, evenly spaced on Slaney's scale of pitch: linear up to 1 kHz, then logarithmic."""
    top = 15 + 27 * math.log(sample_rate / 2 / 1000) / math.log(6.4)
    mel = torch.linspace(
        0, top if sample_rate > 2000 else sample_rate * 3 / 400, n_mels + 2, dtype=torch.float64
    )
    hertz = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp(math.log(6.4) / 27 * (mel - 15)))
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    return (rising.minimum(falling).clamp(min=0) * (2 / (hertz[2:] - hertz[:-2]))[:, None]).float()


class AudioStem(nn.Module):
    """Log-mel → Tokens, one for every 20 ms: two convolutions, and sines for where in time they are.

    What is NOTHING is padding: a sound is heard alike alone and beside longer ones.
    """

    def __init__(self, dim: int, n_mels: int, max_positions: int):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv1d(n_mels, dim, 3, padding=1),
            nn.Conv1d(dim, dim, 3, stride=2, padding=1),
        )
        self.register_buffer("position_embedding", sinusoidal_positions(max_positions, dim))
        self.position_embedding: Tensor

    def pool_index(self, spectrogram: Float[Tensor, "B M F"]) -> None:
        return None

    def forward(self, spectrogram: Float[Tensor, "B M F"]) -> Tokens:
        real = valid_or_none(spectrogram[:, 0] > PADDING_VALUE)
        x = F.gelu(self.conv1(_zero_padding(spectrogram, real)))
        x = F.gelu(self.conv2(_zero_padding(x, real))).transpose(1, 2)
        if x.shape[1] > len(self.position_embedding):
            raise ValueError(
                f"{spectrogram.shape[2]} frames: there are places for {2 * len(self.position_embedding)}"
            )
        return Tokens(
            x + self.position_embedding[: x.shape[1]],
            sequence_positions(x),
            valid=None if real is None else real[:, ::2],
        )


def _zero_padding(
    x: Float[Tensor, "B D F"], valid: Bool[Tensor, "B F"] | None
) -> Float[Tensor, "B D F"]:
    """Zero where there is nothing."""
    return x if valid is None else x.masked_fill(~valid[:, None], 0)
