"""``/login`` and ``/logout``: pages that start and end a session, by password or through an outside provider, and one
that ends what programs were allowed.

The log-in form has no token of a session, there being none yet: what keeps other sites from sending it is where it
comes from, which browsers say with every form. A log-in through the provider counts only in the browser that began it.
"""

from __future__ import annotations

import datetime

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from holdfast.accounts.clients import Clients
from holdfast.accounts.directory import SESSION_S, Directory, Identity
from holdfast.accounts.openid import BEGUN_S, OpenID
from holdfast.errors import NotLoggedIn, TooManyAttempts, UsageError
from holdfast.faces.forms import fields_of_body, fields_of_query
from holdfast.faces.gate import COOKIE, address_of, demand_own_origin
from holdfast.faces.pages import LOGIN, Pages, leading_to, local_path, to_login

OUTSIDE, BACK = "/login/oidc", "/login/oidc/callback"
PROGRAMS = "/login/programs"
_BEGUN = "holdfast_oidc"  # the cookie of a log-in that was begun


def add_login(router: APIRouter, pages: Pages, directory: Directory, clients: Clients, openid: OpenID | None) -> None:
    """Add the pages to the app."""
    provider = openid.host if openid else ""

    @router.get(LOGIN)
    async def ask(request: Request) -> Response:
        by, path = await pages.person(request), local_path(fields_of_query(request).get("next", ""))
        if by is not None:
            return leading_to(path) if path != LOGIN else pages.page(request, "logged-in.html", by)
        return pages.page(request, "login.html", None, next=path, wrong="", provider=provider)

    @router.post(LOGIN)
    async def log_in(request: Request) -> Response:
        demand_own_origin(request)
        form = await fields_of_body(request)
        path, address = local_path(form.get("next", "")), address_of(request)
        try:
            by = await run_sync(directory.log_in, form.get("username", ""), form.get("password", ""), address)
        except (NotLoggedIn, TooManyAttempts) as e:
            shown = {"next": path, "wrong": f"{e} {e.hint}".strip(), "provider": provider}
            answer = pages.page(request, "login.html", None, status=e.http_status, **shown)
            if isinstance(e, TooManyAttempts):
                answer.headers["Retry-After"] = str(e.retry_after)
            return answer
        return await _enter(request, pages, directory, by, path)

    @router.post("/logout")
    async def log_out(request: Request) -> Response:
        await pages.demand_person(request, await fields_of_body(request))
        await run_sync(directory.close_session, request.cookies[COOKIE])
        answer = leading_to(LOGIN)
        answer.delete_cookie(COOKIE, httponly=True, samesite="lax", secure=_is_secure(request, pages))
        return answer

    _programs(router, pages, clients)
    if openid is not None:
        _outside(router, pages, directory, openid)


def _programs(router: APIRouter, pages: Pages, clients: Clients) -> None:
    """What one has allowed programs, and an end to it."""

    @router.get(PROGRAMS)
    async def show(request: Request) -> Response:
        by = await pages.person(request)
        if by is None:
            return to_login(request)
        shown = [
            {
                "id": program.id, "client_name": program.client_name, "scopes": program.scopes.split(),
                "since": _day(program.created_ns), "until": _day(program.expires_ns),
            }
            for program in await run_sync(clients.allowed, by)
        ]  # fmt: skip
        return pages.page(request, "programs.html", by, programs=shown, action=PROGRAMS)

    @router.post(PROGRAMS)
    async def end(request: Request) -> Response:
        form = await fields_of_body(request)
        by = await pages.demand_person(request, form)
        number = form.get("end", "")
        if not (number.isascii() and number.isdigit() and len(number) <= 18):
            raise UsageError("The form names no program.")
        await run_sync(clients.end, by, int(number))
        return leading_to(PROGRAMS)


def _day(at_ns: int) -> str:
    return datetime.datetime.fromtimestamp(at_ns // 1_000_000_000, datetime.UTC).strftime("%Y-%m-%d")


def _outside(router: APIRouter, pages: Pages, directory: Directory, openid: OpenID) -> None:
    @router.get(OUTSIDE)
    async def begin(request: Request) -> Response:
        path = local_path(fields_of_query(request).get("next", ""))
        there, kept = await run_sync(openid.begin, pages.own_url(request) + BACK, path)
        answer = leading_to("", location=there)
        answer.set_cookie(
            _BEGUN, kept, max_age=BEGUN_S, path=OUTSIDE, httponly=True, samesite="lax",
            secure=_is_secure(request, pages),
        )  # fmt: skip
        return answer

    @router.get(BACK)
    async def finish(request: Request) -> Response:
        kept, fields = request.cookies.get(_BEGUN, ""), fields_of_query(request)
        callback = pages.own_url(request) + BACK
        by, path = await run_sync(openid.finish, kept, fields, callback, address_of(request))
        answer = await _enter(request, pages, directory, by, local_path(path))
        answer.delete_cookie(_BEGUN, path=OUTSIDE, httponly=True, samesite="lax", secure=_is_secure(request, pages))
        return answer


async def _enter(request: Request, pages: Pages, directory: Directory, by: Identity, path: str) -> Response:
    """Start a session for somebody who has just proved who he is; one that was there before ends."""
    if before := request.cookies.get(COOKIE):
        await run_sync(directory.close_session, before)
    answer = leading_to(path)
    answer.set_cookie(
        COOKIE, await run_sync(directory.open_session, by), max_age=SESSION_S, httponly=True, samesite="lax",
        secure=_is_secure(request, pages),
    )  # fmt: skip
    return answer


def _is_secure(request: Request, pages: Pages) -> bool:
    return pages.own_url(request).startswith("https:")
