"""What tests of blobs stand on: each file system there is, to be tried and to be harmed; and a room of blobs without a
server, over a real catalog, a real folder and a real repository, with a clock that hardly moves.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.accounts.directory import Identity
from holdfast.blobs.blobs import Blobs, Coming
from holdfast.blobs.buckets import Buckets, Policy, Quota
from holdfast.blobs.conditions import Conditions
from holdfast.blobs.desk import Desk
from holdfast.blobs.filesystems import SMALL, Content, FileSystem, Where
from holdfast.blobs.keeping import Keeper
from holdfast.blobs.listing import Item, Lister, Listing, Query
from holdfast.blobs.pieces import BLOCK, PIECE, Pieces
from holdfast.blobs.places import Places
from holdfast.blobs.shelved import Shelved, to_shelf
from holdfast.catalog import blobs as rows
from holdfast.catalog import people
from holdfast.catalog.blobs import DISK, REPOSITORY, Blob, Bucket
from holdfast.catalog.database import Connection, Database
from holdfast.repository.repository import Repository
from holdfast.shelf import shelf as shelves
from holdfast.shelf.shelf import Shelf
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage
from tests.accounts.making import House
from tests.repository.making import new_repository

SIZES = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7)
_numbers = itertools.count()


def noise(size: int, seed: object = 0) -> bytes:
    """Bytes that do not shrink, the same for the same seed."""
    return random.Random(str(seed)).randbytes(size)


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def where(key: bytes = b"key") -> Where:
    """A place of its own."""
    return Where("ann", "bucket", key, secrets.token_hex(16))


def noted_by_nobody(c: Connection, ready: list[shelves.Ready]) -> None:
    """A clerk of the shelf who writes nothing down."""


@dataclass
class Kind:
    """A file system under test. ``storage``: where its objects lie; ``again``: another one of the same place, which has
    read nothing yet. ``shelf``: the repository's, if it is that.
    """

    files: FileSystem
    storage: Storage
    again: Callable[[], FileSystem]
    shelf: Shelf | None = None

    def create(self, data: bytes, *pieces: int, at: Where | None = None) -> Content:
        """Create a content: at one go, or in pieces of these sizes, the last of which goes on to the end."""
        at = at or where()
        if not pieces and len(data) <= SMALL:
            content = self.files.keep(at, data)
        else:
            draft = self.files.begin(at)
            view, starts = memoryview(data), [0, *itertools.accumulate(pieces)]
            for start, stop in itertools.zip_longest(starts, starts[1:], fillvalue=len(data)):
                for some in range(start, min(stop, len(data)), SMALL):
                    draft.offer(view[some : min(some + SMALL, stop, len(data))]).result(60)
            content, hashed = draft.ended().result(60)
            assert hashed == sha1(data)
        self.settle(at, content)
        return content

    def settle(self, at: Where, content: Content) -> None:
        """Have it kept, where only what an order of the shelf names is."""
        if self.shelf is not None:
            path = f"{at.owner}/blobs/{at.bucket}/{at.key.hex()}.{at.place}.-".encode()
            self.shelf.commit(shelves.Order(path, None, to_shelf(content), noted_by_nobody, None)).result(60)

    def read(self, content: Content, start: int = 0, stop: int | None = None) -> bytes:
        with contextlib.closing(self.files.pieces(content, start, content.size if stop is None else stop)) as pieces:
            return b"".join(pieces)

    def objects(self) -> list[str]:
        return sorted(info.name for info in self.storage.list("data"))

    def change(self, name: str, data: bytes) -> None:
        """What no storage does by itself: other bytes under the same name."""
        self.storage.delete(name)
        self.storage.put(name, [data])
        self.files = self.again()


@dataclass
class Room:
    """One server's room, over a folder, and a clock that each look at moves on a little. Several over one database are
    several servers'. ``before_disk``: a storage that stands before the folder.
    """

    database: Database
    folder: Path
    repo: Repository
    before_disk: Callable[[Storage], Storage] = lambda storage: storage
    alone: bool = True
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = 1_800_000_000 * 10**9
        self.start()

    def start(self) -> None:
        local = LocalStorage(self.folder / "blobs")
        local.create()
        self.disk = self.before_disk(local)
        self.shelf = Shelf(self.repo, self.database, "tests")
        self.pieces = Pieces(self.disk)
        self.filesystems: dict[str, FileSystem] = {DISK: self.pieces, REPOSITORY: Shelved(self.shelf)}
        self.desk, self.places = Desk(self.database), Places(self.database, self.now_ns)
        self.keeper = Keeper(self.database, self.filesystems, self.places, self.now_ns, self._tell, alone=self.alone)
        self.blobs = Blobs(
            self.database, self.filesystems, self.shelf, self.desk, self.places, self.now_ns, self._tell, lambda: None,
            most_bytes=1 << 30, alone=self.alone,
        )  # fmt: skip
        self.buckets = Buckets(self.database, self.filesystems, self.now_ns)
        self.lister = Lister(self.database)
        if self.alone:  # as Keeper.start has it
            with self.database.writing() as c:
                rows.make_all_due(c, 1)

    def stop(self) -> None:
        self.desk.close()
        self.pieces.close()
        self.shelf.close()

    def now_ns(self) -> int:
        self.now += 1
        return self.now

    def _tell(self, work: str, error: Exception) -> None:
        self.told.append(f"{work}: {error}")

    # -- what is done ------------------------------------------------------------------------------------------------

    def bucket(self, by: Identity, name: str = "", *, filesystem: str = DISK, quota: Quota | None = None) -> Bucket:
        policy = Policy(filesystem=filesystem, quota=quota or Quota())
        return self.buckets.create(by, name or f"bucket{next(_numbers)}", policy)

    def put(
        self,
        by: Identity,
        bucket: str,
        key: str,
        data: bytes,
        *,
        match: Iterable[str] | None = None,
        none: Iterable[str] | None = None,
        size: int | None = -1,
        large: bool = False,
    ) -> Blob:
        """As the face does it."""
        conditions = Conditions(None if match is None else frozenset(match), None if none is None else frozenset(none))
        coming = self.blobs.receive(by, bucket, key, len(data) if size == -1 else size, conditions)
        try:
            content, hashed = self._stored(coming, data, large=large)
            self.blobs.commit(coming, content, hashed).result(60)
        except Exception as e:  # noqa: BLE001 - it goes on, in the words of who asked
            self.blobs.give_up(coming)
            raise self.blobs.meant(coming, e) from None
        assert coming.blob is not None
        return coming.blob

    def _stored(self, coming: Coming, data: bytes, *, large: bool) -> tuple[Content, str]:
        if len(data) <= SMALL and not large:
            return self.blobs.keep(coming, data), sha1(data)
        draft = self.blobs.begin(coming)
        try:
            for at in range(0, len(data), SMALL):
                draft.offer(data[at : at + SMALL]).result(60)
            return draft.ended().result(60)
        except BaseException:
            with contextlib.suppress(Exception):
                draft.abandon().result(60)
            raise

    def get(self, by: Identity, bucket: str, key: str, start: int = 0, stop: int | None = None) -> bytes:
        found, blob = self.blobs.find(by, bucket, key)
        with contextlib.closing(self.blobs.pieces(found, blob, start, blob.size if stop is None else stop)) as pieces:
            return b"".join(pieces)

    def delete(self, by: Identity, bucket: str, key: str, *, match: Iterable[str] | None = None) -> Blob:
        return self.blobs.delete(by, bucket, key, Conditions(None if match is None else frozenset(match)))[1]

    def listed(self, by: Identity, bucket: str, **query: object) -> tuple[list[Item], Listing]:
        listing = self.lister.list(by, bucket, Query(**query))  # type: ignore[arg-type]
        return list(listing.items), listing

    # -- what is so --------------------------------------------------------------------------------------------------

    def counts(self, name: str) -> tuple[int, int]:
        """Bytes and objects of a bucket, as it counts them."""
        with self.database.reading() as c:
            bucket = rows.bucket_named(c, name)
        assert bucket is not None
        return bucket.bytes, bucket.objects

    def used(self, username: str) -> tuple[int, int]:
        with self.database.reading() as c:
            account = people.account_named(c, username)
        assert account is not None
        return account.used_bytes, account.used_objects

    def comes_to(self, count: int) -> bool:
        """What is left over goes until there are so many objects: places are given back a moment after an answer."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            self.keeper.remove_left()
            if self.on_disk() == count:
                return True
            time.sleep(0.02)
        return False

    def on_disk(self) -> int:
        """How many objects there are."""
        return sum(1 for path in (self.folder / "blobs" / "data").rglob("*") if path.is_file())


def new_room(
    database: Database, folder: Path, before_disk: Callable[[Storage], Storage] = lambda storage: storage
) -> Room:
    """Its blobs are on the disk, its repository in memory."""
    return Room(database, folder, new_repository(), before_disk)


@dataclass
class People:
    """A room, and two accounts in it."""

    room: Room

    def __post_init__(self) -> None:
        self.house = House(self.room.database)
        self.ann, self.ben = self.house.user("ann", email="ann@example.org", name="Ann"), self.house.user("ben")

    @property
    def admin(self) -> Identity:
        return self.house.admin
