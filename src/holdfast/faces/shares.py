"""``/api/v1.0/file`` (and ``/vimeo/api/v1.0/file``): one-time shares, put in and redeemed.

Errors are ``{"error": "Gone"}`` and the like, whatever goes wrong below these paths. What a browser opens, or a robot
looks at to show a preview, is led to a page and spends nothing (``share_pages``). A file is never shown in our origin:
it is saved, and its type is not guessed from its bytes.
"""

from __future__ import annotations

import http
import re
import unicodedata
from collections.abc import Mapping
from contextlib import ExitStack, aclosing
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Path, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from holdfast.accounts.directory import Identity
from holdfast.errors import HoldfastError, TooLarge, WrongPassword
from holdfast.faces.bodies import announced, limits_of, pieces, small
from holdfast.faces.forms import Handler, fields_of_query
from holdfast.faces.gate import Gate, address_of
from holdfast.faces.multipart import OVERHEAD, FileForm
from holdfast.faces.pages import Pages, leading_to
from holdfast.faces.problems import problem_of
from holdfast.faces.sending import Sending
from holdfast.shares.shares import WRITES, Download, Made, Seen, Shares, Upload, Wish
from holdfast.shares.wishes import MOST_DOWNLOADS, downloads_of, expires_after, name_of, type_of

BASES = ("/api/v1.0", "/vimeo/api/v1.0")
PAGE = "/share"
ACCEL = "x-accel-redirect"  # what nginx says in X-Sendfile-Type when it can send files for us
_CONDITIONS = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
_SMALL = 1 << 20
_ID = re.compile(r"[0-9a-f]{32}")
_ROBOTS = re.compile(
    r"bot\b|bot/|crawler|spider|facebookexternalhit|whatsapp|skypeuripreview|slack-imgproxy|embedly|preview|"
    r"pinterest|vkshare|mastodon|redditbot|google-|bingbot|applebot|iframely|outbrain|quora link|tumblr|flipboard",
    re.IGNORECASE,
)
_TEXTS = {405: "Method not Allowed", 413: "Request Entity Too Large", 507: "Insufficient Storage"}
_UNSAFE = re.compile(r"[^A-Za-z0-9 ._()+,=@-]")
_GUARDS = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'", "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex", "Accept-Ranges": "none",
}  # fmt: skip
_encode = msgspec.json.Encoder().encode


class Received(NamedTuple):
    """A file that has come, not kept yet, and what was said of it."""

    upload: Upload
    name: str
    type: str
    fields: dict[str, str]

    @property
    def wish(self) -> Wish:
        """UsageError when what was said makes no sense."""
        fields = self.fields
        lasts_ns, downloads = expires_after(fields.get("expires", "")), downloads_of(fields.get("downloads", ""))
        return Wish(self.name, self.type, fields.get("password", ""), lasts_ns, downloads)


class Exchange:
    """What the API and the pages have in common: taking files in, and giving them out. ``accel``: where nginx serves
    the files from; empty: it does not.
    """

    def __init__(self, shares: Shares, accel: str) -> None:
        self.shares, self._accel = shares, accel.rstrip("/")
        self._proving = CapacityLimiter(1)  # passwords to shares keep no log-in waiting: those can hash two at a time

    async def receive(self, request: Request, by: Identity) -> Received:
        """The file that the body has. Whoever asked for it keeps it or abandons it."""
        most, size = self.shares.most_bytes + OVERHEAD, announced(request)
        if size is not None and size > most:
            raise TooLarge(f"A shared file has at most {self.shares.most_bytes} bytes.")
        if size is not None and size <= _SMALL:
            taking = _Taking(request, self.shares, by)
            data = await small(request, size, by.account)
            return await run_sync(taking.take_all, data, limiter=limits_of(request).uploading)
        async with limits_of(request).uploads.turn(by.account):
            return await self._receive(request, _Taking(request, self.shares, by), most)

    async def _receive(self, request: Request, taking: _Taking, most: int) -> Received:
        threads = limits_of(request).uploading
        try:
            async with aclosing(pieces(request, most)) as body:
                async for piece in body:
                    await run_sync(taking.feed, piece, limiter=threads)
            return await run_sync(taking.finish, limiter=threads)
        except BaseException:
            await run_sync(taking.abandon, limiter=threads)
            raise

    async def keep(self, request: Request, received: Received) -> Made:
        """Keep it as it was wished. It is durable when this returns."""
        threads = limits_of(request).uploading
        try:
            return await run_sync(lambda: received.upload.finish(received.wish), limiter=threads)
        finally:
            await run_sync(received.upload.abandon, limiter=threads)

    async def look(self, request: Request, id_: str) -> Seen:
        return await run_sync(self.shares.look, id_, limiter=limits_of(request).downloading)

    async def prove(self, request: Request, id_: str, password: str) -> Seen:
        """Look, and check the password if there is one."""
        seen = await self.look(request, id_)
        if seen.has_password:
            address = address_of(request)
            seen = await run_sync(self.shares.prove, id_, password, address, limiter=self._proving)
        return seen

    async def redeem(self, request: Request, id_: str, password: str) -> Response:
        """One download."""
        seen = await self.prove(request, id_, password)
        limits, turn = limits_of(request), -seen.share.id  # of each share its own: nobody's account waits for them
        with ExitStack() as over:
            await limits.downloads.take(turn)
            over.callback(limits.downloads.give_back, turn)
            download = await run_sync(self.shares.take, seen, limiter=limits.downloading)
            if self._accel and _nginx_can(request.headers):
                return await run_sync(self._by_nginx, download, limiter=limits.downloading)
            later = over.pop_all()
        headers = headers_of(seen.share.name, seen.share.type)
        return Sending(download, headers, limits.downloading, limits.patience, self.shares.tell, later.close)

    def _by_nginx(self, download: Download) -> Response:
        """The file is claimed and checked; nginx opens it before it could be removed."""
        try:
            download.make_final()
        except BaseException:
            download.end(taken=False)
            raise
        download.end(taken=True)
        where = {"X-Accel-Redirect": f"{self._accel}/{download.share.file}", "X-Accel-Buffering": "no"}
        return Response(None, 200, headers_of(download.share.name, download.share.type) | where)


