"""tokenizer.json of others: what could hang, fill memory or panic is refused at loading."""

# pyright: reportPrivateUsage=false

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from sensorium.errors import SensoriumError
from sensorium.modalities import tokenizer_json
from sensorium.modalities.text import Text, tokenizer_errors
from sensorium.modalities.tokenizer_json import KNOWN_PATTERNS, check_pattern, parse_tokenizer
from sensorium.pretrained.tokenizers import CLIP_SPLIT_PATTERN, _siglip_normalizers

MAX_SECONDS = 60
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def settings(**sections: Any) -> dict[str, Any]:
    """Return the JSON of a small tokenizer with other sections."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    return json.loads(tokenizer.to_str()) | sections


def split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def sequence(*items: Any) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(items)}


def refuse(value: dict[str, Any] | str) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    start = time.monotonic()
    with pytest.raises(SensoriumError) as error:
        parse_tokenizer(text, "model/tokenizer.json")
    assert time.monotonic() - start < MAX_SECONDS
    message = str(error.value)
    assert message.startswith("model/tokenizer.json ")
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("a well-known tokenizer was tried in a process")

    monkeypatch.setattr(tokenizer_json, "_run_trial", fail)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    "prepare",
    [
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.BertPreTokenizer()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(Regex(LLAMA), "isolated")),
        lambda t: setattr(
            t, "pre_tokenizer", pre_tokenizers.Split(Regex(CLIP_SPLIT_PATTERN), "removed", True)
        ),
        lambda t: setattr(t, "normalizer", normalizers.Sequence(_siglip_normalizers(True))),
        lambda t: setattr(
            t,
            "normalizer",
            normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        ),
    ],
    ids=["gpt2", "bert", "llama3", "clip", "siglip", "llama2"],
)
def test_well_known_tokenizers_load_at_once(prepare: Callable[[Tokenizer], None]) -> None:
    original = Tokenizer(models.BPE({chr(97 + i): i for i in range(26)}, []))
    prepare(original)
    loaded = parse_tokenizer(original.to_str(), "tokenizer.json")
    assert loaded.to_str() == original.to_str()


@pytest.mark.usefixtures("no_process")
def test_checking_a_large_tokenizer_takes_a_fraction_of_loading_it() -> None:
    vocabulary = {f"token{i}": i for i in range(100_000)}
    text = Tokenizer(models.WordLevel(vocabulary, "token0")).to_str()
    start = time.process_time()
    parsed = json.loads(text)
    tokenizer_json.check_settings(parsed, "tokenizer.json")
    checking = time.process_time() - start
    start = time.process_time()
    Tokenizer.from_str(text)
    assert checking < max(0.5 * (time.process_time() - start), 0.15)


@pytest.mark.parametrize(
    "pattern",
    [
        *sorted(KNOWN_PATTERNS),
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'d)?",
        r" ?[^(\s|[.,!?…。、])]+",
        r"[0-9][0-9][0-9]|[\p{Han}]+|[!-/:-~]?[A-Za-z]+",
        r"(?<![a])(?=\p{L})(?:ab|cd)+x{2,5}\x{41}(?i)y",
        r"\p{N}{1,3}(?=(\p{N}{3})*$)",
        "",
    ],
)
def test_honest_patterns_pass(pattern: str) -> None:
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a+)+b", "stands in another"),
        ("(?:a*b?)*c", "stands in another"),
        (r"((\w+\s?)*)+!", "stands in another"),
        ("(?>x(?:(y+))){2,}", "stands in another"),
        ("a**", None),
        ("a+" * 10, "follow another"),
        ("(?:a+){500}b", "follow another"),
        (r"(a)\1+", "refers back"),
        (r"(?<n>a)\k<n>", "refers back"),
        (r"(?<n>a|b\g<n>c)", "refers back"),
        ("a{5000}", "repeats more than"),
        ("(" * 50 + "a" + ")" * 50, "nested too deeply"),
        ("(a", "parentheses"),
        ("a)", "parentheses"),
        ("[a", "incomplete"),
        ("(?(1)a|b)", "unknown kind"),
        ("x" * 6000, "6,000 characters"),
    ],
)
def test_patterns_that_may_take_exponential_time_are_refused(
    pattern: str, reason: str | None
) -> None:
    if reason is None:
        check_pattern(pattern)  # one repetition, written twice
        return
    with pytest.raises(ValueError, match=reason):
        check_pattern(pattern)
    assert reason in refuse(settings(pre_tokenizer=split(pattern)))


def test_a_pattern_that_is_slow_on_hard_texts_is_refused_by_a_trial() -> None:
    message = refuse(settings(pre_tokenizer=split("(?:a|a|ab|aa)+c")))
    assert "on texts" in refuse(settings(pre_tokenizer=split("a*a*a*[bx]")))
    assert "on texts of 2,000 characters" in message
    assert "Use the tokenizer of its authors." in message


def test_an_unknown_pattern_that_is_harmless_is_loaded() -> None:
    loaded = parse_tokenizer(json.dumps(settings(pre_tokenizer=split("[ab]{1,7}"))), "t.json")
    assert loaded.encode("ab").ids == [2]


@pytest.mark.parametrize(
    ("normalizer", "reason"),
    [
        (sequence(*(replace("a", "aa") for _ in range(30))), "times as long"),
        (replace("a", "b" * 10_000), "has 10,000 characters"),
        ({"type": "Prepend", "prepend": "x" * 100}, "has 100 characters"),
        (sequence(sequence(sequence(sequence(sequence(sequence()))))), "nested too deeply"),
        (sequence(*({"type": "NFC"} for _ in range(300))), "more than 200 components"),
        ({"type": "Shell"}, "unknown component 'Shell'"),
        ({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "charsmap is damaged"),
        (
            {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(bytes(4) + b"x" * 5000).decode(),
            },
            "texts of 5,000 bytes",
        ),
        ("text", "no component"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_texts_that_grow_are_refused(normalizer: Any, reason: str) -> None:
    assert reason in refuse(settings(normalizer=normalizer))


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"model": None}, "no model"),
        ({"model": {"type": "Eval"}}, "unknown component 'Eval'"),
        (
            {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**9}},
            "max_input_chars_per_word",
        ),
        (
            {"model": {"type": "BPE", "vocab": {}, "merges": [], "end_of_word_suffix": "x" * 999}},
            "end_of_word_suffix",
        ),
        ({"added_tokens": [{"content": "x" * 20_000}]}, "an added token has more"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [],
                    "pair": [],
                    "special_tokens": {"x": {"id": "x", "ids": [1] * 100_000, "tokens": []}},
                }
            },
            "adds 100,000 tokens",
        ),
        ({"decoder": {"type": "Sequence", "decoders": [1]}}, "no component"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": 3}}, "refused"),
    ],
)
def test_sections_that_lie_are_refused(section: dict[str, Any], reason: str) -> None:
    assert reason in refuse(settings(**section))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"model": 3}'])
def test_other_json_is_refused(text: str) -> None:
    refuse(text)


def test_a_vocabulary_of_millions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_json, "MAX_VOCABULARY", 2)
    assert "its vocabulary has 3 entries" in refuse(settings())


def test_a_panic_of_the_library_becomes_an_error() -> None:
    class PanicException(BaseException):
        pass

    with pytest.raises(SensoriumError, match="tokenizer failed: stack"), tokenizer_errors():
        raise PanicException("stack overflow")
    with pytest.raises(KeyboardInterrupt), tokenizer_errors():
        raise KeyboardInterrupt


def test_a_panic_while_encoding_becomes_an_error() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+[^a!]"), "isolated")
    column = Text(vocab_size=10, tokenizer=tokenizer)
    with pytest.raises(SensoriumError, match="one of its patterns takes too long"):
        column.encode(["a" * 40 + "!"])


def test_a_run_folder_of_others_is_checked_too(tmp_path: Path) -> None:
    from sensorium.data.schema import Schema

    schema = {"version": 1, "tokenizer": True, "columns": {}, "roles": {}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(settings(pre_tokenizer=split("(a+)+b"))))
    from sensorium.data import schema as schema_module

    schema["version"] = schema_module.SCHEMA_VERSION
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    with pytest.raises(SensoriumError, match=r"tokenizer\.json is refused: the pattern"):
        Schema.load(tmp_path)
