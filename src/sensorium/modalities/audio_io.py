"""Audio files: WAV by the standard library, other formats by soundfile, within limits.

N samples
"""

import wave
from io import SEEK_END, BufferedReader, BytesIO

import numpy as np
from jaxtyping import Float32

from sensorium.io.untrusted import (
    MAX_AUDIO_CHANNELS,
    FilePath,
    NotARegularFileError,
    open_regular,
)

MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 768_000


def read_audio(
    source: FilePath | bytes, max_seconds: float
) -> tuple[Float32[np.ndarray, "N"], int]:
    """Return the mean of a file's channels as float32 [N] in -1..1, and its sample rate.

    Args:
        source: A WAV, FLAC, OGG or MP3 file, or its bytes; all but plain WAV need the `audio`
            extra.
        max_seconds: Longest duration in seconds, checked against the header before reading.

    Raises:
        ValueError: If the file is damaged, of an unknown format, or too long.
    """
    try:
        with _open_source(source) as file:
            file_bytes = file.seek(0, SEEK_END)
            file.seek(0)
            try:
                with wave.open(file, "rb") as wav:
                    return _read_wav(wav, max_seconds, file_bytes), wav.getframerate()
            except (wave.Error, EOFError):
                file.seek(0)
                return _read_soundfile(file, max_seconds)
    except NotARegularFileError as e:
        raise ValueError(str(e.strerror)) from e
    except OSError as e:
        raise ValueError(f"cannot be opened: {e.strerror}") from e


def _open_source(source: FilePath | bytes) -> BufferedReader | BytesIO:
    return BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def _read_wav(
    file: wave.Wave_read, max_seconds: float, file_bytes: int
) -> Float32[np.ndarray, "N"]:
    frames = file.getnframes()
    width = file.getsampwidth()
    channels = file.getnchannels()
    _check_duration(frames, file.getframerate(), max_seconds)
    _check_channels(channels)
    if width > 4:
        raise ValueError(f"{width * 8} bits a sample; at most 32 are read")
    frames = min(frames, file_bytes // (width * channels))  # the header may claim more
    data = np.frombuffer(file.readframes(frames), dtype=np.uint8)
    data = data[: len(data) // (width * channels) * width * channels].reshape(-1, width)
    if width == 1:
        samples = data[:, 0].astype(np.float32) / 128 - 1  # 8 bits are unsigned
    else:
        padded = np.zeros((len(data), 4), dtype=np.uint8)
        padded[:, 4 - width :] = data
        samples = padded.view("<i4")[:, 0].astype(np.float32) / 2**31
    return samples.reshape(-1, channels).mean(1)


def _read_soundfile(
    source: BufferedReader | BytesIO, max_seconds: float
) -> tuple[Float32[np.ndarray, "N"], int]:
    try:
        import soundfile
    except ImportError as e:
        raise ValueError(
            'not a plain WAV file; FLAC, OGG and MP3 need: pip install "sensorium[audio]"'
        ) from e
    try:
        with soundfile.SoundFile(source) as file:
            _check_duration(file.frames, file.samplerate, max_seconds)
            _check_channels(file.channels)
            return file.read(dtype="float32", always_2d=True).mean(1), file.samplerate
    except soundfile.SoundFileError as e:
        raise ValueError(f"damaged, or not an audio file: {e}") from e


def _check_channels(channels: int) -> None:
    if channels > MAX_AUDIO_CHANNELS:
        raise ValueError(f"{channels} channels, more than the limit of {MAX_AUDIO_CHANNELS}")


def _check_duration(frames: int, sample_rate: int, max_seconds: float) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(
            f"{sample_rate} samples per second, outside {MIN_SAMPLE_RATE}..{MAX_SAMPLE_RATE}"
        )
    if frames > max_seconds * sample_rate:
        raise ValueError(
            f"{frames / sample_rate:.0f} s long, more than the limit of {max_seconds:.0f} s"
        )
