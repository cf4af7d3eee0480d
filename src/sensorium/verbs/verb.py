"""The three verbs. A model has those it can answer, as methods; asking for another is one clear error."""
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sensorium.errors import SensoriumError

VERBS = ("embed", "generate", "predict")


class Absent(SensoriumError, AttributeError):
    """A verb that a model does not have."""


class Answers:
    """A model with the verbs it is given, and no others. `kind` is what it is called when one is absent."""

    def __init__(self, kind: str, verbs: Mapping[str, Callable[..., Any]]):
        self.kind, self.verbs = kind, verbs

    def __getattr__(self, name: str) -> Callable[..., Any]:
        verbs = self.__dict__.get("verbs", {})
        if name in verbs:
            return verbs[name]
        if name in VERBS:
            raise Absent(f"a {self.kind} cannot {name}; it can {', '.join(verbs) or 'answer no verb'}")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self.verbs]
