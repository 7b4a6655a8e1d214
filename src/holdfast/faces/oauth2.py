"""``/oauth2``: the endpoints for programs, and the pages where a person allows one.

A program's endpoints answer as OAuth2 says (JSON with ``error`` and ``error_description``), not with problems. The
pages need a session: neither a password nor a token sent with the request allows a program anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from holdfast.accounts.asking import Answer, Asked
from holdfast.accounts.clients import CLIENT_PREFIX, CODE, CREDENTIALS, DEVICE, REFRESH
from holdfast.accounts.oauth import AUTHORIZE, DEVICES, INTROSPECT, REVOKE, TOKEN, VERIFY, Consent, OAuth
from holdfast.errors import AccountError, Forbidden, StorageUnavailable, TooManyAttempts, UsageError
from holdfast.faces.contract import Responses, failing
from holdfast.faces.forms import fields_of_body, fields_of_query
from holdfast.faces.gate import Gate, address_of
from holdfast.faces.pages import Pages, leading_to, to_login
from holdfast.faces.problems import SCHEMA, Problem

_FORM = "application/x-www-form-urlencoded"
_METADATA = "/.well-known/oauth-authorization-server"


class Refusal(BaseModel):
    """As RFC 6749 (5.2) and RFC 8628 (3.5) have it."""

    error: str
    error_description: str = ""


class Granted(BaseModel):
    access_token: str
    token_type: str
    expires_in: int
    scope: str
    refresh_token: str = ""


class DeviceCodes(BaseModel):
    """``interval``: seconds to wait between two questions to the token endpoint."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


class Introspection(BaseModel):
    """Only ``active``, which is false, when the token does not count or is not the asker's."""

    model_config = ConfigDict(extra="allow")

    active: bool


class Nothing(BaseModel):
    """An empty object."""


_REFUSALS: Responses = {
    400: {"model": Refusal, "description": "Refused"},
    401: {"model": Refusal, "description": "The client or its secret is wrong"},
    **failing(StorageUnavailable),
}


def add_oauth2(app: FastAPI, router: APIRouter, gate: Gate, pages: Pages, oauth: OAuth) -> None:
    """Add the endpoints and pages to the app."""
    _for_programs(app, pages, oauth)
    _introspection(app, gate, pages, oauth)
    _metadata(app, pages, oauth)
    _consent(router, pages, oauth)
    _verification(router, pages, oauth)


def _for_programs(app: FastAPI, pages: Pages, oauth: OAuth) -> None:
    tags: list[Any] = ["OAuth2"]

    @app.post(TOKEN, tags=tags, summary="Exchange a grant for an access token", response_model=Granted,
              responses=_REFUSALS, openapi_extra=_form(_TOKEN_FIELDS, "grant_type"))  # fmt: skip
    async def token(request: Request) -> Response:
        return await _answered(request, pages, oauth.token)

    @app.post(DEVICES, tags=tags, summary="Ask for a device code", response_model=DeviceCodes, responses=_REFUSALS,
              openapi_extra=_form({"scope": "Scopes with spaces between; without: all of the client's."}))  # fmt: skip
    async def device(request: Request) -> Response:
        return await _answered(request, pages, oauth.device)

    @app.post(REVOKE, tags=tags, summary="Revoke a token", response_model=Nothing, responses=_REFUSALS,
              openapi_extra=_form({"token": "", "token_type_hint": ""}, "token"))  # fmt: skip
    async def revoke(request: Request) -> Response:
        return await _answered(request, pages, oauth.revoke)


def _introspection(app: FastAPI, gate: Gate, pages: Pages, oauth: OAuth) -> None:
    @app.post(INTROSPECT, tags=["OAuth2"], summary="What a token is: for its client, and for administrators",
              response_model=Introspection, responses={**_REFUSALS, **_MORE_REFUSALS},
              openapi_extra=_form({"token": "", "token_type_hint": ""}, "token") | {"security": _ANYBODY})  # fmt: skip
    async def introspect(request: Request) -> Response:
        try:
            asked = await _asked(request, pages)
        except UsageError as e:
            return _refused(e)
        by = None if _is_by_client(asked) else await gate.identity(request)
        return _sent(await run_sync(oauth.introspect, asked, by))


def _metadata(app: FastAPI, pages: Pages, oauth: OAuth) -> None:
    @app.get(_METADATA, tags=["OAuth2"], summary="Where everything is (RFC 8414)", responses=failing(UsageError),
             openapi_extra={"security": []})  # fmt: skip
    async def metadata(request: Request) -> dict[str, Any]:
        return oauth.metadata(pages.own_url(request))


