"""The verbs of a model: signatures for editors, and clear errors for a verb that it lacks."""

import inspect
from pathlib import Path

import pytest
from fixtures.export_cases import untrained_run

from sensorium.inference import base, verbs
from sensorium.inference.base import VERBS, UnsupportedVerb, VerbModel

KEYWORDS = {
    "embed": {"image", "text", "audio", "batch_size"},
    "generate": {"image", "text", "question", "audio", "n", "temperature", "seed", "max_tokens"},
    "predict": {"rows", "coverage", "min_accuracy", "batch_size"},
    "classify": {"image", "text", "audio", "labels", "templates"},
}


@pytest.mark.parametrize("name", VERBS)
def test_verb_has_a_signature_and_a_docstring_before_a_model_is_loaded(name: str) -> None:
    verb = inspect.getattr_static(VerbModel, name)
    assert isinstance(verb, property)
    assert verb.__doc__
    protocol = getattr(verbs, f"{name.capitalize()}Verb")
    assert protocol.__name__ in Path(inspect.getsourcefile(base) or "").read_text()
    parameters = inspect.signature(protocol.__call__).parameters
    assert set(parameters) >= KEYWORDS[name]


def test_model_lists_the_verbs_that_it_has(tmp_path: Path) -> None:
    model = untrained_run(tmp_path)
    assert {"embed", "classify"} <= set(dir(model))
    assert not {"generate", "predict"} & set(dir(model))
    assert hasattr(model, "embed")
    assert not hasattr(model, "predict")
    assert "labels" in inspect.signature(model.classify).parameters
    with pytest.raises(UnsupportedVerb, match=r"cannot predict\. It supports: embed, classify"):
        _ = model.predict
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        _ = model.colour


def test_verb_of_the_users_own_is_reached() -> None:
    model = VerbModel("toy", {"rotate": lambda: "rotated"})
    assert model.rotate() == "rotated"
