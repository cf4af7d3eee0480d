"""Tests of building and searching an index, and of rendering results."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.modalities.image_decode import decode_image
from sensorium.search.header import IndexHeader
from sensorium.search.index import Index
from sensorium.search.render import render_html, save_results
from sensorium.search.results import Hit, RowInfo, SearchResult
from sensorium.search.store import Store

DIM = 16


class FakeModel(VerbModel):
    """Embeds a text as a direction, and a uniformly colored image as another."""

    fingerprint = "f" * 64

    def __init__(self) -> None:
        super().__init__("fake model", {"embed": self._embed})

    def _embed(self, **inputs: Sequence[Any]) -> np.ndarray:
        ((kind, values),) = inputs.items()
        vectors = np.stack([embed_text(v) if kind == "text" else embed_image(v) for v in values])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embed_text(text: str) -> np.ndarray:
    return np.bincount(np.frombuffer(text.encode(), np.uint8) % DIM, minlength=DIM)


def embed_image(image: Any) -> np.ndarray:
    try:
        return np.resize(decode_image(image, 8)[0, 0] + 1.0, DIM)
    except ValueError as e:
        raise SensoriumError(f"{image} cannot be read: {e}.") from e


COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (128, 128, 128)}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, color in COLORS.items():
        PIL.Image.new("RGB", (40, 24), color).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name} <b>thing</b>")
    return Dataset.open(folder)


def test_index_build_search_delete_and_compact(tmp_path: Path, data: Dataset) -> None:
    model = FakeModel()
    with Index.build(model, data, tmp_path / "i") as index:
        assert len(index) == 4
        red, green = (tmp_path / "data" / f"{name}.png" for name in ("red", "green"))
        result = index.search(image=red, k=9)
        assert len(result) == 4
        assert "red" in result[0].info.name
        assert result[0].score == pytest.approx(1, abs=1e-6)
        assert result[0].info.captions == ["red <b>thing</b>"]
        both = index.search(image=[red, green], k=1)
        assert "red" in both[0][0].info.name
        assert "green" in both[1][0].info.name
        vectors = model.embed(image=[red, green])
        combined = vectors[0] * 3 + vectors[1]
        weighted = index.search(image=red, vector=vectors[1], k=4, weights={"image": 3})
        assert [h.id for h in weighted] == [h.id for h in index.search(vector=combined, k=4)]
        assert index.search(text="red", image=red, k=2)[0].score <= 1
        assert json.loads(json.dumps(asdict(result)))["query"] == str(red)
        index.delete([result[0].id])
        assert "red" not in index.search(image=red, k=1)[0].info.name
        new = index.add(image=[red])
        assert index.search(image=red, k=1)[0].id == new[0]
        index.compact()
        assert index.search(image=red, k=1)[0].id == new[0]
        assert len(index) == 4
    again = Index.open(tmp_path / "i", model=model)
    assert len(again.search(text=["red", "green"], k=2)) == 2


def test_index_of_texts(tmp_path: Path, data: Dataset) -> None:
    column = data.schema.resolve_column("text")
    with Index.build(FakeModel(), data, tmp_path / "i", column=column) as index:
        assert index.search(text="green <b>thing</b>", k=1)[0].info.captions == [
            "green <b>thing</b>"
        ]
    temporary = Index.build(FakeModel(), data)
    assert len(temporary) == 4


def test_invalid_queries_and_indexes_are_refused(tmp_path: Path, data: Dataset) -> None:
    index = Index.build(FakeModel(), data, tmp_path / "i")
    nan = np.full(DIM, np.nan, np.float32)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"vector": np.ones(3)}, "vectors of 16 numbers"),
        ({"vector": nan}, "no direction"),
        ({}, "There is no query"),
        ({"text": ["a", "b"], "image": ["c"]}, "2 text, 1 image"),
        ({"text": "a", "k": 0}, "-k must be at least 1"),
        ({"text": "a", "weights": {"image": 1}}, "weights"),
        ({"image": __file__}, "test_index.py"),
        ({"vector": np.zeros(DIM)}, "no direction"),
    ]
    for query, message in cases:
        with pytest.raises(SensoriumError, match=message):
            index.search(**query)
    with pytest.raises(SensoriumError, match="no direction"):
        index.add(vector=[nan])
    other = FakeModel()
    other.fingerprint = "e" * 64
    with pytest.raises(SensoriumError, match="another model"):
        Index.open(tmp_path / "i", model=other)
    with pytest.raises(SensoriumError, match=r"model=sn.load"):
        Index.open(tmp_path / "i").search(text="a")
    with pytest.raises(SensoriumError, match="not one of exact, faiss"):
        Index.open(tmp_path / "i", engine="fast")
    with pytest.raises(SensoriumError, match="no split 'dev'"):
        Index.build(FakeModel(), data, tmp_path / "j", split="dev")
    with pytest.raises(SensoriumError, match="something other than an index"):
        Index.build(FakeModel(), data, tmp_path / "data")


def test_rows_that_cannot_be_used_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        PIL.Image.new("RGB", (40, 24), (5 * i, 0, 0)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i}")
    for i in (3, 17):  # cut in the middle
        content = (folder / f"{i:02}.png").read_bytes()
        (folder / f"{i:02}.png").write_bytes(content[: len(content) // 2])
    strict = Dataset.open(folder, max_invalid_fraction=0.0)
    with pytest.raises(SensoriumError, match=r"(?s)2 of 40 rows cannot be used, more.*03.png"):
        Index.build(FakeModel(), strict, tmp_path / "i")
    assert not (tmp_path / "i" / "index.json").exists()
    data = Dataset.open(folder, max_invalid_fraction=0.2)
    with Index.build(FakeModel(), data, tmp_path / "i", batch_size=7) as index:
        assert len(index) == 38
        assert sorted(Path(bad.location).name for bad in index.bad_samples) == ["03.png", "17.png"]
        assert index.search(text="picture 3")[0].info.captions != ["picture 3"]
        assert index.search(text="picture 4")[0].info.captions == ["picture 4"]


class PickyModel(FakeModel):
    """Refuses one text."""

    def _embed(self, **inputs: Sequence[Any]) -> np.ndarray:
        if any("7" in str(value) for values in inputs.values() for value in values):
            raise SensoriumError("text 7 is refused.")
        return super()._embed(**inputs)


def test_a_value_that_cannot_be_embedded_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["title", *(f"the title {i}" for i in range(7, 17))]))
    data = Dataset.open(tmp_path / "t.csv", max_invalid_fraction=0.1)
    with Index.build(PickyModel(), data, tmp_path / "i") as index:
        assert len(index) == 9
        assert "text 7 is refused" in str(index.bad_samples[0])
        assert index.search(text="the title 8")[0].info.captions == ["the title 8"]


def test_rebuild_replaces_the_index_at_once(tmp_path: Path, data: Dataset) -> None:
    old = Index.build(FakeModel(), data, tmp_path / "i")
    Index.build(FakeModel(), data.take([0, 1]), tmp_path / "i")
    assert (
        len(old.search(vector=np.ones(DIM), k=9)) == 4
    )  # it still reads the generation that it opened
    assert len(Index.open(tmp_path / "i")) == 2
    with pytest.raises(SensoriumError, match="rebuilt since"):
        old.delete([0])


def test_faiss_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    x = np.random.default_rng(0).standard_normal((3000, DIM), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    with Store.create(tmp_path / "i", IndexHeader(DIM, "")) as store:
        store.add(x, [RowInfo(str(i), "vector", []).pack(b"") for i in range(3000)])
        store.publish()
    with Index.open(tmp_path / "i", engine="faiss") as index:
        assert index.search(vector=x[5], k=3)[0].id == 5
        assert "recall@10" in capsys.readouterr().out
        index.delete([5])
        assert index.search(vector=x[5], k=1)[0].id != 5
        new = index.add(vector=[x[5]])
        assert index.search(vector=x[5], k=1)[0].id == new[0]


HOSTILE = '<script>alert(1)</script>" onerror="x" \' &'


def test_html_escapes_text_from_the_data(tmp_path: Path) -> None:
    out = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "red").save(out, "PNG")
    hits = [
        Hit(0, 0.5, RowInfo(HOSTILE, "image", [HOSTILE])),
        Hit(1, -0.5, RowInfo("b", "image", [])),
    ]
    result = SearchResult(HOSTILE, hits, [out.getvalue(), b""], out.getvalue())
    text = render_html([result])
    assert "<script" not in text
    assert HOSTILE not in text
    assert '" onerror' not in text
    assert text.count("data:image/png;base64,") == 2
    assert "&lt;script&gt;" in text
    for name in ("a.png", "a.html"):
        save_results([result, SearchResult("nothing", [])], tmp_path / name)
    with PIL.Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 500
    with pytest.raises(SensoriumError, match=r"\.png or \.html"):
        save_results([result], tmp_path / "a.pdf")
