"""A snapshot's entries as a tree of pages, so that equal stretches of two snapshots are equal pages.

Entries are sorted by (directory, name), directories compared component by component: a directory's entries stand
together, and directories follow each other depth first. The first entry is the base itself: directory and name empty.

A leaf is closed after an entry whose path's checksum says so (every 256th on average, between LEAST and MOST; sooner
where large entries would make it much larger than HEAVY bytes, for a page is a chunk), a node after a child whose id
says so. The places depend on names and not on the neighbours, so a change touches one leaf and the nodes above it.
Pages are chunks of kind tree; ``TreeWriter`` makes them, ``walk`` and ``Tree`` read them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import msgspec

from holdfast.errors import Damaged
from holdfast.repository.format import NO_SENSE, Child, Entry, Leaf, Node

LEAST = 32
MOST = 1024
HEAVY = 1 << 20  # of lists of chunks, targets, attributes and directories' names in one leaf
_MASK = 0xFF
_NODE_LEAST = 8
_NODE_MOST = 256
_NODE_MASK = 0x3F
_MOST_LEVELS = 12
_MOST_BYTES = (1 << 63) - 1  # below a page: sparse files can claim more together than a number holds

Key = tuple[bytes, bytes]
StorePage = Callable[[bytes], bytes]
ReadPage = Callable[[bytes], bytes]
Run = tuple[bytes, list[Entry]]

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Leaf | Node] = msgspec.msgpack.Decoder(Leaf | Node)


def sort_key(directory: bytes, name: bytes) -> Key:
    """What entries are sorted by: NUL is in no name, so replacing the slash compares component by component."""
    return directory.replace(b"/", b"\0"), name


def join(directory: bytes, name: bytes) -> bytes:
    """An entry's path relative to the base."""
    return directory + b"/" + name if directory else name


def split(path: bytes) -> Key:
    """The directory and name of a path relative to the base."""
    directory, _, name = path.rpartition(b"/")
    return directory, name


class TreeWriter:
    """Takes sorted runs, stores pages through ``store`` (bytes in, id out), gives the root's id.

    ``users`` and ``groups`` name owners by number (an empty name: nobody knows).
    """

    def __init__(self, store: StorePage, seed: int, users: Callable[[int], str], groups: Callable[[int], str]) -> None:
        self._store, self._seed, self._users, self._groups = store, seed, users, groups
        self._runs: list[Run] = []
        self._count = 0
        self._bytes = 0
        self._weight = 0
        self._levels: list[list[Child]] = []
        self._last: Key | None = None

    def add(self, directory: bytes, entries: list[Entry]) -> None:
        """The next entries of a directory, sorted by name, behind everything added before."""
        if not entries:
            return
        self._check_order(directory, entries)
        crc32, salt = zlib.crc32, zlib.crc32(directory, self._seed)
        count, size, weight, start = self._count, self._bytes, self._weight, 0
        if not self._runs or self._runs[-1][0] != directory:
            weight += len(directory)
        for i, entry in enumerate(entries, 1):
            count += 1
            size += entry.size
            weight += len(entry.content) + len(entry.target)
            if entry.xattrs:
                weight += sum(len(n) + len(v) for n, v in entry.xattrs.items())
            if (count >= LEAST and crc32(entry.name, salt) & _MASK == 0) or count >= MOST or weight >= HEAVY:
                self._count, self._bytes = count, size
                self._keep_run(directory, entries[start:i])
                self._close_leaf()
                count, size, weight, start = 0, 0, len(directory) if i < len(entries) else 0, i
        self._count, self._bytes, self._weight = count, size, weight
        if start < len(entries):
            self._keep_run(directory, entries[start:] if start else entries)

    def finish(self) -> bytes:
        """Close every page; the root's id. A tree without entries has one empty leaf."""
        if self._runs or not self._levels:
            self._close_leaf()
        level = 0
        while level < len(self._levels):
            children = self._levels[level]
            if level == len(self._levels) - 1 and len(children) == 1:
                return children[0].page
            if children:
                self._close_node(level)
            level += 1
        raise AssertionError("a tree always has a root")

    def _check_order(self, directory: bytes, entries: list[Entry]) -> None:
        first, names = sort_key(directory, entries[0].name), [e.name for e in entries]
        if self._last is not None and first <= self._last:
            raise ValueError(f"entries out of order: {first!r} after {self._last!r}")
        if names != sorted(set(names)):
            raise ValueError(f"entries out of order in {directory!r}")
        self._last = first[0], names[-1]

    def _keep_run(self, directory: bytes, entries: list[Entry]) -> None:
        """One run for a directory, also when its entries come bit by bit: equal entries are equal pages."""
        if self._runs and self._runs[-1][0] == directory:
            self._runs[-1] = directory, [*self._runs[-1][1], *entries]
        else:
            self._runs.append((directory, entries))

    def _close_leaf(self) -> None:
        users = _named({e.uid for _, entries in self._runs for e in entries}, self._users)
        groups = _named({e.gid for _, entries in self._runs for e in entries}, self._groups)
        page = self._store(_encode(Leaf(users, groups, self._runs)))
        directory, name = (self._runs[0][0], self._runs[0][1][0].name) if self._runs else (b"", b"")
        child = Child(directory, name, page, self._count, min(self._bytes, _MOST_BYTES))
        self._runs, self._count, self._bytes, self._weight = [], 0, 0, 0
        self._push(0, child)

    def _push(self, level: int, child: Child) -> None:
        if level == len(self._levels):
            self._levels.append([])
        children = self._levels[level]
        children.append(child)
        cut = int.from_bytes(child.page[:2], "big") & _NODE_MASK == 0
        if (len(children) >= _NODE_LEAST and cut) or len(children) >= _NODE_MOST:
            self._close_node(level)

    def _close_node(self, level: int) -> None:
        children, self._levels[level] = self._levels[level], []
        first = children[0]
        page = self._store(_encode(Node(level + 1, children)))
        entries, size = sum(c.entries for c in children), min(sum(c.size for c in children), _MOST_BYTES)
        self._push(level + 1, Child(first.directory, first.name, page, entries, size))


