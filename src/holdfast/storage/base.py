"""The contract every storage keeps. The repository builds all its promises on these, so they are few and strict.

1. ``put`` is atomic and durable: when it returns, the whole object survives a power cut; nobody ever sees a part of it.
   When it raises, the object may be there (a lost answer), but then it is whole.
2. ``put`` never replaces: an object that is there raises ObjectExists, stays as it is, and is durable. Where a server
   has no such condition (docs/storage.md says which) two puts of one name at the very same moment may both succeed, and
   one of them stays: names are the hash of the content, so that loses nothing.
3. ``get`` gives exactly the bytes asked for or raises; never fewer.
4. ``list`` names every object that was put before it began and not deleted since (stores that are only eventually
   consistent say so; ``docs/format.md`` says what that costs).
5. Names are checked inward and outward: ``config``, or a folder of FOLDERS and 64 lower-case hex digits. Nothing else
   reaches a file system or a server, and nothing else a server lists is believed.

Errors are the StorageError family of ``holdfast.errors``, and no other. What may be better in a moment is
StorageUnavailable and nothing else is; a backend tries nothing again by itself (``retrying.py`` does).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from holdfast.errors import StorageError

Buffer = bytes | bytearray | memoryview

CONFIG = "config"
FOLDERS = ("keys", "data", "index", "snapshots", "locks")
_NAME = re.compile(r"(?:keys|data|index|snapshots|locks)/[0-9a-f]{64}\Z")


class ObjectInfo(NamedTuple):
    """One object as listed: its name, its size in bytes, and when it was stored in ns by the storage's own clock: to
    whole seconds, rounded down, where it knows no better, and 0 where it does not tell. ``list`` and ``stat`` agree.
    """

    name: str
    size: int
    stored_ns: int


class Storage(Protocol):
    """An object store. Methods may be called from several threads at once."""

    @property
    def place(self) -> str:
        """The storage's address as a user may see it: no password in it."""
        ...

    @property
    def connections(self) -> int:
        """How many calls are worth making at once: 1 for a folder, more where each of them waits for a network."""
        ...

    @property
    def lists_late(self) -> bool:
        """Whether a listing may lag behind: name what was deleted, or not name what was stored, just before."""
        ...

    def create(self) -> None:
        """Make what objects will need (folders, a container); what is there already is kept."""
        ...

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Store the joined parts under name: atomic, durable, never replacing."""
        ...

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Read ``length`` bytes from ``start`` (to the end when None). Fewer bytes there, or a start beyond the end:
        StorageError.
        """
        ...

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        """Every object in one of FOLDERS, in no order. Errors may come while it is gone through."""
        ...

    def stat(self, name: str) -> ObjectInfo:
        """One object's size and time; ObjectMissing when it is not there."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object durably; one that is not there is no error."""
        ...

    def free_space(self) -> int | None:
        """Bytes that can still be stored, None where nobody knows."""
        ...

    def close(self) -> None:
        """Give connections back; the storage is not used any more. It may be called twice."""
        ...


def is_name(name: str) -> bool:
    """Whether an object of a folder may be called that."""
    return bool(_NAME.match(name))


def check_name(name: str) -> str:
    """Return name when it is one an object may have; StorageError otherwise."""
    if name == CONFIG or is_name(name):
        return name
    raise StorageError(f"{name!r} is not the name of an object.")


def check_folder(folder: str) -> str:
    """Return folder when it is one that can be listed; StorageError otherwise."""
    if folder in FOLDERS:
        return folder
    raise StorageError(f"{folder!r} is not a folder of a repository.")


def check_range(start: int, length: int | None) -> None:
    """Refuse what is no range of bytes with a StorageError, before it means something else to somebody."""
    if start < 0 or (length is not None and length < 0):
        raise StorageError(f"{length} bytes from {start} is not a range.")
