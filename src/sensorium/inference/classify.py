"""The verb `classify`: zero-shot classification with labels given as words (Radford et al. 2021).

N values   C labels   P templates   E width of the shared space
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.inference.base import load_value
from sensorium.inference.classification import Classification
from sensorium.inference.embed import Embedder
from sensorium.inference.request import Unreadable, as_lists
from sensorium.models.towers import Towers
from sensorium.nn.tokens import l2_normalize

PLAIN_TEMPLATES = ("{}",)  # of runs, whose captions are in any language
PHOTO_TEMPLATES = ("{}", "a photo of {}")  # of models pretrained on captions from the web


class ZeroShotClassifier:
    """Classify values by labels: `classify(image=["a.jpg"], labels=["cat", "dog"])`.

    Args:
        embedder: The verb `embed` of the model, which embeds text.
        templates: Default templates.
        is_pretrained: Whether the logit bias of a sigmoid loss is complete; runs learn it as an
            offset from the odds of one match among all candidates.
    """

    def __init__(self, embedder: Embedder, templates: Sequence[str], *, is_pretrained: bool):
        self.embedder = embedder
        self.templates = tuple(templates)
        self.is_pretrained = is_pretrained

    def __call__(
        self,
        *,
        labels: Iterable[Any],
        templates: Sequence[str] | str | None = None,
        batch_size: int = 256,
        unreadable: list[Unreadable] | None = None,
        **inputs: Any,
    ) -> Classification:
        """Return the most similar label of each value, with the probability of each label.

        A label is embedded in every template, and the mean of the unit vectors represents it.

        Args:
            labels: The labels: words or short texts, in a language that the model knows.
            templates: Texts with {} in the place of the label, such as "a photo of a {}". Default:
                the label alone for a run; also "a photo of {}" for a pretrained model.
            batch_size: Values per forward pass.
            unreadable: A list to which values that cannot be read are appended; their label is
                None. None: they are an error.
            **inputs: One keyword, the modality, with a list of raw values; None is a missing value.

        Raises:
            SensoriumError: If a label or a template is not usable, or not exactly one supported
                modality is given, or a value cannot be read and `unreadable` is None.
        """
        kind, values = self._input_values(inputs)
        names = check_labels(labels)
        prompts = check_templates(templates if templates is not None else self.templates)
        towers = self._towers_of(kind)
        if towers is not None and towers.logit_bias is None and len(names) < 2:
            raise SensoriumError(
                f"With {names[0]!r} as the only label, its probability is always 1. Give two labels"
                ' or more, such as "something else".'
            )
        self._check_distinct(names)
        label_vectors = self._embed_labels(names, prompts)
        similarity = np.full((len(values), len(names)), np.nan, np.float32)
        for rows in iter_batches(range(len(values)), batch_size):
            present, loaded = self._load_values(kind, values, rows, unreadable)
            if present:
                vectors = self.embedder.embed_loaded(kind, loaded, batch_size)
                similarity[present] = vectors @ label_vectors.T
        best = [None if math.isnan(row[0]) else names[int(row.argmax())] for row in similarity]
        if towers is None:
            return Classification(best, tuple(names), similarity)
        p = self._probabilities(towers, torch.from_numpy(similarity))
        return Classification(best, tuple(names), similarity, p.numpy(), towers.logit_bias is None)

    def _input_values(self, inputs: Mapping[str, Any]) -> tuple[str, list[Any]]:
        supported = ", ".join(self.embedder.modalities)
        if len(inputs) != 1:
            raise SensoriumError(
                f"classify got {', '.join(inputs) or 'no input'}. "
                f"Give values of exactly one of: {supported}."
            )
        kind = next(iter(inputs))
        if kind not in self.embedder.modalities:
            raise SensoriumError(f"This model cannot classify {kind}. It classifies: {supported}.")
        return kind, as_lists(inputs, list(self.embedder.modalities), "labels")[kind]

    def _towers_of(self, kind: str) -> Towers | None:
        """Return the towers with the temperature between an input and text, if it was learned."""
        towers = self.embedder.model
        return towers if isinstance(towers, Towers) and kind != "text" else None

    def _check_distinct(self, names: Sequence[str]) -> None:
        """Raise SensoriumError where two labels are one to the tokenizer, such as Cat and cat."""
        text = self.embedder.modalities["text"][1]
        seen: dict[bytes, str] = {}
        for name in names:
            ids = load_value(text, name).tobytes()
            if ids in seen:
                raise SensoriumError(
                    f"The labels {seen[ids]!r} and {name!r} are the same text to this model, whose "
                    "tokenizer may ignore case or read only the beginning. Leave one out."
                )
            seen[ids] = name

    def _embed_labels(
        self, names: Sequence[str], templates: Sequence[str]
    ) -> Float32[np.ndarray, "C E"]:
        prompts = [template.replace("{}", name) for name in names for template in templates]
        vectors = torch.from_numpy(self.embedder(text=prompts))
        return l2_normalize(vectors.view(len(names), len(templates), -1).mean(1)).numpy()

    def _load_values(
        self,
        kind: str,
        values: Sequence[Any],
        rows: Sequence[int],
        unreadable: list[Unreadable] | None,
    ) -> tuple[list[int], list[np.ndarray]]:
        """Return the rows with a readable value, and these values as the modality loads them."""
        modality = self.embedder.modalities[kind][1]
        present: list[int] = []
        loaded: list[np.ndarray] = []
        for row in rows:
            if values[row] is None:
                continue
            try:
                loaded.append(load_value(modality, values[row]))
            except (SensoriumError, OSError) as error:
                if unreadable is None:
                    raise
                unreadable.append(Unreadable(row, kind, str(error.__cause__ or error)))
                continue
            present.append(row)
        return present, loaded

    @torch.inference_mode()
    def _probabilities(
        self, towers: Towers, similarity: Float[Tensor, "N C"]
    ) -> Float[Tensor, "N C"]:
        logits = towers.logit_scale.float().exp() * similarity
        if towers.logit_bias is None:
            return logits.softmax(1)
        num_others = 1 if self.is_pretrained else max(1, similarity.shape[1] - 1)
        return (logits + towers.logit_bias.float() - math.log(num_others)).sigmoid()


def check_labels(labels: Iterable[Any]) -> list[str]:
    """Return labels without surrounding space.

    Raises:
        SensoriumError: If there is none, or one is empty, no text or given twice.
    """
    if isinstance(labels, str):
        raise SensoriumError(
            f"labels={labels!r} is one text. Give a list of labels, such as ['cat', 'dog']."
        )
    names: list[str] = []
    for position, label in enumerate(labels, start=1):
        if not isinstance(label, str):
            raise SensoriumError(
                f"Label {position} is {type(label).__name__} {str(label)[:40]!r}. Labels are texts."
            )
        name = " ".join(label.split())
        if not name:
            raise SensoriumError(f"Label {position} is empty. Leave it out, or give it a name.")
        if name in names:
            raise SensoriumError(f"The label {name!r} is given twice. Leave one out.")
        names.append(name)
    if not names:
        raise SensoriumError("There is no label. Give the words to choose from.")
    return names


def check_templates(templates: Sequence[str] | str) -> list[str]:
    """Return templates as a list.

    Raises:
        SensoriumError: If there is none, or one has no {}.
    """
    listed = [templates] if isinstance(templates, str) else list(templates)
    if not listed:
        raise SensoriumError('There is no template. Give one, such as "a photo of a {}".')
    for template in listed:
        if "{}" not in template:
            raise SensoriumError(
                f"The template {template!r} has no {{}} in the place of the label, as in "
                '"a photo of a {}".'
            )
    return listed


def add_classify(
    verbs: Mapping[str, Callable[..., Any]], *, is_pretrained: bool
) -> Mapping[str, Callable[..., Any]]:
    """Return the verbs of a model with `classify`, if it embeds text."""
    embed = verbs.get("embed")
    if not isinstance(embed, Embedder) or "text" not in embed.modalities or "classify" in verbs:
        return verbs
    templates = PHOTO_TEMPLATES if is_pretrained and len(embed.modalities) > 1 else PLAIN_TEMPLATES
    return {**verbs, "classify": ZeroShotClassifier(embed, templates, is_pretrained=is_pretrained)}
