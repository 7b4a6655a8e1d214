"""The room, over each kind of catalog."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.catalog.database import Database
from holdfast.storage.local import LocalStorage
from tests.manifests.making import Room
from tests.repository.making import new_repository


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Iterator[Room]:
    storage = LocalStorage(tmp_path / "repository")
    storage.create()
    found = Room(database, new_repository(storage), tmp_path)
    yield found
    found.stop()
