"""Sample sheets of text-to-image recipes: captions, reconstructed images and generated ones."""

from pathlib import Path

import numpy as np

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.evaluation.spec import WriteSamples, picklable
from sensorium.evaluation.validate_generation import spread_rows
from sensorium.inference.generate_image import ImageGenerator
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import NextTokenLoss, SamplingConfig


@picklable
def image_sample_writer(
    generator: ImageGenerator,
    objective: NextTokenLoss,
    num_captions: int = 8,
    images_per_caption: int = 5,
) -> WriteSamples[Decoder]:
    """Return a writer of contact sheets: captions with real and generated images.

    The first image of each line is the real one as the image tokenizer reconstructs it.

    Args:
        generator: generates the images.
        objective: selects the inputs of the model.
        num_captions: lines of the sheet, from evenly spaced rows.
        images_per_caption: generated images per line.
    """

    def write(model: Decoder, prepared: PreparedDataset, rows: np.ndarray, path: Path) -> None:
        rows = spread_rows(prepared.complete_rows(rows), num_captions)
        inputs = objective.select_inputs(prepared.batch(rows))
        text = model.output_part("text").tokenize(inputs["text"])
        text = text.repeat_interleave(images_per_caption, 0)
        prompts = Batch({"text": text, "image": generator.start_tokens(len(text))})
        tokens = generator.generate_tokens(prompts, SamplingConfig(top_p=0.95))
        generated = generator.decode_images(tokens)
        real_tokens = model.output_part("image").tokenize(inputs["image"])[:, 1:]
        reconstructed = generator.decode_images(real_tokens)
        lines = []
        for i, row in enumerate(rows.tolist()):
            images = generated[i * images_per_caption : (i + 1) * images_per_caption]
            caption = prepared.caption(objective.columns["text"], row)
            lines.append((caption, [reconstructed[i], *images]))
        draw_contact_sheet(lines).save(path)

    return write
