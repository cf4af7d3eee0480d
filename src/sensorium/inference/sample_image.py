"""The verb `generate` for images by diffusion: new images, inpainting and image-to-image.

B rows   h, w image size   s size of the images of a base
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode
from sensorium.inference.request import (
    as_lists,
    collate_column,
    iter_request_batches,
    require_output,
)
from sensorium.inference.sample_embedding import sample_image_embeddings
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.denoiser import Cascade, ImageCondition, TextConditionalDenoiser
from sensorium.models.prior import UnCLIP
from sensorium.nn.denoising import Conditioning
from sensorium.nn.tokens import Batch
from sensorium.objectives.diffusion import DiffusionProcess
from sensorium.objectives.samplers import (
    SAMPLERS,
    Guidance,
    KnownRegion,
    RowNoise,
    Sampler,
    SamplerConfig,
    Threshold,
    sample,
)

DiffusionModel = TextConditionalDenoiser | Cascade | UnCLIP
OnStep = Callable[[int, int, list[PIL.Image.Image]], None]
DEFAULT_GUIDANCE = 2.0
MASK_THRESHOLD = 128  # a mask pixel from this value on is generated
UPSAMPLER_NOISE_LEVEL = 0.1  # time of the noise on the image that an upsampler enlarges


@dataclass(frozen=True)
class SourceImages:
    """Images to start from.

    Attributes:
        x0: The images.
        mask: True where pixels are generated; None for the whole image.
        enlarge: Whether they are small images to be enlarged.
    """

    x0: Float[Tensor, "B 3 h w"]
    mask: Bool[Tensor, "B 1 h w"] | None = None
    enlarge: bool = False


@dataclass(frozen=True)
class SamplingRequest:
    """What is sampled in one batch.

    Attributes:
        texts: Collated texts; None for images without a text.
        keep: False for a missing text.
        seeds: Seeds of each row.
        config: Options of the sampler.
        guidance: Classifier-free guidance.
        source: Images to start from.
        embedding: Image embeddings for the decoder of DALL-E 2, instead of those of its prior.
        noise: Noise to start from, instead of that of the seeds.
        on_step: Receives the images after each step of the last stage.
    """

    texts: Tensor | None
    keep: Bool[Tensor, "B"]
    seeds: Sequence[Sequence[int]]
    config: SamplerConfig
    guidance: Guidance
    source: SourceImages | None = None
    embedding: Float[Tensor, "B E"] | None = None
    noise: Float[Tensor, "B 3 h w"] | None = None
    on_step: Callable[[int, Tensor], None] | None = None


class DiffusionImageGenerator:
    """Generate images: `generate(text=[...])`, from an `image` with `strength`, within a `mask`.

    Args:
        model: The trained model.
        process: The diffusion process it was trained with.
        text: Settings of the captions.
        image: Settings of the images.
        base: Generator of the base of a Cascade.
    """

    output_modality = "image"

    def __init__(
        self,
        model: DiffusionModel,
        process: DiffusionProcess,
        text: Text,
        image: Image,
        base: "DiffusionImageGenerator | None" = None,
    ):
        self.model = model
        self.process = process
        self.text = text
        self.image = image
        self.base = base

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        n: int = 1,
        steps: int = 12,
        sampler: str = "dpm++",
        guidance_scale: float = DEFAULT_GUIDANCE,
        strength: float = 0.6,
        upscale: bool = False,
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
            steps: Steps of the sampler, in each stage of a cascade.
            sampler: One of `SAMPLERS`.
            guidance_scale: Classifier-free guidance: 1 is off; more follows the caption closer.
            strength: Without a mask, how much of `image` is replaced, from 0 to 1.
            upscale: Enlarge `image` by the last stage of a cascade.
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
        request = as_lists(inputs, ["text", "image", "mask"], "image")
        _check_options(guidance_scale, strength)
        self._check_images(request, upscale)
        rows = max((len(values) for values in request.values()), default=1)
        image_to_image = "image" in request and "mask" not in request and not upscale
        config = SamplerConfig(
            _check_sampler(sampler),
            steps,
            start=strength if image_to_image else 1.0,
            threshold=Threshold("dynamic"),
        )

        def report(step: int, x0: Tensor) -> None:
            if on_step is not None:
                on_step(step, steps, self._decode(x0))

        images: list[PIL.Image.Image] = []
        for batch_inputs, row_ids in iter_request_batches(request, rows, n, batch_size):
            batch = Batch({})
            if "text" in batch_inputs:
                batch = collate_column("text", self.text, batch_inputs["text"])
            keep = torch.zeros(len(row_ids), dtype=torch.bool)
            sampling = SamplingRequest(
                batch.columns.get("text"),
                batch.presence("text") if "text" in batch else keep,
                [(seed, row) for row in row_ids],
                config,
                Guidance(guidance_scale),
                self._load_source(batch_inputs, upscale),
                on_step=report,
            )
            images += self._decode(self.sample_tensors(sampling))
        return images

    def generate_images(
        self, texts: Tensor, keep: Bool[Tensor, "B"], seeds: Sequence[Sequence[int]]
    ) -> list[PIL.Image.Image]:
        """Return an image for each collated text, with the default options.

        Args:
            texts: The texts.
            keep: False for a missing text.
            seeds: Seeds of each row.
        """
        config = SamplerConfig(threshold=Threshold("dynamic"))
        request = SamplingRequest(texts, keep, seeds, config, Guidance(DEFAULT_GUIDANCE))
        return self._decode(self.sample_tensors(request))

    @torch.no_grad()
    def sample_tensors(self, request: SamplingRequest) -> Float[Tensor, "B 3 h w"]:
        """Return the images of one batch."""
        with eval_mode(self.model):
            small = self._sample_base(request)
            noise = RowNoise(request.seeds, (3, self.image.size, self.image.size))
            x = first = noise.draw() if request.noise is None else request.noise
            known = None
            source = request.source
            config = request.config
            if source is not None and source.mask is not None:
                known = KnownRegion(source.x0, source.mask, first)
            elif small is not None:
                config = replace(config, start=1.0)
            elif source is not None:
                times = torch.full((len(x),), config.start)
                x = self.process.add_noise(source.x0, first, times)
            return sample(
                self._guided(request, small, noise),
                self.process,
                x,
                config,
                step_noise=noise.draw,
                known=known,
                on_step=request.on_step,
            )

    def denoiser(self, request: SamplingRequest) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the denoiser of a request, of a model of a single stage."""
        noise = RowNoise(request.seeds, (3, self.image.size, self.image.size))
        return self._guided(request, None, noise)

    def _sample_base(self, request: SamplingRequest) -> Float[Tensor, "B 3 h w"] | None:
        """Return the enlarged images of the base; None without one."""
        if self.base is None or not isinstance(self.model, Cascade):
            return None
        source = request.source
        size = self.image.size
        if source is not None and source.enlarge:
            return self.model.reduce(source.x0)
        if source is not None:
            mask = source.mask
            side = self.model.base_size
            small = nn.functional.interpolate(source.x0, size=side, mode="area")
            if mask is not None:  # a small pixel is generated where any of its pixels is
                mask = nn.functional.adaptive_max_pool2d(mask.float(), side) > 0
            source = SourceImages(small, mask)
        small = self.base.sample_tensors(replace(request, source=source, on_step=None))
        return self.model.enlarge(small, size)

    def _guided(
        self,
        request: SamplingRequest,
        small: Float[Tensor, "B 3 h w"] | None,
        noise: RowNoise,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the denoiser with its condition, guided where there is a text to follow."""
        network = self.network
        level = None
        if small is not None:
            level = torch.full((len(small),), UPSAMPLER_NOISE_LEVEL)
            small = self.process.add_noise(small, noise.draw(), level)
        keep, guidance = request.keep, request.guidance
        image = self._image_condition(request)
        condition = network.condition(request.texts, keep, noise_level=level, image=image)
        guided = guidance.scale != 1 and (image is not None or bool(keep.any()))
        both = Conditioning()
        if guided:
            null, null_image = torch.zeros_like(keep), None
            if image is not None:
                null_image = ImageCondition(image.embedding, null)
            without = network.condition(None, null, noise_level=level, image=null_image)
            both = condition.concat(without)

        def denoise(x: Tensor, time: Tensor) -> Tensor:
            if not guided or not guidance.is_on(time[0].item() / 1000):
                return network(x, time, condition, small)
            twice = None if small is None else torch.cat([small, small])
            prediction = network(torch.cat([x, x]), torch.cat([time, time]), both, twice)
            return guidance.combine(*prediction.chunk(2))

        return denoise

    @property
    def network(self) -> TextConditionalDenoiser:
        """The denoiser of the last stage."""
        if isinstance(self.model, Cascade):
            return self.model.upsampler
        return self.model.decoder if isinstance(self.model, UnCLIP) else self.model

    def _image_condition(self, request: SamplingRequest) -> ImageCondition | None:
        """Return the image embeddings of DALL-E 2's decoder, or samples of its prior."""
        if not isinstance(self.model, UnCLIP):
            return None
        embedding = request.embedding
        if embedding is None:
            embedding = sample_image_embeddings(
                self.model.prior, request.texts, request.keep, request.seeds, request.guidance
            )
        return ImageCondition(embedding, torch.ones_like(request.keep))

    def _check_images(self, request: dict[str, list[Any]], upscale: bool) -> None:
        """Raise SensoriumError where images, masks and `upscale` do not belong together."""
        if "mask" in request and "image" not in request:
            raise SensoriumError("--mask needs the image that it belongs to. Give --image.")
        if any(value is None for key in ("image", "mask") for value in request.get(key, [])):
            raise SensoriumError("An image or mask is missing. Give one for every row, or none.")
        if not upscale:
            return
        if self.base is None:
            raise SensoriumError(
                "--upscale needs a cascade: train imagen with --base RUN or --base-size."
            )
        if "image" not in request or "mask" in request:
            raise SensoriumError("--upscale enlarges an image. Give --image, and no --mask.")

    def _load_source(self, inputs: dict[str, list[Any]], upscale: bool) -> SourceImages | None:
        """Return the images and masks of a batch."""
        if "image" not in inputs:
            return None
        x0 = collate_column("image", self.image, inputs["image"])["image"]
        if "mask" not in inputs:
            return SourceImages(x0, enlarge=upscale)
        masks = [_load_mask(value, self.image) for value in inputs["mask"]]
        return SourceImages(x0, torch.stack(masks))

    def _decode(self, x: Float[Tensor, "B 3 h w"]) -> list[PIL.Image.Image]:
        return [self.image.decode(pixels) for pixels in x]


def _load_mask(value: Any, image: Image) -> Bool[Tensor, "1 h w"]:
    """Return a mask at the size of the images, cut as they are; True where pixels are generated."""
    pixels = image.load(value)
    gray = np.asarray(pixels, np.float32).mean(-1)
    return torch.from_numpy(gray >= MASK_THRESHOLD)[None]


def _check_sampler(name: str) -> Sampler:
    """Return the name of a sampler.

    Raises:
        SensoriumError: There is none of this name.
    """
    for sampler in SAMPLERS:
        if name == sampler:
            return sampler
    raise SensoriumError(f"--sampler {name!r} is not one of {', '.join(SAMPLERS)}.")


def _check_options(guidance_scale: float, strength: float) -> None:
    if not 0 <= guidance_scale < math.inf:
        raise SensoriumError(f"--guidance-scale {guidance_scale} is out of range. Use 0 or more.")
    if not 0 < strength <= 1:
        raise SensoriumError(f"--strength {strength} is out of range. Use more than 0, at most 1.")
