"""``/docs``: the API for people, made from ``/openapi.json``: one page, without scripts, that needs no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from holdfast.faces.pages import Pages

_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")
_DEEPEST = 4  # levels of a schema that are drawn


@dataclass(frozen=True)
class Operation:
    """One thing one can do. ``parameters``: (name, where, what it is); ``answers``: (status, meaning)."""

    method: str
    path: str
    summary: str
    about: str
    parameters: list[tuple[str, str, str]]
    body: str
    answers: list[tuple[str, str]]


def add_reference(router: APIRouter, pages: Pages, document: Callable[[], dict[str, Any]]) -> None:
    """The page."""

    @router.get("/docs")
    async def reference(request: Request) -> Response:
        described = document()
        return pages.page(
            request, "reference.html", None, groups=_groups(described), about=described["info"]["description"],
            version=described["info"]["version"],
        )  # fmt: skip


def _groups(document: dict[str, Any]) -> list[tuple[str, list[Operation]]]:
    """Operations by their tag, in the order they stand in."""
    found: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if (described := methods.get(method)) is not None:
                tag = (described.get("tags") or ["other"])[0]
                found.setdefault(tag, []).append(_operation(document, method, path, described))
    return list(found.items())


def _operation(document: dict[str, Any], method: str, path: str, described: dict[str, Any]) -> Operation:
    parameters = [
        (p["name"], p["in"], ". ".join(filter(None, [_kind(document, p.get("schema", {})), p.get("description", "")])))
        for p in described.get("parameters", [])
    ]
    answers = [(status, about["description"]) for status, about in sorted(described.get("responses", {}).items())]
    about = described.get("description", "")
    return Operation(
        method.upper(), path, described.get("summary", ""), about, parameters, _body(document, described), answers
    )


def _body(document: dict[str, Any], described: dict[str, Any]) -> str:
    """What is to be sent, drawn as JSON; a kind of content where it is no JSON."""
    content = described.get("requestBody", {}).get("content", {})
    for kind, about in content.items():
        schema = _resolved(document, about.get("schema", {}))
        if kind == "application/octet-stream":
            return "bytes"
        return json.dumps(_drawn(document, schema, _DEEPEST), indent=2, ensure_ascii=False)
    return ""


def _drawn(document: dict[str, Any], schema: dict[str, Any], levels: int) -> Any:
    schema = _resolved(document, schema)
    if levels and schema.get("properties"):
        return {name: _drawn(document, about, levels - 1) for name, about in schema["properties"].items()}
    if levels and isinstance(schema.get("additionalProperties"), dict):
        return {"…": _drawn(document, schema["additionalProperties"], levels - 1)}
    if levels and isinstance(schema.get("items"), dict):
        return [_drawn(document, schema["items"], levels - 1)]
    return _kind(document, schema)


def _kind(document: dict[str, Any], schema: dict[str, Any]) -> str:
    schema = _resolved(document, schema)
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_kind(document, one) for one in schema["anyOf"])
    kind = schema.get("type", "anything")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        schema = document["components"]["schemas"][name]
    return schema
