"""Audio columns: padding and missing values, augmentation, files that cannot be read."""

import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.modalities.audio import PADDING_VALUE, Audio

AUDIO = Audio(n_mels=20, max_seconds=2.0)


def write_tone(path: Path, seconds: float, frequency: float = 440.0, rate: int = 8000) -> Path:
    samples = np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * frequency / rate) * 20_000
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def test_audio_column_from_table_to_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    for i in range(4):
        write_tone(tmp_path / f"{i}.wav", 0.2 + 0.1 * i, 200 * (i + 1))
    (tmp_path / "t.csv").write_text(
        "call,price\n" + "".join(f"{i}.wav,{i}\n" for i in range(4)) + ",9\n"
    )
    data = Dataset.open(tmp_path / "t.csv")
    assert data.schema.columns["call"].kind == "audio"
    assert data.schema["call"] == Audio(max_seconds=60.0)
    assert data.describe().bad_samples == []
    batch = data.prepare(data.schema, ["call"]).batch([3, 0, 4])
    call = data.schema["call"]
    assert isinstance(call, Audio)
    alone = call.collate([call.load(tmp_path / "0.wav")])
    assert torch.equal(batch["call"][1, :, : alone.shape[2]], alone[0])
    assert (batch["call"][1, :, alone.shape[2] :] == PADDING_VALUE).all()
    assert (batch["call"][2] == PADDING_VALUE).all()
    assert batch.present["call"].tolist() == [True, True, False]


def test_batch_of_missing_audio_is_all_padding() -> None:
    assert (AUDIO.collate([np.zeros(0, np.float32)] * 2) == PADDING_VALUE).all()


def test_augmentation_is_reproducible_and_keeps_padding() -> None:
    options = {"freq_mask": 0.4, "time_mask": 0.3, "gain": 0.2}
    batch = AUDIO.fake(8, torch.Generator().manual_seed(0))
    a, b = (AUDIO.augment(batch, torch.Generator().manual_seed(1), **options) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(a == PADDING_VALUE, batch == PADDING_VALUE)
    assert torch.equal(AUDIO.augment(batch, torch.Generator()), batch)
    masked = AUDIO.augment(batch, torch.Generator().manual_seed(1), freq_mask=0.4)
    changed = (masked != batch) & (batch > PADDING_VALUE)
    rows = changed.any(2)
    assert rows.any()
    assert (rows.sum(1) <= 0.4 * 20 + 1).all()
    assert (rows.int().diff(dim=1) == 1).sum(1).max() <= 1  # one span


def test_unreadable_audio_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path, message in (
        (tmp_path / "pipe.wav", "not a regular file"),
        (tmp_path / "lost.wav", "cannot be opened"),
        (write_tone(tmp_path / "long.wav", 3.0), "3 s long, more than the limit of 2 s"),
    ):
        with pytest.raises(ValueError, match=message):
            AUDIO.load(path)
