"""Makes entries below a target and gives them their attributes, without ever leaving the target.

Names come from a snapshot, checked by ``walking``. A target that was empty at the start is filled without looking
first; in any other, what is there is looked at and kept where it is right already.

Whoever may write below the target may plant and swap things while we work. So folders are opened beneath the target
without following links; attributes are set through a descriptor of the very thing, once it was seen to be of the right
kind and to have no second name (which may lie elsewhere); and a file that somebody else owns is replaced, not written
into.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from holdfast.archive.attributes import TYPE_OF, TooManyXattrs, path_at, read_xattrs
from holdfast.archive.attributes import explain as explain_plainly
from holdfast.archive.beneath import open_beneath
from holdfast.archive.clearing import May, clear
from holdfast.archive.walking import RefusedName as RefusedName  # for those who look for it here
from holdfast.archive.walking import check_directory as check_directory
from holdfast.archive.walking import check_name as check_name
from holdfast.errors import StorageFull
from holdfast.repository.format import Entry
from holdfast.repository.pages import join

Report = Callable[[bytes, str], None]
IN_THE_WAY = "a folder is in its place; --delete would remove it"
PARTLY_IN_THE_WAY = "a folder is in its place, with things in it that the patterns leave out"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_WAY = os.O_PATH | os.O_DIRECTORY
_SPECIAL = stat.S_ISUID | stat.S_ISGID  # bits that lend the owner's rights: only the right owner may lend them
_NOT_ALLOWED = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Settings:
    """``fresh``: the target was empty. ``clear``: folders in the way may go, as far as ``may`` lets them."""

    is_root: bool
    fresh: bool = False
    clear: bool = False
    may: May | None = None


def explain(error: OSError) -> str:
    """An OSError as a sentence's end."""
    if error.errno == errno.ELOOP:
        return "a symbolic link stands in its way"
    return explain_plainly(error)


def full(error: OSError) -> StorageFull | None:
    """What ends a restore: there is no room for anything more."""
    if error.errno not in _FULL:
        return None
    return StorageFull("The target has no space left.", "Free some, then run the restore again: it goes on from there.")


class Judgement(enum.Enum):
    """SAME: nothing is left to do. SETTLE: its attributes are to be set. DIFFERS: it is to be written, or made anew."""

    SAME = enum.auto()
    SETTLE = enum.auto()
    DIFFERS = enum.auto()


def is_current(entry: Entry, there: os.stat_result) -> bool:
    """A file of the same size and time is taken for the same; ``--verify`` does not take it on trust."""
    return stat.S_ISREG(there.st_mode) and (there.st_size, there.st_mtime_ns) == (entry.size, entry.mtime_ns)


