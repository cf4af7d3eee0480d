"""Words for pictures: a picture, and perhaps a question, is read at once; then words are said one by one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sensorium.data.schema import Schema
from sensorium.evaluation.validate_generation import loss_validator, text_sample_writer
from sensorium.inference.generate_text import TextGenerator
from sensorium.modalities.base import Modality
from sensorium.modalities.text import Text
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.autoregressive import NextTokenLoss
from sensorium.recipes.language_decoders import PretrainedDecoder, ScratchDecoder
from sensorium.recipes.recipe import (
    BadKeyword,
    DataSpec,
    EvaluationSpec,
    Evaluator,
    Recipe,
    check_choice,
)
from sensorium.recipes.training_config import TrainingConfig, training_defaults
from sensorium.recipes.vision_encoders import VISION_ENCODERS, VisionSource

AUGMENT = {  # no mirror images: what is said of left and right stays true
    "light": {"shift": 0.05, "scale": 0.1, "brightness": 0.2, "contrast": 0.2},
    "strong": {
        "rotate": 15,
        "scale": 0.25,
        "shift": 0.1,
        "outline": 0.5,
        "brightness": 0.2,
        "contrast": 0.3,
        "tint": 0.2,
        "grayscale": 0.1,
    },
}


@training_defaults(
    epochs="20; 4 with --voice", batch_size="128; 8 with --voice", lr="0.001; 0.0005 with --voice"
)
def captioner(
    schema: Schema,
    *,
    image: str | None = None,
    text: str | Sequence[str] | None = None,
    question: str | None = None,
    vision: Literal["resnet", "patches"] = "resnet",
    clip_run: str | Mapping[str, Any] = "",
    vision_weights: str | Mapping[str, Any] = "",
    language_model: str | Mapping[str, Any] = "",
    dim: int = 192,
    layers: int = 4,
    patch_size: int = 0,
    dropout: float = 0.1,
    label_smoothing: float = 0.0,
) -> Recipe[Decoder]:
    """Words for a picture: captions, or answers where there is a question to each picture.

    Args:
        image: picture column; by default the only one, "" for none.
        text: column of what is to be said (once for each, where several are read as one); by default the only one.
        question: column of questions, each read beside its picture before the answer is said.
        vision: what reads pictures before the decoder does: resnet (convolutions) or patches (nothing more).
        clip_run: folder of a finished run of clip or clip_small, whose vector of a picture is read; it stays as it is.
        vision_weights: the same of a published model that sees: its folder, file or hub id. Each picture is seen once.
        language_model: folder, file or hub id of a published decoder of text that speaks, and stays as it is.
        dim: width; a voice has its own.
        layers: blocks of the decoder; a voice has its own.
        patch_size: side of a patch in pixels; 0: an eighth of the picture.
        dropout: share of activations dropped in each block, and of what a trained eye says.
        label_smoothing: label smoothing.
    """
    columns = _resolve_columns(schema, image, question, text)
    trained, speaks = (
        _resolve_vision(clip_run, vision_weights, columns),
        PretrainedDecoder.from_pretrained(language_model)
        if language_model
        else ScratchDecoder(dim, layers, dropout),
    )
    settings = _column_settings(schema, columns, trained, speaks)
    given = {part: schema.with_settings(settings)[column] for part, column in columns.items()}
    said = given.pop("text")
    assert isinstance(said, Text)
    see = (
        trained.embed
        if trained
        else VISION_ENCODERS[check_choice("vision", vision, list(VISION_ENCODERS))]
    )
    parts = {
        part: speaks.build_prompt_embedding(modality)
        if isinstance(modality, Text)
        else see(modality, speaks.dim, patch_size, dropout)
        for part, modality in given.items()
    }
    model = speaks.build_decoder(parts, said)
    objective, speaker = (
        NextTokenLoss(columns, {"text": 1.0}, label_smoothing=label_smoothing),
        TextGenerator(model, given, said),
    )
    changes = AUGMENT.items() if "image" in columns and not vision_weights else ()
    return Recipe(
        model=model,
        objective=objective,
        data=DataSpec(
            columns=tuple(dict.fromkeys(columns.values())),
            column_settings=settings,
            derived_columns=trained.derived_columns(
                columns["image"], schema.with_settings(settings)
            )
            if trained
            else None,
            augment={strength: {columns["image"]: how} for strength, how in changes},
        ),
        verbs={"generate": speaker},
        training=_training_config(speaks),
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=loss_validator(objective),
            write_samples=text_sample_writer(speaker, objective),
            evaluator=_evaluator(columns),
        ),
        stored_keywords=_stored_keywords(clip_run, trained, speaks),
    )


def _resolve_vision(
    clip_run: str | Mapping[str, Any],
    vision_weights: str | Mapping[str, Any],
    columns: Mapping[str, ColumnKey],
) -> VisionSource | None:
    """The trained eye that is asked for; None where it is to be learned."""
    if clip_run and vision_weights:
        raise BadKeyword("clip= and eye_from= are both eyes: give one of them")
    found = (
        VisionSource.from_run(clip_run)
        if clip_run
        else VisionSource.from_pretrained(vision_weights)
        if vision_weights
        else None
    )
    if found and "image" not in columns:
        raise BadKeyword(
            f"{'clip' if clip_run else 'eye_from'}={found.metadata['source']!r} reads pictures, and image='' says "
            "that there are none"
        )
    return found


def _column_settings(
    schema: Schema,
    columns: Mapping[str, ColumnKey],
    vision: VisionSource | None,
    language_model: ScratchDecoder | PretrainedDecoder,
) -> dict[ColumnKey, Modality]:
    """Of columns that trained weights read and say in their own way."""
    seen: dict[ColumnKey, Modality] = (
        {columns["image"]: vision.image} if vision and vision.image else {}
    )
    if isinstance(language_model, PretrainedDecoder):
        for column in (name for part, name in columns.items() if part != "image"):
            words = schema[column]
            assert isinstance(words, Text)
            seen[column] = language_model.text_settings(words)
    return seen


def _stored_keywords(
    clip_run: str | Mapping[str, Any],
    vision: VisionSource | None,
    language_model: ScratchDecoder | PretrainedDecoder,
) -> dict[str, Any]:
    seen = {"clip_run" if clip_run else "vision_weights": vision.metadata} if vision else {}
    return seen | (
        {"language_model": language_model.metadata}
        if isinstance(language_model, PretrainedDecoder)
        else {}
    )


def _training_config(language_model: ScratchDecoder | PretrainedDecoder) -> TrainingConfig:
    """A published voice costs the same a row however many there are at a time: the fewer, the more updates."""
    return (
        TrainingConfig(epochs=4, batch_size=8, lr=5e-4)
        if isinstance(language_model, PretrainedDecoder)
        else TrainingConfig()
    )


def _resolve_columns(
    schema: Schema, image: str | None, question: str | None, text: str | Sequence[str] | None
) -> dict[str, ColumnKey]:
    """Part → column, in the order in which they are read."""
    columns: dict[str, ColumnKey] = (
        {} if image == "" else {"image": schema.resolve_column("image", image)}
    )
    columns |= {"question": schema.resolve_column("text", question)} if question else {}
    return {**columns, "text": schema.texts(text)}


def _evaluator(columns: dict[str, ColumnKey]) -> Evaluator | None:
    from sensorium.evaluation.captioning import (  # not needed while training
        answer_evaluator,
        caption_evaluator,
    )

    match columns:
        case {"image": str(picture), "question": str(question), "text": words}:
            return answer_evaluator(picture, question, words)
        case {"image": str(picture), "text": words}:
            return caption_evaluator(picture, words)
    return None
