"""A repository on a storage far away: how little is asked of it, and that what is believed is doubted in time."""

from __future__ import annotations

import pytest

from holdfast.archive import backup, restore
from holdfast.repository.keys import Password
from holdfast.repository.leases import Owner
from holdfast.repository.repository import LONG_S, create, open_repository
from holdfast.storage.caching import Caching
from tests.archive.making import QUICK
from tests.support.storages import Counting, MemoryStorage
from tests.support.trees import contents, noise, write

PASSWORD = Password("far away")


class Far(Counting):
    """A storage with several connections, which counts what it is asked."""

    connections = 4


class Machine:
    """What opens the repository on a machine of its own cache."""

    def __init__(self, storage, folder, owner):
        self.far = Far(storage)
        self._folder, self._owner = folder, owner

    def open(self):
        return open_repository(Caching(self.far, self._folder), PASSWORD, self._owner, lambda: 10**18)

    def asked(self):
        """What was asked since the last time."""
        calls = [f"{n.kind} {n.subject.partition('/')[0]}" for n in self.far.log]
        self.far.log.clear()
        return calls


@pytest.fixture
def storage():
    return MemoryStorage()


@pytest.fixture
def machine(storage, tmp_path):
    owner = Owner("host", "user", "1/2/3", "boot", lambda lease: False)
    create(storage, PASSWORD, owner, lambda: 10**18, argon2=QUICK)
    return Machine(storage, tmp_path / "cache", owner)


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "source", {f"d{i}/f{i}": noise(900, i) for i in range(3000)} | {"large": noise(9 << 20)})


def back_up(repo, source):
    return backup.back_up(repo, backup.Request(paths=(bytes(source),)))


def restore_one(repo, report, target, path):
    with repo.reading() as reader:
        restore.restore(reader, report.snapshot.root, restore.Request(bytes(target), within=path))


def test_with_a_warm_cache_listing_snapshots_asks_three_questions(machine, source):
    for _ in range(3):
        back_up(machine.open(), source)
    machine.open().snapshots()
    machine.asked()
    assert len(machine.open().snapshots()) == 3
    assert machine.asked() == ["get config", "list keys", "list snapshots"]


def test_one_small_file_out_of_a_large_snapshot_takes_six_questions(machine, source, tmp_path):
    report = back_up(machine.open(), source)
    machine.open().snapshots()
    machine.asked()
    repo = machine.open()
    repo.snapshots()
    restore_one(repo, report, tmp_path / "out", b"d7")
    assert contents(tmp_path / "out") == {"f7": contents(source / "d7")["f7"]}
    asked = machine.asked()
    assert asked == ["get config", "list keys", "list snapshots", "list locks", "list index", "get data"]


def test_a_pack_that_is_not_there_is_looked_for_elsewhere(machine, storage, source, tmp_path):
    """It was lost, and a later backup stored its content again: the index names both."""
    back_up(machine.open(), source)
    for name in [n for n in storage.objects if n.startswith("data/")]:
        storage.delete(name)
    report = back_up(machine.open(), source)
    repo = machine.open()
    with repo.reading() as reader:
        restore.restore(reader, report.snapshot.root, restore.Request(bytes(tmp_path / "out")))
    assert contents(tmp_path / "out") == contents(source)


def test_a_pack_that_no_index_object_names_is_found(machine, storage, source, tmp_path):
    report = back_up(machine.open(), source)
    for name in [n for n in storage.objects if n.startswith("index/")]:
        storage.delete(name)
    repo = machine.open()
    with repo.reading() as reader:
        restore.restore(reader, report.snapshot.root, restore.Request(bytes(tmp_path / "out")))
    assert contents(tmp_path / "out") == contents(source)


def test_what_is_quick_takes_no_lease_and_what_lasts_takes_one(machine, storage, source, monkeypatch):
    back_up(machine.open(), source)
    with machine.open().reading():
        assert not [n for n in storage.objects if n.startswith("locks/")]
    monkeypatch.setattr("holdfast.repository.repository.LONG_S", 0.01)
    assert LONG_S > 1
    with machine.open().reading():
        while not [n for n in storage.objects if n.startswith("locks/")]:
            pass
    assert not [n for n in storage.objects if n.startswith("locks/")]
