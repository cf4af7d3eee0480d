"""Image embeddings from texts, by the prior of DALL-E 2, and ways between embeddings.

B batch   N values   E width of the embeddings
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode
from sensorium.inference.request import collate_column, row_seed
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.prior import ImagePrior, PriorCondition
from sensorium.nn.tokens import Tokens, l2_normalize, valid_mask
from sensorium.objectives.diffusion import CosineSchedule, DiffusionProcess
from sensorium.objectives.samplers import Guidance, RowNoise, SamplerConfig, sample

PRIOR_PROCESS = DiffusionProcess(CosineSchedule(), "x0")
PRIOR_SAMPLER = SamplerConfig("dpm++", steps=16, shift=1.0)
NUM_CANDIDATES = 2  # embeddings sampled per text, of which the nearest to the text's is kept
PRIOR_SEED = 1  # the noise of the prior differs from that of the decoder


@torch.no_grad()
def sample_image_embeddings(
    model: ImagePrior,
    texts: Tensor | None,
    keep: Bool[Tensor, "B"],
    seeds: Sequence[Sequence[int]],
    guidance: Guidance,
    config: SamplerConfig = PRIOR_SAMPLER,
) -> Float[Tensor, "B E"]:
    """Return an image embedding for each text, of length √E.

    Two are sampled for each text, and the one that is nearer to the embedding of the text is kept
    (Ramesh et al. 2022).

    Args:
        model: The prior.
        texts: Collated texts; None where all are missing.
        keep: False for a missing text.
        seeds: Seeds of each row.
        guidance: Classifier-free guidance. Both of its branches see the noisy embedding.
        config: Options of the sampler.
    """
    condition = model.encode_texts(texts, keep)
    candidates = [
        _sample_once(model, condition, [(*row, PRIOR_SEED, i) for row in seeds], guidance, config)
        for i in range(NUM_CANDIDATES)
    ]
    stacked = torch.stack(candidates, 1)
    best = (stacked * condition.embedding[:, None]).sum(-1).argmax(1)
    return stacked[torch.arange(len(best)), best]


class PriorEmbedder:
    """Embed images as a CLIP does, and texts as the image that a prior expects of them.

    Args:
        model: The prior.
        text: Settings of the texts.
        image: Settings of the images.
    """

    def __init__(self, model: ImagePrior, text: Text, image: Image):
        self.model = model
        self.text = text
        self.image = image

    def __call__(
        self,
        *,
        batch_size: int = 256,
        seed: int = 0,
        guidance_scale: float = 1.0,
        **inputs: Sequence[Any],
    ) -> Float32[np.ndarray, "N E"]:
        """Return one vector of length 1 for each value.

        Args:
            batch_size: Values per forward pass.
            seed: Random seed of the prior.
            guidance_scale: Classifier-free guidance of the prior; 1 is off.
            **inputs: `text` or `image`: a list of raw values.

        Raises:
            SensoriumError: Not exactly one of both is given, or a value cannot be read.
        """
        if len(inputs) != 1 or not inputs.keys() <= {"text", "image"}:
            raise SensoriumError(
                f"embed got {', '.join(inputs) or 'no input'}. Give values of text or of image."
            )
        ((kind, values),) = inputs.items()
        parts: list[Tensor] = []
        with eval_mode(self.model), torch.no_grad():
            for rows in iter_batches(range(len(values)), batch_size):
                raw = [values[row] for row in rows]
                if kind == "image":
                    x = collate_column("image", self.image, raw)["image"]
                    parts.append(self.model.encode_images(x))
                    continue
                seeds = [(seed, row_seed({"text": value}, 0)) for value in raw]
                texts = collate_column("text", self.text, raw)["text"]
                keep = torch.ones(len(raw), dtype=torch.bool)
                guidance = Guidance(guidance_scale)
                parts.append(sample_image_embeddings(self.model, texts, keep, seeds, guidance))
        if not parts:
            return np.zeros((0, self.model.embed_dim), np.float32)
        return l2_normalize(torch.cat(parts)).numpy()


def slerp(
    a: Float[Tensor, "B E"], b: Float[Tensor, "B E"], fraction: float
) -> Float[Tensor, "B E"]:
    """Return the points on the arcs from a to b, of the length of a.

    Args:
        a: Starts of the arcs.
        b: Their ends, of any length.
        fraction: How far to go, from 0 to 1.
    """
    length = a.norm(dim=-1, keepdim=True)
    start, end = l2_normalize(a), l2_normalize(b)
    cosine = (start * end).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    near = sine < 1e-4  # the arc is a point, or its direction is unknown: a straight line
    arc = ((1 - fraction) * angle).sin() * start + (fraction * angle).sin() * end
    arc = torch.where(near, (1 - fraction) * start + fraction * end, arc / sine.clamp(min=1e-4))
    return l2_normalize(arc) * length


def text_difference(
    image: Float[Tensor, "B E"],
    source: Float[Tensor, "B E"],
    target: Float[Tensor, "B E"],
    fraction: float,
) -> Float[Tensor, "B E"]:
    """Return image embeddings moved from one text towards another (Ramesh et al. 2022, 3.3).

    Args:
        image: Embeddings of the images.
        source: Embeddings of texts that describe them.
        target: Embeddings of texts that describe what they should become.
        fraction: How far to go on the arc to the normalized difference; 0.25 to 0.5 is usual.
    """
    return slerp(image, l2_normalize(target) - l2_normalize(source), fraction)


def _sample_once(
    model: ImagePrior,
    condition: PriorCondition,
    seeds: Sequence[Sequence[int]],
    guidance: Guidance,
    config: SamplerConfig,
) -> Float[Tensor, "B E"]:
    """Return one embedding for each row."""
    noise = RowNoise(seeds, (model.embed_dim,)).draw()
    both = _concat(condition, condition.without_text())
    guided = guidance.scale != 1 and bool(condition.keep.any())

    def denoise(x: Tensor, time: Tensor) -> Tensor:
        if not guided or not guidance.is_on(time[0].item() / 1000):
            return model.prior(x, time, condition)
        prediction = model.prior(torch.cat([x, x]), torch.cat([time, time]), both)
        return guidance.combine(*prediction.chunk(2))

    x = sample(denoise, PRIOR_PROCESS, noise, config)
    return l2_normalize(x) * math.sqrt(model.embed_dim)


def _concat(a: PriorCondition, b: PriorCondition) -> PriorCondition:
    """Return the rows of both, which have the same texts."""
    tokens = Tokens(
        torch.cat([a.tokens.x, b.tokens.x]),
        torch.cat([a.tokens.pos, b.tokens.pos]),
        valid=torch.cat([valid_mask(a.tokens), valid_mask(b.tokens)]),
    )
    return PriorCondition(
        tokens, torch.cat([a.embedding, b.embedding]), torch.cat([a.keep, b.keep])
    )
