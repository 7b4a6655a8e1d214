"""What is done with shares beside answering: end those whose time has passed, remove files whose share has ended, give
back downloads that a killed server had claimed, remove what such a server left on the disk.

What is promised: a file is gone ``after_ns`` after its share has ended, or as soon as the server runs again; nothing
that somebody still works at is taken for left over; one file that cannot be removed holds up no other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial

from holdfast.catalog import shares as rows
from holdfast.catalog.database import Database
from holdfast.shares.shares import LEASE_NS, Shares, Tell
from holdfast.storage.loose import LooseFiles

AFTER_NS = 30 * 1_000_000_000
_LEFT_NS = 24 * 3600 * 1_000_000_000  # a file that no share names is no upload's any more
_LOOK_S = 2.0
_ANY = 1 << 62  # before this is everything


class Keeper:
    """See the module. ``start`` begins, ``close`` ends the thread. ``alone``: no other server uses this catalog."""

    def __init__(
        self,
        database: Database,
        files: LooseFiles,
        shares: Shares,
        now_ns: Callable[[], int],
        tell: Tell,
        *,
        alone: bool,
        after_ns: int = AFTER_NS,
    ) -> None:
        self._database, self._files, self._shares = database, files, shares
        self._now_ns, self._tell, self._alone, self._after_ns = now_ns, tell, alone, after_ns
        self._closing = threading.Event()
        self._renewed_ns = 0
        self._thread = threading.Thread(target=self._run, name="shares", daemon=True)

    def start(self) -> None:
        """What can be done before anybody asks, and then the thread."""
        if self._alone:
            self._try("give back downloads", lambda: self.give_back(_ANY))
        self._try("remove left-over files", self.clear)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._try("keep shares", self.look)
            self._closing.wait(min(_LOOK_S, max(0.1, self._after_ns / 4e9)))

    def _try(self, work: str, act: Callable[[], object]) -> None:
        if self._closing.is_set():
            return
        try:
            act()
        except Exception as e:  # noqa: BLE001 - the edge where faults of this thread end
            with contextlib.suppress(Exception):
                self._tell(work, e)

    def look(self) -> None:
        """All that is due now."""
        now = self._now_ns()
        if now - self._renewed_ns >= LEASE_NS // 6:
            self._renewed_ns = now
            self._try("renew downloads", self.renew)
            self._try("give back downloads", lambda: self.give_back(now - LEASE_NS))
        self._try("end shares", self.end_expired)
        self._try("remove shared files", self.remove_ended)

    def renew(self) -> None:
        """What runs here is not left over."""
        if running := self._shares.running:
            with self._database.writing() as c:
                rows.renew_claims(c, running, self._now_ns())

    def give_back(self, before_ns: int) -> None:
        """End the downloads that nobody has renewed since."""
        with self._database.writing() as c:
            rows.end_claims_left(c, before_ns, self._now_ns())

    def end_expired(self) -> None:
        with self._database.reading() as c:
            due = rows.to_expire(c, self._now_ns())
        if due:
            with self._database.writing() as c:
                rows.end_expired(c, self._now_ns())

    def remove_ended(self) -> None:
        """Remove the files of shares that ended long enough ago, and count them no longer."""
        with self._database.reading() as c:
            waiting = rows.to_remove(c, self._now_ns() - self._after_ns)
        for number, file in waiting:
            self._try("remove a shared file", partial(self._remove, number, file))

    def _remove(self, number: int, file: str) -> None:
        self._files.remove(file)
        with self._database.writing() as c:
            rows.note_removed(c, number)

    def clear(self) -> None:
        """Remove files that no share names: at once where nobody else could be writing them."""
        older_ns = 0 if self._alone else _LEFT_NS
        self._files.clear(self._now_ns(), older_ns)
        found = list(self._files.list())
        with self._database.reading() as c:
            known = rows.known_files(c)
        for info in found:
            if info.name not in known and self._now_ns() - info.stored_ns > older_ns:
                self._try("remove a left-over file", partial(self._files.remove, info.name))
