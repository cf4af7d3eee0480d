"""Tests of pages of search results and of what objects show in a notebook."""

# pyright: reportPrivateUsage=false

import io
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from fixtures.html_pages import Page, assert_self_contained
from PIL import Image
from test_pretrained_cli import clip_folder  # noqa: F401 - a fixture

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.evaluation.report import EvaluationReport, ReportTable
from sensorium.recipes.fusion import fusion
from sensorium.search.index import Index
from sensorium.search.render import SCORE_LEGEND, render_html, save_results
from sensorium.search.results import Hit, RowInfo, SearchResult
from sensorium.training.checkpoint import Model

HOSTILE = "<img src=x onerror=alert(1)> & \"quoted\" 'single' قطة"


def make_png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


def make_result(*infos: RowInfo, query: str = "a query") -> SearchResult:
    hits = [Hit(i, 0.9 - 0.4 * i, info) for i, info in enumerate(infos)]
    return SearchResult(query, hits, [make_png()] * len(hits), make_png())


# Pages of results


def test_page_of_results(tmp_path: Path) -> None:
    result = make_result(
        RowInfo("photos/a.jpg", "image", ["a cat"]), RowInfo("t.csv:17", "image", []), query="cat"
    )
    save_results([result, SearchResult("none", [])], tmp_path / "results.html")
    source = (tmp_path / "results.html").read_text(encoding="utf-8")
    assert_self_contained(source)
    page = Page(source)
    assert page.structure() == (
        "html head meta title meta*2 style body main h1 p "
        "section h2 img ol li img div p*2 li img div p*2 section h2 ol li"
    )
    assert "cat, none - Sensorium search" in page.text
    assert SCORE_LEGEND in page.text
    assert "0.900" in page.text
    assert [image["alt"] for image in page.images] == ["query image", "a cat", ""]
    assert "no results" in page.text
    assert "prefers-color-scheme:dark" in source
    assert "repeat(2,minmax(0,1fr))" in source, "two columns on a phone"


def test_page_says_what_matched() -> None:
    info = RowInfo("a", "image", ["cat"])
    hits = [Hit(0, 1.0, info, "both"), Hit(1, 0.5, info, "words"), Hit(2, 0.4, info, "vectors")]
    text = Page(render_html([SearchResult("cat", hits, [b""] * 3)])).text
    found = [t for t in text if t in ("words", "vectors", "words + vectors")]
    assert found == ["words + vectors", "words", "vectors"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    info = RowInfo(HOSTILE, "image", [HOSTILE, "<b>bold</b>"], path=str(tmp_path / "x.png"))
    source = render_html([make_result(info, query=HOSTILE)], tmp_path)
    assert_self_contained(source)
    page = Page(source)
    assert page.text.count(HOSTILE) == 2, "query and name"
    assert f"{HOSTILE}; <b>bold</b>" in page.text
    before, *_ = source.partition("<main>")[2].partition("قطة")
    assert before.count("<bdi>") == before.count("</bdi>") + 1, "its direction stays inside"


@pytest.mark.parametrize("name", ["a.png", "a b#é%41.png", "javascript:alert(1).png", "猫.png"])
def test_results_link_to_their_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "pages").mkdir()
    path = tmp_path / "photos" / name
    path.write_bytes(b"x")
    result = make_result(RowInfo(name, "image", ["cat"], path=str(path)))
    save_results([result], tmp_path / "pages" / "results.html")
    page = Page((tmp_path / "pages" / "results.html").read_text(encoding="utf-8"))
    assert len(page.links) == 2, "the image and its name"
    for link in page.links:
        assert ":" not in link
        assert (tmp_path / "pages" / unquote(link)).samefile(path)


def test_missing_files_are_not_linked(tmp_path: Path) -> None:
    infos = [
        RowInfo("gone", "image", [], path=str(tmp_path / "gone.png")),
        RowInfo("t.csv:3", "image", []),
        RowInfo("bad", "image", [], path="a\0b"),
    ]
    assert Page(render_html([make_result(*infos)], tmp_path)).links == []
    (tmp_path / "gone.png").write_bytes(b"x")
    assert Page(render_html([make_result(*infos)])).links == [], "no page, no links"


class ConstantModel:
    """A model that embeds every value alike."""

    fingerprint = "f" * 64

    def __getattr__(self, name: str) -> Callable[..., np.ndarray]:
        if name != "embed":
            raise AttributeError(name)
        return lambda **columns: np.ones((len(next(iter(columns.values()))), 2), np.float32)


