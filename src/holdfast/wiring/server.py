"""Builds everything ``holdfast serve`` runs: the catalog, the accounts, the repository, the faces.

Under the data folder lie ``repository/`` and its ``key`` (mode 0600), and ``catalog.db`` unless another database is
named; below ``vaults/`` one folder for each vault; in ``shares/`` what is
shared, in ``blobs/`` the contents of blobs on disk. All of it is made on the first start.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from holdfast import __version__
from holdfast.accounts.directory import Directory
from holdfast.accounts.oauth import OAuth
from holdfast.accounts.openid import OpenID, Provider
from holdfast.accounts.passwords import Passwords
from holdfast.catalog.database import Database
from holdfast.errors import NoRepository, UsageError
from holdfast.faces.app import Application, Rooms, create_app
from holdfast.faces.watching import make_log
from holdfast.manifests.files import Files
from holdfast.manifests.housekeeping import Housekeeper, Tell
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.removing import Remover
from holdfast.manifests.snapshots import SnapshotMaker
from holdfast.manifests.tidying import Tidier
from holdfast.repository.keys import Sheet
from holdfast.repository.repository import Repository, create, open_repository
from holdfast.settings import BlobsSettings, OidcSettings, ServerSettings, SharesSettings
from holdfast.shares.gone import GoneHere, GoneInRedis
from holdfast.shares.keeping import Keeper as SharesKeeper
from holdfast.shares.shares import Shares
from holdfast.shelf.shelf import Shelf
from holdfast.storage.local import LocalStorage
from holdfast.storage.loose import LooseFiles
from holdfast.vaults.folders import Folders
from holdfast.vaults.keeping import Keeper
from holdfast.vaults.objects import Objects
from holdfast.vaults.vaults import Vaults
from holdfast.wiring.app import machine_owner, read_first_line, read_key_file, return_freed_memory, write_key_file
from holdfast.wiring.blobs import open_blobs
from holdfast.wiring.provider import fetch

_SWITCH_S = 0.0005  # a thread that comes back from the disk waits so long for the one that answers requests


@dataclass(frozen=True)
class Server:
    """A server, ready to serve ``app``. ``new_password``: the first administrator's, if it was made just now."""

    app: Application
    folder: Path
    new_repository: bool
    new_password: str | None


@contextlib.contextmanager
def open_server(
    settings: ServerSettings,
    admin_password: str,
    log: TextIO,
    now_ns: Callable[[], int] = time.time_ns,
    *,
    oidc: OidcSettings | None = None,
    sharing: SharesSettings | None = None,
    blobs: BlobsSettings | None = None,
    blob_port: int | None = None,
) -> Iterator[Server]:
    """Open or make everything; close it at the end of the block."""
    return_freed_memory(arenas=2)
    sys.setswitchinterval(_SWITCH_S)
    folder = Path(settings.data)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    repository, is_new = _repository(folder, now_ns)
    database = Database(settings.database or f"sqlite:///{folder}/catalog.db")
    with contextlib.closing(database):
        database.migrate()
        passwords = Passwords()
        directory = Directory(database, passwords, now_ns)
        password = directory.create_first_admin(admin_password)

        def ready() -> None:
            database.ping()
            repository.storage.stat("config")

        oauth = OAuth(database, directory, now_ns)

        def tell(work: str, error: Exception) -> None:
            make_log(log).error("housekeeping", work=work, error=str(error), exc_info=error)

        anybody = directory.anybody() if settings.open else None
        with (
            contextlib.closing(Shelf(repository, database, f"holdfast {__version__}")) as shelf,
            _manifests(settings, shelf, database, now_ns, tell) as (files, manifests, remover),
            _vaults(folder, database, now_ns, tell) as (vaults, objects),
            _shares(folder, sharing or SharesSettings(), database, passwords, now_ns, tell) as shares,
            open_blobs(
                blobs or BlobsSettings(), folder, shelf, database, now_ns, tell, most_bytes=settings.most_bytes,
                port=blob_port, anybody=anybody,
            ) as blob_rooms,
        ):  # fmt: skip
            openid = _openid(oidc, database, passwords, now_ns)
            waiting = str(_waiting(folder))
            rooms = Rooms(
                directory, ready, oauth, settings.url, files, manifests, remover, waiting, vaults, objects, shares,
                blob_rooms, sharing.accel if sharing else "", openid,
            )  # fmt: skip
            yield Server(create_app(rooms, log), folder, is_new, password)


