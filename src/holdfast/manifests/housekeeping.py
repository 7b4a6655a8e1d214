"""What a server does with its manifests in a thread of its own, beside answering.

What is promised: every complete manifest gets its snapshot, also after the server was killed in between; what deleted
manifests alone held is given up; the shelf stays small.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable

from holdfast.catalog import holdings
from holdfast.catalog.database import Database
from holdfast.errors import NoContent
from holdfast.manifests.files import Files
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.removing import Remover
from holdfast.manifests.snapshots import SnapshotMaker
from holdfast.manifests.tidying import Tidier
from holdfast.shelf.shelf import Shelf

_AGAIN_S = 5.0

Tell = Callable[[str, Exception], None]


class Housekeeper:
    """See the module. ``start`` begins; ``close`` ends the thread. ``tell`` hears of work that failed, and why."""

    def __init__(
        self,
        shelf: Shelf,
        files: Files,
        manifests: Manifests,
        maker: SnapshotMaker,
        remover: Remover,
        tidier: Tidier,
        database: Database,
        tell: Tell,
    ) -> None:
        self._shelf, self._files, self._manifests, self._maker = shelf, files, manifests, maker
        self._remover, self._tidier, self._database = remover, tidier, database
        self._tell, self._told = tell, dict[str, type[Exception]]()
        self._wake = threading.Event()
        self._wake.set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._shelf.stop()
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def _run(self) -> None:
        first: dict[str, Callable[[], object]] = {
            "take in": self._tidier.take_in, "finish files": self._files.finish_all
        }  # fmt: skip
        while not self._closing.is_set():
            first = {work: act for work, act in first.items() if not self._try(work, act)}
            self._wake.wait(_AGAIN_S)
            self._wake.clear()
            self._try("make snapshots", self._make_snapshots)
            self._try("give up", self._remover.give_up)
            self._try("tidy", self._tidier.tidy)
            self._try("clear", self._manifests.clear)

    def _try(self, work: str, act: Callable[[], object]) -> bool:
        """Whether it was done, and nothing of it is left. What goes wrong keeps nothing else from being done; it is
        told once, and tried again.
        """
        if self._closing.is_set():
            return False
        try:
            left = act()
        except Exception as e:  # noqa: BLE001 - the edge where faults of this thread end
            if not self._closing.is_set() and self._told.get(work) is not type(e):
                self._told[work] = type(e)
                with contextlib.suppress(Exception):
                    self._tell(work, e)
            return False
        self._told.pop(work, None)
        return not left

    def _make_snapshots(self) -> None:
        with self._database.reading() as c:
            waiting = holdings.without_snapshot(c)
        for number in waiting:
            if self._closing.is_set():
                return
            self._try(f"make the snapshot of manifest {number}", functools.partial(self._make_one, number))

    def _make_one(self, number: int) -> None:
        with contextlib.suppress(NoContent):  # it was deleted meanwhile
            self._maker.make(number)
