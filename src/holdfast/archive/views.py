"""Snapshots to look into: what a mount shows, without the mounting.

``Library`` arranges the snapshots in folders (by time, id, host, tag) and follows the repository: new snapshots appear,
forgotten ones go. A ``View`` is one snapshot: it reads the pages that a question needs, of a folder only those that
hold its entries, and keeps what was used lately, up to a limit. ``Source`` gives the chunks, verified.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast.archive.extents import Bounded, CachedChunks, data_bytes
from holdfast.archive.listing import entry_at, listing
from holdfast.archive.placing import RefusedName, check_name
from holdfast.errors import Damaged, HoldfastError, ObjectMissing, StorageError
from holdfast.repository.contents import HOLE_MARK
from holdfast.repository.format import Entry, Leaf, Node, Snapshot
from holdfast.repository.pages import Tree, split
from holdfast.repository.reader import ChunkReader
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import SHORT, Filter, read_snapshot

REFRESH_S = 2.0  # the storage is asked for new snapshots at most so often
RELOAD_S = 60.0  # the index is read again at most so often when nothing new is known to be in it
PAGES_KEPT = 20_000  # entries of pages kept unpacked
FOLDERS_KEPT = 50_000  # entries of folders kept; larger folders are looked up page by page
COUNTED_LINKS = 200_000  # entries of a snapshot up to which hard links are counted exactly


class Source:
    """The repository's chunks. A chunk that is not where the index says, or not in it, has the index read again: the
    snapshot may be newer than it, or prune may have moved the chunk.
    """

    def __init__(self, repo: Repository, reader: ChunkReader, clock: Callable[[], float]) -> None:
        self._repo, self._reader, self._clock = repo, reader, clock
        self._loaded, self.stale = clock(), False
        self._lock = threading.Lock()

    def read(self, chunk_id: bytes, /) -> bytes:
        reader = self._knowing(chunk_id)
        try:
            return reader.read(chunk_id)
        except ObjectMissing:
            newer = self._reload(reader)
            if newer is reader:
                raise
            return newer.read(chunk_id)

    def length(self, chunk_id: bytes, /) -> int:
        return self._knowing(chunk_id).length(chunk_id)

    def _knowing(self, chunk_id: bytes) -> ChunkReader:
        reader = self._reader
        try:
            reader.locate(chunk_id)
        except Damaged:
            reader = self._reload(reader)
        return reader

    def _reload(self, tried: ChunkReader) -> ChunkReader:
        """A reader with a newer index than the one that did not do; the same one when it is too soon to look again."""
        with self._lock:
            if self._reader is tried and (self.stale or self._clock() - self._loaded >= RELOAD_S):
                self._reader = self._repo.reader()
                self._loaded, self.stale = self._clock(), False
            return self._reader


class PageTree(Tree):
    """A tree whose unpacked pages are kept for all snapshots together: snapshots share pages."""

    def __init__(self, read: Callable[[bytes], bytes], root: bytes, kept: Bounded[Leaf | Node]) -> None:
        super().__init__(read, root)
        self._kept = kept

    def page(self, page: bytes) -> Leaf | Node:
        found = self._kept.get(page)
        if found is None:
            found = super().page(page)
            size = sum(len(e) for _, e in found.runs) if isinstance(found, Leaf) else len(found.children)
            self._kept.put(page, found, size + 1)
        return found


@dataclass
class Shared:
    """What all views of a mount share."""

    source: Source
    chunks: CachedChunks
    pages: Bounded[Leaf | Node] = field(default_factory=lambda: Bounded(PAGES_KEPT))
    folders: Bounded[dict[bytes, Entry]] = field(default_factory=lambda: Bounded(FOLDERS_KEPT))
    sizes: Bounded[int] = field(default_factory=lambda: Bounded(10_000))


class View:
    """One snapshot. Paths are relative to its base; an entry whose name could mean something else is not shown."""

    def __init__(self, snapshot_id: str, snapshot: Snapshot, shared: Shared) -> None:
        self.id, self.snapshot, self._shared = snapshot_id, snapshot, shared
        self._key = bytes.fromhex(snapshot_id)
        self._tree = PageTree(shared.source.read, snapshot.root, shared.pages)
        self._links: dict[tuple[int, int], int] | None = None
        self._lock = threading.Lock()

    def find(self, path: bytes) -> Entry | None:
        """The entry at a path; empty: the base."""
        directory, name = split(path)
        known = self._shared.folders.get(self._key + directory)
        if known is not None and name:
            return known.get(name)
        found = entry_at(self._tree, path)
        return found.entry if found else None

    def entries(self, path: bytes) -> Iterator[Entry]:
        """A folder's entries."""
        known = self._shared.folders.get(self._key + path)
        if known is not None:
            yield from known.values()
            return
        seen: dict[bytes, Entry] | None = {}
        for entry in self._tree.directory(path):
            try:
                check_name(entry.name)
            except RefusedName:
                continue
            if seen is not None:
                seen[entry.name] = entry
                seen = seen if len(seen) < FOLDERS_KEPT else None
            yield entry
        if seen is not None:
            self._shared.folders.put(self._key + path, seen, len(seen) + 1)

    def inode(self, path: bytes, entry: Entry) -> int:
        """A number that is the same for all names of a hard-linked file, and no other file's in any snapshot."""
        what = b"\0%d/%d" % entry.links if entry.links and entry.kind != "d" else path
        return int.from_bytes(hashlib.blake2b(self._key + what, digest_size=8).digest(), "big") >> 1 or 1

    def links(self, entry: Entry) -> int:
        """How many names in this snapshot a file has; 2 stands for several in a snapshot too large to be counted."""
        if entry.links is None or entry.kind == "d":
            return 1
        totals = self.snapshot.totals
        if totals.files + totals.directories + totals.others > COUNTED_LINKS:
            return 2
        with self._lock:
            if self._links is None:
                self._links = self._count_links()
            return self._links.get(entry.links, 2)

    def blocks(self, entry: Entry) -> int:
        """The space a file takes in units of 512 bytes, holes left out."""
        if entry.kind != "f":
            return 0
        size: int | None = entry.size
        if entry.depth or HOLE_MARK in entry.content:
            size = self._shared.sizes.get(entry.content)
            if size is None:
                size = data_bytes(entry, self._shared.chunks)
                self._shared.sizes.put(entry.content, size, 1)
        return -(-(size or 0) // 4096) * 8

    def _count_links(self) -> dict[tuple[int, int], int]:
        counts: dict[tuple[int, int], int] = {}
        try:
            for found in listing(Tree(self._shared.source.read, self.snapshot.root)):
                if found.entry.links is not None:
                    counts[found.entry.links] = counts.get(found.entry.links, 0) + 1
        except HoldfastError:  # a damaged page elsewhere must not hide this one's entries
            return {}
        return counts


@dataclass
class Link:
    """A symbolic link of the library's own."""

    target: bytes
    time_ns: int


@dataclass
class Shelf:
    """A folder of the library: ``time_ns`` is that of the newest snapshot in it."""

    time_ns: int = 0
    items: dict[bytes, Shelf | View | Link] = field(default_factory=dict)

    def shelf(self, name: bytes) -> Shelf:
        """The shelf of that name, made if need be."""
        found = self.items.setdefault(name, Shelf())
        assert isinstance(found, Shelf)
        return found

    def put(self, name: bytes, view: View) -> bytes:
        """Place a view; the name it got: two of one name are told apart by the later one's id."""
        if name in self.items:
            name += b"-" + view.id[:SHORT].encode()
        self.items[name] = view
        self.time_ns = max(self.time_ns, view.snapshot.time_ns)
        return name


class Library:
    """The snapshots that ``wanted`` lets through, in folders. ``name_time`` makes a folder's name of a time in ns;
    ``report`` hears of snapshots that cannot be read.
    """

    def __init__(
        self,
        repo: Repository,
        reader: ChunkReader,
        wanted: Filter,
        name_time: Callable[[int], str],
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repo, self._wanted, self._name_time, self._report, self._clock = repo, wanted, name_time, report, clock
        self._source = Source(repo, reader, clock)
        self.chunks = CachedChunks(self._source)
        self._shared = Shared(self._source, self.chunks)
        self._views: dict[str, View | None] = {}  # None: not wanted, or damaged
        self._asked = -REFRESH_S
        self._lock = threading.Lock()
        self.root = Shelf()
        self.refresh()
        self._source.stale = False  # the index was loaded for these

    def resolve(self, path: bytes) -> tuple[Shelf | View | Link | None, bytes]:
        """What a path leads to (None: nothing), and for a view the path inside it."""
        parts = path.strip(b"/").split(b"/") if path.strip(b"/") else []
        for _ in range(2):
            node: Shelf | View | Link = self.root
            for i, part in enumerate(parts):
                if isinstance(node, View):
                    return node, b"/".join(parts[i:])
                found = node.items.get(part) if isinstance(node, Shelf) else None
                if found is None:
                    break
                node = found
            else:
                return node, b""
            if not self.refresh():
                break
        return None, b""

    def refresh(self) -> bool:
        """See which snapshots there are, unless that was done just now; whether anything changed."""
        with self._lock:
            if self._clock() - self._asked < REFRESH_S:
                return False
            self._asked = self._clock()
            try:
                present = {info.name[10:] for info in self._repo.storage.list("snapshots")}
            except StorageError as e:
                self._report(str(e))
                return False
            if present == self._views.keys():
                return False
            for snapshot_id in [i for i in self._views if i not in present]:
                del self._views[snapshot_id]
            for snapshot_id in present - self._views.keys():
                self._add(snapshot_id)
            self._source.stale = True
            self.root = self._arrange()
            return True

    def _add(self, snapshot_id: str) -> None:
        try:
            snapshot = read_snapshot(self._repo.storage, self._repo.secrets, snapshot_id)
        except ObjectMissing:
            return
        except (Damaged, StorageError) as e:
            self._report(str(e))
            self._views[snapshot_id] = None
            return
        wanted = self._wanted.matches(snapshot)
        self._views[snapshot_id] = View(snapshot_id, snapshot, self._shared) if wanted else None

    def _arrange(self) -> Shelf:
        root = Shelf()
        for name in (b"snapshots", b"ids", b"hosts", b"tags"):
            root.shelf(name)
        views = [v for v in self._views.values() if v is not None]
        for view in sorted(views, key=lambda v: (v.snapshot.time_ns, v.id)):
            snapshot = view.snapshot
            name = self._name_time(snapshot.time_ns).encode()
            root.shelf(b"ids").put(view.id[:SHORT].encode(), view)
            places = [root.shelf(b"snapshots"), root.shelf(b"hosts").shelf(folder_name(snapshot.host))]
            places += [root.shelf(b"tags").shelf(t) for t in sorted({folder_name(t) for t in snapshot.tags})]
            for shelf in places:
                given = shelf.put(name, view)
                shelf.items[b"latest"] = Link(given, snapshot.time_ns)
                if shelf is places[0]:
                    root.items[b"latest"] = Link(b"snapshots/" + given, snapshot.time_ns)
            for shelf in (root, root.shelf(b"hosts"), root.shelf(b"tags")):
                shelf.time_ns = snapshot.time_ns
        return root


def folder_name(text: str) -> bytes:
    """A host or a tag as a folder's name."""
    name = text.encode("utf-8", "surrogateescape").replace(b"/", b"_").replace(b"\0", b"_")[:255]
    return b"_" if name in (b"", b".", b"..") else name
