"""What was acknowledged stays: through killed servers, a lost catalog, merging and prune."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa

from holdfast.catalog.blobs import REPOSITORY
from holdfast.catalog.database import Database
from holdfast.catalog.tables import blobs, bucket_grants, buckets, shelves
from holdfast.manifests.files import Files
from holdfast.manifests.manifests import Manifests
from holdfast.manifests.tidying import FULLY_S, Tidier
from holdfast.repository import prune
from holdfast.repository.check import check
from holdfast.shelf.shelf import TAG
from tests.blobs.making import People, Room, new_room, noise
from tests.support.blobs import own_url
from tests.support.server import ADMIN_PASSWORD, Running, running

MIB = 1 << 20


def wait_for(so: Callable[[], bool], seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while not so() and time.monotonic() < until:
        time.sleep(0.05)
    assert so()


# -- killed ------------------------------------------------------------------------------------------------------------


def content(writer: int, number: int, size: int) -> bytes:
    """One that tells whose it is, and which, all the way."""
    stamp = b"%04d:%06d;" % (writer, number)
    return (stamp * (size // len(stamp) + 1))[: max(size, len(stamp))]


def number_of(data: bytes, writer: int) -> int:
    """Which one it is; an error if it is not whole."""
    number = int(data[5:11])
    assert data == content(writer, number, size_of(number)), "a mixture"
    return number


def size_of(number: int) -> int:
    """Small ones and such as come in several pieces."""
    return (10, 5000, 200_000, 5 * MIB)[number % 4]


class Writer:
    """Puts one key again and again until the server is gone. ``acknowledged``: the last one that was; ``new``: some
    were, since the start.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.acknowledged = self.tried = 0
        self.new = False

    def start(self, base: str) -> None:
        self.new, self._thread = False, threading.Thread(target=self._run, args=(base,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self, base: str) -> None:
        with httpx2.Client(base_url=base, auth=("admin", ADMIN_PASSWORD), timeout=30) as client:
            try:
                while True:
                    self.tried += 1
                    body = content(self.number, self.tried, size_of(self.tried))
                    if client.post(f"/b/key/{self.number}", content=body).status_code != 201:
                        return
                    self.acknowledged, self.new = self.tried, True
            except httpx2.HTTPError:
                return


def objects_on_disk(data: Path) -> int:
    return sum(1 for path in (data / "blobs" / "data").rglob("*") if path.is_file())


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("filesystem", ["disk", "repository"])
def test_a_killed_server_loses_nothing_that_was_acknowledged(tmp_path: Path, filesystem: str, kills: int):
    seed, writers = random.Random(kills), [Writer(number) for number in range(4)]
    for _ in range(kills):
        with running(tmp_path, "--blob-port", "0") as server, at_blobs(server) as client:
            client.put("/b", json={"filesystem": filesystem})
            for writer in writers:
                writer.start(own_url(server))
            wait_for(lambda: all(writer.new for writer in writers))
            time.sleep(seed.random())
            server.process.send_signal(signal.SIGKILL)
            for writer in writers:
                writer.join()
        with running(tmp_path, "--blob-port", "0") as server, at_blobs(server) as client:
            wait_for(lambda: is_settled(client, writers))
            sizes = [size_of(writer.acknowledged) for writer in writers]
            pieces = sum(-(-size // (4 * MIB)) for size in sizes) if filesystem == "disk" else 0
            wait_for(lambda: objects_on_disk(tmp_path) == pieces)  # noqa: B023
        assert not [line for line in server.log if '"fault"' in line]


def is_settled(client: httpx2.Client, writers: list[Writer]) -> bool:
    """Whether what is counted is what is there. In the repository, what was put just before the end may be taken in a
    moment after the start: then it is the new one.
    """
    for writer in writers:
        got = client.get(f"/b/key/{writer.number}")
        assert got.status_code == 200, got.text
        found = number_of(got.content, writer.number)
        assert writer.acknowledged <= found <= writer.tried, "an acknowledged one is lost"
        writer.acknowledged = found
    about = client.get("/b?quota").json()["bucket"]
    expected = sum(max(size_of(writer.acknowledged), 12) for writer in writers), len(writers)
    return (about["bytes"], about["objects"]) == expected


# -- a lost catalog ----------------------------------------------------------------------------------------------------


def test_a_lost_catalog_gets_the_blobs_of_the_repository_back(tmp_path: Path):
    expected = {f"key/{number}": noise(number * 1000, number) for number in range(8)} | {"large": noise(6 * MIB)}
    with running(tmp_path, "--blob-port", "0") as server, at_blobs(server) as client:
        client.put("/b", json={"filesystem": "repository"})
        client.put("/d", json={"filesystem": "disk"})
        for key, data in expected.items():
            assert client.post(f"/b/{key}", content=b"older").status_code == 201
            assert client.post(f"/b/{key}", content=data).status_code == 201
        client.post("/d/k", content=b"what only the catalog knows")
    for path in tmp_path.glob("catalog.db*"):
        path.unlink()
    with running(tmp_path, "--blob-port", "0") as server, at_blobs(server) as client:
        wait_for(lambda: client.get("/b?quota").status_code == 200)
        wait_for(lambda: client.get("/b?quota").json()["bucket"]["objects"] == len(expected))
        wait_for(lambda: all(client.get(f"/b/{key}").content == data for key, data in expected.items()))
        about = client.get("/b?quota").json()["bucket"]
        assert about["bytes"] == sum(map(len, expected.values()))
        assert client.post("/b/new", content=b"new").status_code == 201
        assert client.get("/d").status_code == 404


def at_blobs(server: Running) -> httpx2.Client:
    client = server.client()
    client.base_url = httpx2.URL(own_url(server))
    return client


# -- merging and prune -------------------------------------------------------------------------------------------------


class Tidied:
    """A room of blobs whose shelf is tidied."""

    def __init__(self, room: Room) -> None:
        self.people, self.room = People(room), room
        room.bucket(self.people.ann, "b", filesystem=REPOSITORY)

    def tidy(self) -> int:
        room = self.room
        files = Files(room.shelf, room.database, room.now_ns, 1 << 30, lambda complete: None)
        manifests = Manifests(room.shelf, files, room.database, room.now_ns, lambda complete: None)
        tidier = Tidier(room.shelf, manifests, room.database, str(room.folder), room.now_ns)
        try:
            assert tidier._full_at == -FULLY_S
            return tidier.tidy()
        finally:
            manifests.close()

    def take_in(self) -> None:
        room = self.room
        files = Files(room.shelf, room.database, room.now_ns, 1 << 30, lambda complete: None)
        manifests = Manifests(room.shelf, files, room.database, room.now_ns, lambda complete: None)
        Tidier(room.shelf, manifests, room.database, str(room.folder), room.now_ns).take_in()
        manifests.close()

    def put(self, key: str, data: bytes) -> None:
        self.room.put(self.people.ann, "b", key, data)

    def get(self, key: str) -> bytes:
        return self.room.get(self.people.ann, "b", key)

    def keys(self) -> list[str]:
        return [item.key.decode() for item in self.room.listed(self.people.ann, "b", sort="+key")[0]]  # type: ignore[union-attr]

    def again(self) -> None:
        """The server is ended and started."""
        self.room.stop()
        self.room.start()

    def snapshots(self) -> int:
        return sum(TAG in one.snapshot.tags for one in self.room.repo.snapshots([]))

    def stored(self) -> int:
        return sum(info.size for info in self.room.repo.storage.list("data"))


@pytest.fixture
def tidied(sqlite: Database, tmp_path: Path) -> Iterator[Tidied]:
    room = new_room(sqlite, tmp_path)
    yield Tidied(room)
    room.stop()


def test_merging_the_shelf_keeps_every_blob_and_leaves_out_what_is_gone(tidied: Tidied):
    kept = {f"k/{number}": noise(3000, number) for number in range(12)} | {"x" * 1024: b"long", "empty": b""}
    for key in kept:
        tidied.put(key, b"older " + key.encode())
    for key, data in kept.items():
        tidied.put(key, data)
    tidied.put("large", noise(3 * MIB))
    tidied.put("gone", noise(2 * MIB, 9))
    tidied.room.delete(tidied.people.ann, "b", "gone")
    before = tidied.snapshots()
    assert before > 10 and tidied.tidy() == before
    assert tidied.snapshots() == 1
    tidied.again()
    assert {key: tidied.get(key) for key in kept} == kept and tidied.get("large") == noise(3 * MIB)
    assert check(tidied.room.repo, read_data=1.0).good
    held = tidied.stored()
    tidied.room.stop()
    prune.prune(tidied.room.repo, prune.Request(now=True, max_unused=0))
    tidied.room.start()
    assert tidied.stored() < held - 2 * MIB + 100_000
    assert {key: tidied.get(key) for key in kept} == kept and tidied.get("large") == noise(3 * MIB)
    assert check(tidied.room.repo, read_data=1.0).good


def test_what_is_deleted_while_a_blob_of_the_same_bytes_stays_takes_nothing_from_it(tidied: Tidied):
    for key in ("one", "two"):
        tidied.put(key, noise(2 * MIB))
    tidied.room.delete(tidied.people.ann, "b", "one")
    tidied.tidy()
    tidied.room.stop()
    prune.prune(tidied.room.repo, prune.Request(now=True, max_unused=0))
    tidied.room.start()
    assert tidied.get("two") == noise(2 * MIB) and tidied.keys() == ["two"]


def test_what_the_catalog_lost_comes_back_once_the_newest_and_whole(tidied: Tidied):
    for number in range(5):
        tidied.room.repo.now_ns()
        for key in ("a", "b/c"):
            tidied.put(key, b"%d of %b" % (number, key.encode()))
    tidied.tidy()
    tidied.put("a", b"the last")
    with tidied.room.database.writing() as c:
        for table in (blobs, bucket_grants, buckets, shelves):
            c.execute(sa.delete(table))
        c.execute(sa.text("UPDATE accounts SET used_bytes = 0, used_objects = 0"))
    for _ in range(2):
        tidied.take_in()
        assert tidied.keys() == ["a", "b/c"]
        assert (tidied.get("a"), tidied.get("b/c")) == (b"the last", b"4 of b/c")
        assert tidied.room.counts("b") == tidied.room.used("ann") == (8 + 8, 2)
    tidied.put("a", b"newer still")
    tidied.again()
    tidied.take_in()
    assert tidied.get("a") == b"newer still"


def test_deleted_blobs_do_not_come_back_when_nothing_was_lost(tidied: Tidied):
    tidied.put("a", b"x")
    tidied.room.delete(tidied.people.ann, "b", "a")
    for _ in range(2):
        tidied.again()
        tidied.take_in()
        assert tidied.keys() == [] and tidied.room.counts("b") == (0, 0)
