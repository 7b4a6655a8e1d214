"""What a server does with its manifests in a thread of its own, beside answering.

What is promised: every complete manifest gets its snapshot, also after the server was killed in between; what deleted
manifests alone held is given up; the shelf stays small.
"""

from __future__ import annotations

import contextlib
import threading

from holdfast.catalog import holdings
from holdfast.catalog.database import Database
from holdfast.errors import HoldfastError, NoContent
from holdfast.manifests.files import Files
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.removing import Remover
from holdfast.manifests.snapshots import SnapshotMaker
from holdfast.manifests.tidying import Tidier

_AGAIN_S = 5.0


class Housekeeper:
    """See the module. ``start`` begins; ``close`` ends the thread."""

    def __init__(
        self,
        files: Files,
        manifests: Manifests,
        maker: SnapshotMaker,
        remover: Remover,
        tidier: Tidier,
        database: Database,
    ) -> None:
        self._files, self._manifests, self._maker = files, manifests, maker
        self._remover, self._tidier, self._database = remover, tidier, database
        self._wake = threading.Event()
        self._wake.set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def _run(self) -> None:
        with contextlib.suppress(HoldfastError):
            self._manifests.clear()
            self._tidier.take_in()
            self._files.finish_all()
        while not self._closing.is_set():
            self._wake.wait(_AGAIN_S)
            self._wake.clear()
            with contextlib.suppress(HoldfastError):  # it is tried again
                self._make_snapshots()
                self._tidier.tidy(given_up=self._remover.give_up())

    def _make_snapshots(self) -> None:
        with self._database.reading() as c:
            waiting = holdings.without_snapshot(c)
        for number in waiting:
            if self._closing.is_set():
                return
            with contextlib.suppress(NoContent):  # it was deleted meanwhile
                self._maker.make(number)
