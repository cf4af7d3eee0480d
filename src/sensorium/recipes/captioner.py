"""Words for pictures: a picture, and perhaps a question, is read at once; then words are said one by one."""
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sensorium.data.schema import Schema
from sensorium.modalities.modality import Modality
from sensorium.modalities.text import Text
from sensorium.models import Decoder
from sensorium.objectives.next_token import NextToken
from sensorium.recipes.eyes import EYES, Eye
from sensorium.recipes.generation import said_to, validate
from sensorium.recipes.recipe import BadKeyword, DataSpec, EvaluationSpec, Evaluator, Recipe, one_of
from sensorium.recipes.training_config import TrainingConfig, training_defaults
from sensorium.recipes.voices import Own, Voice
from sensorium.tokens import ColumnKey
from sensorium.verbs.say import Speaker

AUGMENT = {                                 # no mirror images: what is said of left and right stays true
    "light": {"shift": 0.05, "scale": 0.1, "brightness": 0.2, "contrast": 0.2},
    "strong": {"rotate": 15, "scale": 0.25, "shift": 0.1, "outline": 0.5, "brightness": 0.2, "contrast": 0.3,
               "tint": 0.2, "grey": 0.1}}


@training_defaults(epochs="20; 4 with --voice", batch_size="128; 8 with --voice", lr="0.001; 0.0005 with --voice")
def captioner(schema: Schema, *, image: str | None = None, text: str | Sequence[str] | None = None,
              question: str | None = None, eye: Literal["resnet", "patches"] = "resnet",
              clip: str | Mapping[str, Any] = "", eye_from: str | Mapping[str, Any] = "",
              voice: str | Mapping[str, Any] = "", dim: int = 192,
              depth: int = 4, patch: int = 0, dropout: float = 0.1, smoothing: float = 0.0) -> Recipe[Decoder]:
    """Words for a picture: captions, or answers where there is a question to each picture.

    Args:
        image: picture column; by default the only one, "" for none.
        text: column of what is to be said (once for each, where several are read as one); by default the only one.
        question: column of questions, each read beside its picture before the answer is said.
        eye: what reads pictures before the decoder does: resnet (convolutions) or patches (nothing more).
        clip: folder of a finished run of clip or clip_small, whose vector of a picture is read; it stays as it is.
        eye_from: the same of a published model that sees: its folder, file or hub id. Each picture is seen once.
        voice: folder, file or hub id of a published decoder of text that speaks, and stays as it is.
        dim: width; a voice has its own.
        depth: blocks of the decoder; a voice has its own.
        patch: side of a patch in pixels; 0: an eighth of the picture.
        dropout: share of activations dropped in each block, and of what a trained eye says.
        smoothing: label smoothing.
    """
    columns = _columns(schema, image, question, text)
    trained, speaks = _eye(clip, eye_from, columns), Voice.of(voice) if voice else Own(dim, depth, dropout)
    settings = _settings(schema, columns, trained, speaks)
    given = {part: schema.taking(settings)[column] for part, column in columns.items()}
    said = given.pop("text")
    assert isinstance(said, Text)
    see = trained.look if trained else EYES[one_of("eye", eye, list(EYES))]
    parts = {part: speaks.asked(modality) if isinstance(modality, Text) else see(modality, speaks.dim, patch, dropout)
             for part, modality in given.items()}
    model = speaks.decoder(parts, said)
    objective, speaker = NextToken(columns, {"text": 1.0}, smoothing=smoothing), Speaker(model, given, said)
    changes = AUGMENT.items() if "image" in columns and not eye_from else ()
    return Recipe(
        model=model, objective=objective,
        data=DataSpec(
            columns=tuple(dict.fromkeys(columns.values())), column_settings=settings,
            derived_columns=trained.derived(columns["image"], schema.taking(settings)) if trained else None,
            augment={strength: {columns["image"]: how} for strength, how in changes}),
        verbs={"generate": speaker}, training=_training(speaks),
        evaluation=EvaluationSpec(
            metric="val_loss", mode="min", validate=validate(objective), write_samples=said_to(speaker, objective),
            evaluator=_judge(columns)),
        stored_keywords=_told(clip, trained, speaks))


def _eye(clip: str | Mapping[str, Any], published: str | Mapping[str, Any],
         columns: Mapping[str, ColumnKey]) -> Eye | None:
    """The trained eye that is asked for; None where it is to be learned."""
    if clip and published:
        raise BadKeyword("clip= and eye_from= are both eyes: give one of them")
    found = Eye.of(clip) if clip else Eye.published(published) if published else None
    if found and "image" not in columns:
        raise BadKeyword(f"{'clip' if clip else 'eye_from'}={found.told['source']!r} reads pictures, and image='' says "
                         "that there are none")
    return found


def _settings(schema: Schema, columns: Mapping[str, ColumnKey], eye: Eye | None,
              speaks: Own | Voice) -> dict[ColumnKey, Modality]:
    """Of columns that trained weights read and say in their own way."""
    seen: dict[ColumnKey, Modality] = {columns["image"]: eye.image} if eye and eye.image else {}
    if isinstance(speaks, Voice):
        for column in (name for part, name in columns.items() if part != "image"):
            words = schema[column]
            assert isinstance(words, Text)
            seen[column] = speaks.text(words)
    return seen


def _told(clip: str | Mapping[str, Any], eye: Eye | None, speaks: Own | Voice) -> dict[str, Any]:
    seen = {"clip" if clip else "eye_from": eye.told} if eye else {}
    return seen | ({"voice": speaks.told} if isinstance(speaks, Voice) else {})


def _training(speaks: Own | Voice) -> TrainingConfig:
    """A published voice costs the same a row however many there are at a time: the fewer, the more updates."""
    return TrainingConfig(epochs=4, batch_size=8, lr=5e-4) if isinstance(speaks, Voice) else TrainingConfig()


def _columns(schema: Schema, image: str | None, question: str | None,
             text: str | Sequence[str] | None) -> dict[str, ColumnKey]:
    """Part → column, in the order in which they are read."""
    columns: dict[str, ColumnKey] = {} if image == "" else {"image": schema.pick("image", image)}
    columns |= {"question": schema.pick("text", question)} if question else {}
    return {**columns, "text": schema.texts(text)}


def _judge(columns: dict[str, ColumnKey]) -> Evaluator | None:
    from sensorium.recipes.judge_words import answers, captions  # not needed while training
    match columns:
        case {"image": str(picture), "question": str(question), "text": words}:
            return answers(picture, question, words)
        case {"image": str(picture), "text": words}:
            return captions(picture, words)
    return None
