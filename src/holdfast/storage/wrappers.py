"""Storages that stand before another one and change one thing about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.storage.base import Buffer, ObjectInfo, Storage


class Passing:
    """Hands every call to the storage behind it; others change what is theirs."""

    def __init__(self, inner: Storage) -> None:
        self.inner = inner

    @property
    def place(self) -> str:
        return self.inner.place

    @property
    def connections(self) -> int:
        return self.inner.connections

    @property
    def lists_late(self) -> bool:
        return self.inner.lists_late

    def create(self) -> None:
        self.inner.create()

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self.inner.put(name, parts)

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(name, start, length)

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        return self.inner.list(folder)

    def stat(self, name: str) -> ObjectInfo:
        return self.inner.stat(name)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def free_space(self) -> int | None:
        return self.inner.free_space()

    def close(self) -> None:
        self.inner.close()

    def impatient(self) -> None:
        """See ``hurry``."""


def hurry(storage: Storage) -> None:
    """Somebody will not wait any longer: what would be tried again, behind all these wrappers, fails at once."""
    found: object = storage
    while isinstance(found, Passing):
        found.impatient()
        found = found.inner


class DryRun(Passing):
    """Reads go through; nothing is ever stored or deleted."""

    def create(self) -> None:
        return None

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        return None

    def delete(self, name: str) -> None:
        return None
