"""``/share``: a page to share a file; ``/share/ID``: one with a button to download it. Both work without scripts.

What is promised: looking at a page spends nothing, only pressing its button does; who shares a file is logged in, and
sent the form from our own page; a password is never in an address.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from holdfast.accounts.directory import Identity
from holdfast.errors import (
    ContentError,
    Gone,
    HoldfastError,
    NoContent,
    NotLoggedIn,
    QuotaFull,
    TooManyAttempts,
    UsageError,
    WrongPassword,
)
from holdfast.faces.forms import fields_of_body
from holdfast.faces.gate import demand_own_origin
from holdfast.faces.pages import Pages, to_login
from holdfast.faces.problems import problem_of
from holdfast.faces.shares import PAGE, Exchange
from holdfast.shares.wishes import MOST_DOWNLOADS

_UNITS = ("B", "KiB", "MiB", "GiB")
_LASTING = (("", "Until it is downloaded"), ("1h", "1 hour"), ("1d", "1 day"), ("1w", "1 week"), ("30d", "30 days"))


def router(pages: Pages, exchange: Exchange) -> APIRouter:
    """The pages' routes."""
    routes = pages.router()
    _sharing(routes, pages, exchange)
    _redeeming(routes, pages, exchange)
    return routes


def _sharing(routes: APIRouter, pages: Pages, exchange: Exchange) -> None:
    def form(request: Request, by: Identity, wrong: HoldfastError | None = None) -> Response:
        status, said = (wrong.http_status, f"{wrong} {wrong.hint}".strip()) if wrong else (200, "")
        return pages.page(
            request, "share.html", by, status=status, action=PAGE, wrong=said, lasting=_LASTING,
            most=size_text(exchange.shares.most_bytes), most_downloads=MOST_DOWNLOADS,
        )  # fmt: skip

    @routes.get(PAGE)
    async def ask(request: Request) -> Response:
        by = await pages.person(request)
        return to_login(request) if by is None else form(request, by)

    @routes.post(PAGE)
    async def share(request: Request) -> Response:
        demand_own_origin(request)
        by = await pages.person(request)
        if by is None:
            raise NotLoggedIn("You are not logged in.", "Log in, and try again.")
        try:
            received = await exchange.receive(request, by)
            try:
                await pages.demand_person(request, received.fields)
                made = await exchange.keep(request, received)
            finally:
                received.upload.abandon()
        except (ContentError, UsageError, QuotaFull) as e:
            return form(request, by, e)
        url = f"{pages.own_url(request)}{PAGE}/{made.id}"
        downloads = received.wish.downloads
        return pages.page(
            request, "share-made.html", by, status=201, url=url, name=received.name, downloads=downloads,
            has_password=bool(received.wish.password), action=PAGE,
        )  # fmt: skip


def _redeeming(routes: APIRouter, pages: Pages, exchange: Exchange) -> None:
    async def show(request: Request, id_: str, wrong: HoldfastError | None = None) -> Response:
        try:
            seen = await exchange.look(request, id_)
        except (NoContent, Gone) as e:
            shown = {"sentence": str(e), "hint": e.hint}
            return pages.page(request, "share-none.html", None, status=e.http_status, **shown)
        share = seen.share
        about = {} if seen.has_password else {"name": share.name, "size": size_text(share.size)}
        status, said = (wrong.http_status, str(wrong)) if wrong else (200, "")
        answer = pages.page(
            request, "share-redeem.html", None, status=status, action=f"{PAGE}/{id_}", wrong=said, about=about,
            has_password=seen.has_password, left=share.downloads - share.taken,
        )  # fmt: skip
        if wrong and (again := problem_of(wrong).headers.get("Retry-After")):
            answer.headers["Retry-After"] = again
        answer.headers["X-Robots-Tag"] = "noindex"
        answer.headers["Referrer-Policy"] = "no-referrer"  # the address is told to nobody, not even to our own log
        return answer

    @routes.api_route(PAGE + "/{id_}", methods=["GET", "HEAD"])
    async def look(request: Request, id_: str) -> Response:
        return await show(request, id_)

    @routes.post(PAGE + "/{id_}")
    async def redeem(request: Request, id_: str) -> Response:
        fields = await fields_of_body(request) if "content-type" in request.headers else {}  # a button alone
        try:
            return await exchange.redeem(request, id_, fields.get("password", ""))
        except (NoContent, Gone, WrongPassword, TooManyAttempts) as e:
            return await show(request, id_, e)


def size_text(size: float) -> str:
    """Bytes for people: 1.5 MiB."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.1f}".removesuffix(".0") + f" {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"
