"""Shapes are checked in tests: every jaxtyping annotation of the package is enforced by beartype."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from jaxtyping import install_import_hook

install_import_hook("sensorium", "fixtures.typecheck.check")
