"""Bodies, received and sent without holding more than a little of them; ranges as headers say them; and how many of
them there may be at once.

What is promised: whatever some clients do, the others' bodies have their turn. Who comes too many waits without a
thread; threads that work on uploads and on downloads are none of those that log people in. That a client is not waited
for without end is the listener's business (``serving``): to a body that does not go on it says that it broke off.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from tempfile import TemporaryFile
from typing import Any, BinaryIO, NamedTuple, Protocol, cast

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from holdfast.errors import BrokenOff, OutOfRange, StorageUnavailable, TooLarge, UsageError

PIECE = 1 << 20
AHEAD = 4  # pieces that may wait for being taken
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Turns:
    """So many at once of each account, and so many of all. But ALWAYS of an account, whatever the others have: so
    nobody is kept out by others who take long.

    Who comes too many waits in line; after ``patience`` seconds StorageUnavailable tells him to come again.
    """

    ALWAYS = 2

    def __init__(self, each: int, most: int, patience: float) -> None:
        self._each, self._most, self._patience = each, most, patience
        self._running: dict[int, int] = {}
        self._total = 0
        self._lines: dict[int, deque[asyncio.Future[None]]] = {}

    async def take(self, account: int) -> None:
        """A turn, which ``give_back`` ends."""
        if self._may(account):
            self._count(account, 1)
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(account, deque()).append(granted)
        try:
            async with asyncio.timeout(self._patience):
                await granted
        except BaseException as e:
            if granted.cancelled():
                self._leave(account, granted)
            else:  # it was granted at the very moment
                self.give_back(account)
            if isinstance(e, TimeoutError):
                raise StorageUnavailable("Too much of this kind is going on at once.", "Come again soon.") from None
            raise

    def give_back(self, account: int) -> None:
        self._count(account, -1)
        for waiting in list(self._lines):
            self._grant(waiting)

    @asynccontextmanager
    async def turn(self, account: int) -> AsyncIterator[None]:
        """A turn for a block."""
        await self.take(account)
        try:
            yield
        finally:
            self.give_back(account)

    def _may(self, account: int) -> bool:
        running = self._running.get(account, 0)
        return running < self.ALWAYS or (running < self._each and self._total < self._most)

    def _grant(self, account: int) -> None:
        """Have those of the account begin who may; who still wait are behind the other accounts then."""
        line = self._lines[account]
        while line and (line[0].done() or self._may(account)):
            if not (granted := line.popleft()).done():
                self._count(account, 1)
                granted.set_result(None)
                self._lines[account] = self._lines.pop(account)
        if not line:
            del self._lines[account]

    def _leave(self, account: int, waiting: asyncio.Future[None]) -> None:
        line = self._lines.get(account, deque())
        if waiting in line:
            line.remove(waiting)
        if not line:
            self._lines.pop(account, None)

    def _count(self, account: int, change: int) -> None:
        self._total += change
        self._running[account] = self._running.get(account, 0) + change
        if not self._running[account]:
            del self._running[account]


class Limits:
    """How much goes on at once, for all faces of a server; and threads that are for uploads only, and for downloads."""

    def __init__(self, patience: float = 30.0) -> None:
        self.patience = patience
        self.small = Turns(16, 128, patience)  # up to 1 MiB each, in memory
        self.uploads = Turns(16, 64, patience)  # a thread and up to 14 MiB each, most of it when they come fast
        self.documents = Turns(4, 16, patience)  # up to 1 GiB each on the disk
        self.downloads = Turns(32, 64, patience)  # up to 16 MiB each
        self.uploading, self.downloading = CapacityLimiter(24), CapacityLimiter(24)


_LIMITS = "holdfast.limits"


def impose(scope: Scope, limits: Limits) -> None:
    """Have a request carry the limits along."""
    scope[_LIMITS] = limits


def limits_of(request: Request) -> Limits:
    """The limits that the listener has imposed; where there is none, the request's own."""
    if _LIMITS not in request.scope:
        impose(request.scope, Limits())
    return cast(Limits, request.scope[_LIMITS])


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
        raise _broken_off() from None
    if size:
        yield held[0] if len(held) == 1 else b"".join(held)