def _nginx_can(headers: Mapping[str, str]) -> bool:
    """Whether nginx brought the request, and will send all of the file: under a condition it might send nothing."""
    return headers.get("x-sendfile-type", "").lower() == ACCEL and not any(name in headers for name in _CONDITIONS)


class _Taking:
    """A form being received. Its methods work on data: threads call them."""

    def __init__(self, request: Request, shares: Shares, by: Identity) -> None:
        self._shares, self._by = shares, by
        self._upload: Upload | None = None
        self._name = self._type = ""
        self._form = FileForm(request.headers.get("content-type", ""), "file", self._begin)

    def _begin(self, name: str, declared: str) -> Upload:
        self._name = name_of(name)
        self._type = type_of(self._name, declared)
        self._upload = self._shares.begin(self._by)
        return self._upload

    def feed(self, piece: bytes) -> None:
        self._form.feed(piece)

    def finish(self) -> Received:
        self._form.finish()
        assert self._upload is not None
        return Received(self._upload, self._name, self._type, self._form.fields)

    def take_all(self, data: bytes) -> Received:
        try:
            self.feed(data)
            return self.finish()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        self._form.abandon()


# -- the API -----------------------------------------------------------------------------------------------------------


def add_shares(app: FastAPI, gate: Gate, pages: Pages, exchange: Exchange) -> None:
    """The routes of shares, but for their pages."""
    for base in BASES:
        app.include_router(_api(gate, pages, exchange, base))
        for path, methods in ((f"{base}/file", "PUT"), (f"{base}/file/{{hash}}", "GET, HEAD")):
            app.router.routes.append(Route(path, _Refusal(405, methods), include_in_schema=False))
        app.router.routes.append(Route(f"{base}/{{rest:path}}", _Refusal(404), include_in_schema=False))


def _documented(shares: Shares) -> type[APIRoute]:
    """A route whose errors are the document's."""

    class Documented(APIRoute):
        def get_route_handler(self) -> Handler:
            handle = super().get_route_handler()

            async def handling(request: Request) -> Response:
                try:
                    return await handle(request)
                except HoldfastError as e:
                    return error_of(e)
                except Exception as e:  # noqa: BLE001 - the edge of this API: a fault is told in its form, too
                    shares.tell("answer for a share", e)
                    return error(500)

            return handling

    return Documented


def _api(gate: Gate, pages: Pages, exchange: Exchange, base: str) -> APIRouter:
    kind, needs = _documented(exchange.shares), gate.needs(WRITES)
    routes = APIRouter(prefix=base, route_class=kind, tags=["shares"], include_in_schema=base == BASES[0])
    called = Path(json_schema_extra={"pattern": "^[0-9a-f]{32}$"}, description="What the share's URL ends in.")

    @routes.put("/file", summary="Share a file", status_code=201, responses=_PUT, openapi_extra=_FORM)
    async def put(request: Request) -> Response:
        """Needs the scope `shares:write`. The answer is the only one that has the URL."""
        by = await needs(request)
        made = await exchange.keep(request, await exchange.receive(request, by))
        url = f"{pages.own_url(request)}{base}/file/{made.id}"
        told = {"status": "File Uploaded Successfully", "url": url}
        return Response(_encode(told), 201, {"Cache-Control": "no-store"}, "application/json")

    @routes.get("/file/{hash}", summary="Redeem a share", responses=_GET, openapi_extra=_PASSWORD)
    async def get(request: Request, hash: str = called) -> Response:  # noqa: A002
        """Needs no log-in. Browsers, and robots that make previews, are led to a page (303); nothing is spent then."""
        fields = fields_of_query(request)
        if _ID.fullmatch(hash) and _only_looks(request.headers):
            return leading_to(f"{PAGE}/{hash}")
        return await exchange.redeem(request, hash, _password(request, fields))

    @routes.head("/file/{hash}", summary="What a share is; nothing is spent", responses=_HEAD, openapi_extra=_PASSWORD)
    async def head(request: Request, hash: str = called) -> Response:  # noqa: A002
        fields = fields_of_query(request)
        if _ID.fullmatch(hash) and _only_looks(request.headers):
            return leading_to(f"{PAGE}/{hash}")
        share = (await exchange.prove(request, hash, _password(request, fields))).share
        return Response(headers=headers_of(share.name, share.type) | {"Content-Length": str(share.size)})

    return routes


