"""A snapshot's entries as a restore needs them: checked, in order, and as many as can be had.

A snapshot is hostile until proven otherwise: whoever may write to a repository may write any entry. What comes out of
here has names that mean one entry of one folder, stands strictly in order (so nothing comes twice), and has numbers
that a file can have. What does not is reported, once, and left out. A page that cannot be read costs its own entries
only.

Every page is met where its parent says that it begins, so pages that are listed over and over end the walk early.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator

from holdfast.archive.attributes import TYPE_OF
from holdfast.errors import Damaged, ObjectMissing
from holdfast.repository.format import Child, Entry, Leaf, Node
from holdfast.repository.pages import Key, Run, Tree, join, sort_key, split

Report = Callable[[bytes, str], None]
Wanted = Callable[[bytes, Entry], bool]
_MOST_LEVELS = 12
_NOBODY = (1 << 32) - 1  # to the kernel: leave the owner as it is
_LONGEST_NAME, _LONGEST_TARGET = 255, 4095


class RefusedName(Exception):
    """A snapshot's entry that must not be restored: its name would lead elsewhere, or no file could be like it."""


def check_name(name: bytes) -> bytes:
    """Return a name that means exactly one entry of one folder; RefusedName otherwise."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > _LONGEST_NAME:
        raise RefusedName(f"the name {os.fsdecode(name)!r} is not one a file may have")
    return name


def check_directory(path: bytes) -> bytes:
    """The same for a path relative to the base; empty is the base itself."""
    if path:
        for part in path.split(b"/"):
            check_name(part)
    return path


def check_entry(entry: Entry) -> None:
    """RefusedName unless its name, kind and numbers are such as a file can have."""
    check_name(entry.name)
    kind, target = entry.kind, entry.target
    if kind not in TYPE_OF:
        raise RefusedName(f"the kind {kind!r} is not known")
    if entry.mode >> 12 or entry.size >> 63 or entry.device >> 64:  # negative ones too
        raise RefusedName("its mode, size or device is not one a file can have")
    if not (0 <= entry.uid < _NOBODY and 0 <= entry.gid < _NOBODY):
        raise RefusedName("its owner is not one a file can have")
    if kind == "l" and (not target or len(target) > _LONGEST_TARGET or b"\0" in target):
        raise RefusedName("it points to what is no path")


class Walk:
    """One snapshot's entries below ``within`` that are ``wanted``. ``complete``: nothing was left out so far for being
    unreadable or wrong.
    """

    def __init__(self, tree: Tree, within: bytes, wanted: Wanted | None, report: Report) -> None:
        self._tree, self._within, self._wanted, self._report = tree, within, wanted, report
        self._told = False
        self._refused: set[bytes] = set()
        self.complete = True

    def runs(self, *, everything: bool = False) -> Iterator[Run]:
        """(directory, entries) in order, the base itself left out; ``everything``: unwanted ones too."""
        told, self._told = self._told, True
        report = _say_nothing if told else self._report
        wanted = None if everything else self._wanted
        order = _Order()
        for directory, entries in self._all(report):
            if not is_below(directory, self._within):
                continue
            if kept := self._kept(directory, entries, order, wanted, report):
                yield directory, kept

    def folders(self) -> Iterator[tuple[bytes, Entry]]:
        """Every folder's path and entry, each before the one it lies in, ``within`` itself last."""
        for leaf in self._leaves(self._tree.root, None, _MOST_LEVELS, _say_nothing, backwards=True):
            for directory, entries in reversed(leaf.runs):
                if is_below(directory, self._within):
                    for entry in reversed(entries):
                        if entry.kind == "d" and _passes(directory, entry):
                            path = join(directory, entry.name) if entry.name else directory
                            if path not in self._refused:
                                yield path, entry
        if self._within and (own := self._own()):
            yield self._within, own

    def names(self) -> Iterator[tuple[bytes, set[bytes]]]:
        """Every folder's path and the names of all its entries, wanted or not; also of folders that hold nothing."""
        waiting = [(sort_key(self._within, b"")[0], self._within)]  # folders whose entries are still to come
        current: bytes | None = None
        names: set[bytes] = set()
        for directory, entries in self.runs(everything=True):
            if directory != current:
                if current is not None:
                    yield current, names
                key = sort_key(directory, b"")[0]
                while waiting and waiting[0][0] <= key:
                    before, path = heapq.heappop(waiting)
                    if before != key:
                        yield path, set()
                current, names = directory, set()
            for entry in entries:
                names.add(entry.name)
                if entry.kind == "d":
                    path = join(directory, entry.name)
                    heapq.heappush(waiting, (sort_key(path, b"")[0], path))
        if current is not None:
            yield current, names
        yield from ((path, set()) for _, path in sorted(waiting))

    def _own(self) -> Entry | None:
        try:
            found = self._tree.find(self._within)
        except (Damaged, ObjectMissing):
            return None
        return found if found is not None and found.kind == "d" and _passes(split(self._within)[0], found) else None

    def _all(self, report: Report) -> Iterator[Run]:
        for leaf in self._leaves(self._tree.root, None, _MOST_LEVELS, report):
            yield from leaf.runs

    def _kept(
        self, directory: bytes, entries: list[Entry], order: _Order, wanted: Wanted | None, report: Report
    ) -> list[Entry]:
        try:
            check_directory(directory)
            order.enter(directory)
        except RefusedName as e:
            self._refuse(report, directory, e)
            return []
        kept = []
        for entry in entries:
            if not entry.name and not directory:  # the base itself: it comes with the folders
                continue
            try:
                check_entry(entry)
                order.take(entry.name)
            except RefusedName as e:
                self._refuse(report, join(directory, entry.name), e)
                continue
            if wanted is None or wanted(join(directory, entry.name), entry):
                kept.append(entry)
        return kept

    def _refuse(self, report: Report, path: bytes, error: RefusedName) -> None:
        self.complete = False
        self._refused.add(path)
        report(path, str(error))

    def _leaves(
        self, page: bytes, child: Child | None, levels: int, report: Report, *, backwards: bool = False
    ) -> Iterator[Leaf]:
        try:
            content = self._page(page, child, levels)
        except (Damaged, ObjectMissing) as e:
            if child is None:
                raise
            self.complete = False
            path = join(child.directory, child.name)
            report(path, f"it and what follows ({child.entries} entries) cannot be restored: {e}")
            return
        if isinstance(content, Leaf):
            yield content
            return
        children = self._in_reach(content.children)
        for inner in reversed(children) if backwards else children:
            yield from self._leaves(inner.page, inner, levels - 1, report, backwards=backwards)

    def _in_reach(self, children: list[Child]) -> list[Child]:
        """Those that can have entries below ``within``."""
        if not self._within:
            return children
        start = sort_key(self._within, b"")
        end = start[0] + b"\1", b""  # a path below has a NUL there, which sorts before
        keys = [sort_key(c.directory, c.name) for c in children]
        first = max((i for i, key in enumerate(keys) if key <= start), default=0)
        return [c for c, key in zip(children[first:], keys[first:], strict=True) if key < end]

    def _page(self, page: bytes, child: Child | None, levels: int) -> Leaf | Node:
        if levels == 0:
            raise Damaged(f"The page {page.hex()[:16]} lies deeper than any tree of pages goes.")
        content = self._tree.page(page)
        if child is not None and _first(content) != (child.directory, child.name):
            raise Damaged(f"The page {page.hex()[:16]} does not begin where it should.")
        return content


