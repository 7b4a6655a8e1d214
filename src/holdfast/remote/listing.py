"""What manifests a server has, and how one is deleted there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from holdfast.errors import StorageError
from holdfast.remote.server import Server

_AT_ONCE = "1000"


class _Row(msgspec.Struct):
    name: str
    version: int
    files: int
    available: int
    size: int = msgspec.field(name="bytes")
    timestamp: str | None = None


@dataclass(frozen=True)
class Row:
    """One version of a manifest; ``json``: all that the server says of it."""

    name: str
    version: int
    timestamp: str
    files: int
    available: int
    size: int
    json: dict[str, Any]


def manifests(server: Server, name: str | None = None) -> Iterator[Row]:
    """The newest version of each, or every version of one, the newest received first, page by page."""
    params: dict[str, str] = {"limit": _AT_ONCE}
    if name is not None:
        params |= {"name": name, "versions": "all"}

    def ask() -> dict[str, Any]:
        return server.once("GET", "manifests", params=params).json()

    while True:
        answer = server.patiently(ask)
        found, following = answer.get("manifests"), answer.get("next")
        for one in found if isinstance(found, list) else []:
            try:
                row = msgspec.convert(one, _Row)
            except msgspec.ValidationError:
                raise StorageError("The server does not answer as a Holdfast server does.") from None
            yield Row(row.name, row.version, row.timestamp or "", row.files, row.available, row.size, one)
        if following is None or str(following) == params.get("cursor"):
            return
        params["cursor"] = str(following)


def delete(server: Server, name: str, version: int | None) -> None:
    """Delete a version of a manifest, or all of them."""
    which = {"versions": "all"} if version is None else {"version": str(version)}
    path = f"manifests/name/{quote(name, safe='')}"
    server.patiently(lambda: server.once("DELETE", path, params=which))
