"""Validation and samples for recipes that embed: how often is the right partner found among the held-out rows?"""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from sensorium.data.cache import Prepared
from sensorium.metrics import retrieval
from sensorium.models import Batch, Towers
from sensorium.objectives.contrastive import complete, positives

Vectors = tuple[Float[Tensor, "N E"], Float[Tensor, "N E"]]


@torch.inference_mode()
def embed_rows(model: Towers, prepared: Prepared, rows: np.ndarray, columns: tuple[str, str], *,
               towers: tuple[str, str] | None = None, size: int = 256) -> tuple[Vectors, Batch]:
    """Vectors of two columns of `rows` (complete ones only), and {"row", "group"} of those that were complete.

    `towers`: whose towers read them, if not their own (captions in another language).
    """
    was_training = model.training
    model.eval()
    said: list[tuple[Tensor, ...]] = []
    for start in range(0, len(rows), size):
        batch = complete(prepared.batch(rows[start:start + size]), *columns)
        vectors = [model[tower](batch[column]) for column, tower in zip(columns, towers or columns, strict=True)]
        said.append((*vectors, batch["row"], batch["group"]))
    model.train(was_training)
    a, b, row, group = (torch.cat(parts) for parts in zip(*said, strict=True))
    return (a, b), {"row": row, "group": group}


def validate(columns: tuple[str, str], names: tuple[str, str] = ("image", "text")) -> Callable[[Towers, Prepared, np.ndarray], dict[str, float]]:
    """Recall both ways over the rows given; rows of one group are the same thing."""
    def figures(model: Towers, prepared: Prepared, rows: np.ndarray) -> dict[str, float]:
        (a, b), which = embed_rows(model, prepared, rows, columns)
        return retrieval(a, b, positives(which, "row", "row"), names)
    return figures


def samples(columns: tuple[str, str], queries: int = 8, shown: int = 8) -> Callable[[Towers, Prepared, np.ndarray, Path], None]:
    """A picture: for a few captions of the rows given, the pictures found first; a right one in a green frame."""
    def draw(model: Towers, prepared: Prepared, rows: np.ndarray, path: Path) -> None:
        (pictures, texts), which = embed_rows(model, prepared, rows[:512], columns)
        asked = torch.linspace(0, len(texts) - 1, min(queries, len(texts))).long()
        found = (texts[asked] @ pictures.T).topk(min(shown, len(pictures))).indices
        cell, left = 72, 260
        sheet = Image.new("RGB", (left + cell * found.shape[1], cell * len(asked)), "white")
        pen = ImageDraw.Draw(sheet)
        for y, (query, hits) in enumerate(zip(asked.tolist(), found.tolist(), strict=True)):
            pen.text((8, y * cell + cell // 2 - 6), prepared.caption(columns[1], int(which["row"][query]))[:40], fill="black")
            for x, hit in enumerate(hits):
                right = bool(which["group"][hit] == which["group"][query])
                corner = (left + x * cell + 4, y * cell + 4)
                sheet.paste(prepared.picture(columns[0], int(which["row"][hit])).resize((cell - 8, cell - 8)), corner)
                if right:
                    pen.rectangle((corner[0] - 3, corner[1] - 3, corner[0] + cell - 6, corner[1] + cell - 6), outline="green", width=3)
        sheet.save(path)
    return draw
