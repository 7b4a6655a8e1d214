"""Builds everything ``holdfast serve`` runs: the catalog, the accounts, the repository, the faces.

Under the data folder lie ``repository/`` and its ``key`` (mode 0600), and ``catalog.db`` unless another database is
named. All of it is made on the first start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from holdfast.accounts.directory import Directory
from holdfast.accounts.passwords import Passwords
from holdfast.catalog.database import Database
from holdfast.errors import NoRepository, UsageError
from holdfast.faces.app import Application, Rooms, create_app
from holdfast.repository.keys import Sheet
from holdfast.repository.repository import Repository, create, open_repository
from holdfast.settings import ServerSettings
from holdfast.storage.local import LocalStorage
from holdfast.wiring.app import machine_owner, read_key_file, return_freed_memory, write_key_file


@dataclass(frozen=True)
class Server:
    """A server, ready to serve ``app``. ``new_password``: the first administrator's, if it was made just now."""

    app: Application
    folder: Path
    new_repository: bool
    new_password: str | None


@contextlib.contextmanager
def open_server(
    settings: ServerSettings, admin_password: str, log: TextIO, now_ns: Callable[[], int] = time.time_ns
) -> Iterator[Server]:
    """Open or make everything; close it at the end of the block."""
    return_freed_memory()
    folder = Path(settings.data)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    repository, is_new = _repository(folder, now_ns)
    database = Database(settings.database or f"sqlite:///{folder}/catalog.db")
    with contextlib.closing(database):
        database.migrate()
        directory = Directory(database, Passwords(), now_ns)
        password = directory.create_first_admin(admin_password)

        def ready() -> None:
            database.ping()
            repository.storage.stat("config")

        app = create_app(Rooms(directory, ready), log)
        yield Server(app, folder, is_new, password)


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
