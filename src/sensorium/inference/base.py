"""The three verbs. A model has those it can answer, as methods; asking for another is one clear error."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality

VERBS = ("embed", "generate", "predict")


class UnsupportedVerb(SensoriumError, AttributeError):
    """A verb that a model does not have."""


class VerbModel:
    """A model with the verbs it is given, and no others. `kind` is what it is called when one is absent."""

    def __init__(self, kind: str, verbs: Mapping[str, Callable[..., Any]]):
        self.kind, self.verbs = kind, verbs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verbs = self.__dict__.get("verbs", {})
        if name in verbs:
            return verbs[name]
        if name in VERBS:
            raise UnsupportedVerb(
                f"a {self.kind} cannot {name}; it can {', '.join(verbs) or 'answer no verb'}"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.verbs]


def load_value(modality: Modality, value: Any) -> np.ndarray:
    """One raw value that a model is asked about. Raises SensoriumError naming it where it cannot be read."""
    try:
        return modality.load(value)
    except ValueError as error:
        shown = (
            value
            if isinstance(value, str) or hasattr(value, "__fspath__")
            else f"a {type(value).__name__}"
        )
        raise SensoriumError(f"cannot read {shown}: {error}") from error


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """For a while the model does not train; then it is as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
