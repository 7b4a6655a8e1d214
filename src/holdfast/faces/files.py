"""``/files/HASH``: files by their hash, whole, in parts, by range, and by the resumable-upload draft of the IETF.

The draft (draft-ietf-httpbis-resumable-upload): PUT with ``Upload-Complete`` begins, HEAD tells ``Upload-Offset``,
PATCH appends, DELETE gives up (here a whole file, too). What came before a connection broke is kept, and HEAD tells how
much it is.
"""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import Any

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from holdfast.accounts.directory import Identity
from holdfast.errors import BrokenOff, Contradiction, HoldfastError, NoContent, TooLarge, UsageError
from holdfast.faces.bodies import (
    Outgoing,
    Span,
    announced,
    content_range,
    fed,
    gone,
    limits_of,
    small,
    wanted_range,
)
from holdfast.faces.gate import Gate
from holdfast.faces.problems import Problem, problem_of, problems_of
from holdfast.manifests.files import UNKNOWN, Files, State, parse_hash, quota_full
from holdfast.manifests.removing import Remover
from holdfast.shelf.uploads import hasher_of

_SMALL = 1 << 20  # a body up to this size is one chunk: it needs no thread of its own
_HASHED_AT_ONCE = 128 << 10  # up to this size hashing is quicker than having a thread do it
_encode = msgspec.json.Encoder().encode
_PART_TYPE = "application/partial-upload"


def router(files: Files, remover: Remover, gate: Gate) -> APIRouter:
    """The routes of ``/files``."""
    routes, face = APIRouter(prefix="/files", tags=["files"]), Face(files)
    reads, writes = gate.needs("files:read"), gate.needs("files:write")
    called = Path(json_schema_extra={"pattern": "^([0-9A-Fa-f]{64}|[0-9A-Fa-f]{40})$"}, description="Its hash.")

    @routes.put("/{hash}", summary="Put a file, or a part of one", **_documents(_PUT))
    async def put(request: Request, hash: str = called, by: Identity = Depends(writes)) -> Response:  # noqa: A002
        return await face.put(request, by, hash)

    @routes.patch("/{hash}", summary="Append to a resumable upload", **_documents(_PATCH))
    async def patch(request: Request, hash: str = called, by: Identity = Depends(writes)) -> Response:  # noqa: A002
        name, headers = parse_hash(hash), request.headers
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _PART_TYPE:
            return Problem(415, "media-type", f"What is appended must be of the type {_PART_TYPE}.")
        offset = headers.get("upload-offset", "")
        if not (offset.isascii() and offset.isdigit() and len(offset) <= 18):
            raise UsageError("Upload-Offset must say where the body belongs.")
        return await face.append(request, by, name, int(offset), _boolean(headers.get("upload-complete", "")))

    @routes.delete("/{hash}", summary="Give up a file", status_code=204, **_documents(_DELETE))
    async def delete(hash: str = called, by: Identity = Depends(writes)) -> Response:  # noqa: A002
        await run_sync(remover.forget_file, by, parse_hash(hash))
        return Response(status_code=204)

    @routes.get("/{hash}", summary="Get a file, or a range of it", **_documents(_GET))
    async def get(request: Request, hash: str = called, by: Identity = Depends(reads)) -> Response:  # noqa: A002
        return await face.get(request, by, parse_hash(hash))

    @routes.head("/{hash}", summary="What is here of a file", **_documents(_HEAD))
    async def head(hash: str = called, by: Identity = Depends(reads)) -> Response:  # noqa: A002
        return await face.head(by, parse_hash(hash))

    @routes.options("/{hash}", summary="What can be done", status_code=204, **_documents({}))
    async def options(hash: str = called) -> Response:  # noqa: A002
        return _options()

    @routes.options("", summary="What can be done", status_code=204, **_documents({}))
    async def options_of_all() -> Response:
        return _options()

    return routes


class Shortcut:
    """The way that is walked most, ``PUT /files/HASH``, without the framework's layers, which take three times as long
    as all the rest of it. It answers what the route would, which stays for ``/openapi.json``.
    """

    def __init__(self, app: ASGIApp, files: Files, gate: Gate) -> None:
        self._app, self._face, self._needs = app, Face(files), gate.needs("files:write")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        hash_ = scope["path"][7:] if scope["type"] == "http" and scope["method"] == "PUT" else ""
        if not hash_ or "/" in hash_ or not scope["path"].startswith("/files/"):
            await self._app(scope, receive, send)
            return
        scope["holdfast.route"] = "/files/{hash}"
        request = Request(scope, receive)
        try:
            answer = await self._face.put(request, await self._needs(request), hash_)
        except HoldfastError as e:
            answer = problem_of(e)
        await answer(scope, receive, send)


def _options() -> Response:
    return Response(
        status_code=204, headers={"Accept-Ranges": "bytes", "Allow": "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"}
    )


