"""Errors as HTTP answers: ``application/problem+json`` (RFC 9457) with our stable ``code`` and a ``hint``.

What is promised: the status is the one the error tree names; nothing but the error's own sentence and hint is told;
a fault of ours is a 500 that names the request and nothing else.
"""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from holdfast.errors import HoldfastError, NotLoggedIn, OutOfRange, StorageUnavailable, TooManyAttempts, UsageError

CHALLENGES = 'Bearer realm="holdfast", Basic realm="holdfast", charset="UTF-8"'
SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "hint": {"type": "string"},
    },
}
_AGAIN_S = "5"  # after so long it may be worth to ask again
_METHODS = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS")
_encode = msgspec.json.Encoder().encode


class Problem(Response):
    """One problem as an answer."""

    media_type = "application/problem+json"

    def __init__(
        self,
        status: int,
        code: str,
        sentence: str,
        hint: str = "",
        *,
        type: str = "about:blank",  # noqa: A002
        **more: Any,
    ) -> None:
        about = {"type": type, "title": _title(status), "status": status, "detail": sentence, "code": code}
        super().__init__(_encode(about | ({"hint": hint} if hint else {}) | more), status)


def problem_of(error: HoldfastError) -> Problem:
    """The answer to an error of ours."""
    answer = Problem(error.http_status, error.code, str(error), error.hint)
    if isinstance(error, NotLoggedIn):
        answer.headers["WWW-Authenticate"] = CHALLENGES
    if isinstance(error, TooManyAttempts):
        answer.headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, StorageUnavailable):
        answer.headers["Retry-After"] = _AGAIN_S
    if isinstance(error, OutOfRange):
        answer.headers["Content-Range"] = f"bytes */{error.size}"
    return answer


def problems_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses as ``/openapi.json`` describes them."""
    content = {Problem.media_type: {"schema": SCHEMA}}
    return {status: {"description": _title(status), "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Have the app answer every error this way."""

    @app.exception_handler(HoldfastError)
    async def ours(request: Request, error: HoldfastError) -> Problem:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Problem:
        return Problem(UsageError.http_status, UsageError.code, _first_fault(error))

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Problem:
        answer = Problem(error.status_code, _code(error.status_code), f"{_title(error.status_code)}.")
        answer.headers.update(error.headers or {})
        if error.status_code == 405:
            answer.headers["Allow"] = _allowed(request, answer.headers.get("Allow", ""))
        return answer


def fault(request_id: str) -> Problem:
    """The answer to a fault of ours."""
    sentence = "This is a fault in Holdfast."
    return Problem(500, "bug", sentence, f"The server's log tells more under the request id {request_id}.")


def _first_fault(error: RequestValidationError) -> str:
    """The first thing that is wrong, in a sentence: where it stands, and why."""
    found: Mapping[str, Any] = next(iter(error.errors()), {})
    where = ".".join(str(step) for step in found.get("loc", ())[1:]) or "The request"
    reason = str(found.get("msg", "it cannot be understood")).removeprefix("Value error, ").rstrip(".")
    if found.get("type") == "json_invalid":
        return f"The body is not JSON: {found.get('ctx', {}).get('error', reason)}."
    return f"{where}: {reason}."


def _allowed(request: Request, said: str) -> str:
    """All methods of what was asked for; the framework names those of the first route it met there."""
    found = {method.strip() for method in said.split(",")} - {""}
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.scope["path"]):
            found |= {name.upper() for name in operations if name.upper() in _METHODS}
    return ", ".join(sorted(found))


def _title(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _code(status: int) -> str:
    return {404: "no-such-page", 405: "method", 413: "too-large"}.get(status, "http")
