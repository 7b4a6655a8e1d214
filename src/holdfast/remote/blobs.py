"""Blobs on a server: put, got, listed, deleted; buckets made and shared; a bucket as a snapshot and back.

What is promised: what is got is in place only when all of it came and its SHA-1 is the one the server named; what is
put was stored as the bytes that were sent, for the server's SHA-1 of it is compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

import msgspec

from holdfast.archive.attributes import explain
from holdfast.errors import StorageError, UsageError, WrongContent
from holdfast.remote.http import Again
from holdfast.remote.server import Server

_PIECE = 1 << 20
_AT_ONCE = 1000
_ROOT = "blobs"

Tell = Callable[[int], None]


def _quietly(count: int) -> None:
    """Nobody wants to know how far it is."""


@dataclass(frozen=True)
class Row:
    """What a list names: a blob, or (``size`` None) the prefix that several have in common. ``json``: all that the
    server says of a blob.
    """

    key: str
    size: int | None
    modified: str
    sha1: str
    json: Mapping[str, Any]


class _File(msgspec.Struct):
    key: str
    size: int
    sha1: str
    modified: str = msgspec.field(name="lastModified")


class _Listed(msgspec.Struct):
    files: list[dict[str, Any]]
    truncated: bool = False
    prefixes: list[str] = []
    next_marker: str = ""


# -- blobs -------------------------------------------------------------------------------------------------------------


def put(server: Server, file: BinaryIO, bucket: str, key: str, *, only_new: bool, tell: Tell = _quietly) -> _File:
    """Store what is in a file; the blob as the server has it. A file that can be read once is sent once."""
    can_rewind = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    headers = {"If-None-Match": "*"} if only_new else {}
    if can_rewind:
        headers["Content-Length"] = str(os.fstat(file.fileno()).st_size - file.tell())
    begin, hasher = file.tell() if can_rewind else 0, hashlib.sha1(usedforsecurity=False)

    def pieces() -> Iterator[bytes]:
        nonlocal hasher
        hasher = hashlib.sha1(usedforsecurity=False)
        if can_rewind:
            file.seek(begin)
        while piece := file.read(_PIECE):
            hasher.update(piece)
            yield piece
            tell(len(piece))

    def act() -> dict[str, Any]:
        return server.once("POST", _address(bucket, key), headers, pieces).json()

    try:
        stored = _blob((server.patiently(act) if can_rewind else act()).get("file"))
    except OSError as e:
        raise UsageError(f"The file cannot be read: {explain(e)}.") from None
    if stored.sha1 != hasher.hexdigest():
        raise WrongContent(f"The server has stored other bytes than were sent for {key!r}.", "Put it again.")
    return stored


def get(server: Server, bucket: str, key: str, target: str, tell: Tell = _quietly) -> int:
    """Bring a blob into a file, in place of what is there; how many bytes it has."""
    folder, name = os.path.split(os.path.abspath(target))
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name[:100]}.", suffix=".part", delete=False) as file:
            try:
                size = _fetch(server, bucket, key, file, tell)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(file.name)
                raise
    except OSError as e:
        raise UsageError(f"{target} cannot be written: {explain(e)}.") from None
    return size


def _fetch(server: Server, bucket: str, key: str, file: Any, tell: Tell) -> int:
    """A blob into a file. Cut off, it goes on where it was, as long as it is the same blob."""
    at, tag, hasher = 0, "", hashlib.sha1(usedforsecurity=False)

    def act() -> None:
        nonlocal at, tag, hasher
        headers = {"Range": f"bytes={at}-", "If-Range": tag} if at else {}
        with server.answering("GET", _address(bucket, key), headers) as answer:
            if answer.status_code != 206 or answer.headers.get("etag") != tag:
                at, tag, hasher = 0, answer.headers.get("etag", ""), hashlib.sha1(usedforsecurity=False)
                file.seek(0)
                file.truncate()
            left = int(answer.headers.get("content-length", "0"))
            for piece in answer.iter_raw(_PIECE):
                file.write(piece)
                hasher.update(piece)
                at, left = at + len(piece), left - len(piece)
                tell(len(piece))
        if left:
            raise Again("The answer ended too early.")

    server.patiently(act, progress=lambda: at)
    if hasher.hexdigest() != tag.strip('"'):
        raise WrongContent(f"What came for {key!r} does not have the SHA-1 that the server names.", "Get it again.")
    return at


def listed(
    server: Server, bucket: str, *, prefix: str = "", sort: str = "", limit: int | None = None, delimiter: str = ""
) -> Iterator[Row]:
    """What is in a bucket, page by page; common prefixes before the blobs of their page."""
    params = {k: v for k, v in (("prefix", prefix), ("sort", sort or "+key"), ("delimiter", delimiter)) if v}
    left = limit
    while left is None or left > 0:
        asked = {**params, "limit": str(min(_AT_ONCE, left or _AT_ONCE))}
        page = _page(server.patiently(lambda asked=asked: server.once("GET", _address(bucket), params=asked)).json())  # type: ignore[misc]
        rows = [Row(common, None, "", "", {}) for common in page.prefixes]
        for about in page.files:
            one = _blob(about)
            rows.append(Row(one.key, one.size, one.modified, one.sha1, about))
        yield from rows
        left = None if left is None else left - len(rows)
        if not page.truncated or params.get("marker") == page.next_marker:
            return
        params["marker"] = page.next_marker


def delete(server: Server, bucket: str, key: str) -> None:
    server.patiently(lambda: server.once("DELETE", _address(bucket, key)))


# -- buckets -----------------------------------------------------------------------------------------------------------


def buckets(server: Server) -> list[dict[str, Any]]:
    found = server.patiently(lambda: server.once("GET", _ROOT)).json().get("buckets")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def make_bucket(server: Server, bucket: str, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Once: asked again, a bucket that was made would seem somebody else's."""
    return server.once("PUT", _address(bucket), body=msgspec.json.encode(policy)).json()


