"""Makes entries below a target and gives them their attributes, without ever leaving the target.

Names come from a snapshot and are hostile until ``check_name`` let them pass. A target that was empty at the start is
filled without looking first; in any other, what is there is looked at and kept where it is right already.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from holdfast.archive.attributes import TYPE_OF, path_at, read_xattrs
from holdfast.archive.beneath import open_beneath
from holdfast.repository.format import Entry
from holdfast.repository.pages import join, split

Report = Callable[[bytes, str], None]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OWN = stat.S_ISUID | stat.S_ISGID
_WANT_ROOT = {errno.EPERM, errno.EACCES}


@dataclass(frozen=True)
class Settings:
    """``fresh``: the target was empty. ``dry_run``: nothing is changed. ``clear``: folders in the way may go."""

    is_root: bool
    fresh: bool = False
    dry_run: bool = False
    clear: bool = False


class RefusedName(Exception):
    """A snapshot's entry whose name would lead elsewhere."""


def check_name(name: bytes) -> bytes:
    """Return a name that means exactly one entry of one folder; RefusedName otherwise."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name or len(name) > 255:
        raise RefusedName(f"the name {os.fsdecode(name)!r} is not one a file may have")
    return name


def check_directory(path: bytes) -> bytes:
    """The same for a path relative to the base; empty is the base itself."""
    if path:
        for part in path.split(b"/"):
            check_name(part)
    return path


def explain(error: OSError) -> str:
    """An OSError as a sentence's end."""
    if error.errno == errno.ELOOP:
        return "a symbolic link stands in its way"
    return os.strerror(error.errno) if error.errno else str(error)


