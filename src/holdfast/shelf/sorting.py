"""Sorts more than memory should hold: in runs on disk, in files that have no name there."""

from __future__ import annotations

import heapq
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, TypeVar

import msgspec

from holdfast.errors import StorageFull

AT_ONCE = 50_000  # items of a run
FILES = 64  # runs at a time

T = TypeVar("T", bound=tuple[Any, ...])


def sorted_on_disk(items: Iterable[T], decode: Callable[[bytes], T], folder: str) -> Iterator[T]:
    """The items in order; more than a few wait in files, of which FILES are open at most. ``decode``: one item from its
    msgpack.
    """
    runs: list[Iterator[T]] = []
    source = iter(items)
    while some := sorted(itertools.islice(source, AT_ONCE)):
        if not runs and len(some) < AT_ONCE:
            return iter(some)
        if len(runs) == FILES:
            runs = [_spilled(heapq.merge(*runs), decode, folder)]
        runs.append(_spilled(some, decode, folder))
    return heapq.merge(*runs)


def _spilled(items: Iterable[T], decode: Callable[[bytes], T], folder: str) -> Iterator[T]:
    file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed when it was read
    encode = msgspec.msgpack.encode
    try:
        for item in items:
            data = encode(item)
            file.write(len(data).to_bytes(4, "big") + data)
        file.seek(0)
    except OSError as e:
        file.close()
        raise StorageFull(f"The folder {folder} has no room to sort in: {e.strerror}.", "Free some space.") from None
    return _read_back(file, decode)


def _read_back(file: IO[bytes], decode: Callable[[bytes], T]) -> Iterator[T]:
    with file:
        while head := file.read(4):
            yield decode(file.read(int.from_bytes(head, "big")))
