"""The listener: uvicorn, with our limits. Ends cleanly on SIGTERM and SIGINT: what runs is finished first."""

from __future__ import annotations

import gc
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from holdfast.errors import UsageError

FINISH_S = 30  # so long running requests have after SIGTERM


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; UsageError says why it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as e:
        listener.close()
        raise UsageError(f"Cannot listen on {host}:{port}: {e.strerror}.", "Choose another --host or --port.") from None
    return listener


class Ending:
    """Hears SIGTERM and SIGINT from its beginning to its end, and ends the server: one that starts, once it has."""

    def __init__(self) -> None:
        self.asked = False
        self.server: uvicorn.Server | None = None
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> Ending:
        self._before = [(end, signal.signal(end, self._hear)) for end in (signal.SIGTERM, signal.SIGINT)]
        return self

    def __exit__(self, *about: object) -> None:
        for end, handler in self._before:
            signal.signal(end, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.server is not None:
            self.server.should_exit = True


def serve_app(app: ASGIApp, listener: socket.socket, ending: Ending, proxies: Sequence[str] = ()) -> None:
    """Serve until it is to end; then return. ``proxies``: who may say which address a request comes from."""
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=bool(proxies), forwarded_allow_ips=list(proxies), timeout_graceful_shutdown=FINISH_S,
        h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    _collect_less_often()
    ending.server = uvicorn.Server(config)
    if not ending.asked:  # while it runs uvicorn hears the signals itself
        ending.server.run(sockets=[listener])


def _collect_less_often() -> None:
    """Leave what was loaded out of the search for garbage, and search after 20,000 new objects instead of 700.

    Small uploads went an eighth faster so, and evenly: a search through everything holds up all who wait.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
