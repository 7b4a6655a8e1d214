"""A storage in a folder of this machine (or of anything mounted on it).

Promises beyond the contract: an object is written without a name (O_TMPFILE) or under ``tmp/``, flushed, and then
linked to its final name, so a final name never holds half an object, a zero-filled one after a power cut, or garbage of
a full disk. The entry in its folder is flushed next, and the folder's own entry was before. Data objects lie in 256
subfolders by their first two digits.

Between the link and the flush of the folder others see an object that a power cut may still take away. What they store
after having seen it cannot outlive it where the file system's journal keeps the order of changes (ext4, XFS, tmpfs).

A repository's folder that is not there (an unmounted disk) is not an empty repository: it is StorageUnavailable.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator, Sequence

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from holdfast.storage.base import CONFIG, FOLDERS, Buffer, ObjectInfo, check_folder, check_name, check_range

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ESHUTDOWN, errno.EUCLEAN),  # the disk
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.EMFILE, errno.ENFILE),  # the machine
}
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_HEX = frozenset("0123456789abcdef")
_DIRECT_LEAST = 1 << 20
_PAGE = 4096
_MOST_PARTS = 512  # of one writev; the kernel takes 1024
_LEFT_OVER_NS = 24 * 3600 * 1_000_000_000  # a file in tmp/ this old belongs to nobody


class LocalStorage:
    """See the module. ``create`` makes the folders; opening a folder that is not there is fine until it is used."""

    lists_late = False

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(os.fspath(root))
        self._settled: set[str] = set()  # folders whose own entry is known to be durable
        self._unnamed = True  # whether this file system has O_TMPFILE, as far as is known
        self._cleared = False  # whether tmp/ was looked through

    @property
    def place(self) -> str:
        return self._root

    @property
    def connections(self) -> int:
        return 1

    def create(self) -> None:
        """Make the folder and its subfolders, durably. Existing ones are kept."""
        with _named_errors(self._root, missing=StorageUnavailable):
            _make_folders(self._root)
            for folder in FOLDERS:
                _make_folders(os.path.join(self._root, folder))
            data = os.path.join(self._root, "data")
            for number in range(256):  # all at once, so that no put has to make a folder durable first
                with contextlib.suppress(FileExistsError):
                    os.mkdir(os.path.join(data, f"{number:02x}"), 0o700)
            _sync_folder(data)

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(name)
        folder = os.path.dirname(path)
        with _named_errors(f"{self._root}: {name}", missing=StorageUnavailable):
            if not os.path.lexists(path):
                self._settle(folder)
                with contextlib.suppress(FileExistsError):
                    self._write_and_link(folder, path, parts)
                    _sync_folder(folder)
                    return
            _sync_folder(folder)  # whoever stored it may have been killed before he could
        raise ObjectExists(f"{name} is in {self._root} already.")

    def begin(self, name: str) -> Incoming:
        """Take an object piece by piece, with the same promises as ``put``. ObjectExists when it is there already."""
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=StorageUnavailable):
            if not os.path.lexists(path):
                self._settle(os.path.dirname(path))
                return Incoming(f"{self._root}: {name}", path, *self._make_tmp())
            _sync_folder(os.path.dirname(path))
        raise ObjectExists(f"{name} is in {self._root} already.")

    def open(self, name: str) -> Opened:
        """An object to be read piece by piece; whoever asked closes it."""
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=ObjectMissing), self._present(name):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return Opened(self._root, fd, self._stat(name, os.fstat(fd)))
            except BaseException:
                os.close(fd)
                raise

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        check_range(start, length)
        with _named_errors(f"{self._root}: {name}", missing=ObjectMissing), self._present(name):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                size = self._stat(name, os.fstat(fd)).size
                end = size if length is None else start + length
                data = _read(fd, start, end - start) if start <= end <= size else None
            finally:
                os.close(fd)
        if data is None or len(data) != end - start:
            raise StorageError(f"{name} in {self._root} ends before byte {max(start, end)}: it is truncated.")
        return data

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        top = os.path.join(self._root, check_folder(folder))
        with _named_errors(top, missing=StorageUnavailable):
            if not os.path.isdir(top):
                self._need_repository()
            elif folder == "data":
                for sub in sorted(os.listdir(top)):
                    if len(sub) == 2 and _HEX.issuperset(sub):
                        yield from (i for i in _objects_in(os.path.join(top, sub), folder) if i.name[5:7] == sub)
            else:
                yield from _objects_in(top, folder)

    def stat(self, name: str) -> ObjectInfo:
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=ObjectMissing), self._present(name):
            return self._stat(name, os.lstat(path))

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=StorageUnavailable):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            try:
                _sync_folder(os.path.dirname(path))  # also when it is gone: whoever deleted it may have been killed
            except FileNotFoundError:
                self._need_root()

    def remove(self, name: str) -> int:
        """Delete an object that is there, durably; how many bytes it had. ObjectMissing when it is not there: of
        several who remove the same one, one succeeds.
        """
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=ObjectMissing), self._present(name):
            size = self._stat(name, os.lstat(path)).size
            os.unlink(path)
            _sync_folder(os.path.dirname(path))
        return size

    def free_space(self) -> int | None:
        with _named_errors(self._root, missing=StorageUnavailable):
            st = os.statvfs(self._root)
        return st.f_bavail * st.f_frsize

    def close(self) -> None:
        """There is nothing open."""

    # -- names and what is there -----------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        check_name(name)
        if name == CONFIG:
            return os.path.join(self._root, CONFIG)
        folder, digits = name.split("/")
        if folder == "data":
            return os.path.join(self._root, folder, digits[:2], digits)
        return os.path.join(self._root, folder, digits)

    def _stat(self, name: str, st: os.stat_result) -> ObjectInfo:
        if not stat.S_ISREG(st.st_mode):
            raise StorageError(f"{name} in {self._root} is not a file: something else put it there.")
        return ObjectInfo(name, st.st_size, st.st_mtime_ns)

    @contextlib.contextmanager
    def _present(self, name: str) -> Iterator[None]:
        """Only where the folder is there can an object be missing; ``config`` is how one asks whether there is one."""
        try:
            yield
        except FileNotFoundError:
            if name != CONFIG:
                self._need_root()
            raise

    def _need_root(self) -> None:
        try:
            os.stat(self._root)
        except FileNotFoundError:
            raise StorageUnavailable(f"The folder {self._root} is not there.", "Is its disk mounted?") from None

    def _need_repository(self) -> None:
        """Nothing is listed or made in a folder without ``config``: it may be where a disk should be mounted."""
        self._need_root()
        if not os.path.lexists(os.path.join(self._root, CONFIG)):
            raise StorageUnavailable(f"The folder {self._root} holds no repository.", "Is its disk mounted?")

    # -- writing ---------------------------------------------------------------------------------------------------

    def _settle(self, folder: str) -> None:
        """Have the folder, and its own entry durable: whoever made it may have been killed before he could flush it."""
        if not os.path.isdir(folder):
            self._need_repository()
            _make_folders(folder)
        elif folder != self._root and folder not in self._settled:  # the root was settled by ``create``
            parent = os.path.dirname(folder)
            with os.scandir(parent) as entries:
                there = [entry.path for entry in entries if entry.is_dir()]
            _sync_folder(parent)  # one flush for all that were there before it
            self._settled.update(there)

    def _write_and_link(self, folder: str, path: str, parts: Sequence[Buffer]) -> None:
        if self._unnamed:
            if self._write_unnamed(folder, path, parts):
                return
            self._unnamed = False
        self._write_named(path, parts)

    def _write_unnamed(self, folder: str, path: str, parts: Sequence[Buffer]) -> bool:
        """False when the file system, or a missing /proc, does not allow this way."""
        try:
            fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as e:
            if e.errno not in _NO_TMPFILE or not os.path.isdir(folder):
                raise
            return False
        try:
            _write_all(fd, parts)
            os.fsync(fd)
            # src_dir_fd is of no use for an absolute path, but without it os.link does not follow the link in /proc.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
        except FileExistsError:
            raise
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.EXDEV, *_NO_LINKS) or not os.path.isdir(folder):
                raise
            return False
        finally:
            os.close(fd)
        return True

    def _write_named(self, path: str, parts: Sequence[Buffer]) -> None:
        """The way without O_TMPFILE."""
        tmp, fd = self._make_tmp()
        try:
            try:
                _write_all(fd, parts)
                os.fsync(fd)
            finally:
                os.close(fd)
            _publish(tmp, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(tmp)

    def _make_tmp(self) -> tuple[str, int]:
        """A new file in ``tmp/``, open for writing. A kill leaves it there; nobody takes it for an object."""
        tmp_folder = os.path.join(self._root, "tmp")
        with contextlib.suppress(FileExistsError):
            os.mkdir(tmp_folder, 0o700)
        tmp = os.path.join(tmp_folder, secrets.token_hex(16))
        fd = os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        if not self._cleared:
            self._cleared = True
            _clear_left_overs(tmp_folder, os.fstat(fd).st_mtime_ns, _LEFT_OVER_NS)
        return tmp, fd

    def clear(self, older_ns: int) -> None:
        """Remove what killed writers left unfinished, if nothing was written to it for so long."""
        with _named_errors(self._root, missing=StorageUnavailable):
            self._need_root()
            tmp, fd = self._make_tmp()
            try:
                now_ns = os.fstat(fd).st_mtime_ns
            finally:
                os.close(fd)
                os.unlink(tmp)
            _clear_left_overs(os.path.dirname(tmp), now_ns, older_ns)


class Incoming:
    """An object on its way in, as ``LocalStorage.begin`` gives it: ``write`` its pieces, then ``publish`` or
    ``abandon``. One thread's at a time.
    """

    def __init__(self, thing: str, path: str, tmp: str, fd: int) -> None:
        self._thing, self._path, self._tmp, self._fd = thing, path, tmp, fd

    def write(self, piece: Buffer) -> None:
        with _named_errors(self._thing, missing=StorageUnavailable):
            _write_all(self._fd, [piece])

    def publish(self) -> None:
        """Durable and whole under its name when it returns. ObjectExists when somebody else was first; then what is
        there is durable. Either way nothing else is left.
        """
        folder, is_new = os.path.dirname(self._path), True
        try:
            with _named_errors(self._thing, missing=StorageUnavailable):
                os.fsync(self._fd)
                try:
                    _publish(self._tmp, self._path)
                except FileExistsError:
                    is_new = False
                _sync_folder(folder)
        finally:
            self.abandon()
        if not is_new:
            raise ObjectExists(f"{self._thing} is there already.")

    def abandon(self) -> None:
        """Leave nothing of it but what was published. It may be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with contextlib.suppress(OSError):
                os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self._tmp)


