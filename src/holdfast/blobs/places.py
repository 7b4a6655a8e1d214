"""Places for contents on disk and in object stores: names that nothing else ever has, noted before they are used.

What is promised: a content that no blob came to name is removed some day, also when the server was killed; one that
somebody still works at, or reads, is not. Places are noted many at a time, so that a small blob does not wait for that.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from holdfast.catalog import blobs as rows
from holdfast.catalog.blobs import Leftover
from holdfast.catalog.database import Database
from holdfast.errors import ObjectMissing

LEASE_NS = 3600 * 1_000_000_000  # what nobody renews for so long is left over
_AT_ONCE = 64


class Places:
    """See the module. Safe to share between threads."""

    def __init__(self, database: Database, now_ns: Callable[[], int]) -> None:
        self._database, self._now_ns = database, now_ns
        self._lock, self._drawing = threading.Lock(), threading.Lock()
        self._free: dict[str, list[str]] = {}
        self._used: set[str] = set()
        self._read: Counter[str] = Counter()
        self._removed: set[str] = set()

    def take(self, filesystem: str) -> str:
        """A place in that file system; ``give_back`` when a blob names it, or none will."""
        if filesystem == rows.REPOSITORY:  # the shelf knows what came to nothing
            return secrets.token_hex(16)
        while True:
            with self._lock:
                if free := self._free.get(filesystem):
                    place = free.pop()
                    self._used.add(place)
                    return place
            self._draw(filesystem)

    def _draw(self, filesystem: str) -> None:
        with self._drawing:
            with self._lock:
                if self._free.get(filesystem):
                    return
            new = [secrets.token_hex(16) for _ in range(_AT_ONCE)]
            with self._database.writing() as c:
                some = [Leftover(place, filesystem, None) for place in new]
                rows.add_leftovers(c, some, self._now_ns() + LEASE_NS)
            with self._lock:
                self._free.setdefault(filesystem, []).extend(new)

    def give_back(self, place: str, *, is_left: bool) -> None:
        """Nobody works at it here any more. ``is_left``: no blob names it."""
        with self._lock:
            known = place in self._used
            self._used.discard(place)
        if known and is_left:
            with self._database.writing() as c:
                rows.renew(c, [place], 1)

    @contextlib.contextmanager
    def reading(self, place: str) -> Iterator[None]:
        """It is read: it is not removed meanwhile. ObjectMissing when it is being removed."""
        with self._lock:
            if place in self._removed:
                raise ObjectMissing("The content is being removed.")
            self._read[place] += 1
        try:
            yield
        finally:
            with self._lock:
                self._read[place] -= 1
                if not self._read[place]:
                    del self._read[place]

    @contextlib.contextmanager
    def removing(self, place: str) -> Iterator[bool]:
        """Whether it may be removed: nobody works at it here, or reads it; nobody does until the end of the block."""
        with self._lock:
            free = place not in self._used and place not in self._read
            if free:
                self._removed.add(place)
        try:
            yield free
        finally:
            with self._lock:
                self._removed.discard(place)

    @property
    def kept(self) -> set[str]:
        """What is not to be removed, whatever the catalog says."""
        with self._lock:
            return {place for some in self._free.values() for place in some} | self._used | set(self._read)

    def renew(self) -> None:
        """What is held here is not left over yet."""
        with self._lock:
            held = {place for some in self._free.values() for place in some} | self._used
        if held:
            with self._database.writing() as c:
                rows.renew(c, held, self._now_ns() + LEASE_NS)
