"""Fields of a form or a query, as a browser or an OAuth2 client sends them.

What is promised: at most LONGEST bytes are read, a field that stands twice is refused (RFC 6749, 3.1), text is UTF-8.
"""

from __future__ import annotations

from urllib.parse import parse_qsl

from fastapi import Request

from holdfast.errors import UsageError

LONGEST = 64 << 10
_MOST_FIELDS = 100


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
