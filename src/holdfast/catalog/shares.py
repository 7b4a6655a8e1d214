"""One-time shares as rows: whose they are, how often they may be downloaded and were, and what is under way.

A download has a claim from before its first byte until it has ended: ``claimed`` of its share counts them, always
together with their rows. One that nobody renews is left of a server that was killed. It is given back, unless it says
that its last byte may have been sent: then it counts as taken.

Each function takes the connection of a transaction that its caller opened.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import sqlalchemy as sa

from holdfast.catalog import people
from holdfast.catalog.database import Connection
from holdfast.catalog.holdings import hold_accounts, some_of
from holdfast.catalog.numbers import next_number
from holdfast.catalog.rows import columns, every, one
from holdfast.catalog.tables import share_claims, shares


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``shares``. ``account``: None when it was deleted. ``file``: None when it is gone. ``password``: None
    for none, else Argon2id in PHC form. ``expires_ns``, ``ended_ns``: None for never, not yet.
    """

    id: int
    account: int | None
    name: str
    type: str
    size: int
    hash: bytes
    file: str | None
    password: str | None
    downloads: int
    taken: int
    claimed: int
    created_ns: int
    expires_ns: int | None
    ended_ns: int | None

    def has_ended(self, now_ns: int) -> bool:
        """Whether nobody will ever get it again."""
        expired = self.expires_ns is not None and self.expires_ns <= now_ns
        return self.account is None or self.ended_ns is not None or self.taken >= self.downloads or expired


_shares = sa.select(*columns(Share, shares))


# -- making, finding, listing ------------------------------------------------------------------------------------------


def add_share(connection: Connection, share: Share, digest: bytes) -> int | None:
    """The new share's number (what ``share`` has for one does not count), and its bytes counted; None, and the
    transaction is not to be committed, when its account's quota would be passed, or the account is gone.
    """
    if share.account is None or share.account not in hold_accounts(connection, [share.account]):
        return None
    if not people.charge(connection, share.account, share.size, 1):
        return None
    number = next_number(connection, "shares")
    row = msgspec.structs.asdict(share) | {"id": number, "digest": digest}
    connection.execute(sa.insert(shares).values(row))
    return number


def share_by_digest(connection: Connection, digest: bytes) -> Share | None:
    return one(connection, Share, _shares.where(shares.c.digest == digest))


def share_of(connection: Connection, account: int, number: int) -> Share | None:
    """The one of that number, if that account has it."""
    return one(connection, Share, _shares.where(shares.c.id == number, shares.c.account == account))


def list_shares(connection: Connection, account: int, limit: int, before: int | None, *, all_: bool) -> list[Share]:
    """An account's, the newest first; with ``before``, those whose number is smaller. Unless ``all_``: only those that
    have not ended.
    """
    query = _shares.where(shares.c.account == account).order_by(shares.c.id.desc()).limit(limit)
    if before is not None:
        query = query.where(shares.c.id < before)
    return every(connection, Share, query if all_ else query.where(shares.c.ended_ns.is_(None)))


def end_share(connection: Connection, number: int, now_ns: int) -> None:
    """Nobody gets it any more; one that has ended stays as it is."""
    mine = sa.update(shares).where(shares.c.id == number, shares.c.ended_ns.is_(None))
    connection.execute(mine.values(ended_ns=now_ns))


# -- downloads ---------------------------------------------------------------------------------------------------------


def claim(connection: Connection, number: int, claim_id: str, now_ns: int) -> bool:
    """Take one of the downloads that are left; False when there is none left, or the share has ended."""
    there = sa.and_(
        shares.c.id == number, shares.c.account.is_not(None), shares.c.ended_ns.is_(None),
        sa.or_(shares.c.expires_ns.is_(None), shares.c.expires_ns > now_ns),
        shares.c.taken + shares.c.claimed < shares.c.downloads,
    )  # fmt: skip
    taken = sa.update(shares).where(there).values(claimed=shares.c.claimed + 1)
    if connection.execute(taken).rowcount != 1:
        return False
    row = {"id": claim_id, "share": number, "renewed_ns": now_ns}
    connection.execute(sa.insert(share_claims).values(row))
    return True


