"""Builds the room of blobs: its file systems, the desk, the thread that keeps it in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from holdfast import __version__
from holdfast.accounts.directory import Identity
from holdfast.blobs.blobs import Blobs, Tell
from holdfast.blobs.buckets import Buckets
from holdfast.blobs.desk import Desk
from holdfast.blobs.filesystems import FileSystem
from holdfast.blobs.keeping import Keeper
from holdfast.blobs.listing import Lister
from holdfast.blobs.pieces import Pieces
from holdfast.blobs.places import Places
from holdfast.blobs.shelved import Shelved
from holdfast.blobs.snapshots import BucketSnapshots
from holdfast.catalog.blobs import DISK, OBJECT, REPOSITORY
from holdfast.catalog.database import Database
from holdfast.errors import UsageError
from holdfast.faces.blobs import BlobRooms
from holdfast.settings import BlobsSettings
from holdfast.shelf.shelf import Shelf
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage
from holdfast.storage.retrying import Patience, Retrying
from holdfast.storage.select import Access, open_storage

_PATIENCE_S = 30.0  # a client waits meanwhile


@contextlib.contextmanager
def open_blobs(
    settings: BlobsSettings,
    data: Path,
    shelf: Shelf,
    database: Database,
    now_ns: Callable[[], int],
    tell: Tell,
    *,
    most_bytes: int,
    port: int | None,
    anybody: Identity | None,
) -> Iterator[BlobRooms]:
    """Open or make everything; end it at the end of the block."""
    with contextlib.ExitStack() as open_:
        filesystems: dict[str, FileSystem] = {REPOSITORY: Shelved(shelf)}
        for name, storage in _storages(settings, data).items():
            filesystems[name] = open_.enter_context(contextlib.closing(Pieces(storage)))
        if settings.filesystem not in filesystems:
            raise UsageError(f"[blobs] filesystem: {settings.filesystem!r} is not set up.", "[blobs] object names it.")
        desk = open_.enter_context(contextlib.closing(Desk(database)))
        places = Places(database, now_ns)
        keeper = Keeper(database, filesystems, places, now_ns, tell, alone=database.is_sqlite)
        blobs = Blobs(
            database, filesystems, shelf, desk, places, now_ns, tell, keeper.wake, most_bytes=most_bytes,
            alone=database.is_sqlite,
        )  # fmt: skip
        usual_first = sorted(filesystems, key=lambda name: name != settings.filesystem)
        buckets = Buckets(database, usual_first, now_ns)
        if settings.policies:
            buckets.apply_policies(settings.policies)
        keeper.start()
        open_.enter_context(contextlib.closing(keeper))
        origins = ("*",) if anybody else settings.origins
        snapshots = BucketSnapshots(database, blobs, shelf, str(data / "waiting"), f"holdfast {__version__}")
        yield BlobRooms(blobs, buckets, Lister(database), snapshots, origins, port, anybody)


def _storages(settings: BlobsSettings, data: Path) -> dict[str, Storage]:
    """The disk, and the object store if there is one."""
    disk = LocalStorage(data / "blobs")
    disk.create()
    found: dict[str, Storage] = {DISK: disk}
    if settings.object:
        far = open_storage(settings.object, Access(settings.storage, Path.home()))
        found[OBJECT] = Retrying(far, Patience(_PATIENCE_S, _PATIENCE_S))
        found[OBJECT].create()
    return found
