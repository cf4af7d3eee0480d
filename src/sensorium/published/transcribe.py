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

from sensorium.attention import Cache
from sensorium.errors import SensoriumError
from sensorium.kernels import Linear
from sensorium.modalities.audio import Audio
from sensorium.models import Decoder
from sensorium.objectives.next_token import likeliest
from sensorium.published.chat import Beginning, beginning
from sensorium.published.files import Opened
from sensorium.published.published import Senses
from sensorium.tokens import Batch
from sensorium.verbs.asked import lists, only
from sensorium.verbs.verb import at_rest, load

TASKS = ("transcribe", "translate")
WINDOW, SEARCHED = 30.0, 10.0               # seconds heard at once; the last of them in which a pause is looked for
PAUSE = 0.2                                 # seconds
ENGLISH = 51_864                            # ids of a model that knows no other language


class Transcriber:
    """generate("text", audio=[...]) → what is said in each sound, in the language spoken or in English."""

    def __init__(self, model: Decoder, senses: Senses):
        audio, text = senses["audio"], senses["text"]
        assert isinstance(audio, Audio) and isinstance(text, Beginning)
        self.model, self.audio, self.text = model, audio, text
        self.start, self.plain = self._id("startoftranscript"), self._id("notimestamps")
        spoken = range(self.start + 1, self._id("translate")) if self._vocab() > ENGLISH else ()
        self.languages = {str(text.tokenizer.id_to_token(i)).strip("<|>"): i for i in spoken}

    def __call__(self, what: str | None = None, /, *, language: str | None = None, task: str = "transcribe",
                 padded: bool = True, length: int = 0, batch_size: int = 8, **given: Any) -> list[str]:
        """Words for each of `audio`: paths, (samples, rate), or samples at 16 kHz; of any length.

        language: spoken in all of them ("it"), or None to listen for it in each. task: "translate" into English.
        padded: bring each window to 30 s with silence, as published models were trained: without it they are quick, and
        write a short sound down again and again. length: the most tokens a window. A long sound is cut at pauses.
        Raises SensoriumError naming what cannot be read or done.
        """
        only(what, "text")
        told = self._told(language, task)
        sounds = [load(self.audio, value) for value in lists(given, ["audio"], "text").get("audio", [])]
        pieces = [(row, piece) for row, sound in enumerate(sounds) for piece in windows(sound, self.audio.rate)]
        heard = replace(self.audio, seconds=WINDOW if padded else 0.0)
        said, order = [""] * len(pieces), sorted(range(len(pieces)), key=lambda i: len(pieces[i][1]))
        with at_rest(self.model):
            for some in (order[i:i + batch_size] for i in range(0, len(order), batch_size)):
                ids = self.say(heard.collate([pieces[i][1] for i in some]), told, length)
                for i, row in zip(some, ids, strict=True):
                    said[i] = self.text.show(row).strip()
        return [" ".join(words for (of, _), words in zip(pieces, said, strict=True) if of == row and words)
                for row in range(len(sounds))]

    @torch.inference_mode()
    def say(self, heard: Float[Tensor, "B M F"], told: Sequence[int | None], length: int = 0) -> Int[Tensor, "B T"]:
        """The likeliest ids after those that are `told`, where None is for the likeliest language."""
        most = min(length or self.text.length // 2, self.text.length - 1 - len(told))
        cache, end = Cache(self.text.length), self.text.ends[0]
        ids = torch.full((len(heard),), self.start)
        logits = self.model.begin(Batch({"audio": heard, "text": ids[:, None]}), "text", cache)
        for token in told:
            ids = self._language(logits) if token is None else torch.full_like(ids, token)
            logits = self._after(ids, cache)
        logits[:, list(self.text.never_first)] = -torch.inf
        said, ended = list[Tensor](), torch.zeros(len(heard), dtype=torch.bool)
        while True:
            logits[:, list(self.text.never)] = -torch.inf
            ids = torch.where(ended, end, likeliest(logits))
            said.append(ids)
            ended = ended | (ids == end)
            if ended.all() or len(said) == most:
                return torch.stack(said, 1)
            logits = self._after(ids, cache)

    def _after(self, ids: Int[Tensor, "B"], cache: Cache) -> Float[Tensor, "B V"]:
        return self.model.go_on("text", ids, torch.full_like(ids, cache.length), cache)

    def _language(self, logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
        known = torch.tensor(list(self.languages.values()))
        return known[logits[:, known].argmax(1)]

    def _told(self, language: str | None, task: str) -> list[int | None]:
        if task not in TASKS:
            raise SensoriumError(f"task={task!r}: choose one of {', '.join(TASKS)}")
        if not self.languages:
            if language not in (None, "en") or task != "transcribe":
                raise SensoriumError("this model knows English alone, and translates nothing")
            return [self.plain]
        if language is not None and language not in self.languages:
            raise SensoriumError(f"language={language!r}: this model knows {', '.join(sorted(self.languages))}")
        return [None if language is None else self.languages[language], self._id(task), self.plain]

    def _vocab(self) -> int:
        head = self.model.heads["text"]
        assert isinstance(head, Linear)
        return head.out_features

    def _id(self, name: str) -> int:
        number = self.text.tokenizer.token_to_id(f"<|{name}|>")
        if number is None:
            raise SensoriumError(f"the tokenizer beside these weights has no <|{name}|>: it is not theirs")
        return number


def windows(sound: Float[np.ndarray, "N"], rate: int) -> Iterator[Float[np.ndarray, "n"]]:
    """A sound in pieces of at most WINDOW seconds, cut at the quietest place of the last SEARCHED."""
    most, searched, pause = (round(seconds * rate) for seconds in (WINDOW, SEARCHED, PAUSE))
    while len(sound) > most:
        power = np.cumsum(sound[most - searched:most].astype(np.float64) ** 2)
        quiet = int((power[pause:] - power[:-pause]).argmin())
        cut = most - searched + quiet + pause // 2
        yield sound[:cut]
        sound = sound[cut:]
    yield sound


def script(opened: Opened, length: int) -> Beginning | None:
    """Words as the tokenizer beside the weights spells them; without what the files say is not to be said."""
    about = opened.json("generation_config.json") | opened.config
    never = about.get("suppress_ids") or about.get("suppress_tokens") or ()
    first = about.get("suppress_ids_begin") or about.get("begin_suppress_tokens") or ()
    text = beginning(opened, length, None, never=tuple(never), never_first=tuple(first))
    end = None if text is None else text.tokenizer.token_to_id("<|endoftext|>")
    return None if text is None or end is None else replace(text, ends=(end,))