class Face:
    """What the routes do."""

    def __init__(self, files: Files) -> None:
        self._files = files

    async def put(self, request: Request, by: Identity, hash_: str) -> Response:
        """A whole file, a part by Content-Range, or the beginning of a resumable upload."""
        name, headers = parse_hash(hash_), request.headers
        if (text := headers.get("content-range")) is not None:
            return await self.put_part(request, by, name, content_range(text))
        if (complete := headers.get("upload-complete")) is not None:
            return await self.append(request, by, name, 0, _boolean(complete))
        return await self.put_whole(request, by, name)

    async def put_whole(self, request: Request, by: Identity, hash_: str) -> Response:
        size = announced(request)
        if size is None or size > _SMALL:
            async with limits_of(request).uploads.turn(by.account):
                return await self._put_large(request, by, hash_, size)
        data = await small(request, _SMALL, by.account)
        hasher = hasher_of(hash_)
        if len(data) <= _HASHED_AT_ONCE:
            hasher.update(data)
        else:
            await run_sync(hasher.update, data)
        future, arrival = self._files.put(by, hash_, data, hasher.hexdigest())
        await asyncio.wrap_future(future)
        return _whole(hash_, len(data), 201 if arrival.created else 200)

    async def _put_large(self, request: Request, by: Identity, hash_: str, size: int | None) -> Response:
        known = await run_sync(self._files.state, by, hash_)
        most = self._files.most_bytes if known.is_available else await run_sync(self._files.admit, by, size)
        upload = self._files.receive(hash_, keep=not known.is_available)
        if broken := await fed(request, upload, most):
            await gone(upload)
            raise self._meant(broken, most)
        content, actual = await asyncio.wrap_future(upload.ended())
        if known.is_available and actual == hash_:
            await run_sync(self._files.keep, by, hash_)
            return _whole(hash_, content.size, 200)
        future, arrival = self._files.put(by, hash_, content, actual)
        await asyncio.wrap_future(future)
        return _whole(hash_, content.size, 201 if arrival.created else 200)

    async def put_part(self, request: Request, by: Identity, hash_: str, span: Span) -> Response:
        """A part by Content-Range. Its body must have just that many bytes."""
        async with limits_of(request).uploads.turn(by.account):
            return await self._put_part(request, by, hash_, span)

    async def _put_part(self, request: Request, by: Identity, hash_: str, span: Span) -> Response:
        await run_sync(self._files.admit, by, span.stop - span.start, span.total)
        known = await run_sync(self._files.demand_room, by, hash_, span.total)
        if (size := announced(request)) not in (None, span.stop - span.start):
            raise UsageError(f"Content-Range names {span.stop - span.start} bytes; the body has {size}.")
        upload = self._files.receive(None, keep=not known.is_available)
        if broken := await fed(request, upload, span.stop - span.start):
            await gone(upload)
            raise broken
        content, _ = await asyncio.wrap_future(upload.ended())
        if content.size != span.stop - span.start:
            raise BrokenOff(f"Content-Range names {span.stop - span.start} bytes; {content.size} came.")
        if not known.is_available:
            await asyncio.wrap_future(self._files.put_part(by, hash_, span.start, span.total, content))
            known = await self._finish(request, by, hash_)
            return _answer(known, 201 if known.is_available else 202)
        await run_sync(self._files.keep, by, hash_)
        return _answer(known, 200)

    async def append(self, request: Request, by: Identity, hash_: str, offset: int, complete: bool) -> Response:
        """A piece of a resumable upload. What came is kept, also when the connection breaks."""
        async with limits_of(request).uploads.turn(by.account):
            return await self._append(request, by, hash_, offset, complete)

    async def _append(self, request: Request, by: Identity, hash_: str, offset: int, complete: bool) -> Response:
        known = await run_sync(self._files.state, by, hash_)
        if known.is_available:
            await run_sync(self._files.keep, by, hash_)
            return Problem(400, "completed-upload", "The upload is complete already.", type=_COMPLETED)
        if offset != known.leading or len(known.ranges) > 1:
            return _mismatch(known, offset)
        size, length = announced(request), _length(request)
        total = length if length is not None else offset + size if complete and size is not None else UNKNOWN
        room = await run_sync(self._files.admit, by, size, None if total == UNKNOWN else total)
        if total != UNKNOWN:
            await run_sync(self._files.demand_room, by, hash_, total)
        upload = self._files.receive(None)
        most = room if total == UNKNOWN else min(room, total - offset)
        broken = await fed(request, upload, most)
        content, _ = await asyncio.wrap_future(upload.ended())
        if isinstance(broken, BrokenOff) or broken is None:
            ended = complete and broken is None
            total = offset + content.size if ended else total
            if content.size or ended:
                await asyncio.wrap_future(self._files.put_part(by, hash_, offset, total, content))
            known = await self._finish(request, by, hash_)
        if broken:
            raise self._meant(broken, room) if most == room else broken
        answer = _answer(known, 201 if known.is_available else 202)
        answer.headers["Upload-Offset"] = str(known.size if known.is_available else known.leading)
        answer.headers["Upload-Complete"] = "?1" if known.is_available else "?0"
        answer.headers["Location"] = f"/files/{hash_}"
        return answer

    def _meant(self, broken: Exception, room: int) -> Exception:
        """What is told of a body that was broken off: too large for its account's room is not too large as such."""
        is_room = isinstance(broken, TooLarge) and room < self._files.most_bytes
        return quota_full() if is_room else broken

    async def _finish(self, request: Request, by: Identity, hash_: str) -> State:
        return await run_sync(self._files.finish, by, hash_, limiter=limits_of(request).uploading)

    async def get(self, request: Request, by: Identity, hash_: str) -> Response:
        file = await run_sync(self._files.file, by, hash_)
        headers = _facts(hash_)
        if hash_ in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        asked = request.headers.get("range")
        if (only_if := request.headers.get("if-range")) and hash_ not in only_if:
            asked = None
        span = wanted_range(asked, file.size)
        start, stop = (span.start, span.stop) if span else (0, file.size)
        headers["Content-Length"] = str(stop - start)
        if span:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        limits = limits_of(request)
        await limits.downloads.take(by.account)
        pieces, over = self._files.pieces(file, start, stop), partial(limits.downloads.give_back, by.account)
        body = await Outgoing(pieces, limits.downloading, over).begin()
        return body.answer(206 if span else 200, headers, "application/octet-stream")

    async def head(self, by: Identity, hash_: str) -> Response:
        known = await run_sync(self._files.state, by, hash_)
        if known.is_available:
            more = {"Content-Length": str(known.size), "Upload-Offset": str(known.size), "Upload-Complete": "?1"}
            return Response(headers=_facts(hash_) | more, media_type="application/octet-stream")
        if not known.ranges:
            raise NoContent(f"You have no file {hash_}.")
        more = {"Upload-Offset": str(known.leading), "Upload-Complete": "?0", "Cache-Control": "no-store"}
        if known.size is not None:
            more["Upload-Length"] = str(known.size)
        return Response(status_code=204, headers=more)


