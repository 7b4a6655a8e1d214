"""Leases and condemned lists: who is at work, who is not any more, and who knows what is going to be deleted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from holdfast.errors import Busy, ObjectMissing, StorageDenied, StorageError, StorageUnavailable
from holdfast.repository import leases as room
from holdfast.repository.leases import EXCLUSIVE, LEASE_LIFE_S, Leases, clear_ended
from holdfast.repository.repository import Repository
from tests.repository.making import (
    HOUR,
    SECOND,
    Clock,
    an_owner,
    memory,
    names,
    new_repository,
    store,
    through,
)
from tests.support.storages import MemoryStorage, Misbehaving, does, fails, loses_answer

LIFE = LEASE_LIFE_S * SECOND


def other(repo: Repository, process: str = "1/200/1", **owner: object) -> Repository:
    """Somebody else at the same repository."""
    return through(repo, repo.storage, an_owner("elsewhere", process, **owner))  # type: ignore[arg-type]


def works_of(repo: Repository) -> list[str]:
    return sorted(lease.work for lease in repo.leases.survey().live.values())


# -- a lease is there while the work is -------------------------------------------------------------------------------


def test_a_lease_is_there_while_it_is_held_and_gone_after() -> None:
    repo = new_repository()
    with repo.leases.hold("backup"), repo.leases.hold("restore"):
        assert works_of(other(repo)) == ["backup", "restore"]
    assert names(repo.storage, "locks") == []


def test_a_lease_is_dropped_when_the_work_fails() -> None:
    repo = new_repository()
    with pytest.raises(ZeroDivisionError), repo.leases.hold("backup"):
        raise ZeroDivisionError
    assert names(repo.storage, "locks") == []


def test_a_lease_tells_who_holds_it() -> None:
    repo = new_repository()
    with repo.leases.hold("backup"):
        (lease,) = other(repo).leases.survey().live.values()
    assert (lease.host, lease.process, lease.boot) == ("here", "1/100/1", "this boot")
    assert room.describe(lease) == "backup on here, process 100"


def test_a_lease_says_when_the_work_began_by_the_storages_clock() -> None:
    """The clocks of those who work may be days apart."""
    repo = new_repository(clock=Clock(5))
    storage = memory(repo)
    began = storage.now_ns
    with repo.leases.hold("backup") as hold:
        storage.now_ns += HOUR
        hold.put(frozenset())
        (lease,) = repo.leases.survey().live.values()
    assert lease.started_ns == began


def test_a_refreshed_lease_is_one_lease() -> None:
    repo = new_repository()
    with repo.leases.hold("backup") as hold:
        for n in range(3):
            before = hold.name
            hold.put(frozenset({"locks/" + f"{n:064x}"}))
            assert names(repo.storage, "locks") == [hold.name] != [before]
        (lease,) = repo.leases.survey().live.values()
        assert lease.knows == [bytes.fromhex(f"{2:064x}")]


def test_a_lease_is_refreshed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REFRESH_S", 0.01)
    repo, refreshed = new_repository(), threading.Event()
    storage = Misbehaving(repo.storage, [does("put", refreshed.set, 3, folder="locks")])
    with through(repo, storage).leases.hold("backup"):
        assert refreshed.wait(10)
    assert names(repo.storage, "locks") == []


def test_a_refresh_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "REFRESH_S", 0.01)
    repo, refreshed = new_repository(), threading.Event()
    storage = Misbehaving(
        repo.storage, [fails("put", 2, times=3, folder="locks"), does("put", refreshed.set, 6, folder="locks")]
    )
    with through(repo, storage).leases.hold("backup"):
        assert refreshed.wait(10)
    assert len(names(repo.storage, "locks")) == 0


def test_no_refresh_puts_a_lease_after_it_was_dropped() -> None:
    repo = new_repository()
    with repo.leases.hold("backup") as hold:
        pass
    hold.put(frozenset())  # the refresher had woken up just before
    assert names(repo.storage, "locks") == []


def test_readers_need_no_lease_where_nothing_can_be_written() -> None:
    repo = new_repository()
    storage = Misbehaving(repo.storage, [fails("write", 1, StorageDenied, times=None)])
    with through(repo, storage).leases.hold("restore", needed=False):
        assert names(repo.storage, "locks") == []
    with pytest.raises(StorageDenied), through(repo, storage).leases.hold("backup"):
        pytest.fail("a backup without a lease")


def test_a_lease_whose_put_lost_its_answer_is_over_in_the_end() -> None:
    repo = new_repository()
    storage = Misbehaving(repo.storage, [loses_answer("put", folder="locks")])
    with pytest.raises(StorageUnavailable), through(repo, storage).leases.hold("backup"):
        pytest.fail("not reached")
    assert works_of(repo) == ["backup"]
    memory(repo).now_ns += LIFE + HOUR
    with repo.leases.hold("look"):
        assert works_of(repo) == ["look"]


# -- when a lease is over ---------------------------------------------------------------------------------------------


def test_a_lease_that_was_not_refreshed_is_over() -> None:
    repo = new_repository()
    with repo.leases.hold("backup"):
        memory(repo).now_ns += LIFE
        with other(repo).leases.hold("look"):
            assert works_of(repo) == ["backup", "look"]
        memory(repo).now_ns += SECOND
        with other(repo).leases.hold("look"):
            locks = repo.leases.survey()
            assert [x.work for x in locks.live.values()] == ["look"]
            assert [x.work for x in locks.over.values()] == ["backup"]


def test_ages_are_compared_by_the_storages_clock_alone() -> None:
    """A process whose clock is days off neither outlives its lease nor ends those of others."""
    repo = new_repository(clock=Clock(0))
    with repo.leases.hold("backup"), through(other(repo), repo.storage).leases.hold("look"):
        ahead = Leases(repo.storage, repo.secrets, an_owner(), Clock(10**19))
        assert len(ahead.survey().live) == 2


def test_a_lease_of_a_process_that_has_ended_is_over() -> None:
    repo, dead = new_repository(), set[str]()
    looker = other(repo, dead=dead)
    hold = room.Hold(repo.leases, "backup")
    hold.put(frozenset())
    assert works_of(looker) == ["backup"]
    dead.add("1/100/1")
    assert works_of(looker) == []
    clear_ended(repo.storage, looker.leases.survey())
    assert names(repo.storage, "locks") == []


def test_a_holder_that_was_asleep_knows_it() -> None:
    clock = Clock()
    repo = new_repository(clock=clock)
    with repo.leases.hold("prune") as hold:
        clock.at_ns += LIFE // 2 - 60 * SECOND
        hold.need()
        clock.at_ns += 61 * SECOND
        with pytest.raises(Busy, match="asleep"):
            hold.need()
        clock.at_ns -= 10 * LIFE  # the clock was set back: nothing is known about how long it was
        with pytest.raises(Busy):
            hold.need()
        hold.put(frozenset())
        hold.need()


# -- the exclusive one ------------------------------------------------------------------------------------------------


def test_of_two_exclusive_ones_one_is_told_who_the_other_is() -> None:
    repo = new_repository()
    who = "running already, prune on here, process 100"
    with repo.leases.hold_alone(), pytest.raises(Busy, match=who) as caught, other(repo).leases.hold_alone():
        pytest.fail("two at once")
    assert caught.value.exit_status == 11
    assert names(repo.storage, "locks") == []


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", range(1, 6))
def test_of_two_that_begin_at_the_same_moment_never_both_go_on(nth: int, moment: str) -> None:
    repo, inside = new_repository(), list[str]()
    with contextlib.ExitStack() as stack:

        def second() -> None:
            with contextlib.suppress(Busy):
                stack.enter_context(other(repo).leases.hold_alone())
                inside.append("second")

        storage = Misbehaving(repo.storage, [does("any", second, nth, moment=moment, folder="locks")])
        with contextlib.suppress(Busy):
            stack.enter_context(through(repo, storage).leases.hold_alone())
            inside.append("first")
        assert len(inside) <= 1
    assert names(repo.storage, "locks") == []


def test_others_at_work_do_not_matter_to_an_exclusive_one() -> None:
    repo = new_repository()
    with repo.leases.hold("backup"), other(repo).leases.hold_alone(EXCLUSIVE):
        assert works_of(repo) == ["backup", "prune"]


# -- looking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_lease_that_is_refreshed_while_somebody_looks_is_seen(nth: int, moment: str) -> None:
    """Refreshing puts a new object and deletes the old one: between listing and reading it must not slip through."""
    repo = new_repository()
    with repo.leases.hold("backup") as hold, repo.leases.hold("restore"):
        storage = Misbehaving(
            repo.storage, [does("any", lambda: hold.put(frozenset()), nth, moment=moment, folder="locks")]
        )
        assert "backup" in works_of(through(other(repo), storage))


def test_a_lease_that_vanishes_for_good_is_not_looked_for_for_ever() -> None:
    repo = new_repository()
    with repo.leases.hold("backup"):
        storage = Misbehaving(repo.storage, [fails("get", 1, ObjectMissing, times=None, folder="locks")])
        assert works_of(through(other(repo), storage)) == []


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"", lambda d: d[:50] + bytes([d[50] ^ 1]) + d[51:]])
def test_a_damaged_lock_is_named_and_counts_as_somebody_at_work(damage: Callable[[bytes], bytes]) -> None:
    repo = new_repository()
    storage = memory(repo)
    with repo.leases.hold("backup") as hold:
        storage.overwrite(hold.name, damage(storage.get(hold.name)))
        locks = other(repo).leases.survey()
        assert list(locks.damaged) == [hold.name] and hold.name in locks.damaged[hold.name]
        assert [x.work for x in locks.live.values()] == ["something"]
        storage.now_ns += LIFE + SECOND
        with other(repo).leases.hold("look"):
            assert works_of(repo) == ["look"]
            clear_ended(storage, repo.leases.survey())
        assert names(storage, "locks") == []


def test_a_storage_that_cannot_be_read_is_not_an_empty_one() -> None:
    repo = new_repository()
    with repo.leases.hold("backup"):
        for kind in ("list", "get"):
            storage = Misbehaving(repo.storage, [fails(kind, folder="locks")])
            with pytest.raises(StorageError):
                through(other(repo), storage).leases.survey()


def test_a_condemned_list_is_read_as_it_was_put() -> None:
    repo = new_repository()
    packs = [b"a" * 32, b"b" * 32]
    name = repo.leases.condemn(packs, 3600)
    locks = repo.leases.survey()
    assert locks.condemned[name].packs == packs and locks.condemned[name].deadline_s == 3600
    assert locks.condemned_packs() == set(packs) and not locks.live


def test_a_writer_says_which_lists_it_knows() -> None:
    repo = new_repository()
    store(repo, {b"file": b"content"})
    known = repo.leases.condemn([b"a" * 32], 3600)
    with repo.writing():
        unknown = repo.leases.condemn([b"b" * 32], 3600)
        (lease,) = other(repo).leases.survey().live.values()
    assert lease.knows == [bytes.fromhex(known[6:])] and unknown != known


def test_a_lease_opens_only_with_the_shared_secret() -> None:
    repo, stranger = new_repository(), new_repository(MemoryStorage())
    with repo.leases.hold("backup"):
        locks = through(stranger, repo.storage).leases.survey()
        assert len(locks.damaged) == 1
