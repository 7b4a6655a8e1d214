"""The listener: uvicorn, with our limits. Ends cleanly on SIGTERM and SIGINT: what runs is finished first."""

from __future__ import annotations

import signal
import socket

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


def serve_app(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; then return."""
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=FINISH_S, h11_max_incomplete_event_size=64 << 10,
    )  # fmt: skip
    ends = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(end, lambda *_: None) for end in ends]  # uvicorn raises again what it was ended by
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for end, handler in zip(ends, before, strict=True):
            signal.signal(end, handler)
