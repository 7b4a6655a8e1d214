"""What a server does beside answering goes on, whatever one manifest, one order or one disk does to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from holdfast.catalog import removals
from holdfast.errors import StorageUnavailable
from holdfast.manifests import housekeeping
from holdfast.manifests.housekeeping import Housekeeper
from holdfast.repository.pages import Tree
from holdfast.shelf.shelf import Order
from tests.manifests.making import Room, entry, sha256

Told = list[tuple[str, str]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def keeper(room: Room, told: Told, monkeypatch: pytest.MonkeyPatch) -> Iterator[Housekeeper]:
    monkeypatch.setattr(housekeeping, "_AGAIN_S", 0.05)

    def tell(work: str, error: Exception) -> None:
        told.append((work, str(error)))

    made = Housekeeper(
        room.shelf, room.files, room.manifests, room.maker, room.remover, room.tidier, room.database, tell
    )
    yield made
    made.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("when", ["0001-01-01T00:00:00", "9999-12-31T23:59:59", "1500-06-01T00:00:00+00:00"])
def test_a_time_that_no_file_can_have_becomes_the_nearest_one(room: Room, when: str):
    room.put(room.ann, b"x")
    made = room.post(room.ann, {"name": "m", "files": {"x": entry(b"x", timestamp=when)}})
    snapshot_id = room.maker.make(made.id)
    (stored,) = [s for s in room.repo.snapshots() if s.id == snapshot_id]
    entries = [e for _, some in Tree(room.shelf.read, stored.snapshot.root).runs() for e in some]
    assert abs(next(e.mtime_ns for e in entries if e.name == b"x")) == (1 << 63) - 1


def test_a_manifest_of_which_no_snapshot_can_be_made_keeps_no_other_waiting(
    room: Room, keeper: Housekeeper, told: Told, monkeypatch: pytest.MonkeyPatch
):
    bad, good = (room.post(room.ann, {"name": name, "files": {}}).id for name in ("bad", "good"))
    room.post(room.ann, {"name": "gone", "files": {}})
    room.remover.delete(room.ann, "gone", None)
    make = room.maker.make

    def make_but_for_one(number: int) -> str:
        if number == bad:
            raise OverflowError("it cannot be said in 64 bits")
        return make(number)

    monkeypatch.setattr(room.maker, "make", make_but_for_one)
    keeper.start()
    wait_for(lambda: room.manifests.named(room.ann, "good").snapshot != "")
    wait_for(lambda: not waiting_to_be_dropped(room))
    time.sleep(0.3)  # it is tried again, and not told again
    assert told == [(f"make the snapshot of manifest {bad}", "it cannot be said in 64 bits")]
    assert good != bad


def waiting_to_be_dropped(room: Room) -> int:
    with room.database.reading() as c:
        return len(removals.deleted_manifests(c))


def test_a_log_that_cannot_be_written_ends_nothing(room: Room, keeper: Housekeeper, monkeypatch: pytest.MonkeyPatch):
    def broken(*about: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(keeper, "_tell", broken)
    monkeypatch.setattr(room.remover, "give_up", broken)
    keeper.start()
    made = room.post(room.ann, {"name": "m", "files": {}})
    wait_for(lambda: room.manifests.named(room.ann, "m").snapshot != "")
    assert made.id > 0


def test_one_order_that_cannot_be_noted_harms_no_other(room: Room):
    """Orders that come together are noted together; where that fails each is tried alone."""
    begin = threading.Event()

    def faulty(c: Any, ready: Any) -> None:
        begin.wait(30)
        raise StorageUnavailable("The catalog refuses a value.")

    content = room.shelf.small(b"x")
    first = room.shelf.commit(Order(b"ann/files/first", None, content, faulty, None))
    futures = [room.files.put(room.ann, sha256(b"%d" % n), b"%d" % n, sha256(b"%d" % n))[0] for n in range(20)]
    second = room.shelf.commit(Order(b"ann/files/second", None, content, faulty, None))
    begin.set()
    for future in futures:
        future.result(60)
    for future in (first, second):
        with pytest.raises(StorageUnavailable, match="refuses a value"):
            future.result(60)
    assert all(room.get(room.ann, b"%d" % n) == b"%d" % n for n in range(20))


def test_the_thread_that_commits_survives_whatever_opening_a_session_does(room: Room, monkeypatch: pytest.MonkeyPatch):
    def cannot(*about: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as m:
        m.setattr(room.shelf, "_begin", cannot)
        m.setattr(room.shelf, "_put", cannot)
        with pytest.raises(RuntimeError):
            room.put(room.ann, b"one")
    assert room.put(room.ann, b"two") is True
    assert room.get(room.ann, b"two") == b"two"
