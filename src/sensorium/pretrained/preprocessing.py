"""Settings of CLIP's images, and the verb `embed`."""

from torch import nn

from sensorium.errors import require_type
from sensorium.inference.embed import Embedder
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.pretrained.family import Preprocessing, Verbs
from sensorium.pretrained.image_processor import CLIP_MEAN, CLIP_STD

CLIP_IMAGE = Image(  # as OpenAI's CLIP was trained
    size=224,
    resample="bicubic",
    mean=CLIP_MEAN,
    std=CLIP_STD,
)


def build_embed_verb(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """Return the verb `embed` of a module that has a tower for each input, under its name."""
    towers = require_type(module, nn.ModuleDict)
    columns = {kind: (towers[kind], modality) for kind, modality in preprocessing.items()}
    return {"embed": Embedder(towers, columns)}


def drop_missing(**modalities: Modality | None) -> Preprocessing:
    """Return the inputs that are not None."""
    return {kind: modality for kind, modality in modalities.items() if modality is not None}
