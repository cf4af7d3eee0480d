"""Samples of recipes that paint: held-out captions, their pictures, and what is painted for them."""

from pathlib import Path

import numpy as np

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.inference.generate_image import ImageGenerator
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import NextTokenLoss, SamplingConfig
from sensorium.recipes.recipe import WriteSamples


def image_sample_writer(
    generator: ImageGenerator,
    objective: NextTokenLoss,
    num_captions: int = 8,
    images_per_caption: int = 5,
) -> WriteSamples[Decoder]:
    """A picture: a few held-out captions, the picture of each as its codes show it, and what is painted for it."""

    def write(model: Decoder, prepared: PreparedDataset, rows: np.ndarray, path: Path) -> None:
        rows = prepared.complete_rows(rows)
        rows = rows[np.linspace(0, len(rows) - 1, min(num_captions, len(rows))).astype(int)]
        given = objective.select_inputs(prepared.batch(rows))
        text = (
            model.output_part("text")
            .tokenize(given["text"])
            .repeat_interleave(images_per_caption, 0)
        )
        begun = Batch({"text": text, "image": generator.start_tokens(len(text))})
        painted = generator.decode_images(
            generator.generate_tokens(begun, SamplingConfig(top_p=0.95))
        )
        true = generator.decode_images(model.output_part("image").tokenize(given["image"])[:, 1:])
        lines = [
            (
                prepared.caption(objective.columns["text"], row),
                [true[i], *painted[i * images_per_caption : (i + 1) * images_per_caption]],
            )
            for i, row in enumerate(rows.tolist())
        ]
        draw_contact_sheet(lines).save(path)

    return write
