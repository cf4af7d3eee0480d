"""Pictures as codes: the first stage of DALL-E (dVAE, Ramesh et al. 2021), of VQ-VAE, and of FSQ."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from sensorium.config import Config
from sensorium.data.cache import Prepared
from sensorium.data.codes import Coder
from sensorium.data.schema import Schema
from sensorium.errors import SensoriumError
from sensorium.metrics import perplexity, psnr
from sensorium.modalities.codes import PictureCodes
from sensorium.modalities.image import Image
from sensorium.modalities.quantize import FSQ, VQ, Gumbel, Quantizer
from sensorium.models import frozen as freeze
from sensorium.objectives.reconstruct import PIXELS, Reconstruct
from sensorium.recipes.recipe import (
    DataSpec,
    EvaluationSpec,
    Hooks,
    Recipe,
    Validate,
    ValidationResult,
    WriteSamples,
    one_of,
)
from sensorium.recipes.stage import restored
from sensorium.recipes.training_config import TrainingConfig
from sensorium.verbs.asked import only
from sensorium.verbs.verb import at_rest, load

LEVELS = {512: (8, 8, 8), 1000: (8, 5, 5, 5), 4096: (8, 8, 8, 8), 16384: (8, 8, 8, 8, 4), 64: (8, 8)}
KL = {"laplace": 1.0, "l2": 0.04, "l1": 0.04}       # of the dVAE's weight: a likelihood is far larger than a distance
SHOWN, SHARP = 12, 8.0                      # pictures in a sheet of samples; how sharp a dVAE's first draws are


def codes(schema: Schema, *, image: str | None = None, quantizer: Literal["fsq", "vq", "dvae"] = "fsq",
          vocab: int = 512, patch: int = 4, dim: int = 128, depth: int = 2, width: int = 64,
          pixel: Literal["l2", "l1", "laplace"] = "l2", edges: float = 1.0, restart: bool = True,
          anneal: int = 500) -> Recipe[PictureCodes]:
    """Pictures as a grid of codes and back: what generates pictures as words are generated builds on it.

    Args:
        image: picture column; by default the only one.
        quantizer: fsq (nothing to collapse), vq (a codebook) or dvae (Gumbel relaxation, as in DALL-E).
        vocab: how many codes there are; for fsq one of 64, 512, 1000, 4096, 16384.
        patch: pixels of a side that one code stands for: 2, 4, 8, ...
        dim: channels at the grid of codes; half as many at each finer scale.
        depth: residual blocks at each scale.
        width: width of a code's vector (vq, dvae).
        pixel: distance of pixels: l2, l1, or laplace, the dVAE's likelihood.
        edges: weight of the distance of edges.
        restart: whether codes that are not used begin anew (vq).
        anneal: updates over which temperature and KL weight move (dvae).
    """
    seen = schema[column := schema.pick("image", image)]
    assert isinstance(seen, Image)                                          # pick has seen to it
    likely = KL[one_of("pixel", pixel, PIXELS)] / (3 * patch * patch)
    middle = {"fsq": lambda: FSQ(_levels(vocab)), "vq": lambda: VQ(vocab, width, restart=restart),
              "dvae": lambda: Gumbel(vocab, width, anneal=anneal, weight=likely, sharp=SHARP)}
    made: Quantizer = middle[one_of("quantizer", quantizer, list(middle))]()
    model = PictureCodes(seen, made, patch=patch, dim=dim, depth=depth, laplace=pixel == "laplace")
    return Recipe(
        model=model, objective=Reconstruct(column, pixel, edges),
        data=DataSpec(columns=(column,), augment={
            "light": {column: {"flip": 0.5}}, "strong": {column: {"flip": 0.5, "shift": 0.1, "scale": 0.25}}}),
        training=TrainingConfig(epochs=10, lr=2e-3, weight_decay=0.0), verbs={"generate": again(model, seen)},
        hooks=Hooks(after_step=PictureCodes.after_step),
        evaluation=EvaluationSpec(metric="psnr", mode="max", validate=validate(column),
                                  write_samples=samples(column, seen)))


def frozen(folder: str | Path) -> Coder:
    """A finished run of `codes` as the first stage of another model; `data.codes.coded` says how to use it."""
    if (recipe := Config.load(Path(folder)).recipe) != codes.__name__:
        raise SensoriumError(f"{folder} is a run of {recipe}; here one of codes is needed: sensorium train codes.")
    found = restored(folder, codes)
    image = found.schema[found.recipe.data.columns[0]]
    assert isinstance(image, Image)
    freeze(found.recipe.model).eval()
    return Coder(found.recipe.model, image, found.fingerprint)


def _levels(vocab: int) -> tuple[int, ...]:
    if vocab not in LEVELS:
        raise SensoriumError(f"vocab={vocab}: fsq has {', '.join(map(str, sorted(LEVELS)))} codes; vq and dvae have "
                             "any number.")
    return LEVELS[vocab]


def again(model: PictureCodes, seen: Image) -> Callable[..., list[PIL.Image.Image]]:
    """The verb: generate(image=[...]) → the pictures as their codes tell them."""
    def generate(what: str | None = None, /, *, image: Sequence[Any], batch_size: int = 256) -> list[PIL.Image.Image]:
        only(what, "image")
        loaded = [load(seen, value) for value in image]
        with at_rest(model), torch.inference_mode():
            parts = [model.decode(model.encode(seen.collate(loaded[i:i + batch_size])))
                     for i in range(0, len(loaded), batch_size)]
        return [seen.show(picture) for part in parts for picture in part]
    return generate


def validate(column: str) -> Validate[PictureCodes]:
    """Held-out pictures there and back: mean squared error and PSNR on 0..1, codes used, their perplexity."""
    @torch.inference_mode()
    def judge(model: PictureCodes, prepared: Prepared, rows: np.ndarray) -> ValidationResult:
        squares, used, rows = [], torch.zeros(model.vocab), prepared.complete(rows)
        for start in range(0, len(rows), 256):
            pixels = prepared.batch(rows[start:start + 256])[column]
            ids = model.encode(pixels)
            wrong = model.unit(model.decode(ids)).clamp(0, 1) - model.unit(pixels)
            squares.append(wrong.square().mean((1, 2, 3)))
            used += torch.bincount(ids.flatten(), minlength=model.vocab)
        mse = torch.cat(squares).mean().item()
        return ValidationResult({"psnr": psnr(mse), "mse": mse, "codes used": float((used > 0).sum()),
                                 "perplexity": perplexity(used)})
    return judge


def samples(column: str, image: Image) -> WriteSamples[PictureCodes]:
    """A picture: held-out pictures, and below each what its codes say."""
    @torch.inference_mode()
    def draw(model: PictureCodes, prepared: Prepared, rows: np.ndarray, path: Path) -> None:
        rows = prepared.complete(rows)
        pixels = prepared.batch(rows[np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int)])[column]
        both = torch.cat([pixels, model.decode(model.encode(pixels))], 2)
        sheet = image.show(torch.cat(list(both), 2))
        sheet.resize((2 * sheet.width, 2 * sheet.height), PIL.Image.Resampling.NEAREST).save(path)
    return draw
