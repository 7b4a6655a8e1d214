"""The snapshot a backup compares with, so that unchanged files are not read.

A full key reads it from the repository. A write-only key cannot: it keeps the pages of its own last snapshot in a file
of this machine (mode 0600), which names nothing that is not on this machine anyway.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from holdfast.errors import HoldfastError
from holdfast.repository.contents import items_of
from holdfast.repository.format import Entry, Leaf, Snapshot, Totals
from holdfast.repository.pages import Run, Tree, decode_page
from holdfast.repository.repository import Session
from holdfast.repository.snapshots import choose, series

_MAGIC = b"HFlast\x00\x01"
_LONGEST = 64 << 20


class Wanted(Protocol):
    """The parts of a request that say which parent."""

    @property
    def paths(self) -> tuple[bytes, ...]: ...
    @property
    def host(self) -> str: ...
    @property
    def parent(self) -> str: ...
    @property
    def remembered(self) -> str: ...


class Parent:
    """No parent: everything is new."""

    id = ""
    time_ns = 0
    totals = Totals()

    def runs(self) -> Iterator[Run]:
        return iter(())

    def items(self, entry: Entry) -> Iterator[bytes]:
        """Every item of an entry's content."""
        return items_of(entry, self._read)

    def _read(self, chunk_id: bytes) -> bytes:
        raise HoldfastError(f"The list {chunk_id.hex()[:16]} cannot be read.")


class _StoredParent(Parent):
    """A snapshot of the repository. Pages that turn out damaged end it: the rest counts as new."""

    def __init__(self, session: Session, snapshot_id: str, snapshot: Snapshot) -> None:
        self.id, self.time_ns, self.totals = snapshot_id, snapshot.time_ns, snapshot.totals
        self._tree: Tree = session.tree(snapshot.root)

    def runs(self) -> Iterator[Run]:
        with contextlib.suppress(HoldfastError):
            yield from self._tree.runs()

    def _read(self, chunk_id: bytes) -> bytes:
        return self._tree.bytes_of(chunk_id)


class _RememberedParent(Parent):
    """The last snapshot as this machine remembers it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as f:
            snapshot = msgspec.msgpack.decode(_frame(f.read), type=Snapshot) if f.read(8) == _MAGIC else None
            self._start = f.tell()
        if snapshot:
            self.time_ns, self.totals = snapshot.time_ns, snapshot.totals
        self._usable = snapshot is not None

    def runs(self) -> Iterator[Run]:
        if not self._usable:
            return
        with self._path.open("rb") as f, contextlib.suppress(HoldfastError):
            f.seek(self._start)
            while data := _frame(f.read):
                page = decode_page(data, b"")
                if isinstance(page, Leaf):
                    yield from page.runs

    def items(self, entry: Entry) -> Iterator[bytes]:
        if entry.depth:  # the pieces of a long list are in the repository, sealed; that they are there is enough
            return iter(())
        return items_of(entry, self._read)


def find_parent(session: Session, request: Wanted, base: bytes) -> Parent:
    """The snapshot named, else the newest of the same host and paths, else none."""
    if request.remembered:
        return _remembered(Path(request.remembered))
    repo = session.repository
    if not repo.secrets.can_read:
        return Parent()
    snapshots = repo.snapshots(damaged=[])
    if request.parent:
        chosen = choose(snapshots, request.parent)
    else:
        fitting = list(series(snapshots, request.host or repo.owner.host, request.paths))
        if not fitting:
            return Parent()
        chosen = fitting[-1]
    return _StoredParent(session, chosen.id, chosen.snapshot)


def _remembered(path: Path) -> Parent:
    try:
        return _RememberedParent(path)
    except (OSError, EOFError, msgspec.MsgspecError):
        return Parent()


def _frame(read: object) -> bytes:
    """The next length-prefixed frame; b"" at the end."""
    head = read(4)  # type: ignore[operator]
    size = int.from_bytes(head, "big")
    if len(head) < 4 or size > _LONGEST:
        return b""
    data: bytes = read(size)  # type: ignore[operator]
    return data if len(data) == size else b""


class Remembered:
    """Writes what the next run of a write-only key compares with; it replaces the old file only once complete."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pages = self._path.with_name(self._path.name + f".{os.getpid()}.pages")
        self._file = open(os.open(self._pages, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o600), "w+b")
        self._pages.unlink()

    def add(self, page: bytes) -> None:
        self._file.write(len(page).to_bytes(4, "big") + page)

    def commit(self, snapshot: Snapshot) -> None:
        head = msgspec.msgpack.encode(snapshot)
        tmp = self._path.with_name(self._path.name + f".{os.getpid()}.new")
        self._file.seek(0)
        with open(os.open(tmp, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as out:
            out.write(_MAGIC + len(head).to_bytes(4, "big") + head)
            while data := self._file.read(1 << 20):
                out.write(data)
        tmp.replace(self._path)
        self._file.close()
