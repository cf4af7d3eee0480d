"""Enforce every jaxtyping annotation of the package by beartype while testing."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from jaxtyping import install_import_hook

install_import_hook("sensorium", "fixtures.typecheck.check")
