"""Sample sheets of image generators: captions with the real image and generated ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from torch import Tensor, nn

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.splits import sample_evenly
from sensorium.evaluation.contact_sheet import draw_contact_sheet
from sensorium.evaluation.spec import WriteSamples, picklable
from sensorium.nn.tokens import ColumnKey


@picklable
def caption_sheet_writer(
    image_column: str,
    text_column: ColumnKey,
    generate: Callable[[Tensor, Tensor, Sequence[Sequence[int]]], list[PIL.Image.Image]],
    num_captions: int = 8,
    images_per_caption: int = 5,
) -> WriteSamples[nn.Module]:
    """Return a writer of contact sheets: captions with the real image and generated ones.

    The seeds are the same each time, so that sheets of different epochs can be compared.

    Args:
        image_column: column of the images.
        text_column: column of the captions.
        generate: returns an image for each of (texts, False where one is missing, seeds).
        num_captions: lines of the sheet, from evenly spaced rows.
        images_per_caption: generated images per line.
    """

    def write(
        model: nn.Module,  # noqa: ARG001 - `generate` holds the model
        prepared: PreparedDataset,
        rows: np.ndarray,
        path: Path,
    ) -> None:
        rows = sample_evenly(prepared.complete_rows(rows), num_captions)
        batch = prepared.batch(rows)
        texts = batch[text_column].repeat_interleave(images_per_caption, 0)
        keep = batch.presence(text_column).repeat_interleave(images_per_caption)
        images = generate(texts, keep, [(0, i) for i in range(len(texts))])
        lines: list[tuple[str, list[PIL.Image.Image]]] = []
        for i, row in enumerate(rows.tolist()):
            own = images[i * images_per_caption : (i + 1) * images_per_caption]
            caption = prepared.caption(text_column, row)
            lines.append((caption, [prepared.image(image_column, row), *own]))
        draw_contact_sheet(lines).save(path)

    return write