def test_files_are_stored_with_the_rows_of_an_index(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    with Index.build(ConstantModel(), Dataset.open(folder), tmp_path / "index") as index:
        result = index.search(vector=np.ones(2, np.float32), k=3)
    assert sorted(hit.info.path for hit in result) == [str(folder / f"{i}.png") for i in range(3)]


def test_rows_of_earlier_indexes_have_no_file() -> None:
    packed = b'{"name": "a", "kind": "image", "captions": ["x"]}\npng'
    assert RowInfo.unpack(packed) == (RowInfo("a", "image", ["x"]), b"png")


# Notebooks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "things.csv"
    rows = [f"{i % 7}.5,k{i % 3},<b>red</b> thing {i},{i % 11}.25" for i in range(60)]
    path.write_text("size,kind,title,price\n" + "\n".join(rows))
    return Dataset.open(path, types={"title": "text"})


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Model:
    out = tmp_path_factory.mktemp("run") / "run"
    return sn.train(fusion, data, target="price", epochs=1, dim=8, out=out, quiet=True)


def check_notebook(source: str, structure: str) -> Page:
    """Check that HTML for a notebook is safe, small and in the colors of the notebook."""
    assert_self_contained(source)
    page = Page(source)
    assert page.structure() == structure
    assert len(source) < 20_000
    assert not {"html", "body", "style"} & set(page.names)
    for _, attributes in page.tags:
        assert "color" not in attributes.get("style", "")
        assert "background" not in attributes.get("style", "")
    return page


def test_dataset_in_a_notebook(data: Dataset) -> None:
    structure = "div*2 strong table thead tr th*3 tbody" + " tr td*3" * 4
    page = check_notebook(data._repr_html_(), structure)
    assert "things.csv: 60 rows, 0 bad" in page.text
    assert any("<b>red</b> thing 0" in text for text in page.text)
    assert repr(data).startswith("Dataset('things.csv', 60 rows: ")


def test_wide_dataset_in_a_notebook(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = [f"c{i}" for i in range(60)]
    path.write_text(",".join(names) + "\n" + "\n".join(",".join(["1.5"] * 60) for _ in range(9)))
    page = Page(Dataset.open(path)._repr_html_())
    assert "20 more columns" in page.text


def test_summary_in_a_notebook(data: Dataset) -> None:
    summary = data.describe()
    page = check_notebook(
        summary._repr_html_(), "div*2 strong div table thead tr th*5 tbody" + " tr td*5" * 4
    )
    assert {"size", "kind", "title", "price"} <= set(page.text)
    assert any(text.startswith("train ") for text in page.text)
    assert repr(summary) == "DatasetSummary('things.csv', 60 rows, 4 columns, 0 bad)"


def test_model_in_a_notebook(run: Model) -> None:
    page = check_notebook(
        run._repr_html_(), "div*2 strong div*2 table thead tr th*2 tbody" + " tr td*2" * 4
    )
    assert "predict" in page.text
    assert {"size", "numeric", "title", "text"} <= set(page.text)
    assert repr(run).startswith("Model(fusion from ")


def test_pretrained_model_in_a_notebook(clip_folder: Path) -> None:  # noqa: F811
    model = sn.load(clip_folder)
    page = check_notebook(model._repr_html_(), "div*2 strong div*3")
    assert "image, text" in page.text
    assert repr(model).startswith("PretrainedModel(")


def test_results_in_a_notebook() -> None:
    infos = [RowInfo(f"{i}.png", "image", [HOSTILE * 9]) for i in range(25)]
    page = check_notebook_images(make_result(*infos, query=HOSTILE))
    assert "5 more hits" in page.text
    assert f"Search: {HOSTILE}" in page.text
    result = make_result(infos[0])
    assert repr(result) == "SearchResult('a query', 1 hits, best '0.png')"
    assert "no results" in Page(SearchResult("x", [])._repr_html_()).text


def check_notebook_images(result: SearchResult) -> Page:
    source = result._repr_html_()
    assert_self_contained(source)
    page = Page(source)
    assert len(page.images) == 20
    assert max(map(len, page.text)) <= 160
    return page


def test_report_in_a_notebook() -> None:
    report = EvaluationReport(
        {"val": {"R2 <i>": 0.5, "MAE": 12}, "test": {"MAE": 13.5}},
        task="prediction",
        notes=["a | note <b>"],
        tables=[ReportTable("columns", [{"column": "x", "lost": 0.25}], "why")],
    )
    page = check_notebook(
        report._repr_html_(), "div*2 strong table thead tr th*3 tbody tr td*3 tr td*3 div"
    )
    assert {"R2 <i>", "0.500", "13.500", "a | note <b>"} <= set(page.text)
    assert repr(report) == "EvaluationReport(prediction, 2 metrics of val, test)"
    assert report.to_dict()["tables"] == [
        {"title": "columns", "rows": [{"column": "x", "lost": 0.25}], "note": "why"}
    ]
