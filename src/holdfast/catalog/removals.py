"""What is given up, as rows: manifests that were deleted, and files that no manifest of their account names any more.

A deleted manifest's row stays, seen by nobody, until what it alone held was given up. After that the newest one of its
name stays as a stub that keeps its version from being given again. Clocks are not asked: an account counts its
deletions, a file remembers how many there were when it came last, and a deletion takes only what came before it.

Each function takes the connection of a transaction that its caller opened.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa

from holdfast.catalog.database import Connection
from holdfast.catalog.holdings import Manifest, hold_accounts, listed, of_account, some_of, whole
from holdfast.catalog.rows import every
from holdfast.catalog.tables import accounts, files, manifests, wanted

_STUB = 0  # in the place of a deletion: what was left to do was done
_WANTED_AT_ONCE = 5000
_deleted = manifests.c.deletion > _STUB


class Deleted(msgspec.Struct, frozen=True):
    """A manifest that was deleted, and by which of its account's deletions."""

    manifest: Manifest
    deletion: int


class Held(msgspec.Struct, frozen=True):
    """The manifests of an account. ``newest``: the number that the last one got; ``receiving``: another one comes."""

    manifests: list[Manifest]
    newest: int
    receiving: bool


def delete_manifests(connection: Connection, account: int, name: str, version: int | None) -> list[int]:
    """Mark a version of a manifest as deleted, or all of them; their versions."""
    hold_accounts(connection, [account])
    counted = sa.update(accounts).where(accounts.c.id == account).values(deletions=accounts.c.deletions + 1)
    deletion = connection.execute(counted.returning(accounts.c.deletions)).scalar_one_or_none()
    chosen = sa.and_(of_account(account), whole, manifests.c.name == name)
    if version is not None:
        chosen = sa.and_(chosen, manifests.c.version == version)
    mark = sa.update(manifests).where(chosen).values(deletion=deletion)
    return sorted(connection.execute(mark.returning(manifests.c.version)).scalars())


def deleted_manifests(connection: Connection) -> list[Deleted]:
    """Those that are still to be dropped, by account; without their headers."""
    query = sa.select(*listed, manifests.c.deletion).where(_deleted).order_by(manifests.c.account, manifests.c.id)
    rows = [dict(row._mapping) for row in connection.execute(query)]
    return [Deleted(deletion=row.pop("deletion"), manifest=Manifest(**row)) for row in rows]


def held(connection: Connection, account: int) -> Held:
    """Everything that an account's files may be named by; without their headers. In this order, so that a manifest
    which comes meanwhile is newer than ``newest``.
    """
    mine = of_account(account)
    newest = connection.execute(sa.select(sa.func.max(manifests.c.id)).where(mine)).scalar_one_or_none()
    coming = connection.execute(sa.select(sa.func.count()).where(mine, manifests.c.version <= 0)).scalar_one()
    query = sa.select(*listed).where(mine, whole).order_by(manifests.c.id)
    return Held(every(connection, Manifest, query), newest or 0, coming > 0)


def has_newer(connection: Connection, account: int, newest: int) -> bool:
    """Whether the account has manifests with higher numbers. Nobody begins another one in this transaction's time."""
    hold_accounts(connection, [account])
    query = sa.select(manifests.c.id).where(of_account(account), manifests.c.id > newest).limit(1)
    return connection.execute(query).first() is not None


def delete_files(connection: Connection, account: int, deletions: Mapping[str, int]) -> tuple[int, int]:
    """Give up those of the files that came last before the deletion said for each; how many, and their bytes. Begins
    with ``hold_accounts``, as ``has_newer`` does.
    """
    count = size = 0
    by_deletion: dict[int, list[str]] = {}
    for hash_, deletion in deletions.items():
        by_deletion.setdefault(deletion, []).append(hash_)
    for deletion, hashes in by_deletion.items():
        for some in some_of(hashes):
            mine = sa.and_(files.c.account == account, files.c.hash.in_(some), files.c.deletions < deletion)
            sizes = connection.execute(sa.delete(files).where(mine).returning(files.c.size)).scalars().all()
            count, size = count + len(sizes), size + sum(sizes)
    return count, size


def drop_wanted(connection: Connection, number: int) -> bool:
    """Drop some of what a manifest wanted; whether there may be more."""
    query = sa.select(wanted.c.hash).where(wanted.c.manifest == number).limit(_WANTED_AT_ONCE)
    hashes = connection.execute(query).scalars().all()
    for some in some_of(hashes):
        connection.execute(sa.delete(wanted).where(wanted.c.manifest == number, wanted.c.hash.in_(some)))
    return len(hashes) == _WANTED_AT_ONCE


def drop_manifest(connection: Connection, manifest: Manifest) -> bool:
    """Nothing of a deleted manifest is left but, of the newest one of its name, its version. False, and nothing is
    done, when it has got another snapshot since it was read.
    """
    row = sa.and_(manifests.c.id == manifest.id, _deleted, manifests.c.snapshot == manifest.snapshot)
    empty = {
        "deletion": _STUB, "header": b"", "chunks": b"", "depth": 0, "size": 0, "snapshot": "", "base": "",
        "timestamp": "",
    }  # fmt: skip
    if not connection.execute(sa.update(manifests).where(row).values(empty)).rowcount:
        return False
    same = sa.and_(of_account(manifest.account), manifests.c.name == manifest.name)
    newest = sa.select(sa.func.max(manifests.c.version)).where(same).scalar_subquery()
    stubs = sa.and_(same, manifests.c.deletion == _STUB, manifests.c.version < newest)
    connection.execute(sa.delete(manifests).where(stubs))
    return True
