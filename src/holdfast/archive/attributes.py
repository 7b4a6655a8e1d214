"""What the system knows of a file besides its content: kinds, owners' names, extended attributes."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat

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
    """Extended attributes, POSIX ACLs among them, of an open file or of a path (a link itself); None when it has none."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as e:
        if e.errno in _NONE_HERE:
            return None
        raise
    if not names:
        return None
    found = {}
    for name in sorted(names):
        try:
            found[os.fsencode(name)] = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as e:
            if e.errno not in _NONE_HERE:  # removed meanwhile, or not for us to read
                raise
    return found or None


def path_at(folder: int, name: bytes) -> bytes:
    """A path to an entry of an open folder, for calls that take no folder."""
    return b"/proc/self/fd/%d/%s" % (folder, name)
