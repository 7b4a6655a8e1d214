"""Accounts, their API tokens and sessions, failed log-ins and the audit log, as rows.

Each function takes the connection of a transaction that its caller opened (``Database.reading`` or ``writing``). They
ask and change; what is allowed is decided above.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.catalog.database import Connection
from holdfast.catalog.numbers import next_number, owe_merging
from holdfast.catalog.rows import columns, every, insert_new, one
from holdfast.catalog.tables import accounts, attempts, audit, sessions, subjects, tokens


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``accounts``. ``password`` is Argon2id in PHC form. A quota of None is none."""

    id: int
    username: str
    email: str
    name: str
    role: str
    password: str
    disabled: bool
    created_ns: int
    quota_bytes: int | None
    quota_objects: int | None
    used_bytes: int
    used_objects: int


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``tokens``, without its digest. ``scopes``: with one space between."""

    id: int
    account: int
    name: str
    scopes: str
    created_ns: int
    expires_ns: int | None
    used_ns: int | None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``audit``. ``actor``: a username, empty for nobody; ``subject``: what it was done to."""

    id: int
    at_ns: int
    actor: str
    address: str
    action: str
    subject: str
    detail: str


# -- accounts ----------------------------------------------------------------------------------------------------------


def add_account(
    connection: Connection, *, username: str, email: str, name: str, role: str, password: str, created_ns: int
) -> int | None:
    """The new account's number; None when the name is taken."""
    number = next_number(connection, "accounts")  # nobody comes into what somebody else had begun
    row = {
        "id": number, "username": username, "email": email, "name": name, "role": role, "password": password,
        "created_ns": created_ns,
    }  # fmt: skip
    return number if insert_new(connection, accounts, row) else None


def account_named(connection: Connection, username: str) -> Account | None:
    return one(connection, Account, sa.select(*columns(Account, accounts)).where(accounts.c.username == username))


def account_by_id(connection: Connection, number: int) -> Account | None:
    return one(connection, Account, sa.select(*columns(Account, accounts)).where(accounts.c.id == number))


def list_accounts(connection: Connection) -> list[Account]:
    """All of them, by name."""
    return every(connection, Account, sa.select(*columns(Account, accounts)).order_by(accounts.c.username))


def change_account(connection: Connection, number: int, **changes: Any) -> None:
    """Set columns of one account."""
    connection.execute(sa.update(accounts).where(accounts.c.id == number).values(changes))


def delete_account(connection: Connection, number: int) -> None:
    """With its tokens and sessions, and all that it has."""
    owe_merging(connection)
    connection.execute(sa.delete(accounts).where(accounts.c.id == number))


def count_admins(connection: Connection, *, besides: int) -> int:
    """How many accounts other than that one may administer. They stay so until the transaction ends: no two
    administrators remove each other at the same time.
    """
    admins = sa.select(accounts.c.id).where(accounts.c.role == "admin", accounts.c.disabled.is_(False))
    found = connection.execute(admins.order_by(accounts.c.id).with_for_update()).scalars().all()
    return len([number for number in found if number != besides])


def charge(connection: Connection, number: int, size: int, objects: int) -> bool:
    """Add to what an account uses, in one step; False, and nothing added, when its quota would be passed.

    Giving back (negative numbers) always succeeds; usage never goes below nothing.
    """
    asked = {"number": number, "more_bytes": size, "more_objects": objects}
    return connection.execute(_charge(), asked).rowcount == 1


@functools.cache
def _charge() -> sa.Update:
    """Built once: it is asked with every file."""
    more_bytes, more_objects = (
        sa.bindparam("more_bytes", type_=sa.BigInteger),
        sa.bindparam("more_objects", type_=sa.BigInteger),
    )
    used_bytes, used_objects = accounts.c.used_bytes + more_bytes, accounts.c.used_objects + more_objects
    fits = sa.and_(
        sa.or_(more_bytes <= 0, accounts.c.quota_bytes.is_(None), used_bytes <= accounts.c.quota_bytes),
        sa.or_(more_objects <= 0, accounts.c.quota_objects.is_(None), used_objects <= accounts.c.quota_objects),
    )
    change = {"used_bytes": _at_least_zero(used_bytes), "used_objects": _at_least_zero(used_objects)}
    return sa.update(accounts).where(accounts.c.id == sa.bindparam("number"), fits).values(change)


