"""Sidecar files: texts and fields beside images or in a second folder, matched by name.

a.jpg + a.txt, a.caption, a.json, a.jpg.txt     beside the image
images/a.jpg + texts/a.txt                      in a second folder
a.jpg + a.de.txt + a.en.txt                     languages: columns caption_de, caption_en
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sensorium.data.file_names import normalize_name
from sensorium.data.tables import open_text, parse_json

SIDECAR_ENDINGS = (".txt", ".caption", ".captions", ".cap", ".json")
_FOLDERS_BY_ROLE = frozenset(  # which hold one kind of file of each sample
    {
        "annotation",
        "annotations",
        "anns",
        "audio",
        "audios",
        "caption",
        "captions",
        "image",
        "images",
        "img",
        "imgs",
        "jpegimages",
        "jpegs",
        "jpg",
        "json",
        "label",
        "labels",
        "meta",
        "metadata",
        "photos",
        "pictures",
        "pics",
        "png",
        "prompts",
        "sounds",
        "text",
        "texts",
        "transcripts",
        "txt",
        "wav",
        "wavs",
    }
)
_IMAGE_FOLDERS = frozenset(
    {"image", "images", "img", "imgs", "input", "inputs", "jpegimages", "photos", "pictures"}
)
_PARALLEL_FOLDERS = frozenset(  # of images that belong to others, such as masks
    {
        "annotations",
        "depth",
        "edges",
        "gt",
        "labels",
        "mask",
        "masks",
        "segmentation",
        "segmentationclass",
        "segmentations",
        "target",
        "targets",
    }
)
_CAPTION_KEYS = ("caption", "captions", "text")
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
_LANGUAGE_ENDING = re.compile(r"(?P<base>.+)[_-](?P<tag>[a-z]{2}([-_][A-Za-z]{2})?)")
_TAG = re.compile(r"[A-Za-z][\w-]{0,15}")  # the language in a.de.txt
_BOX = re.compile(r"\d+(\s+-?\d*\.?\d+(e-?\d+)?){4,}", re.IGNORECASE)  # as YOLO writes one


class Sidecar(NamedTuple):
    """A sidecar file.

    Attributes:
        file: its path below the folder.
        tag: what stands between the image's name and the ending, such as a language; "" if nothing.
    """

    file: str
    tag: str


def is_role_folder(name: str) -> bool:
    """Return whether a folder of this name holds one kind of file, not a class."""
    return name.lower() in _FOLDERS_BY_ROLE | _IMAGE_FOLDERS | _PARALLEL_FOLDERS


def separate_parallel_images(images: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the images, and those in parallel folders, such as masks/, by folder.

    Only where another folder is called images/ or the like; else every folder is a class.
    """
    parallel: dict[str, list[str]] = {}
    others: list[str] = []
    has_image_folder = False
    for image in images:
        folders = image.split("/")[:-1]
        has_image_folder |= any(folder.lower() in _IMAGE_FOLDERS for folder in folders)
        name = next((f for f in folders if f.lower() in _PARALLEL_FOLDERS), "")
        if name:
            parallel.setdefault(name, []).append(image)
        else:
            others.append(image)
    return (others, parallel) if has_image_folder and others else (list(images), {})


def match_sidecars(
    files: Iterable[str], images: Sequence[str], endings: Sequence[str] = SIDECAR_ENDINGS
) -> tuple[dict[str, list[Sidecar]], list[str]]:
    """Return the sidecars of each image, and the files that no image matches.

    A file belongs to the image of its name in its folder, else in the folder that is parallel to
    it (images/x/a.jpg and texts/x/a.txt), else to the only image of its name if its folder holds
    none. Unicode form and letter case may differ where that is unambiguous.

    Args:
        files: paths with '/' below the folder.
        images: those of the images.
        endings: of sidecar files.
    """
    lookups = _Lookups(images)
    matched: dict[str, list[Sidecar]] = {}
    unmatched: list[str] = []
    for file in files:
        ending = next((e for e in endings if file.lower().endswith(e)), "")
        if not ending:
            continue
        found, tag = lookups.find(file[: -len(ending)])
        for image in found:
            matched.setdefault(image, []).append(Sidecar(file, tag))
        if not found:
            unmatched.append(file)
    return matched, unmatched


