"""Search 200,000 captions by words, and by words and vectors, compared with SQLite FTS5 and bm25s.

    python benchmarks/search_words.py [--rows 200000] [--dim 256] [--queries 200] [--rounds 5]

Captions of 4 to 20 words with Zipf's distribution over 50,000 words: the most frequent ones are in
most captions. Sensorium uses the index as shipped, opened from disk. The peers hold the same texts
in memory: an FTS5 table of the standard library's SQLite (words joined by OR, ordered by its bm25),
and bm25s, if it is installed. The same queries in alternating order, one at a time, one thread; top
10. Prints CPU milliseconds a query (median over rounds; less disturbed by load than wall time) by
kind of query and the ratio to Sensorium, the time and memory to open the index, and how many
results agree; appends lines to benchmarks/results/search_words.jsonl.
"""

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.search.header import IndexHeader
from sensorium.search.index import Index
from sensorium.search.results import RowInfo
from sensorium.search.store import Store
from sensorium.search.word_index import WordIndex

K = 10
VOCABULARY = 50_000
FINGERPRINT = "b" * 64
RESULTS = Path(__file__).parent / "results" / "search_words.jsonl"


class RandomModel:
    """A model whose vectors mean nothing; only their time counts."""

    fingerprint = FINGERPRINT

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def embed(self, text: list[str]) -> np.ndarray:
        """Return random unit vectors."""
        x = np.random.default_rng(len(text[0])).standard_normal((len(text), self.dim))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def resident() -> float:
    """Return the memory the process holds now, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e3
    return float("nan")


def make_captions(rows: int) -> list[str]:
    """Return random captions."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, VOCABULARY + 1)
    words = rng.choice(VOCABULARY, rows * 20, p=share / share.sum()).reshape(rows, 20)
    lengths = rng.integers(4, 21, rows)
    return [
        " ".join(f"w{w}" for w in row[:n])
        for row, n in zip(words.tolist(), lengths.tolist(), strict=True)
    ]


def make_queries(captions: list[str], count: int) -> dict[str, list[str]]:
    """Return queries by kind."""
    rng = np.random.default_rng(1)
    chosen = [captions[i].split() for i in rng.integers(0, len(captions), count)]
    return {
        "three words of a caption": [" ".join(rng.permutation(c)[:3]) for c in chosen],
        "whole caption": [" ".join(c) for c in chosen],
        "five most frequent words": ["w0 w1 w2 w3 w4"] * count,
        "rare word": [f"w{i}" for i in rng.integers(VOCABULARY // 2, VOCABULARY, count)],
    }


def write_index(folder: Path, captions: list[str], dim: int) -> None:
    """Write an index of the captions, in another process so that memory here stays small."""
    if os.fork():
        if os.wait()[1]:
            sys.exit("the index could not be written")
        return
    rng = np.random.default_rng(2)
    with Store.create(folder, IndexHeader(dim, FINGERPRINT)) as store:
        for start in range(0, len(captions), 4096):
            part = captions[start : start + 4096]
            x = rng.standard_normal((len(part), dim), dtype=np.float32)
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            infos = [RowInfo(f"photos/{i}.jpg", "image", [c]) for i, c in enumerate(part, start)]
            store.add(x, [info.pack(b"") for info in infos])
        began = time.perf_counter()
        WordIndex(store).save()
        emit(test="build", seconds=round(time.perf_counter() - began, 2), rows=len(captions))
        store.publish()
    os._exit(0)


def fts5(captions: list[str]) -> Callable[[str], list[int]]:
    """Return the search of an FTS5 table."""
    base = sqlite3.connect(":memory:")
    base.execute("create virtual table t using fts5(caption, content='')")
    base.executemany("insert into t(rowid, caption) values (?, ?)", enumerate(captions))
    base.execute("insert into t(t) values ('optimize')")

    def search(text: str) -> list[int]:
        words = " OR ".join(dict.fromkeys(text.split()))
        query = "select rowid from t where t match ? order by rank limit ?"
        return [row for (row,) in base.execute(query, (words, K))]

    return search


def bm25s_search(captions: list[str]) -> Callable[[str], list[int]] | None:
    """Return the search of bm25s; None if it is not installed."""
    try:
        import bm25s  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    retriever = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    retriever.index([c.split() for c in captions], show_progress=False)

    def search(text: str) -> list[int]:
        words = list(dict.fromkeys(text.split()))
        rows, _ = retriever.retrieve([words], k=K, show_progress=False)
        return rows[0].tolist()

    return search


def emit(**line: Any) -> None:
    """Print a result, and append it to the results."""
    print(json.dumps(line), flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def measure_opening(folder: Path, dim: int) -> Index:
    """Open the index, search once, and report time and memory of each step."""
    model = RandomModel(dim)
    steps: dict[str, list[float]] = {}
    index: Any = None

    def step(name: str, work: Callable[[], object]) -> None:
        memory, began = resident(), time.perf_counter()
        work()
        steps[name] = [round(time.perf_counter() - began, 3), round(resident() - memory, 1)]

    def open_index() -> None:
        nonlocal index
        index = Index.open(folder, model=model)  # type: ignore[arg-type]

    step("open", open_index)
    step("first search by words", lambda: index.search(text="w7", text_only=True))
    step("first search by vectors", lambda: index.search(text="w7", vector_only=True))
    size = sum(path.stat().st_size for path in folder.glob("words.*")) / 1e6
    emit(test="open", seconds_and_mb=steps, words_file_mb=round(size, 1))
    return index


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    captions = make_captions(args.rows)
    with tempfile.TemporaryDirectory() as name:
        write_index(Path(name), captions, args.dim)
        index = measure_opening(Path(name), args.dim)
        ways: dict[str, Callable[[str], Any]] = {
            "words": lambda text: [h.id for h in index.search(text=text, k=K, text_only=True)],
            "vectors": lambda text: [h.id for h in index.search(text=text, k=K, vector_only=True)],
            "hybrid": lambda text: [h.id for h in index.search(text=text, k=K)],
            "fts5": fts5(captions),
        }
        peer = bm25s_search(captions)
        if peer is not None:
            ways["bm25s"] = peer
        for kind, queries in make_queries(captions, args.queries).items():
            took: dict[str, list[float]] = {way: [] for way in ways}
            for i in range(args.rounds):
                for way in list(ways)[:: 1 if i % 2 else -1]:
                    began = time.process_time()
                    for query in queries:
                        ways[way](query)
                    took[way].append(1e3 * (time.process_time() - began) / len(queries))
            ms = {way: float(np.median(times)) for way, times in took.items()}
            agree = {
                way: np.mean([len({*ways[way](q)} & {*ways["words"](q)}) / K for q in queries[:20]])
                for way in ("fts5", *(["bm25s"] if peer else []))
            }
            emit(
                test="query",
                kind=kind,
                rows=args.rows,
                dim=args.dim,
                cpu_ms={way: round(value, 2) for way, value in ms.items()},
                words_beside_vectors=round(ms["hybrid"] - ms["vectors"], 2),
                ratio={way: round(ms[way] / ms["words"], 2) for way in agree},
                agreement={way: round(float(value), 3) for way, value in agree.items()},
                load=round(os.getloadavg()[0], 1),
                python=platform.python_version(),
                sqlite=sqlite3.sqlite_version,
                numpy=np.__version__,
            )


if __name__ == "__main__":
    main()