class _Refusal:
    """What is answered to everything else below the API's paths."""

    def __init__(self, status: int, methods: str = "") -> None:
        self._status, self._methods = status, methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = error(self._status)
        if self._methods:
            answer.headers["Allow"] = self._methods
        await answer(scope, receive, send)


def _password(request: Request, fields: Mapping[str, str]) -> str:
    """The one in the header, where it stands in no log of anybody's; else the query's."""
    given = request.headers.get("x-share-password")
    if given is None:
        return fields.get("password", "")
    raw = given.encode("latin-1")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return given


def _only_looks(headers: Mapping[str, str]) -> bool:
    """Whether a browser goes there by itself, or a robot wants to show what it is: both come to the page."""
    if any("prefetch" in headers.get(name, "").lower() for name in ("sec-purpose", "purpose", "x-moz")):
        return True
    kinds = (part.partition(";")[0].strip().lower() for part in headers.get("accept", "").split(","))
    return "text/html" in kinds or bool(_ROBOTS.search(headers.get("user-agent", "")))


def error(status: int) -> Response:
    """An error as the document has it."""
    text = _TEXTS.get(status) or http.HTTPStatus(status).phrase
    return Response(_encode({"error": text}), status, {"Cache-Control": "no-store"}, "application/json")


def error_of(e: HoldfastError) -> Response:
    """The same, with the headers that its problem would have."""
    answer = error(e.http_status)
    for name in ("Retry-After", "WWW-Authenticate"):
        if value := problem_of(e).headers.get(name):
            answer.headers[name] = value
    if isinstance(e, WrongPassword):
        answer.headers["WWW-Authenticate"] = 'Share-Password header="X-Share-Password"'
    return answer


def headers_of(name: str, kind: str) -> dict[str, str]:
    """What goes before a file: it is saved, and does nothing in our origin."""
    return {**_GUARDS, "Content-Type": kind, "Content-Disposition": disposition(name)}


def disposition(name: str) -> str:
    """RFC 6266: to be saved under that name, and under a plainer one by clients that know no other."""
    ascii_ = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = _UNSAFE.sub("_", ascii_).strip(" .") or "file"
    if plain == name:
        return f'attachment; filename="{name}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='!#$&+-.^_`|~')}"


# -- what /openapi.json says -------------------------------------------------------------------------------------------

_SAYS_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_MADE = {
    "type": "object",
    "required": ["status", "url"],
    "properties": {"status": {"type": "string"}, "url": {"type": "string"}},
}
_FIELDS = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "password": {"type": "string", "description": "Who redeems it must know it. Empty: none."},
        "expires": {"type": "string", "description": "Seconds, or `90m`, `1h`, `1d`, `2w`. Empty: never."},
        "downloads": {"type": "string", "description": f"1 to {MOST_DOWNLOADS}. Empty: 1."},
    },
}
_FORM: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _FIELDS}}}
}  # fmt: skip
_TEXT = {"type": "string"}
_PASSWORD: dict[str, Any] = {
    "security": [],
    "parameters": [
        {"name": "password", "in": "query", "schema": _TEXT, "description": "The share's."},
        {"name": "X-Share-Password", "in": "header", "schema": _TEXT, "description": "The same, in no log."},
    ],
}


def _failing(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": _SAYS_ERROR}}
    return {status: {"description": http.HTTPStatus(status).phrase, "content": content} for status in statuses}


_LED: dict[int | str, dict[str, Any]] = {303: {"description": "To the page where it can be redeemed."}}
_PUT: dict[int | str, dict[str, Any]] = {
    201: {"description": "It is shared.", "content": {"application/json": {"schema": _MADE}}},
    **_failing(400, 401, 403, 405, 408, 413, 429, 500, 503, 507),
}
_GET: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file, once.", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
    **_LED, **_failing(400, 401, 404, 405, 410, 429, 500, 503),
}  # fmt: skip
_HEAD: dict[int | str, dict[str, Any]] = {
    200: {"description": "It is there."}, **_LED, **_failing(400, 401, 404, 410, 429, 500, 503)
}  # fmt: skip