def delete_bucket(server: Server, bucket: str) -> None:
    server.patiently(lambda: server.once("DELETE", _address(bucket)))


def grants(server: Server, bucket: str) -> dict[str, Any]:
    return server.patiently(lambda: server.once("GET", _address(bucket), params={"grants": ""})).json()


def put_grants(server: Server, bucket: str, granted: Mapping[str, list[str]]) -> dict[str, Any]:
    body = msgspec.json.encode(granted)
    return server.patiently(lambda: server.once("PUT", _address(bucket), body=body, params={"grants": ""})).json()


def snapshots(server: Server, bucket: str) -> list[dict[str, Any]]:
    answer = server.patiently(lambda: server.once("GET", _address(bucket), params={"snapshots": ""})).json()
    found = answer.get("snapshots")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def make_snapshot(server: Server, bucket: str) -> dict[str, Any]:
    """Once: what the server is at is not begun again."""
    return server.once("POST", _address(bucket), params={"snapshots": ""}).json()


def restore(server: Server, bucket: str, snapshot: str) -> dict[str, Any]:
    return server.patiently(lambda: server.once("POST", _address(bucket), params={"restore": snapshot})).json()


# -- both --------------------------------------------------------------------------------------------------------------


def _address(bucket: str, key: str = "") -> str:
    """Where it is on the server; encoded once, and no step of it is one that programs on the way resolve."""
    if any(step in (".", "..") for step in [bucket, *key.split("/")]):
        raise UsageError("A key has no '.' or '..' between slashes.", "Choose another key.")
    there = f"{_ROOT}/{quote(bucket, safe='')}"
    return f"{there}/{quote(key, safe='/')}" if key else there


def _blob(about: object) -> _File:
    try:
        return msgspec.convert(about, _File)
    except msgspec.ValidationError:
        raise StorageError("The server does not answer as a Holdfast server does.") from None


def _page(about: object) -> _Listed:
    try:
        return msgspec.convert(about, _Listed)
    except msgspec.ValidationError:
        raise StorageError("The server does not answer as a Holdfast server does.") from None
