"""The shelf: where single files that come over HTTP become durable in the repository, many at a time.

One thread commits. It takes everything that waits, stores what is small, makes all of it durable in packs, puts one
snapshot that holds an entry for each file (tagged TAG, so that prune keeps them and a catalog can be made anew from
them), writes the catalog in one transaction, and only then answers. So a hundred small uploads share the flushes of
one, and nothing is acknowledged that a power cut could take away.

What is promised: an order whose future has a result is in the repository and in the catalog; one whose future has an
error is not in the catalog. Orders are carried out in the order they came. The writing session is opened anew when it
failed, and when prune condemned packs that it may count on.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec

from holdfast.catalog import holdings
from holdfast.catalog.database import Connection, Database
from holdfast.errors import Damaged, HoldfastError, ObjectMissing, StorageFull, StorageUnavailable
from holdfast.repository.contents import split_items
from holdfast.repository.format import Entry, Snapshot, Totals
from holdfast.repository.pages import Run, TreeWriter, sort_key, split
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository, Session
from holdfast.repository.snapshots import INTERNAL
from holdfast.repository.writer import SMALL, TREE, Stream
from holdfast.storage.base import Buffer

TAG = INTERNAL + "shelf"
_WORK = "serve"  # as its lease calls it
LOOK_S = 30.0  # how often an idle shelf looks for packs that were condemned
_TRIES = 4
_CACHE = 16 << 20  # of blocks read: a server has other things to keep
_MOST_AT_ONCE = 1024  # orders of one commit
_ALONE_S = 5.0  # so long what failed together is tried one by one
_CLOSELY_S, _GATHER_S = 0.001, 0.01  # so soon after another one, and in all, orders are waited for

Names = Callable[[int], str]


def _no_name(number: int) -> str:
    return ""


class Content(msgspec.Struct, frozen=True):
    """Stored content: its size in bytes, its list of chunks as an entry of a snapshot has it."""

    size: int
    chunks: bytes
    depth: int

    def entry(self, name: bytes, mtime_ns: int = 0) -> Entry:
        return Entry(name, "f", 0o600, 0, 0, mtime_ns, 0, 0, self.size, self.chunks, self.depth)


def _begun() -> Future[None]:
    """A future that whoever waits for it cannot cancel any more."""
    future: Future[None] = Future()
    future.set_running_or_notify_cancel()
    return future


@dataclass(eq=False)
class Order:
    """What is to become durable together: a path on the shelf, its content, and what the catalog is to note.

    ``account``: whose it is, if it is somebody's. ``content``: what is stored already, or the bytes of a small file, at
    most one chunk. ``clerk`` is called in the transaction with all orders of the batch that are its own and their
    contents; where one cannot be noted it sets ``error`` before it has changed anything for it. ``about`` is the
    clerk's. ``deletions``: how often the account deleted manifests before; known to the clerk.
    """

    path: bytes
    account: int | None
    content: Content | bytes
    clerk: Clerk
    about: Any
    deletions: int = 0
    error: HoldfastError | None = None
    done: Future[None] = field(default_factory=_begun)


Ready = tuple[Order, Content]
Clerk = Callable[[Connection, list[Ready]], None]


class Shelf:
    """See the module. Safe to share between threads and to wait for from an event loop; ``close`` ends the thread."""

    def __init__(self, repo: Repository, database: Database, program: str) -> None:
        self.repo, self._database, self._program = repo, database, program
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._lock = threading.RLock()  # the writer is one thread's at a time
        self._open = ExitStack()
        self._broken = False  # the session failed, and no new one could be opened yet
        self._session = self._begin()
        self._others: tuple[frozenset[str], ChunkReader] | None = None
        self._others_lock = threading.Lock()
        self._unnoted: list[str] = []  # snapshots that were put, and the catalog could not be told
        self._closed = False
        self._door = threading.Lock()  # no order comes in behind the end
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shelf")
        self._thread.start()

    def close(self) -> None:
        """Finish the orders that came so far, then end."""
        with self._door:
            self._closed = True
            self._orders.put(None)
        self._thread.join()
        with contextlib.suppress(HoldfastError):
            self._tell_unnoted()
        with self._lock:
            self._open.close()

    def stop(self) -> None:
        """What takes long, and is nobody's request, is to end soon: ``demand_running`` says so."""
        self._stopping.set()

    def demand_running(self) -> None:
        if self._stopping.is_set():
            raise StorageUnavailable("The server is stopping.", "It is gone on with at the next start.")

    def is_alone(self) -> bool:
        """Whether no other server writes here."""
        live = self.repo.leases.survey().live
        return all(lease.work != _WORK or name == self._session.hold.name for name, lease in live.items())

    # -- writing ---------------------------------------------------------------------------------------------------

    def add(self, stream: Stream, data: Buffer) -> bytes:
        """Store one chunk; its id. It is durable once an order that names it is done."""
        with self._lock:
            self._mend()
            try:
                return self._session.writer.add(stream, data)
            except BaseException:
                self._renew()
                raise

    def flush(self) -> None:
        """Have all that was added lie in packs, so that a snapshot can be made of it."""
        with self._lock:
            self._mend()
            try:
                self._session.writer.flush()
            except BaseException:
                self._renew()
                raise

    def commit(self, order: Order) -> Future[None]:
        """Have an order carried out; its future."""
        with self._door:
            if self._closed:
                order.done.set_exception(StorageUnavailable("The server is stopping.", "Try again in a while."))
            else:
                self._orders.put(order)
        return order.done

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, chunk_id: bytes, /) -> bytes:
        """A chunk, verified."""
        try:
            return self._reader.read(chunk_id)
        except (ObjectMissing, Damaged):
            return self._elsewhere().read(chunk_id)

    def length(self, chunk_id: bytes, /) -> int:
        try:
            return self._reader.length(chunk_id)
        except Damaged:
            return self._elsewhere().length(chunk_id)

    def _elsewhere(self) -> ChunkReader:
        """A reader that knows what others stored and what prune moved, for what the session's own does not find."""
        names = frozenset(info.name for info in self.repo.storage.list("index"))
        with self._others_lock:
            if self._others is None or self._others[0] != names:
                self._others = names, self.repo.reader(cache=_CACHE)
            return self._others[1]

    # -- the session -----------------------------------------------------------------------------------------------

    def _begin(self) -> Session:
        session = self._open.enter_context(self.repo.writing(_WORK))
        self._reader = ChunkReader(self.repo.storage, self.repo.secrets, session.index, cache=_CACHE)
        self._looked = time.monotonic()
        return session

    def _renew(self) -> None:
        """Open the writing session anew. What was added and not committed is absent then."""
        self._broken = True
        self._open.close()
        self._open = ExitStack()
        self._session = self._begin()
        self._broken = False

    def _mend(self) -> None:
        """Open a new session where the last one failed, so that nobody meets an error of yesterday."""
        if self._broken:
            self._renew()

    def _heed_prune(self) -> None:
        """Stop counting on packs that were condemned since the session began, and say so in the lease: sweeps wait for
        that. (That a pack which is used was not condemned is looked at in every commit.)
        """
        self._looked = time.monotonic()
        if set(self.repo.leases.survey().condemned) - self._session.hold.knows:
            self._renew()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                return
            try:
                with self._lock:
                    self._mend()
                    if batch:
                        self._commit(batch)
                    else:
                        self._heed_prune()
                    self._session.writer.give_back()
            except BaseException as e:  # noqa: BLE001 - whoever waits gets it
                _fail(batch, e)
                self._try_to_renew()

    def _next(self) -> list[Order] | None:
        """The orders that wait, at least one, and those that follow closely, for they share the flushes; none after
        LOOK_S without any; None at the end.
        """
        batch: list[Order] = []
        try:
            order = self._orders.get(timeout=LOOK_S)
            until = time.monotonic() + _GATHER_S
            while order is not None:
                batch.append(order)
                if len(batch) >= _MOST_AT_ONCE:
                    return batch
                order = self._orders.get(timeout=max(0.0, min(_CLOSELY_S, until - time.monotonic())))
        except queue.Empty:
            return batch
        if batch:
            self._orders.put(None)  # the end comes after these
            return batch
        return None

    def _try_to_renew(self) -> None:
        try:
            with self._lock:
                self._renew()
        except Exception:  # noqa: BLE001 - the thread must go on
            pass  # the next order meets it again

    def _commit(self, batch: list[Order]) -> None:
        if time.monotonic() - self._looked > LOOK_S:
            self._heed_prune()
        if any(not isinstance(order.content, bytes) and not self._knows(order.content) for order in batch):
            self._session.writer.flush()  # so that what others added stays
            self._renew()
        for _ in range(_TRIES):
            ready = [(order, content) for order in batch if (content := self._ready(order))]
            if not ready or self._put(ready):
                return
            batch = [order for order, _ in ready]
            self._renew()
        _fail(batch, _moved())

    def _ready(self, order: Order) -> Content | None:
        """The order's content, stored as far as this session goes; None, and the order has failed, when it is not to be
        found.
        """
        if isinstance(order.content, bytes):
            return self.small(order.content)
        if self._knows(order.content):
            return order.content
        order.done.set_exception(_moved())
        return None

    def _knows(self, content: Content) -> bool:
        """Whether the session knows where all of a content lies. It does not when an earlier one stored it, or another
        server, since it began.
        """
        if content.depth:
            self._session.writer.flush()  # so that its lists of chunks can be read
        return None not in self._packs_of(content)

    def small(self, data: bytes) -> Content:
        """Store what is at most one chunk."""
        return Content(len(data), self.add(SMALL, data) if data else b"", 0)

    def _packs_of(self, content: Content) -> set[int | None]:
        """The numbers of the packs a content lies in; None among them: a part of it is in none."""
        pack_of, found = self._session.index.pack_of, set[int | None]()
        for item in split_items(content.chunks):
            found.add(pack_of(item))
            if content.depth and None not in found:
                found.update(pack_of(chunk) for chunk in split_items(self._reader.read(item)))
        return found

    def _put(self, ready: Sequence[Ready]) -> bool:
        """One snapshot and one transaction for all; False when packs vanished meanwhile."""
        now = self.repo.now_ns()
        entries: dict[bytes, Entry] = {}
        for order, content in ready:  # of two for one path the first counts, here as in the catalog
            entries.setdefault(order.path, content.entry(split(order.path)[1], now))
        pages = self.put_tree(runs_of(entries))
        self._session.writer.flush()
        used = {self._session.index.pack_of(page) for page in pages}
        for _, content in ready:
            used |= self._packs_of(content)
        snapshot_id = self._put_snapshot(used, self.snapshot(pages[-1], len(entries)))
        if snapshot_id:
            self._note(ready, snapshot_id)
        return bool(snapshot_id)

    def _put_snapshot(self, used: set[int | None], snapshot: Snapshot) -> str:
        """The snapshot's id, once everything it needs is known to be there; empty when something is not."""
        packs = {pack for pack in used if pack is not None}
        if None in used or self._session.lost(packs):
            return ""
        snapshot_id = self._session.commit(snapshot)
        if self._session.lost(packs):
            self.repo.storage.delete(f"snapshots/{snapshot_id}")
            return ""
        return snapshot_id

    def put_snapshot(
        self,
        runs: Callable[[], Iterable[Run]],
        made_of: Callable[[bytes], Snapshot],
        users: Names = _no_name,
        groups: Names = _no_name,
    ) -> str:
        """Store a snapshot of content that is on the shelf; its id. ``runs`` gives its entries, each time it is called;
        ``made_of`` the snapshot from its root; ``users`` and ``groups`` name owners.
        """
        for _ in range(_TRIES):
            session, used = self._session, set[int | None]()
            pages = self.put_tree(self._watched(runs(), used), users, groups)
            with self._lock:
                if session is not self._session:
                    continue
                session.writer.flush()
                used.update(session.index.pack_of(page) for page in pages)
                self._heed_prune()
                if session is self._session and (snapshot_id := self._put_snapshot(used, made_of(pages[-1]))):
                    return snapshot_id
                self._renew()
        raise _moved()

    def _watched(self, runs: Iterable[Run], used: set[int | None]) -> Iterator[Run]:
        """The runs, noting the packs of their content on the way."""
        for directory, entries in runs:
            self.demand_running()
            for entry in entries:
                if entry.content:
                    used |= self._packs_of(Content(entry.size, entry.content, entry.depth))
            yield directory, entries

    def put_tree(self, runs: Iterable[Run], users: Names = _no_name, groups: Names = _no_name) -> list[bytes]:
        """Store pages; their ids, the root's last."""
        pages: list[bytes] = []

        def keep(page: bytes) -> bytes:
            pages.append(self.add(TREE, page))
            return pages[-1]

        tree = TreeWriter(keep, self.repo.secrets.cut_seed, users, groups)
        for directory, entries in runs:
            tree.add(directory, entries)
        pages.append(tree.finish())
        return pages

    def snapshot(self, root: bytes, files: int) -> Snapshot:
        """A snapshot of the shelf's own kind."""
        owner = self.repo.owner
        return Snapshot(
            time_ns=self.repo.now_ns(), host=owner.host, user=owner.user, base=b"/", paths=[], tags=[TAG], root=root,
            program=self._program, totals=Totals(files=files),
        )  # fmt: skip

    def _note(self, ready: Sequence[Ready], snapshot_id: str) -> None:
        """Have the clerks note it in one transaction; where that fails for all, in one for each, so that nobody suffers
        from what somebody else has sent. A snapshot that could not be noted is noted with the next one, without what is
        in it: whoever sent that was told so.
        """
        self._unnoted.append(snapshot_id)
        try:
            self._note_together(ready)
        except Exception as e:
            if len(ready) == 1 or isinstance(e, StorageFull):
                raise
            until = time.monotonic() + _ALONE_S
            for one in ready:
                self._note_alone(one, e if time.monotonic() > until else None)
        for order, _ in ready:
            if order.done.done():
                continue
            if order.error is not None:
                order.done.set_exception(order.error)
            else:
                order.done.set_result(None)

    def _note_together(self, ready: Sequence[Ready]) -> None:
        with self._database.writing() as connection:
            known = {order.account for order, _ in ready if order.account is not None}
            deletions = holdings.hold_accounts(connection, known)
            for order, _ in ready:
                order.error, order.deletions = None, deletions.get(order.account or 0, 0)
            for snapshot_id in self._unnoted:
                holdings.add_shelf(connection, snapshot_id)
            for clerk, some in itertools.groupby(ready, key=lambda pair: pair[0].clerk):
                clerk(connection, list(some))
        self._unnoted = []

    def _tell_unnoted(self) -> None:
        if self._unnoted:
            self._note_together([])

    def _note_alone(self, one: Ready, error: Exception | None) -> None:
        """``error``: there is no time left to try."""
        try:
            if error is not None:
                raise error
            self._note_together([one])
        except Exception as e:  # noqa: BLE001 - whoever waits gets it
            one[0].done.set_exception(e)


def runs_of(entries: Mapping[bytes, Entry]) -> Iterator[Run]:
    """Entries by path as the runs of a tree, with the folders they need."""
    folders: dict[bytes, list[Entry]] = {b"": [_folder(b"")]}

    def listed(folder: bytes) -> list[Entry]:
        if folder not in folders:
            folders[folder] = []
            above, name = split(folder)
            listed(above).append(_folder(name))
        return folders[folder]

    for path, entry in entries.items():
        listed(split(path)[0]).append(entry)
    for folder in sorted(folders, key=lambda path: sort_key(path, b"")):
        yield folder, sorted(folders[folder], key=lambda entry: entry.name)


def _folder(name: bytes) -> Entry:
    return Entry(name, "d", 0o700, 0, 0, 0, 0, 0)


def _fail(batch: Iterable[Order] | None, error: BaseException) -> None:
    for order in batch or ():
        if not order.done.done():
            order.done.set_exception(error)


def _moved() -> StorageUnavailable:
    return StorageUnavailable("What was uploaded was moved by a prune before it was complete.", "Upload it again.")
