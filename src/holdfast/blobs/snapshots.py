"""A bucket as a snapshot of the server's repository, and back.

A key is a path in the snapshot wherever it can be one, so that ``holdfast ls``, ``restore`` and ``mount`` show what one
expects. A key that no file system would take as a path (empty or very long segments, a key that others begin with and a
slash) lies in ODD under the SHA-256 of its name; its extended attribute KEY tells what it is called.

What is promised: a snapshot holds every blob that was there when it began and was not changed since, each as a whole;
restoring puts each blob in one step, verified, and touches no other key.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from holdfast.accounts.directory import Identity
from holdfast.archive.content import part_of
from holdfast.blobs.blobs import Blobs
from holdfast.blobs.conditions import Conditions
from holdfast.blobs.filesystems import content_of
from holdfast.blobs.rights import LIST, READ, READS, WRITE, WRITES, see
from holdfast.blobs.shelved import to_shelf
from holdfast.catalog import blobs as rows
from holdfast.catalog.blobs import Blob, Bucket
from holdfast.catalog.database import Connection, Database
from holdfast.errors import Damaged, ObjectMissing
from holdfast.repository.format import Entry, Snapshot, Totals
from holdfast.repository.pages import Run, Tree, join, sort_key, split
from holdfast.repository.snapshots import Stored, choose
from holdfast.shelf.shelf import Content, Shelf
from holdfast.shelf.sorting import sorted_on_disk
from holdfast.shelf.uploads import Cutters, Upload, in_repository

TAG = "bucket"
ODD, KEY = b".holdfast-keys", b"user.holdfast.key"
_LONGEST = 255  # bytes of a name in a file system
_SOME = 500
_TRIES = 3

Item = tuple[bytes, bytes, bytes]  # sort key of the directory, name, and the entry as msgpack
_decode_item = msgspec.msgpack.Decoder(Item).decode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode


class Done(NamedTuple):
    """What came of it. ``snapshot``: its id; ``unchanged``: blobs that were the same already."""

    snapshot: str
    objects: int
    bytes: int
    unchanged: int = 0


class BucketSnapshots:
    """See the module. Safe to share between threads. ``folder``: where what is sorted may lie meanwhile."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        shelf: Shelf,
        folder: str,
        program: str,
    ) -> None:
        self._database, self._blobs = database, blobs
        self._shelf, self._folder, self._program = shelf, folder, program
        self._cutters = Cutters(shelf.repo.config.chunker)

    # -- making ----------------------------------------------------------------------------------------------------

    def make(self, by: Identity, name: str) -> Done:
        """Have everything in a bucket be a snapshot. It is durable when this returns."""
        by.demand(READS)
        with self._database.reading() as c:
            seen = see(c, by, name)
        seen.demand(LIST)
        bucket, tally = seen.demand(READ), _Tally()

        def runs() -> Iterator[Run]:
            tally.clear()
            items = sorted_on_disk(self._items(bucket, tally), _decode_item, self._folder)  # all of them are stored now
            self._shelf.flush()
            yield b"", [_folder(b"")]
            for directory, group in itertools.groupby(_once(items), key=lambda item: item[0]):
                entries = [_decode_entry(entry) for _, _, entry in group]
                yield directory.replace(b"\0", b"/"), entries

        snapshot = self._shelf.put_snapshot(runs, lambda root: self._snapshot(bucket, root, tally))
        return Done(snapshot, tally.objects, tally.bytes)

    def _snapshot(self, bucket: Bucket, root: bytes, tally: _Tally) -> Snapshot:
        base = f"/buckets/{bucket.name}".encode()
        return Snapshot(
            time_ns=self._shelf.repo.now_ns(), host=self._shelf.repo.owner.host, user=bucket.username, base=base,
            paths=[base], tags=_tags(bucket), root=root, program=self._program,
            totals=Totals(files=tally.objects, bytes_total=tally.bytes),
        )  # fmt: skip

    def _items(self, bucket: Bucket, tally: _Tally) -> Iterator[Item]:
        """An item for each blob, its content stored, and before it one for each folder above it."""
        told: set[bytes] = set()
        for blob, is_odd in self._blobs_of(bucket):
            self._shelf.demand_running()
            found = self._stored(bucket, blob)
            if found is None:
                continue
            blob, content = found
            path = _odd_path(blob.key) if is_odd else blob.key
            yield _item(path, _file(path, blob, content, is_odd=is_odd))
            folder = split(path)[0]
            while folder and folder not in told:
                if len(told) >= 50_000:
                    told.clear()
                told.add(folder)
                yield _item(folder, _folder(split(folder)[1]))
                folder = split(folder)[0]
            tally.objects += 1
            tally.bytes += blob.size

    def _blobs_of(self, bucket: Bucket) -> Iterator[tuple[Blob, bool]]:
        """Every blob, and whether its key cannot be a path."""
        after: bytes | None = None
        while True:
            with self._database.reading() as c:
                some = rows.by_key(c, bucket.id, b"", after, _SOME, backwards=False)
                odd = {blob.key for blob in some if _is_odd(blob.key) or _is_folder(c, bucket, blob.key)}
            yield from ((blob, blob.key in odd) for blob in some)
            if len(some) < _SOME:
                return
            after = some[-1].key

    def _stored(self, bucket: Bucket, blob: Blob) -> tuple[Blob, Content] | None:
        """The blob's content in the repository. One that is put again meanwhile is taken as it is then; None: it was
        deleted.
        """
        for _ in range(_TRIES):
            try:
                return blob, self._content(bucket, blob)
            except ObjectMissing:
                with self._database.reading() as c:
                    again = rows.blob_of(c, bucket.id, blob.key)
                if again is None:
                    return None
                blob = again
        raise Damaged(f"The content of the blob {blob.key.decode()!r} is not to be found.", "Put it again.")

    def _content(self, bucket: Bucket, blob: Blob) -> Content:
        if bucket.filesystem == rows.REPOSITORY:
            return to_shelf(content_of(blob))
        upload = Upload(in_repository(self._shelf, self._cutters), None)
        try:
            for piece in self._blobs.pieces(bucket, blob, 0, blob.size):
                upload.feed(piece)
        except BaseException:
            upload.abandon()
            raise
        return upload.finish()[0]

    # -- restoring -------------------------------------------------------------------------------------------------

    def listed(self, by: Identity, name: str) -> list[Stored]:
        """The bucket's snapshots, oldest first."""
        by.demand(READS)
        with self._database.reading() as c:
            bucket = see(c, by, name).demand(LIST)
        return self._of(bucket)

    def restore(self, by: Identity, name: str, snapshot: str) -> Done:
        """Put every blob of a snapshot (``latest``, or the beginning of an id) again. Others stay."""
        by.demand(WRITES)
        with self._database.reading() as c:
            seen = see(c, by, name)
        seen.demand(READ)
        bucket = seen.demand(WRITE)
        chosen, done = choose(self._of(bucket), snapshot), _Tally()
        for directory, entries in Tree(self._shelf.read, chosen.snapshot.root).runs():
            for entry in entries:
                if entry.kind == "f":
                    self._restore_one(by, bucket, join(directory, entry.name), entry, done)
        return Done(chosen.id, done.objects, done.bytes, done.unchanged)

    def _of(self, bucket: Bucket) -> list[Stored]:
        """Of this bucket as its owner has it: another one of that name, somebody else's, has others."""
        found = self._shelf.repo.snapshots([])
        return [s for s in found if s.snapshot.user == bucket.username and _tags(bucket)[1] in s.snapshot.tags]

    def _restore_one(self, by: Identity, bucket: Bucket, path: bytes, entry: Entry, done: _Tally) -> None:
        key = (entry.xattrs or {}).get(KEY, path)
        with self._database.reading() as c:
            there = rows.blob_of(c, bucket.id, key)
        if there is not None and there.size == entry.size and there.sha1 == self._sha1(entry, path):
            done.unchanged += 1
            return
        coming = self._blobs.receive(by, bucket.name, key.decode(), entry.size, Conditions())
        draft = self._blobs.begin(coming)
        try:
            for piece in part_of(self._shelf, entry, 0, entry.size, path):
                draft.offer(piece).result()
            content, sha1 = draft.ended().result()
            self._blobs.commit(coming, content, sha1).result()
        except BaseException:
            draft.abandon().add_done_callback(lambda _: self._blobs.give_up(coming))
            raise
        done.objects += 1
        done.bytes += entry.size

    def _sha1(self, entry: Entry, path: bytes) -> str:
        hasher = hashlib.sha1(usedforsecurity=False)
        for piece in part_of(self._shelf, entry, 0, entry.size, path):
            hasher.update(piece)
        return hasher.hexdigest()


