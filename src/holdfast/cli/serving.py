"""``holdfast serve``: the server, in one process."""

from __future__ import annotations

import ipaddress
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.output import Output, command
from holdfast.errors import UsageError
from holdfast.settings import ServerSettings, admin_password, load_blobs, load_oidc, load_server, load_shares

if TYPE_CHECKING:
    from holdfast.wiring.server import Server


@command("serve")
@click.option("--host", metavar="ADDRESS", help="Where to listen. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="The port. [default: 8000; 0: any that is free]")
@click.option("--data", metavar="DIR", help="Where everything is kept. [default: in your data folder]")
@click.option(
    "--blob-port",
    type=click.IntRange(-1, 65535),
    help="The port of blobs alone. [default: 5555; 0: any that is free; -1: none]",
)
@click.option("--open", is_flag=True, default=None, help="Blobs and shares without a log-in, on this machine only.")
@click.option("--database", metavar="URL", help="The catalog: sqlite:///FILE or postgresql://…  [default: in --data]")
def serve(out: Output, **options: Any) -> int:
    """Run the server until Ctrl-C or SIGTERM. The first start makes everything and prints the administrator's password.

    The settings stand in holdfast.toml under [server]; its log goes to standard error, a line of JSON for each request.
    """
    try:
        from holdfast.faces.serving import Ending, listen, serve_app
        from holdfast.wiring.server import open_server
    except ModuleNotFoundError as e:
        raise UsageError(f"The server needs the package {e.name}.", "pip install 'holdfast[server]'") from None
    given = {**options, "config": out.app.settings.config_file}
    settings, oidc, sharing = load_server(given), load_oidc(given), load_shares(given)
    _demand_loopback(settings)
    blobs = load_blobs(given)
    with ExitStack() as listening:
        listeners = [listening.enter_context(listen(settings.host, settings.port))]
        if (port := _blob_port(settings)) is not None:
            listeners.append(listening.enter_context(listen(settings.host, port, "--blob-port")))
        url, blobs_url = settings.url or _url(listeners[0]), _url(listeners[1]) if len(listeners) > 1 else ""
        opened = open_server(
            settings, admin_password(), sys.stderr, oidc=oidc, sharing=sharing, blobs=blobs,
            blob_port=listeners[1].getsockname()[1] if blobs_url else None,
        )  # fmt: skip
        with Ending() as ending, opened as server:
            _greet(out, server, url, blobs_url)
            sys.stdout.flush()
            serve_app(server.app, listeners, ending, settings)
    out.event("summary", stopped=True)
    return 0


def _blob_port(settings: ServerSettings) -> int | None:
    """None: blobs have no port of their own. Where the other port is any that is free, this is, too."""
    if settings.blob_port is None:
        return 5555 if settings.port else 0
    return settings.blob_port if settings.blob_port >= 0 else None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _demand_loopback(settings: ServerSettings) -> None:
    """An open server is for this machine alone."""
    try:
        is_here = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        is_here = settings.host == "localhost"
    if settings.open and not is_here:
        raise UsageError("An open server listens on this machine alone.", "Leave --host out, or do without --open.")


def _greet(out: Output, server: Server, url: str, blobs_url: str) -> None:
    """What one needs to know to go on. A password is shown only where it was made up."""
    out.line(f"Holdfast serves {url} from {server.folder}; Ctrl-C ends it.")
    if server.new_repository:
        out.line(f"A repository was made. Keep a copy of its key elsewhere: {server.folder}/key")
    if server.new_password is not None:
        made_up = None if admin_password() else server.new_password
        shown = made_up or "the one in HOLDFAST_ADMIN_PASSWORD"
        out.line(f"The administrator is `admin`; the password, shown only this once, is: {shown}")
        out.event("first_start", username="admin", password=made_up)
    out.line(f"Try: curl -u admin {url}/accounts/me    API: {url}/docs")
    if blobs_url:
        out.line(f"Blobs: {blobs_url}")
    out.event("serving", url=url, blobs_url=blobs_url, data=str(server.folder))
