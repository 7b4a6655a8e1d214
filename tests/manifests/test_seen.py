"""What the command line backed up is a manifest too, for administrators."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.archive.backup import Request, back_up
from holdfast.catalog.holdings import File
from holdfast.errors import NoContent, StorageUnavailable
from holdfast.manifests import seen
from tests.manifests.making import Room


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"first")
    (folder / "sub/b.bin").write_bytes(bytes(range(256)) * 5000)
    (folder / "sub/b.bin").chmod(0o640)
    os.utime(folder / "a.txt", ns=(0, 1_609_556_645_123_456_000))
    (folder / "link").symlink_to("a.txt")
    os.mkfifo(folder / "pipe")
    (folder / os.fsdecode(b"\xff")).write_bytes(b"no text")
    return folder


def back_it_up(room: Room, source: Path) -> str:
    return back_up(room.repo, Request((os.fsencode(source),), host="laptop")).snapshot_id


def the_only_name(room: Room) -> str:
    (found,) = room.manifests.page(room.house.admin, limit=9, before=None, name=None).manifests
    return found.name


def test_a_snapshot_is_listed_and_rendered_in_the_same_form(room: Room, source: Path):
    back_it_up(room, source)
    name = the_only_name(room)
    assert name.startswith("laptop:%2F") and "/" not in name
    found = room.read(room.house.admin, name)
    assert found["base"] == str(source) and found["left_out"] == 2
    assert found["files"].keys() == {"./a.txt", "./sub/b.bin"}
    file = found["files"]["./sub/b.bin"]
    assert file["hash"] == hashlib.sha256((source / "sub/b.bin").read_bytes()).hexdigest()
    assert (file["size"], file["permissions"], file["is_available"]) == (1_280_000, 640, True)
    assert found["files"]["./a.txt"]["timestamp"] == "2021-01-02T03:04:05.123456+00:00"
    assert found["directories"].keys() == {"./sub"}
    assert found["symlinks"]["./link"]["target"] == "a.txt"


def test_its_files_can_be_read_by_their_hash_by_administrators_only(room: Room, source: Path):
    back_it_up(room, source)
    room.read(room.house.admin, the_only_name(room))
    assert room.get(room.house.admin, b"first") == b"first"
    with pytest.raises(NoContent):
        room.get(room.ann, b"first")
    assert room.manifests.page(room.ann, limit=9, before=None, name=None).manifests == []


def test_the_next_snapshot_is_the_next_version_and_a_forgotten_one_is_gone(room: Room, source: Path):
    first = back_it_up(room, source)
    name = the_only_name(room)
    assert room.read(room.house.admin, name)["files"].keys() == {"./a.txt", "./sub/b.bin"}
    (source / "a.txt").unlink()
    back_it_up(room, source)
    versions = room.manifests.page(room.house.admin, limit=9, before=None, name=name).manifests
    assert [m.version for m in versions] == [2, 1]
    assert room.read(room.house.admin, name)["files"].keys() == {"./sub/b.bin"}
    room.repo.storage.delete(f"snapshots/{first}")
    assert room.manifests.named(room.house.admin, name).version == 2
    with pytest.raises(NoContent):
        room.manifests.named(room.house.admin, name, 1)


def test_snapshots_of_the_shelf_and_of_manifests_are_not_listed_again(room: Room):
    room.put(room.ann, b"x")
    made = room.post(room.ann, {"name": "m", "files": {"x": {"hash": hashlib.sha256(b"x").hexdigest(), "size": 1}}})
    room.maker.make(made.id)
    assert room.manifests.page(room.house.admin, limit=9, before=None, name=None).manifests == []


def test_a_document_that_takes_long_is_made_while_nobody_waits(
    room: Room, source: Path, monkeypatch: pytest.MonkeyPatch
):
    back_it_up(room, source)
    name, may_go_on = the_only_name(room), threading.Event()
    pieces = room.files.pieces

    def slow_pieces(file: File) -> Iterator[bytes]:
        assert may_go_on.wait(30)
        yield from pieces(file)

    monkeypatch.setattr(room.files, "pieces", slow_pieces)
    monkeypatch.setattr(seen, "WAIT_S", 0.05)
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="hashed for the first time"):
            room.manifests.named(room.house.admin, name)
    may_go_on.set()
    monkeypatch.setattr(seen, "WAIT_S", 30.0)
    assert room.manifests.named(room.house.admin, name).files == 2
    monkeypatch.undo()
    assert room.read(room.house.admin, name)["files"].keys() == {"./a.txt", "./sub/b.bin"}


def test_a_server_that_stops_does_not_wait_for_documents(room: Room, source: Path, monkeypatch: pytest.MonkeyPatch):
    back_it_up(room, source)
    name, begun = the_only_name(room), threading.Event()

    def endless(file: File) -> Iterator[bytes]:
        while True:
            begun.set()
            time.sleep(0.01)
            yield b"x"

    monkeypatch.setattr(room.files, "pieces", endless)
    monkeypatch.setattr(seen, "WAIT_S", 0.05)
    with pytest.raises(StorageUnavailable):
        room.manifests.named(room.house.admin, name)
    assert begun.wait(10)
    room.manifests.close()
    with pytest.raises(StorageUnavailable, match="stopping"):
        room.manifests.named(room.house.admin, name)
    monkeypatch.undo()
    room.stop()
    room.start()
    assert room.manifests.named(room.house.admin, name).files == 2


def test_a_snapshot_is_listed_once_however_many_look(room: Room, source: Path):
    back_it_up(room, source)
    at_once = threading.Barrier(4)

    def look() -> None:
        at_once.wait()
        room.manifests.page(room.house.admin, limit=9, before=None, name=None)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    name = the_only_name(room)
    versions = room.manifests.page(room.house.admin, limit=9, before=None, name=name).manifests
    assert [m.version for m in versions] == [1]
