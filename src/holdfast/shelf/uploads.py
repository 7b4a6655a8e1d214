"""A body on its way in: hashed and stored while it comes, in a thread of its own.

What is promised: memory does not grow with the body, if whoever offers pieces waits when AHEAD of them are not taken
yet; only ``feed`` and ``finish`` wait in the caller's thread; nothing of it counts before the catalog names it.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from holdfast.repository.chunking import Cutter
from holdfast.repository.contents import ContentList
from holdfast.repository.format import Chunker
from holdfast.repository.writer import LARGE, TREE
from holdfast.shelf.shelf import Content, Shelf
from holdfast.storage.base import Buffer

if TYPE_CHECKING:
    from hashlib import _Hash

T = TypeVar("T")
Stored = TypeVar("Stored")
Next = Callable[[], Buffer]  # the next piece of a body; empty at its end

PIECE = 1 << 20  # bytes handed over at a time
AHEAD = 4  # pieces that may wait for being taken
_KEPT = 8  # cutters that are kept for the next upload: each has a window of 8 MiB


def hasher_of(hash_: str) -> _Hash:
    """What makes hashes of that kind: 64 hex digits are SHA-256, 40 are SHA-1."""
    return hashlib.sha256() if len(hash_) == 64 else hashlib.sha1(usedforsecurity=False)


class Cutters:
    """Cutters, lent out. Nobody waits for one, or else a few bodies that come slowly would hold up all the others: how
    many there are is decided by who lets uploads begin.
    """

    def __init__(self, chunker: Chunker) -> None:
        self._chunker = chunker
        self._free: deque[Cutter] = deque(maxlen=_KEPT)

    @contextmanager
    def lent(self) -> Iterator[Cutter]:
        try:
            cutter = self._free.pop()
        except IndexError:
            cutter = Cutter(self._chunker)
        try:
            yield cutter
        finally:
            self._free.append(cutter)


class Upload(Generic[Stored]):
    """One body. ``offer`` (or ``feed``), and then ``ended`` (or ``finish``), or ``abandon``. ``store`` is called in the
    thread; it takes pieces until one is empty, and gives what was stored. ``hasher``: what hashes it; None: nothing.
    """

    def __init__(self, store: Callable[[Next], Stored], hasher: _Hash | None) -> None:
        self._store, self._hasher = store, hasher
        self._pieces: queue.SimpleQueue[tuple[Buffer, Future[None]] | None] = queue.SimpleQueue()
        self._fed: deque[Future[None]] = deque()
        self._abandoned = False
        self._lock = threading.Lock()  # no piece is added once the thread has failed: nobody would take it
        self._failure: BaseException | None = None
        self._done: Future[tuple[Stored, str]] = _started(Future())
        threading.Thread(target=self._run, name="upload", daemon=True).start()

    def offer(self, piece: Buffer) -> Future[None]:
        """The next bytes, without waiting. The future is done when they were taken, or tells what went wrong with
        these or earlier ones.
        """
        taken: Future[None] = _started(Future())
        with self._lock:
            if self._failure is None:
                self._pieces.put((piece, taken))
                return taken
        taken.set_exception(self._failure)
        return taken

    def feed(self, piece: Buffer) -> None:
        """The next bytes. Waits when too many wait; raises what went wrong with the earlier ones."""
        self._fed.append(self.offer(piece))
        if len(self._fed) > AHEAD:
            self._fed.popleft().result()

    def ended(self) -> Future[tuple[Stored, str]]:
        """That was all. The future tells what was stored, and its hash in hex digits (empty if none was asked for)."""
        self._pieces.put(None)
        return self._done

    def finish(self) -> tuple[Stored, str]:
        """That was all: waits for what ``ended`` tells."""
        return self.ended().result()

    def abandon(self) -> Future[tuple[Stored, str]]:
        """End the thread; what was stored is not referred to by anything. The future is done when it has ended."""
        self._abandoned = True
        return self.ended()

    def _run(self) -> None:
        try:
            stored = self._store(self._next)
            self._done.set_result((stored, self._hasher.hexdigest() if self._hasher else ""))
        except BaseException as e:  # noqa: BLE001 - it is raised in the caller's thread
            self._fail(e)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = error
        while not self._pieces.empty():
            if (waiting := self._pieces.get()) is not None:
                waiting[1].set_exception(error)
        self._done.set_exception(error)

    def _next(self) -> Buffer:
        """The next piece, hashed; empty at the end."""
        waiting = None if self._abandoned else self._pieces.get()
        if waiting is None:
            return b""
        piece, taken = waiting
        taken.set_result(None)
        if self._hasher is not None:
            self._hasher.update(piece)
        return piece


def _started(future: Future[T]) -> Future[T]:
    """One that whoever waits for it cannot cancel any more."""
    future.set_running_or_notify_cancel()
    return future


def in_repository(shelf: Shelf, cutters: Cutters) -> Callable[[Next], Content]:
    """A body becomes a content of the repository. It is durable once an order of the shelf names it."""

    def store(next_piece: Next) -> Content:
        items, size = ContentList(lambda piece: shelf.add(TREE, piece)), 0
        with cutters.lent() as cutter:
            for chunk in cutter.cut(reading(next_piece)):
                items.add(shelf.add(LARGE, chunk))
                size += len(chunk)
        return Content(size, *items.finish())

    return store


def nowhere(next_piece: Next) -> Content:
    """A body is only hashed."""
    size = 0
    while piece := next_piece():
        size += len(piece)
    return Content(size, b"", 0)


def reading(next_piece: Next) -> Callable[[memoryview], int]:
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
