"""Who is asking: one way to be known for every face.

An API token or OAuth2 access token (``Authorization: Bearer``), a name and password (``Basic``; for programs that know
nothing else, an API token of that account in the password's place), or a session's cookie. What is promised: nothing
passes without one of them; what a browser sends along by itself, a cookie or Basic, changes something only for requests
that come from our own pages; a token that was revoked here, or an account that was disabled here, is refused from then
on (on another node within FRESH_S).
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlsplit

from anyio.to_thread import run_sync
from fastapi import Request

from holdfast.accounts.directory import TOKEN_PREFIX, Directory, Identity, is_token
from holdfast.errors import Forbidden, NotLoggedIn

COOKIE = "holdfast_session"
FRESH_S = 1.0  # so long a token, or a password, that was just looked up is believed
OPEN_FACES = ("blobs", "shares")  # what an open server lets anybody use
_MOST_FRESH = 4096
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

ByToken = Callable[[str, str], Identity]
Needs = Callable[[Request], Awaitable[Identity]]


class Gate:
    """Tells who asks. ``by_access_token`` knows OAuth2's tokens, the directory everything else. ``anybody``: as whom
    those act who have no log-in; None: as nobody.
    """

    def __init__(self, directory: Directory, by_access_token: ByToken, anybody: Identity | None = None) -> None:
        self._directory, self._by_access_token, self._anybody = directory, by_access_token, anybody
        self._fresh: dict[bytes, tuple[float, int, Identity]] = {}

    async def identity(self, request: Request, *, open_to_all: str = "") -> Identity:
        """Who asks. NotLoggedIn, Forbidden (a foreign page's request), or TooManyAttempts. ``open_to_all``: the face
        that is asked, if an open server lets anybody use it.
        """
        found = await self._identity(request, open_to_all)
        request.scope["holdfast.account"] = found.username  # for the log
        return found

    def needs(self, scope: str) -> Needs:
        """A dependency for FastAPI: who asks, who must have that scope."""

        async def demanding(request: Request) -> Identity:
            found = await self.identity(request, open_to_all=scope.partition(":")[0])
            found.demand(scope)
            return found

        return demanding

    async def _identity(self, request: Request, face: str) -> Identity:
        address = address_of(request)
        if header := request.headers.get("authorization"):
            scheme, _, rest = header.partition(" ")
            if scheme.lower() == "bearer":
                return await self._fresh_or(header, address, self._by_bearer, rest.strip(), address)
            if scheme.lower() == "basic":
                demand_own_origin(request)
                username, password = _basic(rest.strip())
                return await self._fresh_or(header, address, self._by_basic, username, password, address)
            raise NotLoggedIn("That kind of Authorization is not known here.", "Use Bearer or Basic.")
        if key := request.cookies.get(COOKIE):
            demand_own_origin(request)
            return await run_sync(self._directory.by_session, key, address)
        if self._anybody is not None and face in OPEN_FACES:
            return replace(self._anybody, address=address)
        raise NotLoggedIn("You are not logged in.", "Send an API token as `Authorization: Bearer`, or log in.")

    def _by_bearer(self, secret: str, address: str) -> Identity:
        ours = secret.startswith(TOKEN_PREFIX)
        return (self._directory.by_token if ours else self._by_access_token)(secret, address)

    def _by_basic(self, username: str, password: str, address: str) -> Identity:
        """What has a token's form is one or nothing. It is no guess at a password: a program that still shows a token
        which has ended shuts nobody out, and who guesses at 256 bits need not be slowed down.
        """
        if is_token(password):
            found = self._directory.by_token(password, address)
            if found.username != username:
                raise NotLoggedIn("The token in the password's place is another account's.", "Use its user name.")
            return found
        return self._directory.by_password(username, password, address)

    async def _fresh_or(self, header: str, address: str, look: Callable[..., Identity], *shown: str) -> Identity:
        """Who shows that. One that was just looked up, and nothing has changed since, is not looked up again."""
        digest, now, generation = hashlib.sha256(header.encode()).digest(), time.monotonic(), self._directory.generation
        known = self._fresh.get(digest)
        if known and known[0] > now and known[1] == generation and known[2].address == address:
            return known[2]
        found = await run_sync(look, *shown)
        if len(self._fresh) >= _MOST_FRESH:
            self._fresh.clear()
        self._fresh[digest] = now + FRESH_S, generation, found
        return found


def address_of(request: Request) -> str:
    """The client's address as the connection has it: headers that claim another one are not believed."""
    return request.client.host if request.client else ""


def demand_own_origin(request: Request) -> None:
    """Forbidden when a browser sends a request that changes something from another site's page."""
    if request.method in _SAFE:
        return
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    foreign = not _is_here(origin, request) if origin else site not in (None, "same-origin")
    if foreign:
        raise Forbidden("The request came from another site's page.", "Use Holdfast's own pages, or a token.")


def _is_here(origin: str, request: Request) -> bool:
    """Whether that is the host that was asked. What cannot be read is somewhere else."""
    try:
        there = urlsplit(origin).netloc
    except ValueError:
        return False
    return there != "" and there == request.headers.get("host")


def _basic(encoded: str) -> tuple[str, str]:
    try:
        username, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:  # not ASCII, not base64, not UTF-8
        colon = ""
    if not colon:
        raise NotLoggedIn("The Authorization header is not what Basic asks for.")
    return username, password
