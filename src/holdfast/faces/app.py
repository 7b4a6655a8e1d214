"""The whole HTTP application: every face mounted, the pages open to all, the errors, the log.

``Rooms`` is what it stands on; ``create_app`` only connects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp

from holdfast import __version__
from holdfast.accounts.directory import Directory, Identity
from holdfast.accounts.oauth import OAuth
from holdfast.accounts.openid import OpenID
from holdfast.accounts.scopes import ALL_SCOPES
from holdfast.errors import Forbidden, HoldfastError
from holdfast.faces import blob_routes, contract, problems, share_lists, share_pages
from holdfast.faces import files as faces_files
from holdfast.faces import manifests as faces_manifests
from holdfast.faces import vault as faces_vault
from holdfast.faces import vaults as faces_vaults
from holdfast.faces.accounts import add_accounts
from holdfast.faces.blobs import Apart, BlobRooms, Face
from holdfast.faces.gate import COOKIE, Gate
from holdfast.faces.login import add_login
from holdfast.faces.oauth2 import add_oauth2
from holdfast.faces.pages import Pages, add_assets
from holdfast.faces.reference import add_reference
from holdfast.faces.shares import Exchange, add_shares
from holdfast.faces.watching import Metrics, Watch, make_log
from holdfast.manifests.files import Files
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.removing import Remover
from holdfast.shares.shares import Shares
from holdfast.vaults.objects import Objects
from holdfast.vaults.vaults import Vaults

Application = ASGIApp


@dataclass(frozen=True)
class Rooms:
    """What the faces stand on. ``ready`` raises a HoldfastError naming what is not. ``url``: how clients reach the
    server; empty: as each of them says. ``waiting``: a folder where bodies may wait. ``accel``: where nginx serves
    shared files from; empty: it does not.
    """

    directory: Directory
    ready: Callable[[], None]
    oauth: OAuth
    url: str
    files: Files
    manifests: Manifests
    remover: Remover
    waiting: str
    vaults: Vaults
    objects: Objects
    shares: Shares
    blobs: BlobRooms
    accel: str = ""
    openid: OpenID | None = None


def create_app(rooms: Rooms, log: TextIO) -> Application:
    """The application, ready to be served. ``log``: where its lines go."""
    app = FastAPI(title="Holdfast", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    metrics, gate = Metrics(), Gate(rooms.directory, rooms.oauth.by_access_token, rooms.blobs.anybody)
    problems.install(app)
    _open_to_all(app, rooms)
    _metrics(app, gate, metrics)
    _accounts(app, gate, rooms)
    app.include_router(faces_manifests.router(rooms.manifests, rooms.remover, gate, rooms.waiting))
    app.include_router(faces_files.router(rooms.files, rooms.remover, gate))
    app.include_router(faces_vaults.router(rooms.vaults, gate))
    app.include_router(faces_vault.router(rooms.vaults, rooms.objects, gate))
    _shares(app, gate, rooms)
    blobs = Face(rooms.blobs, gate)
    app.include_router(blob_routes.router(blobs))
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    quick = faces_files.Shortcut(app, rooms.files, gate)
    return Watch(Apart(quick, rooms.blobs, blobs), make_log(log), metrics)


def _open_to_all(app: FastAPI, rooms: Rooms) -> None:
    @app.get("/healthz", tags=["server"], summary="Whether the process answers", response_class=PlainTextResponse)
    async def healthz() -> str:
        return "ok\n"

    @app.get("/readyz", tags=["server"], summary="Whether the catalog and the repository can be used")
    async def readyz() -> Response:
        try:
            await run_sync(rooms.ready)
        except HoldfastError as e:
            return JSONResponse({"ready": False, "code": e.code}, 503)
        return JSONResponse({"ready": True})

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(app.openapi())


def _accounts(app: FastAPI, gate: Gate, rooms: Rooms) -> None:
    pages = Pages(rooms.directory, rooms.url)
    router = pages.router()
    add_assets(router)
    add_login(router, pages, rooms.directory, rooms.oauth.clients, rooms.openid)
    add_accounts(app, gate, rooms.directory, rooms.oauth.clients)
    add_oauth2(app, router, gate, pages, rooms.oauth)
    add_reference(router, pages, lambda: _document(app))
    app.include_router(router)


def _shares(app: FastAPI, gate: Gate, rooms: Rooms) -> None:
    pages, exchange = Pages(rooms.directory, rooms.url), Exchange(rooms.shares, rooms.accel)
    add_shares(app, gate, pages, exchange)
    app.include_router(share_lists.router(rooms.shares, gate))
    app.include_router(share_pages.router(pages, exchange))


def _metrics(app: FastAPI, gate: Gate, metrics: Metrics) -> None:
    @app.get("/metrics", tags=["server"], summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def numbers(by: Identity = Depends(gate.identity)) -> Response:
        if by.role != "admin":
            raise Forbidden("Only administrators see the server's numbers.")
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _document(app: FastAPI) -> dict[str, Any]:
    """``/openapi.json``, made once."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_ABOUT)
        schemes = made.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["bearer"] = {"type": "http", "scheme": "bearer", "description": "An API token or OAuth2 access token."}
        schemes["basic"] = {"type": "http", "scheme": "basic"}
        schemes["session"] = {"type": "apiKey", "in": "cookie", "name": COOKIE}
        made["security"] = [{"bearer": []}, {"basic": []}, {"session": []}]
        contract.complete(made)
        app.openapi_schema = made
    return app.openapi_schema


_ABOUT = "Deduplicating, encrypted, verified backups. Scopes: " + ", ".join(sorted(ALL_SCOPES)) + "."
