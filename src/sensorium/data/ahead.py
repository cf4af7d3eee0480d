"""Pieces of work on files, done on several threads where that is quicker."""
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

QUICK = 0.01            # seconds below which a piece is done at once: threads would wait for each other, not for files
MOST = 8                # threads

P = TypeVar("P")
R = TypeVar("R")


def ahead(work: Callable[[P], R], pieces: Iterable[P], *, waits: bool = False) -> Iterator[R]:
    """work(piece) of each piece, in order, a few pieces ahead of what has been asked for.

    waits: it is mostly for a disk that `work` takes its time, so that more threads than processors are of use.

    Python runs one thread at a time: only what decoding large pictures or waiting for a disk takes is shared out. So
    pieces are done one after the other until one is slow, the first not counted, which may load libraries.
    """
    threads, slow, waiting = MOST if waits else min(MOST, os.cpu_count() or 1), False, deque[Future[R]]()
    with ThreadPoolExecutor(threads) as pool:
        for i, piece in enumerate(pieces):
            if slow:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
                continue
            start = time.monotonic()
            done = work(piece)
            slow = i > 0 and time.monotonic() - start > QUICK
            yield done
        while waiting:
            yield waiting.popleft().result()
