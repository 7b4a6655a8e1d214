"""Many questions to one storage: as many at once as it has connections, answered in the order they were asked."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from holdfast.storage.base import Storage

T = TypeVar("T")
R = TypeVar("R")


def answers(storage: Storage, items: Iterable[T], ask: Callable[[T], R]) -> Iterator[tuple[T, Callable[[], R]]]:
    """Each item with what gives its answer or raises its error. Asked are a few more than were taken so far; a storage
    with one connection is asked when the answer is taken.
    """
    count = storage.connections
    if count == 1:
        for item in items:
            yield item, functools.partial(ask, item)
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="ask")
    waiting: deque[tuple[T, Callable[[], R]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(ask, item).result))
            if len(waiting) > 2 * count:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
