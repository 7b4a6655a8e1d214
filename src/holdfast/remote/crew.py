"""Threads that move files: many for small ones, where waiting for answers costs most, few for large ones.

So much work waits at most that memory does not grow. The first failure that no other file would survive ends all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

SMALL_BYTES = 1 << 20  # up to this size a file is one piece in memory
_SMALL_THREADS, _LARGE_THREADS = 16, 2
_WAITING = 4  # pieces of work for each thread


class _Pool:
    def __init__(self, threads: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self.room = threading.BoundedSemaphore(threads * _WAITING)


class Crew:
    """A context; leaving it waits for everything that was given to it, or after an error ends it. ``stop`` is called
    so that what runs ends soon.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._small, self._large = _Pool(_SMALL_THREADS, "small"), _Pool(_LARGE_THREADS, "large")
        self._failed: BaseException | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        if e is not None:
            self._stop()
        try:
            for pool in (self._small, self._large):
                pool.pool.shutdown(wait=True, cancel_futures=e is not None)
        except BaseException:  # Ctrl-C while the last files are under way
            self._stop()
            for pool in (self._small, self._large):
                pool.pool.shutdown(wait=True, cancel_futures=True)
            raise
        if e is None and self._failed is not None:
            raise self._failed

    def do(self, size: int, work: Callable[[], None]) -> None:
        """Have it done by a thread for files of that size; what ended the work earlier is raised."""
        pool = self._small if size <= SMALL_BYTES else self._large
        pool.room.acquire()
        if self._failed is not None:
            pool.room.release()
            raise self._failed

        def run() -> None:
            try:
                if self._failed is None:
                    work()
            except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits for the work
                self._failed = self._failed or error
                self._stop()
            finally:
                pool.room.release()

        try:
            pool.pool.submit(run)
        except BaseException:
            pool.room.release()
            raise
