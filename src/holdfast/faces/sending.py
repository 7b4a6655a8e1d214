"""One download of a share, sent: whole, once, and known to have been taken or not.

What is promised: the last byte leaves only when the client's machine has acknowledged all that went before it, and it
stands in the catalog that it may have left; who goes before that has downloaded nothing. (A program may still close
a connection without reading what its machine has received: that cannot be told from here.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from holdfast.errors import HoldfastError
from holdfast.faces.lines import Line, line_of
from holdfast.shares.shares import Download, Tell

_SHORTEST_S, _LONGEST_S = 0.001, 0.05


class Sending(Response):
    """The answer. ``patience``: seconds that the client may take nothing for. When it has ended ``over`` is called."""

    def __init__(
        self,
        download: Download,
        headers: Mapping[str, str],
        threads: CapacityLimiter,
        patience: float,
        tell: Tell,
        over: Callable[[], None],
    ) -> None:
        size = {"Content-Length": str(download.share.size)}
        super().__init__(None, 200, {**headers, **size})
        self._download, self._threads, self._patience = download, threads, patience
        self._tell, self._over = tell, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line, left = line_of(scope), asyncio.Event()
        watching = asyncio.ensure_future(_watch(receive, left))
        taken = False
        try:
            taken = await self._send(line, left, send)
        except HoldfastError as e:
            self._tell(f"send share {self._download.share.id}", e)
        finally:
            if not taken:  # the client must not take what came for the whole
                line.cut_off()
            try:
                await run_sync(lambda: self._download.end(taken=taken), limiter=self._threads)
            finally:
                self._over()
                if not taken:
                    await asyncio.wait([watching], timeout=1)
                watching.cancel()

    async def _send(self, line: Line, left: asyncio.Event, send: Send) -> bool:
        """Whether all of it was sent, as far as can be told."""
        pieces, most = self._download.pieces(), self._download.share.size - 1
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sent = 0
        while sent < most:
            piece = await run_sync(next, pieces, b"", limiter=self._threads)
            if left.is_set():
                return False
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)
        last = await run_sync(next, pieces, b"", limiter=self._threads)
        if not await self._all_taken(line, left):
            return False
        await run_sync(self._download.make_final, limiter=self._threads)
        if left.is_set() or line.untaken() < 0:
            return False
        await send({"type": "http.response.body", "body": last, "more_body": False})
        return True

    async def _all_taken(self, line: Line, left: asyncio.Event) -> bool:
        """Wait until the client has what was sent so far; False when it has gone, or takes nothing."""
        clock = asyncio.get_running_loop().time
        before, since, pause = -1, clock(), _SHORTEST_S
        while (untaken := line.untaken()) != 0:
            if untaken < 0 or left.is_set():
                return False
            if untaken != before:
                before, since = untaken, clock()
            elif clock() - since > self._patience:
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_S)
        return not left.is_set()


async def _watch(receive: Receive, left: asyncio.Event) -> None:
    """Note when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    left.set()
