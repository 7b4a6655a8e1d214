"""Shares of a server that runs, as tests put them in: forms with a file, also such as no good client sends."""

from __future__ import annotations

from typing import Any

import httpx2

from tests.support.server import Running

API = "/api/v1.0/file"
CONTENT = b"four five six " * 1000
BOUNDARY = "a-boundary-of-its-own"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def share(client: httpx2.Client, content: bytes = CONTENT, name: str = "report.xls", **fields: str) -> str:
    """Put a file in; its URL."""
    made = client.put(API, files={"file": (name, content)}, data=fields)
    assert made.status_code == 201, made.text
    return str(made.json()["url"])


def sharer(server: Running, name: str, *scopes: str) -> httpx2.Client:
    """A client with a token of a new account."""
    wanted = {"name": "tests", "scopes": list(scopes) or ["shares:read", "shares:write"]}
    with server.user(name) as person:
        made = person.post("/accounts/tokens", json=wanted)
    assert made.status_code == 201, made.text
    return server.with_token(made.json()["token"])


def page_of(url: str) -> str:
    """The path of a share's page."""
    return "/share/" + url.rpartition("/")[2]


def part(name: str, content: bytes, filename: str | bytes | None = None, more: bytes = b"") -> bytes:
    """One part of a form, to the letter."""
    named = b"" if filename is None else b'; filename="%s"' % (
        filename if isinstance(filename, bytes) else filename.encode()
    )  # fmt: skip
    head = b'Content-Disposition: form-data; name="%s"%s\r\n%s\r\n' % (name.encode(), named, more)
    return b"--%s\r\n%s%s\r\n" % (BOUNDARY.encode(), head, content)


def form(*parts: bytes) -> dict[str, Any]:
    """Arguments for a request that sends them."""
    return {"content": b"".join(parts) + b"--%s--\r\n" % BOUNDARY.encode(), "headers": FORM}


def demand_error(answer: httpx2.Response, status: int, text: str) -> None:
    """That it is the document's error, to the letter."""
    assert (answer.status_code, answer.json()) == (status, {"error": text}), answer.text
    assert answer.headers["content-type"] == "application/json"
