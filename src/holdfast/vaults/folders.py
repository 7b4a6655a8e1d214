"""The folders that vaults lie in: one for each, below the folder of all, laid out as a local storage is.

What is promised: a folder is nobody's but one vault's, also when the catalog was lost and numbers begin anew; what is
still there of a folder that is being removed is taken for no vault's.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from holdfast.errors import StorageFull, StorageUnavailable
from holdfast.storage.local import LocalStorage

_ABOUT = "vault.json"
_MOST_OPEN = 1000


class About(msgspec.Struct, frozen=True):
    """What lies in a vault's folder about it, for the day on which the catalog is lost."""

    owner: str
    name: str
    append_only: bool
    quota_bytes: int | None
    created_ns: int


class Folders:
    """See the module. Safe to share between threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, LocalStorage] = {}
        self._lock = threading.Lock()

    def storage(self, folder: str) -> LocalStorage:
        """The storage in a vault's folder; the same one each time, which knows what of it is durable already."""
        with self._lock:
            if len(self._open) >= _MOST_OPEN:
                self._open.clear()
            return self._open.setdefault(folder, LocalStorage(self._root / folder))

    def make(self, account: int, about: About) -> str:
        """A new folder, and what it is called."""
        folder = f"{account}/{secrets.token_hex(16)}"
        with _told():
            self.storage(folder).create()
            self.note(folder, about)
        return folder

    def note(self, folder: str, about: About) -> None:
        """Durable when it returns, in place of what was there."""
        path = self._root / folder / _ABOUT
        tmp = path.with_name(f"{_ABOUT}.{secrets.token_hex(8)}")
        with _told():
            try:
                with os.fdopen(os.open(tmp, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
                    file.write(msgspec.json.encode(about))
                    file.flush()
                    os.fsync(file.fileno())
                tmp.rename(path)
            finally:
                tmp.unlink(missing_ok=True)
            _sync(path.parent)

    def remove(self, folder: str) -> None:
        """All of it, durably; what it says about itself first, so that nobody takes the rest for a vault."""
        path = self._root / folder
        with _told():
            if path.is_dir():
                (path / _ABOUT).unlink(missing_ok=True)
                _sync(path)
                shutil.rmtree(path)
            if path.parent.is_dir():
                _sync(path.parent)
        with self._lock:
            self._open.pop(folder, None)

    def found(self) -> Iterator[tuple[str, About]]:
        """Every folder that says which vault it is."""
        for path in sorted(self._root.glob(f"*/*/{_ABOUT}")):
            with contextlib.suppress(msgspec.MsgspecError, OSError):
                yield str(path.parent.relative_to(self._root)), msgspec.json.decode(path.read_bytes(), type=About)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in (28, 122):
            raise StorageFull("The server's disk is full.", "Tell its administrator.") from e
        raise StorageUnavailable("The server cannot use the folder of its vaults.", "Tell its administrator.") from e


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
