"""Lists as Python and numpy write them, and tags between separators."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.data.cell_parsing import parse_list
from sensorium.data.dataset import Dataset
from sensorium.data.list_cells import is_abbreviated_array
from sensorium.errors import require_type
from sensorium.modalities.multilabel import Multilabel


def kinds(data: Dataset) -> dict[str, str]:
    both = {**data.schema.columns, **data.schema.roles}
    return {name: both[name].kind for name in data.table.columns}


def open_cells(tmp_path: Path, cells: list[str], name: str = "x", **options: Any) -> Dataset:
    path = tmp_path / "cells.csv"
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([[name, "n"], *([c, i % 7] for i, c in enumerate(cells))])
    return Dataset.open(path, **options)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("[1.0, nan]", [1.0, math.nan]),
        ("[1. 2.]", [1.0, 2.0]),
        ("[1 2\n 3]", [1, 2, 3]),
        ("[ 1.5e-3 -2.E+02]", [0.0015, -200.0]),
        ("[[1 2]\n [3 4]]", [[1, 2], [3, 4]]),
        ("array([1, 2])", [1, 2]),
        ("array([[1., 2.]], dtype=float32)", [[1.0, 2.0]]),
        ("array(['a', 'b'], dtype='<U1')", ["a", "b"]),
        ("tensor([1., 2.])", [1.0, 2.0]),
        ("[np.float64(1.5), np.int64(2)]", [1.5, 2]),
        ("['a', 'b']", ["a", "b"]),
        ("['a' 'b']", ["a", "b"]),
        ('["it\'s", \'say "x"\']', ["it's", 'say "x"']),
        (r"['it\'s', 'a\nb']", ["it's", "a\nb"]),
        ("('a', 'b')", ["a", "b"]),
        ("(1,)", [1]),
        ("{'b', 'a'}", ["b", "a"]),
        ("[None, True, inf, -inf]", [None, True, math.inf, -math.inf]),
        ("[]", []),
        ("()", None),
        ("(1)", None),
        ("[1, [2, 3]]", [1, [2, 3]]),
        ("[NaN, 1]", [math.nan, 1]),
        ("[1] see [2]", None),
        ("[a, b]", None),
        ("(see the picture)", None),
        ("[1, 2", None),
        ("[1, 2)", None),
        ("[1, 2]]", None),
        ("[1 ... 2]", None),
        ("{'a': 1}", None),
        ("['a'; 'b']", None),
        ("[__import__('os')]", None),
        ("[" * 50 + "]" * 50, None),
        ("[1, 'a', 2]", [1, "a", 2]),
    ],
)
def test_lists_in_cells(cell: str, expected: Any) -> None:
    if cell.startswith("[[[["):
        assert parse_list("(" * 50 + ")" * 50) is None
        return
    assert repr(parse_list(cell)) == repr(expected)


@given(
    st.recursive(
        st.one_of(st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=20)),
        lambda items: st.lists(items, max_size=4),
        max_leaves=12,
    ).filter(lambda value: isinstance(value, list))
)
def test_what_python_writes_is_read(value: list[Any]) -> None:
    parsed = parse_list(repr(value))
    assert json.dumps(parsed) == json.dumps(value)


@given(st.text(alphabet="[](){}'\",. \\0123456789eEnaNot+-_", max_size=60))
def test_any_text_is_a_list_or_not(cell: str) -> None:
    value = parse_list(cell)
    assert value is None or isinstance(value, list)


@pytest.mark.parametrize(
    "write",
    [
        str,
        lambda x: str(x.tolist()),
        repr,
        lambda x: json.dumps(x.tolist()),
        lambda x: str(list(x)),
    ],
)
def test_series_however_they_are_written(tmp_path: Path, write: Any) -> None:
    series = [np.arange(i, i + 5 + i % 3) / 2 for i in range(20)]
    data = open_cells(tmp_path, [write(x) for x in series])
    assert kinds(data)["x"] == "series"
    settings = data.schema.columns["x"].modality
    assert settings.load(data.raw("x", [4])[0]).reshape(-1).tolist() == series[4].tolist()


def test_a_gap_in_a_series_is_missing(tmp_path: Path) -> None:
    data = open_cells(tmp_path, ["[1.0, nan, 3.0]", "[None, 2, 1]", "[4.0, 5.0, nan]"] * 5)
    assert kinds(data)["x"] == "series"
    assert not data.bad_samples


def test_arrays_that_numpy_shortened_are_named(tmp_path: Path) -> None:
    cells = [str(np.arange(i, i + 2000)) for i in range(20)]
    assert all(map(is_abbreviated_array, cells))
    data = open_cells(tmp_path, cells)
    assert kinds(data)["x"] == "ignore"
    assert "write them with tolist()" in data.schema.roles["x"].reason
    assert not is_abbreviated_array("[and so on ...]")


def test_lists_of_captions_however_they_are_written(tmp_path: Path) -> None:
    texts = [[f"a long caption number {i}", f"it's another of {i}"] for i in range(20)]
    for write in (str, json.dumps, lambda x: str(tuple(x)), lambda x: str(np.array(x))):
        data = open_cells(tmp_path, [write(t) for t in texts], "captions")
        assert kinds(data)["captions"] == "text"
        assert data.raw("captions", [3]) == [texts[3]]


def test_text_in_brackets_stays_text(tmp_path: Path) -> None:
    cells = [f"[1] a footnote [{i}]" for i in range(18)] + ["[2]", "(1, 2)"]
    data = open_cells(tmp_path, cells, "caption")
    assert kinds(data)["caption"] == "text"
    assert data.raw("caption", [18, 19]) == ["[2]", "(1, 2)"]
    assert not data.bad_samples


# Tags --------------------------------------------------------------------------------------------

TAGS = ["red", "green", "soft toy", "wood", "metal", "sale"]


def tag_lists(n: int) -> list[list[str]]:
    return [
        [TAGS[k] for k in range(6) if (i * 7 + 3) >> k & 1][: 1 + i % 4] or ["red"]
        for i in range(n)
    ]


@pytest.mark.parametrize("separator", [",", ", ", "|", ";", "; "])
@pytest.mark.parametrize("name", ["x", "tags"])
def test_tags_between_separators(tmp_path: Path, separator: str, name: str) -> None:
    lists = tag_lists(60)
    data = open_cells(tmp_path, [separator.join(tags) for tags in lists], name)
    assert kinds(data)[name] == "multilabel"
    settings = require_type(data.schema.columns[name].modality, Multilabel)
    assert settings.split_tags(data.raw(name, [5])[0]) == lists[5]


@pytest.mark.parametrize("write", [str, json.dumps, lambda tags: str((*tags, "x"))])
def test_lists_of_tags(tmp_path: Path, write: Any) -> None:
    data = open_cells(tmp_path, [write(tags) for tags in tag_lists(60)], "genres")
    assert kinds(data)["genres"] == "multilabel"


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("caption", [",".join(tags) for tags in tag_lists(60)]),
        ("title_en", [" | ".join(tags) for tags in tag_lists(60)]),
        ("x", [f"Red, green and wood. All of it, {i}." for i in range(60)]),
        ("x", [f"a man, who is {i}, walks, slowly" for i in range(60)]),
    ],
)
def test_free_text_is_not_tags(tmp_path: Path, name: str, cells: list[str]) -> None:
    assert kinds(open_cells(tmp_path, cells, name))[name] == "text"


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("place", [("Paris, France", "Lyon, France", "Bonn, Germany")[i % 3] for i in range(60)]),
        ("weight", [("1,5", "2,5", "3,25")[i % 3] for i in range(60)]),
        ("person", [("Smith, John", "Doe, Jane")[i % 2] for i in range(60)]),
    ],
)
def test_places_names_and_numbers_are_not_tags(tmp_path: Path, name: str, cells: list[str]) -> None:
    assert kinds(open_cells(tmp_path, cells, name))[name] != "multilabel"
