"""CLIP (Radford et al. 2021): two towers learn which caption belongs to which picture."""
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from sensorium.align import ALIGNS
from sensorium.data.schema import Schema
from sensorium.modalities.image import Image, Patches
from sensorium.modalities.resnet import ResNet
from sensorium.modalities.text import Text, Words
from sensorium.models import Encoder, Tower, Towers
from sensorium.objectives.contrastive import LOSSES, Contrastive
from sensorium.recipes.judge_retrieval import retrieval_evaluation
from sensorium.recipes.recipe import DataSpec, Hooks, Recipe, meet, one_of
from sensorium.recipes.training_config import TrainingConfig
from sensorium.tokens import ColumnKey, Tokens, column_names
from sensorium.transformer import transformer
from sensorium.verbs.embed import Embedder

HEAD = 64                                   # width of one attention head
AUGMENT: dict[str, tuple[dict[str, float], dict[str, float]]] = {      # of pictures, of words
    "light": ({"crop": 0.7, "flip": 0.5, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}, {}),
    "strong": ({"flip": 0.5, "rotate": 15, "scale": 0.25, "shift": 0.1, "outline": 0.5, "brightness": 0.2,
                "contrast": 0.3, "tint": 0.3, "grey": 0.2, "shuffle": 0.3}, {})}


def clip(schema: Schema, *, image: str | None = None, text: str | Sequence[str] | None = None,
         tower: Literal["vit", "resnet"] = "vit", dim: int = 192, depth: int = 6, text_depth: int = 4,
         embed_dim: int = 256, patch: int = 0,
         align: Literal["linear", "nonlinear", "multiscale"] = "linear", loss: Literal["infonce", "siglip"] = "infonce",
         dropout: float = 0.0, smoothing: float = 0.0) -> Recipe[Towers]:
    """Pictures and words in one space: retrieval both ways, search, zero-shot classification.

    Args:
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one); by default the only one.
        tower: what reads pictures: vit (Transformer) or resnet (convolutions; much quicker on small pictures).
        dim: width of both towers.
        depth: blocks of the picture tower (a resnet has three stages: use a multiple of 3).
        text_depth: blocks of the text tower.
        embed_dim: width of the shared space.
        patch: side of a patch in pixels; 0: an eighth of the picture.
        align: the way into the shared space: linear, nonlinear, or multiscale (parts are compared too).
        loss: infonce (CLIP) or siglip.
        dropout: share of activations dropped in each block.
        smoothing: label smoothing of infonce.
    """
    one_of("align", align, list(ALIGNS))
    one_of("loss", loss, LOSSES)
    picture, words = schema.pick("image", image), schema.texts(text)
    seen, read = schema[picture], schema[words]
    assert isinstance(seen, Image) and isinstance(read, Text)               # pick has seen to it
    eye = EYES[one_of("tower", tower, list(EYES))](seen, dim, depth, patch, dropout)
    voice = Encoder(Words(dim, read), transformer(dim, text_depth, max(1, dim // HEAD), dropout=dropout))
    towers: dict[ColumnKey, Tower] = {name: Tower(encoder, ALIGNS[align](dim, embed_dim), embed_dim)
                                      for name, encoder in ((picture, eye), (words, voice))}
    sigmoid = loss == "siglip"
    model = Towers(towers, temperature=0.1 if sigmoid else 0.07, biased=sigmoid)
    pair: tuple[ColumnKey, ColumnKey] = (picture, words)
    return Recipe(
        model=model, objective=Contrastive(*pair, loss, smoothing),
        data=DataSpec(columns=pair, augment={
            strength: dict(zip(pair, how, strict=True)) for strength, how in AUGMENT.items()}),
        verbs={"embed": Embedder(model, {"image": (model[picture], seen), "text": (model[words], read)})},
        hooks=Hooks(after_step=Towers.clamp),
        evaluation=retrieval_evaluation(pair))


def clip_small(schema: Schema, *, image: str | None = None, text: str | Sequence[str] | None = None,
               dim: int = 128, depth: int = 3, text_depth: int = 2, embed_dim: int = 192, pieces: bool = True,
               captions: int = 0, dropout: float = 0.0, smoothing: float = 0.0) -> Recipe[Towers]:
    """CLIP with a residual network, Muon, strong augmentation and several captions of a thing in each step.

    Pictures of the same thing stand side by side in a batch: it wants several of each, or a group column.

    Args:
        image: picture column; by default the only one.
        text: caption column (once for each, where several are read as one: languages); by default the only one.
        dim: width of both towers.
        depth: blocks of the residual network: a multiple of 3.
        text_depth: blocks of the text tower.
        embed_dim: width of the shared space.
        pieces: words are known by their pieces too, one never seen by what it shares with others.
        captions: captions of a thing in each step; 0: three, or one of each text column where there are more.
        dropout: share of activations dropped in each block.
        smoothing: label smoothing of the loss.
    """
    made = clip(schema, image=image, text=text, tower="resnet", dim=dim, depth=depth, text_depth=text_depth,
                embed_dim=embed_dim, dropout=dropout, smoothing=smoothing)
    picture, words = made.data.columns
    if pieces:
        from sensorium.modalities.spelling import Spelling  # other recipes that take CLIP's towers do without
        assert isinstance(read := schema[words], Text)
        tower = made.model[words]
        tower.encode = Voice(tower.encode, Encoder(Spelling(dim, read, dropout)))
    each = captions or max(3, len(column_names(words)))
    strong = {picture: made.data.augment["strong"][picture], words: {"captions": float(each)}}
    return replace(
        made, data=replace(made.data, augment={**made.data.augment, "strong": strong}),
        hooks=replace(made.hooks, on_start=lambda model, prepared, rows: meet(model.by_column(), prepared, rows)),
        training=TrainingConfig(samples_per_group=2, augment="strong", optimizer="muon", lr=0.012, max_grad_norm=0.0))


class Voice(Encoder):
    """Texts as words in their order, and as words and their pieces in none: what both make of the whole, added up."""

    def __init__(self, ordered: Encoder, spelt: Encoder):
        super().__init__(ordered.embed, ordered.trunk, ordered.pool)
        self.spelt = spelt

    def whole(self, raw: Tensor) -> Float[Tensor, "B D"]:
        return super().whole(raw) + self.spelt.whole(raw)

    def parts(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        whole, tokens = super().parts(raw)
        return whole + self.spelt.whole(raw), tokens


def _vit(image: Image, dim: int, depth: int, patch: int, dropout: float) -> Encoder:
    return Encoder(Patches(dim, image.size, patch or image.size // 8),
                   transformer(dim, depth, max(1, dim // HEAD), first=True, dropout=dropout))


def _resnet(image: Image, dim: int, depth: int, patch: int, dropout: float) -> Encoder:
    return Encoder(ResNet(dim, max(1, depth // 3), dropout))


EYES = {"vit": _vit, "resnet": _resnet}
