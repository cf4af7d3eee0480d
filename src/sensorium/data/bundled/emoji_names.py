"""Emoji concepts with names and keywords in many languages, and the icon of each concept.

A concept belongs to a family of drawings so similar ("man running", "woman running", the 24 clock
faces) that a split between them would leak. Whole families are assigned to train, val or test by a
hash: the split needs no list and never changes.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sensorium.data.bundled.emoji_packages import PackageContents
from sensorium.errors import SensoriumError

CATEGORIES = (
    "smileys & emotion",
    "people & body",
    "components",
    "animals & nature",
    "food & drink",
    "travel & places",
    "activities",
    "objects",
    "symbols",
    "flags",
)
_COMPONENTS_INDEX, _FLAGS_INDEX = CATEGORIES.index("components"), CATEGORIES.index("flags")

# The first pattern that matches the lower-case English name gives the family.
_FAMILY_PATTERNS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("clock-face", r"o[\u2019']clock|-thirty$"),
        ("moon", r"\bmoon( face)?$"),
        ("keycap", r"^keycap|^input numbers$"),
        ("japanese-button", r"^(?=.*button).*([^\x00-\x7f]|japanese|squared)"),
        (
            "couples-families",
            r"^(kiss(: |$)|couple with heart|family|people holding hands"
            r"|(woman and man|men|women) holding)",
        ),
        ("arrow", r"\barrow$|^(right|left) arrow|arrows button$"),
        ("heart", r"^(?!.*(face|eyes|hands|person)).*\bhearts?\b"),
        ("plain-shape", r"\b(circle|square|diamond)\b"),
    )
)
_GENDER_PATTERN = re.compile(
    r"\b(man|woman|person|people|men|women|boy|girl|male|female|mrs|mr|mx)\b\.?"
)
_DIRECTION_PATTERN = re.compile(r"\b(facing )?(right|left)(wards)?\b")


@dataclass
class Concept:
    """One emoji.

    Attributes:
        code: its code points, such as "1f600".
        emoji: the character.
        category: one of `CATEGORIES`.
        family: see `concept_family`.
        label: language -> name.
        keywords: language -> keywords.
        styles: styles that draw it.
    """

    code: str
    emoji: str
    category: str
    family: str
    label: dict[str, str] = field(default_factory=dict)
    keywords: dict[str, list[str]] = field(default_factory=dict)
    styles: list[str] = field(default_factory=list)


def concept_family(label: str) -> str:
    """Return the family of the concept with this English name."""
    text = label.lower()
    if text.startswith("flag: "):
        return slugify(text)
    for name, pattern in _FAMILY_PATTERNS:
        if pattern.search(text):
            return name
    if "facing" in text:
        text = text.split(",")[0]
    return slugify(_GENDER_PATTERN.sub("", _DIRECTION_PATTERN.sub("", text))) or slugify(label)


def concept_split(family_name: str) -> str:
    """Return train, val or test (80/10/10), by a hash of the family."""
    digest = hashlib.md5(f"concept{family_name}".encode(), usedforsecurity=False).hexdigest()
    position = int(digest[:8], 16) / 0xFFFFFFFF
    if position < 0.8:
        return "train"
    return "val" if position < 0.9 else "test"


def slugify(text: str) -> str:
    """Return a name as icon sets spell it: 'Piñata & co' -> 'pinata-and-co'."""
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text.replace("&", " and ").replace("'", "")).strip("-")


def read_concepts(
    names_package: PackageContents, languages: Sequence[str], include_flags: bool
) -> list[Concept]:
    """Return all emoji but components such as skin tones, in the order of Unicode's charts.

    Args:
        names_package: the package of names.
        languages: languages to read.
        include_flags: include flags.

    Raises:
        SensoriumError: if the package is malformed.
    """
    concepts: dict[str, Concept] = {}
    for entry in _iter_entries(names_package, "en"):
        group = entry.get("group", -1)
        if (
            group in range(len(CATEGORIES))
            and group != _COMPONENTS_INDEX
            and (include_flags or group != _FLAGS_INDEX)
        ):
            code = normalize_code_points(entry["hexcode"])
            concepts[code] = Concept(
                code, str(entry.get("emoji")), CATEGORIES[group], concept_family(entry["label"])
            )
    for language in languages:
        for entry in _iter_entries(names_package, language):
            concept = concepts.get(normalize_code_points(entry["hexcode"]))
            if concept:
                concept.label[language] = entry["label"].strip()
                concept.keywords[language] = [str(tag).strip() for tag in entry.get("tags") or []]
    _check_concepts(names_package, list(concepts.values()))
    return list(concepts.values())


def normalize_code_points(text: str) -> str:
    """Return code points in lower case without variation selectors: '2764-FE0F' -> '2764'."""
    return "-".join(part for part in text.lower().split("-") if part not in ("fe0f", ""))


def _iter_entries(names_package: PackageContents, language: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of one language."""
    entries = names_package.load_json(f"{language}/data.json")
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(k), str) for k in ("hexcode", "label")
        ):
            raise SensoriumError(
                f"{names_package.path}: {language}/data.json is not a list of emoji with hexcode "
                f"and label. Fetch {names_package.package.name} {names_package.package.version}."
            )
        yield entry


