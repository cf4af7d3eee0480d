"""The signatures of the verbs, for editors and type checkers: what `model.embed(...)` takes.

N values   E width of the shared space
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from sensorium.inference.classification import Classification


@runtime_checkable
class EmbedVerb(Protocol):
    """`model.embed(image=[...])`: values of one modality as unit vectors in the shared space."""

    def __call__(
        self,
        *,
        image: Sequence[Any] = ...,
        text: Sequence[str] = ...,
        audio: Sequence[Any] = ...,
        batch_size: int = 256,
        **inputs: Sequence[Any],
    ) -> Float32[np.ndarray, "N E"]:
        """Return one vector of length 1 for each value of exactly one modality."""
        ...


@runtime_checkable
class GenerateVerb(Protocol):
    """`model.generate(text=[...])`: images or texts, one or several for each row of inputs."""

    def __call__(
        self,
        modality: str | None = None,
        /,
        *,
        image: Any = ...,
        text: Any = ...,
        question: Any = ...,
        audio: Any = ...,
        n: int = ...,
        temperature: float = ...,
        top_k: int = ...,
        top_p: float = ...,
        seed: int = ...,
        max_tokens: int = ...,
        batch_size: int = ...,
        **inputs: Any,
    ) -> Any:
        """Return a list of images, or of texts; those of one row are consecutive."""
        ...


@runtime_checkable
class PredictVerb(Protocol):
    """`model.predict(rows)`: the targets of rows with any columns, some of them missing."""

    def __call__(
        self,
        rows: Any = None,
        /,
        *,
        coverage: float = ...,
        min_accuracy: float = ...,
        batch_size: int = ...,
        **columns: Any,
    ) -> Any:
        """Return {target: Prediction}; a DataFrame for a DataFrame.

        A pretrained image classifier takes `image` and `top_k`, and returns the classes of each.
        """
        ...


@runtime_checkable
class ClassifyVerb(Protocol):
    """`model.classify(image=[...], labels=[...])`: labels given as words, without training."""

    def __call__(
        self,
        *,
        labels: Sequence[str],
        templates: Sequence[str] | str | None = None,
        batch_size: int = 256,
        image: Any = ...,
        text: Any = ...,
        audio: Any = ...,
        **inputs: Any,
    ) -> Classification:
        """Return the most similar label of each value, with the probability of each label."""
        ...
