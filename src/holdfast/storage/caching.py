"""What a storage far away was asked for before is not fetched again: index objects, snapshots, keys, and pages.

Objects never change under their names, so nothing in the cache is ever out of date; what it holds is as sealed as in
the storage. It is never believed: whole objects must hash to their names, pieces carry a hash of their own. A cache
that cannot be written to, or is full, is no error. ``config`` and ``locks/`` are always asked for.

The folder: ``index/``, ``snapshots/``, ``keys/`` with objects by their digits, ``pages/ab/DIGITS-START-LENGTH``. Whole
objects go when a listing does not name them any more, pages when they were not used for KEPT_DAYS. A pack of pages that
was stored from here lies there whole, as ``pages/ab/DIGITS``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from holdfast.storage.base import Buffer, ObjectInfo, Storage, check_name
from holdfast.storage.wrappers import Passing

KEPT_DAYS = 30
_WHOLE = ("index", "snapshots", "keys")
_HASH = 32


class Caching(Passing):
    """See the module. ``folder``: of this storage alone."""

    def __init__(self, inner: Storage, folder: Path) -> None:
        super().__init__(inner)
        self._folder = folder
        self.pages = _Pages(inner, folder / "pages")

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self.inner.put(name, parts)
        kind, _, digits = name.partition("/")
        if kind in _WHOLE:
            _write(self._folder / kind / digits, b"".join(parts))

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        kind, _, digits = check_name(name).partition("/")
        if kind not in _WHOLE or start or length is not None:
            return self.inner.get(name, start, length)
        path = self._folder / kind / digits
        found = _read(path)
        if found is not None and hashlib.sha256(found).hexdigest() == digits:
            return found
        data = self.inner.get(name)
        if hashlib.sha256(data).hexdigest() == digits:
            _write(path, data)
        return data

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        if folder not in _WHOLE:
            yield from self.inner.list(folder)
            return
        before = _names_in(self._folder / folder)
        for info in self.inner.list(folder):
            before.discard(info.name.rpartition("/")[2])
            yield info
        for digits in before:  # deleted from the storage
            _remove(self._folder / folder / digits)

    def delete(self, name: str) -> None:
        self.inner.delete(name)
        kind, _, digits = name.partition("/")
        if kind in _WHOLE:
            _remove(self._folder / kind / digits)


class _Pages(Passing):
    """The same storage for who reads pieces that will be wanted again."""

    def __init__(self, inner: Storage, folder: Path) -> None:
        super().__init__(inner)
        self._folder = folder
        self._good: set[str] = set()  # whole packs whose hash was looked at

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Store a pack of pages, and keep it whole."""
        self.inner.put(name, parts)
        digits = name.rpartition("/")[2]
        _write(self._folder / digits[:2] / digits, b"".join(parts))

    def _piece_of_whole(self, digits: str, start: int, length: int) -> bytes | None:
        path = self._folder / digits[:2] / digits
        if digits not in self._good:
            found = _read(path)
            if found is None or hashlib.sha256(found).hexdigest() != digits:
                return None
            self._good.add(digits)
            with contextlib.suppress(OSError):
                os.utime(path)
        with contextlib.suppress(OSError), open(path, "rb") as f:
            f.seek(start)
            piece = f.read(length)
            return piece if len(piece) == length else None
        return None

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        kind, _, digits = check_name(name).partition("/")
        if kind != "data" or length is None:
            return self.inner.get(name, start, length)
        if (piece := self._piece_of_whole(digits, start, length)) is not None:
            return piece
        path = self._folder / digits[:2] / f"{digits}-{start}-{length}"
        found = _read(path)
        if found is not None and len(found) == length + _HASH and _hash(found[:length]) == found[length:]:
            with contextlib.suppress(OSError):
                os.utime(path)
            return found[:length]
        data = self.inner.get(name, start, length)
        _write(path, data + _hash(data))
        return data


def pages_of(storage: Storage) -> Storage:
    """The storage as it should be asked for pages: through the cache, where there is one."""
    return storage.pages if isinstance(storage, Caching) else storage


def cache_folder(folder: Path, place: str) -> Path:
    """The folder of one storage's cache, below the folder of all of them."""
    return folder / "storage" / hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def clear_old(folder: Path, now_s: float) -> None:
    """Remove pages that were not used for KEPT_DAYS, once a day."""
    mark = folder / "cleared"
    with contextlib.suppress(OSError):
        if mark.exists() and now_s - mark.stat().st_mtime < 86400:
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.touch()
        for path in (folder / "pages").glob("*/*"):
            if now_s - path.stat().st_mtime > KEPT_DAYS * 86400:
                _remove(path)


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _write(path: Path, data: bytes) -> None:
    """Have the file there as a whole, or not at all. Nothing is flushed: what a power cut spoils is not believed."""
    coming = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            coming.write_bytes(data)
            coming.replace(path)
        except OSError:
            _remove(coming)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _names_in(path: Path) -> set[str]:
    try:
        return set(os.listdir(path))
    except OSError:
        return set()
