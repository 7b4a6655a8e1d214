"""Pages for people, made on the server: what they look like, and what keeps them safe.

What is promised: everything that is shown is escaped; a page runs no script, is in nobody's frame, sends forms only to
us (and is led on only to where its question says), and is kept in no cache; a form that changes something counts only
with the token of the session it was made for, and from our own pages; after a log-in one is led to a path of ours and
nowhere else.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, RedirectResponse

from holdfast.accounts.directory import Directory, Identity
from holdfast.errors import Forbidden, HoldfastError, NotLoggedIn, UsageError
from holdfast.faces.forms import Handler
from holdfast.faces.gate import COOKIE, address_of, demand_own_origin
from holdfast.faces.problems import problem_of

LOGIN, STYLE, ICON = "/login", "/assets/pages.css", "/assets/icon.svg"
_TEMPLATES = Path(__file__).parent / "templates"
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]*")
_HOST = re.compile(r"[A-Za-z0-9._-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action "
_SAFE_PICTURE = "default-src 'none'; style-src 'unsafe-inline'; sandbox"
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # with none at all, browsers would not say where a form comes from
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Pages:
    """Renders, and knows who looks. ``url``: how clients reach the server; empty: as the request says."""

    def __init__(self, directory: Directory, url: str) -> None:
        self._directory, self._url = directory, url.rstrip("/")
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip

    def router(self) -> APIRouter:
        """For routes that are pages: an error of ours is shown as one. None is in ``/openapi.json``."""
        pages = self

        class Page(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def handling(request: Request) -> Response:
                    try:
                        return await handle(request)
                    except HoldfastError as e:
                        return pages.error(request, e)

                return handling

        return APIRouter(route_class=Page, include_in_schema=False)

    def own_url(self, request: Request) -> str:
        """The server's own URL: the one in the settings, else the one that was asked."""
        if self._url:
            return self._url
        host = request.headers.get("host", "")
        if not _HOST.fullmatch(host):
            raise UsageError("The Host header names no host.")
        return f"{request.scope['scheme']}://{host}"

    def page(
        self,
        request: Request,
        template: str,
        by: Identity | None,
        *,
        status: int = 200,
        leads_to: str = "",
        **shown: Any,
    ) -> Response:
        """A page. ``leads_to``: the address its form may be answered from, besides ours; browsers ask for that."""
        shown |= {"by": by, "csrf": _form_token(request) if by else "", "style": STYLE, "icon": ICON}
        content = self._templates.get_template(template).render(shown)
        policy = _POLICY + " ".join(["'self'", *_source(leads_to)])
        return HTMLResponse(content, status, {**_HEADERS, "Content-Security-Policy": policy})

    def error(self, request: Request, error: HoldfastError, by: Identity | None = None) -> Response:
        """A page that says what is wrong, with the status and headers the API would answer with."""
        answer = self.page(
            request, "error.html", by, status=error.http_status, sentence=str(error), hint=error.hint
        )  # fmt: skip
        if retry_after := problem_of(error).headers.get("Retry-After"):
            answer.headers["Retry-After"] = retry_after
        return answer

    async def person(self, request: Request) -> Identity | None:
        """Who has the session; None: nobody. Tokens and passwords are not for pages."""
        key = request.cookies.get(COOKIE)
        if not key:
            return None
        try:
            found = await run_sync(self._directory.by_session, key, address_of(request))
        except NotLoggedIn:
            return None
        request.scope["holdfast.account"] = found.username  # for the log
        return found

    async def demand_person(self, request: Request, form: dict[str, str]) -> Identity:
        """Who sent a form of ours. NotLoggedIn, or Forbidden when the form is not of this session."""
        demand_own_origin(request)
        by = await self.person(request)
        if by is None:
            raise NotLoggedIn("You are not logged in.", "Log in, and try again.")
        if not hmac.compare_digest(form.get("csrf", "").encode(), _form_token(request).encode()):
            raise Forbidden("The form is not of this session.", "Go back, reload the page and try again.")
        return by


def leading_to(path: str, *, location: str = "") -> Response:
    """To a page of ours, or to an address that was checked; the form that was sent is not sent on."""
    return RedirectResponse(location or path, 303, {"Cache-Control": "no-store", "Referrer-Policy": "same-origin"})


def to_login(request: Request) -> Response:
    """To the log-in, and back here afterwards."""
    query = request.scope["query_string"].decode("latin-1")
    here = request.scope["path"] + (f"?{query}" if query else "")
    return leading_to(f"{LOGIN}?next={quote(here, safe='')}")


def local_path(path: str) -> str:
    """The path, if it leads to a page of ours, else the log-in's own."""
    return path if _LOCAL.fullmatch(path) else LOGIN


def add_assets(app: APIRouter) -> None:
    """The pages' one stylesheet, and their icon."""
    headers = {"Cache-Control": "public, max-age=3600", "X-Content-Type-Options": "nosniff"}
    style, icon = ((_TEMPLATES / name).read_bytes() for name in ("pages.css", "icon.svg"))

    @app.get(STYLE)
    async def stylesheet() -> Response:
        return Response(style, media_type="text/css", headers=headers)

    @app.get(ICON)
    async def picture() -> Response:
        return Response(icon, media_type="image/svg+xml", headers={**headers, "Content-Security-Policy": _SAFE_PICTURE})


def _form_token(request: Request) -> str:
    """A session's forms have it; nobody can tell the session's key from it."""
    return hmac.new(request.cookies.get(COOKIE, "").encode(), b"form", hashlib.sha256).hexdigest()


def _source(address: str) -> list[str]:
    """The address as a Content-Security-Policy names it: its origin, or only its scheme where there is none to name."""
    if not address:
        return []
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc) and "[" not in parts.netloc:
        return [f"{parts.scheme}://{parts.netloc}"]
    return [f"{parts.scheme}:"]
