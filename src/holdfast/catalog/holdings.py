"""What accounts hold, as rows: files, parts of files on their way, manifests, and the files that manifests still want.

Each function takes the connection of a transaction that its caller opened; one that changes what an account holds
begins with ``hold_accounts``. ``chunks`` and ``depth`` are a content's list of chunks as an entry of a snapshot has it.
Files and parts can be made anew from the shelf's snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.catalog.database import Connection
from holdfast.catalog.numbers import next_number
from holdfast.catalog.rows import columns, every, insert_new, one
from holdfast.catalog.tables import (
    accounts,
    buckets,
    digests,
    files,
    manifests,
    parts,
    seen,
    shares,
    shelves,
    vaults,
    wanted,
)

_AT_ONCE = 2000  # values in one question: every database takes so many
whole = sa.and_(manifests.c.version > 0, manifests.c.deletion.is_(None))  # received to its end, and not deleted


class File(msgspec.Struct, frozen=True):
    """A row of ``files``: complete, and its hash was checked."""

    hash: str
    size: int
    chunks: bytes
    depth: int


class Part(msgspec.Struct, frozen=True):
    """A row of ``parts``: bytes ``start`` up to, not including, ``stop`` of a file of ``total`` bytes."""

    hash: str
    start: int
    stop: int
    total: int
    chunks: bytes
    depth: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``manifests``. ``account``: None for a snapshot of the command line. ``header``: the document
    without its files and directories. ``files``, ``available`` and
    ``content_bytes``: how many files it names, how many of them are here, their sizes together. ``size``, ``chunks``,
    ``depth``: the document; ``snapshot``: the snapshot made of it, empty until all is here.
    """

    id: int
    account: int | None
    name: str
    version: int
    timestamp: str
    base: str
    header: bytes
    files: int
    available: int
    content_bytes: int
    received_ns: int
    size: int
    chunks: bytes
    depth: int
    snapshot: str


listed = [
    sa.literal(b"").label("header") if column.name == "header" else column for column in columns(Manifest, manifests)
]


# What each commit of the shelf asks is built once: building takes longer than asking.
_ACCOUNT: sa.BindParameter[int] = sa.bindparam("account")
_HASHES: sa.BindParameter[list[str]] = sa.bindparam("hashes", expanding=True)
_SIZES = sa.select(files.c.hash, files.c.size).where(files.c.account == _ACCOUNT, files.c.hash.in_(_HASHES))
_RANGES = (
    sa.select(parts.c.hash, parts.c.start, parts.c.stop, parts.c.total)
    .where(parts.c.account == _ACCOUNT, parts.c.hash.in_(_HASHES))
    .order_by(parts.c.start, parts.c.stop)
)
_WANTED = (
    sa.select(wanted.c.manifest, wanted.c.hash, wanted.c.size, wanted.c.times)
    .join(manifests, manifests.c.id == wanted.c.manifest)
    .where(wanted.c.hash.in_(_HASHES), manifests.c.account == _ACCOUNT, manifests.c.deletion.is_(None))
)
_NEW_FILES = sa.insert(files)
_MINE = sa.select(manifests.c.id).where(manifests.c.account == _ACCOUNT, manifests.c.deletion.is_(None))
_NUMBERS: sa.BindParameter[list[int]] = sa.bindparam("numbers", expanding=True)
_HELD = (
    sa.select(accounts.c.id, accounts.c.deletions)
    .where(accounts.c.id.in_(_NUMBERS))
    .order_by(accounts.c.id)
    .with_for_update()
)


# -- whose it is -------------------------------------------------------------------------------------------------------


def hold_accounts(connection: Connection, numbers: Iterable[int]) -> dict[int, int]:
    """Keep accounts from everybody else who changes what they hold, until the transaction ends: that comes first in
    each, and in the same order, so that none waits for the other. How often each deleted manifests so far.
    """
    return {row.id: row.deletions for row in connection.execute(_HELD, {"numbers": sorted(set(numbers))})}


# -- files -------------------------------------------------------------------------------------------------------------


def file_of(connection: Connection, account: int, hash_: str) -> File | None:
    query = sa.select(*columns(File, files)).where(files.c.account == account, files.c.hash == hash_)
    return one(connection, File, query)


def files_of(connection: Connection, account: int, hashes: Iterable[str]) -> dict[str, File]:
    """Those of the files that the account has, by hash."""
    found: dict[str, File] = {}
    for some in some_of(hashes):
        query = sa.select(*columns(File, files)).where(files.c.account == account, files.c.hash.in_(some))
        found.update((file.hash, file) for file in every(connection, File, query))
    return found


