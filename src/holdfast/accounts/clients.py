"""OAuth2's clients: programs that act for somebody. Who may register one, where answers to it may be sent, and how what
it was allowed ends.

What is promised: a client never has more scopes than whoever registered it; its secret is shown once and kept as a
digest; an answer goes only to an address that was registered, to the letter (on this machine's loopback the port may
differ, as RFC 8252 asks); an address that could run something in our pages, or travel in the open, is never registered.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import urlsplit

from holdfast.accounts.directory import Directory, Identity, digest_of, line_of_text
from holdfast.accounts.scopes import ALL_SCOPES, checked
from holdfast.catalog import grants, people
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.grants import Client, Program
from holdfast.errors import Forbidden, NoAccount, UsageError

CODE, CREDENTIALS, REFRESH = "authorization_code", "client_credentials", "refresh_token"
DEVICE = "urn:ietf:params:oauth:grant-type:device_code"
OURS = "holdfast-cli"  # the public client of `holdfast login`; the migration that made the tables made it
CLIENT_PREFIX, SECRET_PREFIX = "hfc_", "hfs_"
MOST_REDIRECTS, MOST_CLIENTS = 20, 100
_LONGEST_URI = 2000
_NAMES = {CODE: CODE, CREDENTIALS: CREDENTIALS, DEVICE: DEVICE, "device_code": DEVICE}
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=%]+")
_HOST = re.compile(r"(?:[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_LOOPBACK = re.compile(r"http://(?P<host>127\.0\.0\.1|\[::1\]|localhost)(?::[0-9]{1,5})?(?P<rest>[/?].*)?")


class Clients:
    """See the module. Safe to share between threads."""

    def __init__(self, database: Database, directory: Directory, now_ns: Callable[[], int]) -> None:
        self._database, self._directory, self._now_ns = database, directory, now_ns

    def register(
        self,
        by: Identity,
        name: str,
        *,
        redirect_uris: Sequence[str] = (),
        allowed: Iterable[str] = (CODE,),
        scopes: Iterable[str],
        public: bool = False,
    ) -> tuple[str | None, Client]:
        """A client of the caller's: its secret, which nobody can tell again (None: public, without one), and what is
        kept of it. ``allowed``: the grants it may use; refresh tokens come by themselves.
        """
        by.demand_person("register a client")
        wanted, flows = checked(scopes), _flows(allowed)
        for scope in sorted(wanted):
            by.demand(scope)
        _demand_sense(flows, redirect_uris, public)
        secret = None if public else SECRET_PREFIX + secrets.token_urlsafe(32)
        made = Client(
            id=CLIENT_PREFIX + secrets.token_hex(12), account=by.account, name=line_of_text(name, "name", least=1),
            digest=None if secret is None else digest_of(secret), grants=" ".join(sorted(flows)),
            redirect_uris=" ".join(checked_redirect(uri) for uri in redirect_uris),
            scopes=" ".join(sorted(wanted)), created_ns=self._now_ns(),
        )  # fmt: skip
        with self._database.writing() as c:
            if len(grants.list_clients(c, by.account)) >= MOST_CLIENTS:
                raise Forbidden(f"An account has at most {MOST_CLIENTS} clients.", "Remove one first.")
            grants.add_client(c, made)
            self._note(c, by, "client registered", made, made.scopes)
        return secret, made

    def registered(self, by: Identity) -> list[Client]:
        """The caller's own."""
        with self._database.reading() as c:
            return grants.list_clients(c, by.account)

    def remove(self, by: Identity, number: str) -> None:
        """With all its tokens, at once. NoAccount when the caller has no such client."""
        by.demand_person("remove a client")
        with self._database.writing() as c:
            found = client_by_id(c, number)
            if found is None or not grants.delete_client(c, by.account, number):
                raise NoAccount("You have no such client.")
            self._note(c, by, "client removed", found)
        self._directory.generation += 1

    # -- what was allowed to programs --------------------------------------------------------------------------------

    def allowed(self, by: Identity) -> list[Program]:
        """The programs that act for the caller, whoever registered them; the newest first."""
        with self._database.reading() as c:
            return grants.list_grants(c, by.account, self._now_ns())

    def end(self, by: Identity, number: int) -> None:
        """A program may act for the caller no longer: all its tokens end at once. NoAccount when there is no such."""
        by.demand_person("end what a program was allowed")
        with self._database.writing() as c:
            found = grants.grant_by_id(c, number)
            client = grants.client_by_id(c, found.client) if found else None
            if found is None or client is None or found.account != by.account:
                raise NoAccount("You have allowed no such program.")
            grants.end_grant(c, number)
            self._note(c, by, "program ended", client, found.scopes)
        self._directory.generation += 1

    def _note(self, c: Connection, by: Identity, action: str, client: Client, detail: str = "") -> None:
        people.add_audit(
            c, at_ns=self._now_ns(), actor=by.username, address=by.address, action=action, subject=client.name,
            detail=f"{client.id} {detail}".rstrip(),
        )  # fmt: skip


