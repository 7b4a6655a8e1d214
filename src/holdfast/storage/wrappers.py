"""Storages that stand before another one and change one thing about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from holdfast.storage.base import Buffer, ObjectInfo, Storage


class DryRun:
    """Reads go through; nothing is ever stored or deleted."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner

    @property
    def place(self) -> str:
        return self._inner.place

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        return None

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        return self._inner.get(name, start, length)

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        return self._inner.list(folder)

    def stat(self, name: str) -> ObjectInfo:
        return self._inner.stat(name)

    def delete(self, name: str) -> None:
        return None

    def free_space(self) -> int | None:
        return self._inner.free_space()