def _named(numbers: set[int], names: Callable[[int], str]) -> dict[int, str]:
    return {n: name for n in sorted(numbers) if (name := names(n))}


def decode_page(data: bytes, page: bytes) -> Leaf | Node:
    """A page's content as what it is; Damaged when it is neither leaf nor node."""
    try:
        return _decoder.decode(data)
    except NO_SENSE:
        raise Damaged(f"The page {page.hex()[:16]} cannot be understood.") from None


class Tree:
    """A snapshot's pages, read as needed. ``read`` gives a page's verified bytes by id."""

    def __init__(self, read: ReadPage, root: bytes) -> None:
        self._read, self.root = read, root

    def page(self, page: bytes) -> Leaf | Node:
        return decode_page(self._read(page), page)

    def leaves(self, start: Key | None = None) -> Iterator[Leaf]:
        """Leaves in order; with ``start``, from the one that holds that key (directory, name) or would."""
        yield from self._leaves(self.root, sort_key(*start) if start else None, _MOST_LEVELS)

    def runs(self, start: Key | None = None) -> Iterator[Run]:
        """(directory, entries) in order, from the leaf where ``start`` is or would be."""
        for leaf in self.leaves(start):
            yield from leaf.runs

    def reversed_runs(self) -> Iterator[Run]:
        """The same backwards; the entries within a run too."""
        for leaf in self._backwards(self.root, _MOST_LEVELS):
            for directory, entries in reversed(leaf.runs):
                yield directory, entries[::-1]

    def directory(self, path: bytes) -> Iterator[Entry]:
        """The entries of one directory, the base itself left out."""
        wanted = path.replace(b"/", b"\0")
        for directory, entries in self.runs((path, b"")):
            key = directory.replace(b"/", b"\0")
            if key > wanted:
                return
            if key == wanted:
                yield from (e for e in entries if e.name)

    def find(self, path: bytes) -> Entry | None:
        """The entry at a path (empty: the base), None when there is none."""
        directory, name = split(path)
        wanted = sort_key(directory, name)
        for found, entries in self.runs((directory, name)):
            for entry in entries:
                key = sort_key(found, entry.name)
                if key == wanted:
                    return entry
                if key > wanted:
                    return None
        return None

    def bytes_of(self, chunk_id: bytes) -> bytes:
        """Any chunk of kind tree, verified."""
        return self._read(chunk_id)

    def _leaves(self, page: bytes, start: Key | None, levels: int) -> Iterator[Leaf]:
        content = self._checked(page, levels)
        if isinstance(content, Leaf):
            yield content
            return
        first = 0
        if start is not None:
            for i, child in enumerate(content.children):
                if sort_key(child.directory, child.name) <= start:
                    first = i
        for i in range(first, len(content.children)):
            yield from self._leaves(content.children[i].page, start if i == first else None, levels - 1)

    def _backwards(self, page: bytes, levels: int) -> Iterator[Leaf]:
        content = self._checked(page, levels)
        if isinstance(content, Leaf):
            yield content
            return
        for child in reversed(content.children):
            yield from self._backwards(child.page, levels - 1)

    def _checked(self, page: bytes, levels: int) -> Leaf | Node:
        if levels == 0:
            raise Damaged(f"The page {page.hex()[:16]} lies deeper than any tree of pages goes.")
        return self.page(page)
