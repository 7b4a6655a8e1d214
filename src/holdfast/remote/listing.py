"""What manifests a server has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    """The newest version of one manifest; ``json``: all that the server says of it."""

    name: str
    version: int
    timestamp: str
    files: int
    available: int
    size: int
    json: dict[str, Any]


def manifests(server: Server) -> Iterator[Row]:
    """The newest version of each, the newest received first, page by page."""
    params: dict[str, str] = {"limit": _AT_ONCE}

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