def sizes_of(connection: Connection, account: int, hashes: Iterable[str]) -> dict[str, int]:
    """The sizes of those files that the account has."""
    found: dict[str, int] = {}
    for some in some_of(hashes):
        rows = connection.execute(_SIZES, {"account": account, "hashes": some})
        found.update((hash_, size) for hash_, size in rows)
    return found


def add_files(connection: Connection, account: int, new: Sequence[File], now_ns: int, deletions: int) -> None:
    """Note files that the account has not. ``deletions``: the account's, as ``hold_accounts`` gave it."""
    about = {"account": account, "stored_ns": now_ns, "deletions": deletions}
    rows = [{**about, **msgspec.structs.asdict(file)} for file in new]
    if rows:
        connection.execute(_NEW_FILES, rows)


def touch_files(connection: Connection, account: int, hashes: Iterable[str], deletions: int) -> None:
    """They were sent again: what was deleted before does not take them any more."""
    if deletions:
        for some in some_of(hashes):
            mine = sa.and_(files.c.account == account, files.c.hash.in_(some), files.c.deletions < deletions)
            connection.execute(sa.update(files).where(mine).values(deletions=deletions))


def settle(connection: Connection, account: int, arrived: Mapping[str, int]) -> list[int]:
    """Files have arrived (sizes by hash): count them in the manifests that want them. Those that are complete now."""
    times: dict[int, int] = {}
    for some in some_of(arrived):
        rows = connection.execute(_WANTED, {"account": account, "hashes": some}).all()
        for hash_ in {row.hash for row in rows if arrived[row.hash] == row.size}:
            here = sa.and_(wanted.c.hash == hash_, wanted.c.size == arrived[hash_], wanted.c.manifest.in_(_MINE))
            gone = sa.delete(wanted).where(here).returning(wanted.c.manifest, wanted.c.times)
            for number, count in connection.execute(gone, {"account": account}):
                times[number] = times.get(number, 0) + count
    return [number for number, count in times.items() if _count(connection, number, count)]


def settle_manifest(connection: Connection, account: int, number: int) -> bool:
    """The same for one manifest and everything that arrived while it was being written; whether it is complete."""
    here = sa.select(files.c.hash).where(
        files.c.account == account, files.c.hash == wanted.c.hash, files.c.size == wanted.c.size
    )
    fits = sa.and_(wanted.c.manifest == number, here.exists())
    gone = connection.execute(sa.delete(wanted).where(fits).returning(wanted.c.times)).scalars()
    return _count(connection, number, sum(gone))


def _count(connection: Connection, number: int, times: int) -> bool:
    """So many more entries of a manifest are here; whether all are now."""
    done = sa.update(manifests).where(manifests.c.id == number).values(available=manifests.c.available + times)
    row = connection.execute(done.returning(manifests.c.available, manifests.c.files)).one_or_none()
    return row is not None and bool(row.available == row.files)


# -- parts -------------------------------------------------------------------------------------------------------------


def parts_of(connection: Connection, account: int, hash_: str) -> list[Part]:
    """In order of where they begin."""
    query = sa.select(*columns(Part, parts)).where(parts.c.account == account, parts.c.hash == hash_)
    return every(connection, Part, query.order_by(parts.c.start, parts.c.stop))


def has_parts(connection: Connection, account: int) -> bool:
    """Whether anything of the account's is on its way."""
    query = sa.select(parts.c.account).where(parts.c.account == account).limit(1)
    return connection.execute(query).first() is not None


