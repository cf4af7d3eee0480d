"""Models with the verbs embed, generate and predict, and the helpers that all verbs share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import numpy as np
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.io.untrusted import EmbeddedFile
from sensorium.modalities.base import Modality

VERBS = ("embed", "generate", "predict")


class UnsupportedVerb(SensoriumError, AttributeError):  # noqa: N818 - it names the request
    """Raised for a verb that a model does not have."""


class VerbModel:
    """A model whose verbs are methods; a verb that it lacks raises UnsupportedVerb.

    Args:
        kind: What the model is called in error messages, such as "model of recipe clip".
        verbs: Verb → function.
    """

    def __init__(self, kind: str, verbs: Mapping[str, Callable[..., Any]]):
        self.kind = kind
        self.verbs = verbs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verbs = self.__dict__.get("verbs", {})
        if name in verbs:
            return verbs[name]
        if name in VERBS:
            raise UnsupportedVerb(
                f"A {self.kind} cannot {name}. It supports: {', '.join(verbs) or 'no verb'}."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.verbs]


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