def _at_least_zero(value: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return sa.case((value < 0, 0), else_=value)


def accounts_with_email(connection: Connection, email: str) -> list[Account]:
    """Those that have the address, in whatever case."""
    same = sa.func.lower(accounts.c.email) == email.lower()
    return every(connection, Account, sa.select(*columns(Account, accounts)).where(same))


def account_of_subject(connection: Connection, issuer: str, subject: str) -> Account | None:
    """Whom an outside provider means."""
    known = sa.select(subjects.c.account).where(subjects.c.issuer == issuer, subjects.c.subject == subject)
    mine = accounts.c.id == known.scalar_subquery()
    return one(connection, Account, sa.select(*columns(Account, accounts)).where(mine))


def know_subject(connection: Connection, issuer: str, subject: str, account: int) -> None:
    """Remember it; what is known stays."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = insert(subjects).values(issuer=issuer, subject=subject, account=account)
    connection.execute(row.on_conflict_do_nothing())


# -- tokens and sessions -----------------------------------------------------------------------------------------------


def add_token(
    connection: Connection,
    *,
    account: int,
    name: str,
    digest: bytes,
    scopes: str,
    created_ns: int,
    expires_ns: int | None,
) -> int:
    row = {
        "account": account, "name": name, "digest": digest, "scopes": scopes, "created_ns": created_ns,
        "expires_ns": expires_ns,
    }  # fmt: skip
    return int(connection.execute(sa.insert(tokens).values(row).returning(tokens.c.id)).scalar_one())


def token_by_digest(connection: Connection, digest: bytes) -> Token | None:
    return one(connection, Token, sa.select(*columns(Token, tokens)).where(tokens.c.digest == digest))


def list_tokens(connection: Connection, account: int) -> list[Token]:
    query = sa.select(*columns(Token, tokens)).where(tokens.c.account == account)
    return every(connection, Token, query.order_by(tokens.c.id))


def token_of(connection: Connection, account: int, number: int) -> Token | None:
    """The one of that number, if that account has it."""
    mine = (tokens.c.id == number, tokens.c.account == account)
    return one(connection, Token, sa.select(*columns(Token, tokens)).where(*mine))


def hold_tokens(connection: Connection, account: int) -> int:
    """How many an account has. Nobody else asks that for it, to add one, until the transaction ends."""
    held = sa.select(accounts.c.id).where(accounts.c.id == account)
    connection.execute(held.with_for_update(key_share=True))  # rows that refer to the account may still come
    counted = sa.select(sa.func.count()).select_from(tokens).where(tokens.c.account == account)
    return connection.execute(counted).scalar_one()


def delete_expired_tokens(connection: Connection, account: int, now_ns: int) -> int:
    """Those of an account that count no longer: how many they were."""
    mine = sa.delete(tokens).where(tokens.c.account == account, tokens.c.expires_ns <= now_ns)
    return connection.execute(mine).rowcount


def note_token_use(connection: Connection, number: int, at_ns: int) -> None:
    connection.execute(sa.update(tokens).where(tokens.c.id == number).values(used_ns=at_ns))


def delete_token(connection: Connection, account: int, number: int) -> bool:
    """Whether that account had it."""
    mine = sa.delete(tokens).where(tokens.c.id == number, tokens.c.account == account)
    return connection.execute(mine).rowcount == 1


def add_session(connection: Connection, *, digest: bytes, account: int, created_ns: int, expires_ns: int) -> None:
    """Start a session; those that have ended by then are removed."""
    connection.execute(sa.delete(sessions).where(sessions.c.expires_ns <= created_ns))
    row = {"digest": digest, "account": account, "created_ns": created_ns, "expires_ns": expires_ns}
    connection.execute(sa.insert(sessions).values(row))


def session_account(connection: Connection, digest: bytes, now_ns: int) -> int | None:
    """Whose session it is; None when there is none, or it has ended."""
    query = sa.select(sessions.c.account).where(sessions.c.digest == digest, sessions.c.expires_ns > now_ns)
    return connection.execute(query).scalar_one_or_none()


def delete_session(connection: Connection, digest: bytes) -> None:
    connection.execute(sa.delete(sessions).where(sessions.c.digest == digest))


def delete_sessions(connection: Connection, account: int, *, but: bytes = b"") -> None:
    """End all sessions of an account, ``but`` one."""
    connection.execute(sa.delete(sessions).where(sessions.c.account == account, sessions.c.digest != but))


# -- failed log-ins ----------------------------------------------------------------------------------------------------


def failures(connection: Connection, subjects: Sequence[str]) -> dict[str, tuple[int, int]]:
    """For each subject that has any: how many failures, and when the last one was."""
    query = sa.select(attempts.c.subject, attempts.c.failures, attempts.c.last_ns)
    rows = connection.execute(query.where(attempts.c.subject.in_(list(subjects))))
    return {subject: (count, last_ns) for subject, count, last_ns in rows}


def hold_failures(connection: Connection, subjects: Sequence[str], now_ns: int) -> None:
    """Until the transaction ends nobody else reads or changes the counts of these subjects after doing the same."""
    for subject in sorted(subjects):
        connection.execute(_first_failure(connection, subject, 0, now_ns).on_conflict_do_nothing())
        row = sa.select(attempts.c.subject).where(attempts.c.subject == subject)
        connection.execute(row.with_for_update())


def add_failure(connection: Connection, subject: str, now_ns: int, forget_before_ns: int) -> None:
    """Count one more; failures whose last one is older than ``forget_before_ns`` no longer count."""
    stale = sa.select(attempts.c.subject).where(attempts.c.last_ns < forget_before_ns)
    gone = sa.delete(attempts).where(attempts.c.subject.in_(stale.with_for_update(skip_locked=True)))
    connection.execute(gone)
    fresh = attempts.c.last_ns >= forget_before_ns
    more = {"failures": sa.case((fresh, attempts.c.failures + 1), else_=1), "last_ns": now_ns}
    first = _first_failure(connection, subject, 1, now_ns)
    connection.execute(first.on_conflict_do_update(index_elements=["subject"], set_=more))


def _first_failure(connection: Connection, subject: str, count: int, now_ns: int) -> sqlite.Insert | postgresql.Insert:
    row = {"subject": subject, "failures": count, "last_ns": now_ns}
    if connection.dialect.name == "sqlite":
        return sqlite.insert(attempts).values(row)
    return postgresql.insert(attempts).values(row)


def forget_failures(connection: Connection, subjects: Sequence[str]) -> None:
    connection.execute(sa.delete(attempts).where(attempts.c.subject.in_(list(subjects))))


# -- the audit log -----------------------------------------------------------------------------------------------------


def add_audit(
    connection: Connection, *, at_ns: int, actor: str, address: str, action: str, subject: str, detail: str
) -> None:
    row = {"at_ns": at_ns, "actor": actor, "address": address, "action": action, "subject": subject, "detail": detail}
    connection.execute(sa.insert(audit).values(row))


def list_audit(connection: Connection, limit: int, before: int | None) -> list[AuditEntry]:
    """The newest first; with ``before``, those whose number is smaller."""
    query = sa.select(*columns(AuditEntry, audit)).order_by(audit.c.id.desc()).limit(limit)
    return every(connection, AuditEntry, query if before is None else query.where(audit.c.id < before))