def make_final(connection: Connection, claim_id: str) -> bool:
    """From now on the last byte may have been sent. False when the claim was taken for one left of a killed server."""
    mine = sa.update(share_claims).where(share_claims.c.id == claim_id).values(final=True)
    return connection.execute(mine).rowcount == 1


def end_claim(connection: Connection, claim_id: str, now_ns: int, *, taken: bool) -> bool:
    """The download is over: it counts (``taken``), or it is given back. False when that was decided already."""
    gone = sa.delete(share_claims).where(share_claims.c.id == claim_id).returning(share_claims.c.share)
    number = connection.execute(gone).scalar_one_or_none()
    if number is None:
        return False
    _settle(connection, number, now_ns, taken=taken)
    return True


def renew_claims(connection: Connection, running: Iterable[str], now_ns: int) -> None:
    for some in some_of(running):
        mine = sa.update(share_claims).where(share_claims.c.id.in_(some))
        connection.execute(mine.values(renewed_ns=now_ns))


def end_claims_left(connection: Connection, before_ns: int, now_ns: int) -> int:
    """End the claims that nobody has renewed since: how many they were."""
    old = sa.delete(share_claims).where(share_claims.c.renewed_ns < before_ns)
    found = connection.execute(old.returning(share_claims.c.share, share_claims.c.final)).all()
    for row in found:
        _settle(connection, row.share, now_ns, taken=row.final)
    return len(found)


def _settle(connection: Connection, number: int, now_ns: int, *, taken: bool) -> None:
    """One claim fewer. The last download that there may be ends the share."""
    more = {"claimed": shares.c.claimed - 1} | ({"taken": shares.c.taken + 1} if taken else {})
    connection.execute(sa.update(shares).where(shares.c.id == number).values(more))
    if taken:
        is_last = sa.and_(shares.c.id == number, shares.c.ended_ns.is_(None), shares.c.taken >= shares.c.downloads)
        connection.execute(sa.update(shares).where(is_last).values(ended_ns=now_ns))


# -- the end -----------------------------------------------------------------------------------------------------------


def end_expired(connection: Connection, now_ns: int) -> None:
    """Those whose time has passed, as of when it did, and those whose account is gone."""
    passed = sa.and_(shares.c.ended_ns.is_(None), shares.c.expires_ns <= now_ns)
    connection.execute(sa.update(shares).where(passed).values(ended_ns=shares.c.expires_ns))
    nobodys = sa.and_(shares.c.ended_ns.is_(None), shares.c.account.is_(None))
    connection.execute(sa.update(shares).where(nobodys).values(ended_ns=now_ns))


def to_expire(connection: Connection, now_ns: int) -> bool:
    """Whether ``end_expired`` has something to do."""
    due = sa.or_(shares.c.expires_ns <= now_ns, shares.c.account.is_(None))
    return (
        connection.execute(sa.select(shares.c.id).where(shares.c.ended_ns.is_(None), due).limit(1)).first() is not None
    )


def to_remove(connection: Connection, ended_before_ns: int) -> list[tuple[int, str]]:
    """Number and file of those that ended by then and whose file is still there."""
    query = sa.select(shares.c.id, shares.c.file).where(shares.c.file.is_not(None))
    return [(n, file) for n, file in connection.execute(query.where(shares.c.ended_ns <= ended_before_ns))]


def note_removed(connection: Connection, number: int) -> bool:
    """Its file is gone, and counts no longer; its hash and its password go with it. What it was called stays, for its
    owner's list. False when that was noted already.
    """
    account = connection.execute(sa.select(shares.c.account).where(shares.c.id == number)).scalar_one_or_none()
    hold_accounts(connection, [] if account is None else [account])
    mine = sa.and_(shares.c.id == number, shares.c.file.is_not(None))
    bare = {"file": None, "password": None, "hash": b""}
    row = connection.execute(
        sa.update(shares).where(mine).values(bare).returning(shares.c.account, shares.c.size)
    ).one_or_none()
    if row is None:
        return False
    if row.account is not None:
        people.charge(connection, row.account, -row.size, -1)
    return True


def known_files(connection: Connection) -> set[str]:
    return set(connection.execute(sa.select(shares.c.file).where(shares.c.file.is_not(None))).scalars())
