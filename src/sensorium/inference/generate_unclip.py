"""The verb `generate` of DALL-E 2: images from texts, and images near, between or beside others.

B batch   E width of the embeddings
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.request import as_lists, collate_column, iter_request_batches
from sensorium.inference.sample_embedding import slerp, text_difference
from sensorium.inference.sample_image import DiffusionImageGenerator, SamplingRequest
from sensorium.models.prior import UnCLIP
from sensorium.objectives.samplers import Guidance, SamplerConfig, Threshold, invert

VARIATION_ETA = 1.0  # noise that each step of a variation adds to what inversion found
INVERSION_STEPS = 25


class UnCLIPGenerator:
    """Generate images: `generate(text=[...])`, and from images by their embeddings.

    Args:
        generator: Generates images with the prior and the decoder, or a cascade on top of them.
        unclip: The model with the prior.
    """

    output_modality = "image"

    def __init__(self, generator: DiffusionImageGenerator, unclip: UnCLIP):
        self.generator = generator
        self.unclip = unclip

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        vary: bool = False,
        amount: float = 0.5,
        n: int = 1,
        steps: int = 12,
        guidance_scale: float = 2.0,
        seed: int = 0,
        batch_size: int = 64,
        **inputs: Any,
    ) -> list[PIL.Image.Image]:
        """Return n images for each row, those of one row consecutive.

        - `text`: images of a caption; with `image` and `mask` or `strength`, as for imagen.
        - `image`, `vary=True`: variations of an image.
        - `image`, `blend_image`: images between two, `amount` of the way.
        - `image`, `source_text`, `text`: the image, moved from what it shows to what it should
          show, `amount` of the way.

        Args:
            modality: "image", or None.
            vary: Make variations of `image`.
            amount: How far to go, from 0 to 1.
            n: Images per row.
            steps: Steps of the sampler.
            guidance_scale: Classifier-free guidance; 1 is off.
            seed: Random seed.
            batch_size: Images per batch.
            **inputs: `text`, `image`, `mask`, `blend_image`, `source_text`, and options of imagen.

        Raises:
            SensoriumError: An option is out of range, or an input is missing or cannot be read.
        """
        embeds = vary or "blend_image" in inputs or "source_text" in inputs
        options = {"n": n, "steps": steps, "guidance_scale": guidance_scale, "seed": seed}
        if not embeds:
            return self.generator(modality, batch_size=batch_size, **options, **inputs)
        if not 0 <= amount <= 1:
            raise SensoriumError(f"--amount {amount} is out of range. Use 0 to 1.")
        allowed = ["image", "text", "blend_image", "source_text"]
        request = as_lists(inputs, allowed, "variations of images")
        _check_inputs(request)
        images: list[PIL.Image.Image] = []
        rows = len(request["image"])
        for batch, row_ids in iter_request_batches(request, rows, n, batch_size):
            seeds = [(seed, row) for row in row_ids]
            x0 = collate_column("image", self.generator.image, batch["image"])["image"]
            embedding = self._move(self.unclip.prior.encode_images(x0), batch, amount)
            sampling = SamplingRequest(
                None,
                torch.zeros(len(seeds), dtype=torch.bool),
                seeds,
                SamplerConfig("ddim", steps, shift=1.0, threshold=Threshold("dynamic")),
                Guidance(guidance_scale),
                embedding=embedding,
            )
            if vary:
                sampling = self._start_from(x0, sampling)
            images += [
                self.generator.image.decode(x) for x in self.generator.sample_tensors(sampling)
            ]
        return images

    def _move(
        self, embedding: Float[Tensor, "B E"], batch: dict[str, list[Any]], amount: float
    ) -> Float[Tensor, "B E"]:
        """Return the embeddings of images, moved towards other images or by texts."""
        if "blend_image" in batch:
            other = collate_column("image", self.generator.image, batch["blend_image"])["image"]
            embedding = slerp(embedding, self.unclip.prior.encode_images(other), amount)
        if "source_text" in batch:
            source, target = (self._encode_texts(batch[name]) for name in ("source_text", "text"))
            embedding = text_difference(embedding, source, target, amount)
        return embedding

    def _encode_texts(self, texts: list[Any]) -> Float[Tensor, "B E"]:
        raw = collate_column("text", self.generator.text, texts)["text"]
        keep = torch.ones(len(texts), dtype=torch.bool)
        return self.unclip.prior.encode_texts(raw, keep).embedding

    def _start_from(
        self, x0: Float[Tensor, "B 3 h w"], request: SamplingRequest
    ) -> SamplingRequest:
        """Return the request of variations: it starts from the noise that the images come from."""
        if self.generator.model is not self.unclip:  # a cascade: its small images are varied
            return replace(request, config=replace(request.config, eta=VARIATION_ETA))
        denoise = self._unguided(request)
        times = SamplerConfig("ddim", INVERSION_STEPS, shift=1.0).times()
        noise = invert(denoise, self.generator.process, x0, times)
        return replace(request, noise=noise, config=replace(request.config, eta=VARIATION_ETA))

    def _unguided(self, request: SamplingRequest) -> Callable[[Tensor, Tensor], Tensor]:
        return self.generator.denoiser(replace(request, guidance=Guidance(1.0)))


def _check_inputs(request: dict[str, list[Any]]) -> None:
    """Raise SensoriumError where an input is missing that others need."""
    if "image" not in request:
        raise SensoriumError(
            "--vary, --blend-image and --source-text start from an image. Give --image."
        )
    if any(value is None for value in request["image"]):
        raise SensoriumError("An image is missing. Give one for every row.")
    if "source_text" in request and "text" not in request:
        raise SensoriumError(
            "--source-text says what the image shows; also say what it should show, as text."
        )
