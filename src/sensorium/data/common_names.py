"""Names that columns of a type commonly have, in lower case."""

import re

COMMON_NAMES = {  # of columns of a type
    "split": {"split", "subset", "fold"},
    "group": {
        "group",
        "group_id",
        "concept",
        "concept_id",
        "product_id",
        "item_id",
        "sku",
        "patient_id",
        "subject_id",
    },
    "image": {
        "image",
        "picture",
        "photo",
        "img",
        "url",
        "filepath",
        "file_name",
        "image_path",
        "image_url",
    },
    "text": {
        "caption",
        "captions",
        "text",
        "title",
        "description",
        "sentence",
        "keywords",
        "prompt",
    },
    "category": {"label", "class", "category", "target"},
    "key": {
        "id",
        "index",
        "key",
        "uid",
        "uuid",
        "guid",
        "hash",
        "md5",
        "sha256",
        "row",
        "rowid",
        "rownum",
        "row number",
        "row_number",
        "rowname",
        "rownames",
        "row.names",
        "row_names",
        "record",
        "no",
        "no.",
        "nr",
        "nr.",
        "s.no",
        "sno",
        "sr no",
        "serial",
        "#",
        "level_0",
    },
}
# What a first column without a name is called: here, by pandas and by R's readr.
UNNAMED = re.compile(r"column 1|unnamed: 0(\.\d+)*|\.\.\.1")


def is_text_name(name: str) -> bool:
    """Return whether a column of this name holds text: caption, image_title, description_en."""
    words = re.split(r"[\W_]+", name)
    return any(word in COMMON_NAMES["text"] and word != "keywords" for word in words)


def is_key_name(name: str, suffix: str = "_id") -> bool:
    """Return whether a column of this name identifies the rows."""
    return name in COMMON_NAMES["key"] or name.endswith(suffix)
