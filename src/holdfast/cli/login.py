"""``holdfast login`` and ``logout``: known to a server by a code that is typed into a browser, anywhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from holdfast.cli.output import Output, command, printable
from holdfast.errors import HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.remote.authority import Authority
    from holdfast.remote.server import Server

server_option = click.option("--server", "url", metavar="URL", help="The server.")
insecure_option = click.option(
    "--insecure", is_flag=True, help="Allow http:// to another machine: everybody on the way can read along."
)


@contextlib.contextmanager
def needing_http() -> Iterator[None]:
    """What speaks to servers is an extra: say so when it is not installed."""
    try:
        yield
    except ModuleNotFoundError as e:
        raise UsageError(f"This needs the package {e.name}.", "pip install 'holdfast[server]'") from None


@contextlib.contextmanager
def connected(out: Output, url: str | None, insecure: bool) -> Iterator[Server]:
    """The server that is named, or the one that is meant when none is."""
    with needing_http():
        from holdfast.wiring import remote
    loaded = out.app.settings
    with remote.connect(loaded, remote.address(loaded, url, insecure=insecure), out.app.now_ns) as server:
        yield server


@command("login")
@click.argument("url", metavar="URL")
@insecure_option
def login(out: Output, url: str, insecure: bool) -> int:
    """Log in to the server at URL.

    A code is shown; type it in where the address beside it leads, with a browser on any machine, and allow this one.
    The log-in is kept in your settings folder and renews itself.
    """
    with needing_http():
        from holdfast.wiring import remote
    url = remote.address(out.app.settings, url, insecure=insecure)
    with _authority(out, url) as authority:
        codes = authority.begin()
        shown = printable(codes.verification_uri_complete or codes.verification_uri)
        code, where = printable(codes.user_code), printable(codes.verification_uri)
        out.event("code", user_code=code, verification_uri=where, verification_uri_complete=shown)
        out.line(f"Open {where} in a browser, log in there, and type in the code\n\n    {code}\n")
        out.line(f"or open {shown}\n")
        out.note(f"Waiting for it; the code counts for {codes.expires_in // 60} minutes. Ctrl-C gives up.")
        made = authority.wait(codes, time.sleep)
        with remote.logins(out.app.settings).changing() as kept:
            before, kept[url] = kept.get(url), made
        if before is not None:
            with contextlib.suppress(HoldfastError):  # it would end by itself
                authority.revoke(before)
    with remote.connect_with_login(out.app.settings, url, out.app.now_ns) as server:
        name = printable(str(server.who().get("username", "")))
    out.event("summary", url=url, username=name)
    out.line(f"Logged in to {url} as {name}.")
    return 0


@command("logout")
@click.argument("url", metavar="URL")
@insecure_option
def logout(out: Output, url: str, insecure: bool) -> int:
    """End the log-in to the server at URL, and forget it here."""
    with needing_http():
        from holdfast.wiring import remote
    url = remote.address(out.app.settings, url, insecure=insecure)
    with remote.logins(out.app.settings).changing() as kept:
        ended = kept.pop(url, None)
    if ended is None:
        raise UsageError(f"You are not logged in to {url}.")
    revoked = True
    try:
        with _authority(out, url) as authority:
            authority.revoke(ended)
    except HoldfastError as e:
        revoked = False
        out.warn(f"{e} The log-in is forgotten here; on the server it ends within 30 days.")
    out.event("summary", url=url, revoked=revoked)
    if revoked:
        out.line(f"Logged out of {url}.")
    return 0 if revoked else 1


@contextlib.contextmanager
def _authority(out: Output, url: str) -> Iterator[Authority]:
    from holdfast.wiring import remote

    with remote.authority(url, out.app.now_ns) as found:
        yield found
