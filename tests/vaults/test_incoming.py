"""Objects that come and go piece by piece in a local storage: the promises of ``put`` and ``get``."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from holdfast.errors import ObjectExists, ObjectMissing, StorageError, StorageUnavailable
from holdfast.storage.local import LocalStorage

NAME = "data/" + "ab" * 32


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    made = LocalStorage(tmp_path / "s")
    made.create()
    made.put("config", [b"{}"])
    return made


def left_over(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "s" / "tmp").glob("*"))


def test_pieces_become_an_object_when_it_is_published(storage: LocalStorage, tmp_path: Path):
    incoming = storage.begin(NAME)
    for piece in (b"one", bytearray(b"two"), memoryview(b"three"), b""):
        incoming.write(piece)
    with pytest.raises(ObjectMissing):
        storage.stat(NAME)
    incoming.publish()
    incoming.abandon()
    assert storage.get(NAME) == b"onetwothree" and left_over(tmp_path) == []


def test_what_is_abandoned_leaves_nothing(storage: LocalStorage, tmp_path: Path):
    incoming = storage.begin(NAME)
    incoming.write(b"some")
    incoming.abandon()
    incoming.abandon()
    assert list(storage.list("data")) == [] and left_over(tmp_path) == []


def test_what_is_there_stays(storage: LocalStorage, tmp_path: Path):
    first, second = storage.begin(NAME), storage.begin(NAME)
    first.write(b"first")
    second.write(b"second")
    first.publish()
    with pytest.raises(ObjectExists):
        second.publish()
    with pytest.raises(ObjectExists):
        storage.begin(NAME)
    assert storage.get(NAME) == b"first" and left_over(tmp_path) == []


def test_an_object_is_read_piece_by_piece_also_when_it_is_deleted_meanwhile(storage: LocalStorage):
    storage.put(NAME, [b"0123456789"])
    opened = storage.open(NAME)
    assert opened.info == storage.stat(NAME) and opened.read(2, 3) == b"234"
    assert storage.remove(NAME) == 10
    assert opened.read(5, 5) == b"56789"
    with pytest.raises(StorageError, match="truncated"):
        opened.read(5, 6)
    opened.close()
    opened.close()
    for ask in (storage.open, storage.remove):
        with pytest.raises(ObjectMissing):
            ask(NAME)


def test_in_a_folder_that_is_not_there_nothing_is_begun_and_nothing_is_missing(tmp_path: Path):
    storage = LocalStorage(tmp_path / "away")
    for ask in (storage.begin, storage.open, storage.remove):
        with pytest.raises(StorageUnavailable):
            ask(NAME)
    with pytest.raises(StorageUnavailable):
        storage.clear(0)
    assert not (tmp_path / "away").exists()


@pytest.mark.parametrize("name", ["../config", "data/x", "tmp/" + "ab" * 32, "data/" + "AB" * 32, "locks"])
def test_what_is_no_name_is_refused(storage: LocalStorage, name: str):
    for ask in (storage.begin, storage.open, storage.remove):
        with pytest.raises(StorageError, match="not the name"):
            ask(name)


def test_what_nobody_works_at_is_cleared(storage: LocalStorage, tmp_path: Path):
    killed = storage.begin(NAME)
    killed.write(b"some")
    storage.clear(3600 * 10**9)
    assert len(left_over(tmp_path)) == 1
    storage.clear(-1)
    assert left_over(tmp_path) == []
    with pytest.raises(StorageUnavailable):  # whoever worked at it after all does not store it
        killed.publish()
    assert list(storage.list("data")) == []


def test_an_object_is_flushed_before_it_has_its_name_and_its_folder_after(need: Callable[[str], str], tmp_path: Path):
    data = b"something"
    work = (
        "import sys; from holdfast.storage.local import LocalStorage; s = LocalStorage(sys.argv[1]); s.create();"
        f"i = s.begin('data/{hashlib.sha256(data).hexdigest()}'); i.write({data!r}); i.publish()"
    )
    command = [need("strace"), "-f", "-y", "-qq", "-e", "trace=write,writev,fsync,link,linkat,rename"]
    done = subprocess.run(
        [*command, sys.executable, "-c", work, str(tmp_path / "s")], stderr=subprocess.PIPE, text=True, check=True
    )
    calls = [line for line in done.stderr.splitlines() if str(tmp_path / "s") in line]
    steps = [
        next(n for n, line in enumerate(calls) if re.search(pattern, line))
        for pattern in (r"writev?\(.*/s/tmp/", r"fsync\(.*/s/tmp/", r"link(at)?\(.*/s/tmp/")
    ]
    flushes = [n for n, line in enumerate(calls) if re.search(r"fsync\(.*/data/[0-9a-f]{2}>", line)]
    assert steps == sorted(steps) and flushes and flushes[-1] > steps[-1]
