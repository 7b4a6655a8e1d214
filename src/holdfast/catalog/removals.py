"""What is given up, as rows: manifests that were deleted, and files that no manifest of their account names any more.

A deleted manifest's row stays, seen by nobody, until what it alone held was given up. Each function takes the
connection of a transaction that its caller opened.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from holdfast.catalog.database import Connection
from holdfast.catalog.holdings import Manifest, listed, of_account, some_of, whole
from holdfast.catalog.rows import every
from holdfast.catalog.tables import accounts, files, manifests, wanted


class Deleted(msgspec.Struct, frozen=True):
    """A manifest that was deleted, and when."""

    manifest: Manifest
    at_ns: int


class Held(msgspec.Struct, frozen=True):
    """The manifests of an account. ``newest``: the number that the last one got; ``receiving``: another one comes."""

    manifests: list[Manifest]
    newest: int
    receiving: bool


def delete_manifests(connection: Connection, account: int, name: str, version: int | None, now_ns: int) -> list[int]:
    """Mark a version of a manifest as deleted, or all of them; their versions."""
    chosen = sa.and_(of_account(account), whole, manifests.c.name == name)
    if version is not None:
        chosen = sa.and_(chosen, manifests.c.version == version)
    mark = sa.update(manifests).where(chosen).values(deleted_ns=now_ns)
    gone = connection.execute(mark.returning(manifests.c.id, manifests.c.version)).all()
    if gone:
        connection.execute(sa.delete(wanted).where(wanted.c.manifest.in_([number for number, _ in gone])))
    return sorted(version for _, version in gone)


def deleted_manifests(connection: Connection) -> list[Deleted]:
    """Those that are still to be dropped, by account; without their headers."""
    marked = manifests.c.deleted_ns.is_not(None)
    query = sa.select(manifests.c.id, manifests.c.deleted_ns).where(marked)
    when = {row.id: row.deleted_ns for row in connection.execute(query)}
    found = sa.select(*listed).where(marked).order_by(manifests.c.account, manifests.c.id)
    return [Deleted(manifest, when[manifest.id]) for manifest in every(connection, Manifest, found)]


def held(connection: Connection, account: int) -> Held:
    """Everything that an account's files may be named by; without their headers."""
    mine = of_account(account)
    coming = connection.execute(sa.select(sa.func.count()).where(mine, manifests.c.version <= 0)).scalar_one()
    query = sa.select(*listed).where(mine, whole).order_by(manifests.c.id)
    return Held(every(connection, Manifest, query), _newest(connection, account), coming > 0)


def newest_manifest(connection: Connection, account: int) -> int:
    """The number of the account's newest manifest. Until the end of the transaction nobody begins another one."""
    connection.execute(sa.select(accounts.c.id).where(accounts.c.id == account).with_for_update())
    return _newest(connection, account)


def _newest(connection: Connection, account: int) -> int:
    query = sa.select(sa.func.max(manifests.c.id)).where(of_account(account))
    return connection.execute(query).scalar_one_or_none() or 0


def delete_files(connection: Connection, account: int, before_ns: Mapping[str, int]) -> tuple[int, int]:
    """Give up those of the files that were last sent before the time said for each; how many, and their bytes."""
    doomed: dict[str, int] = {}
    for some in some_of(before_ns):
        mine = sa.and_(files.c.account == account, files.c.hash.in_(some))
        query = sa.select(files.c.hash, files.c.size, files.c.stored_ns).where(mine)
        for hash_, size, stored_ns in connection.execute(query):
            if stored_ns < before_ns[hash_]:
                doomed[hash_] = size
    for some in some_of(doomed):
        connection.execute(sa.delete(files).where(files.c.account == account, files.c.hash.in_(some)))
    return len(doomed), sum(doomed.values())
