"""Blobs over HTTP: ``/BUCKET`` and ``/BUCKET/KEY``, at the root of a listener of their own and under ``/blobs``.

A path is percent-decoded exactly once, and is nothing but a bucket's name and a key. What is given back is never taken
for a page: it is bytes, to be saved. Browsers of other sites get no further than the configured origins let them.

What is promised: a body is never held as a whole unless it is small; who sends or takes slowly holds up nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from functools import partial
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from holdfast.accounts.directory import Identity
from holdfast.blobs.blobs import Blobs, Coming
from holdfast.blobs.buckets import Buckets, Policy, Quota
from holdfast.blobs.conditions import ANY, Conditions, tags
from holdfast.blobs.filesystems import SMALL, Content
from holdfast.blobs.listing import Lister, Query
from holdfast.blobs.names import no_bucket
from holdfast.blobs.snapshots import BucketSnapshots
from holdfast.catalog.blobs import Blob, Bucket
from holdfast.errors import BrokenOff, HoldfastError, ObjectMissing, StorageUnavailable, UsageError
from holdfast.faces.blob_json import (
    answer,
    bucket_about,
    bucket_details,
    file_about,
    listed,
    no_method,
    refusal,
    when,
)
from holdfast.faces.bodies import Outgoing, announced, fed, gone, limits_of, small, wanted_range
from holdfast.faces.gate import Gate

T = TypeVar("T")

PREFIX = "/blobs"
_BYTES = "application/octet-stream"
_MOST_JSON = 1 << 20
_LOOKS = 4  # so often a blob that is put again all the time is looked for
_SAFE = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox; default-src 'none'"}
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
_EXPOSED = ("ETag", "Last-Modified", "Content-Range", "Accept-Ranges", "Content-Length", "Location")

Act = Callable[[Request, Identity, str, str], Awaitable[Response]]


@dataclass(frozen=True)
class BlobRooms:
    """What the face stands on. ``origins``: pages of these sites may use it. ``port``: of the listener that is for
    blobs alone; None: there is none. ``anybody``: as whom those act who have no log-in; None: as nobody.
    """

    blobs: Blobs
    buckets: Buckets
    lister: Lister
    snapshots: BucketSnapshots
    origins: tuple[str, ...] = ()
    port: int | None = None
    anybody: Identity | None = None


class Apart:
    """Leads to blobs what is theirs: everything that comes to their own port, and what begins with ``/blobs``."""

    def __init__(self, app: ASGIApp, rooms: BlobRooms, face: Face) -> None:
        self._app, self._port = app, rooms.port
        self._root, self._below = face.mounted("", rooms.origins), face.mounted(PREFIX, rooms.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            if self._port is not None and (scope.get("server") or ("", 0))[1] == self._port:
                app = self._root
            elif scope["path"] == PREFIX or scope["path"].startswith(f"{PREFIX}/"):
                app = self._below
        await app(scope, receive, send)


class Face:
    """Answers what is asked of blobs; ``mounted`` makes an application of it."""

    def __init__(self, rooms: BlobRooms, gate: Gate) -> None:
        self._blobs, self._buckets, self._lister = rooms.blobs, rooms.buckets, rooms.lister
        self._snapshots, self._gate = rooms.snapshots, gate

    def mounted(self, at: str, origins: Sequence[str]) -> ASGIApp:
        """The application; ``at``: what its paths begin with. ``origins``: pages of these sites may use it."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["holdfast.route"] = f"{at}/{{bucket}}/{{key}}"
            found = await self.answered(Request(scope, receive), at)
            await found(scope, receive, send)

        if not origins:
            return app
        return CORSMiddleware(
            app, allow_origins=list(origins), allow_methods=list(_METHODS), allow_headers=["*"],
            expose_headers=list(_EXPOSED), allow_credentials=False, max_age=600,
        )  # fmt: skip

    async def answered(self, request: Request, at: str) -> Response:
        """The answer, also to what cannot be done."""
        try:
            return await self.answer(request, at)
        except HoldfastError as e:
            return refusal(e)

    async def answer(self, request: Request, at: str) -> Response:
        bucket, key = _path(request, at)
        if key and not bucket:
            raise no_bucket(bucket)
        acts = self._acts(request, bucket, key)
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": ", ".join([*acts, "OPTIONS"]), "Accept-Ranges": "bytes"})
        act = acts.get(request.method)
        if act is None:
            return no_method(", ".join([*acts, "OPTIONS"]))
        reads = request.method in ("GET", "HEAD")
        by = await self._gate.identity(request, open_to_all="blobs")
        by.demand("blobs:read" if reads else "blobs:write")
        return await act(request, by, bucket, key)

    def _acts(self, request: Request, bucket: str, key: str) -> dict[str, Act]:
        """What can be done there, by method."""
        if not bucket:
            return {"GET": self._list_buckets, "HEAD": self._list_buckets}
        if key:
            return {"GET": self._get, "HEAD": self._get, "POST": self._post, "PUT": self._post, "DELETE": self._delete}
        if "grants" in request.query_params:
            return {"GET": self._grants, "HEAD": self._grants, "PUT": self._put_grants}
        if "quota" in request.query_params:
            return {"GET": self._about, "HEAD": self._about, "PUT": self._put_quota}
        if "snapshots" in request.query_params:
            return {"GET": self._list_snapshots, "HEAD": self._list_snapshots, "POST": self._make_snapshot}
        if "restore" in request.query_params:
            return {"POST": self._restore}
        return {"GET": self._list, "HEAD": self._list, "PUT": self._create, "DELETE": self._delete_bucket}

    # -- buckets -----------------------------------------------------------------------------------------------------

    async def _list_buckets(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        clock = _clock()
        found = await run_sync(self._buckets.listed, by)
        shown = [bucket_about(one) for one in found]
        return answer({"count": len(shown), "duration": next(clock), "buckets": shown})

    async def _create(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        policy = await _json(request, by, Policy)
        if policy.name and policy.name != bucket:
            raise UsageError("The name in the body is not the one in the address.", "Leave it out.")
        made = await run_sync(self._buckets.create, by, bucket, policy)
        return answer({"bucket": bucket_details(made)}, 201)

    async def _about(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        seen = await run_sync(self._buckets.about, by, bucket)
        return answer({"bucket": bucket_details(seen.bucket), "allowed": sorted(seen.acts)})

    async def _put_quota(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        quota = await _json(request, by, Quota)
        return answer({"bucket": bucket_details(await run_sync(self._buckets.change, by, bucket, quota))})

    async def _delete_bucket(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        return answer({"bucket": bucket_about(await run_sync(self._buckets.delete, by, bucket))})

    async def _grants(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        return answer(dict(await run_sync(self._buckets.grants, by, bucket)))

    async def _put_grants(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        granted = await _json(request, by, dict[str, list[str]])
        return answer(dict(await run_sync(self._buckets.grant, by, bucket, granted)))

    async def _list(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        clock, query, limits = _clock(), _query(request), limits_of(request)
        await limits.downloads.take(by.account)
        over = partial(limits.downloads.give_back, by.account)
        try:
            listing = await run_sync(self._lister.list, by, bucket, query, limiter=limits.downloading)
        except BaseException:
            over()
            raise
        body = await Outgoing(listed(listing, clock), limits.downloading, over).begin()
        return body.answer(200, {"Cache-Control": "no-store"}, "application/json")

    # -- a bucket as a snapshot ----------------------------------------------------------------------------------------

    async def _list_snapshots(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        found = await run_sync(self._snapshots.listed, by, bucket, limiter=limits_of(request).downloading)
        shown = [
            {"snapshot": one.id, "time": when(one.snapshot.time_ns), "objects": one.snapshot.totals.files,
             "bytes": one.snapshot.totals.bytes_total}
            for one in found
        ]  # fmt: skip
        return answer({"count": len(shown), "snapshots": shown})

    async def _make_snapshot(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        limits = limits_of(request)
        async with limits.documents.turn(by.account):
            done = await run_sync(self._snapshots.make, by, bucket, limiter=limits.uploading)
        return answer({"snapshot": done.snapshot, "objects": done.objects, "bytes": done.bytes}, 201)

    async def _restore(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        limits, snapshot = limits_of(request), request.query_params["restore"]
        async with limits.documents.turn(by.account):
            done = await run_sync(self._snapshots.restore, by, bucket, snapshot, limiter=limits.uploading)
        return answer(
            {"snapshot": done.snapshot, "objects": done.objects, "bytes": done.bytes, "unchanged": done.unchanged}
        )

    # -- blobs -------------------------------------------------------------------------------------------------------

    async def _post(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        clock, headers, size = _clock(), request.headers, announced(request)
        if "content-range" in headers:
            raise UsageError("A blob is put whole.", "Leave Content-Range out.")
        conditions = Conditions(tags(headers.get("if-match")), tags(headers.get("if-none-match")))
        begin = partial(self._blobs.receive, by, bucket, key, size, conditions)
        if size is not None and size <= SMALL:
            data = await small(request, SMALL, by.account)
            if len(data) != size:
                raise BrokenOff("The body ended before all of it had come.")
            coming = await self._put_small(begin, data, request)
        else:
            coming = await self._put_large(begin, request, by)
        if coming.blob is None:
            raise StorageUnavailable("The blob was not noted.", "Put it again.")
        about = file_about(bucket_about(coming.bucket), coming.blob)
        made = answer({"duration": next(clock), "file": about}, 201)
        made.headers["ETag"] = f'"{coming.blob.sha1}"'
        return made

    async def _put_small(self, begin: Callable[[], Coming], data: bytes, request: Request) -> Coming:
        def take() -> tuple[Coming, Content, str]:
            coming = begin()
            try:
                return coming, self._blobs.keep(coming, data), hashlib.sha1(data, usedforsecurity=False).hexdigest()
            except BaseException:
                self._blobs.give_up(coming)
                raise

        coming, content, sha1 = await run_sync(take, limiter=limits_of(request).uploading)
        await _wait(self._blobs.commit(coming, content, sha1))
        return coming

    async def _put_large(self, begin: Callable[[], Coming], request: Request, by: Identity) -> Coming:
        async with limits_of(request).uploads.turn(by.account):
            coming = await run_sync(begin)
            draft = self._blobs.begin(coming)
            try:
                if broken := await fed(request, draft, coming.most):
                    raise broken
                content, sha1 = await asyncio.wrap_future(draft.ended())
                await _wait(self._blobs.commit(coming, content, sha1))
            except BaseException as e:  # noqa: BLE001 - it goes on, in the words of who asked
                draft.abandon().add_done_callback(lambda _: self._blobs.give_up(coming))
                await gone(draft)  # until then it counts
                raise self._blobs.meant(coming, e) from None
        return coming

    async def _get(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        """One that is put again, or deleted, between being found and being read is looked for again."""
        before, limits = "", limits_of(request)
        for _ in range(_LOOKS):
            found, blob, given = await run_sync(self._look, request, by, bucket, key, limiter=limits.downloading)
            if given is not None:
                return given
            if blob.place == before:
                raise self._blobs.lost(found, blob)
            before = blob.place
            try:
                return await self._stream(request, by, found, blob)
            except ObjectMissing:
                continue
        raise StorageUnavailable(f"The blob {key!r} is put again all the time.", "Try again.")

    def _look(self, request: Request, by: Identity, bucket: str, key: str) -> tuple[Bucket, Blob, Response | None]:
        """The blob, and in the same breath the answer, if that is small and its content is there."""
        found, blob = self._blobs.find(by, bucket, key)
        status, headers, start, stop = _wanted(request, blob)
        if request.method == "HEAD" or status == 304:
            return found, blob, Response(status_code=status, headers=headers, media_type=_BYTES)
        if stop - start > SMALL:
            return found, blob, None
        try:
            data = b"".join(self._blobs.pieces(found, blob, start, stop))
        except ObjectMissing:
            return found, blob, None
        return found, blob, Response(data, status, headers, _BYTES)

    async def _stream(self, request: Request, by: Identity, bucket: Bucket, blob: Blob) -> Response:
        status, headers, start, stop = _wanted(request, blob)
        limits, source = limits_of(request), self._blobs.pieces(bucket, blob, start, stop)
        await limits.downloads.take(by.account)
        body = await Outgoing(source, limits.downloading, partial(limits.downloads.give_back, by.account)).begin()
        return body.answer(status, headers, _BYTES)

    async def _delete(self, request: Request, by: Identity, bucket: str, key: str) -> Response:
        clock, conditions = _clock(), Conditions(tags(request.headers.get("if-match")))
        found, blob = await run_sync(
            self._blobs.delete, by, bucket, key, conditions, limiter=limits_of(request).uploading
        )
        return answer({"duration": next(clock), "file": file_about(bucket_about(found), blob)})


def _path(request: Request, at: str) -> tuple[str, str]:
    """Bucket and key, decoded once; empty where the path does not name one."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    try:
        path = unquote_to_bytes(raw.partition(b"?")[0]).decode()
    except UnicodeDecodeError:
        raise UsageError("The address is no UTF-8.", "Percent-encode it as UTF-8.") from None
    bucket, _, key = path.removeprefix(at).removeprefix("/").partition("/")
    return bucket, key


def _query(request: Request) -> Query:
    """What a list is to be. UsageError for a limit that is none."""
    try:
        given = dict(parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError:
        raise UsageError("What is asked is no UTF-8.", "Percent-encode it as UTF-8.") from None
    limit, sort = given.get("limit"), given.get("sort", "")
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) <= 18):
        raise UsageError(f"The limit {limit!r} is no number from 0.", "Leave it out for all.")
    sort = "+" + sort[1:] if sort.startswith(" ") else sort  # a plus in an address means a space
    return Query(
        prefix=given.get("prefix", ""), sort=sort, limit=None if limit is None else int(limit),
        marker=given.get("marker", ""), delimiter=given.get("delimiter", ""),
    )  # fmt: skip


def _wanted(request: Request, blob: Blob) -> tuple[int, dict[str, str], int, int]:
    """Status, headers, and which bytes."""
    asked, tag = request.headers, f'"{blob.sha1}"'
    headers = _SAFE | {
        "ETag": tag, "Last-Modified": formatdate(blob.modified_ns // 1_000_000_000, usegmt=True),
        "Accept-Ranges": "bytes", "Cache-Control": "no-cache", "Content-Disposition": "attachment",
    }  # fmt: skip
    Conditions(match=tags(asked.get("if-match"))).demand(blob)
    if _is_known(asked.get("if-none-match"), asked.get("if-modified-since"), blob):
        return 304, headers, 0, 0
    wants_range = request.method == "GET" and asked.get("if-range", tag) == tag
    span = wanted_range(asked.get("range") if wants_range else None, blob.size)
    start, stop = (span.start, span.stop) if span else (0, blob.size)
    headers["Content-Length"] = str(stop - start)
    if span is None:
        return 200, headers, start, stop
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return 206, headers, start, stop


def _is_known(none_match: str | None, modified_since: str | None, blob: Blob) -> bool:
    """Whether the client has it already."""
    if none_match is not None:
        known = tags(none_match) or frozenset()
        return ANY in known or blob.sha1 in known
    if modified_since is None:
        return False
    try:
        return blob.modified_ns // 1_000_000_000 <= parsedate_to_datetime(modified_since).timestamp()
    except (ValueError, OverflowError):
        return False  # as RFC 9110 has it for what is no date


async def _json(request: Request, by: Identity, kind: type[T]) -> T:
    """A short JSON body; an empty one is ``{}``."""
    data = await small(request, _MOST_JSON, by.account)
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.MsgspecError as e:
        raise UsageError(f"The body cannot be understood: {e}.") from None


async def _wait(future: Future[None]) -> None:
    await asyncio.wrap_future(future)


def _clock() -> Iterator[int]:
    """How many nanoseconds have gone by since it was made, each time it is asked."""

    def gone_by(begun: int) -> Iterator[int]:
        while True:
            yield time.perf_counter_ns() - begun

    return gone_by(time.perf_counter_ns())
