"""Blobs as their document writes them: buckets, files, lists, errors. A list goes out in pieces, never held whole."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Iterator
from typing import Any

import msgspec
from fastapi.responses import Response

from holdfast.blobs.listing import Listing
from holdfast.catalog.blobs import Blob, Bucket
from holdfast.errors import HoldfastError, NotLoggedIn
from holdfast.faces.problems import problem_of

_AT_ONCE = 200  # items of a list in a piece
_encode = msgspec.json.Encoder().encode


def bucket_about(bucket: Bucket) -> dict[str, Any]:
    """A bucket, and who owns it."""
    name = bucket.owner_name or bucket.username
    return {"name": bucket.name, "owner": {"email": {"Address": bucket.email, "Name": name}}}


def bucket_details(bucket: Bucket) -> dict[str, Any]:
    """The same, and what it holds."""
    return bucket_about(bucket) | {
        "filesystem": bucket.filesystem,
        "quota": {"bytes": bucket.quota_bytes, "objects": bucket.quota_objects},
        "bytes": bucket.bytes, "objects": bucket.objects,
    }  # fmt: skip


def file_about(bucket: dict[str, Any], blob: Blob) -> dict[str, Any]:
    """A blob; ``bucket``: as ``bucket_about`` gives it."""
    return {
        "bucket": bucket, "key": blob.key.decode(), "lastModified": when(blob.modified_ns), "sha1": blob.sha1,
        "size": blob.size,
    }  # fmt: skip


def when(at_ns: int) -> str:
    """RFC 3339, in UTC, to the microsecond."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1000:06}Z"


def answer(content: dict[str, Any], status: int = 200) -> Response:
    return Response(_encode(content), status, {"Cache-Control": "no-store"}, "application/json")


def refusal(error: HoldfastError) -> Response:
    """An error as the document of blobs has it, with the headers that others have."""
    about = problem_of(error)
    headers = {name: value for name, value in about.headers.items() if name not in ("content-length", "content-type")}
    made = _refused(error.http_status, error.code, f"{error} {error.hint}".strip())
    made.headers.update(headers)
    if isinstance(error, NotLoggedIn):
        made.headers["WWW-Authenticate"] = about.headers["WWW-Authenticate"]
    return made


def no_method(allowed: str) -> Response:
    made = _refused(405, "method", "Method Not Allowed.")
    made.headers["Allow"] = allowed
    return made


def _refused(status: int, code: str, sentence: str) -> Response:
    return answer({"code": status, "error": code, "description": sentence}, status)


def listed(listing: Listing, clock: Iterator[int]) -> Generator[bytes, None, None]:
    """A list as it comes out of the catalog. ``clock``: how many nanoseconds have gone by."""
    bucket = bucket_about(listing.bucket)
    files: list[bytes] = []
    prefixes = bytearray()  # as JSON: there may be many
    count = 0
    lead = b'{"bucket":' + _encode(bucket) + b',"files":['  # goes out with the first files: they may fail
    for item in listing.items:
        if isinstance(item, bytes):
            prefixes += b"," + _encode(item.decode(errors="replace"))
            continue
        files.append(_encode(file_about(bucket, item)))
        count += 1
        if len(files) == _AT_ONCE:
            yield lead + b",".join(files)
            files, lead = [], b","
    if files or not count:
        yield lead + b",".join(files)
    rest: dict[str, Any] = {"count": count, "duration": next(clock), "truncated": listing.truncated}
    if prefixes:
        rest["prefixes"] = msgspec.Raw(b"[" + prefixes[1:] + b"]")
    if listing.truncated:
        rest["next_marker"] = listing.next_marker.decode(errors="replace")
    yield b"]," + _encode(rest)[1:]
