"""A TCP proxy that breaks connections when it is told to, and can be led to another server behind it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

_PIECE = 16 << 10


class Proxy:
    """``budgets``: after so many bytes towards the server a connection is broken, one number for each connection to
    come that carries so many; ``back_budgets``: the same towards the client. ``broken`` counts them.
    ``holds``: after so many bytes towards the server a connection waits for ``go``; ``held`` is set then.
    """

    def __init__(self, url: str) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.lead_to(url)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.budgets: list[int] = []
        self.back_budgets: list[int] = []
        self.holds: list[int] = []
        self.held, self.go = threading.Event(), threading.Event()
        self.broken = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def lead_to(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._there = parts.hostname, parts.port

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.go.set()
        with self._lock:
            for end in list(self._open):
                _shut(end)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._there, timeout=10)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            ends = (near, far, self.budgets), (far, near, self.back_budgets)
            pair = [threading.Thread(target=self._pump, args=end, daemon=True) for end in ends]
            self._threads += pair
            for thread in pair:
                thread.start()
            closer = threading.Thread(target=self._close, args=(near, far, pair), daemon=True)
            self._threads.append(closer)
            closer.start()

    def _close(self, near: socket.socket, far: socket.socket, pair: list[threading.Thread]) -> None:
        for thread in pair:
            thread.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, budgets: list[int]) -> None:
        passed = 0
        try:
            while data := source.recv(_PIECE):
                passed += len(data)
                with self._lock:
                    spent = bool(budgets) and passed >= budgets[0]
                    if spent:
                        budgets.pop(0)
                        self.broken += 1
                if spent:
                    break
                if budgets is self.budgets:
                    self._hold(passed)
                sink.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)

    def _hold(self, passed: int) -> None:
        with self._lock:
            waits = bool(self.holds) and passed >= self.holds[0]
            if waits:
                self.holds.pop(0)
        if waits:
            self.held.set()
            self.go.wait(60)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy_to(url: str) -> Iterator[Proxy]:
    made = Proxy(url)
    try:
        yield made
    finally:
        made.close()
