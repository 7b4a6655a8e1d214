"""Files by their hash: put whole or in parts, read whole or by range, each account its own.

What is promised: a file is available when every byte of it is durable in the repository and their hash was checked;
what an account did not send itself it cannot read, whatever hash it names; parts may come in any order, from several
clients, over many runs of the server; a file whose parts do not add up to its hash is forgotten as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import msgspec

from holdfast.accounts.directory import Identity
from holdfast.archive.content import part_of
from holdfast.catalog import holdings, people
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import File, Part
from holdfast.errors import (
    Contradiction,
    HoldfastError,
    NoContent,
    OutOfRange,
    QuotaFull,
    StorageUnavailable,
    TooLarge,
    UsageError,
    WrongContent,
)
from holdfast.repository.contents import ContentList, split_items
from holdfast.repository.writer import TREE
from holdfast.shelf.shelf import Content, Order, Ready, Shelf
from holdfast.shelf.uploads import Cutters, Upload, hasher_of, in_repository, nowhere

Range = tuple[int, int]  # from the first byte up to, not including, the last
MOST_PARTS = 10_000  # of a file, as with S3
UNKNOWN = -1  # the total of a part, when its sender did not know it yet
_HASH = re.compile(r"[0-9A-Fa-f]{64}|[0-9A-Fa-f]{40}")


class State(msgspec.Struct, frozen=True):
    """What is here of a file. ``size``: None while nobody said. ``ranges``: what is here of one that is not complete,
    merged.
    """

    hash: str
    size: int | None
    is_available: bool
    ranges: tuple[Range, ...] = ()

    @property
    def leading(self) -> int:
        """How many bytes are here from the first one on."""
        return self.ranges[0][1] if self.ranges and self.ranges[0][0] == 0 else 0


@dataclass(eq=False)
class Arrival:
    """A whole file that is to become durable: whose, its hash. Known when its future is: whether it is new, and which
    manifests have all their files now.
    """

    by: Identity
    hash: str
    created: bool = False
    complete: list[int] = field(default_factory=list)


class Files:
    """See the module. Safe to share between threads. ``on_complete`` is told of manifests that are complete now."""

    def __init__(
        self,
        shelf: Shelf,
        database: Database,
        now_ns: Callable[[], int],
        most_bytes: int,
        on_complete: Callable[[list[int]], None],
    ) -> None:
        self._shelf, self._database, self._now_ns, self.most_bytes = shelf, database, now_ns, most_bytes
        self._cutters = Cutters(shelf.repo.config.chunker)
        self._on_complete = on_complete

    # -- what is there ---------------------------------------------------------------------------------------------

    def state(self, by: Identity, hash_: str) -> State:
        return self.states(by, [hash_])[hash_]

    def states(self, by: Identity, hashes: Iterable[str]) -> dict[str, State]:
        """What is here of each of these files."""
        wanted = list(hashes)
        with self._database.reading() as c:
            sizes = holdings.sizes_of(c, by.account, wanted)
            coming = holdings.has_parts(c, by.account)
            ranges = holdings.ranges_of(c, by.account, (h for h in wanted if h not in sizes)) if coming else {}
        return {h: _state(h, sizes.get(h), ranges.get(h, [])) for h in wanted}

    def file(self, by: Identity, hash_: str) -> File:
        """A complete file. NoContent when this account has none of that hash. Administrators also read what the command
        line backed up.
        """
        with self._database.reading() as c:
            found = holdings.file_of(c, by.account, hash_)
            if found is None and by.role == "admin":
                found = holdings.file_in_snapshots(c, hash_)
        if found is None:
            raise NoContent(f"You have no complete file {hash_}.", "`GET /manifests` tells what is missing; upload it.")
        return found

    def pieces(self, file: File, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """The bytes of a file, or of a range of it, verified, piece by piece."""
        content = Content(file.size, file.chunks, file.depth)
        yield from self._read(content, start, file.size if stop is None else stop, file.hash)

    # -- whole files -----------------------------------------------------------------------------------------------

    def admit(self, by: Identity, size: int | None, total: int | None = None) -> int:
        """Refuse a body of that size (None: unknown) of a file of ``total`` bytes before it is received: TooLarge,
        QuotaFull. How many bytes it may have at most.
        """
        most = max(size or 0, total or 0)
        if most > self.most_bytes:
            raise TooLarge(f"A file has at most {self.most_bytes} bytes here.")
        with self._database.reading() as c:
            account = people.account_by_id(c, by.account)
        if account is None or account.quota_bytes is None:
            return self.most_bytes
        left = account.quota_bytes - account.used_bytes
        if left < (size or 0) or account.quota_bytes < most:
            raise quota_full()
        return min(self.most_bytes, max(left, 0))

    def keep(self, by: Identity, hash_: str) -> None:
        """A file that is here was sent again: it stays, though the manifest that named it was deleted meanwhile."""
        with self._database.writing() as c:
            deletions = holdings.hold_accounts(c, [by.account]).get(by.account, 0)
            holdings.touch_files(c, by.account, [hash_], deletions)
            if holdings.file_of(c, by.account, hash_) is None:
                raise _gone(hash_)

    def receive(self, hash_: str | None, *, keep: bool = True) -> Upload[Content]:
        """Take a body. ``hash_``: what it should hash to; None for a part. Not ``keep``: only hash it."""
        store = in_repository(self._shelf, self._cutters) if keep else nowhere
        return Upload(store, hasher_of(hash_) if hash_ is not None else None)

    def put(self, by: Identity, hash_: str, content: Content | bytes, actual: str) -> tuple[Future[None], Arrival]:
        """Have a whole file become durable. ``actual``: the hash of its bytes; WrongContent when it is another one."""
        if actual != hash_:
            raise WrongContent(f"The bytes hash to {actual}, not to {hash_}; nothing was kept.", "Upload them again.")
        arrival = Arrival(by, hash_)
        future = self._shelf.commit(Order(_path(by, "files", hash_), by.account, content, self._note_files, arrival))

        def tell(future: Future[None]) -> None:
            if arrival.complete:
                self._on_complete(arrival.complete)

        future.add_done_callback(tell)
        return future, arrival

    def _note_files(self, c: Connection, ready: list[Ready]) -> None:
        """The clerk of whole files."""
        accounts: dict[int, list[Ready]] = {}
        for order, content in ready:
            accounts.setdefault(order.about.by.account, []).append((order, content))
        for account, some in accounts.items():
            self._note_files_of(c, account, some)

    def _note_files_of(self, c: Connection, account: int, ready: list[Ready]) -> None:
        """A few questions for all of an account's files, however many there are."""
        contents: dict[str, Content] = {}
        for order, content in ready:
            contents.setdefault(order.about.hash, content)  # the first counts, as on the shelf
        here = holdings.sizes_of(c, account, contents)
        fresh = {hash_: content for hash_, content in contents.items() if hash_ not in here}
        deletions = ready[0][0].deletions
        holdings.touch_files(c, account, here, deletions)
        parts = holdings.ranges_of(c, account, fresh)
        costs = {hash_: content.size - _bytes(parts.get(hash_, ())) for hash_, content in fresh.items()}
        refused: set[str] = set()
        if not people.charge(c, account, sum(costs.values()), len(costs)):
            refused = {hash_ for hash_, cost in costs.items() if not people.charge(c, account, cost, 1)}
        files = [File(h, x.size, x.chunks, x.depth) for h, x in fresh.items() if h not in refused]
        for file in files:
            if file.hash in parts:
                holdings.delete_parts(c, account, file.hash)
        holdings.add_files(c, account, files, self._now_ns(), deletions)
        complete = holdings.settle(c, account, {file.hash: file.size for file in files})
        for order, _ in ready:
            if order.about.hash in refused:
                order.error = quota_full()
            elif order.about.hash in fresh:
                order.about.created, order.about.complete = True, complete

    # -- parts -----------------------------------------------------------------------------------------------------

    def demand_room(self, by: Identity, hash_: str, total: int) -> State:
        """What is here of a file of which a part is to come. Contradiction when ``total`` is not what is known."""
        with self._database.reading() as c:
            self._demand_total(c, by, hash_, total)
        return self.state(by, hash_)

    def put_part(self, by: Identity, hash_: str, start: int, total: int, content: Content) -> Future[None]:
        """Have a part become durable: ``content`` from byte ``start`` of a file of ``total`` bytes (or
        UNKNOWN).
        """
        part = Part(hash_, start, start + content.size, total, content.chunks, content.depth)
        name = f"{hash_}/{start:020d}-{part.stop:020d}-{total}"
        order = Order(_path(by, "parts", name), by.account, content, self._note_parts, (by, part))
        return self._shelf.commit(order)

    def _note_parts(self, c: Connection, ready: list[Ready]) -> None:
        """The clerk of parts."""
        for order, content in ready:
            by, part = order.about
            try:
                self._demand_total(c, by, part.hash, part.total)
            except Contradiction as e:
                order.error = e
                continue
            if holdings.file_of(c, by.account, part.hash) is not None:
                holdings.touch_files(c, by.account, [part.hash], order.deletions)
                continue
            if holdings.has_many_parts(c, by.account, part.hash, MOST_PARTS):
                order.error = TooLarge(f"A file comes in at most {MOST_PARTS} parts here.", "Send larger ones.")
                continue
            if not people.charge(c, by.account, content.size, 0):
                order.error = quota_full()
            elif not holdings.add_part(c, by.account, part, self._now_ns()):
                people.charge(c, by.account, -content.size, 0)

    def finish(self, by: Identity, hash_: str) -> State:
        """When all parts of a file are here, check its hash and make it a file. WrongContent when it is another one:
        then all its parts are forgotten.
        """
        with self._database.reading() as c:
            parts = holdings.parts_of(c, by.account, hash_)
        state = self.state(by, hash_)
        if not parts or state.size is None or state.ranges != ((0, state.size),):
            return state
        content, actual = self._joined(parts, hash_)
        if actual != hash_:
            with self._database.writing() as c:
                holdings.hold_accounts(c, [by.account])
                is_first = parts[0] in holdings.parts_of(c, by.account, hash_)
                people.charge(c, by.account, -holdings.delete_parts(c, by.account, hash_, parts), 0)
            if not is_first:  # somebody else has told so already, and others may be here by now
                return self.state(by, hash_)
        self.put(by, hash_, content, actual)[0].result()
        return self.state(by, hash_)

    def finish_all(self) -> None:
        """Make files of those whose last part came just before the server was stopped. What goes wrong with one is
        raised when the others are done.
        """
        with self._database.reading() as c:
            waiting = holdings.unfinished(c)
            accounts = {account.id: account for account in people.list_accounts(c)}
        failure: HoldfastError | None = None
        for number, hash_ in waiting:
            self._shelf.demand_running()
            account = accounts.get(number)
            if account is None:
                continue
            by = Identity(account.id, account.username, account.role, frozenset())
            try:
                self.finish(by, hash_)
            except (WrongContent, QuotaFull):
                continue
            except HoldfastError as e:
                failure = failure or e
        if failure:
            raise failure

    def _joined(self, parts: list[Part], hash_: str) -> tuple[Content, str]:
        """All parts as one content, and its hash. Parts that lie end to end are taken as they are; where they overlap
        their bytes are stored anew, which costs little: most of it is there.
        """
        plan = list(_plan(parts))
        hasher = hasher_of(hash_)
        end_to_end = all((a, b) == (part.start, part.stop) for part, a, b in plan)
        again = None if end_to_end else self.receive(None)
        try:
            for part, a, b in plan:
                content = Content(part.stop - part.start, part.chunks, part.depth)
                for piece in self._read(content, a - part.start, b - part.start, hash_):
                    hasher.update(piece)
                    if again:
                        again.feed(piece)
        except BaseException:
            if again:
                again.abandon()
            raise
        if again:
            return again.finish()[0], hasher.hexdigest()
        items = ContentList(lambda piece: self._shelf.add(TREE, piece))
        for part, _, _ in plan:
            for item in self._items(part):
                items.add(item)
        return Content(plan[-1][2], *items.finish()), hasher.hexdigest()

    def _items(self, part: Part) -> Iterator[bytes]:
        for item in split_items(part.chunks):
            yield from split_items(self._shelf.read(item)) if part.depth else (item,)

    def _demand_total(self, c: Connection, by: Identity, hash_: str, total: int) -> None:
        """Contradiction when it is known that the file has another size. UNKNOWN contradicts nothing."""
        total_there = holdings.total_of_parts(c, by.account, hash_)
        known = {total_there} if total_there is not None else holdings.wants(c, by.account, hash_)
        if (file := holdings.file_of(c, by.account, hash_)) is not None:
            known = {file.size}
        if known and total not in (*known, UNKNOWN):
            shown = " or ".join(str(size) for size in sorted(known))
            raise Contradiction(f"The file {hash_} has {shown} bytes, not {total}.", "Check the file and its hash.")

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, content: Content, start: int, stop: int, name: str) -> Iterator[bytes]:
        yield from part_of(self._shelf, content.entry(b""), start, stop, name.encode())


