"""Manifests: received, kept to the letter, given back with what is here of each file.

What is promised: a manifest that was acknowledged is durable; its availability is worked out anew each time it is
read, from what its own account has; one that has all its files becomes a snapshot, which the command line restores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from holdfast.accounts.directory import Identity
from holdfast.catalog import holdings, people
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import File, Manifest
from holdfast.errors import HoldfastError, NoAccount, NoContent, UsageError
from holdfast.manifests.document import HEADER_MOST, Claim, Reading, lines_of, rendered
from holdfast.manifests.files import Files, State, quota_full
from holdfast.manifests.seen import SeenSnapshots, reads_snapshots
from holdfast.shelf.shelf import Content, Order, Ready, Shelf
from holdfast.shelf.uploads import PIECE

MOST_LISTED = 1000
_CLAIMS = 2000  # files that are looked for at a time
_MISSING = 12_000  # files that are noted at a time
_RECEIVING_NS = 24 * 3600 * 1_000_000_000  # nobody takes longer to send a manifest


@dataclass(eq=False)
class _Received:
    """A manifest whose lines are stored. ``version`` is known when it is noted."""

    by: Identity
    number: int
    here: int
    reading: Reading
    now_ns: int
    version: int = 0
    complete: bool = False


class Page(msgspec.Struct, frozen=True):
    """A page of a list. ``next``: what to ask the next one with, None after the last."""

    manifests: list[Manifest]
    next: int | None


class Manifests:
    """See the module. Safe to share between threads. ``on_complete`` is told of manifests that have all their files."""

    def __init__(
        self,
        shelf: Shelf,
        files: Files,
        database: Database,
        now_ns: Callable[[], int],
        on_complete: Callable[[list[int]], None],
    ) -> None:
        self._shelf, self._files, self._database, self._now_ns = shelf, files, database, now_ns
        self._on_complete = on_complete
        self._receiving: dict[int, int] = {}  # manifests that this process receives, and whose they are
        self._failed: dict[int, int] = {}  # those whose receiving failed, and whose rows are there still
        self._seen = SeenSnapshots(shelf, files, database)

    def close(self) -> None:
        """End what is worked out for nobody any more."""
        self._seen.close()

    # -- receiving -------------------------------------------------------------------------------------------------

    def receive(self, by: Identity, source: BinaryIO) -> Manifest:
        """Read, check and store a manifest (``source``: its JSON, seekable) as the next version of its name."""
        now = self._now_ns()
        with self._database.writing() as c:
            number = holdings.begin_manifest(c, by.account, now)
        if number is None:
            raise NoAccount("The account is gone.")
        self._receiving[number] = by.account
        try:
            reading = Reading(source)
            here, content = self._store(by, number, reading)
            received = _Received(by, number, here, reading, now)
            path = f"{by.username}/manifests/{number:020d}".encode()
            self._shelf.commit(Order(path, by.account, content, self._note, received)).result()
        except BaseException:
            self._failed[number] = by.account
            with contextlib.suppress(HoldfastError):  # it is tried again
                self._drop_failed()
            raise
        finally:
            del self._receiving[number]
        if received.complete:
            self._on_complete([number])
        with self._database.reading() as c:
            found = holdings.manifest_by_id(c, number)
        if found is None:
            raise NoAccount("The account is gone.")
        return found

    def clear(self, *, all_of_them: bool = False) -> None:
        """Forget what was being received when a server was killed, a day ago or more, or at whatever time; and what
        could not be forgotten when its receiving failed here.
        """
        with self._database.writing() as c:
            before = self._now_ns() - (0 if all_of_them else _RECEIVING_NS)
            holdings.drop_all_unfinished(c, before, list(self._receiving))
        self._drop_failed()

    def _drop_failed(self) -> None:
        for number, account in list(self._failed.items()):
            with self._database.writing() as c:
                holdings.drop_unfinished(c, number, account)
            self._failed.pop(number, None)

    def _store(self, by: Identity, number: int, reading: Reading) -> tuple[int, Content]:
        """Store the lines while they are read; how many of the files are here, and the content."""
        upload, looking = self._files.receive(None), _Looking(self._database, by.account, number)
        held = bytearray()
        try:
            for line, claim in reading.lines():
                held += line
                if len(held) >= PIECE:
                    upload.feed(bytes(held))
                    held.clear()
                if claim is not None:
                    looking.add(claim)
            upload.feed(bytes(held))
            return looking.finish(), upload.finish()[0]
        except BaseException:
            upload.abandon()
            raise

    def _note(self, c: Connection, ready: list[Ready]) -> None:
        """The clerk of manifests."""
        for order, content in ready:
            received: _Received = order.about
            if not people.charge(c, received.by.account, content.size, 1):
                order.error = quota_full()
                continue
            header = received.reading.header
            version = holdings.finish_manifest(
                c, received.number, received.by.account, received.here, name=header["name"],
                timestamp=header.get("timestamp") or "", base=header.get("base") or "",
                header=msgspec.json.Encoder(decimal_format="number").encode(header), files=received.reading.files,
                content_bytes=min(received.reading.bytes, (1 << 63) - 1), received_ns=received.now_ns,
                **msgspec.structs.asdict(content),
            )  # fmt: skip
            if version is None:
                people.charge(c, received.by.account, -content.size, -1)
                order.error = NoAccount("The account is gone.")
                continue
            received.complete = holdings.settle_manifest(c, received.by.account, received.number)

    # -- reading ---------------------------------------------------------------------------------------------------

    def named(self, by: Identity, name: str, version: int | None = None) -> Manifest:
        """One manifest, the newest version unless one is asked for. NoContent when the account has none.

        For administrators the command line's snapshots are manifests too.
        """
        if reads_snapshots(by):
            self._seen.look()
        with self._database.reading() as c:
            found = holdings.manifest_named(c, by.account, name, version)
            if found is None and reads_snapshots(by):
                found = holdings.manifest_named(c, None, name, version)
        if found is None:
            which = f" version {version} of" if version is not None else ""
            raise NoContent(f"You have no{which} manifest {name!r}.", "`GET /manifests` lists those there are.")
        return self._seen.with_document(found)

    def page(self, by: Identity, *, limit: int, before: int | None, name: str | None) -> Page:
        """The newest version of each name, or with ``name`` its versions; the newest received first."""
        if not 1 <= limit <= MOST_LISTED:
            raise UsageError(f"The limit must be between 1 and {MOST_LISTED}.")
        if reads_snapshots(by):
            self._seen.look()
        with self._database.reading() as c:
            found = holdings.list_manifests(
                c, by.account, snapshots_too=reads_snapshots(by), name=name, before=before, limit=limit + 1
            )
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    def render(self, by: Identity, manifest: Manifest, *, as_number: bool = False) -> Generator[bytes, None, None]:
        """The manifest as JSON, piece by piece, with its availability as it is now."""
        judge = None if manifest.available == manifest.files else self._judge(by)
        yield from rendered(manifest.header, self.lines(manifest), judge, as_number)

    def rendered_of(self, content: Content) -> Iterator[bytes]:
        """A stored document as JSON, as it came."""
        file = File("", content.size, content.chunks, content.depth)
        end = b"".join(self._files.pieces(file, max(0, file.size - 2 * HEADER_MOST)))
        header = end.rstrip(b"\n").rpartition(b"\n")[2]
        yield from rendered(header[len(b'["h",') : -1], lines_of(self._files.pieces(file)), None, False)

    def lines(self, manifest: Manifest) -> Iterator[bytes]:
        """Its stored lines, the header's left out."""
        content = File(manifest.name, manifest.size, manifest.chunks, manifest.depth)
        return lines_of(self._files.pieces(content))

    def _judge(self, by: Identity) -> Callable[[list[Claim]], list[State]]:
        def judge(claims: list[Claim]) -> list[State]:
            """What is here; a file counts for an entry only when its size is the one that the entry says."""
            states = self._files.states(by, {claim.hash.lower() for claim in claims})
            return [_fitting(states[claim.hash.lower()], claim.size) for claim in claims]

        return judge


