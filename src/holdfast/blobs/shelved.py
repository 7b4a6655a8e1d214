"""Contents in the repository: deduplicated, encrypted, verified. They come over the shelf like any other."""

from __future__ import annotations

import hashlib
from collections.abc import Generator

from holdfast.archive.content import part_of
from holdfast.blobs.filesystems import Content, Draft, Where
from holdfast.shelf import shelf as shelves
from holdfast.shelf.shelf import Shelf
from holdfast.shelf.uploads import Cutters, Next, Upload, in_repository


class Shelved:
    """A file system for blobs in the repository. What is created is durable, and kept, once an order of the shelf names
    it; what no blob names any more is left out when the shelf is merged, and freed by ``prune``.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._cutters = shelf, Cutters(shelf.repo.config.chunker)

    def begin(self, where: Where) -> Draft:
        store = in_repository(self._shelf, self._cutters)

        def stored(next_piece: Next) -> Content:
            return of_shelf(where.place, store(next_piece))

        return Upload(stored, hashlib.sha1(usedforsecurity=False))

    def keep(self, where: Where, data: bytes) -> Content:
        return of_shelf(where.place, self._shelf.small(data))

    def pieces(self, content: Content, start: int, stop: int) -> Generator[bytes, None, None]:
        yield from part_of(self._shelf, to_shelf(content).entry(b""), start, stop, b"the blob")

    def delete(self, place: str, size: int | None) -> None:
        """``prune`` does."""


def of_shelf(place: str, content: shelves.Content) -> Content:
    return Content(place, content.size, content.chunks, content.depth)


def to_shelf(content: Content) -> shelves.Content:
    return shelves.Content(content.size, content.chunks, content.depth)
