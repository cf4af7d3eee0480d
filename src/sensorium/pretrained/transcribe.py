"""The verb `generate` of speech recognition models: audio to text.

B batch   N samples   M mel bands   F frames   V vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError, require_type
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import as_lists, require_output
from sensorium.modalities.audio import Audio
from sensorium.models.decoder import Decoder
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import greedy
from sensorium.pretrained.chat import TextPrompt, load_text_prompt
from sensorium.pretrained.family import Preprocessing
from sensorium.pretrained.weight_files import WeightFiles

TASKS = ("transcribe", "translate")
WINDOW_SECONDS = 30.0  # the longest audio that is transcribed at once
PAUSE_SEARCH_SECONDS = 10.0  # the end of a window, in which a pause is searched
PAUSE_SECONDS = 0.2
ENGLISH_VOCAB_SIZE = 51_864  # of the models that support English only


class Transcriber:
    """Transcribe speech, `generate(audio=[...])`, in its language or translated to English.

    Args:
        model: The decoder, with an audio encoder as context.
        preprocessing: Settings of `audio` and `text`.

    Raises:
        SensoriumError: If the tokenizer lacks a token of Whisper's.
    """

    output_modality = "text"

    def __init__(self, model: Decoder, preprocessing: Preprocessing):
        self.model = model
        self.audio = require_type(preprocessing["audio"], Audio)
        self.text = require_type(preprocessing["text"], TextPrompt)
        self.start_id = self._token_id("startoftranscript")
        self.no_timestamps_id = self._token_id("notimestamps")
        self.languages: dict[str, int] = {}
        if self._vocab_size() > ENGLISH_VOCAB_SIZE:
            for token_id in range(self.start_id + 1, self._token_id("translate")):
                name = str(self.text.tokenizer.id_to_token(token_id)).strip("<|>")
                self.languages[name] = token_id

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        language: str | None = None,
        task: str = "transcribe",
        pad_to_window: bool = True,
        max_tokens: int = 0,
        batch_size: int = 8,
        **inputs: Any,
    ) -> list[str]:
        """Return the text of each recording.

        Recordings longer than 30 s are split at pauses.

        Args:
            modality: "text", or None.
            language: Language code of all recordings, such as "it"; None: detected for each.
            task: "transcribe", or "translate" into English.
            pad_to_window: Pad each window with silence to 30 s, as in training. Without it, the
                model is faster, but repeats the text of short recordings.
            max_tokens: The most tokens per window; 0: half of the model's limit.
            batch_size: Windows per batch.
            **inputs: `audio`: paths, (samples, rate) pairs, or arrays of samples at 16 kHz.

        Raises:
            SensoriumError: If a recording cannot be read, or an option is not supported.
        """
        require_output(modality, "text")
        prompt_ids = self._prompt_ids(language, task)
        values = as_lists(inputs, ["audio"], "text").get("audio", [])
        recordings = [load_value(self.audio, value) for value in values]
        split = [list(split_windows(r, self.audio.sample_rate)) for r in recordings]
        windows = [window for row_windows in split for window in row_windows]
        window_rows = [row for row, row_windows in enumerate(split) for _ in row_windows]
        audio = replace(self.audio, seconds=WINDOW_SECONDS if pad_to_window else 0.0)
        texts = [""] * len(windows)
        by_length = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        with eval_mode(self.model):
            for batch in iter_batches(by_length, batch_size):
                features = audio.collate([windows[i] for i in batch])
                ids = self.generate_ids(features, prompt_ids, max_tokens)
                for i, window_ids in zip(batch, ids, strict=True):
                    texts[i] = self.text.decode(window_ids).strip()
        return [
            " ".join(text for r, text in zip(window_rows, texts, strict=True) if r == row and text)
            for row in range(len(recordings))
        ]

    @torch.inference_mode()
    def generate_ids(
        self,
        features: Float[Tensor, "B M F"],
        prompt_ids: Sequence[int | None],
        max_tokens: int = 0,
    ) -> Int[Tensor, "B T"]:
        """Decode a batch of windows greedily.

        Args:
            features: Log-mel spectrograms.
            prompt_ids: Tokens after the start token; None stands for the detected language.
            max_tokens: The most new tokens; 0: half of the model's limit.
        """
        limit = min(max_tokens or self.text.length // 2, self.text.length - 1 - len(prompt_ids))
        cache = KVCache(self.text.length)
        end_id = self.text.stop_ids[0]
        ids = torch.full((len(features),), self.start_id)
        logits = self.model.prefill(Batch({"audio": features, "text": ids[:, None]}), "text", cache)
        for token_id in prompt_ids:
            if token_id is None:
                ids = self._detect_language(logits)
            else:
                ids = torch.full_like(ids, token_id)
            logits = self._decode_step(ids, cache)
        logits[:, list(self.text.begin_suppressed_tokens)] = -torch.inf
        steps: list[Tensor] = []
        ended = torch.zeros(len(features), dtype=torch.bool)
        while True:
            logits[:, list(self.text.suppressed_tokens)] = -torch.inf
            ids = torch.where(ended, end_id, greedy(logits))
            steps.append(ids)
            ended = ended | (ids == end_id)
            if ended.all() or len(steps) == limit:
                return torch.stack(steps, 1)
            logits = self._decode_step(ids, cache)

    def _decode_step(self, ids: Int[Tensor, "B"], cache: KVCache) -> Float[Tensor, "B V"]:
        return self.model.decode_step("text", ids, torch.full_like(ids, cache.length), cache)

    def _detect_language(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
        language_ids = torch.tensor(list(self.languages.values()))
        return language_ids[logits[:, language_ids].argmax(1)]

    def _prompt_ids(self, language: str | None, task: str) -> list[int | None]:
        if task not in TASKS:
            raise SensoriumError(f"task={task!r} is unknown. Use {' or '.join(TASKS)}.")
        if not self.languages:
            if language not in (None, "en") or task != "transcribe":
                raise SensoriumError(
                    "This model only transcribes English. Use a multilingual one for "
                    f"language={language!r}, task={task!r}."
                )
            return [self.no_timestamps_id]
        if language is not None and language not in self.languages:
            raise SensoriumError(
                f"language={language!r} is not supported by this model. Supported are "
                f"{', '.join(sorted(self.languages))}."
            )
        language_id = None if language is None else self.languages[language]
        return [language_id, self._token_id(task), self.no_timestamps_id]

    def _vocab_size(self) -> int:
        return require_type(self.model.heads["text"], Linear).out_features

    def _token_id(self, name: str) -> int:
        token_id = self.text.tokenizer.token_to_id(f"<|{name}|>")
        if token_id is None:
            raise SensoriumError(
                f"The tokenizer next to the weights lacks <|{name}|>. Use the one of the model."
            )
        return token_id


def split_windows(
    audio: Float[np.ndarray, "N"], sample_rate: int
) -> Iterator[Float[np.ndarray, "n"]]:
    """Split audio into windows of at most WINDOW_SECONDS.

    Each split is at the quietest point of the window's last PAUSE_SEARCH_SECONDS.
    """
    window = round(WINDOW_SECONDS * sample_rate)
    search = round(PAUSE_SEARCH_SECONDS * sample_rate)
    pause = round(PAUSE_SECONDS * sample_rate)
    while len(audio) > window:
        energy = np.cumsum(audio[window - search : window].astype(np.float64) ** 2)
        quietest = int((energy[pause:] - energy[:-pause]).argmin())
        split = window - search + quietest + pause // 2
        yield audio[:split]
        audio = audio[split:]
    yield audio


def load_transcript_prompt(weight_files: WeightFiles, length: int) -> TextPrompt | None:
    """Return the settings of transcripts; None without a tokenizer that has an end token.

    Args:
        weight_files: The opened files, whose configs also list suppressed tokens.
        length: The most tokens of a window.
    """
    suppressed = _token_ids(weight_files, "suppress_ids", "suppress_tokens")
    begin_suppressed = _token_ids(weight_files, "suppress_ids_begin", "begin_suppress_tokens")
    text = load_text_prompt(
        weight_files,
        length,
        None,
        suppressed_tokens=suppressed,
        begin_suppressed_tokens=begin_suppressed,
    )
    end_id = None if text is None else text.tokenizer.token_to_id("<|endoftext|>")
    return None if text is None or end_id is None else replace(text, stop_ids=(end_id,))


def _token_ids(weight_files: WeightFiles, *keys: str) -> list[int]:
    """Return the list of token ids under the first of some keys that a config has.

    generation_config.json goes before config.json. A list may be empty, which is no reason to look
    further; null says nothing.

    Raises:
        SensoriumError: If it is not a list of token ids.
    """
    for config in (weight_files.read_json("generation_config.json"), weight_files.config):
        for key in keys:
            ids = config.get(key)
            if ids is None:
                continue
            if not isinstance(ids, list) or any(
                isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids
            ):
                raise SensoriumError(
                    f"{weight_files.path} sets {key}={ids!r}. Give a list of token ids."
                )
            return ids
    return []
