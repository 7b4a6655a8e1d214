"""``/vault/NAME/``: vaults by restic's REST protocol, versions 1 and 2; ``/vault/OWNER/NAME/`` for somebody else's.

A path is decoded once, by the listener; what comes of it is checked by the room below and never decoded again. What
that protocol's clients know decides some answers: success is 200 and never 201, and what is there already is refused
with 403 (our code ``exists`` tells it apart), which they do not try again.

What is promised: who only begins to send something takes no thread, no room and nothing on the disk; what stores, reads
and deletes takes no thread that others log in by.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from holdfast.accounts.directory import Identity
from holdfast.errors import BrokenOff, Forbidden, ObjectExists, UsageError
from holdfast.faces.bodies import Outgoing, announced, limits_of, pieces, small, wanted_range
from holdfast.faces.gate import Gate
from holdfast.faces.problems import Problem, problems_of
from holdfast.storage.base import CONFIG, FOLDERS, ObjectInfo
from holdfast.storage.local import Opened
from holdfast.vaults.names import Where, parse
from holdfast.vaults.objects import Objects, Upload
from holdfast.vaults.vaults import Vaults

V1, V2 = "application/vnd.x.restic.rest.v1", "application/vnd.x.restic.rest.v2"
_BYTES = "application/octet-stream"
_SMALL = 1 << 20  # a body, or what is read, up to this size is handled at one go
_LISTED_AT_ONCE = 5000
_METHODS = ["GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"]
_encode = msgspec.json.Encoder().encode


def router(vaults: Vaults, objects: Objects, gate: Gate) -> APIRouter:
    """The routes of ``/vault``. All lead to the same place: what a path means only its whole tells."""
    routes, face = APIRouter(prefix="/vault", tags=["vault"]), Face(vaults, objects)
    vault = Path(description="The vault. `OWNER/VAULT` in its place: somebody else's.")
    folder = Path(alias="type", json_schema_extra={"enum": list(FOLDERS)})
    called = Path(alias="id", json_schema_extra={"pattern": "^[0-9a-f]{64}$"}, description="The SHA-256 of its bytes.")
    who = Depends(gate.identity)

    async def root(
        request: Request, vault: str = vault, create: str = Query("", description="`true`"), by: Identity = who
    ) -> Response:
        return await face.answer(request, by)

    async def config(request: Request, vault: str = vault, by: Identity = who) -> Response:
        return await face.answer(request, by)

    async def listing(request: Request, vault: str = vault, kind: str = folder, by: Identity = who) -> Response:
        return await face.answer(request, by)

    async def one(
        request: Request, vault: str = vault, kind: str = folder, id_: str = called, by: Identity = who
    ) -> Response:
        return await face.answer(request, by)

    async def rest(request: Request, by: Identity = who) -> Response:
        return await face.answer(request, by)

    for path, endpoint, summaries in (
        ("/{vault}/", root, {"POST": "Make a vault", "DELETE": "Delete a vault and all that is in it"}),
        ("/{vault}/config", config, {"HEAD": "Whether there is a config", "GET": "The config", "POST": "Put it"}),
        ("/{vault}/{type}/", listing, {"GET": "The objects of a type"}),
        ("/{vault}/{type}/{id}", one, {"HEAD": "An object's size", "GET": "An object, or a range of it",
                                       "POST": "Put an object", "DELETE": "Delete an object"}),
    ):  # fmt: skip
        for method, summary in summaries.items():
            about = _documents(endpoint.__name__, method)
            routes.add_api_route(path, endpoint, methods=[method], summary=summary, **about)
    routes.add_api_route("/{rest:path}", rest, methods=_METHODS, include_in_schema=False)
    return routes


class Face:
    """What the routes do."""

    def __init__(self, vaults: Vaults, objects: Objects) -> None:
        self._vaults, self._objects = vaults, objects

    async def answer(self, request: Request, by: Identity) -> Response:
        where = parse(request.scope["path"].removeprefix("/vault/"), by.username)
        if where.name:
            acts = {"HEAD": self._head, "GET": self._get, "POST": self._post, "DELETE": self._delete}
        elif where.folder:
            acts = {"GET": self._list}
        else:
            acts = {"POST": self._create, "DELETE": self._delete_vault}
        act = acts.get(request.method)
        if act is None:
            answer = Problem(405, "method", "Method Not Allowed.")
            answer.headers["Allow"] = ", ".join(sorted(acts))
            return answer
        return await act(request, by, where)

    # -- the vault -------------------------------------------------------------------------------------------------

    async def _create(self, request: Request, by: Identity, where: Where) -> Response:
        if request.query_params.get("create") != "true":
            raise UsageError("What is to be done with the vault?", "`?create=true` makes it.")
        if where.owner == by.username:
            await run_sync(self._vaults.create, by, where.vault, limiter=limits_of(request).uploading)
        else:
            await run_sync(self._vaults.about, by, where.owner, where.vault)
        return Response()

    async def _delete_vault(self, request: Request, by: Identity, where: Where) -> Response:
        await run_sync(self._vaults.delete_own, by, where.owner, where.vault, limiter=limits_of(request).uploading)
        return Response()

    async def _list(self, request: Request, by: Identity, where: Where) -> Response:
        kind = V2 if V2 in request.headers.get("accept", "") else V1
        limits = limits_of(request)
        found = await run_sync(self._objects.list, by, where, limiter=limits.downloading)
        await limits.downloads.take(by.account)
        over = partial(limits.downloads.give_back, by.account)
        body = await Outgoing(_listing(found, kind == V2), limits.downloading, over).begin()
        return body.answer(200, {"Cache-Control": "no-store", "Vary": "Accept"}, kind)

    # -- objects ---------------------------------------------------------------------------------------------------

    async def _head(self, request: Request, by: Identity, where: Where) -> Response:
        info = await run_sync(self._objects.stat, by, where, limiter=limits_of(request).downloading)
        return Response(headers=_facts(info) | {"Content-Length": str(info.size)}, media_type=_BYTES)

    async def _get(self, request: Request, by: Identity, where: Where) -> Response:
        limits = limits_of(request)
        with ExitStack() as over:
            await limits.downloads.take(by.account)  # who waits in line holds no file open
            over.callback(limits.downloads.give_back, by.account)
            opened = await run_sync(self._objects.open, by, where, limiter=limits.downloading)
            over.callback(opened.close)
            status, headers, start, stop = _wanted(request, opened.info)
            if status == 304:
                return Response(status_code=status, headers=headers)
            if stop - start <= _SMALL:
                data = await run_sync(opened.read, start, stop - start, limiter=limits.downloading)
                return Response(data, status, headers, _BYTES)
            later = over.pop_all()
        body = await Outgoing(_pieces(opened, start, stop), limits.downloading, later.close).begin()
        return body.answer(status, headers, _BYTES)

    async def _post(self, request: Request, by: Identity, where: Where) -> Response:
        size = announced(request)
        try:
            if size is not None and size <= _SMALL:
                await self._receive_small(request, by, where, size)
            else:
                async with limits_of(request).uploads.turn(by.account):
                    await self._receive(request, by, where, size)
        except ObjectExists as e:
            return Problem(Forbidden.http_status, e.code, str(e), e.hint)
        return Response()

    async def _receive_small(self, request: Request, by: Identity, where: Where, size: int) -> None:
        data = await small(request, size, by.account)
        if await request.is_disconnected():
            raise BrokenOff("Whoever sent it has gone.")
        await run_sync(self._store, by, where, data, limiter=limits_of(request).uploading)

    def _store(self, by: Identity, where: Where, data: bytes) -> None:
        upload = self._objects.begin(by, where, len(data))
        try:
            upload.feed(data)
            upload.finish()
        finally:
            upload.abandon()

    async def _receive(self, request: Request, by: Identity, where: Where, size: int | None) -> None:
        threads = limits_of(request).uploading
        upload: Upload | None = None

        async def begin() -> Upload:
            return await run_sync(self._objects.begin, by, where, size, limiter=threads)

        most = await run_sync(self._objects.most, by, where, size, limiter=threads)
        try:
            async with aclosing(pieces(request, most)) as body:
                async for piece in body:
                    upload = upload or await begin()
                    await run_sync(upload.feed, piece, limiter=threads)
            upload = upload or await begin()
            await run_sync(upload.finish, limiter=threads)
        except BaseException:
            if upload is not None:
                await run_sync(upload.abandon, limiter=threads)
            raise

    async def _delete(self, request: Request, by: Identity, where: Where) -> Response:
        await run_sync(self._objects.delete, by, where, limiter=limits_of(request).uploading)
        return Response()


def _wanted(request: Request, info: ObjectInfo) -> tuple[int, dict[str, str], int, int]:
    """The answer's status and headers, and the bytes it has: 304 and none, the range that is asked for, or all.
    OutOfRange when nothing of the range exists.
    """
    headers = _facts(info)
    if (tag := headers.get("ETag")) and tag in request.headers.get("if-none-match", ""):
        return 304, headers, 0, 0
    asked = request.headers.get("range")
    if (only_if := request.headers.get("if-range")) and only_if != tag:
        asked = None
    span = wanted_range(asked, info.size)
    start, stop = (span.start, span.stop) if span else (0, info.size)
    headers["Content-Length"] = str(stop - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{info.size}"
    return (206 if span else 200), headers, start, stop


def _pieces(opened: Opened, start: int, stop: int) -> Generator[bytes, None, None]:
    try:
        for at in range(start, stop, _SMALL):
            yield opened.read(at, min(_SMALL, stop - at))
    finally:
        opened.close()


def _listing(found: Iterator[ObjectInfo], with_sizes: bool) -> Generator[bytes, None, None]:
    """JSON, some thousands at a time."""
    held, before = list[object](), b"["
    for info in found:
        name = info.name.rpartition("/")[2]
        held.append({"name": name, "size": info.size, "stored": info.stored_ns} if with_sizes else name)
        if len(held) == _LISTED_AT_ONCE:
            yield before + _encode(held)[1:-1]
            held, before = [], b","
    yield (before + _encode(held)[1:-1] if held or before == b"[" else b"") + b"]"


def _facts(info: ObjectInfo) -> dict[str, str]:
    """What is said of every object. One that is named by its content never changes."""
    headers = {"Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff", "X-Stored-Ns": str(info.stored_ns)}
    if info.name == CONFIG:
        return headers | {"Cache-Control": "no-cache"}
    tag = info.name.rpartition("/")[2]
    return headers | {"ETag": f'"{tag}"', "Cache-Control": "private, max-age=31536000, immutable"}


# -- what /openapi.json says -------------------------------------------------------------------------------------------

_CONTENT = {"content": {_BYTES: {"schema": {"type": "string", "format": "binary"}}}}
_NAMES = {"type": "array", "items": {"type": "string"}}
_ITEM = {
    "type": "object",
    "required": ["name", "size", "stored"],
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "integer"},
        "stored": {"type": "integer", "description": "When it was stored, in ns."},
    },
}
_LISTS = {"content": {V1: {"schema": _NAMES}, V2: {"schema": {"type": "array", "items": _ITEM}}}}
_KNOWN = problems_of(400, 401, 403, 404, 429, 503)
_DONE = {"description": "It is done."}
_READ: dict[int | str, dict[str, Any]] = {
    200: {"description": "All of it.", **_CONTENT}, 206: {"description": "The range.", **_CONTENT},
    304: {"description": "You have it."}, **problems_of(416, 502),
}  # fmt: skip
_PUT: dict[int | str, dict[str, Any]] = {200: {"description": "It is stored."}, **problems_of(408, 413, 422, 502, 507)}
_SIZE: dict[int | str, dict[str, Any]] = {200: {"description": "It is there.", **_CONTENT}, **problems_of(502)}
_RESPONSES: dict[tuple[str, str], dict[int | str, dict[str, Any]]] = {
    ("root", "POST"): {200: _DONE, **problems_of(507)},
    ("root", "DELETE"): {200: _DONE},
    ("config", "HEAD"): _SIZE, ("config", "GET"): _READ, ("config", "POST"): _PUT,
    ("listing", "GET"): {200: {"description": "All of them, in no order.", **_LISTS}, **problems_of(405, 502)},
    ("one", "HEAD"): _SIZE, ("one", "GET"): _READ, ("one", "POST"): _PUT,
    ("one", "DELETE"): {200: _DONE, **problems_of(502)},
}  # fmt: skip


def _documents(endpoint: str, method: str) -> dict[str, Any]:
    """Arguments for a route."""
    takes_a_body = method == "POST" and endpoint != "root"
    return {
        "response_class": Response,
        "responses": _RESPONSES[endpoint, method] | _KNOWN,
        "openapi_extra": {"requestBody": {"required": True, **_CONTENT}} if takes_a_body else None,
    }
