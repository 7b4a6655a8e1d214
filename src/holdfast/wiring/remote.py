"""A server as a client speaks to it: its address, what is shown to it, and what this machine lends to the work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from holdfast import settings
from holdfast.errors import UsageError
from holdfast.remote.address import base_url
from holdfast.remote.authority import Authority
from holdfast.remote.credentials import ApiToken, Credentials, KeptLogin
from holdfast.remote.http import make_client
from holdfast.remote.logins import Logins
from holdfast.remote.push import Machine
from holdfast.remote.server import Server
from holdfast.settings import Settings


def logins(loaded: Settings) -> Logins:
    return Logins(loaded.config_folder)


def address(loaded: Settings, given: str | None, *, insecure: bool) -> str:
    """The server's address: the one given, HOLDFAST_SERVER's, or that of the only log-in there is."""
    if text := given or settings.remote_server():
        return base_url(text, insecure=insecure)
    known = list(logins(loaded).all())
    if len(known) == 1:
        return base_url(known[0], insecure=insecure)
    which = f"You are logged in to {', '.join(known)}." if known else "Run `holdfast login https://…` first."
    raise UsageError("Say which server: its address, or HOLDFAST_SERVER.", which)


def connect(loaded: Settings, url: str, now_ns: Callable[[], int]) -> Server:
    """The server at an address. ``close`` it, or use it as a context."""
    if not (token := settings.remote_token()):
        return connect_with_login(loaded, url, now_ns)
    return Server(url, make_client(url), ApiToken(token))


def connect_with_login(loaded: Settings, url: str, now_ns: Callable[[], int]) -> Server:
    """The same by the log-in that was kept for it, whatever else there is."""
    http = make_client(url)
    return Server(url, http, KeptLogin(url, logins(loaded), Authority(http, now_ns), now_ns))


def login_at(loaded: Settings, address: str, now_ns: Callable[[], int]) -> tuple[str, Credentials] | None:
    """The server whose address this one begins with, and how one is known to it: by HOLDFAST_TOKEN, or by the log-in
    that was kept for it.
    """
    known = sorted((url for url in logins(loaded).all() if address.startswith(url + "/")), key=len)
    if token := settings.remote_token():
        parts = urlsplit(address)
        return (known or [base_url(f"{parts.scheme}://{parts.netloc}")])[-1], ApiToken(token)
    if not known:
        return None
    return known[-1], KeptLogin(known[-1], logins(loaded), Authority(make_client(known[-1]), now_ns), now_ns)


@contextlib.contextmanager
def authority(url: str, now_ns: Callable[[], int]) -> Iterator[Authority]:
    """Where that server's log-ins are made and ended."""
    with make_client(url) as http:
        yield Authority(http, now_ns)


def machine(loaded: Settings, now_ns: Callable[[], int]) -> Machine:
    return Machine(loaded.cache_folder / "remote", now_ns)
