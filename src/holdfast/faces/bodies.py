"""Bodies, received and sent without holding more than a little of them; ranges as headers say them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Generator
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, cast

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.requests import ClientDisconnect

from holdfast.errors import BrokenOff, OutOfRange, TooLarge, UsageError

PIECE = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Span(NamedTuple):
    """Bytes ``start`` up to, not including, ``stop`` of ``total``."""

    start: int
    stop: int
    total: int


async def pieces(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body in pieces of about PIECE bytes. TooLarge beyond ``most``; BrokenOff when it ends too early."""
    held, size = list[bytes](), 0
    total = 0
    try:
        async for part in request.stream():
            total += len(part)
            if total > most:
                raise TooLarge(f"The body has more than {most} bytes.")
            held.append(part)
            size += len(part)
            if size >= PIECE:
                yield held[0] if len(held) == 1 else b"".join(held)
                held, size = [], 0
    except ClientDisconnect:
        if size:
            yield b"".join(held)
        raise BrokenOff("The body ended before all of it had come.") from None
    if size:
        yield held[0] if len(held) == 1 else b"".join(held)


async def spooled(request: Request, most: int, folder: str) -> BinaryIO:
    """The whole body in a file without a name, at its beginning."""
    file = cast(BinaryIO, TemporaryFile(dir=folder))  # noqa: SIM115 - whoever asked for it closes it
    try:
        async for piece in pieces(request, most):
            await run_sync(file.write, piece)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def announced(request: Request) -> int | None:
    """How many bytes the body is said to have."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def content_range(text: str) -> Span:
    """A part's place, from ``Content-Range: bytes a-b/total``. UsageError when it is none."""
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise UsageError("Content-Range must be `bytes FIRST-LAST/TOTAL`.", "TOTAL must be known.")
    first, last, total = (int(number) for number in found.groups())
    if not first <= last < total:
        raise UsageError(f"Content-Range: bytes {first} to {last} are no part of {total}.")
    return Span(first, last + 1, total)


def wanted_range(text: str | None, size: int) -> Span | None:
    """What ``Range`` asks for of so many bytes: None for all of it. OutOfRange when nothing of it exists.

    As RFC 9110 allows, a header that asks for several ranges or makes no sense is ignored.
    """
    found = _RANGE.fullmatch(text.strip()) if text else None
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first and last and int(first) > int(last):
        return None
    start, stop = (int(first), int(last or size) + 1) if first else (size - int(last), size)
    span = Span(max(0, start), min(stop, size), size)
    if span.start >= span.stop:
        raise OutOfRange(f"The file has {size} bytes.", "Ask for a range within them.", size=size)
    return span


class Outgoing:
    """A body that a generator makes, piece by piece, in threads: while one piece is sent the next one is made.

    What is promised: the generator is closed when all was sent or the client went away, and is one thread's at a time.
    """

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._lock = threading.Lock()
        self._first = b""

    async def begin(self) -> Outgoing:
        """Make the first piece, so that what is damaged is told by the answer's status."""
        try:
            self._first = await run_sync(self._next)
        except BaseException:
            self._end(None)
            raise
        return self

    async def sent(self) -> AsyncGenerator[bytes, None]:
        """The pieces in order."""
        piece, coming = self._first, None
        try:
            while piece:
                coming = asyncio.ensure_future(run_sync(self._next))
                yield piece
                piece = await asyncio.shield(coming)
                coming = None
        finally:
            self._end(coming)

    def _end(self, coming: asyncio.Future[bytes] | None) -> None:
        if coming is not None:
            coming.add_done_callback(_forget)
        asyncio.ensure_future(run_sync(self._close)).add_done_callback(_forget)

    def _next(self) -> bytes:
        with self._lock:
            return next(self._pieces, b"")

    def _close(self) -> None:
        with self._lock:
            self._pieces.close()


def _forget(ended: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more; that it failed is nobody's business either."""
    if not ended.cancelled():
        ended.exception()
