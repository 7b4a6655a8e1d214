"""A file's content from its beginning to its end, verified piece by piece, in memory that does not grow with the file.

Nothing is given out before it was verified, and never more than the entry's size says. While one piece is written out,
the next ones are read: as many as whoever takes them needs in order not to wait. For who takes them slowly, a client
behind a thin line, one is held and no more.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import msgspec

from holdfast.archive.extents import Chunks, measured
from holdfast.errors import Damaged, HoldfastError
from holdfast.repository.contents import hole_length, items_of
from holdfast.repository.format import ID_SIZE, Entry

AHEAD = 4  # chunks read at most before they are asked for; with the one in hand at most 20 MiB
_ZEROS = bytes(1 << 20)


class Contents:
    """Gives files' contents one after the other. A context manager: it ends the threads that read ahead."""

    def __init__(self, reader: Chunks) -> None:
        self._reader = reader
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="read")

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def of(self, entry: Entry, path: bytes) -> Iterator[bytes]:
        """The pieces of a file in order, holes as zeros. Damaged or StorageError, naming the path, before the first
        byte that cannot be had.
        """
        left = entry.size
        try:
            for piece in self._pieces(entry):
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        except HoldfastError as e:
            raise type(e)(f"{_shown(path)}: {e}", e.hint) from None
        if left:
            raise Damaged(f"{_shown(path)}: its size contradicts its content.")

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        if len(entry.content) == ID_SIZE and not entry.depth and hole_length(entry.content) is None:
            yield self._reader.read(entry.content)  # one chunk: a thread would only cost
            return
        waiting: deque[Future[bytes] | int] = deque()
        ahead = 1
        for item in items_of(entry, self._reader.read):
            length = hole_length(item)
            waiting.append(self._pool.submit(self._reader.read, item) if length is None else length)
            while len(waiting) > ahead:
                yield from _ready(waiting.popleft())
                ahead = min(ahead + 1, AHEAD) if _is_coming(waiting[0]) else max(ahead - 1, 1)
        while waiting:
            yield from _ready(waiting.popleft())


def _is_coming(piece: Future[bytes] | int) -> bool:
    """Whether one would have to wait for it."""
    return isinstance(piece, Future) and not piece.done()


def _ready(piece: Future[bytes] | int) -> Iterator[bytes]:
    if isinstance(piece, Future):
        yield piece.result()
        return
    while piece:
        part = min(piece, len(_ZEROS))
        yield _ZEROS if part == len(_ZEROS) else _ZEROS[:part]
        piece -= part


def part_of(chunks: Chunks, entry: Entry, start: int, stop: int, path: bytes) -> Iterator[bytes]:
    """Bytes ``start`` up to, not including, ``stop`` of a file, verified; only the chunks that they touch are read."""
    if (start, stop) != (0, entry.size):
        entry, start, stop = _cut_out(chunks, entry, start, stop)
    with Contents(chunks) as contents:
        at = 0
        for piece in contents.of(entry, path):
            inside = piece[max(0, start - at) : stop - at]
            at += len(piece)
            if inside:
                yield inside


def _cut_out(chunks: Chunks, entry: Entry, start: int, stop: int) -> tuple[Entry, int, int]:
    """Just the chunks that a range touches, and where the range lies in them."""
    items: list[bytes] = []
    at = first = size = 0
    for item, length in measured(entry, chunks):
        if at < stop and at + length > start:
            if not items:
                first = at
            items.append(item)
            size += length
        at += length
    return msgspec.structs.replace(entry, content=b"".join(items), depth=0, size=size), start - first, stop - first


def _shown(path: bytes) -> str:
    return repr(os.fsdecode(path))
