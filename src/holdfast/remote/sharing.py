"""One-time shares on a server: a file sent, one's own listed and ended.

A file is sent once: whether a request that broke off was heard cannot be told, and sent again it would be shared twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
import msgspec

from holdfast.errors import (
    ContentError,
    Forbidden,
    HoldfastError,
    NoContent,
    QuotaFull,
    StorageError,
    StorageFull,
    TooLarge,
    UsageError,
)
from holdfast.remote.http import Again
from holdfast.remote.server import Answer, Server

_API = "api/v1.0/file"
_AT_ONCE = 1000


class Row(msgspec.Struct, frozen=True):
    """A share as a list has it."""

    number: int
    name: str
    size: int
    downloads: int
    taken: int
    state: str
    password: bool
    created: str
    expires: str | None = None


class _Page(msgspec.Struct, frozen=True):
    shares: list[Row]
    next: int | None = None


class _Made(msgspec.Struct, frozen=True):
    url: str


def put(server: Server, file: BinaryIO, name: str, fields: Mapping[str, str]) -> str:
    """Share what is in an open file; the link, which the server tells only here."""
    request = httpx2.Request("PUT", "http://form.invalid", data=dict(fields), files={"file": (name, file)})
    headers = {key: request.headers[key] for key in ("Content-Type", "Content-Length") if key in request.headers}
    form: Any = request.stream

    def body() -> Iterator[bytes]:
        yield from form

    try:
        answer = server.once("PUT", _API, headers, body)
    except HoldfastError as e:
        raise _meant(e, name) from None
    made: _Made = _converted(answer, _Made)
    return made.url


def _meant(e: HoldfastError, name: str) -> HoldfastError:
    """An error with the sentence that the server's short ones have no room for."""
    if isinstance(e, Again):
        return e
    if isinstance(e, TooLarge):
        return TooLarge(f"{Path(name).name} is larger than what this server lets one share.")
    if isinstance(e, Forbidden):
        return Forbidden(
            "You may not share files there.", "Run `holdfast login` again, or use a token for shares:write."
        )
    if isinstance(e, StorageFull | QuotaFull):
        return QuotaFull("There is no room for it: your quota, or the server's disk, is full.", "Delete something.")
    if isinstance(e, NoContent):
        return StorageError("The server knows no shares.", "Is the address right?")
    if type(e) is ContentError:
        return UsageError("The server does not take it like that.", "See --expires, --downloads, and the file's name.")
    return e


def listed(server: Server, *, everything: bool) -> Iterator[Row]:
    """One's own, the newest first; those that have ended only when ``everything`` is wanted."""
    params = {"limit": str(_AT_ONCE), **({"all": "true"} if everything else {})}
    while True:
        page: _Page = _converted(server.patiently(lambda: server.once("GET", "shares", params=params)), _Page)
        yield from page.shares
        if page.next is None:
            return
        params["before"] = str(page.next)


def end(server: Server, number: int) -> None:
    """Nobody gets it any more. NoContent when one has none of that number."""
    server.patiently(lambda: server.once("DELETE", f"shares/{number}"))


def _converted(answer: Answer, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(answer.json(), kind)
    except msgspec.ValidationError:
        raise StorageError("The server does not answer as a Holdfast server does.", "Is the address right?") from None
