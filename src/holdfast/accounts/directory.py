"""The accounts and everything one does with them: make, change, remove, log in, tokens, quotas, the audit log.

What is promised: what may not be done is refused here, whichever face asked; nobody learns from an answer, or from
how long it takes, whether an account exists; the last administrator stays; tokens and session keys are shown once and
kept as digests; everything that changes an account stands in the audit log, written in the same transaction; a token
that got out, whatever its scopes, makes nobody an administrator, lets nobody log in to somebody else's account, and
deletes none.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.accounts import guard
from holdfast.accounts.passwords import Passwords, Proofs
from holdfast.accounts.scopes import ADMIN, checked, scopes_of
from holdfast.catalog import grants, people, vaults
from holdfast.catalog.database import Connection, Database
from holdfast.catalog.holdings import hold_accounts
from holdfast.catalog.people import Account, AuditEntry, Token
from holdfast.errors import AccountExists, Contradiction, Forbidden, NoAccount, NotLoggedIn, QuotaFull, UsageError

ROLES = ("admin", "user")
SESSION_S = 12 * 3600
LOGIN, TOKEN, OAUTH = "login", "token", "oauth"
ANONYMOUS = "anonymous"  # as whom those act on an open server who have no log-in
TOKEN_PREFIX = "hft_"  # so that a leaked token is known for one
MOST_AUDIT = 1000
MOST_TOKENS = 100  # of one account
LONGEST_LIFE_S = 100 * 366 * 86400  # of a token that expires
_TOKEN = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")
_SECOND = 1_000_000_000
_USE_NOTED_EVERY_NS = 60 * _SECOND
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_WRONG = "The user name or the password is wrong."
_ENDED = "The log-in is unknown, has ended, or was revoked."
_LONGEST_TEXT = 255
_NAMED = 5  # so many vaults a sentence names
_ONLY_A_PERSON = {  # gives what it would be to log in as somebody else; an outside provider's log-ins go by the email
    "password": "set a password", "role": "change a role", "email": "change an email"
}  # fmt: skip


@dataclass(frozen=True)
class Identity:
    """Somebody who is logged in: the account, what he may do now, and from where he came.

    ``via``: by what he is known: ``login`` (a password or a session: the person), ``token`` (an API token), ``oauth``
    (an access token: a program that acts for the person). ``expires_ns``: when that ends; None: not by itself.
    """

    account: int
    username: str
    role: str
    scopes: frozenset[str]
    address: str = ""
    via: str = LOGIN
    expires_ns: int | None = None

    def demand(self, scope: str) -> None:
        """Forbidden, naming the scope, when it is not granted."""
        if scope not in self.scopes:
            raise Forbidden(f"This log-in may not do that: it lacks the scope {scope}.", "Ask for a token that has it.")

    def demand_person(self, what: str) -> None:
        """Forbidden unless it is the person: a token that gets out must not become more than it is."""
        if self.via != LOGIN:
            raise Forbidden(f"A token may not {what}.", "Log in with the password.")


class Directory:
    """See the module. Safe to share between threads."""

    def __init__(self, database: Database, passwords: Passwords, now_ns: Callable[[], int]) -> None:
        self._database, self._passwords, self._now_ns = database, passwords, now_ns
        self._proofs = Proofs()
        self.generation = 0  # changes whenever something was changed through this object: caches above are old then

    # -- accounts, by administrators -------------------------------------------------------------------------------

    def create_first_admin(self, password: str = "") -> str | None:
        """Make the account ``admin`` in a catalog without any; its password (a random one if none is given).

        None when there are accounts.
        """
        with self._database.reading() as c:
            if people.list_accounts(c):
                return None
        password = password or secrets.token_urlsafe(15)
        hashed = self._hashed(password)
        with self._writing() as c:
            if people.list_accounts(c):
                return None
            self._add(c, "", "", username="admin", email="", name="", role="admin", password=hashed)
        return password

    def anybody(self) -> Identity:
        """As whom those act on an open server who have no log-in: the account ``anonymous``, which nobody can log in
        to. It is made when it is not there; UsageError when somebody else has that name.
        """
        scopes = frozenset(f"{face}:{act}" for face in ("blobs", "shares") for act in ("read", "write"))
        with self._writing() as c:
            found = people.account_named(c, ANONYMOUS)
            if found is None:
                found = self._add(c, "", "", username=ANONYMOUS, email="", name="", role="user", password="")
        if found.password:
            raise UsageError(f"There is an account {ANONYMOUS!r} with a password.", "Delete it, or do without --open.")
        return Identity(found.id, ANONYMOUS, found.role, scopes, via=TOKEN)

    def create(
        self, by: Identity, username: str, password: str, *, email: str = "", name: str = "", role: str = "user"
    ) -> Account:
        """A new account. AccountExists when the name is taken. Only a person makes an administrator."""
        by.demand(ADMIN)
        if role == "admin":
            by.demand_person("make an administrator")
        fields = {"username": _username(username), **_details({"email": email, "name": name, "role": role})}
        hashed = self._hashed(password)
        with self._writing() as c:
            return self._add(c, by.username, by.address, **fields, password=hashed)

    def accounts(self, by: Identity) -> list[Account]:
        by.demand(ADMIN)
        with self._database.reading() as c:
            return people.list_accounts(c)

    def account(self, by: Identity, username: str) -> Account:
        """One account: one's own, or for administrators any. NoAccount when it is not there, or not for him."""
        with self._database.reading() as c:
            return self._visible(c, by, username)

    def change(self, by: Identity, username: str, changes: Mapping[str, Any]) -> Account:
        """Change ``email``, ``name``, ``role``, ``disabled``, ``password``, ``quota_bytes`` or ``quota_objects``.

        A disabled account, and one whose password was changed, is logged out everywhere, and whatever it allowed
        OAuth2 clients has ended. Only a person changes by what, or as what, somebody logs in.
        """
        by.demand(ADMIN)
        for key, what in _ONLY_A_PERSON.items():
            if key in changes:
                by.demand_person(what)
        fields = _details({k: v for k, v in changes.items() if k != "password"})
        if "password" in changes:
            fields["password"] = self._hashed(changes["password"])
        with self._writing() as c:
            found = self._named(c, username)
            if fields.get("disabled") or fields.get("role", "admin") != "admin":
                self._keep_an_admin(c, found)
            if fields:
                people.change_account(c, found.id, **fields)
            if fields.get("disabled") or "password" in fields:
                people.delete_sessions(c, found.id)
                grants.end_grants(c, found.id)
            self._note(c, by.username, by.address, "account changed", username, ", ".join(sorted(changes)))
            return self._named(c, username)

    def delete(self, by: Identity, username: str) -> None:
        """Remove an account, its tokens, sessions and vaults. Contradiction while one of those is append-only."""
        by.demand(ADMIN)
        by.demand_person("delete an account")
        with self._writing() as c:
            found = self._named(c, username)
            self._keep_an_admin(c, found)
            hold_accounts(c, [found.id])  # no vault is made append-only meanwhile
            going = vaults.list_vaults(c, found.id)
            _demand_none_append_only(username, [vault.name for vault in going if vault.append_only])
            people.delete_account(c, found.id)
            for vault in going:
                detail = f"with its account, {vault.bytes} bytes, {vault.objects} objects"
                self._note(c, by.username, by.address, "vault deleted", f"{username}/{vault.name}", detail)
            self._note(c, by.username, by.address, "account deleted", username)

    def audit(self, by: Identity, limit: int = 100, before: int | None = None) -> list[AuditEntry]:
        """What was done, the newest first."""
        by.demand(ADMIN)
        if not 1 <= limit <= MOST_AUDIT:
            raise UsageError(f"The limit must be between 1 and {MOST_AUDIT}.")
        with self._database.reading() as c:
            return people.list_audit(c, limit, before)

    # -- one's own -------------------------------------------------------------------------------------------------

    def change_own_password(self, by: Identity, old: str, new: str, *, session: str = "") -> None:
        """The old one must be right, and is guarded against guessing like a log-in. Other sessions end, and whatever
        was allowed OAuth2 clients.
        """
        by.demand_person("change the password")
        self._prove(by.username, old, by.address)
        hashed = self._hashed(new)
        with self._writing() as c:
            people.change_account(c, by.account, password=hashed)
            people.delete_sessions(c, by.account, but=digest_of(session))
            grants.end_grants(c, by.account)
            self._note(c, by.username, by.address, "password changed", by.username)

    def charge(self, account: int, size: int, objects: int) -> None:
        """Count what an account stores (or, negative, no longer does); QuotaFull when it may not store so much."""
        with self._writing() as c:
            if people.charge(c, account, size, objects):
                return
            if people.account_by_id(c, account) is None:
                raise NoAccount("The account is gone.")
        raise QuotaFull("The account's quota is full.", "Delete something, or ask an administrator for more.")

    # -- logging in ------------------------------------------------------------------------------------------------

    def log_in(self, username: str, password: str, address: str) -> Identity:
        """By password. NotLoggedIn when it is wrong, TooManyAttempts when it was too often."""
        found = self._prove(username, password, address)
        if self._passwords.is_old(found.password):
            hashed = self._passwords.hash(password)
            with self._writing() as c:
                people.change_account(c, found.id, password=hashed)
        return _identity(found, scopes_of(found.role), address)

    def by_password(self, username: str, password: str, address: str) -> Identity:
        """The same for clients that send the password with every request: one that was right a while ago, from the same
        address, is recognised without Argon2, as long as the account's is the same.

        The guard is asked first, and after a failure nothing is recognised until a log-in was judged in its turn: who
        guesses learns no more, and no sooner, than at a log-in.
        """
        name = username if _NAME.fullmatch(username) else ""
        with self._database.reading() as c:
            is_calm = guard.demand_calm(c, name, address, self._now_ns())
            found = people.account_named(c, name)
        if is_calm and found and not found.disabled and self._proofs.holds(found.password, password, address):
            return _identity(found, scopes_of(found.role), address)
        known = self.log_in(username, password, address)
        with self._database.reading() as c:
            found = people.account_by_id(c, known.account)
        if found:
            self._proofs.keep(found.password, password, address)
        return known

    def open_session(self, by: Identity) -> str:
        """Start a session for somebody who just logged in: its key, for a cookie."""
        key, now = secrets.token_urlsafe(32), self._now_ns()
        with self._writing() as c:
            people.add_session(
                c, digest=digest_of(key), account=by.account, created_ns=now, expires_ns=now + SESSION_S * _SECOND
            )
            self._note(c, by.username, by.address, "logged in", by.username)
        return key

    def by_session(self, key: str, address: str) -> Identity:
        """Who has that session. NotLoggedIn when there is none."""
        with self._database.reading() as c:
            number = people.session_account(c, digest_of(key), self._now_ns())
            found = people.account_by_id(c, number) if number is not None else None
        if found is None or found.disabled:
            raise NotLoggedIn(_ENDED, "Log in again.")
        return _identity(found, scopes_of(found.role), address)

    def close_session(self, key: str) -> None:
        with self._writing() as c:
            people.delete_session(c, digest_of(key))

    # -- API tokens ------------------------------------------------------------------------------------------------

    def create_token(
        self, by: Identity, name: str, scopes: Iterable[str], expires_in: int | None = None
    ) -> tuple[str, Token]:
        """A token for the caller's account: the token itself, which nobody can tell again, and what is kept of it.

        ``scopes``: no more than the caller has. ``expires_in``: seconds from now; None: never. A token makes only
        tokens that do not outlive it, and an OAuth2 client makes none.
        """
        if by.via == OAUTH:
            by.demand_person("make API tokens")
        wanted = checked(scopes)
        for scope in sorted(wanted):
            by.demand(scope)
        if expires_in is not None and not 0 < expires_in <= LONGEST_LIFE_S:
            raise UsageError("expires_in must be a number of seconds between 1 and 100 years.")
        secret, now = TOKEN_PREFIX + secrets.token_urlsafe(32), self._now_ns()
        expires_ns = None if expires_in is None else now + expires_in * _SECOND
        if by.expires_ns is not None and (expires_ns is None or expires_ns > by.expires_ns):
            raise Forbidden("A token may not make one that outlives it.", "Log in with the password.")
        name = line_of_text(name, "name", least=1)
        with self._writing() as c:
            self._make_room_for_token(c, by.account, now)
            people.add_token(
                c, account=by.account, name=name, digest=digest_of(secret), scopes=" ".join(sorted(wanted)),
                created_ns=now, expires_ns=expires_ns,
            )  # fmt: skip
            made = people.token_by_digest(c, digest_of(secret))
            self._note(c, by.username, by.address, "token made", name, " ".join(sorted(wanted)))
        if made is None:
            raise NoAccount("The account is gone.")
        return secret, made

    def tokens(self, by: Identity) -> list[Token]:
        with self._database.reading() as c:
            return people.list_tokens(c, by.account)

    def token(self, by: Identity, number: int) -> Token:
        """NoAccount when the caller has no such token."""
        with self._database.reading() as c:
            found = people.token_of(c, by.account, number)
        if found is None:
            raise NoAccount(f"You have no token {number}.")
        return found

    def revoke_token(self, by: Identity, number: int) -> None:
        """NoAccount when the caller has no such token."""
        if by.via == OAUTH:
            by.demand_person("revoke API tokens")
        with self._writing() as c:
            if not people.delete_token(c, by.account, number):
                raise NoAccount(f"You have no token {number}.")
            self._note(c, by.username, by.address, "token revoked", str(number))

    def by_token(self, secret: str, address: str) -> Identity:
        """Who shows that token. NotLoggedIn when it is none, has expired, or its account is disabled."""
        now, found, token = self._now_ns(), None, None
        with self._database.reading() as c:
            token = people.token_by_digest(c, digest_of(secret))
            found = people.account_by_id(c, token.account) if token else None
        if (
            token is None
            or found is None
            or found.disabled
            or (token.expires_ns is not None and token.expires_ns <= now)
        ):
            raise NotLoggedIn(_ENDED, "Make a new token.")
        if token.used_ns is None or now - token.used_ns >= _USE_NOTED_EVERY_NS:
            with self._writing() as c:
                people.note_token_use(c, token.id, now)
        scopes = frozenset(token.scopes.split()) & scopes_of(found.role)
        return Identity(found.id, found.username, found.role, scopes, address, TOKEN, token.expires_ns)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _prove(self, username: str, password: str, address: str) -> Account:
        now = self._now_ns()
        username = username if _NAME.fullmatch(username) else ""  # nobody has such a name, and not all fit a database
        with self._database.reading() as c:
            guard.demand_calm(c, username, address, now)
            found = people.account_named(c, username)
        right = self._passwords.verify(password, found.password if found else None)
        with self._writing() as c:
            guard.hold(c, username, address, now)
            guard.demand_calm(c, username, address, now)  # many at once are no more guesses than one after the other
            if right and found is not None and not found.disabled:
                guard.forget(c, username, address)
                return found
            guard.count_failure(c, username, address, now)
            self._note(c, "", address, "log-in failed", username)
        raise NotLoggedIn(_WRONG)

    def _hashed(self, password: str) -> str:
        """A new password, as it is kept. UsageError when it will not do."""
        if password.startswith(TOKEN_PREFIX):
            raise UsageError(f"A password does not begin with {TOKEN_PREFIX}: API tokens do.", "Choose another one.")
        return self._passwords.hash(password)

    def _make_room_for_token(self, c: Connection, account: int, now_ns: int) -> None:
        """Forbidden when the account has as many tokens as it may; those that have expired are forgotten before."""
        held = people.hold_tokens(c, account)
        if held >= MOST_TOKENS and held - people.delete_expired_tokens(c, account, now_ns) >= MOST_TOKENS:
            raise Forbidden(f"An account has at most {MOST_TOKENS} API tokens.", "Revoke one first.")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._database.writing() as c:
            yield c
        self.generation += 1

    def _add(self, c: Connection, actor: str, address: str, **fields: Any) -> Account:
        number = people.add_account(c, **fields, created_ns=self._now_ns())
        if number is None:
            raise AccountExists(f"There is an account {fields['username']} already.", "Choose another name.")
        self._note(c, actor, address, "account made", fields["username"], fields["role"])
        return self._named(c, fields["username"])

    def _named(self, c: Connection, username: str) -> Account:
        found = people.account_named(c, username) if _NAME.fullmatch(username) else None  # not all names fit a database
        if found is None:
            raise NoAccount(f"There is no account {username}.")
        return found

    def _visible(self, c: Connection, by: Identity, username: str) -> Account:
        if username != by.username and ADMIN not in by.scopes:
            raise NoAccount(f"There is no account {username}.")
        return self._named(c, username)

    def _keep_an_admin(self, c: Connection, going: Account) -> None:
        if going.role == "admin" and not people.count_admins(c, besides=going.id):
            raise Forbidden(
                f"{going.username} is the last administrator.", "Make another account an administrator first."
            )

    def _note(self, c: Connection, actor: str, address: str, action: str, subject: str, detail: str = "") -> None:
        people.add_audit(
            c, at_ns=self._now_ns(), actor=actor, address=address, action=action, subject=subject, detail=detail
        )


