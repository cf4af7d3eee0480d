"""Build a tokenizer from a tokenizer.json of others: checked before, tried in a process of its own.

The checks read the JSON: components, sizes, texts that grow, patterns that take exponential time.
A file whose patterns are not among those of well-known tokenizers is then tried in a second
process, whose time and memory are limited, on texts that are hard for such patterns.
"""

import base64
import json
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from tokenizers import Tokenizer

from sensorium.errors import SensoriumError
from sensorium.modalities.text import tokenizer_errors

COMPONENTS = {
    "normalizer": "Sequence BertNormalizer NFC NFD NFKC NFKD Lowercase Strip StripAccents Replace "
    "Prepend Nmt Precompiled ByteLevel",
    "pre_tokenizer": "Sequence BertPreTokenizer ByteLevel Whitespace WhitespaceSplit Metaspace "
    "Split Punctuation Digits CharDelimiterSplit UnicodeScripts FixedLength",
    "post_processor": "Sequence TemplateProcessing BertProcessing RobertaProcessing ByteLevel",
    "decoder": "Sequence ByteLevel WordPiece Metaspace BPEDecoder CTC Replace Fuse Strip "
    "ByteFallback",
    "model": "BPE WordPiece WordLevel Unigram",
}
# Of GPT-2, CLIP, GPT-4, Llama 3, Qwen 2 and 3, GPT-4o, T5 and others; none takes exponential time.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN_PATTERNS = frozenset(
    {
        rf"{CONTRACTIONS}|{WORD}|\p{{N}}{{1,3}}|{REST}",
        rf"{CONTRACTIONS}|{WORD}|\p{{N}}|{REST}",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
        r"[^\s\p{L}\p{N}]+",
        r"\s+",
        r"\s",
        r" {2,}",
        r"(?<=\p{L})Σ(?!\p{L})",
        r"[\s\x1c-\x1f]+",
        "[" + "".join(f"\\{mark}" for mark in string.punctuation) + "]",
    }
)
MAX_ITEMS = 200  # of components, of the pieces of a template and of its ids
MAX_DEPTH = 4  # of sequences
MAX_PATTERN_CHARS = 5_000
MAX_AFFIX_CHARS = 64  # of what is added or put in place of something
MAX_GROWTH = 64  # of a text by all replacements
MAX_VOCABULARY = 2_000_000
MAX_WORD_CHARS = 10_000  # that WordPiece searches, in quadratic time
MAX_TOKEN_CHARS = 10_000
MAX_REPEATS = 1_000  # {n,m} of a pattern
MAX_UNBOUNDED = 4  # repetitions without end, one after another
PROBE_CHARS = "aA0 \n._é漢"
PROBE_LENGTH = 2_000
MAX_PROBE_CHARS = 24
TRIAL_CPU_SECONDS = 10
TRIAL_TIMEOUT_SECONDS = 120
TRIAL_MEMORY_BYTES = 4 << 30
TRIAL_SCRIPT = f"""import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({TRIAL_CPU_SECONDS}, {TRIAL_CPU_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({TRIAL_MEMORY_BYTES}, {TRIAL_MEMORY_BYTES}))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, ValueError, OSError):
    pass
from tokenizers import Tokenizer
text, probes = json.load(sys.stdin)
tokenizer = Tokenizer.from_str(text)
tokenizer.no_padding()
tokenizer.no_truncation()
for probe in probes:
    tokenizer.decode(tokenizer.encode(probe).ids[:1000])
print("done")"""
_GROUP_START = re.compile(r"\((?:\?(?:[imsx-]+:|[imsx-]+(?=\))|:|=|!|<=|<!|>|<\w+>|#))?")
_BRACES = re.compile(r"\{(\d*)(,?)(\d*)\}")


class _BadPatternError(ValueError):
    """A pattern may take exponential time, or cannot be judged."""