class Placer:
    """``report`` hears what failed, ``note`` what this user or file system may not do (counted by kind)."""

    def __init__(self, target: int, settings: Settings, report: Report, note: Callable[[str], None]) -> None:
        self.target, self.settings, self.report, self.note = target, settings, report, note
        self._uid, self._gid = os.geteuid(), os.getegid()
        self._groups = {self._gid, *os.getgroups()}
        self._umask = _umask()
        self._plain = settings.fresh and self._is_plain()
        self.made: set[bytes] = set()  # folders made or opened up on the way to a wanted entry, to be settled too

    def _is_plain(self) -> bool:
        """Whether a new file gets the owner and mode it is made with, and nothing else: no set-group-id bit, no default
        ACL, no mount option gives it more. What is made below a fresh target then does so too.
        """
        try:
            fd = os.open(b".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666, dir_fd=self.target)
        except OSError:
            return False
        try:
            st = os.fstat(fd)
            as_made = (self._uid, self._gid, 0o666 & ~self._umask)
            return (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == as_made and not read_xattrs(fd)
        except OSError:
            return False
        finally:
            os.close(fd)

    # -- folders ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def folder(self, path: bytes) -> Iterator[int]:
        """The folder at a path below the target, open as a way (O_PATH); missing ones are made. OSError when it
        cannot be.
        """
        try:
            fd = open_beneath(self.target, path, _WAY)
        except FileNotFoundError:
            self._make_way_to(path)
            fd = open_beneath(self.target, path, _WAY)
        try:
            if not (self.settings.is_root or self.settings.fresh):
                self._open_up(fd, path)
            yield fd
        finally:
            os.close(fd)

    def _make_way_to(self, path: bytes) -> None:
        at, done = os.dup(self.target), b""
        try:
            for part in path.split(b"/"):
                done = join(done, part)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=at)
                    self.made.add(done)
                inner = open_beneath(at, part, _WAY)
                os.close(at)
                at = inner
        finally:
            os.close(at)

    def _open_up(self, fd: int, path: bytes) -> None:
        """Let this user into a folder of his own that an earlier restore has shut; it is settled again at the end."""
        st = os.fstat(fd)
        if st.st_uid == self._uid and st.st_mode & 0o700 != 0o700:
            os.chmod(_itself(fd), stat.S_IMODE(st.st_mode) | 0o700)
            self.made.add(path)

    def make_folder(self, above: int, name: bytes) -> None:
        """A folder entry: made, or there already; anything else of that name is removed."""
        try:
            os.mkdir(name, 0o700, dir_fd=above)
        except FileExistsError:
            st = os.stat(name, dir_fd=above, follow_symlinks=False)
            if not stat.S_ISDIR(st.st_mode):
                os.unlink(name, dir_fd=above)
                os.mkdir(name, 0o700, dir_fd=above)

    def settle_folder(self, path: bytes, entry: Entry) -> None:
        """Give a folder its attributes."""
        with contextlib.ExitStack() as stack:
            try:
                fd = open_beneath(self.target, path, _FOLDER)
            except PermissionError:
                stack.enter_context(self.folder(path))  # which opens it up
                fd = open_beneath(self.target, path, _FOLDER)
            stack.callback(os.close, fd)
            self.settle(fd, entry, path)

    # -- everything but files and folders --------------------------------------------------------------------------

    def existing(self, above: int, name: bytes) -> os.stat_result | None:
        """What is there under that name; None also in a fresh target."""
        if self.settings.fresh:
            return None
        try:
            return os.stat(name, dir_fd=above, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def judge(self, above: int, entry: Entry, there: os.stat_result) -> Judgement:
        """How far what is there is what the entry says. Not for folders."""
        if not (is_current(entry, there) if entry.kind == "f" else self._is_same_node(above, entry, there)):
            return Judgement.DIFFERS
        if self.has_attributes(above, entry, there):
            return Judgement.SAME
        return Judgement.SETTLE if self.may_keep(entry, there) else Judgement.DIFFERS

    def _is_same_node(self, above: int, entry: Entry, st: os.stat_result) -> bool:
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

    def make_way(self, above: int, path: bytes, st: os.stat_result, removed: Callable[[bytes], None]) -> None:
        """Remove what stands where an entry goes; a folder only when folders may go, and with it all that it holds."""
        if not stat.S_ISDIR(st.st_mode):
            os.unlink(path.rpartition(b"/")[2], dir_fd=above)
        elif not self.settings.clear:
            raise OSError(0, IN_THE_WAY)
        elif not clear(above, path, self.settings.may, removed):
            raise OSError(0, PARTLY_IN_THE_WAY)

    # -- attributes ------------------------------------------------------------------------------------------------

    def may_keep(self, entry: Entry, st: os.stat_result) -> bool:
        """Whether what is there may become the entry by setting attributes or writing into it: it has no second name,
        and is not somebody else's, who may have it open.
        """
        return st.st_nlink == 1 and (not self.settings.is_root or st.st_uid == entry.uid)

    def has_attributes(self, above: int, entry: Entry, st: os.stat_result) -> bool:
        """Whether mode, owner, time and attributes are those of the entry, as far as this user may set them."""
        owned = (st.st_uid, st.st_gid) == (entry.uid, entry.gid)
        if not owned and (self.settings.is_root or (st.st_gid != entry.gid and entry.gid in self._groups)):
            return False
        mode = entry.mode if owned else entry.mode & ~_SPECIAL
        if (entry.kind != "l" and stat.S_IMODE(st.st_mode) != mode) or st.st_mtime_ns != entry.mtime_ns:
            return False
        try:
            there = read_xattrs(path_at(above, entry.name)) or {}
        except TooManyXattrs:
            return False
        wanted = entry.xattrs or {}
        return {k: v for k, v in there.items() if self._counts(k, wanted)} == {
            k: v for k, v in wanted.items() if self._counts(k, wanted)
        }

    def _counts(self, xattr: bytes, wanted: dict[bytes, bytes]) -> bool:
        if self.settings.is_root:
            return xattr in wanted or not _is_policy(xattr)
        return not xattr.startswith((b"security.", b"trusted."))

    def settle_node(self, above: int, entry: Entry, path: bytes) -> None:
        """Owner, mode, attributes and time of anything that is not opened: links, nodes."""
        fd = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            st, this = os.fstat(fd), _itself(fd)
            if stat.S_IFMT(st.st_mode) != TYPE_OF[entry.kind] or st.st_nlink != 1:
                raise OSError(0, "something else took its place")
            owned = (st.st_uid, st.st_gid) == (entry.uid, entry.gid)
            if not owned:
                with self._allowed("owner"):
                    os.chown(this, entry.uid, entry.gid)
                    owned = True
            self._set_xattrs(this, entry.xattrs, path)
            if entry.kind != "l":
                with self._allowed("mode"):
                    os.chmod(this, entry.mode if owned else entry.mode & ~_SPECIAL)
            with self._allowed("time"):
                os.utime(this, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def creation_mode(self, entry: Entry) -> int:
        """The mode to make a file with: its own where nothing else is left to do, private otherwise."""
        if (entry.uid, entry.gid) == (self._uid, self._gid) and not entry.xattrs:
            return entry.mode & 0o777
        return 0o600

    def born(self, mode: int) -> int | None:
        """For ``settle``: the mode that a file just made with ``mode`` has; None where new files may get more."""
        return mode & ~self._umask if self._plain else None

    def settle(self, fd: int, entry: Entry, path: bytes, born: int | None = None) -> None:
        """Owner, mode, attributes and time of an open file or folder; ``born``: of a new file, as ``born`` gives it.

        The order matters: changing the owner clears set-user-id bits and capabilities, attributes of the user need a
        file that may be written to, and everything changes the time.
        """
        mode = entry.mode
        if (born is None or (entry.uid, entry.gid) != (self._uid, self._gid)) and not self._chown(fd, entry):
            mode &= ~_SPECIAL
        if born is None or entry.xattrs:
            self._set_xattrs(fd, entry.xattrs, path)
        if mode != born:
            with self._allowed("mode"):
                os.fchmod(fd, mode)
        with self._allowed("time"):
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _chown(self, fd: int, entry: Entry) -> bool:
        """Whether the owner is right now."""
        if self.settings.is_root:
            owned = False
            with self._allowed("owner"):
                os.fchown(fd, entry.uid, entry.gid)
                owned = True
            return owned
        st = os.fstat(fd)
        if st.st_gid != entry.gid and entry.gid in self._groups:
            with contextlib.suppress(OSError):
                os.fchown(fd, -1, entry.gid)
                st = os.fstat(fd)
        if (st.st_uid, st.st_gid) == (entry.uid, entry.gid):
            return True
        self.note("owner")
        return False

    def _set_xattrs(self, where: int | bytes, wanted: dict[bytes, bytes] | None, path: bytes) -> None:
        try:
            there = {os.fsencode(name) for name in os.listxattr(where)}
        except OSError:
            there = set()
        for name, value in (wanted or {}).items():
            try:
                if name not in there or os.getxattr(where, name) != value:
                    self._set_xattr(where, name, value)
            except (OSError, ValueError) as e:
                self._refused(name, e, path)
        for name in there - (wanted or {}).keys():
            if not _is_policy(name):
                with contextlib.suppress(OSError):
                    os.removexattr(where, name)

    def _set_xattr(self, where: int | bytes, name: bytes, value: bytes) -> None:
        try:
            os.setxattr(where, name, value)
        except PermissionError:
            if self.settings.is_root or not isinstance(where, int) or not name.startswith(b"user."):
                raise
            os.fchmod(where, 0o700)  # one's own file that may not be written to; its mode is set after this
            os.setxattr(where, name, value)

    def _refused(self, name: bytes, error: OSError | ValueError, path: bytes) -> None:
        text = f"attribute {os.fsdecode(name)}"
        if isinstance(error, ValueError):
            self.report(path, f"{text}: it has no name a file's attribute may have")
        elif error.errno in (errno.EPERM, errno.EACCES):
            self.note(text)
        elif error.errno in (errno.ENOTSUP, errno.EINVAL):
            self.note(f"{text} (this file system has none)")
        else:
            self.report(path, f"{text}: {explain(error)}")

    @contextlib.contextmanager
    def _allowed(self, what: str) -> Iterator[None]:
        """Note what may not be done here; the content stays. Also root may not everywhere: network mounts, FAT."""
        try:
            yield
        except OSError as e:
            if e.errno not in _NOT_ALLOWED:
                raise
            self.note(what)


def part_name() -> bytes:
    """A name for a file that is not whole yet."""
    return b".holdfast-%s.part" % secrets.token_hex(8).encode()


def _itself(fd: int) -> bytes:
    """A path to the very thing that is open, be it a link or a pipe, for calls that refuse an O_PATH descriptor."""
    return b"/proc/self/fd/%d" % fd


def _is_policy(xattr: bytes) -> bool:
    """Whether the system's own policy gives that attribute, so that one too many is not ours to remove."""
    return xattr.startswith(b"security.") and xattr != b"security.capability"


def _umask() -> int:
    """This process's umask, read without changing it for other threads; all bits where it cannot be read."""
    try:
        with open("/proc/self/status", "rb") as f:
            found = re.search(rb"^Umask:\s*([0-7]+)", f.read(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1], 8) if found else 0o777