def _consent(router: APIRouter, pages: Pages, oauth: OAuth) -> None:
    @router.get(AUTHORIZE)
    async def ask(request: Request) -> Response:
        by = await pages.person(request)
        found = await run_sync(oauth.consent, _asked_by_query(request, pages), by)
        if by is None and (isinstance(found, Consent) or found.location):
            return to_login(request)  # a link to us leads nobody away who has not said who he is (RFC 9700, 4.11.2)
        if isinstance(found, Answer):
            return _led(request, pages, found)
        here = f"{AUTHORIZE}?{request.scope['query_string'].decode('ascii')}"
        return pages.page(request, "consent.html", by, asked=found, action=here, leads_to=found.redirect_uri)

    @router.post(AUTHORIZE)
    async def decide(request: Request) -> Response:
        form = await fields_of_body(request)
        by = await pages.demand_person(request, form)
        approve = _decision(form) == "approve"
        answer = await run_sync(oauth.decide, _asked_by_query(request, pages), by, approve)
        return _led(request, pages, answer)


def _verification(router: APIRouter, pages: Pages, oauth: OAuth) -> None:
    @router.get(VERIFY)
    async def ask(request: Request) -> Response:
        by = await pages.person(request)
        if by is None:
            return to_login(request)
        code = fields_of_query(request).get("user_code", "")
        return pages.page(request, "device.html", by, code=code, wrong="")

    @router.post(VERIFY)
    async def decide(request: Request) -> Response:
        form = await fields_of_body(request)
        by, code = await pages.demand_person(request, form), form.get("user_code", "")
        try:
            if "decision" not in form:
                found = await run_sync(oauth.waiting, by, code)
                return pages.page(request, "device-consent.html", by, asked=found, code=code)
            approve = _decision(form) == "approve"
            await run_sync(oauth.decide_device, by, code, approve)
        except AccountError as e:
            wrong = f"{e} {e.hint}".strip()
            return pages.page(request, "device.html", by, status=e.http_status, code=code, wrong=wrong)
        return pages.page(request, "device-done.html", by, approved=approve)


# -- between HTTP and the room -----------------------------------------------------------------------------------------


async def _answered(request: Request, pages: Pages, endpoint: Callable[[Asked], Answer]) -> Response:
    try:
        asked = await _asked(request, pages)
    except UsageError as e:
        return _refused(e)
    return _sent(await run_sync(endpoint, asked))


async def _asked(request: Request, pages: Pages) -> Asked:
    return _asking(request, pages, await fields_of_body(request))


def _asked_by_query(request: Request, pages: Pages) -> Asked:
    return _asking(request, pages, fields_of_query(request))


def _asking(request: Request, pages: Pages, fields: dict[str, str]) -> Asked:
    own = pages.own_url(request)
    headers = {name: request.headers[name] for name in ("authorization",) if name in request.headers}
    return Asked(request.method, own + request.scope["path"], fields, headers, own, address_of(request))


def _is_by_client(asked: Asked) -> bool:
    """Whether a client shows its secret, rather than an administrator his log-in."""
    if "client_id" in asked.form:
        return True
    shown = asked.basic()
    return shown is not None and shown[0].startswith(CLIENT_PREFIX)


def _sent(answer: Answer) -> Response:
    return JSONResponse(dict(answer.body), answer.status, dict(answer.headers))


def _refused(error: UsageError) -> Response:
    told = {"error": "invalid_request", "error_description": str(error)}
    return JSONResponse(told, 400, {"Cache-Control": "no-store"})


def _led(request: Request, pages: Pages, answer: Answer) -> Response:
    """An answer for a browser: to the program, or a page that says why not."""
    if answer.location:
        return leading_to("", location=answer.location)
    told = answer.body.get("error_description") or f"The program's request was refused: {answer.body.get('error')}."
    hint = "The fault lies with the program that sent you here; nothing was allowed to it."
    return pages.error(request, UsageError(str(told), hint))


def _decision(form: dict[str, str]) -> str:
    if (said := form.get("decision", "")) not in ("approve", "deny"):
        raise UsageError("The form says neither yes nor no.")
    return said


def _form(fields: dict[str, str], *required: str) -> dict[str, Any]:
    """The request's body for the document; a client may be named in it, or by HTTP Basic."""
    everything = {**fields, "client_id": "", "client_secret": ""}
    properties: dict[str, dict[str, Any]] = {
        name: {"type": "string", **({"description": about} if about else {})} for name, about in everything.items()
    }
    for name in required:
        properties[name] |= {"minLength": 1}
    if "grant_type" in properties:
        properties["grant_type"] |= {"enum": [CODE, CREDENTIALS, DEVICE, REFRESH]}
    once = {"type": "string"}  # no field may stand there twice
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": once}
    return {"requestBody": {"required": True, "content": {_FORM: {"schema": schema}}}, "security": [{"basic": []}, {}]}


_TOKEN_FIELDS = {
    "grant_type": "What is exchanged.", "code": "", "redirect_uri": "", "code_verifier": "", "device_code": "",
    "refresh_token": "", "scope": "",
}  # fmt: skip
_ANYBODY: list[dict[str, list[str]]] = [{"basic": []}, {"bearer": []}, {"session": []}]
_MORE_REFUSALS: Responses = {
    401: {
        "description": "Nobody, or a wrong secret",
        "content": {
            "application/json": {"schema": Refusal.model_json_schema()},
            Problem.media_type: {"schema": SCHEMA},
        },
    },
    **failing(Forbidden, TooManyAttempts),
}
