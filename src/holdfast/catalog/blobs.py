"""Buckets and blobs as rows: whose they are, what others may, which content is a key's, what no key names any more.

What a bucket holds is counted in its row and in its owner's usage, always together. A content's place stands in
``blob_leftovers`` from before its first byte until a blob names it, and again once none does: so a server that is
killed leaves nothing behind that the catalog does not know.

Each function takes the connection of a transaction that its caller opened; one that changes what is counted begins
with ``holdings.hold_accounts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from holdfast.catalog import people
from holdfast.catalog.database import Connection
from holdfast.catalog.holdings import some_of
from holdfast.catalog.numbers import next_number, owe_merging
from holdfast.catalog.rows import columns, every, insert_new
from holdfast.catalog.tables import accounts, blob_leftovers, blobs, bucket_grants, buckets

DISK, OBJECT, REPOSITORY = "disk", "object", "repository"
FILESYSTEMS = (DISK, OBJECT, REPOSITORY)
EVERYONE = "*"


class Bucket(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``buckets``, and its owner's names. A quota of None: no limit but the account's."""

    id: int
    account: int
    username: str
    email: str
    owner_name: str
    name: str
    filesystem: str
    quota_bytes: int | None
    quota_objects: int | None
    bytes: int
    objects: int
    created_ns: int


