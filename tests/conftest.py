"""Enforce every jaxtyping annotation of the package by beartype while testing."""

import os
from collections.abc import Iterator

import jaxtyping
import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from jaxtyping import install_import_hook

install_import_hook("sensorium", "fixtures.typecheck.check")


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """Disable runtime shape checks, which would fix a graph to the shapes of its example."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
