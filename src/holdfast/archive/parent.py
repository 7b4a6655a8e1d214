"""The snapshot a backup compares with, so that unchanged files are not read.

A full key reads it from the repository. A write-only key cannot: it keeps the pages of its own last snapshot, and the
lists of its large files' chunks, in a file of this machine (mode 0600), which names nothing that is not on this machine
anyway. Each part of that file carries its keyed id, so what is damaged, or was not written by a holder of the key,
is not believed: those files are read again. The file is a convenience: a backup never fails because of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Protocol

import msgspec

from holdfast.errors import Damaged, HoldfastError, KeyCannotRead
from holdfast.repository.contents import items_of
from holdfast.repository.format import ID_SIZE, Entry, Leaf, Snapshot, Totals
from holdfast.repository.pages import Run, Tree, decode_page
from holdfast.repository.repository import Session
from holdfast.repository.snapshots import choose, series

_MAGIC = b"HFlast\x00\x02"
_LONGEST = 64 << 20
_HEAD, _PAGE, _LIST = b"H", b"P", b"L"

Hasher = Callable[[bytes], bytes]


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
        """Its entries in order; they end early where they cannot be had: the rest counts as new."""
        return iter(())

    def items(self, entry: Entry) -> Iterator[bytes]:
        """Every item of an entry's content; HoldfastError when they cannot be had."""
        return items_of(entry, self.piece)

    def piece(self, chunk_id: bytes) -> bytes:
        """A piece of a long content list."""
        raise Damaged(f"The list {chunk_id.hex()[:16]} cannot be read.")

    def close(self) -> None:
        """Give back what was held."""


class _StoredParent(Parent):
    """A snapshot of the repository."""

    def __init__(self, session: Session, snapshot_id: str, snapshot: Snapshot) -> None:
        self.id, self.time_ns, self.totals = snapshot_id, snapshot.time_ns, snapshot.totals
        self._tree: Tree = session.tree(snapshot.root)

    def runs(self) -> Iterator[Run]:
        with contextlib.suppress(HoldfastError):
            yield from self._tree.runs()

    def piece(self, chunk_id: bytes) -> bytes:
        return self._tree.bytes_of(chunk_id)


class _RememberedParent(Parent):
    """The last snapshot as this machine remembers it; OSError or HoldfastError when it does not."""

    def __init__(self, path: Path, chunk_id: Hasher) -> None:
        self._chunk_id = chunk_id
        self._lists: dict[bytes, int] = {}  # where each piece of a list stands in the file
        self._file = path.open("rb")
        try:
            magic, head = self._file.read(len(_MAGIC)), self._frame()
            if magic != _MAGIC or head is None or head[0] != _HEAD:
                raise Damaged(f"{path} is not what this machine remembers.")
            snapshot = msgspec.msgpack.decode(head[2], type=Snapshot)
        except BaseException:
            self._file.close()
            raise
        self.time_ns, self.totals = snapshot.time_ns, snapshot.totals
        self._start = self._file.tell()

    def runs(self) -> Iterator[Run]:
        at = self._start
        with contextlib.suppress(HoldfastError, OSError):
            while True:
                self._file.seek(at)
                frame = self._frame()
                if frame is None:
                    return
                here, at = at, self._file.tell()
                if frame[0] == _LIST:
                    self._lists[frame[1]] = here
                elif isinstance(page := decode_page(frame[2], frame[1]), Leaf):
                    yield from page.runs

    def piece(self, chunk_id: bytes) -> bytes:
        at = self._lists.get(chunk_id)
        if at is None:
            return super().piece(chunk_id)
        self._file.seek(at)
        frame = self._frame()
        return frame[2] if frame else super().piece(chunk_id)

    def close(self) -> None:
        self._file.close()

    def _frame(self) -> tuple[bytes, bytes, bytes] | None:
        """The next part: its kind, id and content; None at the end, and where it is not what was written."""
        head = self._file.read(1 + ID_SIZE + 4)
        kind, chunk_id, size = head[:1], head[1 : 1 + ID_SIZE], int.from_bytes(head[1 + ID_SIZE :], "big")
        if len(head) < 1 + ID_SIZE + 4 or size > _LONGEST:
            return None
        data = self._file.read(size)
        return (kind, chunk_id, data) if self._chunk_id(data) == chunk_id else None


def find_parent(session: Session, request: Wanted, base: bytes) -> Parent:
    """The snapshot named, else the newest of the same host and paths, else none."""
    repo = session.repository
    if request.parent and not repo.secrets.can_read:
        raise KeyCannotRead(
            "A write-only key cannot compare with a snapshot of your choice.", "Leave --parent out, or use a full key."
        )
    if request.remembered:
        try:
            return _RememberedParent(Path(request.remembered), session.writer.chunk_id)
        except (OSError, HoldfastError, msgspec.MsgspecError):
            return Parent()
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


class Remembered:
    """Writes what the next run of a write-only key compares with; it replaces the old file only once complete.

    A folder that cannot be written to means that nothing is remembered, and no more.
    """

    def __init__(self, path: str, chunk_id: Hasher) -> None:
        self._path, self._chunk_id = Path(path), chunk_id
        self._file: IO[bytes] | None = None
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115 - ``close`` does it

    def add_page(self, page: bytes) -> None:
        self._add(_PAGE, page)

    def add_list(self, piece: bytes) -> None:
        """A piece of a long content list, before the page with its entry."""
        self._add(_LIST, piece)

    def commit(self, snapshot: Snapshot) -> None:
        """Let the next run find this one."""
        if self._file is None:
            return
        try:
            self._file.seek(0)
            fd, tmp = tempfile.mkstemp(prefix=self._path.name + ".", dir=self._path.parent)
            try:
                with open(fd, "wb") as out:
                    out.write(_MAGIC + self._framed(_HEAD, msgspec.msgpack.encode(snapshot)))
                    shutil.copyfileobj(self._file, out, 1 << 20)
                os.replace(tmp, self._path)
            except BaseException:
                os.unlink(tmp)
                raise
        except OSError:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what was not written cannot be written now either
                self._file.close()
            self._file = None

    def _add(self, kind: bytes, data: bytes) -> None:
        if self._file is not None:
            try:
                self._file.write(self._framed(kind, data))
            except OSError:
                self.close()

    def _framed(self, kind: bytes, data: bytes) -> bytes:
        return kind + self._chunk_id(data) + len(data).to_bytes(4, "big") + data
