"""Files under random names in one folder: for what is to be really gone soon, and for what other programs serve.

What is promised: a file is durable and whole under its name, or not there; a file that was removed is gone durably.
Who writes one leaves nothing if he gives up; what a killed writer left in ``tmp/`` goes with ``clear``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from holdfast.errors import ObjectMissing, StorageUnavailable
from holdfast.storage.base import ObjectInfo
from holdfast.storage.local import Incoming, Opened, _clear_left_overs, _make_folders, _named_errors, _sync_folder

_NAME = re.compile(r"[0-9a-f]{64}")
_TMP = "tmp"


class LooseFiles:
    """See the module. ``readable``: the files' group may read them. Safe to share between threads."""

    def __init__(self, root: Path, *, readable: bool = False) -> None:
        self._root, self._readable = str(root), readable

    def create(self) -> None:
        """Make the folder, durably. An existing one is kept."""
        with _named_errors(self._root, missing=StorageUnavailable):
            _make_folders(self._root)
            _make_folders(os.path.join(self._root, _TMP))
            if self._readable:
                os.chmod(self._root, 0o710)  # noqa: S103 - the group must know what a file is called

    def begin(self) -> tuple[str, Incoming]:
        """A new file, and what it is called once it is published."""
        name = secrets.token_hex(32)
        tmp = os.path.join(self._root, _TMP, name)
        with _named_errors(self._root, missing=StorageUnavailable):
            fd = os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            if self._readable:
                os.fchmod(fd, 0o640)
        return name, Incoming(f"{self._root}: {name}", self._path(name), tmp, fd)

    def open(self, name: str) -> Opened:
        """The file, to be read and then closed. ObjectMissing when it is not there."""
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=ObjectMissing):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            st = os.fstat(fd)
        return Opened(self._root, fd, ObjectInfo(name, st.st_size, st.st_mtime_ns))

    def remove(self, name: str) -> None:
        """Gone when it returns, also if it was before."""
        path = self._path(name)
        with _named_errors(f"{self._root}: {name}", missing=StorageUnavailable):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            _sync_folder(self._root)

    def list(self) -> Iterator[ObjectInfo]:
        with _named_errors(self._root, missing=StorageUnavailable), os.scandir(self._root) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):  # removed while we look
                        st = entry.stat(follow_symlinks=False)
                        yield ObjectInfo(entry.name, st.st_size, st.st_mtime_ns)

    def clear(self, now_ns: int, older_ns: int) -> None:
        """Remove what killed writers left unfinished, if nothing was written to it for so long."""
        with _named_errors(self._root, missing=StorageUnavailable):
            _clear_left_overs(os.path.join(self._root, _TMP), now_ns, older_ns)

    def _path(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ObjectMissing(f"No file is called {name[:80]!r}.")
        return os.path.join(self._root, name)
