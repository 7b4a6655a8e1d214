"""Snapshots as folders of this machine, read-only, through FUSE (the extra ``mount``: mfusepy, and libfuse 3).

This module translates: what the kernel asks becomes a question to a Library, an error of ours becomes EIO and one line
for whoever reports. Content never changes under its name, so the kernel may keep it. Device files and set-user-id
programs of a backup are shown and mean nothing (nodev, nosuid).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from holdfast.archive.attributes import TYPE_OF
from holdfast.archive.extents import RandomFile
from holdfast.archive.views import Library, Link, Shelf, View
from holdfast.errors import HoldfastError, UsageError
from holdfast.repository.format import Entry
from holdfast.storage.base import Storage

FUSE_DEVICE = "/dev/fuse"
_KEPT_S = 30  # seconds the kernel may keep names and attributes
_BLOCK = 4096
_THREADS = 10  # that answer at the same time
_MOST_REPORTS = 1000
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_STOPPED = 7  # codes of libfuse from here on: its loop was ended, by a signal; below: it never began
_INSTALL = "Install it: `pip install 'holdfast[mount]'`, and Debian's package fuse3."

Report = Callable[[str], None]
Attributes = dict[str, int]


class Operations:
    """What mfusepy asks for, by FUSE's names. Paths are absolute below the mount; an OSError's errno is the answer."""

    use_ns = True  # times are integers

    def __init__(self, library: Library, storage: Storage, report: Report, ready: Callable[[], None]) -> None:
        self._library, self._storage, self._report, self._ready = library, storage, report, ready
        self._files: dict[int, RandomFile] = {}
        self._numbers = itertools.count(1)
        self._reported: set[str] = set()
        self._owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
        self._stored: int | None = None
        self.began = False

    def init(self, path: str) -> None:
        self.began = True
        self._ready()

    # -- names and attributes --------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> Attributes:
        with self._errors(path):
            found, inner = self._library.resolve(_bytes(path))
            if isinstance(found, View):
                return _attributes(found, inner, _need(found.find(inner)))
            return self._own_attributes(_need(found), path)

    def readlink(self, path: str) -> str:
        with self._errors(path):
            found, inner = self._library.resolve(_bytes(path))
            target = _need(found.find(inner)).target if isinstance(found, View) else getattr(found, "target", b"")
            return _text(target)

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, Attributes, int]]:
        """Names with kinds and inodes, as they are read."""
        folder = {"st_mode": stat.S_IFDIR, "st_ino": 1}
        yield ".", folder, 0
        yield "..", folder, 0
        with self._errors(path):
            self._library.refresh()
            found, inner = self._library.resolve(_bytes(path))
            if isinstance(found, View):
                for entry in found.entries(inner):
                    inode = found.inode(_join(inner, entry.name), entry)
                    yield _text(entry.name), {"st_mode": TYPE_OF.get(entry.kind, 0), "st_ino": inode}, 0
            elif isinstance(found, Shelf):
                for name, item in found.items.items():
                    mode = stat.S_IFLNK if isinstance(item, Link) else stat.S_IFDIR
                    yield _text(name), {"st_mode": mode, "st_ino": 1}, 0
            else:
                raise OSError(errno.ENOENT, "")

    def listxattr(self, path: str) -> list[str]:
        return [_text(name) for name in self._xattrs(path)]

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        value = self._xattrs(path).get(_bytes(name))
        if value is None:
            raise OSError(errno.ENODATA, "")
        return value

    def statfs(self, path: str) -> dict[str, int]:
        """A full file system of the size of what is stored."""
        with self._errors(path):
            if self._stored is None:
                self._stored = sum(info.size for info in self._storage.list("data"))
            blocks = -(-self._stored // _BLOCK)
            return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": blocks, "f_namemax": 255}

    # -- content ---------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "")
        with self._errors(path):
            found, inner = self._library.resolve(_bytes(path))
            if not isinstance(found, View):
                raise OSError(errno.EISDIR if found else errno.ENOENT, "")
            number = next(self._numbers)
            self._files[number] = RandomFile(self._library.chunks, _need(found.find(inner)))
            return number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self._errors(path):
            return self._files[fh].read(offset, size)

    def lseek(self, path: str, offset: int, whence: int, fh: int) -> int:
        """The next data or hole."""
        file = self._files[fh]
        found = file.seek_data(offset) if whence == os.SEEK_DATA else file.seek_hole(offset)
        if found is None or offset >= file.size:
            raise OSError(errno.ENXIO, "")
        return found

    def release(self, path: str, fh: int) -> int:
        self._files.pop(fh, None)
        return 0

    # -- inside ----------------------------------------------------------------------------------------------------

    def _xattrs(self, path: str) -> dict[bytes, bytes]:
        with self._errors(path):
            found, inner = self._library.resolve(_bytes(path))
            return _need(found.find(inner)).xattrs or {} if isinstance(found, View) else {}

    def _own_attributes(self, item: Shelf | View | Link, path: str) -> Attributes:
        link = isinstance(item, Link)
        time_ns = item.time_ns if isinstance(item, Shelf | Link) else 0
        return {
            "st_mode": stat.S_IFLNK | 0o777 if link else stat.S_IFDIR | 0o555,
            "st_nlink": 1,
            "st_ino": 1 if path == "/" else hash(path) & 0x7FFF_FFFF_FFFF_FFFF or 2,
            "st_size": len(item.target) if isinstance(item, Link) else 0,
            "st_mtime": time_ns,
            "st_ctime": time_ns,
            "st_atime": time_ns,
            **self._owner,
        }

    @contextlib.contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """Turn an error of ours into EIO, told of once for each path."""
        try:
            yield
        except HoldfastError as e:
            sentence = f"{path.lstrip('/')}: {e}"
            if sentence not in self._reported and len(self._reported) < _MOST_REPORTS:
                self._reported.add(sentence)
                self._report(sentence)
            raise OSError(errno.EIO, "") from None


def _attributes(view: View, path: bytes, entry: Entry) -> Attributes:
    return {
        "st_mode": TYPE_OF.get(entry.kind, 0) | entry.mode,
        "st_nlink": view.links(entry),
        "st_ino": view.inode(path, entry),
        "st_size": entry.size,
        "st_blocks": view.blocks(entry),
        "st_blksize": _BLOCK,
        "st_uid": entry.uid,
        "st_gid": entry.gid,
        "st_rdev": entry.device,
        "st_mtime": entry.mtime_ns,
        "st_atime": entry.mtime_ns,
        "st_ctime": entry.ctime_ns or entry.mtime_ns,
    }


def _need(found: Any) -> Any:
    if found is None:
        raise OSError(errno.ENOENT, "")
    return found


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


# -- mounting ----------------------------------------------------------------------------------------------------------


def mount(
    library: Library,
    storage: Storage,
    folder: str,
    report: Report,
    ready: Callable[[], None],
    *,
    allow_other: bool = False,
) -> None:
    """Show the library at ``folder`` until it is unmounted or SIGINT, SIGTERM or SIGHUP comes; to be called from the
    main thread. ``ready`` is called when it is mounted. With ``allow_other`` other users see it too, as far as the
    files' own modes allow.
    """
    fuse = load_fuse()
    check_folder(folder)
    operations = Operations(library, storage, report, ready)
    options: dict[str, Any] = {"allow_other": True, "default_permissions": True} if allow_other else {}
    if (fuse.fuse_version_major, fuse.fuse_version_minor) >= (3, 12):
        options["max_threads"] = _THREADS
    said: list[str] = []
    with _left_to_libfuse(), _heard(fuse, said.append):
        try:
            _with_seek(fuse)(
                operations,
                folder,
                foreground=True,
                fsname="holdfast",
                subtype="holdfast",
                ro=True,
                nosuid=True,
                nodev=True,
                noatime=True,
                use_ino=True,
                kernel_cache=True,
                entry_timeout=_KEPT_S,
                attr_timeout=_KEPT_S,
                **options,
            )
        except RuntimeError as e:
            code = e.args[0] if e.args else 0
            if not (operations.began and isinstance(code, int) and code >= _STOPPED):
                raise HoldfastError(
                    f"{folder} could not be mounted on" + "".join(f": {text}" for text in said[:1]) + ".",
                    "Not root? Then fusermount3 must be installed and the folder be yours.",
                ) from None


def load_fuse() -> ModuleType:
    """The FUSE library, or one sentence that says what is missing."""
    try:
        import mfusepy
    except ImportError:
        raise HoldfastError("Mounting needs the Python package mfusepy.", _INSTALL) from None
    except (OSError, AttributeError):
        raise HoldfastError("Mounting needs libfuse 3.", _INSTALL) from None
    if not os.path.exists(FUSE_DEVICE):
        raise HoldfastError(
            f"Mounting needs {FUSE_DEVICE}, and it is not there.",
            "Load the kernel module: `modprobe fuse`; in a container, let it have the device.",
        )
    return mfusepy


def check_folder(folder: str) -> None:
    """UsageError unless it is a folder that can be mounted on."""
    try:
        with os.scandir(folder) as there:  # stat may know a folder whose file system is gone from the kernel's memory
            next(there, None)
    except FileNotFoundError:
        raise UsageError(f"The folder {folder} does not exist.", f"Make it: `mkdir {folder}`.") from None
    except NotADirectoryError:
        raise UsageError(f"{folder} is not a folder.") from None
    except OSError as e:
        hint = f"A mount may have been left there: `fusermount3 -u {folder}`." if e.errno == errno.ENOTCONN else ""
        raise UsageError(f"{folder} cannot be mounted on: {os.strerror(e.errno or 0)}.", hint) from None


def _with_seek(fuse: ModuleType) -> Any:
    """mfusepy's FUSE with the one call it leaves out, so that copying a sparse file keeps its holes."""
    base: Any = fuse.FUSE

    class Seeking(base):  # type: ignore[misc]
        def lseek(self, path: bytes, offset: int, whence: int, info: Any) -> int:
            return int(self.operations.lseek("", offset, whence, info.contents.fh))

    return Seeking


@contextlib.contextmanager
def _left_to_libfuse() -> Iterator[None]:
    """libfuse ends its loop at these signals, but only where nobody else has a handler for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, signal.SIG_DFL) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _heard(fuse: ModuleType, hear: Callable[[str], None]) -> Iterator[None]:
    """Have libfuse say to ``hear`` what it would write to standard error: its reasons, and (3.14 does so at every
    mount) warnings about its own defaults.
    """
    library: Any = getattr(fuse, "_libfuse", None)
    if not hasattr(library, "fuse_set_log_func"):
        yield
        return
    libc = ctypes.CDLL(None)

    def log(level: int, text: bytes, values: int | None) -> None:
        line = ctypes.create_string_buffer(500)
        libc.vsnprintf(line, ctypes.c_size_t(len(line)), text, ctypes.c_void_p(values))
        hear(line.value.decode("utf-8", "replace").strip().removeprefix("fuse: ").rstrip("."))

    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(log)
    library.fuse_set_log_func(callback)
    try:
        yield
    finally:
        library.fuse_set_log_func(None)
