"""Keeps the shelf small, and the catalog complete.

Each commit of the shelf puts a snapshot. When many have gathered, they are merged into one, without what the catalog
no longer knows (parts of files that are whole by now, what was given up), and the old ones deleted: what nothing needs
any more, prune frees. After something was given up all are merged, however few, so that its space can be freed soon. A
snapshot of the shelf that the catalog does not know (the server was killed between the two, or the catalog was lost) is
taken in: its files, parts, blobs and manifests become the accounts' again.

What is promised: a merged snapshot is durable before one that it stands for is deleted; what the catalog
names is never left out; taking in twice changes nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

from holdfast.accounts.directory import Identity
from holdfast.catalog import blobs, holdings, numbers, people
from holdfast.catalog.blobs import Blob
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import File, Part
from holdfast.errors import AccountError, ContentError, HoldfastError, QuotaFull, UsageError
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.seen import NOBODY
from holdfast.repository.format import Entry
from holdfast.repository.pages import Run, Tree, join, sort_key
from holdfast.repository.snapshots import Stored
from holdfast.shelf.shelf import TAG, Content, Shelf

MANY = 256  # snapshots that may gather
FULLY_S = 3600.0  # so often all are merged, at most: on a large shelf that is a lot of work
_SOME = 500
_YOUNG_NS = 300 * 1_000_000_000
Named = tuple[bytes, Entry]  # path and entry


class Tidier:
    """See the module."""

    def __init__(
        self, shelf: Shelf, manifests: Manifests, database: Database, folder: str, now_ns: Callable[[], int]
    ) -> None:
        self._shelf, self._manifests, self._database, self._now_ns = shelf, manifests, database, now_ns
        self._folder = folder
        self._full_at = -FULLY_S  # when all were merged, by the steady clock
        self._uncounted = False  # something was taken in, and what accounts use was not counted anew

    # -- taking in -------------------------------------------------------------------------------------------------

    def take_in(self) -> int:
        """Take in the snapshots that the catalog does not know, and of those that it knows what belongs to accounts
        that have come since. What goes wrong with one is raised when the others are done. How many are left for later:
        while another server writes, one that was put just now may be about to be noted by that.
        """
        with self._database.reading() as c:
            known = holdings.known_shelves(c)
            accounts = {a.username: Identity(a.id, a.username, a.role, frozenset()) for a in people.list_accounts(c)}
        stored = self._stored()
        young = self._now_ns() - (0 if self._shelf.is_alone() else _YOUNG_NS)
        failure, left = None, 0
        for one in stored:
            if one.id not in known and one.snapshot.time_ns > young:
                left += 1
            elif one.id not in known or known[one.id] & accounts.keys():
                try:
                    self._take_in_one(one, accounts)
                except HoldfastError as e:
                    failure = failure or e
        with self._database.writing() as c:
            holdings.drop_shelves(c, known.keys() - {s.id for s in stored})
            if self._uncounted:
                holdings.count_usage(c)
        self._uncounted = False
        if failure:
            raise failure
        return left

    def _take_in_one(self, one: Stored, accounts: dict[str, Identity]) -> None:
        with self._database.reading() as c:
            strangers = holdings.strangers_of(c, one.id)  # it may have been noted since
        if strangers is not None:
            accounts = {name: by for name, by in accounts.items() if name in strangers}
            if not accounts:
                return
        self._uncounted = True
        others = self._take_in(one, accounts) - accounts.keys()
        with self._database.writing() as c:
            holdings.add_shelf(c, one.id, others)

    def _take_in(self, stored: Stored, accounts: dict[str, Identity]) -> set[str]:
        """Take in what belongs to these accounts; whose there are besides."""
        others = set[str]()
        entries = self._files_in(stored)
        while some := list(itertools.islice(entries, _SOME)):
            self._shelf.demand_running()
            documents: list[tuple[Identity, Content]] = []
            with self._database.writing() as c:
                held = holdings.hold_accounts(c, [by.account for by in accounts.values()])
                for path, entry in some:
                    username = path.split(b"/")[0].decode()
                    by = accounts.get(username)
                    if by is None and username != NOBODY:  # its documents are made anew when they are asked for
                        others.add(username)
                    if by is not None and not self._note(c, by, path, entry, held.get(by.account, 0)):
                        documents.append((by, Content(entry.size, entry.content, entry.depth)))
            for by, content in documents:
                # It is no document, or none for this version, or its account is gone or full.
                with contextlib.suppress(ContentError, UsageError, AccountError, QuotaFull):
                    self._take_in_manifest(by, content)
        return others

    def _note(self, c: Connection, by: Identity, path: bytes, entry: Entry, deletions: int) -> bool:
        """Note a file, a part or a blob; False for a manifest."""
        _, kind, *rest = path.decode().split("/")
        if kind == "files" and holdings.file_of(c, by.account, rest[0]) is None:
            file = File(rest[0], entry.size, entry.content, entry.depth)
            holdings.add_files(c, by.account, [file], self._now_ns(), deletions)
            holdings.delete_parts(c, by.account, file.hash)
            holdings.settle(c, by.account, {file.hash: file.size})
        if kind == "parts" and holdings.file_of(c, by.account, rest[0]) is None:
            start, stop, total = (int(number) for number in rest[1].split("-", 2))
            part = Part(rest[0], start, stop, total, entry.content, entry.depth)
            holdings.add_part(c, by.account, part, self._now_ns())
        if kind == "blobs":
            found = Blob(key=b"", size=entry.size, sha1="", modified_ns=entry.mtime_ns, place="", chunks=entry.content,
                         depth=entry.depth)  # fmt: skip
            blobs.take_in(c, by.account, rest[0], rest[1], found)
        return kind != "manifests"

    def _take_in_manifest(self, by: Identity, content: Content) -> None:
        with self._database.reading() as c:
            if holdings.has_document(c, by.account, content.chunks):
                return
        with tempfile.TemporaryFile(dir=self._folder) as document:
            document.writelines(self._manifests.rendered_of(content))
            document.seek(0)
            self._manifests.receive(by, document)

    # -- merging ---------------------------------------------------------------------------------------------------

    def tidy(self) -> int:
        """Merge snapshots when there are many, or something was given up; how many were merged."""
        with self._database.reading() as c:
            owed = numbers.owed_merging(c)
            known = {snapshot for snapshot, strangers in holdings.known_shelves(c).items() if not strangers}
        fully = owed > 0 and time.monotonic() - self._full_at >= FULLY_S
        if not known or not (fully or len(known) > MANY):
            return 0
        stored = [s for s in self._stored() if s.id in known]
        with self._database.writing() as c:
            holdings.drop_shelves(c, known - {s.id for s in stored})
        chosen = stored if fully else _of_like_size(stored)
        if len(chosen) < (1 if fully else 2):
            return 0
        self._merge(chosen)
        if fully:
            self._full_at = time.monotonic()
            with self._database.writing() as c:
                numbers.pay_merging(c, owed)
        return len(chosen)

    def _merge(self, chosen: list[Stored]) -> None:
        """Make one of several, or one anew."""
        count = 0

        def runs() -> Iterator[Run]:
            nonlocal count
            count = 0
            live = self._live(chosen)
            while some := list(itertools.islice(live, _SOME)):
                for directory, group in itertools.groupby(some, key=lambda named: named[0]):
                    entries = [entry for _, entry in group]
                    count += sum(entry.kind == "f" for entry in entries)
                    yield directory, entries

        merged = self._shelf.put_snapshot(runs, lambda root: self._shelf.snapshot(root, count))
        # Until they are gone the catalog says that it knows the old ones: nobody takes in again what was given up.
        with self._database.writing() as c:
            holdings.add_shelf(c, merged)
        old = [s.id for s in chosen if s.id != merged]
        for snapshot_id in old:
            self._shelf.repo.storage.delete(f"snapshots/{snapshot_id}")
        with self._database.writing() as c:
            holdings.drop_shelves(c, old)

    def _live(self, chosen: list[Stored]) -> Iterator[Named]:
        """Everything of these snapshots that the catalog knows, in order, each path once: (directory, entry)."""
        merged = heapq.merge(*(self._keyed(stored) for stored in chosen), key=lambda item: item[0])
        once = (next(same)[1:] for _, same in itertools.groupby(merged, key=lambda item: item[0]))
        while some := list(itertools.islice(once, _SOME)):
            paths = [join(directory, entry.name) for directory, entry in some if entry.kind == "f"]
            with self._database.reading() as c:
                known = _known(c, paths)
            for directory, entry in some:
                content = known.get(join(directory, entry.name))
                if entry.kind == "d":
                    yield directory, entry
                elif content is not None:
                    yield directory, content.entry(entry.name, entry.mtime_ns)

    def _keyed(self, stored: Stored) -> Iterator[tuple[tuple[bytes, bytes], bytes, Entry]]:
        for directory, entries in Tree(self._shelf.read, stored.snapshot.root).runs():
            for entry in entries:
                yield sort_key(directory, entry.name), directory, entry

    # -- both ------------------------------------------------------------------------------------------------------

    def _stored(self) -> list[Stored]:
        """The shelf's snapshots, the oldest first; one that is damaged is left alone."""
        found = self._shelf.repo.snapshots([])
        return [s for s in found if TAG in s.snapshot.tags]

    def _files_in(self, stored: Stored) -> Iterator[Named]:
        for _, directory, entry in self._keyed(stored):
            if entry.kind == "f":
                yield join(directory, entry.name), entry


