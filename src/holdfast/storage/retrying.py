"""Patience: what is StorageUnavailable is tried again, ever less often, and nothing else is.

Until the storage has answered once, a wrong address is the likeliest reason: then a few tries are enough. After that a
connection may be gone for minutes without the work being lost. A put whose answer was lost is recognised as done: the
object that is there, and was not before, is this one. A listing that breaks off goes on where it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity

from holdfast.errors import ObjectExists, ObjectMissing, StorageUnavailable
from holdfast.storage.base import CONFIG, Buffer, ObjectInfo, Storage
from holdfast.storage.wrappers import Passing

T = TypeVar("T")
_COMPARED = 1 << 20  # objects up to this size are compared byte by byte, larger ones by their size


@dataclass(frozen=True)
class Patience:
    """For how many seconds a call is tried: while nothing was answered yet, and later. ``longest``: between two tries.
    ``told``: is given the error of a try that failed and the seconds until the next.
    """

    first: float = 8.0
    later: float = 600.0
    longest: float = 30.0
    told: Callable[[StorageUnavailable, float], None] = lambda error, seconds: None


class Retrying(Passing):
    """See the module."""

    def __init__(self, inner: Storage, patience: Patience) -> None:
        super().__init__(inner)
        self._patience = patience
        self._answered = False
        self._hurry = threading.Event()

    def create(self) -> None:
        self._tried(self.inner.create)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        doubtful = False

        def put() -> None:
            nonlocal doubtful
            try:
                self.inner.put(name, parts)
            except ObjectExists:
                if not doubtful or not self._is(name, parts):
                    raise  # somebody else's
            except StorageUnavailable:
                doubtful = True
                raise

        self._tried(put)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self._tried(lambda: self.inner.get(name, start, length))

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        given = set[str]()

        def rest() -> Iterator[ObjectInfo]:
            for info in self.inner.list(folder):
                if info.name not in given:
                    yield info

        found = rest()

        def step() -> ObjectInfo | None:
            nonlocal found
            try:
                return next(found, None)
            except StorageUnavailable:
                found = rest()
                raise

        while True:
            try:
                info = step()
            except StorageUnavailable:
                info = self._tried(step)
            if info is None:
                break
            self._answered = True
            given.add(info.name)
            yield info

    def stat(self, name: str) -> ObjectInfo:
        return self._tried(lambda: self.inner.stat(name))

    def delete(self, name: str) -> None:
        self._tried(lambda: self.inner.delete(name))

    def free_space(self) -> int | None:
        return self._tried(self.inner.free_space)

    def close(self) -> None:
        self._hurry.set()
        super().close()

    def impatient(self) -> None:
        self._hurry.set()

    def _is(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Whether the object that is there is the one of these parts."""
        size = sum(memoryview(p).nbytes for p in parts)
        try:
            there = self.inner.stat(name).size
        except ObjectMissing:
            there = 0
        if there < size and name != CONFIG:  # names are the content's hash: what is shorter is still coming, or going
            raise StorageUnavailable(f"{self.place}: {name} is there in part.", "It is stored when it is whole.")
        if there != size:
            return False
        return size > _COMPARED or self.inner.get(name) == b"".join(memoryview(p).cast("B") for p in parts)

    def _tried(self, act: Callable[[], T]) -> T:
        try:
            answer = self._attempts()(act)
        except StorageUnavailable:
            raise
        except Exception:
            self._answered = True  # it was refused: somebody is there
            raise
        self._answered = True
        return answer

    def _attempts(self) -> tenacity.Retrying:
        p = self._patience
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StorageUnavailable),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=p.longest),
            stop=self._enough,
            sleep=self._rest,
            before_sleep=self._tell,
            reraise=True,
        )

    def _rest(self, seconds: float) -> None:
        self._hurry.wait(seconds)

    def _enough(self, state: tenacity.RetryCallState) -> bool:
        most = self._patience.later if self._answered else self._patience.first
        return self._hurry.is_set() or (state.seconds_since_start or 0.0) > most

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error: Any = state.outcome.exception() if state.outcome else None
        if isinstance(error, StorageUnavailable):
            self._patience.told(error, state.upcoming_sleep)
