"""The room, over each kind of catalog."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.catalog.database import Database
from tests.shares.making import Room


@pytest.fixture
def room(database: Database, tmp_path: Path) -> Room:
    return Room(database, tmp_path / "shares")