def _gone(hash_: str) -> StorageUnavailable:
    return StorageUnavailable(f"The file {hash_} was deleted while it was sent.", "Upload it again.")


def parse_hash(text: str) -> str:
    """A file's name: 64 hex digits for SHA-256, 40 for SHA-1; in lower case. UsageError for anything else."""
    if not _HASH.fullmatch(text):
        raise UsageError("A file is named by 64 hex digits (SHA-256) or 40 (SHA-1).")
    return text.lower()


def demand_range(start: int, stop: int, size: int) -> None:
    """OutOfRange when no byte of it exists."""
    if not 0 <= start < stop <= size:
        raise OutOfRange(f"The file has {size} bytes.", "Ask for a range within them.", size=size)


def _state(hash_: str, size: int | None, parts: list[tuple[int, int, int]]) -> State:
    if size is not None:
        return State(hash_, size, True)
    if not parts:
        return State(hash_, None, False)
    total = max(total for _, _, total in parts)
    return State(hash_, None if total == UNKNOWN else total, False, merged((start, stop) for start, stop, _ in parts))


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Ranges in order, those that touch or overlap made one."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return tuple(found)


def _plan(parts: list[Part]) -> Iterator[tuple[Part, int, int]]:
    """Which part each stretch of the file is taken from; what comes first wins."""
    at = 0
    for part in sorted(parts, key=lambda p: (p.start, -p.stop)):
        if part.stop > at:
            yield part, max(at, part.start), part.stop
            at = part.stop


def _bytes(parts: Iterable[tuple[int, int, int]]) -> int:
    return sum(stop - start for start, stop, _ in parts)


def _path(by: Identity, kind: str, name: str) -> bytes:
    return f"{by.username}/{kind}/{name}".encode()


def quota_full() -> QuotaFull:
    return QuotaFull("The account's quota is full.", "Delete something, or ask an administrator for more.")
