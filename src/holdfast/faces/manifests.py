"""``/manifests``: lists of files as they were backed up, with what is here of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

import msgspec
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response

from holdfast.accounts.directory import Identity
from holdfast.catalog.holdings import Manifest
from holdfast.errors import UsageError
from holdfast.faces.bodies import Limits, Outgoing, limits_of, spooled
from holdfast.faces.gate import Gate
from holdfast.faces.problems import problems_of
from holdfast.manifests.document import demand_name
from holdfast.manifests.manifests import MOST_LISTED, Manifests, about
from holdfast.manifests.removing import Remover

MOST_BYTES = 1 << 30  # of a manifest's JSON: some four million files
_encode = msgspec.json.Encoder().encode


def router(manifests: Manifests, remover: Remover, gate: Gate, folder: str) -> APIRouter:
    """The routes of ``/manifests``. ``folder``: where a body may wait in a file without a name."""
    routes, face = APIRouter(prefix="/manifests", tags=["manifests"]), _Face(manifests, folder)
    reads, writes = gate.needs("files:read"), gate.needs("files:write")
    version = Query(None, ge=1, lt=1 << 63, description="An older version; the newest if left out.")
    form = Query("ranges", pattern="^(ranges|int)$", description="`int`: -1, 0, or the leading bytes that are here.")
    called = Path(min_length=1, max_length=255)

    @routes.post("", summary="Add a manifest", status_code=201, responses=_POST, openapi_extra=_BODY)
    async def post(request: Request, availability: str = form, by: Identity = Depends(writes)) -> Response:
        return await face.post(request, by, availability == "int")

    @routes.get("", summary="The manifests there are", responses=_LIST)
    async def listed(
        limit: int = Query(100, ge=1, le=MOST_LISTED),
        cursor: int | None = Query(None, ge=1, lt=1 << 63, description="`next` of the page before."),
        name: str | None = Query(None, description="With `versions=all`: the versions of this one."),
        versions: str = Query("newest", pattern="^(newest|all)$"),
        by: Identity = Depends(reads),
    ) -> Response:
        if (versions == "all") != (name is not None):
            raise UsageError("`name` and `versions=all` go together.")
        if name is not None:
            demand_name(name)
        return await face.listed(by, limit, cursor, name)

    @routes.get("/name/{name}", summary="One manifest", responses=_GET)
    @routes.get("/{name}", summary="One manifest, by a shorter address", responses=_GET)
    async def by_name(
        request: Request,
        name: str = called,
        version: int | None = version,
        availability: str = form,
        by: Identity = Depends(reads),
    ) -> Response:
        return await face.get(request, by, name, version, availability == "int")

    @routes.delete("/name/{name}", summary="Delete a version, or all", status_code=204, responses=_DELETE)
    async def delete(
        name: str = called,
        version: int | None = Query(None, ge=1, lt=1 << 63, description="The one to delete."),
        versions: str | None = Query(None, pattern="^all$", description="`all`: delete every version."),
        by: Identity = Depends(writes),
    ) -> Response:
        if (version is None) == (versions is None):
            raise UsageError("Say what to delete.", "`?version=N` deletes one version, `?versions=all` every one.")
        await run_sync(remover.delete, by, demand_name(name), version)
        return Response(status_code=204)

    return routes


class _Face:
    """What the routes do."""

    def __init__(self, manifests: Manifests, folder: str) -> None:
        self._manifests, self._folder = manifests, folder

    async def post(self, request: Request, by: Identity, as_number: bool) -> Response:
        limits = limits_of(request)
        await limits.documents.take(by.account)
        over = partial(limits.documents.give_back, by.account)
        try:
            with await spooled(request, MOST_BYTES, self._folder) as source:
                made = await run_sync(self._manifests.receive, by, source, limiter=limits.uploading)
        except BaseException:
            over()
            raise
        answer = await self._rendered(limits, by, made, as_number, 201, over)  # never refused: the manifest is stored
        answer.headers["Location"] = _address(made, with_version=True)
        return answer

    async def listed(self, by: Identity, limit: int, cursor: int | None, name: str | None) -> Response:
        page = await run_sync(lambda: self._manifests.page(by, limit=limit, before=cursor, name=name))
        found = [about(m) | {"url": _address(m, with_version=name is not None)} for m in page.manifests]
        return Response(_encode({"manifests": found, "next": page.next}), media_type="application/json")

    async def get(self, request: Request, by: Identity, name: str, version: int | None, as_number: bool) -> Response:
        found = await run_sync(self._manifests.named, by, demand_name(name), version)
        limits = limits_of(request)
        await limits.downloads.take(by.account)
        over = partial(limits.downloads.give_back, by.account)
        return await self._rendered(limits, by, found, as_number, 200, over)

    async def _rendered(
        self, limits: Limits, by: Identity, manifest: Manifest, as_number: bool, status: int, over: Callable[[], None]
    ) -> Response:
        pieces = self._manifests.render(by, manifest, as_number=as_number)
        body = await Outgoing(pieces, limits.downloading, over).begin()
        return body.answer(status, {"X-Manifest-Version": str(manifest.version)}, "application/json")


def _address(manifest: Manifest, *, with_version: bool) -> str:
    address = f"/manifests/name/{quote(manifest.name, safe='')}"
    return f"{address}?version={manifest.version}" if with_version else address


# -- what /openapi.json says -------------------------------------------------------------------------------------------

_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["hash", "size"],
    "properties": {
        "hash": {"type": "string", "pattern": "^([0-9A-Fa-f]{64}|[0-9A-Fa-f]{40})$"},
        "size": {"type": "integer", "minimum": 0},
        "timestamp": {"type": ["string", "null"]},
        "user": {"type": ["string", "integer"]},
        "group": {"type": ["string", "integer"]},
        "permissions": {"type": ["string", "integer"], "description": "Octal digits."},
        "is_available": {"type": "boolean"},
        "available_bytes": {"type": "array"},
    },
}
_MANIFEST: dict[str, Any] = {
    "type": "object",
    "required": ["name", "files"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 255},
        "timestamp": {"type": ["string", "null"]},
        "base": {"type": "string"},
        "omit": {"type": "array", "items": {"type": "string"}},
        "files": {"type": "object", "additionalProperties": _FILE},
        "directories": {"type": "object", "additionalProperties": {"type": "object"}},
    },
}
_PAGE: dict[str, Any] = {
    "type": "object",
    "required": ["manifests", "next"],
    "properties": {"manifests": {"type": "array", "items": {"type": "object"}}, "next": {"type": ["integer", "null"]}},
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


_BODY = {"requestBody": {"required": True, **_json(_MANIFEST)}}
_KNOWN = problems_of(400, 401, 403, 429)
_POST: dict[int | str, dict[str, Any]] = {
    201: {"description": "It is stored.", **_json(_MANIFEST)}, **_KNOWN, **problems_of(408, 413, 503, 507)
}  # fmt: skip
_LIST: dict[int | str, dict[str, Any]] = {200: {"description": "A page of them.", **_json(_PAGE)}, **_KNOWN}
_GET: dict[int | str, dict[str, Any]] = {
    200: {"description": "The manifest.", **_json(_MANIFEST)}, **_KNOWN, **problems_of(404, 503)
}  # fmt: skip
_DELETE: dict[int | str, dict[str, Any]] = {204: {"description": "It is gone."}, **_KNOWN, **problems_of(404, 503)}
