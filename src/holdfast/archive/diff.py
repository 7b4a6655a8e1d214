"""What changed between two snapshots, without reading what did not: where both trees have the same page next, nothing
below it is looked at. Two snapshots that differ in one file cost the pages on the way to it, however large they are.

Both trees are walked side by side in their common order. Of each, only the next thing is known: an entry, or a page
that nobody has opened yet. Equal pages are dropped from both sides; any other page is opened when its first key is due.

Content counts as changed when its list of chunks did. (The same bytes stored once with holes and once without them are
different lists.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.archive.extents import Chunks
from holdfast.archive.listing import is_below, is_past, need_entry
from holdfast.errors import HoldfastError
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.format import ID_SIZE, Child, Entry, Leaf
from holdfast.repository.pages import Key, Tree, join, sort_key

ADDED, REMOVED, CONTENT, METADATA, TYPE = "+", "-", "M", "U", "T"

_FIRST: Key = (b"", b"")


class Change(NamedTuple):
    """What happened to a path (relative to what is compared), and the entry before and after (None: there is none)."""

    what: str
    path: bytes
    old: Entry | None
    new: Entry | None


class Side(NamedTuple):
    """One snapshot, and the path inside it that is compared (empty: all of it)."""

    tree: Tree
    within: bytes = b""


def diff(old: Side, new: Side, *, metadata: bool = False) -> Iterator[Change]:
    """Every difference, in order of the paths. ``metadata``: also entries whose content is the same and whose mode,
    owner, time or extended attributes are not.
    """
    if (old.tree.root, old.within) == (new.tree.root, new.within):
        return
    if old.within or new.within:
        before, after = (need_entry(side.tree, side.within).entry for side in (old, new))
        if (before.kind, after.kind) != ("d", "d"):
            yield from _pair(b"", before, after, metadata)
            return
    yield from _merge(_Cursor(old), _Cursor(new), old.within == new.within, metadata)


class _Item(NamedTuple):
    """The next thing of a side: an unopened page (with its level above the leaves), or an entry and its path."""

    key: Key
    page: bytes = b""
    level: int = 0
    path: bytes = b""
    entry: Entry | None = None


class _Cursor:
    """One side of the walk: ``head`` is the next thing in order, None at the end."""

    def __init__(self, side: Side) -> None:
        self._tree, self._within = side.tree, side.within
        self._start = sort_key(side.within, b"")
        self._stack: list[_Item] = []
        self._open(side.tree.root)

    @property
    def head(self) -> _Item | None:
        return self._stack[-1] if self._stack else None

    def pop(self) -> None:
        self._stack.pop()

    def open(self) -> None:
        """Put what the page at the head holds in its place."""
        self._open(self._stack.pop().page)

    def _open(self, page: bytes) -> None:
        content = self._tree.page(page)
        if isinstance(content, Leaf):
            self._stack.extend(reversed(list(self._entries(content))))
        else:
            self._stack.extend(reversed(list(self._pages(content.level - 1, content.children))))

    def _entries(self, leaf: Leaf) -> Iterator[_Item]:
        skip = len(self._within) + 1 if self._within else 0
        for directory, entries in leaf.runs:
            if is_below(directory, self._within):
                local = directory[skip:]
                folder = sort_key(local, b"")[0]
                for entry in entries:
                    yield _Item((folder, entry.name), path=join(local, entry.name), entry=entry)

    def _pages(self, level: int, children: list[Child]) -> Iterator[_Item]:
        """Those that may hold entries of what is compared."""
        for i, child in enumerate(children):
            if is_past(child.directory, self._within):
                return
            if i + 1 < len(children):
                after = children[i + 1]
                if sort_key(after.directory, after.name) <= self._start:
                    continue
            yield _Item(self._local(child), child.page, level)

    def _local(self, child: Child) -> Key:
        """Where a page begins; one that begins before what is compared begins with it."""
        if not self._within:
            return sort_key(child.directory, child.name)
        if not is_below(child.directory, self._within):
            return _FIRST
        return sort_key(child.directory[len(self._within) + 1 :], child.name)


def _merge(old: _Cursor, new: _Cursor, may_share: bool, metadata: bool) -> Iterator[Change]:
    while True:
        a, b = old.head, new.head
        if a is not None and b is not None and a.key == b.key:
            if may_share and a.page and a.page == b.page:
                old.pop()
                new.pop()
            elif a.page and (not b.page or a.level >= b.level):
                old.open()
            elif b.page:
                new.open()
            else:
                old.pop()
                new.pop()
                if a.entry and b.entry:
                    yield from _pair(a.path, a.entry, b.entry, metadata)
        elif a is not None and (b is None or a.key < b.key):
            if a.page:
                old.open()
            else:
                old.pop()
                yield Change(REMOVED, a.path, a.entry, None)
        elif b is not None:
            if b.page:
                new.open()
            else:
                new.pop()
                yield Change(ADDED, b.path, None, b.entry)
        else:
            return


def _pair(path: bytes, old: Entry, new: Entry, metadata: bool) -> Iterator[Change]:
    """One path that is in both."""
    if old.kind != new.kind:
        yield Change(TYPE, path, old, new)
    elif _substance(old) != _substance(new):
        yield Change(CONTENT, path, old, new)
    elif metadata and _attributes(old) != _attributes(new):
        yield Change(METADATA, path, old, new)


def _substance(entry: Entry) -> tuple[object, ...]:
    """What of an entry is its content: a file's list of chunks, where a link leads, a device's number."""
    if entry.kind == "f":
        return entry.size, entry.depth, entry.content
    return entry.target, entry.device


def _attributes(entry: Entry) -> tuple[object, ...]:
    return entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs or {}


# -- statistics ------------------------------------------------------------------------------------------------------


@dataclass
class Flow:
    """Entries that came, or that went; and bytes: of whole files, and of changed files the chunks that differ."""

    files: int = 0
    folders: int = 0
    others: int = 0
    bytes: int = 0

    def count(self, entry: Entry) -> None:
        if entry.kind == "f":
            self.files += 1
            self.bytes += entry.size
        elif entry.kind == "d":
            self.folders += 1
        else:
            self.others += 1


@dataclass
class Summary:
    """All changes added up. ``changed``: content, ``attributes``: only metadata, ``types``: another kind of thing."""

    added: Flow = field(default_factory=Flow)
    removed: Flow = field(default_factory=Flow)
    changed: int = 0
    attributes: int = 0
    types: int = 0

    def count(self, change: Change, chunks: Chunks) -> None:
        old, new = change.old, change.new
        if change.what == METADATA:
            self.attributes += 1
        elif change.what == CONTENT and old and new:
            self.changed += 1
            if new.kind == "f":
                came, went = _differing(old, new, chunks)
                self.added.bytes += came
                self.removed.bytes += went
        else:
            self.types += change.what == TYPE
            if new:
                self.added.count(new)
            if old:
                self.removed.count(old)


def _differing(old: Entry, new: Entry, chunks: Chunks) -> tuple[int, int]:
    """Bytes of the chunks that only the new, and only the old content has; all of it where a list cannot be read."""
    if len(old.content) <= ID_SIZE and len(new.content) <= ID_SIZE and not old.depth and not new.depth:
        return new.size, old.size
    try:
        before, after = set(items_of(old, chunks.read)), set(items_of(new, chunks.read))
        return _bytes(after - before, chunks), _bytes(before - after, chunks)
    except HoldfastError:
        return new.size, old.size


def _bytes(items: set[bytes], chunks: Chunks) -> int:
    return sum(chunks.length(item) for item in items if hole_length(item) is None)
