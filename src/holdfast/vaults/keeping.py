"""What is done with vaults beside answering: count anew what a killed server left uncounted, remove the folders of
vaults that were deleted, and take in folders that the catalog does not know because it was lost.

What is promised: counts are right again before the first request of a server that is alone, and within STALE_NS where
there are several, or once more of that where somebody still works at what is there already; nothing that somebody still
works at is taken for left over; one vault that cannot be used holds up no other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial

from holdfast.catalog import people
from holdfast.catalog import vaults as rows
from holdfast.catalog.database import Database
from holdfast.catalog.holdings import hold_accounts
from holdfast.errors import ObjectMissing
from holdfast.storage.base import CONFIG, FOLDERS, ObjectInfo
from holdfast.storage.local import LocalStorage
from holdfast.vaults.folders import About, Folders
from holdfast.vaults.objects import Objects, Tell

STALE_NS = 600 * 1_000_000_000
_LOOK_S = 60.0
_ANY = 1 << 62  # before this is everything


class Keeper:
    """See the module. ``start`` begins, ``close`` ends the thread. ``alone``: no other server uses this catalog."""

    def __init__(
        self,
        database: Database,
        folders: Folders,
        objects: Objects,
        now_ns: Callable[[], int],
        tell: Tell,
        *,
        alone: bool,
    ) -> None:
        self._database, self._folders, self._objects = database, folders, objects
        self._now_ns, self._tell, self._alone = now_ns, tell, alone
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="vaults", daemon=True)

    def start(self) -> None:
        """What can be done before anybody asks, and then the thread."""
        self._try("take in vaults", self.take_in)
        if self._alone:
            self._try("count vaults", lambda: self.count_left(_ANY))
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """There may be a folder to remove."""
        self._wake.set()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._try("remove vaults", self.remove_given_up)
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            self._try("renew", self.renew)
            self._try("count vaults", lambda: self.count_left(self._now_ns() - STALE_NS))

    def _try(self, work: str, act: Callable[[], object]) -> None:
        if self._closing.is_set():
            return
        try:
            act()
        except Exception as e:  # noqa: BLE001 - the edge where faults of this thread end
            with contextlib.suppress(Exception):
                self._tell(work, e)

    def renew(self) -> None:
        """What runs here is not left over."""
        if running := self._objects.running:
            with self._database.writing() as c:
                rows.renew_changes(c, running, self._now_ns())

    def remove_given_up(self) -> None:
        """Remove the folders of vaults that were deleted, alone or with their account."""
        with self._database.reading() as c:
            waiting = rows.given_up(c)
        for number, folder in waiting:
            if self._closing.is_set():
                return
            self._try("remove a vault", partial(self._remove, number, folder))

    def _remove(self, number: int, folder: str) -> None:
        self._folders.remove(folder)
        with self._database.writing() as c:
            rows.drop_vault(c, number)

    # -- counting anew ---------------------------------------------------------------------------------------------

    def count_left(self, before_ns: int) -> None:
        """Count the vaults anew in which something is under way that nobody has renewed since then."""
        with self._database.reading() as c:
            numbers = rows.vaults_left(c, before_ns)
        for number in numbers:
            self._try("count a vault", partial(self.count, number, before_ns))

    def count(self, number: int, before_ns: int) -> None:
        """Nobody else counts in it meanwhile. What is there counts, what others store just now as they have reserved
        it, and what somebody deletes as what it was until he has counted.

        What an upload under way is to store may be there already: its own, not yet counted, or somebody else's, so that
        it will be given up. That is known when it is over: until then both count, and then the vault is counted again.
        """
        with self._database.writing() as c:
            vault = rows.hold_vault(c, number)
            if vault is None:
                return
            changes = rows.changes_in(c, number, before_ns)
            storage = self._folders.storage(vault.folder)
            storage.clear(0 if before_ns == _ANY else STALE_NS)
            found = _everything(storage)
            there = {info.name for info in found}
            coming = [change for change in changes if not (change.deletes and change.name in there)]
            rows.set_counted(
                c, vault, sum(info.size for info in found) + sum(change.bytes for change in coming),
                len(found) + sum(change.objects for change in coming),
            )  # fmt: skip
            if any(change.name in there for change in changes):
                rows.count_again(c, number, self._now_ns())

    # -- a lost catalog --------------------------------------------------------------------------------------------

    def take_in(self) -> None:
        """Make vaults of folders that the catalog does not know, for accounts of their owners' names: those that have
        a vault of that name keep it, and the folder stays as it is.
        """
        with self._database.reading() as c:
            known = rows.known_folders(c)
        for folder, about in self._folders.found():
            if folder not in known:
                self._try("take in a vault", partial(self._take_in, folder, about))

    def _take_in(self, folder: str, about: About) -> None:
        with self._database.writing() as c:
            account = people.account_named(c, about.owner)
            if account is None:
                return
            hold_accounts(c, [account.id])
            number = rows.add_vault(
                c, account.id, about.name, folder=folder, quota_bytes=about.quota_bytes,
                append_only=about.append_only, created_ns=about.created_ns,
            )  # fmt: skip
            if number is not None:
                rows.count_again(c, number, 0)
        if number is not None:
            self.count(number, 1)


def _everything(storage: LocalStorage) -> list[ObjectInfo]:
    found = [info for folder in FOLDERS for info in storage.list(folder)]
    with contextlib.suppress(ObjectMissing):
        found.append(storage.stat(CONFIG))
    return found
