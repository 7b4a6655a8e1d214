"""One repository's part in a backup: a tree is walked and read once, and each repository makes a snapshot of it.

What is promised to each holds whatever becomes of the others: a HoldfastError out of a call to one of them is kept as
its ``failure``, it takes no more part, and the work goes on as long as anybody is left.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from holdfast.archive.attributes import Owners
from holdfast.archive.parent import Parent, Remembered
from holdfast.errors import HoldfastError
from holdfast.repository.contents import ContentList, hole_length, split_items
from holdfast.repository.format import ID_SIZE, Entry, Snapshot, Totals
from holdfast.repository.index import PENDING
from holdfast.repository.pages import Run, TreeWriter, sort_key
from holdfast.repository.repository import Session
from holdfast.repository.writer import TREE, Stream

TICK_NS = 20_000_000  # file systems' clocks may tick this slowly


@dataclass
class Trouble:
    """A path (relative to the base) and what was wrong with it, as a sentence's end."""

    path: bytes
    reason: str


class NobodyLeft(Exception):
    """Every repository that something was done for has failed."""


class SnapshotWriter:
    """A snapshot as one walk makes it: what the parent has and is unchanged stays, the rest is stored, all of it goes
    into pages. ``used`` collects the packs of chunks that were there already.
    """

    def __init__(self, session: Session, parent: Parent, remembered: str, start_ns: int, *, force: bool) -> None:
        self.session, self.parent, self.start_ns, self._force = session, parent, start_ns, force
        self.failure: HoldfastError | None = None
        self.totals, self.troubles = Totals(), list[Trouble]()
        self.used: set[int] = set()
        self.root = b""
        self.chunks, self.index = session.writer, session.index
        self.chunk_id = session.writer.chunk_id
        self.content, self.depth = b"", 0  # of the file read last
        self._settled_ns = start_ns - TICK_NS
        self._items = ContentList(self.store_list)
        self._remembered = Remembered(remembered, self.chunk_id) if remembered else None
        owners = Owners()
        self._tree = TreeWriter(self._store_page, session.repository.secrets.cut_seed, owners.user, owners.group)
        self._parents = _FolderMerge(parent.runs())
        self._known: dict[bytes, Entry] = {}
        self._entries: list[Entry] = []

    # -- folders and what is in them, in the order of pages ---------------------------------------------------------

    def known(self, folder: bytes) -> dict[bytes, Entry]:
        """What the parent had in that folder, by name; folders are asked for in order, the last one any time."""
        return self._parents.entries_of(folder)

    def begin(self, folder: bytes) -> None:
        """The entries that come next are those of that folder, with what the parent had there in mind."""
        self._known, self._entries = self._parents.entries_of(folder), []

    def keeps(self, name: bytes, st: os.stat_result, kind: str | None) -> bool:
        """Take the parent's entry, if it still describes the file and everything in it can be used."""
        old = self._known.get(name)
        if old is None or not self._same(old, st, kind):
            return False
        if old.links is not None:
            old.links = st.st_dev, st.st_ino  # a device's number may be another one after each start
        if kind == "f":
            totals = self.totals
            totals.files += 1
            totals.files_unmodified += 1
            totals.bytes_total += old.size
        else:
            self._count_other(old)
        self._entries.append(old)
        return True

    def take_file(self, entry: Entry) -> None:
        """A file that was read; one changed too shortly before to tell is to be read again the next time."""
        if entry.ctime_ns >= self._settled_ns:
            entry.ctime_ns = 0
        totals = self.totals
        totals.files += 1
        totals.bytes_total += entry.size
        old = self._known.get(entry.name)
        if old is None or old.kind != "f":
            totals.files_new += 1
        else:
            totals.files_changed += 1
        self._entries.append(entry)

    def take_other(self, entry: Entry) -> None:
        """A folder, a link, a device: what has no content."""
        self._count_other(entry)
        self._entries.append(entry)

    def end(self, folder: bytes) -> None:
        """The folder that began is whole."""
        self._tree.add(folder, self._entries)

    def finish(self) -> None:
        """Make everything durable; from now on the ``root`` of the pages is known."""
        self.root = self._tree.finish()
        self.chunks.flush()
        self.used.update(self.chunks.packs)
        self.used.discard(PENDING)

    def note(self, trouble: Trouble) -> None:
        """Something that this snapshot lacks."""
        self.totals.errors += 1
        self.troubles.append(trouble)

    def remember(self, snapshot: Snapshot) -> None:
        """Let the next run of a write-only key find what it compares with."""
        if self._remembered:
            self._remembered.commit(snapshot)

    def close(self) -> None:
        if self._remembered:
            self._remembered.close()

    # -- a file's content ------------------------------------------------------------------------------------------

    def begin_content(self) -> None:
        """The items that come next are those of one file."""
        self._items = ContentList(self.store_list)

    def add_chunk(self, chunk: memoryview, stream: Stream) -> None:
        """The file goes on with that chunk."""
        self._items.add(self.keep(chunk, stream))

    def add_hole(self, item: bytes) -> None:
        """The file goes on with that hole."""
        self._items.add(item)

    def end_content(self) -> None:
        """The file is whole: its ``content`` and ``depth`` are known."""
        self.content, self.depth = self._items.finish()

    def keep_whole(self, chunk: memoryview, stream: Stream) -> None:
        """The file is that one chunk."""
        self.content, self.depth = self.keep(chunk, stream), 0

    def keep(self, chunk: memoryview, stream: Stream) -> bytes:
        """Store a chunk unless it is there; its id."""
        length = len(chunk)
        self.totals.bytes_read += length
        chunk_id = self.chunk_id(chunk)
        pack = self.index.pack_of(chunk_id)
        if pack is None:
            self.chunks.space(stream, length)[:length] = chunk
            self.chunks.keep(stream, chunk_id, length)
        else:
            self.used.add(pack)
        return chunk_id

    def store_list(self, piece: bytes) -> bytes:
        """Store a piece of a long content list; its id."""
        if self._remembered:
            self._remembered.add_list(piece)
        return self._store(piece)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _same(self, old: Entry, st: os.stat_result, kind: str | None) -> bool:
        if (
            old.ctime_ns != st.st_ctime_ns
            or old.mtime_ns != st.st_mtime_ns
            or old.inode != st.st_ino
            or old.kind != kind
            or (kind == "f" and old.size != st.st_size)
            or self._force
        ):
            return False
        content = old.content
        if len(content) == ID_SIZE and not old.depth:
            pack = self.index.pack_of(content)
            if pack is not None:
                self.used.add(pack)
                return True
        return not content or self._use(old)

    def _use(self, entry: Entry) -> bool:
        """Note the packs an entry's content lies in; False when a part of it is in none."""
        parts = list(split_items(entry.content)) if entry.depth else []
        try:
            pieces = [self.parent.piece(part) for part in parts] if self._remembered else []
            packs = {self.index.pack_of(part) for part in parts}
            for item in self.parent.items(entry):
                if hole_length(item) is None:
                    packs.add(self.index.pack_of(item))
        except HoldfastError:
            return False
        if None in packs:
            return False
        self.used.update(pack for pack in packs if pack is not None)
        if self._remembered:
            for piece in pieces:
                self._remembered.add_list(piece)
        return True

    def _count_other(self, entry: Entry) -> None:
        if entry.kind == "d":
            self.totals.directories += 1
        else:
            self.totals.others += 1

    def _store_page(self, page: bytes) -> bytes:
        if self._remembered:
            self._remembered.add_page(page)
        return self._store(page)

    def _store(self, data: bytes) -> bytes:
        """Store a chunk of kind tree, noting the pack when it is there already; its id."""
        chunk_id = self.chunks.add(TREE, data)
        pack = self.index.pack_of(chunk_id)
        if pack is not None:
            self.used.add(pack)
        return chunk_id