class _Order:
    """Sees to it that entries come strictly in order."""

    def __init__(self) -> None:
        self._directory: bytes | None = None
        self._name = b""

    def enter(self, directory: bytes) -> None:
        key = sort_key(directory, b"")[0]
        if self._directory is None or key > self._directory:
            self._directory, self._name = key, b""
        elif key < self._directory:
            raise RefusedName("it stands out of order in the snapshot")

    def take(self, name: bytes) -> None:
        if name <= self._name:
            raise RefusedName("it stands twice, or out of order, in the snapshot")
        self._name = name


def is_below(path: bytes, within: bytes) -> bool:
    """Whether the path is ``within`` or lies in it."""
    return not within or path == within or path.startswith(within + b"/")


def _passes(directory: bytes, entry: Entry) -> bool:
    try:
        check_directory(directory)
        if entry.name or directory:
            check_entry(entry)
    except RefusedName:  # said when it was met first
        return False
    return True


def _first(content: Leaf | Node) -> Key | None:
    if isinstance(content, Node):
        return (content.children[0].directory, content.children[0].name) if content.children else None
    if content.runs and content.runs[0][1]:
        return content.runs[0][0], content.runs[0][1][0].name
    return None


def _say_nothing(path: bytes, reason: str) -> None:
    return None
