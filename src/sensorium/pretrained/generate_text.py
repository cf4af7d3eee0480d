"""The verb `generate` of published decoders of text: beginnings or questions in, words out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode, load_value
from sensorium.inference.request import as_lists, iter_batches, require_output
from sensorium.models.decoder import Decoder
from sensorium.nn.tokens import Batch
from sensorium.objectives.autoregressive import SamplingConfig, generate
from sensorium.pretrained.chat import TextPrompt, build_chat_prompt, load_text_prompt
from sensorium.pretrained.family import Preprocessing, Verbs
from sensorium.pretrained.weight_files import WeightFiles

DEFAULT_MAX_TOKENS = 256  # tokens said where nobody says how many


class TextContinuation:
    """generate("text", text=[...]) goes on from there; generate("text", prompt=[...]) answers, where taught to chat."""

    def __init__(self, model: Decoder, preprocessing: Preprocessing):
        text = preprocessing["text"]
        assert isinstance(text, TextPrompt)
        self.model, self.preprocessing, self.text = model, preprocessing, text

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
        """What is said after each of `text`, or in answer to each of `prompt`: words, or a conversation as a list of
        {"role": "user", "content": words}; n times over, side by side.

        temperature: 0 for the likeliest token each time. length: the most tokens. The same seed says the same, row by
        row, whatever the batch. Raises SensoriumError where it cannot be asked so, or there is no room for `length`.
        """
        require_output(modality, "text")
        rows = self.tokenize_prompts(inputs, max_tokens)
        said = list[str]()
        for some, numbers in iter_batches({"text": rows}, len(rows), n, batch_size):
            how = SamplingConfig(temperature, top_k, top_p, seed=seed, row_ids=numbers)
            with eval_mode(self.model):
                batch = Batch({"text": self.text.collate(some["text"])})
                steps = list(
                    generate(
                        self.model,
                        batch,
                        "text",
                        max_tokens,
                        how,
                        end_token=next(iter(self.text.stop_ids), None),
                        suppressed_tokens=self.text.suppressed_tokens,
                    )
                )
            said += [self.text.decode(row) for row in torch.stack(steps, 1)]
        return said

    def tokenize_prompts(self, inputs: Mapping[str, Any], max_tokens: int) -> list[np.ndarray]:
        """Beginnings, or questions as they are put to the model, as ids that leave room for `length` more."""
        asked = as_lists(inputs, list(self.preprocessing), "text")
        if len(asked) != 1:
            raise SensoriumError(
                f"give one of {', '.join(self.preprocessing)}: this model makes text from it"
            )
        ((kind, values),) = asked.items()
        rows = [load_value(self.preprocessing[kind], value) for value in values]
        longest = max(map(len, rows), default=0)
        if longest > self.text.length - max_tokens:
            raise SensoriumError(
                f"{longest} tokens are given and {max_tokens} asked for: this model reads and says "
                f"{self.text.length} in all; ask for fewer with length="
            )
        return rows


def preprocessing(weight_files: WeightFiles, length: int, stop_ids: Any) -> Preprocessing:
    """What its tokenizer reads: `text`, and `prompt` where there is a chat template; {} where there is none."""
    text = load_text_prompt(weight_files, length, stop_ids)
    if text is None:
        return {}
    template = weight_files.read_json("tokenizer_config.json").get(
        "chat_template"
    ) or weight_files.config.get("tokenizer.chat_template")
    if "chat_template.jinja" in weight_files.files:
        template = weight_files.files["chat_template.jinja"].read_text(encoding="utf-8")
    return (
        {"text": text}
        if template is None
        else {"text": text, "prompt": build_chat_prompt(text, template)}
    )


def build_verbs(module: nn.Module, preprocessing: Preprocessing) -> Verbs:
    """`generate`, where there is a tokenizer."""
    assert isinstance(module, Decoder)
    return {"generate": TextContinuation(module, preprocessing)} if preprocessing else {}
