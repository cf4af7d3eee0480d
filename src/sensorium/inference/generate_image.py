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
from sensorium.inference.base import eval_mode
from sensorium.inference.request import as_lists, collate_column, iter_batches, require_output
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.decoder import Decoder
from sensorium.models.image_tokens import ImageTokenEmbedding
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model that brings pictures and words into one space, such as a trained CLIP."""

    @property
    def embed(self) -> Callable[..., np.ndarray]: ...


class ImageGenerator:
    """generate(text=[...]) → pictures; with `image` and `keep`, pictures that go on from the first codes of others."""

    output_modality = "image"

    def __init__(self, model: Decoder, text: Text, image: Image):
        self.model, self.text, self.image = model, text, image

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        n: int = 1,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance_scale: float = 1.0,
        seed: int = 0,
        prefix_tokens: int = 0,
        region: Any = None,
        rerank: object = None,
        candidates: int = 16,
        batch_size: int = 64,
        **inputs: Any,
    ) -> list[PIL.Image.Image]:
        """Pictures for each row asked, n of them side by side.

        text: captions, or one; None where one is missing. guidance: how far to go from what would be painted without
        the caption; 1: not at all. keep: how many codes of `image`, row by row from the top, are kept as they are.
        rerank: a model that embeds pictures and words, which chooses the best n of so many `candidates`. The same seed
        gives the same pictures whatever else is asked beside. Raises SensoriumError naming what cannot be done.
        """
        require_output(modality, "image", n=n, candidates=candidates, batch_size=batch_size)
        if region is not None:
            raise SensoriumError(
                "a region cannot be painted anew here: codes are said row by row, and those after the "
                "region would not be seen. Models of masked tokens (MaskGIT) can, which are planned; "
                "here, keep=N keeps the first N codes"
            )
        asked = as_lists(inputs, ["text", "image"], "image")
        rows = max((len(values) for values in asked.values()), default=1)
        self._check_request(asked, prefix_tokens, guidance_scale, rerank)
        each = max(n, candidates) if rerank else n
        painted: list[PIL.Image.Image] = []
        for some, numbers in iter_batches(asked, rows, each, batch_size):
            how = SamplingConfig(
                temperature, top_k, top_p, guidance_scale, ("text",), seed, numbers
            )
            painted += self.decode_images(
                self.generate_tokens(self._build_batch(some, prefix_tokens, len(numbers)), how)
            )
        if not isinstance(rerank, EmbeddingModel):
            return painted
        pieces = [painted[row * each : (row + 1) * each] for row in range(rows)]
        return [
            best
            for words, piece in zip(asked["text"], pieces, strict=True)
            for best in rerank_images(rerank, words, piece, n)
        ]

    def generate_tokens(self, batch: Batch, sampling: SamplingConfig) -> Int[Tensor, "B T"]:
        """Codes for a batch of parts, as tensors: text as `spelt` gives it, image as far as it is given."""
        begun = batch["image"][:, 1:]
        left = len(self.token_embedding.row_embedding) ** 2 - begun.shape[1]
        with eval_mode(self.model):
            said = list(generate(self.model, batch, "image", left, sampling)) if left else []
        return torch.cat([begun, *(ids[:, None] for ids in said)], 1)

    @torch.inference_mode()
    def decode_images(self, ids: Int[Tensor, "B T"]) -> list[PIL.Image.Image]:
        """Codes as pictures to look at."""
        return [self.image.decode(picture) for picture in self.token_embedding.decode_image(ids)]

    @property
    def token_embedding(self) -> ImageTokenEmbedding:
        cells = self.model.parts["image"]
        assert isinstance(cells, ImageTokenEmbedding)
        return cells

    def start_tokens(self, batch_size: int) -> Int[Tensor, "B 1"]:
        """The beginning of pictures of which nothing is given."""
        return torch.full((batch_size, 1), self.token_embedding.start_token)

    def _check_request(
        self,
        inputs: Mapping[str, Sequence[Any]],
        prefix_tokens: int,
        guidance_scale: float,
        rerank: object,
    ) -> None:
        cells = len(self.token_embedding.row_embedding) ** 2
        if (
            not 0 <= prefix_tokens <= cells
            or bool(prefix_tokens) != ("image" in inputs)
            or _has_missing(inputs.get("image", ()))
        ):
            raise SensoriumError(
                f"keep={prefix_tokens}: give both a picture to each row (image=) and how many of its codes "
                f"stay, 1 to {cells}, or neither"
            )
        if not 0 <= guidance_scale < math.inf or (guidance_scale != 1 and "text" not in inputs):
            raise SensoriumError(
                f"guidance={guidance_scale}: expected 0 or more, and words to be guided by (text=)"
            )
        if rerank is not None and (
            "text" not in inputs
            or _has_missing(inputs["text"])
            or not isinstance(rerank, EmbeddingModel)
        ):
            raise SensoriumError(
                "rerank takes a model that embeds pictures and words, as in "
                "rerank=sn.load('runs/clip'), and words for every picture (text=)"
            )

    def _build_batch(
        self, inputs: Mapping[str, Sequence[Any]], prefix_tokens: int, batch_size: int
    ) -> Batch:
        batch = collate_column("text", self.text, inputs["text"]) if "text" in inputs else Batch({})
        if "text" in batch:
            batch = batch.with_columns(
                {"text": self.model.output_part("text").tokenize(batch["text"])}
            )
        if not prefix_tokens:
            return batch.with_columns({"image": self.start_tokens(batch_size)})
        with eval_mode(self.model):
            codes = self.token_embedding.tokenize(
                collate_column("image", self.image, inputs["image"])["image"]
            )
        return batch.with_columns({"image": codes[:, : 1 + prefix_tokens]})


def _has_missing(values: Sequence[Any]) -> bool:
    return any(value is None for value in values)


def rerank_images(
    model: EmbeddingModel, text: str, images: Sequence[PIL.Image.Image], n: int
) -> list[PIL.Image.Image]:
    """The n pictures that are nearest to the words, best first."""
    scores = model.embed(image=images) @ model.embed(text=[text])[0]
    return [images[i] for i in np.argsort(-scores, kind="stable")[:n]]
