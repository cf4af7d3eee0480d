"""The verb `generate` for pictures that are said code by code: words in, pictures out."""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.modalities.cells import Cells
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models import Decoder
from sensorium.objectives.next_token import Sampling, generate
from sensorium.tokens import Batch
from sensorium.verbs.asked import batched, collated, lists, only
from sensorium.verbs.verb import at_rest


@runtime_checkable
class Embeds(Protocol):
    """A model that brings pictures and words into one space, such as a trained CLIP."""

    @property
    def embed(self) -> Callable[..., np.ndarray]: ...


class Painter:
    """generate(text=[...]) → pictures; with `image` and `keep`, pictures that go on from the first codes of others."""

    makes = "image"

    def __init__(self, model: Decoder, text: Text, image: Image):
        self.model, self.text, self.image = model, text, image

    def __call__(self, what: str | None = None, /, *, n: int = 1, temperature: float = 1.0, top_k: int = 0,
                 top_p: float = 1.0, guidance: float = 1.0, seed: int = 0, keep: int = 0, region: Any = None,
                 rerank: object = None, candidates: int = 16, batch_size: int = 64,
                 **given: Any) -> list[PIL.Image.Image]:
        """Pictures for each row asked, n of them side by side.

        text: captions, or one; None where one is missing. guidance: how far to go from what would be painted without
        the caption; 1: not at all. keep: how many codes of `image`, row by row from the top, are kept as they are.
        rerank: a model that embeds pictures and words, which chooses the best n of so many `candidates`. The same seed
        gives the same pictures whatever else is asked beside. Raises SensoriumError naming what cannot be done.
        """
        only(what, "image", n=n, candidates=candidates, batch_size=batch_size)
        if region is not None:
            raise SensoriumError("a region cannot be painted anew here: codes are said row by row, and those after the "
                                 "region would not be seen. Models of masked tokens (MaskGIT) can, which are planned; "
                                 "here, keep=N keeps the first N codes")
        asked = lists(given, ["text", "image"], "image")
        rows = max((len(values) for values in asked.values()), default=1)
        self._check(asked, keep, guidance, rerank)
        each = max(n, candidates) if rerank else n
        painted: list[PIL.Image.Image] = []
        for some, numbers in batched(asked, rows, each, batch_size):
            how = Sampling(temperature, top_k, top_p, guidance, ("text",), seed, numbers)
            painted += self.shown(self.paint(self._batch(some, keep, len(numbers)), how))
        if not isinstance(rerank, Embeds):
            return painted
        pieces = [painted[row * each:(row + 1) * each] for row in range(rows)]
        return [best for words, piece in zip(asked["text"], pieces, strict=True)
                for best in chosen(rerank, words, piece, n)]

    def paint(self, batch: Batch, how: Sampling) -> Int[Tensor, "B T"]:
        """Codes for a batch of parts, as tensors: text as `spelt` gives it, image as far as it is given."""
        begun = batch["image"][:, 1:]
        left = len(self.cells.rows) ** 2 - begun.shape[1]
        with at_rest(self.model):
            said = list(generate(self.model, batch, "image", left, how)) if left else []
        return torch.cat([begun, *(ids[:, None] for ids in said)], 1)

    @torch.inference_mode()
    def shown(self, ids: Int[Tensor, "B T"]) -> list[PIL.Image.Image]:
        """Codes as pictures to look at."""
        return [self.image.show(picture) for picture in self.cells.picture(ids)]

    @property
    def cells(self) -> Cells:
        cells = self.model.parts["image"]
        assert isinstance(cells, Cells)
        return cells

    def start(self, rows: int) -> Int[Tensor, "B 1"]:
        """The beginning of pictures of which nothing is given."""
        return torch.full((rows, 1), self.cells.start)

    def _check(self, asked: Mapping[str, Sequence[Any]], keep: int, guidance: float, rerank: object) -> None:
        cells = len(self.cells.rows) ** 2
        if not 0 <= keep <= cells or bool(keep) != ("image" in asked) or _gaps(asked.get("image", ())):
            raise SensoriumError(f"keep={keep}: give both a picture to each row (image=) and how many of its codes "
                                 f"stay, 1 to {cells}, or neither")
        if not 0 <= guidance < math.inf or guidance != 1 and "text" not in asked:
            raise SensoriumError(f"guidance={guidance}: expected 0 or more, and words to be guided by (text=)")
        if rerank is not None and ("text" not in asked or _gaps(asked["text"]) or not isinstance(rerank, Embeds)):
            raise SensoriumError("rerank takes a model that embeds pictures and words, as in "
                                 "rerank=sn.load('runs/clip'), and words for every picture (text=)")

    def _batch(self, asked: Mapping[str, Sequence[Any]], keep: int, rows: int) -> Batch:
        batch = collated("text", self.text, asked["text"]) if "text" in asked else Batch({})
        if "text" in batch:
            batch = batch.changed({"text": self.model.said("text").spelt(batch["text"])})
        if not keep:
            return batch.changed({"image": self.start(rows)})
        with at_rest(self.model):
            codes = self.cells.spelt(collated("image", self.image, asked["image"])["image"])
        return batch.changed({"image": codes[:, :1 + keep]})


def _gaps(values: Sequence[Any]) -> bool:
    return any(value is None for value in values)


def chosen(rerank: Embeds, words: str, pictures: Sequence[PIL.Image.Image], n: int) -> list[PIL.Image.Image]:
    """The n pictures that are nearest to the words, best first."""
    scores = rerank.embed(image=pictures) @ rerank.embed(text=[words])[0]
    return [pictures[i] for i in np.argsort(-scores, kind="stable")[:n]]
