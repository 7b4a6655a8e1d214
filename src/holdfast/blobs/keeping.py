"""What is done with blobs beside answering: remove the contents that no blob names, and empty the buckets of accounts
that were deleted.

What is promised: nothing is removed that a blob names, that comes in, or that is read here just now; what a killed
server left is removed when it is started again, or after LEASE_NS by another one.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping

from holdfast.blobs.blobs import NOW, Tell
from holdfast.blobs.filesystems import FileSystem
from holdfast.blobs.places import Places
from holdfast.catalog import blobs as rows
from holdfast.catalog.database import Database
from holdfast.errors import StorageUnavailable

_LOOK_S = 60.0
_SOME = 200


class Keeper:
    """See the module. ``start`` begins, ``close`` ends the thread. ``alone``: no other server uses this catalog."""

    def __init__(
        self,
        database: Database,
        filesystems: Mapping[str, FileSystem],
        places: Places,
        now_ns: Callable[[], int],
        tell: Tell,
        *,
        alone: bool,
    ) -> None:
        self._database, self._filesystems, self._places = database, filesystems, places
        self._now_ns, self._tell, self._alone = now_ns, tell, alone
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="blobs", daemon=True)
        self._wake.set()

    def start(self) -> None:
        """What whoever was here before has left may go, when he is not here any more; then the thread."""
        if self._alone:
            with self._database.writing() as c:
                rows.make_all_due(c, NOW)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """There may be something to remove."""
        self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            self._try("renew blobs", self._places.renew)
            self._try("empty buckets", self.empty_given_up)
            self._try("remove blobs", self.remove_left)

    def _try(self, work: str, act: Callable[[], object]) -> None:
        if self._closing.is_set():
            return
        try:
            act()
        except Exception as e:  # noqa: BLE001 - the edge where faults of this thread end
            with contextlib.suppress(Exception):
                self._tell(work, e)

    def remove_left(self) -> int:
        """Remove the contents that are due; how many. What cannot be removed holds up nothing else."""
        removed, stuck, down = 0, set[str](), set[str]()
        while not self._closing.is_set():
            able = self._filesystems.keys() - down
            with self._database.reading() as c:
                if not rows.is_any_due(c, self._now_ns(), able):
                    return removed
            with self._database.writing() as c:
                doomed = rows.doom(c, self._now_ns(), able, self._places.kept | stuck, _SOME)
            if not doomed:
                return removed
            gone = [one.place for one in doomed if self._remove(one, down)]
            with self._database.writing() as c:
                rows.drop_leftovers(c, gone)
            stuck.update({one.place for one in doomed} - set(gone))
            removed += len(gone)
        return removed

    def _remove(self, one: rows.Leftover, down: set[str]) -> bool:
        """Whether it is gone. One that comes into reading just now stays, for the next time. ``down``: file systems
        that did not answer, which are not waited for again.
        """
        if one.filesystem in down or self._closing.is_set():
            return False
        with self._places.removing(one.place) as free:
            try:
                if free:
                    self._filesystems[one.filesystem].delete(one.place, one.size)
                return free
            except StorageUnavailable as e:
                down.add(one.filesystem)
                self._tell("remove a blob's content", e)
            except Exception as e:  # noqa: BLE001 - others are not held up
                self._tell("remove a blob's content", e)
        return False

    def empty_given_up(self) -> None:
        """Give up the blobs of buckets whose account was deleted, some at a time, and then the buckets."""
        with self._database.reading() as c:
            waiting = rows.given_up(c)
        for number, filesystem in waiting:
            more = True
            while more and not self._closing.is_set():
                with self._database.writing() as c:
                    more = rows.empty_some(c, number, filesystem, _SOME)
                    if not more:
                        rows.drop_bucket(c, number)