async def small(request: Request, most: int, account: int) -> bytes:
    """The whole body, of at most ``most`` bytes. One that is here as a whole needs no turn; one of which nothing has
    come yet takes none.
    """
    message = await _received(request)
    data: bytes = message.get("body", b"")
    if message.get("more_body", False):
        async with limits_of(request).small.turn(account):
            data = await _with_the_rest(request, data, most)
    if len(data) > most:
        raise TooLarge(f"The body has more than {most} bytes.")
    return data


async def _with_the_rest(request: Request, first: bytes, most: int) -> bytes:
    parts, size, more = [first], len(first), True
    while more and size <= most:
        message = await _received(request)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


async def _received(request: Request) -> Message:
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise _broken_off()
    return message


def _broken_off() -> BrokenOff:
    return BrokenOff("The body ended before all of it had come.")


class Taker(Protocol):
    """Who takes a body piece by piece, in a thread of his own: see ``shelf.uploads``."""

    def offer(self, piece: bytes, /) -> Future[None]: ...

    def abandon(self) -> Future[Any]: ...


async def fed(request: Request, taker: Taker, most: int) -> Exception | None:
    """The body to its taker, without a thread that waits: some pieces are stored while the next ones come. What broke
    it off, if anything did.
    """
    waiting = deque[Future[None]]()
    try:
        async with aclosing(pieces(request, most)) as body:
            async for piece in body:
                waiting.append(taker.offer(piece))
                if len(waiting) > AHEAD:
                    await asyncio.wrap_future(waiting.popleft())
    except Exception as e:  # noqa: BLE001 - the caller decides what it means
        return e
    except BaseException:
        taker.abandon()
        raise
    return None


async def gone(taker: Taker) -> None:
    """Give up a body, and wait until its thread has ended: until then it counts."""
    ended = asyncio.wrap_future(taker.abandon())
    await asyncio.wait([ended])
    ended.exception()  # nobody's business any more


async def spooled(request: Request, most: int, folder: str) -> BinaryIO:
    """The whole body in a file without a name, at its beginning."""
    threads = limits_of(request).uploading
    file = cast(BinaryIO, TemporaryFile(dir=folder))  # noqa: SIM115 - whoever asked for it closes it
    try:
        async for piece in pieces(request, most):
            await run_sync(file.write, piece, limiter=threads)
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

    What is promised: the generator is closed when all was sent or the client went away, and is one thread's at a time;
    then, once, ``over`` is called.
    """

    def __init__(
        self, pieces: Generator[bytes, None, None], threads: CapacityLimiter, over: Callable[[], None]
    ) -> None:
        self._pieces, self._threads, self._over = pieces, threads, over
        self._lock = threading.Lock()
        self._first = b""
        self._ended = False

    async def begin(self) -> Outgoing:
        """Make the first piece, so that what is damaged is told by the answer's status."""
        try:
            self._first = await run_sync(self._next, limiter=self._threads)
        except BaseException:
            self.end()
            raise
        return self

    def answer(self, status: int, headers: dict[str, str], media_type: str) -> StreamingResponse:
        """The body as an answer."""
        return _Answer(self, status, headers, media_type)

    async def sent(self) -> AsyncGenerator[bytes, None]:
        """The pieces in order."""
        piece, coming = self._first, None
        try:
            while piece:
                coming = asyncio.ensure_future(run_sync(self._next, limiter=self._threads))
                yield piece
                piece = await asyncio.shield(coming)
                coming = None
        finally:
            if coming is not None:
                coming.add_done_callback(_forget)
            self.end()

    def end(self) -> None:
        """Close the generator, without waiting for it."""
        if self._ended:
            return
        self._ended = True
        closing = asyncio.ensure_future(run_sync(self._close, limiter=self._threads))
        closing.add_done_callback(_forget)
        closing.add_done_callback(lambda _: self._over())

    def _next(self) -> bytes:
        with self._lock:
            return next(self._pieces, b"")

    def _close(self) -> None:
        with self._lock:
            self._pieces.close()


class _Answer(StreamingResponse):
    """Ends the body also when the client has gone before any of it was sent."""

    def __init__(self, outgoing: Outgoing, status: int, headers: dict[str, str], media_type: str) -> None:
        super().__init__(outgoing.sent(), status, headers, media_type)
        self._outgoing = outgoing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._outgoing.end()


def _forget(ended: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more; that it failed is nobody's business either."""
    if not ended.cancelled():
        ended.exception()
