"""Each file system of blobs, and rooms over each kind of catalog."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.blobs.pieces import Pieces
from holdfast.blobs.shelved import Shelved
from holdfast.catalog.database import Database
from holdfast.repository.format import Chunker
from holdfast.shelf.shelf import Shelf
from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage
from tests.blobs.making import Kind, People, Room, new_room
from tests.repository.making import new_repository
from tests.storage.places.buckets import PLACES as BUCKETS
from tests.storage.places.swift import PLACES as SWIFT


@pytest.fixture(params=["disk", "repository", "s3", "swift"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    """Each file system there is, empty."""
    with contextlib.ExitStack() as stack:
        if request.param == "repository":
            yield _repository(tmp_path, stack)
        elif request.param == "disk":
            storage = LocalStorage(tmp_path / "blobs")
            storage.create()
            yield _pieces(storage, stack)
        else:
            places = BUCKETS["s3-moto"] if request.param == "s3" else SWIFT["swift"]
            for place in places(request):
                yield _pieces(place.storage, stack)


def _pieces(storage: Storage, stack: contextlib.ExitStack) -> Kind:
    files = Pieces(storage)
    stack.callback(files.close)
    return Kind(files, storage, lambda: files)


def _repository(folder: Path, stack: contextlib.ExitStack) -> Kind:
    storage = LocalStorage(folder / "repository")
    storage.create()
    database = Database(f"sqlite:///{folder}/catalog.db")
    database.migrate()
    stack.callback(database.close)
    repo = new_repository(storage, chunker=Chunker())

    def opened() -> Shelf:
        shelf = Shelf(repo, database, "tests")
        stack.callback(shelf.close)
        return shelf

    shelf = opened()
    return Kind(Shelved(shelf), storage, lambda: Shelved(opened()), shelf)


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Iterator[Room]:
    found = new_room(database, tmp_path)
    yield found
    found.stop()


@pytest.fixture
def people(room: Room) -> People:
    return People(room)


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    found = Database(f"sqlite:///{tmp_path}/catalog.db")
    found.migrate()
    yield found
    found.close()


@pytest.fixture
def simply(sqlite: Database, tmp_path: Path) -> Iterator[People]:
    """A room over one kind of catalog, for what does not depend on that."""
    room = new_room(sqlite, tmp_path)
    yield People(room)
    room.stop()
