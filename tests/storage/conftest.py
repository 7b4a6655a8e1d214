"""Every storage there is, as a fixture; and file systems that lack something."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.storage.places import Open, Place

KINDS = ("folders", "buckets", "swift", "sftp", "rest")


def _all_places() -> dict[str, Open]:
    found: dict[str, Open] = {}
    for kind in KINDS:
        found |= importlib.import_module(f"tests.storage.places.{kind}").PLACES
    return found


PLACES = _all_places()
SLOW = {"s3-swift", "sftp-rclone"}  # kinds whose clients are tested against another server as well


@pytest.fixture(
    params=[pytest.param(p, id=k, marks=[pytest.mark.slow] if k in SLOW else []) for k, p in PLACES.items()]
)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each storage there is, empty."""
    for place in request.param(request):
        try:
            yield place
        finally:
            place.close()


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
