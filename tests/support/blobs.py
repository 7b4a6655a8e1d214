"""Blobs of a server that runs, as tests speak to them, also to the letter: at their own address and at the main one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.support.server import Running

_numbers = itertools.count()


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def own_url(server: Running) -> str:
    """The address that is for blobs alone."""
    return str(server.first_lines[-1]["blobs_url"])


def a_bucket(client: httpx2.Client, **policy: Any) -> str:
    """Make one; its path."""
    name = f"bucket-{next(_numbers)}"
    made = client.put(f"/{name}", json=policy)
    assert made.status_code == 201, made.text
    return f"/{name}"


@dataclass
class Person:
    """An account, and a client of blobs with a token of its own. ``at``: the address that it speaks to."""

    server: Running
    name: str
    token: str
    at: str

    def __post_init__(self) -> None:
        self.client = self.at_other(self.at)

    def at_other(self, at: str) -> httpx2.Client:
        return httpx2.Client(base_url=at, headers={"Authorization": f"Bearer {self.token}"}, timeout=60)

    def close(self) -> None:
        self.client.close()


def person(server: Running, *scopes: str, username: str = "", at: str = "", **about: str) -> Person:
    """A new account. ``scopes``: the token's; those of blobs if none are named."""
    username = username or f"person{next(_numbers)}"
    with server.user(username, **about) as by_password:
        wanted = {"name": "tests", "scopes": list(scopes) or ["blobs:read", "blobs:write"]}
        made = by_password.post("/accounts/tokens", json=wanted)
    assert made.status_code == 201, made.text
    return Person(server, username, str(made.json()["token"]), at or own_url(server))


def demand_error(answer: httpx2.Response, status: int, error: str = "") -> str:
    """That it is an error as the document has it; what it describes."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found.keys() == {"code", "error", "description"} and found["code"] == status
    assert not error or found["error"] == error, found
    return str(found["description"])


# -- to the letter -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def line(url: str, start: bytes = b"") -> Iterator[socket.socket]:
    """A connection on which something was said."""
    where = httpx2.URL(url)
    with socket.create_connection((where.host, where.port or 80), timeout=20) as made:
        made.sendall(start)
        yield made


def head(method: str, target: bytes, token: str, *headers: bytes) -> bytes:
    """A request's headers, with nothing that was not said."""
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: x", b"Authorization: Bearer " + token.encode()]
    return b"\r\n".join([*lines, *headers, b"", b""])


@dataclass
class Answer:
    status: int
    headers: bytes
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def heard(from_: socket.socket) -> Answer:
    """What comes until the server closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := from_.recv(1 << 16):
            found += piece
    headers, _, body = found.partition(b"\r\n\r\n")
    return Answer(int(headers[9:12]) if headers else 0, headers.lower(), body)


def said(url: str, method: str, target: bytes, token: str, *headers: bytes, body: bytes = b"") -> Answer:
    """Ask just so, on a connection of its own."""
    length = [b"Content-Length: %d" % len(body)] if body else []
    with line(url, head(method, target, token, *headers, *length, b"Connection: close") + body) as made:
        return heard(made)
