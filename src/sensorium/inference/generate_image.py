"""The verb `generate` for images: text to image tokens, one at a time, to images.

B rows   T tokens
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode
from sensorium.inference.request import (
    RawInputs,
    as_lists,
    collate_column,
    iter_request_batches,
    require_output,
)
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.decoder import Decoder
from sensorium.models.image_tokens import ImageTokenEmbedding
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model that embeds images and text in one space, such as a trained CLIP."""

    @property
    def embed(self) -> Callable[..., np.ndarray]:
        """Return the verb `embed`."""
        ...


class ImageGenerator:
    """Generate images: `generate(text=[...])`; with `image` and `prefix_tokens`, complete images.

    Args:
        model: The trained model, with the parts `text` and `image` in this order.
        text: Settings of the captions.
        image: Settings of the images.
    """

    output_modality = "image"

    def __init__(self, model: Decoder, text: Text, image: Image):
        self.model = model
        self.text = text
        self.image = image

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
        """Return n images for each row, those of one row consecutive.

        The same seed gives the same image for a row, whatever else is in the request.

        Args:
            modality: "image", or None.
            n: Images per row.
            temperature: Sampling temperature; 0 is greedy decoding.
            top_k: Sample from the k most likely tokens only; 0 is off.
            top_p: Sample from the most likely tokens with this total probability; 1 is off.
            guidance_scale: Classifier-free guidance: 1 is off; more follows the caption closer.
            seed: Random seed.
            prefix_tokens: Number of tokens of `image` that are kept, row by row from the top.
            region: Not supported.
            rerank: A model that embeds images and text, to select the best n of `candidates`.
            candidates: Images per row that are sampled for `rerank`.
            batch_size: Images per batch.
            **inputs: `text` and `image`: a list of raw values, or one value; None is a missing
                caption.

        Raises:
            SensoriumError: If an option is out of range or not supported, or an input cannot be
                read.
        """
        require_output(modality, "image", n=n, candidates=candidates, batch_size=batch_size)
        if region is not None:
            raise SensoriumError(
                "--region is not supported: this model generates image tokens row by row and "
                "cannot see what follows the region. Use --prefix-tokens to keep the top of an "
                "image."
            )
        request = as_lists(inputs, ["text", "image"], "image")
        rows = max((len(values) for values in request.values()), default=1)
        self._check_prefix(request, prefix_tokens)
        _check_guidance(request, guidance_scale)
        _check_rerank(request, rerank)
        samples_per_row = max(n, candidates) if rerank else n
        images: list[PIL.Image.Image] = []
        for batch_inputs, row_ids in iter_request_batches(
            request, rows, samples_per_row, batch_size
        ):
            sampling = SamplingConfig(
                temperature, top_k, top_p, guidance_scale, ("text",), seed, row_ids
            )
            batch = self._build_batch(batch_inputs, prefix_tokens, len(row_ids))
            images += self.decode_images(self.generate_tokens(batch, sampling))
        if not isinstance(rerank, EmbeddingModel):
            return images
        best: list[PIL.Image.Image] = []
        for row, text in enumerate(request["text"]):
            row_images = images[row * samples_per_row : (row + 1) * samples_per_row]
            best += rerank_images(rerank, text, row_images, n)
        return best

    def generate_tokens(self, batch: Batch, sampling: SamplingConfig) -> Int[Tensor, "B T"]:
        """Return the tokens of whole images, without the start token.

        Args:
            batch: optional `text`, as the model's embedding tokenizes it, and `image`: the start
                token and the tokens to complete.
            sampling: Options of sampling.
        """
        prefix = batch["image"][:, 1:]
        remaining = self._num_tokens() - prefix.shape[1]
        steps: list[Int[Tensor, "B"]] = []
        if remaining:
            with eval_mode(self.model):
                steps = list(generate(self.model, batch, "image", remaining, sampling))
        return torch.cat([prefix, *(ids[:, None] for ids in steps)], 1)

    @torch.inference_mode()
    def decode_images(self, ids: Int[Tensor, "B T"]) -> list[PIL.Image.Image]:
        """Return image tokens as images."""
        return [self.image.decode(pixels) for pixels in self.token_embedding.decode_image(ids)]

    @property
    def token_embedding(self) -> ImageTokenEmbedding:
        """Return the part of the model that embeds image tokens."""
        embedding = self.model.parts["image"]
        if not isinstance(embedding, ImageTokenEmbedding):
            raise TypeError(f"expected an ImageTokenEmbedding, got {type(embedding).__name__}")
        return embedding

    def start_tokens(self, batch_size: int) -> Int[Tensor, "B 1"]:
        """Return empty prefixes: the start token alone."""
        return torch.full((batch_size, 1), self.token_embedding.start_token)

    def _num_tokens(self) -> int:
        return len(self.token_embedding.row_embedding) ** 2

    def _check_prefix(self, inputs: RawInputs, prefix_tokens: int) -> None:
        limit = self._num_tokens()
        if not 0 <= prefix_tokens <= limit:
            raise SensoriumError(
                f"--prefix-tokens {prefix_tokens} is out of range. Use 1 to {limit}, or 0 for none."
            )
        images = inputs.get("image")
        if not prefix_tokens and images is not None:
            raise SensoriumError(
                f"--image needs --prefix-tokens: how many of its tokens are kept, 1 to {limit}."
            )
        if prefix_tokens and (images is None or _has_missing(images)):
            raise SensoriumError(
                f"--prefix-tokens {prefix_tokens} needs an image in every row. Give --image."
            )

    def _build_batch(self, inputs: RawInputs, prefix_tokens: int, batch_size: int) -> Batch:
        batch = Batch({})
        if "text" in inputs:
            batch = collate_column("text", self.text, inputs["text"])
        if "text" in batch:
            ids = self.model.output_part("text").tokenize(batch["text"])
            batch = batch.with_columns({"text": ids})
        if not prefix_tokens:
            return batch.with_columns({"image": self.start_tokens(batch_size)})
        with eval_mode(self.model):
            pixels = collate_column("image", self.image, inputs["image"])["image"]
            ids = self.token_embedding.tokenize(pixels)
        return batch.with_columns({"image": ids[:, : 1 + prefix_tokens]})


def _check_guidance(inputs: RawInputs, guidance_scale: float) -> None:
    if not 0 <= guidance_scale < math.inf:
        raise SensoriumError(f"--guidance-scale {guidance_scale} is out of range. Use 0 or more.")
    if guidance_scale != 1 and "text" not in inputs:
        raise SensoriumError(
            f"--guidance-scale {guidance_scale:g} needs a caption. Give a text, or leave it out."
        )


def _check_rerank(inputs: RawInputs, rerank: object) -> None:
    if rerank is None:
        return
    if not isinstance(rerank, EmbeddingModel):
        raise SensoriumError(
            "--rerank needs a model that embeds images and text. "
            "Give a CLIP run (in Python: rerank=sn.load('runs/clip'))."
        )
    if "text" not in inputs or _has_missing(inputs["text"]):
        raise SensoriumError("--rerank needs a caption in every row. Give a text.")


def _has_missing(values: Sequence[Any]) -> bool:
    return any(value is None for value in values)


def rerank_images(
    model: EmbeddingModel, text: str, images: Sequence[PIL.Image.Image], n: int
) -> list[PIL.Image.Image]:
    """Return the n images whose embeddings are most similar to that of the text, best first."""
    scores = model.embed(image=images) @ model.embed(text=[text])[0]
    return [images[i] for i in np.argsort(-scores, kind="stable")[:n]]
