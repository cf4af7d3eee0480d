"""Pieces of work on files, done on several threads where that is quicker."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_SERIAL_SECONDS = 0.01  # seconds below which a piece is done at once: threads would wait for each other, not for files
MAX_THREADS = 8  # threads

P = TypeVar("P")
R = TypeVar("R")


def prefetch(
    function: Callable[[P], R], items: Iterable[P], *, io_bound: bool = False
) -> Iterator[R]:
    """work(piece) of each piece, in order, a few pieces ahead of what has been asked for.

    io_bound: it is mostly for a disk that `work` takes its time, so that more threads than processors are of use.

    Python runs one thread at a time: only what decoding large pictures or waiting for a disk takes is shared out. So
    pieces are done one after the other until one is slow, the first not counted, which may load libraries.
    """
    threads, slow, waiting = (
        MAX_THREADS if io_bound else min(MAX_THREADS, os.cpu_count() or 1),
        False,
        deque[Future[R]](),
    )
    with ThreadPoolExecutor(threads) as pool:
        for i, piece in enumerate(items):
            if slow:
                waiting.append(pool.submit(function, piece))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
                continue
            start = time.monotonic()
            done = function(piece)
            slow = i > 0 and time.monotonic() - start > MAX_SERIAL_SECONDS
            yield done
        while waiting:
            yield waiting.popleft().result()
