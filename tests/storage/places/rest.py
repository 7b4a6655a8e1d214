"""REST servers: rclone's, which over a folder lets others see an object while it comes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.storage.select import Access
from tests.storage.places import Open, Place, at, fill_folder
from tests.support.rclone import serving


def _rclone(request: pytest.FixtureRequest) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="holdfast-test-") as folder, serving("restic", Path(folder)) as port:
        address, root = f"rest:http://127.0.0.1:{port}/repo", Path(folder) / "repo"
        yield at(address, Access(), one_wins=False, whole=False, filled=lambda names: fill_folder(root, names))


PLACES: dict[str, Open] = {"rest-rclone": _rclone}
