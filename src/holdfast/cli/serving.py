"""``holdfast serve``: the server, in one process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.output import Output, command
from holdfast.errors import UsageError
from holdfast.settings import admin_password, load_oidc, load_server, load_shares

if TYPE_CHECKING:
    from holdfast.wiring.server import Server


@command("serve")
@click.option("--host", metavar="ADDRESS", help="Where to listen. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="The port. [default: 8000; 0: any that is free]")
@click.option("--data", metavar="DIR", help="Where everything is kept. [default: in your data folder]")
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
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    url = settings.url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    opened = open_server(settings, admin_password(), sys.stderr, oidc=oidc, sharing=sharing)
    with listener, Ending() as ending, opened as server:
        _greet(out, server, url)
        sys.stdout.flush()
        serve_app(server.app, listener, ending, settings)
    out.event("summary", stopped=True)
    return 0


def _greet(out: Output, server: Server, url: str) -> None:
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
    out.event("serving", url=url, data=str(server.folder))