def parse_tokenizer(text: str, source: str) -> Tokenizer:
    """Build the tokenizer in the text of a tokenizer.json, without truncation and padding.

    Args:
        text: the content of the file.
        source: what messages call the file.

    Raises:
        SensoriumError: if it is damaged, has an unknown component, or could take far more time or
            memory than an honest one.
    """
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise SensoriumError(f"{source} cannot be read: {e}. Download it again.") from e
    patterns = check_settings(settings, source)
    unknown = sorted(patterns - KNOWN_PATTERNS)
    if unknown:
        _try_in_process(text, "\0".join(unknown), source)
    with tokenizer_errors(source):
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as e:  # tokenizers raises nothing more specific
            raise SensoriumError(f"{source} cannot be read: {e}. Download it again.") from e
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer


def check_settings(settings: Any, source: str) -> set[str]:
    """Check the JSON of a tokenizer; return its regular expressions.

    Raises:
        SensoriumError: naming the component and what to do.
    """

    def refuse(reason: str) -> SensoriumError:
        return SensoriumError(f"{source} is refused: {reason}. Use the tokenizer of its authors.")

    if not isinstance(settings, dict):
        raise refuse("it is not a JSON object")
    patterns: set[str] = set()
    try:
        _check_model(settings.get("model"), settings.get("added_tokens"))
        for section in COMPONENTS:
            growth = 1.0
            components = list(_components(settings.get(section), section))
            if len(components) > MAX_ITEMS:
                raise ValueError(f"its {section} has more than {MAX_ITEMS} components")
            for component in components:
                growth *= _check_component(component, section)
                pattern = component.get("pattern")
                if isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
                    patterns.add(pattern["Regex"])
            if growth > MAX_GROWTH:
                raise ValueError(
                    f"the replacements of its {section} make a text up to {growth:,.0f} times as "
                    f"long; the limit is {MAX_GROWTH}"
                )
        for pattern in patterns - KNOWN_PATTERNS:
            check_pattern(pattern)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise refuse(str(e) or type(e).__name__) from e
    return patterns


