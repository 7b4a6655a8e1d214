"""What is known of each request: an id, one line in the log, a few numbers in ``/metrics``.

What is promised: no secret is logged (no query, no header, no body, no variable of a frame, and of a path not what a
share's address ends in: whoever has that has the file), every answer has
``X-Request-ID``, and a fault of ours becomes a 500 and a logged traceback instead of a broken connection.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import TextIO

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.tracebacks import ExceptionDictTransformer

from holdfast.faces.problems import fault

_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECRET = re.compile(r"(?<=/share/).+|(?<=/file/).+|(?<![0-9A-Fa-f])[0-9A-Fa-f]{32}(?![0-9A-Fa-f])", re.DOTALL)


class Metrics:
    """The numbers of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self.requests = Counter("holdfast_requests", "Requests answered.", labels, registry=self.registry)
        self.seconds = Histogram(
            "holdfast_request_seconds", "Time to the end of the answer.", ("method", "route"), registry=self.registry
        )
        self.received = Counter("holdfast_received_bytes", "Bytes of bodies received.", registry=self.registry)
        self.sent = Counter("holdfast_sent_bytes", "Bytes of bodies sent.", registry=self.registry)
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}  # to look them up takes as long again

    def note(self, method: str, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """One request that was answered."""
        key = method, route, status
        if key not in self._known:
            self._known[key] = self.requests.labels(method, route, str(status)), self.seconds.labels(method, route)
        count, duration = self._known[key]
        count.inc()
        duration.observe(seconds)
        self.received.inc(received)
        self.sent.inc(sent)


def make_log(stream: TextIO) -> structlog.typing.FilteringBoundLogger:
    """A log whose lines are JSON."""
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")
    # the usual renderer shows the local variables of every frame: passwords, tokens, the request's headers
    traceback = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level, stamp, traceback, structlog.processors.JSONRenderer(_as_json)
    ]  # fmt: skip
    made: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.WriteLogger(stream), processors=processors, wrapper_class=structlog.make_filtering_bound_logger(20)
    ).bind()
    return made


def _as_json(content: object, **options: object) -> str:
    return msgspec.json.encode(content, enc_hook=repr).decode()


class Watch:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, log: structlog.typing.FilteringBoundLogger, metrics: Metrics) -> None:
        self._app, self._log, self._metrics = app, log, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Watched(scope, receive, send)
        error: Exception | None = None
        try:
            await self._app(scope, request.receive, request.send)
        except Exception as e:  # noqa: BLE001 - the edge where faults become answers
            error = e
            if not request.status:
                await fault(request.id)(scope, receive, request.send)
        self._note(scope, request, error)

    def _note(self, scope: Scope, request: _Watched, error: Exception | None) -> None:
        seconds, method = time.perf_counter() - request.began, scope["method"]
        route = str(scope.get("holdfast.route") or getattr(scope.get("route"), "path", ""))
        method_label = method if method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS") else "other"
        self._metrics.note(method_label, route, request.status, seconds, request.received, request.sent)
        about = {
            "request_id": request.id, "method": method, "path": _shown(scope["path"]), "status": request.status,
            "seconds": round(seconds, 6), "received": request.received, "sent": request.sent,
            "account": scope.get("holdfast.account", ""), "address": (scope.get("client") or ("",))[0],
        }  # fmt: skip
        if error is not None:
            self._log.error("fault", **about, exc_info=error)
        else:
            self._log.info("request", **about)


def _shown(path: str) -> str:
    """A path as it is logged."""
    return _SECRET.sub("…", path)


class _Watched:
    """One request on its way: counts what passes."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        self.id = given.decode() if _ID.fullmatch(given) else uuid.uuid4().hex
        self._receive, self._send = receive, send
        self.began = time.perf_counter()
        self.status = self.received = self.sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id.encode())]
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
        await self._send(message)
