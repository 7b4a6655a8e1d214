"""What the system knows of a file besides its content: kinds, owners' names, times, extended attributes."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable

from holdfast.repository.pages import Key, join

KIND_OF = {
    stat.S_IFREG: "f",
    stat.S_IFDIR: "d",
    stat.S_IFLNK: "l",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
}
TYPE_OF = {kind: bits for bits, kind in KIND_OF.items()}
XATTRS_MOST = 256 << 10  # bytes of names and values that an entry keeps
TIME_LEAST, TIME_MOST = -(1 << 63), (1 << 64) - 1  # what MessagePack holds, in ns: the years 1677 to 2554
_NONE_HERE = {errno.ENOTSUP, errno.ENODATA, errno.ENOSYS, errno.ENOENT, errno.EPERM, errno.EACCES}


class Owners:
    """Names of users and groups by number, asked once each."""

    def __init__(self) -> None:
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def user(self, uid: int) -> str:
        """The user's name, empty when nobody has that number."""
        name = self._users.get(uid)
        if name is None:
            try:
                name = pwd.getpwuid(uid).pw_name
            except (KeyError, OverflowError):
                name = ""
            self._users[uid] = name
        return name

    def group(self, gid: int) -> str:
        """The group's name, empty when nobody has that number."""
        name = self._groups.get(gid)
        if name is None:
            try:
                name = grp.getgrgid(gid).gr_name
            except (KeyError, OverflowError):
                name = ""
            self._groups[gid] = name
        return name


def read_xattrs(target: int | bytes) -> dict[bytes, bytes] | None:
    """Extended attributes, POSIX ACLs among them, of an open file or of a path (a link itself); None without any.

    TooManyXattrs when they are larger than an entry may hold.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as e:
        if e.errno in _NONE_HERE:
            return None
        raise
    if not names:
        return None
    found: dict[bytes, bytes] = {}
    size = 0
    for name in sorted(names):
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as e:
            if e.errno not in _NONE_HERE:  # removed meanwhile, or not for us to read
                raise
            continue
        size += len(name) + len(value)
        if size > XATTRS_MOST:
            raise TooManyXattrs(found)
        found[os.fsencode(name)] = value
    return found or None


class TooManyXattrs(OSError):
    """There are more extended attributes than an entry may hold; ``kept`` has those that fit."""

    def __init__(self, kept: dict[bytes, bytes]) -> None:
        super().__init__(0, f"its extended attributes are larger than {XATTRS_MOST >> 10} KiB; the rest was left out")
        self.kept = kept


def xattrs_that_fit(target: int | bytes, path: Key, report: Callable[[bytes, str], None]) -> dict[bytes, bytes] | None:
    """The same for a backup: too many of them are reported, and those that fit are given."""
    try:
        return read_xattrs(target)
    except TooManyXattrs as e:
        report(join(*path), explain(e))
        return e.kept or None


def explain(error: OSError) -> str:
    """An OSError as a sentence's end."""
    return error.strerror or str(error)


def storable_time(time_ns: int) -> int:
    """The nearest time an entry can hold: some file systems let anybody set the year 30,000,000,000."""
    return time_ns if TIME_LEAST <= time_ns <= TIME_MOST else max(TIME_LEAST, min(TIME_MOST, time_ns))


def path_at(folder: int, name: bytes) -> bytes:
    """A path to an entry of an open folder, for calls that take no folder."""
    return b"/proc/self/fd/%d/%s" % (folder, name)