class Blob(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``blobs``, without its bucket. ``place``: what its content is called in the bucket's file system."""

    key: bytes
    size: int
    sha1: str
    modified_ns: int
    place: str
    chunks: bytes = b""
    depth: int = 0


class Leftover(msgspec.Struct, frozen=True):
    """A row of ``blob_leftovers``. ``size``: None when it is not known."""

    place: str
    filesystem: str
    size: int | None


_of_owner = {"username": accounts.c.username, "email": accounts.c.email, "owner_name": accounts.c.name}
_columns = [_of_owner[name].label(name) if name in _of_owner else buckets.c[name] for name in Bucket.__struct_fields__]
_buckets = sa.select(*_columns).join(accounts, accounts.c.id == buckets.c.account)
_blobs = sa.select(*columns(Blob, blobs))
# What each put and get asks is built once: building takes longer than asking.
_NAMED = _buckets.where(buckets.c.name == sa.bindparam("called"))
_NUMBERED = _buckets.where(buckets.c.id == sa.bindparam("number"))
_ADD = sa.insert(blobs)
_CLAIM = sa.delete(blob_leftovers).where(blob_leftovers.c.place == sa.bindparam("lies_at"), blob_leftovers.c.due_ns > 0)
_SIZE, _OBJECTS = (sa.bindparam(name, type_=sa.BigInteger) for name in ("more_bytes", "more_objects"))
_IS_BACK = sa.bindparam("is_back", type_=sa.Boolean)  # what was counted just now is taken back, whatever the quotas say
_COUNT = (
    sa.update(buckets)
    .where(buckets.c.id == sa.bindparam("number"), buckets.c.account == sa.bindparam("owner"))
    .where(*(
        sa.or_(more <= 0, _IS_BACK, quota.is_(None), used + more <= quota)
        for quota, used, more in (
            (buckets.c.quota_bytes, buckets.c.bytes, _SIZE), (buckets.c.quota_objects, buckets.c.objects, _OBJECTS),
        )
    ))
    .values(bytes=buckets.c.bytes + _SIZE, objects=buckets.c.objects + _OBJECTS)
)  # fmt: skip
_ONE = _blobs.where(blobs.c.bucket == sa.bindparam("in_bucket"), blobs.c.key == sa.bindparam("called"))


# -- buckets -----------------------------------------------------------------------------------------------------------


def add_bucket(connection: Connection, **row: Any) -> int | None:
    """The new bucket's number; None when the name is taken."""
    number = next_number(connection, "buckets")
    return number if insert_new(connection, buckets, {"id": number, **row}) else None


def bucket_named(connection: Connection, name: str) -> Bucket | None:
    row = connection.execute(_NAMED, {"called": name}).one_or_none()
    return None if row is None else Bucket(**row._mapping)


def bucket_by_id(connection: Connection, number: int) -> Bucket | None:
    """None also when its account was deleted."""
    row = connection.execute(_NUMBERED, {"number": number}).one_or_none()
    return None if row is None else Bucket(**row._mapping)


def list_buckets(connection: Connection, account: int | None) -> list[Bucket]:
    """By name: those of an account, or in which something was granted to it; None: all."""
    query = _buckets.order_by(buckets.c.name)
    if account is not None:
        mine = sa.or_(bucket_grants.c.account == account, bucket_grants.c.account.is_(None))
        granted = sa.select(bucket_grants.c.bucket).where(mine)
        query = query.where(sa.or_(buckets.c.account == account, buckets.c.id.in_(granted)))
    return every(connection, Bucket, query)


def change_bucket(connection: Connection, number: int, **changes: Any) -> None:
    connection.execute(sa.update(buckets).where(buckets.c.id == number).values(changes))


def drop_bucket(connection: Connection, number: int) -> bool:
    """False when there are blobs in it."""
    empty = ~sa.select(blobs.c.key).where(blobs.c.bucket == number).exists()
    return connection.execute(sa.delete(buckets).where(buckets.c.id == number, empty)).rowcount == 1


def given_up(connection: Connection) -> list[tuple[int, str]]:
    """Number and file system of the buckets whose account was deleted."""
    query = sa.select(buckets.c.id, buckets.c.filesystem).where(buckets.c.account.is_(None))
    return [(number, filesystem) for number, filesystem in connection.execute(query)]


# -- what others may ---------------------------------------------------------------------------------------------------


def allowed(connection: Connection, bucket: int, account: int) -> frozenset[str]:
    """What was granted to that account, or to everyone."""
    mine = sa.or_(bucket_grants.c.account == account, bucket_grants.c.account.is_(None))
    query = sa.select(bucket_grants.c.allowed).where(bucket_grants.c.bucket == bucket, mine)
    return frozenset(act for text in connection.execute(query).scalars() for act in text.split())


def list_grants(connection: Connection, bucket: int) -> dict[str, list[str]]:
    """By user name, and EVERYONE."""
    query = (
        sa.select(accounts.c.username, bucket_grants.c.allowed)
        .join(accounts, accounts.c.id == bucket_grants.c.account, isouter=True)
        .where(bucket_grants.c.bucket == bucket)
    )
    found = {username or EVERYONE: text.split() for username, text in connection.execute(query)}
    return dict(sorted(found.items()))


def put_grants(connection: Connection, bucket: int, granted: Mapping[int | None, Iterable[str]]) -> None:
    """In place of what there was; None: to everyone."""
    connection.execute(sa.delete(bucket_grants).where(bucket_grants.c.bucket == bucket))
    for account, acts in granted.items():
        row = {"bucket": bucket, "account": account, "allowed": " ".join(acts)}
        connection.execute(sa.insert(bucket_grants).values(row))


# -- blobs -------------------------------------------------------------------------------------------------------------


def blob_of(connection: Connection, bucket: int, key: bytes) -> Blob | None:
    row = connection.execute(_ONE, {"in_bucket": bucket, "called": key}).one_or_none()
    return None if row is None else Blob(**row._mapping)


def put_blob(connection: Connection, bucket: int, blob: Blob, *, is_new: bool) -> None:
    row = msgspec.structs.asdict(blob)
    if is_new:
        connection.execute(_ADD, {"bucket": bucket, **row})
    else:
        mine = sa.and_(blobs.c.bucket == bucket, blobs.c.key == row.pop("key"))
        connection.execute(sa.update(blobs).where(mine).values(row))


def drop_blob(connection: Connection, bucket: int, key: bytes) -> None:
    connection.execute(sa.delete(blobs).where(blobs.c.bucket == bucket, blobs.c.key == key))


def count(connection: Connection, bucket: Bucket, size: int, objects: int) -> str:
    """Count so much more in a bucket and for its owner. What stands against it, and then nothing is counted:
    ``account`` or ``bucket`` when that quota would be passed, ``gone`` when the bucket was deleted. Empty: nothing.
    """
    asked = {
        "number": bucket.id,
        "owner": bucket.account,
        "more_bytes": size,
        "more_objects": objects,
        "is_back": False,
    }
    if connection.execute(_COUNT, asked).rowcount != 1:
        return "gone" if bucket_by_id(connection, bucket.id) is None else "bucket"
    if people.charge(connection, bucket.account, size, objects):
        return ""
    connection.execute(_COUNT, asked | {"more_bytes": -size, "more_objects": -objects, "is_back": True})
    return "account"


# -- lists -------------------------------------------------------------------------------------------------------------


def by_key(
    connection: Connection, bucket: int, prefix: bytes, after: bytes | None, limit: int, *, backwards: bool
) -> list[Blob]:
    """The blobs whose keys begin so, in the order of their keys, from behind ``after``."""
    # One bound at each end: of two at one end SQLite may take the one that has it walk through what came before.
    bounds, end = _begins(prefix), end_of(prefix)
    if after is not None and backwards and (end is None or after < end):
        bounds = [*bounds[:1], blobs.c.key < after]
    elif after is not None and not backwards and after >= prefix:
        bounds = [blobs.c.key > after, *bounds[1:]]
    query = _blobs.where(blobs.c.bucket == bucket, *bounds)
    return every(connection, Blob, query.order_by(blobs.c.key.desc() if backwards else blobs.c.key).limit(limit))


def by_time(
    connection: Connection, bucket: int, prefix: bytes, after: Blob | None, limit: int, *, backwards: bool
) -> list[Blob]:
    """The same in the order of their last change; those of the same moment by key, ascending."""
    is_few = bool(prefix) and _is_few(connection, bucket, prefix)
    # Where there are many they are met soon in the order of times; then the index of keys is not to be taken.
    key = blobs.c.key if is_few else sa.cast(blobs.c.key, sa.LargeBinary)
    query = _blobs.where(blobs.c.bucket == bucket, *_begins(prefix, key))
    when: sa.ColumnElement[int] = blobs.c.modified_ns
    if after is not None:
        not_before = when <= after.modified_ns if backwards else when >= after.modified_ns  # where the index goes on
        query = query.where(not_before, sa.or_(when != after.modified_ns, blobs.c.key > after.key))
    if is_few:
        when = when + 0  # not by the index of times: it would be walked through for them
    return every(connection, Blob, query.order_by(when.desc() if backwards else when, blobs.c.key).limit(limit))


_FEW = 20_000  # blobs that are sorted sooner than found among all the others


def _is_few(connection: Connection, bucket: int, prefix: bytes) -> bool:
    query = sa.select(blobs.c.key).where(blobs.c.bucket == bucket, *_begins(prefix)).order_by(blobs.c.key)
    return connection.execute(query.offset(_FEW).limit(1)).first() is None


def _begins(prefix: bytes, key: sa.ColumnElement[bytes] = blobs.c.key) -> list[sa.ColumnElement[bool]]:
    if not prefix:
        return []
    end = end_of(prefix)
    return [key >= prefix] + ([] if end is None else [key < end])


def end_of(prefix: bytes) -> bytes | None:
    """The first bytes behind everything that begins so; None: nothing is."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


# -- contents that no blob names ---------------------------------------------------------------------------------------


def add_leftovers(connection: Connection, some: Iterable[Leftover], due_ns: int) -> None:
    rows = [{**msgspec.structs.asdict(one), "due_ns": due_ns} for one in some]
    if rows:
        connection.execute(sa.insert(blob_leftovers), rows)


def claim(connection: Connection, place: str) -> bool:
    """A blob is to name that content. False when it was taken for left over: it is being removed."""
    return connection.execute(_CLAIM, {"lies_at": place}).rowcount == 1


def renew(connection: Connection, places: Iterable[str], due_ns: int) -> None:
    for some in some_of(places):
        mine = sa.and_(blob_leftovers.c.place.in_(some), blob_leftovers.c.due_ns > 0)
        connection.execute(sa.update(blob_leftovers).where(mine).values(due_ns=due_ns))


def doom(
    connection: Connection, before_ns: int, filesystems: Iterable[str], but: Iterable[str], limit: int
) -> list[Leftover]:
    """Some of those in these file systems that were due: from now on no blob can name them."""
    due = sa.select(blob_leftovers.c.place).where(
        blob_leftovers.c.due_ns <= before_ns,
        blob_leftovers.c.filesystem.in_(list(filesystems)),
        blob_leftovers.c.place.not_in(list(but)),
    )
    chosen = due.order_by(blob_leftovers.c.due_ns).limit(limit)
    marked = sa.update(blob_leftovers).where(blob_leftovers.c.place.in_(chosen)).values(due_ns=0)
    return [Leftover(*row) for row in connection.execute(marked.returning(*columns(Leftover, blob_leftovers)))]


def drop_leftovers(connection: Connection, places: Iterable[str]) -> None:
    for some in some_of(places):
        connection.execute(sa.delete(blob_leftovers).where(blob_leftovers.c.place.in_(some)))


def give_up_content(connection: Connection, filesystem: str, blob: Blob, due_ns: int) -> None:
    """No blob names that content any more."""
    if filesystem == REPOSITORY:
        owe_merging(connection)
    elif blob.size:
        add_leftovers(connection, [Leftover(blob.place, filesystem, blob.size)], due_ns)


# -- blobs on the shelf ------------------------------------------------------------------------------------------------


def shelf_name(bucket: str, blob: Blob) -> str:
    """What a blob's content is called on the shelf, below its owner's: enough to make its row anew."""
    return f"{bucket}/{blob.key.hex()}.{blob.place}.{blob.sha1}"


def on_shelf(connection: Connection, username: str, bucket: str, name: str) -> Blob | None:
    """The blob whose content is called that; None when no blob names it any more."""
    key, place, _ = name.split(".")
    there = bucket_named(connection, bucket)
    if there is None or there.username != username or there.filesystem != REPOSITORY:
        return None
    found = blob_of(connection, there.id, bytes.fromhex(key))
    return found if found is not None and found.place == place else None


def take_in(connection: Connection, account: int, bucket: str, name: str, found: Blob) -> None:
    """A content was met on the shelf that the catalog did not know: it is its key's again, unless there is a newer one,
    or the bucket is somebody else's now. ``found``: all but key, place and hash.
    """
    key, place, sha1 = name.split(".")
    blob = msgspec.structs.replace(found, key=bytes.fromhex(key), place=place, sha1=sha1)
    if bucket_named(connection, bucket) is None:
        add_bucket(connection, account=account, name=bucket, filesystem=REPOSITORY, created_ns=blob.modified_ns)
    there = bucket_named(connection, bucket)
    if there is None or there.account != account or there.filesystem != REPOSITORY:
        return
    old = blob_of(connection, there.id, blob.key)
    if old is not None and old.modified_ns >= blob.modified_ns:
        return
    put_blob(connection, there.id, blob, is_new=old is None)
    size, objects = there.bytes + blob.size - (old.size if old else 0), there.objects + (0 if old else 1)
    change_bucket(connection, there.id, bytes=size, objects=objects)


# -- keeping -----------------------------------------------------------------------------------------------------------


def make_all_due(connection: Connection, due_ns: int) -> None:
    """Whoever worked at them is not there any more."""
    connection.execute(sa.update(blob_leftovers).where(blob_leftovers.c.due_ns > due_ns).values(due_ns=due_ns))


def is_any_due(connection: Connection, before_ns: int, filesystems: Iterable[str]) -> bool:
    due = sa.and_(blob_leftovers.c.due_ns <= before_ns, blob_leftovers.c.filesystem.in_(list(filesystems)))
    return connection.execute(sa.select(blob_leftovers.c.place).where(due).limit(1)).first() is not None


def empty_some(connection: Connection, bucket: int, filesystem: str, limit: int) -> bool:
    """Give up some of the blobs of a bucket that is nobody's any more; whether there are more."""
    some = every(connection, Blob, _blobs.where(blobs.c.bucket == bucket).limit(limit))
    for blob in some:
        drop_blob(connection, bucket, blob.key)
        give_up_content(connection, filesystem, blob, 1)
    return len(some) == limit
