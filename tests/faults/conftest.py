"""Fixtures of the fault tests: a machine whose faults are taken back, folders in memory, a house."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import Machine, machine_in
from tests.support.rounds import House, one_after_the_other
from tests.support.storages import MemoryStorage


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for what need not survive anything."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir=shm, prefix="holdfast-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with machine_in(tmp_path / "machine") as made:
        yield made


@pytest.fixture
def house(quick_folder: Path) -> House:
    """A repository in memory."""
    made = House(MemoryStorage(), quick_folder, owner=one_after_the_other())
    made.create()
    return made
