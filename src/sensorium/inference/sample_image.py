"""The verb `generate` for images by diffusion: new images, inpainting and image-to-image.

B rows   h, w image size
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode
from sensorium.inference.request import (
    as_lists,
    collate_column,
    iter_request_batches,
    require_output,
)
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.denoiser import TextConditionalDenoiser
from sensorium.objectives.diffusion import DiffusionProcess
from sensorium.objectives.samplers import (
    Guidance,
    KnownRegion,
    RowNoise,
    Sampler,
    SamplerConfig,
    Threshold,
    sample,
)

OnStep = Callable[[int, int, list[PIL.Image.Image]], None]
MASK_THRESHOLD = 128  # a mask pixel from this value on is generated


@dataclass(frozen=True)
class _Given:
    """Images to start from.

    Attributes:
        x0: The images.
        mask: True where pixels are generated; None for the whole image.
    """

    x0: Float[Tensor, "B 3 h w"]
    mask: Bool[Tensor, "B 1 h w"] | None


class DiffusionImageGenerator:
    """Generate images: `generate(text=[...])`, from an `image` with `strength`, within a `mask`.

    Args:
        model: The trained model.
        process: The diffusion process it was trained with.
        text: Settings of the captions.
        image: Settings of the images.
    """

    output_modality = "image"

    def __init__(
        self,
        model: TextConditionalDenoiser,
        process: DiffusionProcess,
        text: Text,
        image: Image,
    ):
        self.model = model
        self.process = process
        self.text = text
        self.image = image

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        n: int = 1,
        steps: int = 12,
        sampler: Sampler = "dpm++",
        guidance_scale: float = 2.0,
        strength: float = 0.6,
        seed: int = 0,
        batch_size: int = 64,
        on_step: OnStep | None = None,
        **inputs: Any,
    ) -> list[PIL.Image.Image]:
        """Return n images for each row, those of one row consecutive.

        The same seed gives the same image for a row, whatever else is in the request.

        Args:
            modality: "image", or None.
            n: Images per row.
            steps: Steps of the sampler.
            sampler: One of `SAMPLERS`.
            guidance_scale: Classifier-free guidance: 1 is off; more follows the caption closer.
            strength: Without a mask, how much of `image` is replaced, from 0 to 1.
            seed: Random seed.
            batch_size: Images per batch.
            on_step: Called after each step with its number, the number of steps and the images as
                they look so far.
            **inputs: `text`, `image` and `mask`: a list of raw values, or one value; None is a
                missing caption. White pixels of a mask are generated; all others stay.

        Raises:
            SensoriumError: An option is out of range or an input cannot be read.
        """
        require_output(modality, "image", n=n, steps=steps, batch_size=batch_size)
        _check_options(sampler, guidance_scale, strength)
        request = as_lists(inputs, ["text", "image", "mask"], "image")
        if "mask" in request and "image" not in request:
            raise SensoriumError("--mask needs the image that it belongs to. Give --image.")
        rows = max((len(values) for values in request.values()), default=1)
        config = SamplerConfig(
            sampler,
            steps,
            start=strength if "image" in request and "mask" not in request else 1.0,
            threshold=Threshold("dynamic"),
        )
        images: list[PIL.Image.Image] = []
        for batch_inputs, row_ids in iter_request_batches(request, rows, n, batch_size):
            seeds = [(seed, row) for row in row_ids]
            x = self._sample(batch_inputs, seeds, config, Guidance(guidance_scale), on_step)
            images += self._decode(x)
        return images

    def sample_tensors(
        self,
        texts: Tensor | None,
        seeds: Sequence[Sequence[int]],
        config: SamplerConfig,
        guidance: Guidance,
        *,
        keep: Bool[Tensor, "B"] | None = None,
    ) -> Float[Tensor, "B 3 h w"]:
        """Return new images for collated texts, one for each seed.

        Args:
            texts: The texts; None for images without one.
            seeds: Seeds of each row.
            config: Options of sampling.
            guidance: Classifier-free guidance.
            keep: False for a missing text.
        """
        noise = RowNoise(seeds, (3, self.image.size, self.image.size))
        if keep is None:
            keep = torch.full((len(seeds),), texts is not None)
        with eval_mode(self.model), torch.no_grad():
            denoise = self._guided(texts, keep, guidance)
            return sample(denoise, self.process, noise.draw(), config, step_noise=noise.draw)

    @torch.no_grad()
    def _sample(
        self,
        inputs: dict[str, list[Any]],
        seeds: Sequence[Sequence[int]],
        config: SamplerConfig,
        guidance: Guidance,
        on_step: OnStep | None,
    ) -> Float[Tensor, "B 3 h w"]:
        """Return the images of one batch."""
        batch = collate_column("text", self.text, inputs.get("text", [None] * len(seeds)))
        keep = batch.presence("text") if "text" in batch else torch.zeros(len(seeds)).bool()
        noise = RowNoise(seeds, (3, self.image.size, self.image.size))
        x = first = noise.draw()
        known = None
        given = self._load_given(inputs)
        if given is not None and given.mask is None:
            times = torch.full((len(seeds),), config.start)
            x = self.process.add_noise(given.x0, first, times)
        elif given is not None and given.mask is not None:
            known = KnownRegion(given.x0, given.mask, first)

        def report(step: int, x0: Tensor) -> None:
            if on_step is not None:
                on_step(step, config.steps, self._decode(x0))

        with eval_mode(self.model):
            denoise = self._guided(batch.columns.get("text"), keep, guidance)
            return sample(
                denoise,
                self.process,
                x,
                config,
                step_noise=noise.draw,
                known=known,
                on_step=report,
            )

    def _guided(
        self, texts: Tensor | None, keep: Bool[Tensor, "B"], guidance: Guidance
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the denoiser with its condition, guided where there is a text to follow."""
        condition = self.model.condition(texts, keep)
        if not keep.any() or guidance.scale == 1:
            return lambda x, time: self.model(x, time, condition)
        both = condition.concat(self.model.condition(None, torch.zeros_like(keep)))

        def denoise(x: Tensor, time: Tensor) -> Tensor:
            if not guidance.is_on(time[0].item() / 1000):
                return self.model(x, time, condition)
            prediction = self.model(torch.cat([x, x]), torch.cat([time, time]), both)
            return guidance.combine(*prediction.chunk(2))

        return denoise

    def _load_given(self, inputs: dict[str, list[Any]]) -> _Given | None:
        """Return the images and masks of a batch."""
        if "image" not in inputs:
            return None
        if any(value is None for value in inputs["image"]):
            raise SensoriumError("An image is missing. Give one for every row, or for none.")
        x0 = collate_column("image", self.image, inputs["image"])["image"]
        if "mask" not in inputs:
            return _Given(x0, None)
        masks = [_load_mask(value, self.image) for value in inputs["mask"]]
        return _Given(x0, torch.stack(masks))

    def _decode(self, x: Float[Tensor, "B 3 h w"]) -> list[PIL.Image.Image]:
        return [self.image.decode(pixels) for pixels in x]


def _load_mask(value: Any, image: Image) -> Bool[Tensor, "1 h w"]:
    """Return a mask at the size of the images, cut as they are; True where pixels are generated."""
    pixels = image.load(value)
    gray = np.asarray(pixels, np.float32).mean(-1)
    return torch.from_numpy(gray >= MASK_THRESHOLD)[None]


def _check_options(sampler: str, guidance_scale: float, strength: float) -> None:
    if sampler not in get_args(Sampler):
        raise SensoriumError(f"--sampler {sampler!r} is not one of {', '.join(get_args(Sampler))}.")
    if not 0 <= guidance_scale < math.inf:
        raise SensoriumError(f"--guidance-scale {guidance_scale} is out of range. Use 0 or more.")
    if not 0 < strength <= 1:
        raise SensoriumError(f"--strength {strength} is out of range. Use more than 0, at most 1.")