class Opened:
    """An object that is open for reading, as ``LocalStorage.open`` gives it."""

    def __init__(self, root: str, fd: int, info: ObjectInfo) -> None:
        self._root, self._fd, self.info = root, fd, info

    def read(self, start: int, length: int) -> bytes:
        """Exactly those bytes; StorageError when the file ends before them."""
        with _named_errors(f"{self._root}: {self.info.name}", missing=StorageUnavailable):
            data = _read(self._fd, start, length)
        if len(data) != length:
            raise StorageError(f"{self.info.name} in {self._root} ends before byte {start + length}: it is truncated.")
        return data

    def close(self) -> None:
        """It may be called twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _publish(tmp: str, path: str) -> None:
    """Give the file its final name, or raise FileExistsError."""
    try:
        os.link(tmp, path)
        return
    except FileExistsError:
        raise
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
    # No hard links here (FAT, some network mounts), and a rename replaces: one at a time may look and rename.
    lock = os.open(os.path.join(os.path.dirname(tmp), "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # without locks either: names are content, so a race is harmless
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.rename(tmp, path)
    finally:
        os.close(lock)


def _clear_left_overs(tmp_folder: str, now_ns: int, older_ns: int) -> None:
    """Remove what killed writers left so long ago. ``now_ns``: by the file system's own clock."""
    with os.scandir(tmp_folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name != "lock" and now_ns - entry.stat(follow_symlinks=False).st_mtime_ns > older_ns:
                    os.unlink(entry.path)


def _objects_in(path: str, folder: str) -> Iterator[ObjectInfo]:
    try:
        entries = os.scandir(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if len(entry.name) == 64 and _HEX.issuperset(entry.name) and entry.is_file(follow_symlinks=False):
                try:
                    st = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted while we look
                    continue
                yield ObjectInfo(f"{folder}/{entry.name}", st.st_size, st.st_mtime_ns)


def _read(fd: int, start: int, length: int) -> bytes:
    """The bytes, fewer where the file ends or the disk gives no more."""
    data = os.pread(fd, length, start)
    if len(data) == length:
        return data
    parts, got = [data], len(data)
    while got < length and (more := os.pread(fd, length - got, start + got)):
        parts.append(more)
        got += len(more)
    return b"".join(parts)


def _write_all(fd: int, parts: Sequence[Buffer]) -> None:
    views = [view for part in parts if (view := memoryview(part).cast("B"))]
    if views and len(views[0]) >= _DIRECT_LEAST:
        views[0] = views[0][_write_direct(fd, views[0]) :]
        views = [v for v in views if v]
    first = 0
    while first < len(views):
        written = os.writev(fd, views[first : first + _MOST_PARTS])
        while first < len(views) and written >= len(views[first]):
            written -= len(views[first])
            first += 1
        if written:
            views[first] = views[first][written:]


def _write_direct(fd: int, view: memoryview) -> int:
    """Write the whole pages of a large part past the page cache; how many bytes that were, 0 where it cannot be done.

    What was just backed up is not read again soon: copying it into the cache costs more than half of the processor
    time of storing a pack, and pushes out what the machine works with.
    """
    flags, done, whole = fcntl.fcntl(fd, fcntl.F_GETFL), 0, len(view) - len(view) % _PAGE
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        while done < whole and done % _PAGE == 0:
            done += os.write(fd, view[done:whole])
    except OSError as e:
        if e.errno != errno.EINVAL:  # no such writes here, or the part is not aligned in memory
            raise
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
    return done


def _make_folders(path: str) -> None:
    """mkdir -p, each new level flushed into its parent before the next one is made.

    The deepest level that is there may be one that an earlier run made and could not flush any more: that is done now.
    """
    parent = os.path.dirname(path)
    if not os.path.isdir(path):
        if parent != path:
            _make_folders(parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        _sync_folder(parent)
    else:
        with contextlib.suppress(PermissionError):  # a parent that may not be read was not made by us
            _sync_folder(parent)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:  # some network file systems cannot flush a folder, and need not
            raise
    finally:
        os.close(fd)


@contextlib.contextmanager
def _named_errors(thing: str, *, missing: type[StorageError]) -> Iterator[None]:
    """Turn the system's errors into the contract's. ``missing``: what a path that is not there means here."""
    try:
        yield
    except OSError as e:
        text = f"{thing}: {os.strerror(e.errno) if e.errno else e}."
        if e.errno in (errno.ENOENT, errno.ENOTDIR) and missing is ObjectMissing:
            raise ObjectMissing(f"{thing} is not there.") from None
        if e.errno == errno.ENOENT:
            raise missing(text, "Is its disk mounted?") from None
        if e.errno in _FULL:
            raise StorageFull(text, "Free some space there, or forget and prune old snapshots.") from None
        if e.errno in _DENIED:
            raise StorageDenied(text, "Check the folder's permissions and that it is not mounted read-only.") from None
        if e.errno in _PASSING:
            raise StorageUnavailable(text, "Check the disk, then try again.") from None
        raise StorageError(text) from None