def client_by_id(connection: Connection, number: str) -> Client | None:
    """The client of that id, whatever was given for one."""
    return grants.client_by_id(connection, number) if _ID.fullmatch(number) else None


def scopes_of_client(client: Client) -> frozenset[str]:
    """What its tokens may be for at most. Our own command line may ask for all there is, in later versions too."""
    return ALL_SCOPES if client.account is None else frozenset(client.scopes.split()) & ALL_SCOPES


def has_secret(client: Client, secret: str) -> bool:
    """Whether that is the client's secret, in constant time; a public client has none."""
    return client.digest is not None and hmac.compare_digest(digest_of(secret), client.digest)


def may_answer_at(client: Client, uri: str) -> bool:
    """Whether an answer for the client may be sent there."""
    return any(_same(registered, uri) for registered in client.redirect_uris.split())


def checked_redirect(uri: str) -> str:
    """An address that may be registered; UsageError says what one looks like."""
    if not _is_sound(uri):
        raise UsageError(
            "A redirect URI is https, or http on loopback, or of a scheme of the program's own with a dot in it.",
            "For example https://example.org/callback, http://127.0.0.1/callback or org.example.app:/callback.",
        )
    return uri


def _is_sound(uri: str) -> bool:
    if len(uri) > _LONGEST_URI or not _URI.fullmatch(uri):
        return False
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    if "." in parts.scheme:
        return not parts.netloc or _HOST.fullmatch(parts.netloc) is not None
    if not _HOST.fullmatch(parts.netloc):
        return False
    return parts.scheme == "https" or _LOOPBACK.fullmatch(uri) is not None


def _same(registered: str, given: str) -> bool:
    if registered == given:
        return True
    ours, theirs = _LOOPBACK.fullmatch(registered), _LOOPBACK.fullmatch(given)
    return bool(ours and theirs) and ours.groups() == theirs.groups()  # type: ignore[union-attr]


def _flows(allowed: Iterable[str]) -> frozenset[str]:
    named = frozenset(allowed) - {REFRESH}
    if unknown := sorted(named - _NAMES.keys()):
        raise UsageError(f"There is no grant {unknown[0]!r}.", f"Grants are {', '.join(_NAMES)}.")
    if not named:
        raise UsageError("At least one grant must be named.", f"Grants are {', '.join(_NAMES)}.")
    return frozenset(_NAMES[name] for name in named)


def _demand_sense(flows: frozenset[str], redirect_uris: Sequence[str], public: bool) -> None:
    if public and CREDENTIALS in flows:
        raise UsageError("A public client has no credentials to show.", "Leave out client_credentials, or public.")
    if CODE in flows and not redirect_uris:
        raise UsageError("The authorization_code grant needs at least one redirect URI.")
    if len(redirect_uris) > MOST_REDIRECTS:
        raise UsageError(f"A client has at most {MOST_REDIRECTS} redirect URIs.")