def _known(c: Connection, paths: Iterable[bytes]) -> dict[bytes, Content]:
    """What the catalog has for paths of the shelf: the content that reading relies on. The same file may have come
    twice, cut in other places, and only one of the two is what the catalog names.
    """
    found: dict[bytes, Content] = {}
    for folder, group in itertools.groupby(paths, key=lambda path: path.split(b"/")[:2]):
        username, kind = (step.decode() for step in folder)
        names = {path: path.decode().split("/")[2:] for path in group}
        account = people.account_named(c, username)
        if kind == "manifests" and (account or username == NOBODY):
            whose = account.id if account else None
            rows = {path: holdings.manifest_by_id(c, int(name[0])) for path, name in names.items()}
            theirs = {path: row for path, row in rows.items() if row and row.account == whose and row.chunks}
            found |= {path: Content(row.size, row.chunks, row.depth) for path, row in theirs.items()}
        elif account and kind == "files":
            files = holdings.files_of(c, account.id, [name[0] for name in names.values()])
            here = {path: files[name[0]] for path, name in names.items() if name[0] in files}
            found |= {path: Content(file.size, file.chunks, file.depth) for path, file in here.items()}
        elif account and kind == "parts":
            of_each = {hash_: holdings.parts_of(c, account.id, hash_) for hash_ in {name[0] for name in names.values()}}
            there = {(part.hash, part.start, part.stop): part for parts in of_each.values() for part in parts}
            for path, name in names.items():
                if part := there.get((name[0], *_bounds(name[1]))):
                    found[path] = Content(part.stop - part.start, part.chunks, part.depth)
        elif kind == "blobs":
            for path, name in names.items():
                if blob := blobs.on_shelf(c, username, name[0], name[1]):
                    found[path] = Content(blob.size, blob.chunks, blob.depth)
    return found


def _bounds(name: str) -> tuple[int, int]:
    start, stop, _ = name.split("-", 2)
    return int(start), int(stop)


def _of_like_size(stored: list[Stored]) -> list[Stored]:
    """The small ones, up to where one is much larger than all before it: so each file is rewritten a few times only."""
    ordered = sorted(stored, key=lambda s: s.snapshot.totals.files)
    taken: list[Stored] = []
    total = 0
    for one in ordered:
        if taken and len(taken) >= 2 and one.snapshot.totals.files > 2 * total + MANY:
            break
        taken.append(one)
        total += one.snapshot.totals.files
    return taken