def each(writers: list[SnapshotWriter], act: Callable[[SnapshotWriter], object]) -> list[SnapshotWriter]:
    """Do it for each of them; those that are left."""
    for writer in writers:
        try:
            act(writer)
        except HoldfastError as e:
            writer.failure = e
    return left(writers)


def left(writers: list[SnapshotWriter]) -> list[SnapshotWriter]:
    """Those that have not failed, the very list when that is all of them; NobodyLeft when there are none."""
    found = [writer for writer in writers if writer.failure is None]
    if not found:
        raise NobodyLeft
    return writers if len(found) == len(writers) else found


class _FolderMerge:
    """The parent's entries, folder by folder, for a reader that asks in the same order."""

    def __init__(self, runs: Iterator[Run]) -> None:
        self._runs = runs
        self._next: Run | None = (b"", [])  # stands before the first, which is not read until it is asked for
        self._path: bytes | None = None
        self._found: dict[bytes, Entry] = {}

    def entries_of(self, path: bytes) -> dict[bytes, Entry]:
        """What the parent had in that folder, by name; the last folder may be asked for again."""
        if path == self._path:
            return self._found
        self._path, self._found = path, self._read(sort_key(path, b"")[0])
        return self._found

    def _read(self, wanted: bytes) -> dict[bytes, Entry]:
        found: dict[bytes, Entry] = {}
        while self._next is not None:
            key = sort_key(self._next[0], b"")[0]
            if key > wanted:
                break
            if key == wanted:
                found.update((e.name, e) for e in self._next[1])
            self._next = next(self._runs, None)
        return found


def identity_of(place: str) -> set[tuple[int, int]]:
    """The folder a storage lies in, by device and inode, where it lies in one."""
    try:
        st = os.stat(place)
    except (OSError, ValueError):
        return set()
    return {(st.st_dev, st.st_ino)} if stat.S_ISDIR(st.st_mode) else set()
