"""What is in a bucket: lists by prefix, in order, in pieces, grouped.

What is promised: however many blobs there are, a list asks the catalog only for what it gives, some at a time; each
question sees the catalog as it is then. Ties of time are in the order of their keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from holdfast.accounts.directory import Identity
from holdfast.blobs.names import encoded
from holdfast.blobs.rights import LIST, READS, see
from holdfast.catalog import blobs as rows
from holdfast.catalog.blobs import Blob, Bucket, end_of
from holdfast.catalog.database import Connection, Database
from holdfast.errors import UsageError

SORTS = ("+key", "-key", "+lastModified", "-lastModified")
MOST_PREFIX = 4096
_AT_ONCE = 1000
_STEP = 2

Item = Blob | bytes  # a blob, or the prefix that several have in common


@dataclass(frozen=True)
class Query:
    """What is asked for. ``sort``: one of SORTS, or empty for any order. ``limit``: None for all. ``marker``: the last
    key, or common prefix, of the list that is gone on with. ``delimiter``: what comes before it, and is in several
    keys, is given once.
    """

    prefix: str = ""
    sort: str = ""
    limit: int | None = None
    marker: str = ""
    delimiter: str = ""


@dataclass
class Listing:
    """What was asked for: ``items`` in order; when they were gone through, whether there is more behind them, and the
    marker to go on with.
    """

    bucket: Bucket
    items: Iterator[Item] = field(default_factory=lambda: iter(()))
    truncated: bool = False
    next_marker: bytes = b""


class Lister:
    """See the module. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, by: Identity, bucket: str, query: Query) -> Listing:
        """UsageError when the question makes no sense."""
        by.demand(READS)
        _demand_sense(query)
        with self._database.reading() as c:
            listing = Listing(see(c, by, bucket).demand(LIST))
        source = self._by_time(listing.bucket, query) if _is_by_time(query) else self._by_key(listing.bucket, query)
        listing.items = _limited(source, query.limit, listing)
        return listing

    def _by_key(self, bucket: Bucket, query: Query) -> Iterator[Item]:
        walk, wanted = _Walk(bucket.id, query), _first(query)
        while not walk.ended:
            with self._database.reading() as c:
                some = walk.some(c, wanted)
            yield from some
            wanted = _AT_ONCE

    def _by_time(self, bucket: Bucket, query: Query) -> Iterator[Item]:
        prefix, backwards, after, at_once = encoded(query.prefix), query.sort.startswith("-"), None, _first(query)
        if query.marker:
            with self._database.reading() as c:
                after = rows.blob_of(c, bucket.id, encoded(query.marker))
            if after is None:
                raise UsageError("The marker's blob was deleted.", "Begin the list anew, or sort by key.")
        while True:
            with self._database.reading() as c:
                found = rows.by_time(c, bucket.id, prefix, after, at_once, backwards=backwards)
            yield from found
            if len(found) < at_once:
                return
            after, at_once = found[-1], _AT_ONCE


class _Walk:
    """A way through a bucket in the order of its keys. ``ended``: nothing comes any more."""

    def __init__(self, bucket: int, query: Query) -> None:
        self._bucket, self._prefix, self._delimiter = bucket, encoded(query.prefix), encoded(query.delimiter)
        self._backwards, self.ended = query.sort.startswith("-"), False
        self._after = encoded(query.marker) or None
        if self._after and self._delimiter and self._group(self._after) == self._after:
            self._after = _behind(self._after, backwards=self._backwards)
        self._step = _STEP

    def some(self, c: Connection, wanted: int) -> list[Item]:
        """The next items: about as many as are wanted, or those of so many rows."""
        items: list[Item] = []
        while len(items) < wanted and not self.ended:
            items += self._stepped(c, self._step if self._delimiter else wanted)
        return items

    def _stepped(self, c: Connection, step: int) -> Iterator[Item]:
        found = rows.by_key(c, self._bucket, self._prefix, self._after, step, backwards=self._backwards)
        group, skipped = b"", 0
        for blob in found:
            if group and blob.key.startswith(group):
                skipped += 1
                continue
            group, skipped = self._group(blob.key), 0
            yield group or blob
        if found:
            self._after = _behind(group, backwards=self._backwards) if group else found[-1].key
        self.ended = len(found) < step or self._after is None
        # Where many have a beginning in common one looks at few of them, else at more and more at once.
        self._step = _STEP if 2 * skipped >= len(found) else min(2 * self._step, _AT_ONCE)

    def _group(self, key: bytes) -> bytes:
        """What the key has in common with others: up to the first delimiter behind the prefix. Empty: it stands
        alone.
        """
        at = key.find(self._delimiter, len(self._prefix)) if self._delimiter else -1
        return key[: at + len(self._delimiter)] if at >= 0 else b""


def _demand_sense(query: Query) -> None:
    if query.sort and query.sort not in SORTS:
        raise UsageError(f"The order {query.sort!r} is none of {', '.join(SORTS)}.", "A + in an address is %2B.")
    if query.delimiter and _is_by_time(query):
        raise UsageError("A delimiter goes with the order of keys only.", "Sort by +key or -key.")
    if max(len(encoded(text)) for text in (query.prefix, query.marker, query.delimiter)) > MOST_PREFIX:
        raise UsageError(f"Prefix, marker and delimiter have at most {MOST_PREFIX} bytes.")


def _is_by_time(query: Query) -> bool:
    return query.sort.endswith("lastModified")


def _first(query: Query) -> int:
    """How many are asked for first: one more than wanted tells whether there is more."""
    return _AT_ONCE if query.limit is None else min(_AT_ONCE, query.limit + 1)


def _behind(group: bytes, *, backwards: bool) -> bytes | None:
    """A key such that what comes after it is what comes after the group; None: nothing does."""
    if backwards:
        return group
    end = end_of(group)
    return None if end is None else _just_before(end)


def _just_before(key: bytes) -> bytes:
    """Nothing that is stored lies between it and the key: stored keys are UTF-8, which has no byte 255."""
    return key[:-1] + (bytes([key[-1] - 1]) + b"\xff" * 8 if key[-1] else b"")


def _limited(source: Iterator[Item], limit: int | None, listing: Listing) -> Iterator[Item]:
    if limit == 0:
        return
    count, last = 0, b""
    for item in source:
        if count == limit:
            listing.truncated, listing.next_marker = True, last
            return
        count, last = count + 1, item.key if isinstance(item, Blob) else item
        yield item
