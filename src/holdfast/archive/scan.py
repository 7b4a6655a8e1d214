"""Walks a file tree in the order pages want: a folder's entries sorted by name, folders depth first.

Folders are opened beneath the base without following links, so nobody can lead a backup elsewhere by swapping a folder
for a link. One folder is open at a time; the walk's memory is the folders still to come.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from holdfast.archive.beneath import open_beneath
from holdfast.archive.exclude import Excludes, is_cache_folder, matcher
from holdfast.repository.pages import join

Report = Callable[[bytes, OSError], None]
Identity = tuple[int, int]  # device and inode
Listed = tuple[bytes, os.stat_result | None]  # a name and its lstat; None: a regular file that was not looked at
Known = Callable[[bytes], Collection[bytes]]  # of a folder's path: the names that have to be looked at
TURNED = "it turned into something else while it was looked at"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Folder:
    """One folder: its path relative to the base, open as ``fd`` until the next one is asked for, and its entries
    sorted by name, excluded ones left out.
    """

    path: bytes
    fd: int
    entries: list[Listed]


def common_base(paths: list[bytes]) -> tuple[bytes, list[bytes]]:
    """The deepest folder common to absolute paths, and the paths relative to it (b"" for the base itself).

    A path that is a symbolic link is backed up as the link it is; links on the way to a path are followed.
    """
    paths = [os.path.normpath(b"/" + p.lstrip(b"/")) for p in paths]
    base, relative = _common(paths)
    if any(_leads_through_link(base, r) for r in relative):  # the walk would stop there
        return _common([os.path.join(os.path.realpath(os.path.dirname(p)), os.path.basename(p)) for p in paths])
    return base, relative


def _common(paths: list[bytes]) -> tuple[bytes, list[bytes]]:
    folders = [p if os.path.isdir(p) and not os.path.islink(p) else os.path.dirname(p) for p in paths]
    base = os.path.commonpath(folders)
    relative = {b"" if p == base else os.path.relpath(p, base) for p in paths}
    return base, [b""] if b"" in relative else sorted(relative)


def _leads_through_link(base: bytes, relative: bytes) -> bool:
    parts = relative.split(b"/")
    return any(os.path.islink(os.path.join(base, *parts[:i])) for i in range(1, len(parts)))


class Scanner:
    """Walks ``targets`` (relative paths) below the open folder ``base_fd``; trouble goes to ``report``.

    The content of folders in ``skipped`` is left out, unless one of them is a target. Regular files that are not
    ``known`` will be opened anyway: they are not looked at here.
    """

    def __init__(
        self,
        base_fd: int,
        targets: list[bytes],
        excludes: Excludes,
        report: Report,
        known: Known,
        skipped: Collection[Identity] = frozenset(),
    ) -> None:
        self._base_fd, self._report, self._known = base_fd, report, known
        self._excludes, self._skipped = excludes, skipped
        self._excluded = matcher(excludes.patterns)
        self._targets = frozenset(targets)
        self._devices = self._devices_of(targets) if excludes.one_file_system else None
        self._partial = _steps(targets)

    def folders(self) -> Iterator[Folder]:
        """Every folder in order, the base first."""
        stack = [b""]
        while stack:
            path = stack.pop()
            try:
                fd = open_beneath(self._base_fd, path, _OPEN)
            except OSError as e:
                self._report(path, OSError(0, TURNED) if e.errno in (errno.ELOOP, errno.ENOTDIR) else e)
                continue
            try:
                entries = self._entries(path, fd)
                yield Folder(path, fd, entries)
            finally:
                os.close(fd)
            below = [
                inner
                for name, st in entries
                if st is not None and stat.S_ISDIR(st.st_mode) and self._descend(inner := join(path, name), st)
            ]
            stack.extend(reversed(below))

    def _descend(self, path: bytes, st: os.stat_result) -> bool:
        if path in self._targets or path in self._partial:
            return True
        if (st.st_dev, st.st_ino) in self._skipped:
            return False
        return self._devices is None or st.st_dev in self._devices

    def _devices_of(self, targets: list[bytes]) -> set[int]:
        """The file systems that the targets lie on."""
        found = set()
        for target in targets:
            try:
                fd = open_beneath(self._base_fd, target, os.O_PATH | os.O_NOFOLLOW)
            except OSError:
                continue  # said when it is listed
            found.add(os.fstat(fd).st_dev)
            os.close(fd)
        return found

    def _entries(self, path: bytes, fd: int) -> list[Listed]:
        wanted = self._partial.get(path) if self._partial else None
        if wanted is not None:
            return self._named(path, fd, sorted(wanted))
        if self._excludes.caches and path and is_cache_folder(fd):
            return self._named(path, fd, [b"CACHEDIR.TAG"])
        found: list[Listed] = []
        known, look_at_all = self._known(path), self._excludes.larger_than is not None
        try:
            with os.scandir(fd) as listing:
                for item in listing:
                    name = item.name.encode("utf-8", "surrogateescape")
                    if not look_at_all and name not in known and item.is_file(follow_symlinks=False):
                        found.append((name, None))
                        continue
                    try:
                        found.append((name, item.stat(follow_symlinks=False)))
                    except OSError as e:
                        self._report(join(path, name), e)
        except OSError as e:
            self._report(path, e)
        found.sort(key=_name)
        return self._kept(path, found) if self._excluded or self._excludes.larger_than is not None else found

    def _named(self, path: bytes, fd: int, names: list[bytes]) -> list[Listed]:
        found: list[Listed] = []
        for name in names:
            try:
                found.append((name, os.stat(name, dir_fd=fd, follow_symlinks=False)))
            except OSError as e:
                self._report(join(path, name), e)
        return found

    def _kept(self, path: bytes, found: list[Listed]) -> list[Listed]:
        most, excluded = self._excludes.larger_than, self._excluded
        return [
            (name, st)
            for name, st in found
            if not (st is not None and most is not None and stat.S_ISREG(st.st_mode) and st.st_size > most)
            and not (excluded and excluded(join(path, name), st is not None and stat.S_ISDIR(st.st_mode)))
        ]


def _name(item: Listed) -> bytes:
    return item[0]


def _steps(targets: list[bytes]) -> dict[bytes, set[bytes]]:
    """For each folder above a target, which of its entries lead to one. Empty when the base itself is the target."""
    steps: dict[bytes, set[bytes]] = {}
    if b"" in targets:
        return steps
    for target in targets:
        parts = target.split(b"/")
        for i, part in enumerate(parts):
            steps.setdefault(b"/".join(parts[:i]), set()).add(part)
    for target in targets:  # a target above another one is taken whole
        for path in [p for p in steps if p == target or p.startswith(target + b"/")]:
            del steps[path]
    return steps
