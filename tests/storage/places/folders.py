"""Folders of this machine, in every way there is to write one; and a storage in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.storage.local import LocalStorage
from tests.storage.places import Open, Place
from tests.support.components import missing
from tests.support.storages import MemoryStorage


def _local(root: Path) -> Place:
    storage = LocalStorage(root)
    storage.create()
    return Place(storage, lambda: LocalStorage(root), root)


def _in_memory(request: pytest.FixtureRequest) -> Iterator[Place]:
    storage = MemoryStorage()
    yield Place(storage, lambda: storage, outlives_process=False)


def _on_disk(request: pytest.FixtureRequest) -> Iterator[Place]:
    yield _local(request.getfixturevalue("tmp_path") / "storage")


def _on_tmpfs(request: pytest.FixtureRequest) -> Iterator[Place]:
    if not os.path.isdir("/dev/shm"):
        missing("/dev/shm is not there")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="holdfast-test-") as root:
        yield _local(Path(root) / "storage")


def _without_tmpfile(request: pytest.FixtureRequest) -> Iterator[Place]:
    request.getfixturevalue("no_tmpfile")
    yield from _on_disk(request)


def _without_links(request: pytest.FixtureRequest) -> Iterator[Place]:
    request.getfixturevalue("no_links")
    yield from _on_disk(request)


PLACES: dict[str, Open] = {
    "memory": _in_memory,
    "local": _on_disk,
    "local-tmpfs": _on_tmpfs,
    "local-named": _without_tmpfile,
    "local-no-links": _without_links,
}
