"""Whisper in our modules: features, outputs, gradients and tokens of transformers."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.parity import (
    assert_close,
    assert_round_trip,
    assert_same_gradients,
    load_ours,
    randomize_weights,
)
from torch import Tensor

from sensorium.modalities.audio import PADDING_VALUE, Audio, log_mel_spectrogram, resample
from sensorium.models.decoder import Decoder
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.transcribe import split_windows
from sensorium.pretrained.whisper import WHISPER

transformers = pytest.importorskip("transformers")
SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "vocab_size": 61,
    "num_mel_bins": 8,
    "max_source_positions": 16,
    "max_target_positions": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Any, Decoder, Any, Path]:
    """The reference model, ours, its config and the folder that both were loaded from."""
    reference = randomize_weights(
        transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES))
    )
    with torch.no_grad():
        reference.model.decoder.embed_tokens.weight[0] = (
            0.3  # transformers leaves its padding out of gradients
        )
    reference.model.decoder.embed_tokens.padding_idx = None
    reference.save_pretrained(tmp_path / "reference")
    ours, config = load_ours(WHISPER, tmp_path / "reference")
    assert isinstance(ours, Decoder)
    return reference, ours, config, tmp_path / "reference"


def random_features(n: int = 3, frames: int = 32) -> Tensor:
    return torch.randn(n, 8, frames, generator=torch.Generator().manual_seed(1))


def token_ids(n: int = 3, length: int = 7) -> Tensor:
    return torch.randint(61, (n, length), generator=torch.Generator().manual_seed(2))


def logits(model: Decoder, features: Tensor, ids: Tensor) -> Tensor:
    return model.heads["text"](model(Batch({"audio": features, "text": ids}))["text"].x)


def test_outputs_and_gradients_match_reference(
    pair: tuple[Any, Decoder, Any, Path], tmp_path: Path
) -> None:
    reference, ours, config, folder = pair
    features, ids = random_features(), token_ids()
    output, expected = (
        logits(ours, features, ids),
        reference(input_features=features, decoder_input_ids=ids).logits,
    )
    assert_close(output, expected)
    target = torch.randn(output.shape)
    (output * target).sum().backward()
    (expected * target).sum().backward()
    assert_same_gradients(WHISPER, ours, reference, config, tmp_path / "gradients")
    exported = assert_round_trip(WHISPER, ours, config, folder, tmp_path / "exported")
    reloaded = type(reference).from_pretrained(exported).eval()
    assert torch.equal(reloaded(input_features=features, decoder_input_ids=ids).logits, expected)


def test_greedy_tokens_match_reference(pair: tuple[Any, Decoder, Any, Path]) -> None:
    reference, ours = pair[0], pair[1]
    features, ids = random_features(), token_ids(length=2)
    output = torch.stack(
        list(
            generate(
                ours,
                Batch({"audio": features, "text": ids}),
                "text",
                12,
                SamplingConfig(temperature=0),
            )
        ),
        1,
    )
    expected = transformers.GenerationMixin.generate(
        reference,
        features,
        decoder_input_ids=ids,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
    )
    assert output.tolist() == expected[:, 2:].tolist()


@torch.no_grad()
def test_padding_and_decode_steps_do_not_change_logits(
    pair: tuple[Any, Decoder, Any, Path],
) -> None:
    ours, ids = pair[1], token_ids()
    features, sizes = random_features(), (32, 21, 10)
    for row, size in enumerate(sizes):
        features[row, :, size:] = PADDING_VALUE
    together, cache = logits(ours, features, ids), KVCache(5)
    steps = [ours.prefill(Batch({"audio": features, "text": ids[:, :2]}), "text", cache)]
    steps += [
        ours.decode_step("text", ids[:, at], torch.full((3,), at), cache) for at in range(2, 7)
    ]
    assert_close(torch.stack(steps, 1), together[:, 1:])
    for row, size in enumerate(sizes):
        assert_close(
            logits(ours, features[row : row + 1, :, :size], ids[row : row + 1]),
            together[row : row + 1],
        )
    cache = KVCache(5)
    ours.prefill(Batch({"audio": features, "text": ids[:, :2]}), "text", cache)
    cache.reorder(torch.tensor([2, 0]))  # as beam search does
    assert_close(
        ours.decode_step("text", ids[[2, 0], 2], torch.tensor([2, 2]), cache), together[[2, 0], 2]
    )


def test_log_mel_matches_reference() -> None:
    extractor = transformers.WhisperFeatureExtractor()
    sound = (
        np.random.default_rng(0).normal(size=16_000 * 3).astype(np.float32)
        * np.linspace(0, 1, 48_000) ** 4
    )
    expected = extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
    ours = Audio(seconds=30).collate([sound.astype(np.float32)])
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-4
    assert log_mel_spectrogram(
        torch.from_numpy(sound.astype(np.float32))[None], 16_000, 80
    ).shape == (1, 80, 300)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_samples_are_read_exactly(width: int, tmp_path: Path) -> None:
    left = np.sin(np.arange(800) * 0.1).astype(np.float32) / 2
    samples = np.round((left + (1 if width == 1 else 0)) * (2 ** (8 * width - 1) - 1)).astype("<i8")
    numbers = np.stack([samples, samples], 1).reshape(-1, 1).view(np.uint8)[:, :width]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, width, 16_000, 0, "NONE", ""))
        file.writeframes(numbers.tobytes())
    read = Audio().load(tmp_path / "a.wav")
    assert read.shape == (800,)
    assert np.abs(read - left).max() < 2.0 ** (2 - 8 * width) + 1e-6


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3"])
def test_compressed_audio_is_read(kind: str, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    tone = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000).astype(np.float32) / 2
    soundfile.write(tmp_path / f"a.{kind}", tone, 16_000)
    read = Audio().load(tmp_path / f"a.{kind}")
    assert abs(len(read) - 16_000) < 2_500
    assert abs(read[4_000:12_000].std() - 0.5 / 2**0.5) < 0.02


@pytest.mark.parametrize("rates", [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000)])
def test_resampling_keeps_a_tone(rates: tuple[int, int]) -> None:
    def tone(rate: int) -> Tensor:
        return torch.sin(2 * torch.pi * 1_000 * torch.arange(rate // 4) / rate + 0.3)

    resampled = resample(tone(rates[0]), *rates)
    expected = tone(rates[1])
    assert resampled.shape == expected.shape
    assert (resampled - expected)[400:-400].abs().max() < 1e-3
    above = torch.sin(
        2 * torch.pi * 9_500 * torch.arange(12_000) / 48_000
    )  # would fold down to 6.5 kHz
    assert resample(above, 48_000, 16_000)[400:-400].abs().max() < 1e-3


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("gone.wav", "cannot be opened"),
        ("text.wav", "not an audio file|not a plain WAV"),
        (np.zeros(0), "one channel"),
        (np.full(9, np.nan), "one channel"),
        ((np.zeros(4_000), 1_000), "4 s long, more than the limit of 2 s"),
        ("long.wav", "9 s long, more than the limit of 2 s"),
    ],
)
def test_unreadable_audio_is_refused(raw: Any, expected: str, tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound at all")
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((1, 2, 8_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * 72_000))
    with pytest.raises(ValueError, match=expected):
        Audio(max_seconds=2).load(tmp_path / raw if isinstance(raw, str) else raw)


def test_long_audio_is_split_at_pauses() -> None:
    sound = np.random.default_rng(0).normal(size=8_000 * 70).astype(np.float32)
    pauses = [round(8_000 * seconds) for seconds in (26.0, 49.5)]
    for at in pauses:
        sound[at - 1_000 : at + 1_000] *= 0.01
    windows = list(split_windows(sound, 8_000))
    assert np.array_equal(np.concatenate(windows), sound)
    assert all(len(window) <= 30 * 8_000 for window in windows)
    assert np.abs(np.cumsum([len(window) for window in windows])[:2] - pauses).max() < 800
