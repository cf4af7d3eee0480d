"""Recognise columns whose cells hold several tags: by a separator, or as lists."""

import re
from collections.abc import Sequence

from sensorium.data.common_names import is_text_name

TAG_SEPARATORS = ("|", ";", ",")  # of the tags in one cell, the least doubtful first
MAX_TAG_CHARACTERS = 64
_TAG_NAMES = frozenset(
    {
        "tags",
        "tag",
        "labels",
        "genres",
        "genre",
        "categories",
        "keywords",
        "topics",
        "attributes",
        "ingredients",
        "classes",
        "features",
        "amenities",
        "skills",
        "hashtags",
        "colors",
        "colours",
        "materials",
        "languages",
        "themes",
        "subjects",
    }
)
_MAX_TAG_WORDS = 4  # of a tag among others parted by commas
_SENTENCE_MARKS = re.compile(r"[.!?:\"](\s|$)")
_IS_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)*")


def find_tag_separator(name: str, texts: Sequence[str]) -> tuple[str, int] | None:
    """Return what separates the tags in the cells of a column and how many different ones it has.

    A column with a name of texts holds none. Commas stand in sentences and names as well, so that
    they separate tags only where the tags are short and combine freely.

    Args:
        name: the column, in lower case.
        texts: its values.

    Returns:
        The separator and the number of tags, or None if the cells hold no sets of tags.
    """
    if is_text_name(name):
        return None
    for separator in TAG_SEPARATORS:
        tag_lists = [split_tags(text, separator) for text in texts]
        if separator == "," and not _combine_freely(name, tag_lists):
            continue
        num_tags = _count_tags(tag_lists)
        if num_tags:
            return separator, num_tags
    return None


def split_tags(text: str, separator: str) -> list[str]:
    """Return the tags in one cell."""
    return [tag for tag in map(str.strip, text.split(separator)) if tag]


def count_listed_tags(name: str, lists: Sequence[Sequence[str]]) -> int:
    """Return the number of different tags if lists of texts are sets of tags, else 0.

    Args:
        name: the column, in lower case.
        lists: its values.
    """
    if is_text_name(name):
        return 0
    is_named = bool(_words(name) & _TAG_NAMES)
    return _count_tags([list(tags) for tags in lists]) if is_named else 0


def _count_tags(tag_lists: Sequence[list[str]]) -> int:
    """Return the number of different tags if many cells hold several and most tags repeat."""
    distinct = {tag for tags in tag_lists for tag in tags}
    num_several = sum(len(tags) > 1 for tags in tag_lists)
    if not distinct or num_several * 10 < len(tag_lists):
        return 0
    if len(distinct) * 5 > sum(map(len, tag_lists)):
        return 0
    return len(distinct) if max(map(len, distinct)) <= MAX_TAG_CHARACTERS else 0


def _combine_freely(name: str, tag_lists: Sequence[list[str]]) -> bool:
    """Return whether words between commas are tags, not sentences, places or numbers.

    Their number differs from cell to cell, and they occur in many combinations; "Paris, France"
    always has two.
    """
    distinct = {tag for tags in tag_lists for tag in tags}
    if any(len(tag.split()) > _MAX_TAG_WORDS or _SENTENCE_MARKS.search(tag) for tag in distinct):
        return False
    if _words(name) & _TAG_NAMES:
        return True
    if all(map(_IS_NUMBER.fullmatch, distinct)):
        return False
    num_several = sum(len(tags) > 1 for tags in tag_lists)
    sizes = {len(tags) for tags in tag_lists}
    combinations = {tuple(sorted(tags)) for tags in tag_lists}
    return (
        num_several * 3 >= len(tag_lists) and len(sizes) > 1 and len(combinations) > len(distinct)
    )


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name))
