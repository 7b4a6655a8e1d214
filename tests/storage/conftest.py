"""The places the conformance suite runs over. A new storage joins by one more function in PLACES."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.storage.base import Storage
from holdfast.storage.local import LocalStorage
from tests.support.components import missing
from tests.support.storages import MemoryStorage


@dataclass
class Place:
    """A storage under test. ``again`` gives another client of the same place. ``root``: its folder, if it is in one.
    ``outlives_process``: whether what a killed process stored can be looked at afterwards.
    """

    storage: Storage
    again: Callable[[], Storage]
    root: Path | None = None
    outlives_process: bool = True

    def fill(self, names: Iterable[str]) -> None:
        """Have many tiny objects, by the quickest way there is."""
        if self.root is None:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda name: self.storage.put(name, [b"x"]), names))
            return
        for name in names:
            folder, _, digits = name.partition("/")
            (self.root / folder / (digits[:2] if folder == "data" else "") / digits).write_bytes(b"x")


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


PLACES = {
    "memory": _in_memory,
    "local": _on_disk,
    "local-tmpfs": _on_tmpfs,
    "local-named": _without_tmpfile,
    "local-no-links": _without_links,
}


@pytest.fixture(params=list(PLACES.values()), ids=list(PLACES))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each storage there is, empty."""
    yield from request.param(request)


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not know O_TMPFILE, as some network mounts."""
    real = os.open

    def refuse(path, flags, *args, **kwargs):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


@pytest.fixture
def no_links(no_tmpfile: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links either, as FAT."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """``forked(work)``: a child process that does the work and ends; its pid. Killed and waited for at the end."""
    children: list[int] = []

    def start(work: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(0)
        children.append(pid)
        return pid

    yield start
    for pid in children:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