def _demand_none_append_only(username: str, names: list[str]) -> None:
    if not names:
        return
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    raise Contradiction(f"{username} has append-only vaults: {shown}.", "Turn that off first, or disable the account.")


def _identity(account: Account, scopes: frozenset[str], address: str) -> Identity:
    return Identity(account.id, account.username, account.role, scopes, address)


def is_token(text: str) -> bool:
    """Whether it has an API token's form; no password that is set has it."""
    return _TOKEN.fullmatch(text) is not None


def digest_of(secret: str) -> bytes:
    """How tokens and session keys are kept: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _username(username: str) -> str:
    if not _NAME.fullmatch(username):
        raise UsageError(
            "A user name has 1 to 64 letters, digits, dots, dashes, underlines or @, a letter or digit first."
        )
    return username


def _details(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The columns an administrator may set, checked; UsageError names the one that will not do."""
    for key, value in fields.items():
        if key in ("email", "name"):
            line_of_text(value, key)
        elif key == "role":
            if value not in ROLES:
                raise UsageError("The role must be admin or user.")
        elif key == "disabled":
            if not isinstance(value, bool):
                raise UsageError("disabled must be true or false.")
        elif key in ("quota_bytes", "quota_objects"):
            if value is not None and not (type(value) is int and 0 <= value < 1 << 63):
                raise UsageError(f"{key} must be a number from 0, or null for none.")
        else:
            raise UsageError(f"An account has no {key} that could be set.")
    if (email := fields.get("email")) and not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        raise UsageError("The email must be an address.")
    return dict(fields)


def line_of_text(value: object, what: str, least: int = 0) -> str:
    """A line of text as people write it."""
    if not isinstance(value, str) or not least <= len(value) <= _LONGEST_TEXT:
        raise UsageError(f"The {what} must be a text of {least} to {_LONGEST_TEXT} characters.")
    if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in value):
        raise UsageError(f"The {what} must not have control characters.")
    return value
