"""A tiny HTTP server that answers like a Holdfast server, with whatever manifest and whatever bytes a test wants."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hostile(ThreadingHTTPServer):
    """``manifest``: what it gives for every name. ``files``: bytes by hash; what is not there is a 404. ``answers``:
    (status, headers, body) by path, before all else. ``seen``: the requests, as method and path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.manifest: dict[str, Any] | bytes = {}
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.seen: list[str] = []
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hostile
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append(f"GET {self.path}")
        self.server.tokens.add(self.headers.get("Authorization", ""))
        path = self.path.partition("?")[0]
        if waiting := self.server.answers.get(path):
            self._answer(*(waiting.pop(0) if len(waiting) > 1 else waiting[0]))
        elif path == "/accounts/me":
            self._answer(200, {}, b'{"username":"ann"}')
        elif path.startswith("/manifests/"):
            made = self.server.manifest
            self._answer(
                200, {"X-Manifest-Version": "1"}, made if isinstance(made, bytes) else json.dumps(made).encode()
            )
        elif (data := self.server.files.get(path.removeprefix("/files/"))) is not None:
            self._answer(200, {}, data)
        else:
            self._answer(404, {}, b'{"detail":"Not here."}')

    def do_POST(self) -> None:
        self.server.seen.append(f"POST {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        waiting = self.server.answers[self.path]
        self._answer(*(waiting.pop(0) if len(waiting) > 1 else waiting[0]))

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nobody reads it."""


@contextlib.contextmanager
def hostile_server() -> Iterator[Hostile]:
    server = Hostile()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
