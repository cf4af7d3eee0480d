"""The command `generate`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sensorium.cli.models import load_model
from sensorium.cli.options import (
    DEFAULT_SAMPLING_OPTIONS,
    JsonOption,
    ModelArgument,
    PromptArgument,
    QuantizeOption,
    RecipeOption,
    SamplingOptionsGroup,
)
from sensorium.cli.output import emit


def generate(
    model: ModelArgument,
    text: PromptArgument = (),
    /,
    *,
    sampling: SamplingOptionsGroup = DEFAULT_SAMPLING_OPTIONS,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("generated.png"),
    quantize: QuantizeOption = None,
    recipe: RecipeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate images or text, whichever the model was trained for.

    Images from captions, or edited images (dalle, imagen, dalle2, gan), captions and answers for
    images (captioner), text (gpt, or a pretrained language model), transcripts of audio (Whisper).

    Args:
        out: Image file (.png). Several images are drawn as a grid, one row per caption.
    """
    from sensorium.cli.generate_output import generate_images, generate_text, output_modality
    from sensorium.loading import prepare_for_inference

    loaded, inputs = load_model(model, recipe), sampling.to_keywords(text)
    modality = output_modality(loaded)
    prepare_for_inference(loaded.module, quantize)
    if "rerank" in inputs:
        inputs["rerank"] = load_model(inputs["rerank"], None)
    if modality == "image":
        result = generate_images(loaded, out, inputs)
        emit(result if as_json else f"{result['images']} in {result['file']}", as_json)
        return
    write = (lambda _: None) if as_json else partial(print, end="", flush=True)
    texts = generate_text(loaded, inputs, write)
    if as_json:
        emit({"text": texts}, as_json)
