"""Looks at a target without changing it: what a restore would do there (a dry run), and whether what lies there is what
the snapshot says (``--verify``).
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from holdfast.archive.beneath import open_beneath
from holdfast.archive.clearing import clear
from holdfast.archive.placing import IN_THE_WAY, PARTLY_IN_THE_WAY, Judgement, Placer, Report, explain
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.format import Entry
from holdfast.repository.pages import join
from holdfast.repository.reader import ChunkReader

_AT_ONCE = 1 << 20
_WAY = os.O_PATH | os.O_DIRECTORY
_BLOCKED = {errno.ELOOP, errno.ENOTDIR}

LinkKey = tuple[str, int, int]


def link_key(entry: Entry) -> LinkKey | None:
    """What the names of one thing share: its kind too, as a hostile snapshot may tie different ones together."""
    return (entry.kind, *entry.links) if entry.links is not None and entry.kind != "d" else None


@dataclass
class Forecast:
    """A dry run. ``changes``: (``new``, ``changed`` or ``delete``, path relative to the target) for everything that a
    restore would make, change or remove; ``unchanged`` counts the rest, folders aside. Of the target itself nothing
    is said.
    """

    placer: Placer
    report: Report
    changes: list[tuple[str, bytes]]
    unchanged: int = 0
    _replaced: set[bytes] = field(default_factory=set)  # what is in the way of a folder, and would go
    _first: dict[LinkKey, tuple[int, int] | None] = field(default_factory=dict)  # device and inode, if it would stay

    def folder(self, directory: bytes, entries: list[Entry]) -> None:
        """Compare one folder's entries; ``directory`` is relative to the target."""
        try:
            above = self._open(directory)
        except OSError as e:
            self.report(directory, explain(e))
            return
        try:
            for entry in entries:
                path = join(directory, entry.name)
                try:
                    self._entry(above, path, entry)
                except OSError as e:
                    self.report(path, explain(e))
        finally:
            if above >= 0:
                os.close(above)

    def _open(self, directory: bytes) -> int:
        """The open folder; -1 when there is none, or what stands there would go."""
        if self.placer.target < 0:
            return -1
        try:
            return open_beneath(self.placer.target, directory, _WAY)
        except FileNotFoundError:
            return -1
        except OSError as e:
            parts = directory.split(b"/")
            if e.errno in _BLOCKED and any(b"/".join(parts[:i]) in self._replaced for i in range(1, len(parts) + 1)):
                return -1
            raise

    def _entry(self, above: int, path: bytes, entry: Entry) -> None:
        there = _lstat(above, entry.name)
        key = link_key(entry)
        if key is not None and key in self._first:
            same = there is not None and (there.st_dev, there.st_ino) == self._first[key]
        elif there is None:
            same = False
        elif entry.kind == "d":
            same = stat.S_ISDIR(there.st_mode) and self.placer.has_attributes(above, entry, there)
            if not stat.S_ISDIR(there.st_mode):
                self._replaced.add(path)
        else:
            judgement = self.placer.judge(above, entry, there)
            same = judgement is Judgement.SAME
            if key is not None and judgement is not Judgement.DIFFERS:
                self._first[key] = there.st_dev, there.st_ino
        if key is not None:
            self._first.setdefault(key, None)
        if same:
            self.unchanged += entry.kind != "d"
            return
        if there is not None and stat.S_ISDIR(there.st_mode) and entry.kind != "d":
            self._clear(above, path)
        self.changes.append(("new" if there is None else "changed", path))

    def _clear(self, above: int, path: bytes) -> None:
        if not self.placer.settings.clear:
            raise OSError(0, IN_THE_WAY)
        gone: list[bytes] = []
        if not clear(above, path, self.placer.settings.may, gone.append, dry_run=True):
            raise OSError(0, PARTLY_IN_THE_WAY)
        self.changes.extend(("delete", inner) for inner in gone if inner != path)


def _lstat(above: int, name: bytes) -> os.stat_result | None:
    if above < 0:
        return None
    try:
        return os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return None


def difference(reader: ChunkReader, target: int, path: bytes, entry: Entry) -> str:
    """How the file at ``path`` differs in content from the snapshot's entry, as a sentence's end; empty: not at all.

    OSError when it cannot be read, HoldfastError when the snapshot's own lists cannot.
    """
    fd = open_beneath(target, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            return "it is not a file"
        if st.st_size != entry.size:
            return f"it has {st.st_size} bytes, in the snapshot {entry.size}"
        offset = 0
        for item in items_of(entry, reader.read):
            length = hole_length(item)
            if length is None:
                length = reader.length(item)
                good = reader.matches(os.pread(fd, length, offset), item)
            else:
                good = _is_empty(fd, offset, offset + length)
            if not good:
                return f"it differs from the snapshot near byte {offset}"
            offset += length
        return "" if offset == entry.size else "its size contradicts its content in the snapshot"
    finally:
        os.close(fd)


def _is_empty(fd: int, start: int, end: int) -> bool:
    """Whether there are only zeros; holes are not read."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data from here on
                return True
        if start >= end:
            return True
        data = os.pread(fd, min(end - start, _AT_ONCE), start)
        if data.strip(b"\0"):
            return False
        if not data:
            return True
        start += len(data)
    return True
