"""Snapshots: listed, chosen, filtered; none slips through while others come and go."""

from __future__ import annotations

import pytest

from holdfast.archive.tagging import retag
from holdfast.errors import Damaged, ObjectMissing, SnapshotMissing, UsageError
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import Filter, Stored, choose, series
from tests.repository.making import Clock, memory, new_repository, store, through
from tests.support.storages import Misbehaving, does, fails

FILES = {b"file": b"content"}


def some() -> tuple[Repository, list[str]]:
    repo = new_repository(clock=Clock())
    return repo, [store(repo, FILES, host=f"h{n % 2}", tags=[f"t{n}", "all"], name=b"/p%d" % n) for n in range(4)]


def test_snapshots_are_listed_oldest_first() -> None:
    repo, ids = some()
    assert [s.id for s in repo.snapshots()] == ids


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_snapshot_whose_tags_change_while_snapshots_are_read_is_not_overlooked(nth: int) -> None:
    """Its new name is put, then the old one deleted: whoever listed before and reads after must list again."""
    repo, ids = some()
    new: list[str] = []

    def change() -> None:
        new.extend(retag(repo, s, ["changed"]) for s in repo.snapshots())

    storage = Misbehaving(repo.storage, [does("any", change, nth, folder="snapshots")])
    found = {s.snapshot.original or s.id for s in through(repo, storage).snapshots()}
    assert found == set(ids) and len(new) == 4


def test_a_snapshot_that_is_forgotten_while_snapshots_are_read_is_no_error() -> None:
    repo, ids = some()
    storage = Misbehaving(repo.storage, [fails("get", 2, ObjectMissing, times=None, folder="snapshots")])
    assert len(through(repo, storage).snapshots()) == 1
    assert len(ids) == 4


def test_a_damaged_snapshot_raises_or_is_named() -> None:
    repo, ids = some()
    memory(repo).overwrite(f"snapshots/{ids[1]}", b"rubbish")
    with pytest.raises(Damaged, match=ids[1]) as caught:
        repo.snapshots()
    assert "repair snapshots" in caught.value.hint
    damaged: list[str] = []
    assert [s.id for s in repo.snapshots(damaged)] == [ids[0], *ids[2:]]
    assert len(damaged) == 1 and ids[1] in damaged[0]


def test_one_is_chosen_by_latest_or_the_beginning_of_its_id() -> None:
    repo, ids = some()
    found = repo.snapshots()
    assert choose(found, "latest").id == ids[-1]
    assert [choose(found, i[:12]).id for i in ids] == ids


@pytest.mark.parametrize("name", ["", "Latest", "xyz", "0x12", "12 ", "abcg", "../a", "a" * 65])
def test_what_is_no_snapshots_name_is_said_to_be_none(name: str) -> None:
    with pytest.raises(UsageError, match="is not a snapshot"):
        choose(some()[0].snapshots(), name)


def test_an_ambiguous_beginning_is_refused_and_an_unknown_one_is_missing() -> None:
    repo, _ = some()
    template = repo.snapshots()[0].snapshot
    found = [Stored("ab" + "0" * 62, template), Stored("ac" + "0" * 62, template)]
    with pytest.raises(UsageError, match="2 snapshots begin with a"):
        choose(found, "a")
    for name in ("b", "latest"):
        with pytest.raises(SnapshotMissing):
            choose([] if name == "latest" else found, name)


def test_filters_are_any_of_each_kind_and_all_kinds_together() -> None:
    repo, _ = some()
    found = repo.snapshots()

    def kept(**wanted: tuple[object, ...]) -> list[int]:
        return [n for n, s in enumerate(found) if Filter(**wanted).matches(s.snapshot)]  # type: ignore[arg-type]

    assert kept() == [0, 1, 2, 3]
    assert kept(hosts=("h1",)) == [1, 3] and kept(hosts=("h0", "h1")) == [0, 1, 2, 3]
    assert kept(paths=(b"/p2", b"/p3")) == [2, 3]
    assert kept(tags=(("t1",), ("t2", "all"))) == [1, 2] and kept(tags=(("t1", "t2"),)) == []
    assert kept(hosts=("h1",), tags=(("t3",),), paths=(b"/p3",)) == [3]
    assert kept(hosts=("h0",), tags=(("t3",),)) == []


def test_a_series_is_of_one_host_and_the_same_paths() -> None:
    repo, ids = some()
    again = store(repo, FILES, host="h1", name=b"/p1")
    assert [s.id for s in series(repo.snapshots(), "h1", [b"/p1"])] == [ids[1], again]
    assert list(series(repo.snapshots(), "h1", [b"/p1", b"/p2"])) == []