def _components(value: Any, section: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the components of a section, those of a sequence one by one."""
    if value is None:
        return
    if not isinstance(value, dict) or depth > MAX_DEPTH:
        raise ValueError(f"its {section} is no component, or nested too deeply")
    kind = value.get("type") or ("BPE" if section == "model" else "")
    if kind not in COMPONENTS[section].split():
        raise ValueError(f"its {section} has an unknown component {str(kind)[:40]!r}")
    yield value
    if kind == "Sequence":
        for key in ("normalizers", "pretokenizers", "processors", "decoders"):
            items = value.get(key) or []
            if len(items) > MAX_ITEMS:
                raise ValueError(f"its {section} has more than {MAX_ITEMS} components")
            for item in items:
                yield from _components(item, section, depth + 1)


def _check_component(component: dict[str, Any], section: str) -> float:
    """Check one component; return by how much it makes a text longer."""
    for key in ("content", "prepend", "prefix", "suffix", "replacement", "cleanup"):
        added = component.get(key)
        if isinstance(added, str) and len(added) > MAX_AFFIX_CHARS:
            raise ValueError(
                f"a {key} of its {section} has {len(added):,} characters; at most "
                f"{MAX_AFFIX_CHARS} are supported"
            )
    if section == "post_processor":
        _check_template(component)
    if component.get("type") == "Precompiled":
        check_charsmap(base64.b64decode(component["precompiled_charsmap"], validate=True))
    if component.get("type") != "Replace":
        return 1.0
    pattern = component["pattern"]
    shortest = max(len(pattern["String"]), 1) if "String" in pattern else 1
    return max(1.0, len(component["content"]) / shortest)


def _check_template(component: dict[str, Any]) -> None:
    """Check the tokens that are added to each text."""
    sizes = [len(component.get(key) or ()) for key in ("single", "pair")]
    tokens = component.get("special_tokens") or {}
    sizes += [len(token["ids"]) for token in tokens.values() if isinstance(token, dict)]
    if max(sizes) > MAX_ITEMS:
        raise ValueError(f"its template adds {max(sizes):,} tokens; at most {MAX_ITEMS} are added")


def check_charsmap(data: bytes) -> None:
    """Check that the texts which a compiled normalizer puts in place of others are short.

    Args:
        data: size of a trie, the trie, and texts that end in a zero byte.

    Raises:
        ValueError: if it is damaged, or a text is longer than any of Unicode's normal forms.
    """
    trie_bytes = int.from_bytes(data[:4], "little")
    if len(data) < 4 or trie_bytes % 4 or trie_bytes + 4 > len(data):
        raise ValueError("its precompiled_charsmap is damaged")
    longest = max(map(len, data[4 + trie_bytes :].split(b"\0")))
    if longest > MAX_AFFIX_CHARS * 4:
        raise ValueError(f"its precompiled_charsmap replaces by texts of {longest:,} bytes")


def _check_model(model: Any, added_tokens: Any) -> None:
    """Check the sizes of the vocabulary and of its tokens."""
    if not isinstance(model, dict):
        raise ValueError("it has no model")
    for name, items in (("vocabulary", model.get("vocab")), ("merges", model.get("merges"))):
        if items is not None and len(items) > MAX_VOCABULARY:
            raise ValueError(
                f"its {name} has {len(items):,} entries; the limit is {MAX_VOCABULARY:,}"
            )
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if len(model.get(key) or "") > MAX_AFFIX_CHARS:
            raise ValueError(f"its {key} has more than {MAX_AFFIX_CHARS} characters")
    word_chars = model.get("max_input_chars_per_word")
    if word_chars is not None and not 0 < word_chars <= MAX_WORD_CHARS:
        raise ValueError(f"its max_input_chars_per_word is {word_chars}, beyond {MAX_WORD_CHARS:,}")
    for token in added_tokens or ():
        if not isinstance(token, dict) or len(token["content"]) > MAX_TOKEN_CHARS:
            raise ValueError(f"an added token has more than {MAX_TOKEN_CHARS:,} characters")


# Patterns


def check_pattern(pattern: str) -> None:
    """Check that a regular expression takes no exponential time, whatever the text.

    Raises:
        ValueError: if a repetition without end stands in another one, or too many in a row, or it
            refers back to what it matched.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise _BadPatternError(f"a pattern has {len(pattern):,} characters")
    try:
        _, position = _alternatives(pattern, 0, 0)
        if position != len(pattern):
            raise _BadPatternError("its parentheses do not match")
    except (_BadPatternError, IndexError) as e:
        reason = str(e) if isinstance(e, _BadPatternError) else "it is incomplete"
        raise _BadPatternError(f"the pattern {pattern[:80]!r} is not supported: {reason}") from e


def _alternatives(pattern: str, position: int, depth: int) -> tuple[int, int]:
    """Return the most repetitions without end in one alternative, and where these end."""
    if depth > 20:
        raise _BadPatternError("it is nested too deeply")
    most = 0
    count = 0
    while position < len(pattern) and pattern[position] != ")":
        if pattern[position] == "|":
            most = max(most, count)
            count = 0
            position += 1
            continue
        inner, position = _atom(pattern, position, depth)
        repeats, position = _quantifier(pattern, position)
        if repeats == 0 and inner:
            raise _BadPatternError("a repetition without end stands in another one")
        count += 1 if repeats == 0 else inner * repeats
        if count > MAX_UNBOUNDED:
            raise _BadPatternError(
                f"more than {MAX_UNBOUNDED} repetitions without end follow another"
            )
    return max(most, count), position


def _atom(pattern: str, position: int, depth: int) -> tuple[int, int]:
    """Return the repetitions without end in one atom, and where it ends."""
    letter = pattern[position]
    if letter == "\\":
        return 0, _skip_escape(pattern, position)
    if letter == "[":
        return 0, _skip_class(pattern, position)
    if letter != "(":
        return 0, position + 1
    start = _GROUP_START.match(pattern, position)
    if start is None or (start.group() == "(" and pattern[position + 1 : position + 2] == "?"):
        raise _BadPatternError("a group is of an unknown kind")
    if start.group() == "(?#":
        return 0, pattern.index(")", position) + 1
    count, end = _alternatives(pattern, start.end(), depth + 1)
    if pattern[end : end + 1] != ")":
        raise _BadPatternError("its parentheses do not match")
    return count, end + 1


def _skip_escape(pattern: str, position: int) -> int:
    letter = pattern[position + 1]
    if letter in "123456789kgKRXG":
        raise _BadPatternError("it refers back to what it matched, or calls itself")
    if letter in "pPxu" and pattern[position + 2 : position + 3] == "{":
        return pattern.index("}", position) + 1
    return position + 2


def _skip_class(pattern: str, position: int) -> int:
    """Return where a character class ends; classes may stand in it."""
    position += 2 if pattern[position + 1] == "^" else 1
    if pattern[position] == "]":
        position += 1
    while pattern[position] != "]":
        if pattern[position] == "\\":
            position += 2
        elif pattern[position] == "[":
            position = _skip_class(pattern, position)
        else:
            position += 1
    return position + 1


def _quantifier(pattern: str, position: int) -> tuple[int, int]:
    """Return the most repeats of an atom (0: without end) and where its quantifiers end."""
    repeats = 1
    while position < len(pattern):
        braces = _BRACES.match(pattern, position)
        if pattern[position] in "*+":
            times, end = 0, position + 1
        elif pattern[position] == "?":
            times, end = 1, position + 1
        elif braces is not None and (braces[1] or braces[3]):
            upper = braces[3] or ("" if braces[2] else braces[1])
            times, end = (int(upper) if upper else 0), braces.end()
            if max(times, int(braces[1] or 0)) > MAX_REPEATS:
                raise _BadPatternError(f"it repeats more than {MAX_REPEATS:,} times")
        else:
            break
        if pattern[end : end + 1] in ("?", "+") and pattern[position] != "{":
            end += 1  # lazy or possessive
        repeats = 0 if 0 in (times, repeats) else max(times, 1) * repeats
        position = end
    return repeats, position


# The trial


def _try_in_process(text: str, patterns: str, source: str) -> None:
    """Use a tokenizer for the first time where a hang, a crash or a panic does no harm."""
    reason = _run_trial(text, patterns)
    if reason:
        raise SensoriumError(
            f"{source} is refused: {reason} on texts of {PROBE_LENGTH:,} characters. Use the "
            "tokenizer of its authors."
        )


@cache
def _run_trial(text: str, patterns: str) -> str:
    """Return what went wrong when a second process used the tokenizer, "" if nothing did."""
    chars = list(dict.fromkeys(PROBE_CHARS + "".join(c for c in patterns if c.isalnum())))
    chars = chars[:MAX_PROBE_CHARS]
    end = "!" + "".join(c for c in patterns if c.isalnum())[-MAX_PROBE_CHARS:]
    probes = [c * PROBE_LENGTH + last for c in chars for last in ("", end)]
    probes += [(a + b) * (PROBE_LENGTH // 2) + end for a in chars[:8] for b in chars[:8] if a < b]
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL_SCRIPT],
            input=json.dumps([text, probes]).encode(),
            capture_output=True,
            timeout=TRIAL_TIMEOUT_SECONDS,
            check=False,
            env={"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        return "it took too long"
    if done.returncode == 0 and done.stdout.strip() == b"done":
        return ""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode < 0 or not lines:
        return "it took too much time or memory"
    return f"it failed ({lines[-1][:200]})"
