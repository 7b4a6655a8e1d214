"""Where the contents of blobs lie: what every file system for them does. Which one, each bucket says.

A file system creates, reads and deletes contents. It is told of bucket and key when one is created, and gives it a
place to be found again by; a key that is put again gets another content at another place, and the catalog changes from
one to the other in one step. So nobody ever sees a mixture, whatever happens in between.

What each promises: a content is durable before ``Draft.ended`` or ``keep`` answers; what is read was verified; places
that are not its own are never touched. ``pieces`` of something that was deleted raise ObjectMissing.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from typing import NamedTuple, Protocol

import msgspec

from holdfast.catalog.blobs import Blob
from holdfast.storage.base import Buffer


class Where(NamedTuple):
    """What a content is to be created for: whose bucket, and the key; and its place, which nothing else ever has."""

    owner: str
    bucket: str
    key: bytes
    place: str


class Content(msgspec.Struct, frozen=True):
    """A content that is there. ``chunks`` and ``depth``: of one in the repository."""

    place: str
    size: int
    chunks: bytes = b""
    depth: int = 0


def content_of(blob: Blob) -> Content:
    return Content(blob.place, blob.size, blob.chunks, blob.depth)


class Draft(Protocol):
    """A content on its way in."""

    def offer(self, piece: Buffer, /) -> Future[None]:
        """The next bytes, without waiting; done when more may come."""
        ...

    def ended(self) -> Future[tuple[Content, str]]:
        """That was all: the content, and the SHA-1 of its bytes in hex digits."""
        ...

    def abandon(self) -> Future[tuple[Content, str]]:
        """It is not wanted any more. Done when nothing works at it."""
        ...


class FileSystem(Protocol):
    """See the module. Methods may be called from several threads at once."""

    def begin(self, where: Where) -> Draft:
        """Create a content piece by piece."""
        ...

    def keep(self, where: Where, data: bytes) -> Content:
        """Create a content of at most SMALL bytes at one go."""
        ...

    def pieces(self, content: Content, start: int, stop: int) -> Generator[bytes, None, None]:
        """Its bytes from ``start`` up to, not including, ``stop``, verified, piece by piece."""
        ...

    def delete(self, place: str, size: int | None) -> None:
        """Remove a content, or what there is of it. ``size``: None when it is not known."""
        ...


SMALL = 1 << 20
