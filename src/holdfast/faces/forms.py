"""Bodies that are read as a whole: fields of a form (and of a query), and small JSON.

What is promised: at most LONGEST bytes are read, a field that stands twice is refused (RFC 6749, 3.1), text is UTF-8.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

from holdfast.errors import UsageError

LONGEST = 64 << 10
_MOST_FIELDS = 100

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ShortBody(APIRoute):
    """A route that the framework reads the body of, before anybody is asked who he is: it must not be long."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handling(request: Request) -> Response:
            size = 0

            async def receive() -> Message:
                nonlocal size
                message = await request.receive()
                size += len(message.get("body", b""))
                if size > LONGEST:
                    raise HTTPException(413)
                return message

            return await handle(Request(request.scope, receive))

        return handling


async def fields_of_body(request: Request) -> dict[str, str]:
    """The body's. UsageError when it is none that a form sends."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UsageError("The body must be a form.", "Send it as application/x-www-form-urlencoded.")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST:
            raise UsageError(f"The form is longer than {LONGEST} bytes.")
    return _fields(bytes(body))


def fields_of_query(request: Request) -> dict[str, str]:
    """The query's."""
    return _fields(request.scope["query_string"])


def _fields(content: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(content.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise UsageError("The fields are not percent-encoded UTF-8, or there are too many.") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
        raise UsageError(f"The field {twice[:40]!r} stands there more than once.")
    return found
