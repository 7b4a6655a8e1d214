"""OAuth2 as the command line needs it: a device code (RFC 8628), refreshing with rotation, revoking (RFC 7009).

The client is Holdfast's own public one; what it may do is decided by the person who allows it in a browser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import httpx2
import msgspec

from holdfast.errors import Forbidden, NotLoggedIn, ProviderFailed, TooManyAttempts
from holdfast.remote.http import Again, body_of, said, unreachable
from holdfast.remote.logins import Login

CLIENT = "holdfast-cli"
SCOPES = "files:read files:write blobs:read blobs:write shares:read shares:write vaults:read vaults:write"
_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_SLOWER_S = 5  # RFC 8628: so much longer to wait after each slow_down
_LONGEST_WAIT_S = 60
_SECOND = 1_000_000_000

T = TypeVar("T")


class Codes(msgspec.Struct, frozen=True):
    """What a person needs to allow this machine in a browser. ``interval``: seconds between two questions."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str = ""
    expires_in: int = 900
    interval: int = 5


class _Granted(msgspec.Struct):
    access_token: str
    refresh_token: str
    expires_in: int = 3600


class Authority:
    """A server's OAuth2 endpoints. ``http`` has the server's address as its base."""

    def __init__(self, http: httpx2.Client, now_ns: Callable[[], int]) -> None:
        self._http, self._now_ns = http, now_ns

    def begin(self) -> Codes:
        """Ask for a device code."""
        status, answer = self._post("device", scope=SCOPES)
        if status != 200:
            raise self._refused(status, answer)
        return _converted(answer, Codes)

    def wait(self, codes: Codes, sleep: Callable[[float], None]) -> Login:
        """Ask until the person has decided, no more often than the server wants. Forbidden when he said no,
        NotLoggedIn when the code has expired.
        """
        pause, ends_ns = float(max(1, codes.interval)), self._now_ns() + codes.expires_in * _SECOND
        while self._now_ns() < ends_ns:
            sleep(pause)
            try:
                status, answer = self._post("token", grant_type=_GRANT, device_code=codes.device_code)
            except Again:  # RFC 8628: ask less often when the server does not answer
                pause = min(pause * 2, _LONGEST_WAIT_S)
                continue
            if status == 200:
                return self._login(answer)
            match answer.get("error"):
                case "authorization_pending":
                    continue
                case "slow_down":
                    pause += _SLOWER_S
                case "access_denied":
                    raise Forbidden("The log-in was denied in the browser.")
                case "expired_token":
                    break
                case _:
                    raise self._refused(status, answer)
        raise NotLoggedIn("The code has expired before it was typed in.", "Run `holdfast login` again.")

    def refresh(self, login: Login) -> Login:
        """New tokens for old ones, which count no more from then on. NotLoggedIn when the server takes them no more."""
        status, answer = self._post("token", grant_type="refresh_token", refresh_token=login.refresh_token)
        if status == 200:
            return self._login(answer)
        if answer.get("error") == "invalid_grant":
            raise NotLoggedIn("The log-in has ended.", "Run `holdfast login` again.")
        raise self._refused(status, answer)

    def revoke(self, login: Login) -> None:
        """End the log-in, on every machine that has its tokens."""
        status, answer = self._post("revoke", token=login.refresh_token)
        if status != 200:
            raise self._refused(status, answer)

    def _login(self, answer: dict[str, Any]) -> Login:
        granted = _converted(answer, _Granted)
        expires_ns = self._now_ns() + max(0, granted.expires_in) * _SECOND
        return Login(granted.access_token, granted.refresh_token, expires_ns)

    def _post(self, endpoint: str, **fields: str) -> tuple[int, dict[str, Any]]:
        try:
            with self._http.stream("POST", f"oauth2/{endpoint}", data={"client_id": CLIENT, **fields}) as answer:
                if answer.status_code in (429, 502, 503, 504):
                    raise Again(f"The server answers {answer.status_code}.", "Try again later.")
                body = body_of(answer)
        except httpx2.TransportError as e:
            raise unreachable(str(self._http.base_url), e) from None
        try:
            found = msgspec.json.decode(body)
        except msgspec.MsgspecError:
            found = None
        return answer.status_code, found if isinstance(found, dict) else {}

    def _refused(self, status: int, answer: dict[str, Any]) -> ProviderFailed | TooManyAttempts:
        why = said(answer.get("error_description") or answer.get("error") or "")
        if answer.get("error") == "slow_down":
            return TooManyAttempts(f"The server wants no more log-ins for now: {why}", "Try again later.")
        if not why:
            return ProviderFailed(f"{self._http.base_url} does not answer as a Holdfast server does ({status}).")
        return ProviderFailed(f"The server refused the log-in: {why}.")


def _converted(answer: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError:
        raise ProviderFailed("The server's answer is not what OAuth2 asks for.") from None
