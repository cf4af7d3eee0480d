"""The verb `generate` of a GAN: noise and text to an image in one step.

B rows   h, w image size
"""

from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sensorium.inference.base import eval_mode
from sensorium.inference.request import (
    as_lists,
    collate_column,
    iter_request_batches,
    require_output,
)
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.gan import TextConditionalGAN
from sensorium.nn.tokens import Batch
from sensorium.objectives.samplers import RowNoise


class GANGenerator:
    """Generate images: `generate(text=[...])`.

    Args:
        model: The trained model.
        text: Settings of the captions.
        image: Settings of the images.
    """

    output_modality = "image"

    def __init__(self, model: TextConditionalGAN, text: Text, image: Image):
        self.model = model
        self.text = text
        self.image = image

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        n: int = 1,
        seed: int = 0,
        batch_size: int = 64,
        **inputs: Any,
    ) -> list[PIL.Image.Image]:
        """Return n images for each row, those of one row consecutive.

        The same seed gives the same image for a row, whatever else is in the request.

        Args:
            modality: "image", or None.
            n: Images per row.
            seed: Random seed.
            batch_size: Images per batch.
            **inputs: `text`: a list of captions, or one; None is a missing caption.

        Raises:
            SensoriumError: An option is out of range or an input cannot be read.
        """
        require_output(modality, "image", n=n, batch_size=batch_size)
        request = as_lists(inputs, ["text"], "image")
        rows = max((len(values) for values in request.values()), default=1)
        images: list[PIL.Image.Image] = []
        for batch_inputs, row_ids in iter_request_batches(request, rows, n, batch_size):
            batch = Batch({})
            if "text" in batch_inputs:
                batch = collate_column("text", self.text, batch_inputs["text"])
            keep = torch.zeros(len(row_ids), dtype=torch.bool)
            if "text" in batch:
                keep = batch.presence("text")
            seeds = [(seed, row) for row in row_ids]
            images += self.generate_images(batch.columns.get("text"), keep, seeds)
        return images

    def generate_images(
        self, texts: Tensor | None, keep: Bool[Tensor, "B"], seeds: Sequence[Sequence[int]]
    ) -> list[PIL.Image.Image]:
        """Return what `generate_tensors` does, as images."""
        return [self.image.decode(x) for x in self.generate_tensors(texts, keep, seeds)]

    @torch.no_grad()
    def generate_tensors(
        self, texts: Tensor | None, keep: Bool[Tensor, "B"], seeds: Sequence[Sequence[int]]
    ) -> Float[Tensor, "B 3 h w"]:
        """Return images for collated texts.

        Args:
            texts: The texts; None where all are missing.
            keep: False for a missing text.
            seeds: Seeds of each row.
        """
        with eval_mode(self.model):
            noise = RowNoise(seeds, (self.model.generator.latent_dim,)).draw()
            return self.model.generator(noise, texts, keep).clamp(-1, 1)
