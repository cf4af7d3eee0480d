"""Words for pictures: a picture, and perhaps a question, is read at once; then words are said one by one."""
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from sensorium.data.schema import Schema
from sensorium.kernels import Linear
from sensorium.modalities.modality import Modality
from sensorium.modalities.text import Text, Words
from sensorium.models import Decoder
from sensorium.objectives.next_token import NextToken
from sensorium.recipes.eyes import EYES, Eye
from sensorium.recipes.generation import said_to, validate
from sensorium.recipes.recipe import BadKeyword, Recipe, one_of
from sensorium.transformer import transformer
from sensorium.verbs.say import Speaker

HEAD = 64                                   # width of one attention head
AUGMENT = {                                 # no mirror images: what is said of left and right stays true
    "light": {"shift": 0.05, "scale": 0.1, "brightness": 0.2, "contrast": 0.2},
    "strong": {"rotate": 15, "scale": 0.25, "shift": 0.1, "outline": 0.5, "brightness": 0.2, "contrast": 0.3,
               "tint": 0.2, "grey": 0.1}}


def captioner(schema: Schema, *, image: str | None = None, text: str | None = None, question: str | None = None,
              eye: Literal["resnet", "patches"] = "resnet", clip: str | Mapping[str, Any] = "", dim: int = 192,
              depth: int = 4, patch: int = 0, dropout: float = 0.1, smoothing: float = 0.0) -> Recipe:
    """Words for a picture: captions, or answers where there is a question to each picture.

    Args:
        image: picture column; by default the only one, "" for none.
        text: column of what is to be said, or several joined by commas; by default the only one.
        question: column of questions, each read beside its picture before the answer is said.
        eye: what reads pictures before the decoder does: resnet (convolutions) or patches (nothing more).
        clip: folder of a finished run of clip or clip_small, whose vector of a picture is read instead; it stays as
            it is.
        dim: width.
        depth: blocks of the decoder.
        patch: side of a patch in pixels; 0: an eighth of the picture.
        dropout: share of activations dropped in each block.
        smoothing: label smoothing.
    """
    columns, trained = _columns(schema, image, question, text), Eye.of(clip) if clip else None
    if trained and "image" not in columns:
        raise BadKeyword(f"clip={trained.told['source']!r} reads pictures, and image='' says that there are none")
    settings: dict[str, Modality] = {columns["image"]: trained.image} if trained else {}
    given = {part: schema.taking(settings)[column] for part, column in columns.items()}
    said = given.pop("text")
    assert isinstance(said, Text)
    see = trained.look if trained else EYES[one_of("eye", eye, list(EYES))]
    parts = {part: Words(dim, modality, causal=False) if isinstance(modality, Text) else
             see(modality, dim, patch, dropout) for part, modality in given.items()}
    head = Linear(dim, said.vocab_size, bias=False)
    nn.init.normal_(head.weight, std=0.02)
    trunk = transformer(dim, depth, max(1, dim // HEAD), dropout=dropout)
    model = Decoder({**parts, "text": Words(dim, said)}, {"text": head}, trunk)
    objective, speaker = NextToken(columns, {"text": 1.0}, smoothing=smoothing), Speaker(model, given, said)
    changes = {strength: {columns["image"]: how} for strength, how in AUGMENT.items()} if "image" in columns else {}
    return Recipe(
        model=model, objective=objective, columns=tuple(dict.fromkeys(columns.values())), settings=settings,
        told={"clip": trained.told} if trained else {}, derived=trained and trained.ready, verbs={"generate": speaker},
        augment=changes, metric="val_loss", validate=validate(objective), samples=said_to(speaker, objective),
        judge=_judge(columns))


def _columns(schema: Schema, image: str | None, question: str | None, text: str | None) -> dict[str, str]:
    """Part → column, in the order in which they are read."""
    columns = {} if image == "" else {"image": schema.pick("image", image)}
    columns |= {"question": schema.pick("text", question)} if question else {}
    return {**columns, "text": schema.pick("text", text)}


def _judge(columns: dict[str, str]) -> Callable[..., Any] | None:
    from sensorium.recipes.judge_words import answers, captions  # not needed while training
    match columns:
        case {"image": picture, "question": question, "text": words}:
            return answers(picture, question, words)
        case {"image": picture, "text": words}:
            return captions(picture, words)
    return None
