"""Apply a function to items in order, on several threads where that is faster."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

MAX_SERIAL_SECONDS = 0.01  # for one item, below which threads would only wait for each other
MAX_THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], *, io_bound: bool = False
) -> Iterator[Result]:
    """Yield function(item) for each item, in order, computed a few items ahead.

    Python runs one thread at a time, so that threads pay off only for decoding large images and for
    waiting on a disk. Items are therefore processed serially until one is slow; the first does not
    count, since it may load libraries.

    Args:
        function: what is applied.
        items: its arguments.
        io_bound: `function` mostly waits for a disk, so that more threads than processors help.
    """
    num_threads = MAX_THREADS if io_bound else min(MAX_THREADS, os.cpu_count() or 1)
    pending: deque[Future[Result]] = deque()
    is_slow = False
    with ThreadPoolExecutor(num_threads) as pool:
        for i, item in enumerate(items):
            if is_slow:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * num_threads:
                    yield pending.popleft().result()
                continue
            start = time.monotonic()
            result = function(item)
            is_slow = i > 0 and time.monotonic() - start > MAX_SERIAL_SECONDS
            yield result
        while pending:
            yield pending.popleft().result()