class _Looking:
    """Looks for the files of a manifest that is being received: counts those that are here, and notes the others as
    wanted, many at a time, for each transaction costs a flush.
    """

    def __init__(self, database: Database, account: int, number: int) -> None:
        self._database, self._account, self._number = database, account, number
        self._claims: list[Claim] = []
        self._missing: dict[tuple[str, int], int] = {}
        self._here = 0

    def add(self, claim: Claim) -> None:
        self._claims.append(claim)
        if len(self._claims) >= _CLAIMS:
            self._look()
        if len(self._missing) >= _MISSING:
            self._keep()

    def finish(self) -> int:
        """How many of the files were here."""
        self._look()
        self._keep()
        return self._here

    def _look(self) -> None:
        with self._database.reading() as c:
            sizes = holdings.sizes_of(c, self._account, {claim.hash for claim in self._claims})
        for claim in self._claims:
            if sizes.get(claim.hash) == claim.size:
                self._here += 1
            else:
                key = claim.hash, claim.size
                self._missing[key] = self._missing.get(key, 0) + 1
        self._claims = []

    def _keep(self) -> None:
        if self._missing:
            with self._database.writing() as c:
                holdings.hold_accounts(c, [self._account])
                holdings.add_wanted(c, self._number, dict(sorted(self._missing.items())))
        self._missing = {}


def _fitting(state: State, size: int) -> State:
    return state if state.size in (None, size) else State(state.hash, None, False)


def about(manifest: Manifest) -> dict[str, Any]:
    """A manifest as a list shows it, its address left out."""
    return {
        "name": manifest.name, "version": manifest.version, "timestamp": manifest.timestamp or None,
        "base": manifest.base or None, "files": manifest.files, "available": manifest.available,
        "bytes": manifest.content_bytes,
    }  # fmt: skip