def _check_concepts(names_package: PackageContents, concepts: list[Concept]) -> None:
    if not concepts:
        raise SensoriumError(
            f"{names_package.path}: en/data.json has no emoji of a known group. "
            f"Fetch {names_package.package.name} {names_package.package.version}."
        )
    labels = {concept.label.get("en") for concept in concepts}
    if len(labels) != len(concepts):
        raise SensoriumError(
            f"{names_package.path}: two emoji have the same English name. "
            f"Fetch {names_package.package.name} {names_package.package.version}."
        )


class ConceptMatcher:
    """Find the concept of an icon by its name.

    Newer packages have chars.json (code points -> name). Older ones only have names, some of them
    from older versions of Unicode or written together ("redapple"): English names and the names in
    chars.json of all packages are tried in turn.

    Args:
        concepts: all concepts.
        icon_packages: the packages of all styles.
    """

    def __init__(self, concepts: Sequence[Concept], icon_packages: Iterable[PackageContents]):
        self.codes = {concept.code for concept in concepts}
        self.code_by_name: dict[str, str] = {}
        for concept in concepts:
            self.code_by_name.setdefault(slugify(concept.label["en"]), concept.code)
        for icons in icon_packages:
            for code, name in self._read_code_point_names(icons).items():
                self.code_by_name.setdefault(name, code)
        self.code_by_letters: dict[str, str] = {}
        for name, code in self.code_by_name.items():
            self.code_by_letters.setdefault(name.replace("-", ""), code)

    def match_icons(self, icon_package: PackageContents, names: Iterable[str]) -> Mapping[str, str]:
        """Return code of a concept -> its icon; exact names take precedence over guessed ones."""
        icons = self._read_code_point_names(icon_package)
        for name in sorted(names, key=lambda n: (n not in self.code_by_name, n)):
            code = self.find_code(name)
            if code:
                icons.setdefault(code, name)
        return icons

    def find_code(self, name: str) -> str | None:
        """Return the code of the concept that an icon of this name shows, or None."""
        code = self.code_by_name.get(name) or self.code_by_letters.get(name.replace("-", ""))
        if code:
            return code
        # "lion-face" was renamed to "lion"; "cloud-1" is the first of several drawings of a cloud.
        for pattern in (r"-face$", r"-\d$", r"^face-"):
            shorter = re.sub(pattern, "", name)
            if shorter != name and shorter in self.code_by_name:
                return self.code_by_name[shorter]
        return None

    def _read_code_point_names(self, icon_package: PackageContents) -> dict[str, str]:
        """Code of a concept -> name of its icon, as chars.json says."""
        if "chars.json" not in icon_package.members:
            return {}
        charts = icon_package.load_json("chars.json")
        if not isinstance(charts, dict) or not all(
            isinstance(name, str) for name in charts.values()
        ):
            raise SensoriumError(
                f"{icon_package.path}: chars.json is not a map of code points to names. "
                f"Fetch {icon_package.package.name} again."
            )
        return {
            normalize_code_points(code): name
            for code, name in charts.items()
            if normalize_code_points(code) in self.codes
        }