class _Lookups:
    """Images by name, from the strictest to the loosest sense."""

    def __init__(self, images: Sequence[str]):
        self.folders = {image.rpartition("/")[0] for image in images}
        self.exact: dict[str, list[str]] = {}
        self.parallel: dict[str, list[str]] = {}
        self.by_name: dict[str, list[str]] = {}
        for image in images:
            stem = _strip_ending(image)
            for key in (image, stem):
                self.exact.setdefault(key, []).append(image)
                self.parallel.setdefault(_parallel_key(key), []).append(image)
                name = normalize_name(PurePosixPath(key).name)
                self.by_name.setdefault(name, []).append(image)

    def find(self, base: str) -> tuple[list[str], str]:
        """Return the images that a file without its ending belongs to, and its tag."""
        name = normalize_name(PurePosixPath(base).name)
        steps = [(self.exact, base, False), (self.parallel, _parallel_key(base), True)]
        if base.rpartition("/")[0] not in self.folders:
            steps.append((self.by_name, name, True))
        for lookup, key, is_loose in steps:
            found = _unambiguous(lookup.get(key, []), is_loose)
            if found:
                return found, _language_folder(base) if lookup is self.by_name else ""
            shorter, tag = _split_tag(key)
            found = _unambiguous(lookup.get(shorter, []), is_loose) if tag else []
            if found:
                return found, base[-len(tag) :]
        return [], ""


def _split_tag(name: str) -> tuple[str, str]:
    """Return a name without its tag, and the tag: a.de, a_de and a-de have the tag de."""
    shorter, dot, tag = name.rpartition(".")
    if dot and _TAG.fullmatch(tag):
        return shorter, tag
    match = _LANGUAGE_ENDING.fullmatch(name)
    return (match["base"], match["tag"]) if match else (name, "")


def _language_folder(path: str) -> str:
    """Return the innermost folder of a path if it is named like a language, else ""."""
    name = path.rpartition("/")[0].rpartition("/")[2]
    return name if _LANGUAGE.fullmatch(name) and not is_role_folder(name) else ""


def _unambiguous(images: list[str], is_loose: bool) -> list[str]:
    """Return the images; none if loosely matched ones differ in more than their ending."""
    if is_loose and len({_strip_ending(image) for image in images}) > 1:
        return []
    return images


def _parallel_key(path: str) -> str:
    """Return a path without the folders that name a kind of file."""
    *folders, name = path.split("/")
    return normalize_name("/".join([*(f for f in folders if not is_role_folder(f)), name]))


def _strip_ending(file: str) -> str:
    return file[: file.rindex(".")]


def read_sidecar(path: Path, encoding: str) -> dict[str, Any] | None:
    """Return the fields of a sidecar file, captions as `caption`; None for bounding boxes.

    Raises:
        ValueError: if it is invalid.
        OSError: if it cannot be read.
    """
    with open_text(path, encoding) as f:
        return parse_sidecar(f.read(), is_json=path.suffix.lower() == ".json")


def parse_sidecar(text: str, *, is_json: bool) -> dict[str, Any] | None:
    """Return the fields in the text of a sidecar file, as `read_sidecar`."""
    if not is_json:
        lines = [line for line in text.splitlines() if line.strip()]
        if lines and all(_BOX.fullmatch(line.strip()) for line in lines):
            return None
        return {"caption": parse_captions(lines)}
    value = parse_json(text)
    if isinstance(value, ValueError):
        raise value
    if not isinstance(value, dict):
        return {"caption": parse_captions(value)}
    key = next((k for k in _CAPTION_KEYS if k in value), None)
    if key is None:
        return value
    others = {k: v for k, v in value.items() if k != key}
    texts = value[key]
    if isinstance(texts, dict) and texts and all(_TAG.fullmatch(name) for name in texts):
        return {**{f"caption_{n}": parse_captions(t) for n, t in texts.items()}, **others}
    return {"caption": parse_captions(value[key]), **others}


def parse_captions(value: Any) -> list[str] | None:
    """Return the captions that are not empty, each once; None if there is none.

    Raises:
        ValueError: if the value is neither text nor a list of texts.
    """
    if value is None:
        return None
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"expected captions, not {str(value)[:60]!r}")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip())) or None


def merge_records(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two sidecars of one image (img2dataset writes both): all fields, each caption once."""
    merged = {**a, **b}
    for name in merged:
        if name == "caption" or name.startswith("caption_"):
            values = [*_as_list(a.get(name)), *_as_list(b.get(name))]
            merged[name] = list(dict.fromkeys(values)) or None
    return merged


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def tag_captions(record: dict[str, Any], tag: str) -> dict[str, Any]:
    """Return a record with its tag, such as a language, in the names of its columns."""
    return {f"{name}_{tag}": value for name, value in record.items()} if tag else record
