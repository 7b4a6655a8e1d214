"""A file's content at any offset: a table of where each chunk begins, made once, then searched by bisection.

Damage stays local. A chunk that cannot be found has no known length; the table is then built from both ends, and only
what lies between the first and the last such chunk cannot be read. A chunk that fails its verification spoils only
reads that touch it. A read gives all the bytes asked for, or raises: never fewer, never others.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from holdfast.errors import Damaged, HoldfastError
from holdfast.repository.contents import HOLE_MARK, hole_length, split_items
from holdfast.repository.format import ID_SIZE, Entry

V = TypeVar("V")

CHUNK_CACHE = 16 << 20
_STRIPES = 16
_GAP = b"\xff" * ID_SIZE  # stands in the table for a stretch that is lost


class Chunks(Protocol):
    """Where chunks come from, verified; safe to share between threads."""

    def read(self, chunk_id: bytes, /) -> bytes: ...
    def length(self, chunk_id: bytes, /) -> int: ...


class Bounded(Generic[V]):
    """Things used lately, up to a total weight. Safe to share between threads."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._kept: OrderedDict[bytes, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> V | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: bytes, value: V, weight: int) -> None:
        with self._lock:
            old = self._kept.pop(key, None)
            self._held += weight - (old[1] if old else 0)
            self._kept[key] = value, weight
            while self._held > self._most and len(self._kept) > 1:
                self._held -= self._kept.popitem(last=False)[1][1]


class CachedChunks:
    """Chunks, the ones read lately kept: many small reads of one chunk unpack and verify it once, also from many
    threads at the same time.
    """

    def __init__(self, chunks: Chunks, most: int = CHUNK_CACHE) -> None:
        self._chunks = chunks
        self._kept: Bounded[bytes] = Bounded(most)
        self._locks = [threading.Lock() for _ in range(_STRIPES)]

    def length(self, chunk_id: bytes, /) -> int:
        return self._chunks.length(chunk_id)

    def read(self, chunk_id: bytes, /) -> bytes:
        found = self._kept.get(chunk_id)
        if found is None:
            with self._locks[chunk_id[-1] % _STRIPES]:
                found = self._kept.get(chunk_id)
                if found is None:
                    found = self._chunks.read(chunk_id)
                    self._kept.put(chunk_id, found, len(found))
        return found


class RandomFile:
    """An open file of a snapshot. Raises Damaged at once when its list of chunks contradicts its size."""

    def __init__(self, chunks: Chunks, entry: Entry) -> None:
        self._chunks, self.size = chunks, entry.size
        self._items = bytearray()
        self._starts = array("Q")
        self._table(entry)

    def read(self, offset: int, size: int) -> bytes:
        """The bytes from ``offset`` on, fewer than ``size`` only at the file's end. HoldfastError when one is bad."""
        end = min(offset + size, self.size)
        parts: list[bytes | memoryview] = []
        at = bisect_right(self._starts, offset) - 1
        while offset < end:
            upto = min(end, self._end(at))
            parts.append(self._part(at, offset - self._starts[at], upto - self._starts[at]))
            offset, at = upto, at + 1
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def seek_data(self, offset: int) -> int | None:
        """The first offset from here on that is no hole; None when only a hole is left."""
        return self._seek(offset, hole=False)

    def seek_hole(self, offset: int) -> int:
        """The first offset from here on that is in a hole; the file's end counts as one."""
        found = self._seek(offset, hole=True)
        return self.size if found is None else found

    # -- the table -------------------------------------------------------------------------------------------------

    def _table(self, entry: Entry) -> None:
        lengths: list[int] = []  # -1: unknown
        for item, length in measured(entry, self._chunks):
            self._items += item
            lengths.append(length)
        lost = [i for i, length in enumerate(lengths) if length < 0]
        if lost:
            self._bridge(lengths, lost[0], lost[-1] + 1)
        offset = 0
        for length in lengths:
            self._starts.append(offset)
            offset += length
        if offset != self.size:
            raise Damaged(f"The size of {os.fsdecode(entry.name)!r} contradicts its content.")

    def _bridge(self, lengths: list[int], first: int, end: int) -> None:
        """One gap in the place of all items between the first and the last that nothing is known of."""
        gap = self.size - sum(lengths[:first]) - sum(lengths[end:])
        lengths[first:end] = [gap]
        self._items[first * ID_SIZE : end * ID_SIZE] = _GAP
        if gap < 0:
            raise Damaged("A file's size contradicts its content.")

    def _end(self, at: int) -> int:
        return self._starts[at + 1] if at + 1 < len(self._starts) else self.size

    def _item(self, at: int) -> bytes:
        return bytes(self._items[at * ID_SIZE : (at + 1) * ID_SIZE])

    def _part(self, at: int, start: int, end: int) -> bytes | memoryview:
        item = self._item(at)
        if item == _GAP:
            raise Damaged("A part of the file is in no pack.", "Run `holdfast check`, then `holdfast repair`.")
        if item.startswith(HOLE_MARK):
            return bytes(end - start)
        return memoryview(self._chunks.read(item))[start:end]

    def _seek(self, offset: int, *, hole: bool) -> int | None:
        at = bisect_right(self._starts, offset) - 1
        while 0 <= at < len(self._starts):
            if (hole_length(self._item(at)) is not None) == hole:
                return max(offset, self._starts[at])
            at += 1
        return None


def measured(entry: Entry, chunks: Chunks) -> Iterator[tuple[bytes, int]]:
    """Every item of a file's content with its length, -1 where it cannot be known."""
    if entry.depth not in (0, 1):
        raise Damaged(f"The content of {os.fsdecode(entry.name)!r} is nested {entry.depth} deep.")
    for item in split_items(entry.content):
        pieces = [item]
        if entry.depth:
            try:
                pieces = list(split_items(chunks.read(item)))
            except HoldfastError:
                yield _GAP, -1
                continue
        for piece in pieces:
            length = hole_length(piece)
            if length is None:
                try:
                    length = chunks.length(piece)
                except HoldfastError:
                    length = -1
            yield piece, length


def data_bytes(entry: Entry, chunks: Chunks) -> int:
    """How much of a file's size is not holes."""
    if HOLE_MARK not in entry.content and not entry.depth:
        return entry.size
    holes = 0
    for item, length in measured(entry, chunks):
        holes += length if item.startswith(HOLE_MARK) else 0
    return max(0, entry.size - holes)
