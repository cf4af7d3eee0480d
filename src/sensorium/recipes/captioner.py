"""Image captioning and visual question answering with an autoregressive decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sensorium.data.schema import Schema
from sensorium.errors import require_type
from sensorium.evaluation.spec import EvaluationSpec, Evaluator
from sensorium.evaluation.validate_generation import loss_validator, text_sample_writer
from sensorium.inference.generate_text import TextGenerator
from sensorium.modalities.base import Modality
from sensorium.modalities.text import Text
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import ColumnKey
from sensorium.objectives.autoregressive import NextTokenLoss
from sensorium.recipes.language_decoders import PretrainedDecoder, ScratchDecoder
from sensorium.recipes.recipe import Augment, DataSpec, InvalidKeywordError, Recipe, check_choice
from sensorium.recipes.training_config import TrainingConfig, training_defaults
from sensorium.recipes.vision_encoders import VISION_ENCODERS, VisionSource

IMAGE_AUGMENT = {  # no flips: captions may say left and right
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
    epochs="20; 4 with --language-model",
    batch_size="128; 8 with --language-model",
    lr="0.001; 0.0005 with --language-model",
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
    patch_size: int | None = None,
    dropout: float = 0.1,
    label_smoothing: float = 0.0,
) -> Recipe[Decoder]:
    """Caption images, or answer questions about them (--question).

    Args:
        schema: columns of the data.
        image: image column; "" for none. Default: the only one.
        text: column of the text to generate. Repeat to read several columns as one text. Default:
            the only one.
        question: column of questions about the image; the text is the answer.
        vision: image encoder trained from scratch: resnet (convolutional) or patches (linear patch
            embedding).
        clip_run: run folder of clip, whose image encoder is used, frozen.
        vision_weights: pretrained image encoder, used frozen: a folder, a file or a Hugging Face
            id. Image embeddings are computed once and cached.
        language_model: pretrained language model, used frozen: a folder, a file or a Hugging Face
            id.
        dim: width of the decoder; fixed by a pretrained language model.
        layers: decoder layers; fixed by a pretrained language model.
        patch_size: side of a patch in pixels (--vision patches). Default: an eighth of the image
            size.
        dropout: dropout rate, also of frozen image embeddings.
        label_smoothing: label smoothing of the loss.
    """
    check_choice("vision", vision, list(VISION_ENCODERS))
    columns = _resolve_columns(schema, image, question, text)
    vision_source = _resolve_vision(clip_run, vision_weights, columns)
    decoder: ScratchDecoder | PretrainedDecoder
    if language_model:
        decoder = PretrainedDecoder.from_pretrained(language_model)
    else:
        decoder = ScratchDecoder(dim, layers, dropout)
    settings = _column_settings(schema, columns, vision_source, decoder)
    fitted = schema.with_settings(settings)
    inputs = {part: fitted[column] for part, column in columns.items() if part != "text"}
    output = require_type(fitted[columns["text"]], Text)
    embed_image = vision_source.build_embedding if vision_source else VISION_ENCODERS[vision]
    embeddings = {
        part: decoder.build_prompt_embedding(modality)
        if isinstance(modality, Text)
        else embed_image(modality, decoder.dim, patch_size, dropout)
        for part, modality in inputs.items()
    }
    model = decoder.build_decoder(embeddings, output)
    objective = NextTokenLoss(columns, {"text": 1.0}, label_smoothing=label_smoothing)
    generator = TextGenerator(model, inputs, output)
    return Recipe(
        model=model,
        objective=objective,
        data=DataSpec(
            columns=tuple(dict.fromkeys(columns.values())),
            column_settings=settings,
            derived_columns=vision_source.derived_columns(columns["image"], fitted)
            if vision_source
            else None,
            augment={} if vision_weights else _augment(columns),
        ),
        verbs={"generate": generator},
        training=_training_config(decoder),
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=loss_validator(objective),
            write_samples=text_sample_writer(generator, objective),
            evaluator=_evaluator(columns),
        ),
        stored_keywords=_stored_keywords(clip_run, vision_source, decoder),
    )


def _resolve_columns(
    schema: Schema, image: str | None, question: str | None, text: str | Sequence[str] | None
) -> dict[str, ColumnKey]:
    """Return the column of each part of the sequence, in their order."""
    columns: dict[str, ColumnKey] = {}
    if image != "":
        columns["image"] = schema.resolve_column("image", image)
    if question:
        columns["question"] = schema.resolve_column("text", question)
    columns["text"] = schema.resolve_text_columns(text)
    return columns


def _resolve_vision(
    clip_run: str | Mapping[str, Any],
    vision_weights: str | Mapping[str, Any],
    columns: Mapping[str, ColumnKey],
) -> VisionSource | None:
    """Return the trained image encoder that a keyword names; None to train one from scratch."""
    if clip_run and vision_weights:
        raise InvalidKeywordError(
            "--clip-run and --vision-weights both name an image encoder. Give only one of them."
        )
    if clip_run:
        option, source = "--clip-run", VisionSource.from_run(clip_run)
    elif vision_weights:
        option, source = "--vision-weights", VisionSource.from_pretrained(vision_weights)
    else:
        return None
    if "image" not in columns:
        raise InvalidKeywordError(
            f"{option} {source.metadata['source']!r} encodes images, but --image '' says that "
            "there are none. Leave one of them out."
        )
    return source


def _column_settings(
    schema: Schema,
    columns: Mapping[str, ColumnKey],
    vision_source: VisionSource | None,
    decoder: ScratchDecoder | PretrainedDecoder,
) -> dict[ColumnKey, Modality]:
    """Return the settings of the columns that trained weights read or generate."""
    settings: dict[ColumnKey, Modality] = {}
    if vision_source and vision_source.image:
        settings[columns["image"]] = vision_source.image
    if isinstance(decoder, PretrainedDecoder):
        for part, column in columns.items():
            if part != "image":
                text = require_type(schema[column], Text)
                settings[column] = decoder.text_settings(text)
    return settings


def _augment(columns: Mapping[str, ColumnKey]) -> dict[str, Augment]:
    """Return the augmentation of the image column by strength."""
    if "image" not in columns:
        return {}
    return {
        strength: {columns["image"]: parameters} for strength, parameters in IMAGE_AUGMENT.items()
    }


def _training_config(decoder: ScratchDecoder | PretrainedDecoder) -> TrainingConfig:
    """Return small batches for a pretrained decoder, whose cost per row they hardly change."""
    if isinstance(decoder, PretrainedDecoder):
        return TrainingConfig(epochs=4, batch_size=8, lr=5e-4)
    return TrainingConfig()


def _stored_keywords(
    clip_run: str | Mapping[str, Any],
    vision_source: VisionSource | None,
    decoder: ScratchDecoder | PretrainedDecoder,
) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if vision_source:
        keywords["clip_run" if clip_run else "vision_weights"] = vision_source.metadata
    if isinstance(decoder, PretrainedDecoder):
        keywords["language_model"] = decoder.metadata
    return keywords


def _evaluator(columns: Mapping[str, ColumnKey]) -> Evaluator | None:
    # not needed in training
    from sensorium.evaluation.captioning import answer_evaluator, caption_evaluator

    image, question, text = columns.get("image"), columns.get("question"), columns["text"]
    if not isinstance(image, str):
        return None
    if isinstance(question, str):
        return answer_evaluator(image, question, text)
    return caption_evaluator(image, text)
