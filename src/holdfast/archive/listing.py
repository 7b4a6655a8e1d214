"""What a snapshot holds, in its own order: entries with their paths and their owners' names. Only the pages on the way
to what is asked for are read.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from holdfast.errors import SnapshotMissing
from holdfast.repository.format import Entry, Leaf
from holdfast.repository.pages import Tree, join, sort_key, split


class Listed(NamedTuple):
    """An entry, its path relative to the base, and its owners' names (empty: nobody knew them)."""

    path: bytes
    entry: Entry
    user: str
    group: str


def is_below(directory: bytes, within: bytes) -> bool:
    """Whether entries of ``directory`` lie below the folder ``within`` (empty: the base)."""
    return not within or directory == within or directory.startswith(within + b"/")


def is_past(directory: bytes, within: bytes) -> bool:
    """Whether no entry of the folder ``within`` or below it can follow ``directory`` any more."""
    return not is_below(directory, within) and sort_key(directory, b"") > sort_key(within, b"")


def listing(tree: Tree, within: bytes = b"", *, recursive: bool = True) -> Iterator[Listed]:
    """The entries of a folder and, ``recursive``, of all folders below it; the folder itself is left out."""
    for leaf in tree.leaves((within, b"")):
        for directory, entries in leaf.runs:
            if not is_below(directory, within):
                if is_past(directory, within):
                    return
                continue
            if not recursive and directory != within:  # a folder's own entries stand before those below it
                return
            for entry in entries:
                if entry.name:
                    yield listed(leaf, directory, entry)


def entry_at(tree: Tree, path: bytes) -> Listed | None:
    """The entry at a path (empty: the base), None when the snapshot has none."""
    directory, name = split(path)
    wanted = sort_key(directory, b"")
    for leaf in tree.leaves((directory, name)):
        for found, entries in leaf.runs:
            if found == directory:
                at = bisect_left(entries, name, key=_name)
                if at < len(entries):
                    return listed(leaf, found, entries[at]) if entries[at].name == name else None
            elif sort_key(found, b"") > wanted:
                return None
    return None


def _name(entry: Entry) -> bytes:
    return entry.name


def need_entry(tree: Tree, path: bytes) -> Listed:
    """The same; SnapshotMissing when there is none."""
    found = entry_at(tree, path)
    if found is None:
        raise SnapshotMissing(f"The snapshot has no {os.fsdecode(path)!r}.", "`holdfast ls` shows what it has.")
    return found


def listed(leaf: Leaf, directory: bytes, entry: Entry) -> Listed:
    """An entry of a leaf with the names the leaf gives its owners."""
    return Listed(join(directory, entry.name), entry, leaf.users.get(entry.uid, ""), leaf.groups.get(entry.gid, ""))