@contextlib.contextmanager
def _manifests(
    settings: ServerSettings, shelf: Shelf, database: Database, now_ns: Callable[[], int], tell: Tell
) -> Iterator[tuple[Files, Manifests, Remover]]:
    """The room of manifests and files, and the thread that keeps it in order."""
    folder, program = str(_waiting(Path(settings.data))), f"holdfast {__version__}"

    def wake(*_: object) -> None:
        keeper.wake()

    files = Files(shelf, database, now_ns, settings.most_bytes, wake)
    manifests = Manifests(shelf, files, database, now_ns, wake)
    remover = Remover(shelf, manifests, database, folder, now_ns, wake)
    maker = SnapshotMaker(shelf, files, manifests, database, folder, program)
    tidier = Tidier(shelf, manifests, database, folder, now_ns)
    keeper = Housekeeper(shelf, files, manifests, maker, remover, tidier, database, tell)
    manifests.clear(all_of_them=database.is_sqlite)  # there is one server for that: what was received is lost
    keeper.start()
    with contextlib.closing(manifests), contextlib.closing(keeper):
        yield files, manifests, remover


@contextlib.contextmanager
def _vaults(data: Path, database: Database, now_ns: Callable[[], int], tell: Tell) -> Iterator[tuple[Vaults, Objects]]:
    """The room of vaults, and the thread that keeps it in order."""
    folder = data / "vaults"
    folder.mkdir(mode=0o700, exist_ok=True)
    folders = Folders(folder)
    objects = Objects(database, folders, now_ns, tell)
    keeper = Keeper(database, folders, objects, now_ns, tell, alone=database.is_sqlite)
    keeper.start()
    with contextlib.closing(keeper):
        yield Vaults(database, folders, now_ns, keeper.wake), objects


@contextlib.contextmanager
def _shares(
    data: Path,
    settings: SharesSettings,
    database: Database,
    passwords: Passwords,
    now_ns: Callable[[], int],
    tell: Tell,
) -> Iterator[Shares]:
    """The room of one-time shares, and the thread that keeps it in order."""
    files = LooseFiles(Path(settings.folder) if settings.folder else data / "shares", readable=bool(settings.accel))
    files.create()
    gone = GoneInRedis(settings.redis, tell) if settings.redis else GoneHere()
    shares = Shares(database, files, passwords, gone, now_ns, tell, most_bytes=settings.most_bytes)
    after_ns = int(settings.remove_after * 1_000_000_000)
    keeper = SharesKeeper(database, files, shares, now_ns, tell, alone=database.is_sqlite, after_ns=after_ns)
    with contextlib.closing(gone), contextlib.closing(keeper):
        keeper.start()
        yield shares


def _waiting(data: Path) -> Path:
    """The folder where bodies may wait, in files that have no name there."""
    folder = data / "waiting"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _openid(
    settings: OidcSettings | None, database: Database, passwords: Passwords, now_ns: Callable[[], int]
) -> OpenID | None:
    """The outside provider, if there is one."""
    if settings is None or not settings.issuer:
        return None
    secret = read_first_line(Path(settings.client_secret_file).expanduser(), "client secret's file")
    provider = Provider(settings.issuer, settings.client_id, secret, settings.scopes, settings.admit == "anyone")
    return OpenID(database, passwords, provider, fetch, now_ns)


def _repository(folder: Path, now_ns: Callable[[], int]) -> tuple[Repository, bool]:
    """The repository in the data folder, and whether it was made just now."""
    key = folder / "key"
    storage, owner = LocalStorage(folder / "repository"), machine_owner()
    if not key.exists():
        write_key_file(key)
    credential = read_key_file(key)
    if isinstance(credential, Sheet):
        raise UsageError(f"{key} is a recovery sheet; the server needs its key file.")
    try:
        return open_repository(storage, credential, owner, now_ns), False
    except NoRepository:
        storage.create()
        return create(storage, credential, owner, now_ns, label="server"), True
