"""The routes of blobs as ``/openapi.json`` and ``/docs`` show them.

Requests do not come this far: ``blobs.Apart`` leads them to the same face sooner, for what stands in their paths is not
the framework's to take apart.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from holdfast.blobs.listing import MOST_PREFIX, SORTS
from holdfast.faces.blobs import PREFIX, Face
from holdfast.faces.contract import Responses

_BUCKET = Path(description="Its name: 1 to 63 letters, digits, '.', '_' and '-'.")
_KEY = Path(description="Its key: 1 to 1024 bytes of UTF-8, percent-encoded; slashes may stand as they are.")


def router(face: Face) -> APIRouter:
    """Routes that lead to the face."""
    routes = APIRouter(prefix=PREFIX, tags=["blobs"])

    async def all_buckets(request: Request) -> Response:
        return await face.answered(request, PREFIX)

    async def bucket(request: Request, bucket: str = _BUCKET) -> Response:
        return await face.answered(request, PREFIX)

    async def blob(request: Request, bucket: str = _BUCKET, key: str = _KEY) -> Response:
        return await face.answered(request, PREFIX)

    endpoints: dict[str, Any] = {"": all_buckets, "/{bucket}": bucket, "/{bucket}/{key:path}": blob}
    for path, methods in _ROUTES.items():
        for method, (summary, responses, more) in methods.items():
            status = min(int(code) for code in responses)
            routes.add_api_route(
                path, endpoints[path], methods=[method], summary=summary, status_code=status, openapi_extra=more,
                responses=responses, response_class=Response,
            )  # fmt: skip
    return routes


# -- what is answered --------------------------------------------------------------------------------------------------


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


_TEXT, _NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}
_LIMIT = {"type": ["integer", "null"], "minimum": 0}
_OWNER = _object("email", email=_object("Address Name", Address=_TEXT, Name=_TEXT))
_SHOWN = {"name": _TEXT, "owner": _OWNER}
_ABOUT = _object("name owner", **_SHOWN)
_QUOTA = _object("", bytes=_LIMIT, objects=_LIMIT) | {"required": []}
_DETAILS = _object(
    "name owner filesystem quota bytes objects",
    **_SHOWN, filesystem=_TEXT, quota=_QUOTA, bytes=_NUMBER, objects=_NUMBER,
)  # fmt: skip
_FILE = _object(
    "bucket key lastModified sha1 size",
    bucket=_ABOUT, key=_TEXT, lastModified={"type": "string", "format": "date-time"}, sha1=_TEXT, size=_NUMBER,
)  # fmt: skip
_ACTED = _object("duration file", duration=_NUMBER, file=_FILE)
_LIST = _object(
    "bucket count duration files truncated",
    bucket=_ABOUT, count=_NUMBER, duration=_NUMBER, truncated={"type": "boolean"}, next_marker=_TEXT,
    files={"type": "array", "items": _FILE}, prefixes={"type": "array", "items": _TEXT},
)  # fmt: skip
_BUCKETS = _object(
    "count duration buckets", count=_NUMBER, duration=_NUMBER, buckets={"type": "array", "items": _ABOUT}
)
_ACTS = {"type": "array", "items": {"type": "string", "enum": ["read", "write", "list", "admin"]}}
_GRANTS = {"type": "object", "additionalProperties": _ACTS}
_ONE = _object("bucket", bucket=_DETAILS, allowed=_ACTS)
_SNAPSHOT = _object("snapshot objects bytes", snapshot=_TEXT, objects=_NUMBER, bytes=_NUMBER)
_SNAPSHOTS = _object("count snapshots", count=_NUMBER, snapshots={"type": "array", "items": _SNAPSHOT})
_ERROR = _object("code error description", code={"type": "integer"}, error=_TEXT, description=_TEXT)
_POLICY = {
    "type": "object",
    "properties": {
        "name": _TEXT, "owner": _OWNER, "filesystem": {"enum": ["disk", "object", "repository"]}, "quota": _QUOTA
    },
}  # fmt: skip
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _json(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}}}


def _said(description: str, *schemas: dict[str, Any]) -> dict[str, Any]:
    return {"description": description} | ({"content": _json(*schemas)} if schemas else {})


def _refused(*statuses: int) -> Responses:
    """Errors as the document of blobs has them, and what can be said to whoever asks for anything."""
    return {status: _said("An error.", _ERROR) for status in sorted({400, 401, 403, 404, 429, 503, *statuses})}


def _silent(responses: Responses) -> Responses:
    """The same without a body."""
    return {status: {"description": about["description"]} for status, about in responses.items()}


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema or _TEXT}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": _TEXT}


_LISTING = [
    _query("prefix", "Only keys that begin so.", type="string", maxLength=MOST_PREFIX),
    _query("sort", "The order; of the same time by key. Left out: any.", type="string", enum=list(SORTS)),
    _query("limit", "So many at most. Left out: all.", type="integer", minimum=0),
    _query("marker", "Go on behind the key, or prefix, that came as `next_marker`.", type="string"),
    _query("delimiter", "Give what comes before it, and is in several keys, once, in `prefixes`.", type="string"),
    _query("grants", "Instead: what others may do in it.", type="string", maxLength=0),
    _query("quota", "Instead: what it holds, and may hold.", type="string", maxLength=0),
    _query("snapshots", "Instead: the snapshots of it.", type="string", maxLength=0),
]
_WHICH = _LISTING[-3:-1]
_SNAPPED = [
    _query("snapshots", "Make a snapshot of it.", type="string", maxLength=0),
    _query("restore", "Have it be again what it was in that snapshot.", type="string"),
]
_MATCH = _header("If-Match", "It must have one of these ETags; `*`: it must be there.")
_NONE = _header("If-None-Match", "It must have none of these ETags; `*`: it must not be there.")
_WANTS = [_MATCH, _NONE, _header("If-Modified-Since", "304 if it was not."), _header("Range", "`bytes=FIRST-LAST`")]
_BODY = {"content": _BINARY, "description": "The blob.", "required": True}
_MAY: Responses = {204: {"description": "`Allow` names what can be done."}, **_refused()}
_GIVEN: Responses = {
    200: {"description": "The blob.", "content": _BINARY}, 206: {"description": "The range.", "content": _BINARY},
    304: {"description": "You have it."}, **_refused(412, 416, 500),
}  # fmt: skip
_LISTED: Responses = {
    200: _said("The list; or grants, the bucket itself, or snapshots.", _LIST, _ONE, _SNAPSHOTS, _GRANTS), **_refused()
}  # fmt: skip
_TAKEN: Responses = {
    200: _said("It is as it was.", _SNAPSHOT), 201: _said("The snapshot.", _SNAPSHOT),
    **_refused(405, 409, 412, 500, 502, 507),
}  # fmt: skip
_PUT: Responses = {201: _said("It is stored.", _ACTED), **_refused(408, 412, 413, 500, 502, 507)}
_GOT: Responses = {200: _said("The buckets in which you may do something.", _BUCKETS), **_refused()}
_POSTED: dict[str, Any] = {"parameters": [_MATCH, _NONE], "requestBody": _BODY}
_MADE: Responses = {
    200: _said("With `grants` or `quota`: it is so now.", _ONE, _GRANTS), 201: _said("It is there.", _ONE),
    **_refused(408, 409, 413),
}  # fmt: skip

_ROUTES: dict[str, dict[str, tuple[str, Responses, dict[str, Any]]]] = {
    "": {
        "GET": ("The buckets", _GOT, {}),
        "HEAD": ("Whether one may see them", _silent(_GOT), {}),
        "OPTIONS": ("What can be done", _MAY, {}),
    },
    "/{bucket}": {
        "GET": ("List the blobs of a bucket", _LISTED, {"parameters": _LISTING}),
        "HEAD": ("Whether it is there", _silent(_LISTED), {"parameters": _LISTING}),
        "PUT": (
            "Make a bucket; or say what others may, or its quota", _MADE,
            {"parameters": _WHICH, "requestBody": {"content": _json(_POLICY, _GRANTS, _QUOTA)}},
        ),
        "POST": ("Make a snapshot of a bucket, or go back to one", _TAKEN, {"parameters": _SNAPPED}),
        "DELETE": ("Delete an empty bucket", {200: _said("It is gone.", _object("bucket", bucket=_ABOUT)),
                                             **_refused(409)}, {}),
        "OPTIONS": ("What can be done", _MAY, {}),
    },
    "/{bucket}/{key:path}": {
        "GET": ("Get a blob, or a range of it", _GIVEN, {"parameters": _WANTS}),
        "HEAD": ("What is known of a blob", _silent(_GIVEN), {"parameters": _WANTS[:3]}),
        "POST": ("Put a blob", _PUT, _POSTED),
        "PUT": ("Put a blob", _PUT, _POSTED),
        "DELETE": ("Delete a blob", {200: _said("What was deleted.", _ACTED), **_refused(412)},
                   {"parameters": [_MATCH]}),
        "OPTIONS": ("What can be done", _MAY, {}),
    },
}  # fmt: skip
