"""Models with the verbs embed, generate, predict and classify, and what all verbs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.io.untrusted import EmbeddedFile
from sensorium.modalities.base import Modality

if TYPE_CHECKING:
    from sensorium.inference.verbs import ClassifyVerb, EmbedVerb, GenerateVerb, PredictVerb

VERBS = ("embed", "generate", "predict", "classify")


class UnsupportedVerb(SensoriumError, AttributeError):  # noqa: N818 - it names the request
    """Raised for a verb that a model does not have."""


class VerbModel:
    """A model whose verbs are methods; a verb that it lacks raises UnsupportedVerb.

    Args:
        kind: What the model is called in error messages, such as "model of recipe clip".
        verbs: Verb → function. A model that embeds text also gets the verb `classify`.
        is_pretrained: Whether its weights are pretrained ones, untrained here.
    """

    def __init__(
        self, kind: str, verbs: Mapping[str, Callable[..., Any]], *, is_pretrained: bool = False
    ):
        self.kind = kind
        self.verbs = verbs
        if "embed" in verbs:
            from sensorium.inference.classify import add_classify  # not for other models

            self.verbs = add_classify(verbs, is_pretrained=is_pretrained)

    @property
    def embed(self) -> EmbedVerb:
        """Embed values of one modality: `embed(image=[...])`, `embed(text=[...])`."""
        return self._verb("embed")

    @property
    def generate(self) -> GenerateVerb:
        """Generate images or texts from inputs: `generate(text=[...])`."""
        return self._verb("generate")

    @property
    def predict(self) -> PredictVerb:
        """Predict targets from columns: `predict(rows)`, `predict(price=[...], photo=[...])`."""
        return self._verb("predict")

    @property
    def classify(self) -> ClassifyVerb:
        """Classify by labels given as words: `classify(image=[...], labels=["cat", "dog"])`."""
        return self._verb("classify")

    def _verb(self, name: str) -> Any:
        if name not in self.verbs:
            raise UnsupportedVerb(
                f"A {self.kind} cannot {name}. It supports: {', '.join(self.verbs) or 'no verb'}."
            )
        return self.verbs[name]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verbs = self.__dict__.get("verbs", {})
        if name in verbs:
            return verbs[name]
        if name in VERBS and "verbs" in self.__dict__:
            return self._verb(name)  # a property that failed ends here, too
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __dir__(self) -> Iterable[str]:
        names = {*super().__dir__(), *self.verbs}
        return sorted(names - {name for name in VERBS if name not in self.verbs})


def load_value(modality: Modality, value: Any) -> np.ndarray:
    """Return one raw input as the modality loads it.

    Raises:
        SensoriumError: If it cannot be read, naming the value.
    """
    try:
        return modality.load(value)
    except ValueError as error:
        is_named = isinstance(value, str | PathLike | EmbeddedFile)
        name = value if is_named else f"a {type(value).__name__}"
        raise SensoriumError(f"Cannot read {name}: {error}.") from error


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and restore its mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
