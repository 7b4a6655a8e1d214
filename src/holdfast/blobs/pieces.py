"""Contents as objects of a storage: of a folder on this server's disk, or of a bucket of S3, Swift or the like.

A content is cut into pieces of PIECE bytes, each an object of its own whose name is made of the content's place and the
piece's number. An object is the piece's bytes and then, for each BLOCK of them, their keyed BLAKE3 (32 bytes); the key
is made of place, piece and block. So any part of it is verified without the rest, and bytes that belong elsewhere are
noticed like those that changed. A content without bytes has no object.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import NamedTuple

from blake3 import blake3

from holdfast.blobs.filesystems import Content, Draft, Where
from holdfast.errors import Damaged, ObjectMissing, StorageError
from holdfast.shelf.uploads import Next, Upload, reading
from holdfast.storage.base import Buffer, Storage
from holdfast.storage.parallel import answers

PIECE, BLOCK, DIGEST = 4 << 20, 256 << 10, 32
_SLOTS = 3  # pieces of one content that are in memory: stored, or being filled
_GAP = 2 * _SLOTS  # so many pieces may be missing before one that is there: fewer are ever stored at once


class Pieces:
    """A file system for blobs on a storage: see the module."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._pool = ThreadPoolExecutor(max(8, 2 * storage.connections), thread_name_prefix="pieces")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._storage.close()

    def begin(self, where: Where) -> Draft:
        return Upload(partial(self._store, where.place), hashlib.sha1(usedforsecurity=False))

    def keep(self, where: Where, data: bytes) -> Content:
        if data:
            _put(self._storage, where.place, 0, data)
        return Content(where.place, len(data))

    def pieces(self, content: Content, start: int, stop: int) -> Generator[bytes, None, None]:
        read: Callable[[_Span], bytes] = partial(_read, self._storage, content)
        with closing(answers(self._storage, _spans(start, stop), read, lambda span: span.stop - span.start)) as found:
            for _, data in found:
                yield data()

    def delete(self, place: str, size: int | None) -> None:
        if size is None:
            self._delete_unknown(place)
            return
        for number in range(-(-size // PIECE)):
            self._storage.delete(object_of(place, number))

    def _delete_unknown(self, place: str) -> None:
        """From its end to its beginning: where that is broken off, the next one finds what is left."""
        end = missing = 0
        for number in itertools.count():
            try:
                self._storage.stat(object_of(place, number))
                end, missing = number + 1, 0
            except ObjectMissing:
                missing += 1
                if missing > _GAP:
                    break
        for number in reversed(range(end)):
            self._storage.delete(object_of(place, number))

    def _store(self, place: str, next_piece: Next) -> Content:
        """A body, piece by piece: while some are stored the next one comes."""
        read_into = reading(next_piece)
        slots = [bytearray() for _ in range(_SLOTS)]
        storing: list[Future[None] | None] = [None] * _SLOTS
        size = 0
        try:
            for number in itertools.count():
                slot = number % _SLOTS
                if (before := storing[slot]) is not None:
                    before.result()
                if not slots[slot]:
                    slots[slot] = bytearray(PIECE)
                got = _fill(memoryview(slots[slot]), read_into)
                if got:
                    size += got
                    data = memoryview(slots[slot])[:got]
                    storing[slot] = self._pool.submit(_put, self._storage, place, number, data)
                if got < PIECE:
                    break
        finally:
            wait([future for future in storing if future])  # nothing works at it any more when it is given up
        for future in storing:
            if future:
                future.result()
        return Content(place, size)


class _Span(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop`` of the piece with that number."""

    number: int
    start: int
    stop: int


def object_of(place: str, number: int) -> str:
    """What a piece is called in the storage."""
    return f"data/{hashlib.sha256(f'{place}/{number}'.encode()).hexdigest()}"


def _put(storage: Storage, place: str, number: int, data: Buffer) -> None:
    view = memoryview(data)
    digests = [_digest(place, number, at // BLOCK, view[at : at + BLOCK]) for at in range(0, len(view), BLOCK)]
    storage.put(object_of(place, number), [view, b"".join(digests)])


def _digest(place: str, number: int, block: int, data: memoryview) -> bytes:
    key = hashlib.sha256(f"holdfast blob {place}/{number}/{block}".encode()).digest()
    return blake3(data, key=key).digest()


def _fill(view: memoryview, read_into: Callable[[memoryview], int]) -> int:
    """How many bytes there were; fewer than would fit only at the end."""
    filled = 0
    while filled < len(view) and (got := read_into(view[filled:])):
        filled += got
    return filled


def _spans(start: int, stop: int) -> Iterator[_Span]:
    for number in range(start // PIECE, -(-stop // PIECE)):
        at = number * PIECE
        yield _Span(number, max(0, start - at), min(PIECE, stop - at))


def _read(storage: Storage, content: Content, span: _Span) -> bytes:
    """A part of a piece: its blocks are read and verified, and what is asked for cut out of them."""
    length = min(PIECE, content.size - span.number * PIECE)
    first, last = span.start // BLOCK, -(-span.stop // BLOCK)  # blocks: up to, not including, the last
    begin, end = first * BLOCK, min(last * BLOCK, length)
    name = object_of(content.place, span.number)
    try:
        if end == length:  # what follows are the digests
            read = memoryview(storage.get(name, begin, length - begin + _digests(length)))
            data, digests = read[: length - begin], read[length - begin + first * DIGEST :]
        else:
            data = memoryview(storage.get(name, begin, end - begin))
            digests = memoryview(storage.get(name, length + first * DIGEST, (last - first) * DIGEST))
    except StorageError as e:
        if type(e) is StorageError and storage.stat(name).size < length + _digests(length):
            raise _damaged() from None  # it was cut off
        raise
    for number in range(first, last):
        block = data[(number - first) * BLOCK : (number - first + 1) * BLOCK]
        if _digest(content.place, span.number, number, block) != digests[(number - first) * DIGEST :][:DIGEST]:
            raise _damaged()
    return bytes(data[span.start - begin : span.stop - begin])


def _damaged() -> Damaged:
    return Damaged("A part of the blob's content is not what was stored.", "Put the blob again.")


def _digests(length: int) -> int:
    """How many bytes of digests follow so many of a piece."""
    return -(-length // BLOCK) * DIGEST
