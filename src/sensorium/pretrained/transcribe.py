"""The verb `generate` of models that write down speech: sounds in, words out.

B batch   N samples   M mel bands   F frames   V vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import as_lists, require_output
from sensorium.modalities.audio import Audio
from sensorium.models.decoder import Decoder
from sensorium.nn.attention import KVCache
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import greedy
from sensorium.pretrained.chat import TextPrompt, load_text_prompt
from sensorium.pretrained.family import Preprocessing
from sensorium.pretrained.weight_files import WeightFiles

TASKS = ("transcribe", "translate")
WINDOW_SECONDS, PAUSE_SEARCH_SECONDS = (
    30.0,
    10.0,
)  # seconds heard at once; the last of them in which a pause is looked for
PAUSE_SECONDS = 0.2  # seconds
ENGLISH_VOCAB_SIZE = 51_864  # ids of a model that knows no other language


class Transcriber:
    """generate("text", audio=[...]) → what is said in each sound, in the language spoken or in English."""

    def __init__(self, model: Decoder, preprocessing: Preprocessing):
        audio, text = preprocessing["audio"], preprocessing["text"]
        assert isinstance(audio, Audio)
        assert isinstance(text, TextPrompt)
        self.model, self.audio, self.text = model, audio, text
        self.start_id, self.no_timestamps_id = (
            self._token_id("startoftranscript"),
            self._token_id("notimestamps"),
        )
        spoken = (
            range(self.start_id + 1, self._token_id("translate"))
            if self._vocab_size() > ENGLISH_VOCAB_SIZE
            else ()
        )
        self.languages = {str(text.tokenizer.id_to_token(i)).strip("<|>"): i for i in spoken}

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
        """Words for each of `audio`: paths, (samples, rate), or samples at 16 kHz; of any length.

        language: spoken in all of them ("it"), or None to listen for it in each. task: "translate" into English.
        pad_to_window: bring each window to 30 s with silence, as published models were trained: without it they are quick, and
        write a short sound down again and again. length: the most tokens a window. A long sound is cut at pauses.
        Raises SensoriumError naming what cannot be read or done.
        """
        require_output(modality, "text")
        told = self._prompt_ids(language, task)
        sounds = [
            load_value(self.audio, value)
            for value in as_lists(inputs, ["audio"], "text").get("audio", [])
        ]
        pieces = [
            (row, piece)
            for row, sound in enumerate(sounds)
            for piece in split_windows(sound, self.audio.sample_rate)
        ]
        heard = replace(self.audio, seconds=WINDOW_SECONDS if pad_to_window else 0.0)
        said, order = (
            [""] * len(pieces),
            sorted(range(len(pieces)), key=lambda i: len(pieces[i][1])),
        )
        with eval_mode(self.model):
            for some in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
                ids = self.generate_ids(
                    heard.collate([pieces[i][1] for i in some]), told, max_tokens
                )
                for i, row in zip(some, ids, strict=True):
                    said[i] = self.text.decode(row).strip()
        return [
            " ".join(
                words for (of, _), words in zip(pieces, said, strict=True) if of == row and words
            )
            for row in range(len(sounds))
        ]

    @torch.inference_mode()
    def generate_ids(
        self,
        features: Float[Tensor, "B M F"],
        prompt_ids: Sequence[int | None],
        max_tokens: int = 0,
    ) -> Int[Tensor, "B T"]:
        """The likeliest ids after those that are `told`, where None is for the likeliest language."""
        most = min(max_tokens or self.text.length // 2, self.text.length - 1 - len(prompt_ids))
        cache, end = KVCache(self.text.length), self.text.stop_ids[0]
        ids = torch.full((len(features),), self.start_id)
        logits = self.model.prefill(Batch({"audio": features, "text": ids[:, None]}), "text", cache)
        for token in prompt_ids:
            ids = self._detect_language(logits) if token is None else torch.full_like(ids, token)
            logits = self._decode_step(ids, cache)
        logits[:, list(self.text.begin_suppressed_tokens)] = -torch.inf
        said, ended = list[Tensor](), torch.zeros(len(features), dtype=torch.bool)
        while True:
            logits[:, list(self.text.suppressed_tokens)] = -torch.inf
            ids = torch.where(ended, end, greedy(logits))
            said.append(ids)
            ended = ended | (ids == end)
            if ended.all() or len(said) == most:
                return torch.stack(said, 1)
            logits = self._decode_step(ids, cache)

    def _decode_step(self, ids: Int[Tensor, "B"], cache: KVCache) -> Float[Tensor, "B V"]:
        return self.model.decode_step("text", ids, torch.full_like(ids, cache.length), cache)

    def _detect_language(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
        known = torch.tensor(list(self.languages.values()))
        return known[logits[:, known].argmax(1)]

    def _prompt_ids(self, language: str | None, task: str) -> list[int | None]:
        if task not in TASKS:
            raise SensoriumError(f"task={task!r}: choose one of {', '.join(TASKS)}")
        if not self.languages:
            if language not in (None, "en") or task != "transcribe":
                raise SensoriumError("this model knows English alone, and translates nothing")
            return [self.no_timestamps_id]
        if language is not None and language not in self.languages:
            raise SensoriumError(
                f"language={language!r}: this model knows {', '.join(sorted(self.languages))}"
            )
        return [
            None if language is None else self.languages[language],
            self._token_id(task),
            self.no_timestamps_id,
        ]

    def _vocab_size(self) -> int:
        head = self.model.heads["text"]
        assert isinstance(head, Linear)
        return head.out_features

    def _token_id(self, name: str) -> int:
        number = self.text.tokenizer.token_to_id(f"<|{name}|>")
        if number is None:
            raise SensoriumError(
                f"the tokenizer beside these weights has no <|{name}|>: it is not theirs"
            )
        return number


def split_windows(
    audio: Float[np.ndarray, "N"], sample_rate: int
) -> Iterator[Float[np.ndarray, "n"]]:
    """A sound in pieces of at most WINDOW seconds, cut at the quietest place of the last SEARCHED."""
    most, searched, pause = (
        round(seconds * sample_rate)
        for seconds in (WINDOW_SECONDS, PAUSE_SEARCH_SECONDS, PAUSE_SECONDS)
    )
    while len(audio) > most:
        power = np.cumsum(audio[most - searched : most].astype(np.float64) ** 2)
        quiet = int((power[pause:] - power[:-pause]).argmin())
        cut = most - searched + quiet + pause // 2
        yield audio[:cut]
        audio = audio[cut:]
    yield audio


def load_transcript_prompt(weight_files: WeightFiles, length: int) -> TextPrompt | None:
    """Words as the tokenizer beside the weights spells them; without what the files say is not to be said."""
    about = weight_files.read_json("generation_config.json") | weight_files.config
    never = about.get("suppress_ids") or about.get("suppress_tokens") or ()
    first = about.get("suppress_ids_begin") or about.get("begin_suppress_tokens") or ()
    text = load_text_prompt(
        weight_files, length, None, never=tuple(never), never_first=tuple(first)
    )
    end = None if text is None else text.tokenizer.token_to_id("<|endoftext|>")
    return None if text is None or end is None else replace(text, stop_ids=(end,))
