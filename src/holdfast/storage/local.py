"""A storage in a folder of this machine (or of anything mounted on it).

Promises beyond the contract: an object is written without a name (O_TMPFILE) or under ``tmp/``, flushed, and then
linked to its final name, so a final name never holds half an object, a zero-filled one after a power cut, or garbage of
a full disk. The folder's own entry is flushed too. Data objects lie in 256 subfolders by their first two digits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Sequence

from holdfast.errors import (
    ObjectExists,
    ObjectMissing,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from holdfast.storage.base import CONFIG, FOLDERS, Buffer, ObjectInfo, check_folder, check_name

_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}
_HEX = frozenset("0123456789abcdef")
_MOST_PARTS = 512  # of one writev; the kernel takes 1024


class LocalStorage:
    """See the module. ``create`` makes the folders; opening a folder that is not there is fine until it is used."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(os.fspath(root))

    @property
    def place(self) -> str:
        return self._root

    def create(self) -> None:
        """Make the folder and its subfolders, durably. Existing ones are kept."""
        with _named_errors(self._root):
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
        with _named_errors(f"{self._root}: {name}"):
            if os.path.lexists(path):
                raise ObjectExists(f"{name} is in {self._root} already.")
            folder = os.path.dirname(path)
            if not os.path.isdir(folder):
                self._need_root()
                _make_folders(folder)
            self._write_and_link(folder, path, parts)
            _sync_folder(folder)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        with _named_errors(f"{self._root}: {name}"):
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                wanted = length if length is not None else max(0, os.fstat(fd).st_size - start)
                data = os.pread(fd, wanted, start)
                while len(data) < wanted:
                    more = os.pread(fd, wanted - len(data), start + len(data))
                    if not more:
                        break
                    data += more
            finally:
                os.close(fd)
        if len(data) != wanted:
            raise StorageError(f"{name} in {self._root} ends before byte {start + wanted}: it is truncated.")
        return data

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        top = os.path.join(self._root, check_folder(folder))
        with _named_errors(top):
            self._need_root()
            if not os.path.isdir(top):
                return
            if folder != "data":
                yield from _objects_in(top, folder)
                return
            for sub in sorted(os.listdir(top)):
                if len(sub) == 2 and _HEX.issuperset(sub):
                    yield from (i for i in _objects_in(os.path.join(top, sub), folder) if i.name[5:7] == sub)

    def stat(self, name: str) -> ObjectInfo:
        with _named_errors(f"{self._root}: {name}"):
            st = os.stat(self._path(name), follow_symlinks=False)
        return ObjectInfo(name, st.st_size, st.st_mtime_ns)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                return
            _sync_folder(os.path.dirname(path))

    def free_space(self) -> int | None:
        with _named_errors(self._root):
            st = os.statvfs(self._root)
        return st.f_bavail * st.f_frsize

    def _path(self, name: str) -> str:
        check_name(name)
        if name == CONFIG:
            return os.path.join(self._root, CONFIG)
        folder, digits = name.split("/")
        if folder == "data":
            return os.path.join(self._root, folder, digits[:2], digits)
        return os.path.join(self._root, folder, digits)

    def _need_root(self) -> None:
        """A repository's folder that is gone (an unmounted disk) is not an empty repository, nor one to make anew."""
        if not os.path.isdir(self._root):
            raise StorageUnavailable(f"The folder {self._root} is not there.", "Is its disk mounted?")

    def _write_and_link(self, folder: str, path: str, parts: Sequence[Buffer]) -> None:
        try:
            fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as e:
            if e.errno not in _NO_TMPFILE or not os.path.isdir(folder):
                raise
            return self._write_named(path, parts)
        try:
            _write_all(fd, parts)
            os.fsync(fd)
            try:
                os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)
            except FileExistsError:
                raise
            except OSError as e:
                if e.errno not in (errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
                    raise
                return self._write_named(path, parts)  # no /proc, or a file system without such links
        finally:
            os.close(fd)

    def _write_named(self, path: str, parts: Sequence[Buffer]) -> None:
        """The way for file systems without O_TMPFILE. A kill leaves a file in ``tmp/`` that nobody takes for an object."""
        tmp_folder = os.path.join(self._root, "tmp")
        os.makedirs(tmp_folder, mode=0o700, exist_ok=True)
        tmp = os.path.join(tmp_folder, secrets.token_hex(16))
        fd = os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            try:
                _write_all(fd, parts)
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(tmp, path)
            except FileExistsError:
                raise
            except OSError as e:
                if e.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK):
                    raise
                os.rename(
                    tmp, path
                )  # no hard links here (FAT, some network mounts); names are content, so a race is harmless
        finally:
            with contextlib.suppress(OSError):
                os.unlink(tmp)


def _objects_in(path: str, folder: str) -> Iterator[ObjectInfo]:
    with os.scandir(path) as entries:
        for entry in entries:
            if len(entry.name) == 64 and _HEX.issuperset(entry.name) and entry.is_file(follow_symlinks=False):
                try:
                    st = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted while we look
                    continue
                yield ObjectInfo(f"{folder}/{entry.name}", st.st_size, st.st_mtime_ns)


def _write_all(fd: int, parts: Sequence[Buffer]) -> None:
    views = [memoryview(p).cast("B") for p in parts if len(p)]
    while views:
        written = os.writev(fd, views[:_MOST_PARTS])
        while views and written >= len(views[0]):
            written -= len(views.pop(0))
        if written:
            views[0] = views[0][written:]


def _make_folders(path: str) -> None:
    """mkdir -p, each new level flushed into its parent before the next one is made."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    if parent != path:
        _make_folders(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
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
def _named_errors(thing: str) -> Iterator[None]:
    """Turn the system's errors into the contract's."""
    try:
        yield
    except FileExistsError:
        raise ObjectExists(f"{thing} is there already.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise ObjectMissing(f"{thing} is not there.") from None
    except OSError as e:
        text = f"{thing}: {os.strerror(e.errno) if e.errno else e}."
        if e.errno in _FULL:
            raise StorageFull(text, "Free some space there, or forget and prune old snapshots.") from None
        if e.errno in _DENIED:
            raise StorageDenied(text, "Check the folder's permissions and that it is not mounted read-only.") from None
        if e.errno in (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ESHUTDOWN, 117):  # 117 EUCLEAN: needs fsck
            raise StorageUnavailable(text, "Check the disk, then try again.") from None
        raise StorageError(text) from None
