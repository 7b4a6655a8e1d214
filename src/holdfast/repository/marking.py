"""Which chunks snapshots need: a walk over the pages of many snapshots, each page once, one byte a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from holdfast.errors import Damaged
from holdfast.repository.contents import hole_length, split_items
from holdfast.repository.format import Leaf
from holdfast.repository.index import Index
from holdfast.repository.pages import decode_page
from holdfast.repository.reader import ChunkReader

_MOST_LEVELS = 14
_NEEDED, _PAGE, _LIST = 1, 2, 4  # a file's content may be the very bytes of a page or of a list: then it is both


class Marks:
    """The chunks that are needed. Damaged pages and chunks that are nowhere raise: who deletes must know everything."""

    def __init__(self, index: Index, reader: ChunkReader, tick: Callable[[], None] = lambda: None) -> None:
        self._index, self._reader, self._tick = index, reader, tick
        self._flags = bytearray(len(index))
        self._ordinal = index.ordinal

    def __contains__(self, chunk_id: bytes) -> bool:
        ordinal = self._ordinal(chunk_id)
        return ordinal is not None and ordinal < len(self._flags) and bool(self._flags[ordinal])

    def mark_trees(self, roots: Iterable[bytes]) -> None:
        """Mark everything below these roots, pages and lists among it. After it raised it may be tried again."""
        for root in roots:
            self._page(root, _MOST_LEVELS)
            self._tick()

    def _mark(self, chunk_id: bytes) -> int:
        """Mark a chunk; its ordinal."""
        ordinal = self._ordinal(chunk_id)
        if ordinal is None:
            raise Damaged(
                f"The chunk {chunk_id.hex()[:16]}, which a snapshot needs, is in no pack.",
                "Run `holdfast check` to see which files it is missing from.",
            )
        if ordinal >= len(self._flags):  # the index grew
            self._flags += bytes(ordinal + 1024 - len(self._flags))
        self._flags[ordinal] |= _NEEDED
        return ordinal

    def _page(self, page: bytes, levels: int) -> None:
        if levels == 0:
            raise Damaged(f"The page {page.hex()[:16]} lies deeper than any tree of pages goes.")
        ordinal = self._mark(page)
        if self._flags[ordinal] & _PAGE:
            return
        content = decode_page(self._reader.read(page), page)
        if isinstance(content, Leaf):
            for _, entries in content.runs:
                for entry in entries:
                    if entry.content:
                        self._content(entry.content, entry.depth)
        else:
            for child in content.children:
                self._page(child.page, levels - 1)
        self._flags[ordinal] |= _PAGE  # only now: everything below it is marked

    def _content(self, content: bytes, depth: int) -> None:
        for item in split_items(content):
            if hole_length(item) is not None:
                continue
            ordinal = self._mark(item)
            if depth and not self._flags[ordinal] & _LIST:
                self._content(self._reader.read(item), 0)
                self._flags[ordinal] |= _LIST
