"""The verb `generate` of pretrained text decoders: continue a text or answer a chat prompt.

B rows   T tokens
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError, require_type
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import as_lists, iter_request_batches, require_output
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.chat import TextPrompt, build_chat_prompt, load_text_prompt
from sensorium.pretrained.family import Preprocessing, Verbs
from sensorium.pretrained.weight_files import WeightFiles

DEFAULT_MAX_TOKENS = 256


class TextContinuation:
    """Continue texts, `generate(text=[...])`, or answer chat prompts, `generate(prompt=[...])`.

    Args:
        model: The decoder.
        preprocessing: Settings of `text`, and of `prompt` if the model was trained to chat.
    """

    output_modality = "text"

    def __init__(self, model: Decoder, preprocessing: Preprocessing):
        self.model = model
        self.preprocessing = preprocessing
        self.text = require_type(preprocessing["text"], TextPrompt)

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        batch_size: int = 16,
        **inputs: Any,
    ) -> list[str]:
        """Return n texts for each row, those of one row consecutive.

        The same seed gives the same text for a row, whatever else is in the request.

        Args:
            modality: "text", or None.
            n: Texts per row; more than 1 needs a temperature.
            temperature: Sampling temperature; 0 is greedy decoding.
            top_k: Sample from the k most likely tokens only; 0 is off.
            top_p: Sample from the most likely tokens with this total probability; 1 is off.
            seed: Random seed.
            max_tokens: The most new tokens.
            batch_size: Texts per batch.
            **inputs: `text` or `prompt`: one value or a list. A prompt is a question, or a list of
                messages {"role": "user", "content": ...}.

        Raises:
            SensoriumError: If another input is given, a value cannot be read, or there is no room
                for `max_tokens`.
        """
        require_output(modality, "text")
        rows = self.tokenize_prompts(inputs, max_tokens)
        texts: list[str] = []
        for batch, row_ids in iter_request_batches({"text": rows}, len(rows), n, batch_size):
            sampling = SamplingConfig(temperature, top_k, top_p, seed=seed, row_ids=row_ids)
            ids = self.generate_ids(batch["text"], max_tokens, sampling)
            texts += [self.text.decode(row) for row in ids]
        return texts

    def generate_ids(
        self, rows: Sequence[np.ndarray], max_tokens: int, sampling: SamplingConfig
    ) -> Int[Tensor, "B T"]:
        """Return the new token ids of each row of token ids."""
        with eval_mode(self.model):
            steps = generate(
                self.model,
                Batch({"text": self.text.collate(rows)}),
                "text",
                max_tokens,
                sampling,
                end_token=next(iter(self.text.stop_ids), None),
                suppressed_tokens=self.text.suppressed_tokens,
            )
            return torch.stack(list(steps), 1)

    def tokenize_prompts(self, inputs: Mapping[str, Any], max_tokens: int) -> list[np.ndarray]:
        """Return the token ids of each `text` or `prompt`.

        Raises:
            SensoriumError: As `__call__`.
        """
        request = as_lists(inputs, list(self.preprocessing), "text")
        if len(request) != 1:
            raise SensoriumError(f"Give exactly one input: {' or '.join(self.preprocessing)}.")
        ((kind, values),) = request.items()
        rows = [load_value(self.preprocessing[kind], value) for value in values]
        longest = max(map(len, rows), default=0)
        if longest > self.text.length - max_tokens:
            raise SensoriumError(
                f"The input has {longest} tokens and --max-tokens is {max_tokens}, but this model "
                f"has room for {self.text.length} in all. Lower --max-tokens or shorten the input."
            )
        return rows


def prompt_preprocessing(
    weight_files: WeightFiles, length: int, stop_ids: int | Sequence[int] | None
) -> Preprocessing:
    """Return the settings of `text`, and of `prompt` if there is a chat template.

    Args:
        weight_files: The opened files; without a tokenizer the result is {}.
        length: The most tokens of input and output together.
        stop_ids: Id or ids that end a text, by the config of the model.

    Raises:
        SensoriumError: If generation_config.json sets something else as ids that end a text.
    """
    text = load_text_prompt(weight_files, length, find_stop_ids(weight_files, stop_ids))
    if text is None:
        return {}
    template = _chat_template(weight_files)
    return (
        {"text": text}
        if template is None
        else {"text": text, "prompt": build_chat_prompt(text, template)}
    )


def find_stop_ids(
    weight_files: WeightFiles, stop_ids: int | Sequence[int] | None
) -> tuple[int, ...]:
    """Return the ids that end a text: those of generation_config.json, or else of the config.

    Those of both come first, so that the first one is that of the config where it still counts.

    Raises:
        SensoriumError: If they are no ids.
    """
    own = () if stop_ids is None else (stop_ids,) if isinstance(stop_ids, int) else tuple(stop_ids)
    value = weight_files.read_json("generation_config.json").get("eos_token_id")
    if value is None:
        return own
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise SensoriumError(
            f"{weight_files.path}/generation_config.json sets eos_token_id={value!r}. Give a token "
            "id or a list of them."
        )
    return tuple(dict.fromkeys([*(i for i in own if i in ids), *ids]))


def _chat_template(weight_files: WeightFiles) -> Any:
    """Return the chat template of the files, from whichever place has it; None if there is none."""
    if "chat_template.jinja" in weight_files.files:
        return weight_files.files["chat_template.jinja"].read_text(encoding="utf-8")
    template = weight_files.read_json("tokenizer_config.json").get("chat_template")
    return template or weight_files.config.get("tokenizer.chat_template")


def build_verbs(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """Return `generate` if there is a tokenizer."""
    model = require_type(module, Decoder)
    return {"generate": TextContinuation(model, preprocessing)} if preprocessing else {}
