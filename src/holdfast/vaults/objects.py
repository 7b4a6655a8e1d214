"""What lies in vaults: objects that other programs store, read, list and delete.

What is promised: an object is stored durably, whole or not at all, and never replaced; its name is the SHA-256 of its
bytes (but for ``config``), which is checked while it comes; nothing is stored beyond a quota, the vault's or its
owner's, however long a body turns out to be. Room is reserved for what has come, and some of what follows, before it
is written, and what was stored is counted after: a server that is killed in between leaves a reservation, and its vault
is counted anew (``keeping``). Who only says how much he will send keeps nobody out.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator

from holdfast.accounts.directory import Identity
from holdfast.catalog import vaults as rows
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.vaults import Change, Vault
from holdfast.errors import (
    Forbidden,
    ObjectExists,
    ObjectMissing,
    QuotaFull,
    StorageError,
    StorageFull,
    StorageUnavailable,
    TooLarge,
    WrongContent,
)
from holdfast.storage.base import CONFIG, Buffer, ObjectInfo
from holdfast.storage.local import Incoming, Opened
from holdfast.vaults.folders import Folders
from holdfast.vaults.names import Where
from holdfast.vaults.rights import READS, Seen, demand_add, demand_delete, no_vault, see, shown

MOST_BYTES = 1 << 30  # of one object: restic's packs have up to 128 MiB and a little, Holdfast's 64
MOST_SMALL = 16 << 20  # of config, a key or a lock
READERS_MOST_BYTES, READERS_MOST_LOCKS = 64 << 10, 1000  # for who may only read
_STEP = 16 << 20  # so much is reserved at a time

Tell = Callable[[str, Exception], None]


class Objects:
    """See the module. Safe to share between threads. ``tell`` hears of a folder that cannot be used, and why.

    ``running``: the changes that are under way here.
    """

    def __init__(self, database: Database, folders: Folders, now_ns: Callable[[], int], tell: Tell) -> None:
        self._database, self._folders, self._now_ns, self._tell = database, folders, now_ns, tell
        self._lock = threading.Lock()
        self._running: set[str] = set()

    @property
    def running(self) -> set[str]:
        with self._lock:
            return set(self._running)

    # -- reading ---------------------------------------------------------------------------------------------------

    def open(self, by: Identity, where: Where) -> Opened:
        """An object, to be read and then closed. ObjectMissing when it is not there."""
        vault = self._readable(by, where)
        with self.named(vault, where.name):
            return self._folders.storage(vault.folder).open(where.name)

    def stat(self, by: Identity, where: Where) -> ObjectInfo:
        vault = self._readable(by, where)
        with self.named(vault, where.name):
            return self._folders.storage(vault.folder).stat(where.name)

    def list(self, by: Identity, where: Where) -> Iterator[ObjectInfo]:
        """Everything in a folder of the vault. Rights are asked at once; what is there, while it is gone through."""
        return self._list(self._readable(by, where), where.folder)

    def _list(self, vault: Vault, folder: str) -> Iterator[ObjectInfo]:
        with self.named(vault, folder):
            yield from self._folders.storage(vault.folder).list(folder)

    def _readable(self, by: Identity, where: Where) -> Vault:
        by.demand(READS)
        with self._database.reading() as c:
            return see(c, by, where.owner, where.vault).vault

    # -- storing and deleting --------------------------------------------------------------------------------------

    def most(self, by: Identity, where: Where, size: int | None) -> int:
        """How many bytes an object may have that somebody is about to send, of that size (None: unknown). What
        ``begin`` would refuse now is refused; nothing is reserved.
        """
        vault, most = self._addable(by, where, size)
        with self.named(vault, where.name), contextlib.suppress(ObjectMissing):
            self._folders.storage(vault.folder).stat(where.name)
            raise ObjectExists(where.name)
        with self._database.reading() as c:
            _demand_room(vault, rows.missing_room(c, vault, size or 0, 1))
        return most

    def begin(self, by: Identity, where: Where, size: int | None) -> Upload:
        """Take an object of that size (None: unknown) of which something has come. ObjectExists when it is there
        already; QuotaFull when there is no room for it.
        """
        vault, most = self._addable(by, where, size)
        with self.named(vault, where.name):
            incoming = self._folders.storage(vault.folder).begin(where.name)
        end = most if size is None else size
        try:
            change = self._begin(vault, where.name, min(_STEP, end), is_guess=size is None or size > _STEP)
        except BaseException:
            incoming.abandon()
            raise
        return Upload(self, vault, change, incoming, most, end)

    def _addable(self, by: Identity, where: Where, size: int | None) -> tuple[Vault, int]:
        """The vault, and how many bytes the object may have."""
        most = _most(where.name)
        with self._database.reading() as c:
            seen = see(c, by, where.owner, where.vault)
        if demand_add(by, seen, where.name):
            most = READERS_MOST_BYTES
            self._demand_few_locks(seen.vault)
        if size is not None and size > most:
            raise _too_large(where.name, most)
        return seen.vault, most

    def delete(self, by: Identity, where: Where) -> None:
        """ObjectMissing when it is not there."""
        with self._database.reading() as c:
            seen = see(c, by, where.owner, where.vault)
        demand_delete(by, seen, where.name)
        if where.name == CONFIG:
            raise Forbidden("A vault's config is deleted only with the vault.", "It is what the rest depends on.")
        storage = self._folders.storage(seen.vault.folder)
        with self.named(seen.vault, where.name):
            size = storage.stat(where.name).size
        change = Change(rows.DELETION + secrets.token_hex(16), seen.vault.id, where.name, size, 1)
        with self._under_way(change):
            with self._database.writing() as c:
                if not rows.begin_alone(c, seen.vault, change, self._now_ns()):
                    raise StorageUnavailable(f"{where.name} is stored or deleted by somebody just now.", "Try again.")
                demand_delete(by, self._still(c, by, where, seen.vault), where.name)  # it is held now
            try:
                with self.named(seen.vault, where.name):
                    storage.remove(where.name)
            except ObjectMissing:  # whoever deleted it meanwhile has counted
                self._end(seen.vault, change, size, 1)
                raise
            self._end(seen.vault, change, 0, 0)  # what else goes wrong leaves it to be counted anew

    def _still(self, c: Connection, by: Identity, where: Where, vault: Vault) -> Seen:
        """The vault as it is by now. NoContent when it is another one of that name."""
        seen = see(c, by, where.owner, where.vault)
        if seen.vault.id != vault.id:
            raise no_vault(where.owner, where.vault)
        return seen

    def _demand_few_locks(self, vault: Vault) -> None:
        for number, _ in enumerate(self._list(vault, "locks"), 1):
            if number >= READERS_MOST_LOCKS:
                raise Forbidden(f"There are {READERS_MOST_LOCKS} locks or more in the vault {shown(vault)}.")

    # -- counting --------------------------------------------------------------------------------------------------

    def _begin(self, vault: Vault, name: str, size: int, *, is_guess: bool) -> Change:
        """Reserve room. A guess that there is no room for is none: then it will be seen what there is room for."""
        change = Change(secrets.token_hex(16), vault.id, name, size, 1)
        try:
            self._reserve(vault, change)
        except QuotaFull:
            if not is_guess:
                raise
            change = Change(change.id, vault.id, name, 0, 1)
            self._reserve(vault, change)
        with self._lock:
            self._running.add(change.id)
        return change

    def _reserve(self, vault: Vault, change: Change) -> None:
        with self._database.writing() as c:
            _demand_room(vault, rows.reserve(c, vault, change.bytes, change.objects))
            rows.begin_change(c, change, self._now_ns())

    def reserve_more(self, vault: Vault, change: Change, size: int) -> None:
        """For an upload. QuotaFull when there is no room for it."""
        with self._database.writing() as c:
            _demand_room(vault, rows.reserve(c, vault, size, 0))
            rows.reserve_more(c, change.id, size)

    def end(self, vault: Vault, change: Change, size: int, objects: int) -> None:
        """An upload is over; so much is there."""
        try:
            self._end(vault, change, size, objects)
        finally:
            with self._lock:
                self._running.discard(change.id)

    def _end(self, vault: Vault, change: Change, size: int, objects: int) -> None:
        with self._database.writing() as c:
            ended = rows.end_change(c, vault, change.id, size, objects)
            if not ended and rows.vault_by_id(c, vault.id) is not None:
                rows.begin_change(c, change, 0)  # it was taken for left over, and was not: count anew, soon

    @contextlib.contextmanager
    def _under_way(self, change: Change) -> Iterator[None]:
        with self._lock:
            self._running.add(change.id)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(change.id)

    # -- what went wrong -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def named(self, vault: Vault, name: str) -> Iterator[None]:
        """Say what went wrong by the vault's name: where its folder lies is no client's business."""
        try:
            yield
        except ObjectMissing:
            raise ObjectMissing(f"{name} is not in the vault {shown(vault)}.") from None
        except ObjectExists:
            raise ObjectExists(f"{name} is in the vault {shown(vault)} already.", "Nothing is replaced.") from None
        except StorageFull as e:
            self._tell(f"the vault {shown(vault)}", e)
            raise StorageFull("The server's disk is full.", "Tell its administrator.") from None
        except StorageError as e:
            if self._is_gone(vault):
                raise no_vault(vault.owner, vault.name) from None
            self._tell(f"the vault {shown(vault)}", e)
            raise type(e)(f"{name} in the vault {shown(vault)} cannot be used.", "The server's log says why.") from None

    def _is_gone(self, vault: Vault) -> bool:
        with self._database.reading() as c:
            return rows.vault_by_id(c, vault.id) is None


class Upload:
    """An object on its way in: ``feed`` its pieces, then ``finish`` or ``abandon``. One thread's at a time. ``end``:
    where it is thought to end.
    """

    def __init__(self, objects: Objects, vault: Vault, change: Change, incoming: Incoming, most: int, end: int) -> None:
        self._objects, self._vault, self._change, self._incoming = objects, vault, change, incoming
        self._most, self._end = most, end
        self._reserved, self._size = change.bytes, 0
        self._hasher = hashlib.sha256()
        self._over = False

    def feed(self, piece: Buffer) -> None:
        """TooLarge, QuotaFull: then it is to be abandoned."""
        size = self._size + len(piece)
        if size > self._most:
            raise _too_large(self._change.name, self._most)
        if size > self._reserved:
            self._reserve(size)
        with self._objects.named(self._vault, self._change.name):
            self._incoming.write(piece)
        self._hasher.update(piece)
        self._size = size

    def finish(self) -> None:
        """Durable when it returns. WrongContent when the bytes are not what the name says, ObjectExists when somebody
        else was first; then nothing of it is kept.
        """
        name = self._change.name
        if name != CONFIG and (actual := self._hasher.hexdigest()) != name.partition("/")[2]:
            self.abandon()
            raise WrongContent(f"The bytes hash to {actual}, not to the name; nothing was kept.", "Send them again.")
        try:
            with self._objects.named(self._vault, name):
                self._incoming.publish()
        except BaseException:
            self.abandon()
            raise
        self._over = True
        self._objects.end(self._vault, self._change, self._size, 1)

    def abandon(self) -> None:
        """Nothing is kept. It may be called twice, and after ``finish``."""
        if not self._over:
            self._over = True
            self._incoming.abandon()
            self._objects.end(self._vault, self._change, 0, 0)

    def _reserve(self, needed: int) -> None:
        """Some more than is needed; if there is not so much room, just that."""
        for wanted in (max(needed, min(self._reserved + _STEP, self._end)), needed):
            with contextlib.suppress(QuotaFull):
                self._objects.reserve_more(self._vault, self._change, wanted - self._reserved)
                self._reserved = wanted
                return
        self._objects.reserve_more(self._vault, self._change, needed - self._reserved)


def _most(name: str) -> int:
    return MOST_SMALL if name == CONFIG or name.startswith(("keys/", "locks/")) else MOST_BYTES


def _too_large(name: str, most: int) -> TooLarge:
    return TooLarge(f"{name} may have at most {most} bytes here.")


def _demand_room(vault: Vault, full: str) -> None:
    if full == "gone":
        raise no_vault(vault.owner, vault.name)
    if full == "account":
        raise QuotaFull(f"The quota of {vault.owner} is full.", "Delete something, or ask an administrator for more.")
    if full:
        raise QuotaFull(f"The quota of the vault {shown(vault)} is full.", "Delete something, or raise its quota.")