def ranges_of(connection: Connection, account: int, hashes: Iterable[str]) -> dict[str, list[tuple[int, int, int]]]:
    """For those files of which the account has parts: (start, stop, total) of each, in order."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for some in some_of(hashes):
        for hash_, start, stop, total in connection.execute(_RANGES, {"account": account, "hashes": some}):
            found.setdefault(hash_, []).append((start, stop, total))
    return found


def total_of_parts(connection: Connection, account: int, hash_: str) -> int | None:
    """What the parts of a file say its size is; None when there are none, or none knew it. They agree."""
    known = (parts.c.account == account, parts.c.hash == hash_, parts.c.total >= 0)
    return connection.execute(sa.select(parts.c.total).where(*known).limit(1)).scalar_one_or_none()


def has_many_parts(connection: Connection, account: int, hash_: str, many: int) -> bool:
    mine = sa.select(parts.c.start).where(parts.c.account == account, parts.c.hash == hash_)
    return connection.execute(mine.offset(many - 1).limit(1)).first() is not None


def add_part(connection: Connection, account: int, part: Part, now_ns: int) -> bool:
    """Note a part; False when just this one is there already."""
    row = {"account": account, **msgspec.structs.asdict(part), "stored_ns": now_ns}
    return insert_new(connection, parts, row)


def delete_parts(connection: Connection, account: int, hash_: str, some: Iterable[Part] | None = None) -> int:
    """Forget the parts of a file, or some of them; how many bytes they were together."""
    chosen = sa.and_(parts.c.account == account, parts.c.hash == hash_)
    if some is not None:
        spans = [sa.and_(parts.c.start == part.start, parts.c.stop == part.stop) for part in some]
        return sum(_delete_parts(connection, sa.and_(chosen, span)) for span in spans)
    return _delete_parts(connection, chosen)


def _delete_parts(connection: Connection, chosen: sa.ColumnElement[bool]) -> int:
    gone = connection.execute(sa.delete(parts).where(chosen).returning(parts.c.start, parts.c.stop))
    return sum(stop - start for start, stop in gone)


def unfinished(connection: Connection) -> list[tuple[int, str]]:
    """(account, hash) of every file of which there are parts."""
    query = sa.select(parts.c.account, parts.c.hash).distinct()
    return [(account, hash_) for account, hash_ in connection.execute(query)]


# -- manifests ---------------------------------------------------------------------------------------------------------


def begin_manifest(connection: Connection, account: int, now_ns: int) -> int | None:
    """The number of a manifest that is being received: until ``finish_manifest`` nobody sees it. None when the account
    is gone.
    """
    if not hold_accounts(connection, [account]):
        return None
    number = next_number(connection, "manifests")
    row = {
        "id": number, "account": account, "name": "", "version": -now_ns, "timestamp": "", "base": "", "header": b"",
        "files": 0, "available": 0, "content_bytes": 0, "received_ns": now_ns, "size": 0, "chunks": b"", "depth": 0,
        "snapshot": "",
    }  # fmt: skip
    connection.execute(sa.insert(manifests).values(row))
    return number


def add_manifest(connection: Connection, **row: Any) -> None:
    """Note a snapshot of the command line as the next version of its name."""
    number = next_number(connection, "manifests")  # first: from here on nobody else adds one
    mine = sa.and_(of_account(None), manifests.c.name == row["name"])
    newest = connection.execute(sa.select(sa.func.max(manifests.c.version)).where(mine)).scalar_one_or_none()
    about = {"id": number, "account": None, "version": (newest or 0) + 1}
    connection.execute(sa.insert(manifests).values({**row, **about}))


def set_document(connection: Connection, number: int, **row: Any) -> None:
    mine = sa.and_(manifests.c.id == number, manifests.c.account.is_(None))
    connection.execute(sa.update(manifests).where(mine).values(row))


def finish_manifest(connection: Connection, number: int, account: int, here: int, **row: Any) -> int | None:
    """It was received: it becomes the next version of its name, which is given back. ``here``: how many of its files
    were found as they were read. None when its account is gone.
    """
    mine = sa.and_(of_account(account), manifests.c.name == row["name"])
    newest = connection.execute(sa.select(sa.func.max(manifests.c.version)).where(mine)).scalar_one_or_none()
    version = max(newest or 0, 0) + 1
    values = {**row, "version": version, "available": manifests.c.available + here}
    mine = sa.and_(manifests.c.id == number, of_account(account), manifests.c.version <= 0)
    changed = connection.execute(sa.update(manifests).where(mine).values(values))
    return version if changed.rowcount else None


def drop_unfinished(connection: Connection, number: int, account: int) -> None:
    """One whose receiving failed."""
    hold_accounts(connection, [account])
    connection.execute(sa.delete(manifests).where(manifests.c.id == number, manifests.c.version <= 0))


def drop_all_unfinished(connection: Connection, before_ns: int, but: Iterable[int]) -> None:
    """Those whose receiving began before that time: whoever did it was killed."""
    old = sa.and_(manifests.c.version <= 0, manifests.c.received_ns < before_ns, manifests.c.id.not_in(list(but)))
    found = connection.execute(sa.select(manifests.c.id, manifests.c.account).where(old)).all()
    hold_accounts(connection, [row.account for row in found])
    gone = sa.delete(manifests).where(manifests.c.id.in_([row.id for row in found]), manifests.c.version <= 0)
    connection.execute(gone)


def add_wanted(connection: Connection, number: int, missing: Mapping[tuple[str, int], int]) -> None:
    """Note which files (hash, size) a manifest wants, and how many more of its entries each one is."""
    rows = [{"manifest": number, "hash": h, "size": size, "times": times} for (h, size), times in missing.items()]
    if not rows:
        return
    key = ["manifest", "hash", "size"]
    if connection.dialect.name == "sqlite":
        lite = sqlite.insert(wanted)
        more = lite.on_conflict_do_update(index_elements=key, set_={"times": wanted.c.times + lite.excluded.times})
        connection.execute(more, rows)
    else:
        great = postgresql.insert(wanted)
        connection.execute(
            great.on_conflict_do_update(index_elements=key, set_={"times": wanted.c.times + great.excluded.times}), rows
        )


def wants(connection: Connection, account: int, hash_: str) -> set[int]:
    """The sizes under which manifests of the account want a file that is not here."""
    query = sa.select(wanted.c.size).where(wanted.c.hash == hash_, wanted.c.manifest.in_(_MINE)).distinct()
    return set(connection.execute(query, {"account": account}).scalars())


def manifest_named(
    connection: Connection, account: int | None, name: str, version: int | None = None
) -> Manifest | None:
    """That version, or the newest one."""
    query = sa.select(*columns(Manifest, manifests)).where(of_account(account), whole, manifests.c.name == name)
    if version is not None:
        query = query.where(manifests.c.version == version)
    return one(connection, Manifest, query.order_by(manifests.c.version.desc()).limit(1))


def manifest_by_id(connection: Connection, number: int) -> Manifest | None:
    return one(connection, Manifest, sa.select(*columns(Manifest, manifests)).where(manifests.c.id == number))


def has_document(connection: Connection, account: int, chunks: bytes) -> bool:
    """Whether the account has a manifest of just that document."""
    same = (manifests.c.account == account, manifests.c.chunks == chunks)
    return connection.execute(sa.select(sa.func.count()).where(*same)).scalar_one() > 0


def list_manifests(
    connection: Connection,
    account: int,
    *,
    snapshots_too: bool,
    name: str | None = None,
    before: int | None = None,
    limit: int,
) -> list[Manifest]:
    """The newest received first: the newest version of each name, or with ``name`` every version of that one. Without
    their headers.
    """
    mine = manifests.c.account == account
    whose = sa.and_(whole, sa.or_(mine, manifests.c.account.is_(None)) if snapshots_too else mine)
    query = sa.select(*listed).where(whose)
    if name is not None:
        query = query.where(manifests.c.name == name)
    else:
        newest = sa.select(sa.func.max(manifests.c.id)).where(whose).group_by(manifests.c.account, manifests.c.name)
        query = query.where(manifests.c.id.in_(newest))
    if before is not None:
        query = query.where(manifests.c.id < before)
    return every(connection, Manifest, query.order_by(manifests.c.id.desc()).limit(limit))


def without_snapshot(connection: Connection) -> list[int]:
    """Manifests of accounts that are complete and have no snapshot yet."""
    complete = sa.and_(whole, manifests.c.available == manifests.c.files, manifests.c.snapshot == "")
    query = sa.select(manifests.c.id).where(complete, manifests.c.account.is_not(None)).order_by(manifests.c.id)
    return list(connection.execute(query).scalars())


def set_snapshot(connection: Connection, number: int, snapshot: str) -> bool:
    """False when the manifest is gone, or has another one already."""
    mine = sa.and_(manifests.c.id == number, manifests.c.snapshot.in_(["", snapshot]), whole)
    return connection.execute(sa.update(manifests).where(mine).values(snapshot=snapshot)).rowcount == 1


# -- snapshots of the command line -------------------------------------------------------------------------------------


def snapshots_known(connection: Connection) -> set[str]:
    """Those that were looked at."""
    return set(connection.execute(sa.select(seen.c.snapshot)).scalars())


def note_seen(connection: Connection, snapshot: str) -> bool:
    """False when somebody else has noted it meanwhile."""
    return insert_new(connection, seen, {"snapshot": snapshot})


def forget_snapshots(connection: Connection, gone: Iterable[str]) -> None:
    """They are there no longer: nor are the manifests that they were listed as."""
    for some in some_of(gone):
        connection.execute(sa.delete(seen).where(seen.c.snapshot.in_(some)))
        connection.execute(sa.delete(manifests).where(of_account(None), manifests.c.snapshot.in_(some)))


def digest_of(connection: Connection, key: bytes) -> str | None:
    """The SHA-256 of a content of a snapshot, by a key made of its list of chunks."""
    return connection.execute(sa.select(digests.c.hash).where(digests.c.key == key)).scalar_one_or_none()


def add_digest(connection: Connection, key: bytes, file: File) -> None:
    insert_new(connection, digests, {"key": key, **msgspec.structs.asdict(file)})


def file_in_snapshots(connection: Connection, hash_: str) -> File | None:
    """A file that a snapshot of the command line held when it was read as a manifest."""
    query = sa.select(*columns(File, digests)).where(digests.c.hash == hash_).limit(1)
    return one(connection, File, query)


# -- the shelf ---------------------------------------------------------------------------------------------------------


def add_shelf(connection: Connection, snapshot: str, strangers: Iterable[str] = ()) -> None:
    """The catalog knows everything in that snapshot of the shelf but what belongs to ``strangers``, who have no account
    here.
    """
    shown = "/".join(sorted(strangers))
    if not insert_new(connection, shelves, {"snapshot": snapshot, "strangers": shown}):
        connection.execute(sa.update(shelves).where(shelves.c.snapshot == snapshot).values(strangers=shown))


def known_shelves(connection: Connection) -> dict[str, frozenset[str]]:
    """The snapshots that the catalog knows, each with the strangers whose entries it does not know."""
    rows = connection.execute(sa.select(shelves.c.snapshot, shelves.c.strangers))
    return {snapshot: _strangers(shown) for snapshot, shown in rows}


def strangers_of(connection: Connection, snapshot: str) -> frozenset[str] | None:
    """As ``known_shelves`` has it for one; None when the catalog does not know it."""
    query = sa.select(shelves.c.strangers).where(shelves.c.snapshot == snapshot)
    shown = connection.execute(query).scalar_one_or_none()
    return None if shown is None else _strangers(shown)


def _strangers(shown: str) -> frozenset[str]:
    return frozenset(shown.split("/")) - {""}


def drop_shelves(connection: Connection, gone: Iterable[str]) -> None:
    """Those snapshots are there no longer."""
    for some in some_of(gone):
        connection.execute(sa.delete(shelves).where(shelves.c.snapshot.in_(some)))


def count_usage(connection: Connection) -> None:
    """Set what each account uses to what it has: files, what came of others, manifests, shares, vaults, buckets."""
    numbers = connection.execute(sa.select(accounts.c.id)).scalars().all()
    for number in hold_accounts(connection, numbers):
        there = sa.or_(manifests.c.deletion.is_(None), manifests.c.deletion > 0)
        of_each = [
            _sum_and_count(files.c.size).where(files.c.account == number),
            _sum_and_count(manifests.c.size).where(manifests.c.account == number, manifests.c.version > 0, there),
            _sum_and_count(parts.c.stop - parts.c.start).where(parts.c.account == number),
            _sum_and_count(shares.c.size).where(shares.c.account == number, shares.c.file.is_not(None)),
            *(
                sa.select(_sum(table.c.bytes), _sum(table.c.objects)).where(table.c.account == number)
                for table in (vaults, buckets)
            ),
        ]
        of_files, of_manifests, of_parts, *others = (connection.execute(q).one() for q in of_each)
        used = {
            "used_bytes": int(of_files[0] + of_manifests[0] + of_parts[0] + sum(size for size, _ in others)),
            "used_objects": int(of_files[1] + of_manifests[1] + sum(count for _, count in others)),
        }
        connection.execute(sa.update(accounts).where(accounts.c.id == number).values(used))


def _sum_and_count(column: sa.ColumnElement[int]) -> Any:
    return sa.select(_sum(column), sa.func.count())


def _sum(column: sa.ColumnElement[int]) -> Any:
    return sa.func.coalesce(sa.func.sum(column), 0)


# -- rows --------------------------------------------------------------------------------------------------------------


def of_account(account: int | None) -> sa.ColumnElement[bool]:
    return manifests.c.account.is_(None) if account is None else manifests.c.account == account


def some_of(values: Iterable[str]) -> Iterator[list[str]]:
    """A few at a time."""
    held: list[str] = []
    for value in values:
        held.append(value)
        if len(held) == _AT_ONCE:
            yield held
            held = []
    if held:
        yield held