class Placer:
    """``report`` hears what failed, ``note`` what this user may not do (counted by kind)."""

    def __init__(self, target: int, settings: Settings, report: Report, note: Callable[[str], None]) -> None:
        self.target, self.settings, self.report, self.note = target, settings, report, note
        self._uid, self._gid = os.geteuid(), os.getegid()
        self.made: set[bytes] = set()  # folders made on the way to a wanted entry, not entries themselves

    # -- folders ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def folder(self, path: bytes) -> Iterator[int]:
        """The folder at a path below the target, open; missing ones are made. OSError when it cannot be."""
        try:
            fd = open_beneath(self.target, path, _FOLDER)
        except FileNotFoundError:
            parent, name = split(path)
            with self.folder(parent) as above, contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=above)
                self.made.add(path)
            fd = open_beneath(self.target, path, _FOLDER)
        try:
            yield fd
        finally:
            os.close(fd)

    def make_folder(self, above: int, name: bytes) -> None:
        """A folder entry: made, or there already; anything else of that name is removed."""
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            st = os.stat(name, dir_fd=above, follow_symlinks=False)
            if not stat.S_ISDIR(st.st_mode):
                os.unlink(name, dir_fd=above)
                os.mkdir(name, 0o700, dir_fd=above)

    # -- everything but files and folders --------------------------------------------------------------------------

    def existing(self, above: int, name: bytes) -> os.stat_result | None:
        """What is there under that name; None also in a fresh target."""
        if self.settings.fresh:
            return None
        try:
            return os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_same_node(self, above: int, entry: Entry, st: os.stat_result) -> bool:
        """Whether a link, pipe, socket or device is there as the entry says, attributes aside."""
        if stat.S_IFMT(st.st_mode) != TYPE_OF[entry.kind]:
            return False
        if entry.kind == "l":
            return os.readlink(entry.name, dir_fd=above) == entry.target
        return entry.kind in "ps" or st.st_rdev == entry.device

    def make_node(self, above: int, entry: Entry) -> None:
        """A link, pipe, socket or device; in the way of it nothing may stand."""
        if entry.kind == "l":
            os.symlink(entry.target, entry.name, dir_fd=above)
        elif entry.kind == "p":
            os.mkfifo(entry.name, 0o600, dir_fd=above)
        else:
            os.mknod(entry.name, TYPE_OF[entry.kind] | 0o600, entry.device, dir_fd=above)

    def make_way(self, above: int, name: bytes, st: os.stat_result) -> None:
        """Remove what stands where an entry goes; a folder only when folders may go."""
        if not stat.S_ISDIR(st.st_mode):
            os.unlink(name, dir_fd=above)
        elif self.settings.clear:
            remove_tree(above, name)
        else:
            raise OSError(0, "a folder is in its place; --delete would remove it")

    # -- attributes ------------------------------------------------------------------------------------------------

    def settle_node(self, above: int, entry: Entry, path: bytes) -> None:
        """Owner, mode, attributes and time of anything that is not opened: links, nodes."""
        name = entry.name
        with self._allowed("owner"):
            if (entry.uid, entry.gid) != (self._uid, self._gid):
                os.chown(name, entry.uid, entry.gid, dir_fd=above, follow_symlinks=False)
        if entry.kind != "l":
            # the name was made by this process and is no link; /proc leads to this very entry and no further
            os.chmod(path_at(above, name), entry.mode)
        self._set_xattrs(path_at(above, name), entry.xattrs, path)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=above, follow_symlinks=False)

    def settle(self, fd: int, entry: Entry, path: bytes, *, mode_is_set: bool = False) -> None:
        """Owner, mode, attributes and time of an open file or folder. The order matters: changing the owner clears
        set-user-id bits and capabilities, and everything changes the time."""
        fresh = mode_is_set
        if (entry.uid, entry.gid) != (self._uid, self._gid) or not fresh:
            self._chown(fd, entry)
        if not fresh or entry.mode & _OWN:
            os.fchmod(fd, entry.mode)
        if entry.xattrs or not fresh:
            self._set_xattrs(fd, entry.xattrs, path)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def creation_mode(self, entry: Entry) -> int:
        """The mode to make a file with: its own where nothing else is left to do, private otherwise."""
        if (entry.uid, entry.gid) == (self._uid, self._gid) and not entry.xattrs:
            return entry.mode & 0o777
        return 0o600

    def _chown(self, fd: int, entry: Entry) -> None:
        if self.settings.is_root:
            os.fchown(fd, entry.uid, entry.gid)
            return
        st = os.fstat(fd)
        with self._allowed("owner"):
            if st.st_gid != entry.gid:
                os.fchown(fd, -1, entry.gid)
            if st.st_uid != entry.uid:
                os.fchown(fd, entry.uid, -1)

    def _set_xattrs(self, where: int | bytes, wanted: dict[bytes, bytes] | None, path: bytes) -> None:
        follow = isinstance(where, int)
        there = read_xattrs(where) or {}
        for name, value in (wanted or {}).items():
            if there.get(name) != value:
                try:
                    os.setxattr(where, name, value, follow_symlinks=follow)
                except OSError as e:
                    self._refused(name, e, path)
        for name in there.keys() - (wanted or {}).keys():
            if not name.startswith(b"security."):  # given by the system's own policy, not by the user
                with contextlib.suppress(OSError):
                    os.removexattr(where, name, follow_symlinks=follow)

    def _refused(self, name: bytes, error: OSError, path: bytes) -> None:
        text = f"attribute {os.fsdecode(name)}"
        if error.errno in (errno.EPERM, errno.EACCES) and not self.settings.is_root:
            self.note(text)
        elif error.errno in (errno.ENOTSUP, errno.EINVAL):
            self.note(f"{text} (this file system has none)")
        else:
            self.report(path, f"{text}: {explain(error)}")

    @contextlib.contextmanager
    def _allowed(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            if self.settings.is_root or e.errno not in _WANT_ROOT:
                raise
            self.note(what)


def part_name() -> bytes:
    """A name for a file that is not whole yet."""
    return b".holdfast-%s.part" % secrets.token_hex(8).encode()


def remove_tree(above: int, name: bytes) -> int:
    """Remove an entry and everything below it, following no link; how many entries went."""
    try:
        fd = os.open(name, _FOLDER | os.O_CLOEXEC, dir_fd=above)
    except NotADirectoryError:
        os.unlink(name, dir_fd=above)
        return 1
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        os.unlink(name, dir_fd=above)
        return 1
    try:
        gone = sum(remove_tree(fd, os.fsencode(inner)) for inner in os.listdir(fd))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=above)
    return gone + 1


def check_entry(directory: bytes, entry: Entry) -> bytes:
    """An entry's path, its name and kind checked; RefusedName when it must not be restored."""
    check_name(entry.name)
    if entry.kind not in TYPE_OF:
        raise RefusedName(f"the kind {entry.kind!r} is not known")
    return join(directory, entry.name)