def _facts(hash_: str) -> dict[str, str]:
    """What is said of every file."""
    headers = {"ETag": f'"{hash_}"', "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    if len(hash_) == 64:
        headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(hash_)).decode()}:"
    return headers


def _answer(known: State, status: int) -> Response:
    content: dict[str, Any] = {"hash": known.hash, "size": known.size, "is_available": known.is_available}
    if not known.is_available:
        content["available_bytes"] = [[start, stop - 1] for start, stop in known.ranges]
    return Response(_encode(content), status, media_type="application/json")


def _whole(hash_: str, size: int, status: int) -> Response:
    return _answer(State(hash_, size, True), status)


def _mismatch(known: State, offset: int) -> Response:
    sentence = f"The upload goes on at byte {known.leading}, not {offset}."
    told: dict[str, Any] = {"type": _MISMATCH, "expected-offset": known.leading, "provided-offset": offset}
    answer = Problem(Contradiction.http_status, Contradiction.code, sentence, **told)
    answer.headers["Upload-Offset"], answer.headers["Upload-Complete"] = str(known.leading), "?0"
    return answer


def _boolean(text: str) -> bool:
    """A boolean as structured fields write it."""
    if text.strip() not in ("?0", "?1"):
        raise UsageError("Upload-Complete must be ?0 or ?1.")
    return text.strip() == "?1"


def _length(request: Request) -> int | None:
    text = request.headers.get("upload-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UsageError("Upload-Length must be a number of bytes.")
    return int(text)


# -- what /openapi.json says -------------------------------------------------------------------------------------------

_MISMATCH = "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
_COMPLETED = "https://iana.org/assignments/http-problem-types#completed-upload"
_STATE = {
    "type": "object",
    "required": ["hash", "size", "is_available"],
    "properties": {
        "hash": {"type": "string"},
        "size": {"type": ["integer", "null"]},
        "is_available": {"type": "boolean"},
        "available_bytes": {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
        },
    },
}
_SAID = {"content": {"application/json": {"schema": _STATE}}}
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_PUT: dict[int | str, dict[str, Any]] = {
    200: {"description": "It was there already.", **_SAID}, 201: {"description": "It is stored.", **_SAID},
    202: {"description": "The part is stored; more is needed.", **_SAID},
    **problems_of(400, 408, 409, 413, 422, 503, 507),
}  # fmt: skip
_PATCH: dict[int | str, dict[str, Any]] = _PUT | problems_of(415)
_DELETE: dict[int | str, dict[str, Any]] = {
    204: {"description": "It is given up, or what had come of it."}, **problems_of(400, 404, 409, 503)
}  # fmt: skip
_GET: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", **_BYTES}, 206: {"description": "The range.", **_BYTES},
    304: {"description": "You have it."}, **problems_of(400, 404, 416, 503),
}  # fmt: skip
_HEAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "It is here."}, 204: {"description": "A part of it is here."},
    400: {"description": "It is no hash."}, 404: {"description": "Nothing of it is here."},
}  # fmt: skip
_BODY = {"requestBody": {"required": True, **_BYTES}}


def _documents(responses: dict[int | str, dict[str, Any]]) -> dict[str, Any]:
    """Arguments for a route."""
    takes_a_body = responses in (_PUT, _PATCH)
    return {"responses": responses | problems_of(401, 403, 429), "openapi_extra": _BODY if takes_a_body else None}
