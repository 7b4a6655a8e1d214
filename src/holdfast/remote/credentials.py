"""What is shown to a server: an API token as it was given, or the tokens of a log-in, which renew themselves.

A refresh token counts once: using it a second time ends the log-in, as it would be the sign of a thief. So only one
thread of one process at a time renews a log-in, and the others take what it got.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from holdfast.errors import NotLoggedIn
from holdfast.remote.authority import Authority
from holdfast.remote.logins import Login, Logins

_EARLY_NS = 60 * 1_000_000_000  # a token that ends so soon is renewed before it is used


class Credentials(Protocol):
    """How one is known to a server."""

    def token(self) -> str:
        """The bearer token to show. NotLoggedIn when there is none."""

    def renew(self, refused: str) -> bool:
        """The server has refused that token: whether there is another one now."""


class ApiToken:
    """A token that somebody made for this purpose."""

    def __init__(self, token: str) -> None:
        self._token = token

    def token(self) -> str:
        return self._token

    def renew(self, refused: str) -> bool:
        return False


class KeptLogin:
    """The log-in that ``holdfast login`` has kept for a server."""

    def __init__(self, url: str, logins: Logins, authority: Authority, now_ns: Callable[[], int]) -> None:
        self._url, self._logins, self._authority, self._now_ns = url, logins, authority, now_ns
        self._lock = threading.Lock()
        self._login: Login | None = None

    def token(self) -> str:
        with self._lock:
            if self._login is None:
                self._login = self._logins.all().get(self._url)
            if self._login is None:
                raise self._nobody()
            if self._is_old(self._login):
                self._login = self._renewed(self._login.access_token)
            return self._login.access_token

    def renew(self, refused: str) -> bool:
        with self._lock:
            if self._login is None or self._login.access_token == refused:
                self._login = self._renewed(refused)
            return True

    def _renewed(self, refused: str) -> Login:
        """Newer tokens than the refused one: those that another process got meanwhile, or fresh ones."""
        with self._logins.changing() as kept:
            login = kept.get(self._url)
            if login is None:
                raise self._nobody()
            if login.access_token == refused or self._is_old(login):
                login = kept[self._url] = self._authority.refresh(login)
            return login

    def _is_old(self, login: Login) -> bool:
        return login.expires_ns - _EARLY_NS <= self._now_ns()

    def _nobody(self) -> NotLoggedIn:
        return NotLoggedIn(
            f"You are not logged in to {self._url}.", f"Run `holdfast login {self._url}`, or set HOLDFAST_TOKEN."
        )
