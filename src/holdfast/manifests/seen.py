"""Snapshots that the command line made, as manifests: listed for administrators, and rendered in the same form.

A snapshot does not know its files' SHA-256. The first time one is read as a manifest they are worked out, by reading
every file that no earlier one had, and the document is kept like one that came over HTTP. That may take long: it goes
on in a thread of its own when nobody waits for it any more, and what was worked out is kept when the server stops.

What is promised: what is rendered is what the snapshot holds, as far as a manifest can say it (names that are not
text, and what is neither file, folder nor symbolic link, are counted under ``left_out``); a snapshot that was forgotten
is no longer listed.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import msgspec

from holdfast.accounts.directory import Identity
from holdfast.archive.listing import Listed, listing
from holdfast.catalog import holdings
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import File, Manifest
from holdfast.errors import NoContent, StorageUnavailable
from holdfast.manifests.document import HEADER_MOST, encode
from holdfast.manifests.files import Files
from holdfast.repository.format import Snapshot
from holdfast.repository.pages import Tree
from holdfast.repository.snapshots import Stored, read_snapshot
from holdfast.shelf.shelf import TAG, Content, Order, Ready, Shelf
from holdfast.shelf.uploads import PIECE

WAIT_S = 10.0  # so long one waits for a document
NOBODY = "-"  # in the place of an account on the shelf
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LINKS_MOST = HEADER_MOST // 2


class SeenSnapshots:
    """See the module. Safe to share between threads; ``close`` ends the one that makes documents."""

    def __init__(self, shelf: Shelf, files: Files, database: Database) -> None:
        self._shelf, self._files, self._database = shelf, files, database
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="documents")
        self._making: dict[int, Future[None]] = {}
        self._lock = threading.Lock()  # of ``_making``
        self._closing = threading.Event()

    def close(self) -> None:
        self._closing.set()
        self._maker.shutdown(wait=True, cancel_futures=True)

    def look(self) -> None:
        """Note snapshots that are new, and forget those that were."""
        repo = self._shelf.repo
        with self._database.reading() as c:
            known = holdings.snapshots_known(c)
        present = {info.name[10:] for info in repo.storage.list("snapshots")}
        fresh = [Stored(i, read_snapshot(repo.storage, repo.secrets, i)) for i in present - known]
        if not fresh and known <= present:
            return
        with self._database.writing() as c:
            holdings.forget_snapshots(c, known - present)
            for stored in sorted(fresh, key=lambda s: (s.snapshot.time_ns, s.id)):
                if holdings.note_seen(c, stored.id) and not _is_made_here(stored.snapshot):
                    self._note_snapshot(c, stored)

    def _note_snapshot(self, c: Connection, stored: Stored) -> None:
        snapshot = stored.snapshot
        base = snapshot.base.decode("utf-8", "replace")
        holdings.add_manifest(
            c, name=f"{snapshot.host}:{quote(base, safe='')}"[:255] or stored.short, timestamp=_time(snapshot.time_ns),
            base=base, header=b"", files=snapshot.totals.files, available=snapshot.totals.files,
            content_bytes=snapshot.totals.bytes_total, received_ns=snapshot.time_ns, snapshot=stored.id,
            size=0, chunks=b"", depth=0,
        )  # fmt: skip

    def with_document(self, manifest: Manifest) -> Manifest:
        """The same manifest once its document is made; StorageUnavailable when that takes longer than WAIT_S."""
        if manifest.account is not None or manifest.header:
            return manifest
        try:
            self._asked_for(manifest).result(WAIT_S)
        except TimeoutError:
            raise StorageUnavailable(
                f"The files of {manifest.name!r} are being hashed for the first time.", "Ask again in a while."
            ) from None
        except CancelledError:
            raise StorageUnavailable("The server is stopping.", "Try again in a while.") from None
        with self._database.reading() as c:
            found = holdings.manifest_by_id(c, manifest.id)
        if found is None:
            raise _forgotten(manifest)
        return found

    def _asked_for(self, manifest: Manifest) -> Future[None]:
        """The making of its document; the same for all who ask meanwhile."""
        with self._lock:
            future = self._making.get(manifest.id)
            if future is None:
                if self._closing.is_set():
                    raise StorageUnavailable("The server is stopping.", "Try again in a while.")
                future = self._making[manifest.id] = self._maker.submit(self._make_once, manifest)
        return future

    def _make_once(self, manifest: Manifest) -> None:
        try:
            with self._database.reading() as c:
                found = holdings.manifest_by_id(c, manifest.id)
            if found is None:
                raise _forgotten(manifest)
            if not found.header:
                self._make(found)
        finally:
            with self._lock:
                del self._making[manifest.id]

    def _make(self, manifest: Manifest) -> None:
        repo = self._shelf.repo
        snapshot = read_snapshot(repo.storage, repo.secrets, manifest.snapshot)
        header = {"name": manifest.name, "timestamp": manifest.timestamp, "base": manifest.base}
        document = _Document(header | {"host": snapshot.host, "user": snapshot.user, "tags": snapshot.tags})
        upload, held = self._files.receive(None), bytearray()
        try:
            for line in self._lines(snapshot, document):
                held += line
                if len(held) >= PIECE:
                    upload.feed(bytes(held))
                    held.clear()
            upload.feed(bytes(held))
            content, _ = upload.finish()
        except BaseException:
            upload.abandon()
            raise
        path = f"{NOBODY}/manifests/{manifest.id:020d}".encode()
        self._shelf.commit(Order(path, None, content, self._note, (manifest.id, document))).result()

    def _note(self, c: Connection, ready: list[Ready]) -> None:
        """The clerk of documents."""
        for order, content in ready:
            number, document = order.about
            holdings.set_document(
                c, number, header=encode(document.header), files=document.files, available=document.files,
                **msgspec.structs.asdict(content),
            )  # fmt: skip

    def _lines(self, snapshot: Snapshot, document: _Document) -> Iterator[bytes]:
        """Files first, then directories: a section stands together."""
        for kind in "fd":
            for found in listing(Tree(self._shelf.read, snapshot.root)):
                if kind == "d" and found.entry.kind not in "fd":
                    document.note_other(found)
                if found.entry.kind == kind and found.path and (path := _text(found.path)) is not None:
                    more = self._claim(found) if kind == "f" else {}
                    document.files += kind == "f"
                    yield encode([kind, f"./{path}", more | _about(found)]) + b"\n"
                elif found.entry.kind == kind and found.path:
                    document.leave_out()
        yield encode(["h", document.header]) + b"\n"

    def _claim(self, found: Listed) -> dict[str, Any]:
        entry = found.entry
        content = Content(entry.size, entry.content, entry.depth)
        key = hashlib.blake2b(encode([entry.size, entry.depth]) + entry.content, digest_size=16).digest()
        with self._database.reading() as c:
            hash_ = holdings.digest_of(c, key)
        if hash_ is None:
            hasher = hashlib.sha256()
            for piece in self._files.pieces(File("", content.size, content.chunks, content.depth)):
                hasher.update(piece)
                if self._closing.is_set():
                    raise StorageUnavailable("The server is stopping.", "Try again in a while.")
            hash_ = hasher.hexdigest()
            with self._database.writing() as c:
                holdings.add_digest(c, key, File(hash_, content.size, content.chunks, content.depth))
        return {"hash": hash_, "size": entry.size}


class _Document:
    """What is said besides files and directories."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.header, self.files = header, 0
        self._room = _LINKS_MOST

    def note_other(self, found: Listed) -> None:
        """A symbolic link, as far as there is room; anything else is only counted."""
        path, target = _text(found.path), _text(found.entry.target)
        self._room -= len(found.path) + len(found.entry.target) + 200
        if found.entry.kind != "l" or path is None or target is None or self._room < 0:
            self.leave_out()
            return
        about = {name: value for name, value in _about(found).items() if name != "permissions"}
        self.header.setdefault("symlinks", {})[f"./{path}"] = {"target": target} | about

    def leave_out(self) -> None:
        self.header["left_out"] = self.header.get("left_out", 0) + 1


def _about(found: Listed) -> dict[str, Any]:
    entry = found.entry
    return {
        "timestamp": _time(entry.mtime_ns), "user": found.user or entry.uid, "group": found.group or entry.gid,
        "permissions": int(f"{entry.mode:o}"),
    }  # fmt: skip


def _time(at_ns: int) -> str:
    try:
        return (_EPOCH + datetime.timedelta(microseconds=at_ns // 1000)).isoformat()
    except OverflowError:
        return _EPOCH.isoformat()


def _text(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _is_made_here(snapshot: Snapshot) -> bool:
    """Whether it is the shelf's, or was made of a manifest that came over HTTP."""
    return TAG in snapshot.tags or "manifest" in snapshot.tags


def _forgotten(manifest: Manifest) -> NoContent:
    return NoContent(f"The snapshot of {manifest.name!r} was forgotten.")


def reads_snapshots(by: Identity) -> bool:
    """Whether somebody may read what the command line backed up: administrators."""
    return by.role == "admin"