class _Tally:
    """What was counted."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.objects = self.bytes = self.unchanged = 0


def _tags(bucket: Bucket) -> list[str]:
    return [TAG, f"{TAG}:{bucket.name}"]


def _is_odd(key: bytes) -> bool:
    names = key.split(b"/")
    return names[0] == ODD or any(not 0 < len(name) <= _LONGEST for name in names)


def _is_folder(c: Connection, bucket: Bucket, key: bytes) -> bool:
    """Whether other keys begin with it and a slash: then it cannot be a file."""
    return bool(rows.by_key(c, bucket.id, key + b"/", None, 1, backwards=False))


def _odd_path(key: bytes) -> bytes:
    return join(ODD, hashlib.sha256(key).hexdigest().encode())


def _item(path: bytes, entry: Entry) -> Item:
    return (*sort_key(*split(path)), msgspec.msgpack.encode(entry))


def _file(path: bytes, blob: Blob, content: Content, *, is_odd: bool) -> Entry:
    return Entry(
        split(path)[1], "f", 0o600, 0, 0, blob.modified_ns, 0, 0, content.size, content.chunks, content.depth,
        xattrs={KEY: blob.key} if is_odd else None,
    )  # fmt: skip


def _folder(name: bytes) -> Entry:
    return Entry(name, "d", 0o700, 0, 0, 0, 0, 0)


def _once(items: Iterable[Item]) -> Iterator[Item]:
    """Of each path one."""
    return (next(same) for _, same in itertools.groupby(items, key=lambda item: item[:2]))
