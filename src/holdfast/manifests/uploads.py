"""A body on its way into the repository: hashed, cut and stored while it comes, in a thread of its own.

What is promised: memory does not grow with the body; ``feed`` waits when storing is slower than receiving; nothing of
it counts before an order of the shelf names it.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.manifests.shelf import Content, Shelf
from holdfast.repository.chunking import Cutter
from holdfast.repository.contents import ContentList
from holdfast.repository.format import Chunker
from holdfast.repository.writer import LARGE, TREE
from holdfast.storage.base import Buffer

if TYPE_CHECKING:
    from hashlib import _Hash

PIECE = 1 << 20  # bytes handed over at a time
_WAITING = 4  # pieces
_CUTTERS = 8  # uploads that are cut at the same time: each has a window of 8 MiB


def hasher_of(hash_: str) -> _Hash:
    """What makes hashes of that kind: 64 hex digits are SHA-256, 40 are SHA-1."""
    return hashlib.sha256() if len(hash_) == 64 else hashlib.sha1(usedforsecurity=False)


class Cutters:
    """A few cutters, lent out. A thread waits for one."""

    def __init__(self, chunker: Chunker) -> None:
        self._free: queue.LifoQueue[Cutter] = queue.LifoQueue()
        for _ in range(_CUTTERS):
            self._free.put(Cutter(chunker))

    @contextmanager
    def lent(self) -> Iterator[Cutter]:
        cutter = self._free.get()
        try:
            yield cutter
        finally:
            self._free.put(cutter)


class Upload:
    """One body. ``feed`` and then ``finish``, or ``abandon``. ``hash_`` chooses the hash; None: none is made."""

    def __init__(self, shelf: Shelf, cutters: Cutters, hash_: str | None, *, keep: bool = True) -> None:
        self._shelf, self._cutters, self._keep = shelf, cutters, keep
        self._hasher = hasher_of(hash_) if hash_ is not None else None
        self._pieces: queue.Queue[Buffer | None] = queue.Queue(_WAITING)
        self._abandoned = False
        self._content: Content | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def feed(self, piece: Buffer) -> None:
        """The next bytes. Waits when too many wait; raises what went wrong with the earlier ones."""
        while self._failure is None:
            try:
                self._pieces.put(piece, timeout=1.0)
                return
            except queue.Full:
                continue
        raise self._failure

    def finish(self) -> tuple[Content, str]:
        """The content, and its hash in hex digits (empty if none was asked for)."""
        self._end()
        if self._failure is not None:
            raise self._failure
        assert self._content is not None
        return self._content, self._hasher.hexdigest() if self._hasher else ""

    def abandon(self) -> None:
        """End the thread; what was stored is not referred to by anything."""
        self._abandoned = True
        self._end()

    def _end(self) -> None:
        while self._thread.is_alive():
            try:
                self._pieces.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._cutters.lent() as cutter:
                self._content = self._store(cutter)
        except BaseException as e:  # noqa: BLE001 - it is raised in the caller's thread
            self._failure = e

    def _store(self, cutter: Cutter) -> Content:
        items, size = ContentList(lambda piece: self._shelf.add(TREE, piece)), 0
        read_into = _reading(self._next)
        if not self._keep:
            while piece := self._next():
                size += len(piece)
            return Content(size, b"", 0)
        for chunk in cutter.cut(read_into):
            items.add(self._shelf.add(LARGE, chunk))
            size += len(chunk)
        return Content(size, *items.finish())

    def _next(self) -> Buffer:
        """The next piece, hashed; empty at the end."""
        piece = None if self._abandoned else self._pieces.get()
        if piece is None:
            return b""
        if self._hasher is not None:
            self._hasher.update(piece)
        return piece


def _reading(next_piece: Callable[[], Buffer]) -> Callable[[memoryview], int]:
    """Pieces as a stream to read from."""
    held = memoryview(b"")

    def read_into(view: memoryview) -> int:
        nonlocal held
        if not held:
            held = memoryview(next_piece())
        got = min(len(held), len(view))
        view[:got] = held[:got]
        held = held[got:]
        return got

    return read_into
