"""A file's content as a list of items of ID_SIZE bytes each: chunk ids, and holes.

A hole is HOLE_MARK followed by its length in 8 bytes: a run of zeros that took no space in the source. A list longer
than INLINE_CHUNKS items is itself cut into chunks of kind tree (at items whose first byte is 0, so that lists of
similar files share them); the entry then holds those ids and has depth 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast.errors import Damaged
from holdfast.repository.format import ID_SIZE, INLINE_CHUNKS, Entry

HOLE_MARK = bytes(ID_SIZE - 8)
_LEAST, _MOST = 64, 4096


def hole(length: int) -> bytes:
    """The item of a hole of that many bytes."""
    return HOLE_MARK + length.to_bytes(8, "big")


def hole_length(item: bytes) -> int | None:
    """The length of the hole this item is; None when it is a chunk's id."""
    return int.from_bytes(item[-8:], "big") if item.startswith(HOLE_MARK) else None


class ContentList:
    """Collects a file's items; ``store`` keeps a piece of a long list as a chunk and gives its id."""

    def __init__(self, store: Callable[[bytes], bytes]) -> None:
        self._store = store
        self._items: list[bytes] = []
        self._pieces: list[bytes] = []

    def add(self, item: bytes) -> None:
        items = self._items
        items.append(item)
        if len(items) >= _MOST or (item[0] == 0 and len(items) > max(_LEAST, INLINE_CHUNKS)):
            self._cut()

    def finish(self) -> tuple[bytes, int]:
        """The entry's content and depth."""
        if not self._pieces and len(self._items) <= INLINE_CHUNKS:
            return b"".join(self._items), 0
        if self._items:
            self._cut()
        return b"".join(self._pieces), 1

    def _cut(self) -> None:
        self._pieces.append(self._store(b"".join(self._items)))
        self._items = []


def items_of(entry: Entry, read: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Every item of an entry's content; ``read`` gives a list chunk by id."""
    if entry.depth not in (0, 1):
        raise Damaged(f"The content of {entry.name!r} is nested {entry.depth} deep.")
    for item in split_items(entry.content):
        if entry.depth:
            yield from split_items(read(item))
        else:
            yield item


def split_items(content: bytes) -> Iterator[bytes]:
    if len(content) % ID_SIZE:
        raise Damaged("A list of chunks has a ragged end.")
    for i in range(0, len(content), ID_SIZE):
        yield content[i : i + ID_SIZE]
