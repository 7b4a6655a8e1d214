"""Blobs: put, read, deleted, by bucket and key.

What is promised: a blob that was acknowledged is durable; whoever reads sees the old one or the new one, whole, never a
mixture, whatever else happens at the same moment; of several who put one key one wins, whole; what is given back was
verified. A content comes first, to a place of its own; then the catalog names it in one transaction, which counts it,
holds it against quotas, and checks conditions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from holdfast.accounts.directory import Identity
from holdfast.blobs.conditions import Conditions
from holdfast.blobs.desk import Desk, Order
from holdfast.blobs.filesystems import Content, Draft, FileSystem, Where, content_of
from holdfast.blobs.names import checked_key, no_blob, no_bucket
from holdfast.blobs.places import LEASE_NS, Places
from holdfast.blobs.rights import READ, READS, WRITE, WRITES, see
from holdfast.blobs.shelved import of_shelf, to_shelf
from holdfast.catalog import blobs as rows
from holdfast.catalog import people
from holdfast.catalog.blobs import Blob, Bucket
from holdfast.catalog.database import Connection, Database
from holdfast.errors import (
    Damaged,
    HoldfastError,
    ObjectMissing,
    QuotaFull,
    StorageError,
    StorageFull,
    StorageUnavailable,
    TooLarge,
)
from holdfast.shelf import shelf as shelves
from holdfast.shelf.shelf import Shelf

NOW = 1  # in nanoseconds since 1970: what is left over since then may go
Tell = Callable[[str, Exception], None]


@dataclass(eq=False)
class Coming:
    """A blob on its way. ``most``: how many bytes it may have. ``blob``, ``is_new``: once it was noted."""

    bucket: Bucket
    key: bytes
    most: int
    full: str  # whose quota has no more room than ``most``, the bucket's or the account's; empty: none is that full
    where: Where
    conditions: Conditions
    blob: Blob | None = None
    is_new: bool = False


class Blobs:
    """See the module. Safe to share between threads. ``alone``: no other server uses this catalog. ``on_left``: some
    content is left over.
    """

    def __init__(
        self,
        database: Database,
        filesystems: Mapping[str, FileSystem],
        shelf: Shelf,
        desk: Desk,
        places: Places,
        now_ns: Callable[[], int],
        tell: Tell,
        on_left: Callable[[], None],
        *,
        most_bytes: int,
        alone: bool,
    ) -> None:
        self._database, self._filesystems, self._shelf, self._desk = database, filesystems, shelf, desk
        self._places, self._now_ns, self._tell, self._on_left = places, now_ns, tell, on_left
        self._most_bytes, self._alone = most_bytes, alone

    # -- reading ---------------------------------------------------------------------------------------------------

    def find(self, by: Identity, bucket: str, key: str) -> tuple[Bucket, Blob]:
        """NoContent when it is not there."""
        by.demand(READS)
        called = checked_key(key)
        with self._database.reading() as c:
            found = see(c, by, bucket).demand(READ)
            blob = rows.blob_of(c, found.id, called)
        if blob is None:
            raise no_blob(bucket, called)
        return found, blob

    def pieces(self, bucket: Bucket, blob: Blob, start: int, stop: int) -> Generator[bytes, None, None]:
        """Its bytes from ``start`` up to, not including, ``stop``, verified. ObjectMissing when it was put again, or
        deleted, since it was found.
        """
        files = self._filesystem(bucket)
        with self._places.reading(blob.place), self._named(bucket, blob.key):
            yield from files.pieces(content_of(blob), start, stop)

    # -- putting ---------------------------------------------------------------------------------------------------

    def receive(self, by: Identity, bucket: str, key: str, size: int | None, conditions: Conditions) -> Coming:
        """A blob is to come, of that size (None: unknown). What it would be refused for in the end is refused now."""
        by.demand(WRITES)
        called = checked_key(key)
        with self._database.reading() as c:
            found = see(c, by, bucket).demand(WRITE)
            self._filesystem(found)
            old = rows.blob_of(c, found.id, called)
            room, whose = _room(c, found, old)
        if conditions != Conditions():
            conditions.demand(old)
        if size is not None and size > self._most_bytes:
            raise too_large(self._most_bytes)
        if size is not None and room is not None and size > room:
            raise quota_full(found, whose)
        place = self._places.take(found.filesystem)
        where = Where(found.username, found.name, called, place)
        if room is None or room >= self._most_bytes:
            return Coming(found, called, self._most_bytes, "", where, conditions)
        return Coming(found, called, room, whose, where, conditions)

    def begin(self, coming: Coming) -> Draft:
        """Take it piece by piece."""
        return self._filesystem(coming.bucket).begin(coming.where)

    def keep(self, coming: Coming, data: bytes) -> Content:
        """Take it at one go; at most SMALL bytes."""
        with self._named(coming.bucket, coming.key):
            return self._filesystem(coming.bucket).keep(coming.where, data)

    def commit(self, coming: Coming, content: Content, sha1: str) -> Future[None]:
        """Its content is there: the key is to mean it."""
        if content.size > coming.most:
            raise quota_full(coming.bucket, coming.full) if coming.full else too_large(coming.most)
        future = self._order(coming, content, sha1)
        future.add_done_callback(partial(self._committed, coming))
        return future

    def _order(self, coming: Coming, content: Content, sha1: str) -> Future[None]:
        account = coming.bucket.account
        if coming.bucket.filesystem != rows.REPOSITORY:
            return self._desk.commit(Order(account, lambda c: self._note(c, coming, content, sha1)))
        where = coming.where
        name = rows.shelf_name(where.bucket, Blob(key=where.key, size=0, sha1=sha1, modified_ns=0, place=where.place))
        path = f"{where.owner}/blobs/{name}".encode()
        return self._shelf.commit(
            shelves.Order(path, account, to_shelf(content), self._note_shelved, (coming, content.place, sha1))
        )

    def give_up(self, coming: Coming) -> None:
        """It is not wanted any more."""
        self._places.give_back(coming.where.place, is_left=True)
        self._on_left()

    def _committed(self, coming: Coming, future: Future[None]) -> None:
        failed = future.exception() is not None
        self._places.give_back(coming.where.place, is_left=failed)
        if failed or not coming.is_new:
            self._on_left()

    def _note_shelved(self, c: Connection, ready: list[shelves.Ready]) -> None:
        """The clerk of blobs on the shelf."""
        for order, content in ready:
            coming, place, sha1 = order.about
            order.error = self._note(c, coming, of_shelf(place, content), sha1)

    def _note(self, c: Connection, coming: Coming, content: Content, sha1: str) -> HoldfastError | None:
        """The key means that content from now on; or why not."""
        bucket = rows.bucket_by_id(c, coming.bucket.id)
        if bucket is None:
            return no_bucket(coming.bucket.name)
        old = rows.blob_of(c, bucket.id, coming.key)
        try:
            coming.conditions.demand(old)
        except HoldfastError as e:
            return e
        if full := rows.count(c, bucket, content.size - (old.size if old else 0), 0 if old else 1):
            return no_bucket(bucket.name) if full == "gone" else quota_full(bucket, full)
        if bucket.filesystem != rows.REPOSITORY and not rows.claim(c, content.place):
            rows.count(c, bucket, (old.size if old else 0) - content.size, 0 if old else -1)
            return StorageUnavailable("The blob took too long to come, and was given up.", "Put it again.")
        blob = Blob(
            key=coming.key, size=content.size, sha1=sha1, modified_ns=self._now_ns(), place=content.place,
            chunks=content.chunks, depth=content.depth,
        )  # fmt: skip
        rows.put_blob(c, bucket.id, blob, is_new=old is None)
        if old:
            rows.give_up_content(c, bucket.filesystem, old, self._due())
        coming.blob, coming.is_new = blob, old is None
        return None

    # -- deleting --------------------------------------------------------------------------------------------------

    def delete(self, by: Identity, bucket: str, key: str, conditions: Conditions) -> tuple[Bucket, Blob]:
        """What was deleted."""
        by.demand(WRITES)
        called = checked_key(key)
        with self._database.reading() as c:
            found = see(c, by, bucket).demand(WRITE)
        gone: list[Blob] = []
        self._desk.commit(Order(found.account, lambda c: self._drop(c, found, called, conditions, gone))).result()
        self._on_left()
        return found, gone[-1]

    def _drop(
        self, c: Connection, bucket: Bucket, key: bytes, conditions: Conditions, gone: list[Blob]
    ) -> HoldfastError | None:
        old = rows.blob_of(c, bucket.id, key)
        if old is None:
            return no_blob(bucket.name, key)
        try:
            conditions.demand(old)
        except HoldfastError as e:
            return e
        rows.drop_blob(c, bucket.id, key)
        rows.count(c, bucket, -old.size, -1)
        rows.give_up_content(c, bucket.filesystem, old, self._due())
        gone.append(old)
        return None

    def _due(self) -> int:
        """When a content that no blob names any more may go: where there are other servers, they may be reading it."""
        return NOW if self._alone else self._now_ns() + LEASE_NS

    def _filesystem(self, bucket: Bucket) -> FileSystem:
        found = self._filesystems.get(bucket.filesystem)
        if found is None:
            what = f"The file system of the bucket {bucket.name!r}, {bucket.filesystem!r}, is not set up here."
            raise StorageUnavailable(what, "Its administrator can name it under [blobs].")
        return found

    # -- what went wrong -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _named(self, bucket: Bucket, key: bytes) -> Iterator[None]:
        """Say what went wrong by the blob's name: where contents lie is no client's business."""
        try:
            yield
        except ObjectMissing:
            raise
        except (StorageError, Damaged) as e:
            raise self._told(bucket, key, e) from None

    def _told(self, bucket: Bucket, key: bytes, error: StorageError | Damaged) -> HoldfastError:
        shown = f"The blob {key.decode()!r} in the bucket {bucket.name!r}"
        self._tell(f"the bucket {bucket.name}", error)
        if isinstance(error, StorageFull):
            return StorageFull("The server's storage is full.", "Tell its administrator.")
        if isinstance(error, Damaged):
            return Damaged(f"{shown} is damaged: what is stored is not what was put.", "Put it again.")
        return type(error)(f"{shown} cannot be used just now.", "The server's log says why.")

    def lost(self, bucket: Bucket, blob: Blob) -> HoldfastError:
        """What is told of a blob whose content is not there."""
        return self._told(bucket, blob.key, Damaged(f"The content of {blob.key.decode()!r}, {blob.place}, is missing."))

    def meant(self, coming: Coming, error: BaseException) -> BaseException:
        """What is told of a blob that did not come to its end: too large for a quota is not too large as such."""
        if isinstance(error, TooLarge) and coming.full:
            return quota_full(coming.bucket, coming.full)
        if isinstance(error, (StorageError, Damaged)):
            return self._told(coming.bucket, coming.key, error)
        return error


def _room(c: Connection, bucket: Bucket, old: Blob | None) -> tuple[int | None, str]:
    """How many bytes a blob may have there in the place of the old one, and whose quota says so; None: no quota says.
    One that takes no more than the old one always has room.
    """
    account = people.account_by_id(c, bucket.account)
    freed = old.size if old else 0
    quotas = [(bucket.quota_bytes, bucket.bytes, bucket.quota_objects, bucket.objects, "bucket")]
    if account:
        quotas.append((account.quota_bytes, account.used_bytes, account.quota_objects, account.used_objects, "account"))
    rooms: list[tuple[int | None, str]] = []
    for quota, used, most_objects, used_objects, whose in quotas:
        if old is None and most_objects is not None and used_objects >= most_objects:
            raise quota_full(bucket, whose)
        if quota is not None:
            rooms.append((freed + max(0, quota - used), whose))
    return min(rooms, key=lambda room: room[0] or 0, default=(None, ""))


def quota_full(bucket: Bucket, whose: str) -> QuotaFull:
    what = f"of the bucket {bucket.name!r}" if whose == "bucket" else f"of {bucket.username}"
    return QuotaFull(f"The quota {what} is full.", "Delete something, or have it raised.")


def too_large(most: int) -> TooLarge:
    return TooLarge(f"A blob has at most {most} bytes here.")
