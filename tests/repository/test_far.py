"""A repository on a storage far away: how little is asked of it, and that what is believed is doubted in time."""

from __future__ import annotations

import pytest

from holdfast.archive import backup, restore
from holdfast.repository import prune
from holdfast.repository.check import check
from holdfast.repository.copy import copy_snapshots
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


def test_what_a_prune_moved_meanwhile_is_found_where_it_is_now(machine, storage, source, tmp_path):
    """A prune that must not wait knows nothing of a reader that has only just begun."""
    first = back_up(machine.open(), source)
    for number in range(0, 3000, 2):
        (source / f"d{number}" / f"f{number}").unlink()
    second = back_up(machine.open(), source)
    repo = machine.open()
    with repo.reading() as reader:
        storage.delete(f"snapshots/{first.snapshot_id}")
        before = set(storage.objects)
        prune.prune(machine.open(), prune.Request(now=True, max_unused=0.0))
        assert [n for n in before - set(storage.objects) if n.startswith("data/")]
        restore.restore(reader, second.snapshot.root, restore.Request(bytes(tmp_path / "out")))
    assert contents(tmp_path / "out") == contents(source)


def test_copying_finds_what_is_elsewhere_too(machine, storage, source, tmp_path):
    back_up(machine.open(), source)
    lost = [n for n in storage.objects if n.startswith("data/")]
    for name in lost:
        storage.delete(name)
    report = back_up(machine.open(), source)
    target = Machine(MemoryStorage(), tmp_path / "other", machine.open().owner)
    create(target.far.inner, PASSWORD, machine.open().owner, lambda: 10**18, argon2=QUICK)
    repo = machine.open()
    [copied] = copy_snapshots(repo, target.open(), [s for s in repo.snapshots() if s.id == report.snapshot_id])
    with target.open().reading() as reader:
        root = next(s for s in target.open().snapshots() if s.id == copied.id).snapshot.root
        restore.restore(reader, root, restore.Request(bytes(tmp_path / "out")))
    assert contents(tmp_path / "out") == contents(source)


@pytest.mark.parametrize("late", [True, False])
def test_a_listing_that_lags_does_not_make_a_backup_believe_in_packs_that_are_gone(
    machine, storage, source, monkeypatch, late
):
    """Only where a listing says that it may lag is each pack asked for; elsewhere a listing is the truth."""
    monkeypatch.setattr("holdfast.repository.repository.FEW_PACKS", 0)
    monkeypatch.setattr(Far, "lists_late", late)
    back_up(machine.open(), source)
    gone = list(storage.list("data"))
    for info in gone:
        storage.delete(info.name)
    real = storage.list
    monkeypatch.setattr(storage, "list", lambda f: iter([*real(f), *(gone if f == "data" else [])]))
    report = back_up(machine.open(), source)
    there = {n for n in storage.objects if n.startswith("data/")}
    assert bool(there) is late
    if late:
        assert {f"data/{p.hex()}" for p in report.packs} <= there


def test_a_pack_that_a_listing_does_not_name_yet_is_not_lost(machine, storage, source, monkeypatch):
    monkeypatch.setattr("holdfast.repository.repository.FEW_PACKS", 0)
    real = storage.list
    monkeypatch.setattr(storage, "list", lambda f: iter([]) if f == "data" else real(f))
    report = back_up(machine.open(), source)
    assert report.packs


def test_a_damaged_storage_is_seen_by_check_whatever_this_machine_has_kept(machine, storage, source, tmp_path):
    back_up(machine.open(), source)
    machine.open().snapshots()
    [name] = [n for n in storage.objects if n.startswith("snapshots/")]
    storage.overwrite(name, b"rotten")
    assert machine.open().snapshots()
    repo = open_repository(machine.far, PASSWORD, machine.open().owner, lambda: 10**18)  # as `check` opens it
    assert check(repo).findings
