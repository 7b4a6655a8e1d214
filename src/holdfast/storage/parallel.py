"""Many questions to one storage: as many at once as it has connections, answered in the order they were asked.

Answers that are large wait in memory until they are taken: ``weigh`` says how large each will be, and no more than
MOST_WAITING bytes are asked for ahead.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from holdfast.storage.base import Storage
from holdfast.storage.wrappers import hurry

MOST_WAITING = 48 << 20

T = TypeVar("T")
R = TypeVar("R")


def answers(
    storage: Storage, items: Iterable[T], ask: Callable[[T], R], weigh: Callable[[T], int] = lambda item: 0
) -> Generator[tuple[T, Callable[[], R]], None, None]:
    """Each item with what gives its answer or raises its error. Asked are a few more than were taken so far; a storage
    with one connection is asked when the answer is taken. Who does not take all of them closes it.
    """
    count = storage.connections
    if count == 1:
        for item in items:
            yield item, functools.partial(ask, item)
        return
    pool = ThreadPoolExecutor(count, thread_name_prefix="ask")
    waiting: deque[tuple[T, Callable[[], R]]] = deque()
    weight = 0
    try:
        for item in items:
            weight += weigh(item)
            while waiting and (weight > MOST_WAITING or len(waiting) > 2 * count):
                weight -= weigh(waiting[0][0])
                yield waiting.popleft()
            waiting.append((item, pool.submit(ask, item).result))
        while waiting:
            yield waiting.popleft()
    except KeyboardInterrupt:
        hurry(storage)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
