"""Fixtures for the tests of the archive; what they give stands in making.py."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive.making import FINE, House, Mounts, make_house


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


@pytest.fixture
def fine(tmp_path: Path) -> House:
    """A house whose repository cuts content into chunks of about 4 KiB, so that small files have many."""
    return make_house(tmp_path, FINE)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    mounts = Mounts(tmp_path)
    yield mounts
    for path in reversed(mounts.made):
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine may enter."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def bottomless() -> Iterator[Path]:
    """A folder for trees deeper than Python's own tools can remove."""
    name = tempfile.mkdtemp()
    yield Path(name)
    subprocess.run(["rm", "-rf", name], check=True)
