"""Copies from a storage that is far away: the next blocks are asked for while one is copied, within bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from holdfast.errors import Damaged, StorageUnavailable
from holdfast.repository.check import check
from holdfast.repository.copy import Copied, copy_snapshots
from holdfast.repository.repository import Repository
from holdfast.storage import parallel
from holdfast.storage.base import Storage
from holdfast.storage.parallel import answers
from tests.repository.making import (
    Clock,
    memory,
    names,
    new_repository,
    read_back,
    some_bytes,
    store,
    through,
)
from tests.support.storages import Misbehaving, Passing, fails

T = TypeVar("T")

TREE = {b"%03d" % n: some_bytes(n, 100_000) for n in range(400)}  # 40 MB: several packs, many blocks


class Far(Passing):
    """Every get takes a while; ``most`` is how many there were at the same time."""

    def __init__(self, inner: Storage, connections: int = 5) -> None:
        super().__init__(inner)
        self._count = connections
        self.most = self._now = 0
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        return self._count

    def _pass(self, kind: str, subject: str, size: int, act: Callable[[], T]) -> T:
        if kind != "get" or not subject.startswith("data/"):
            return act()
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(0.005)
            return act()
        finally:
            with self._lock:
                self._now -= 1


def copied(source: Repository, target: Repository) -> list[Copied]:
    return copy_snapshots(source, target, source.snapshots())


@pytest.fixture(scope="module")
def source() -> Repository:
    repo = new_repository(clock=Clock())
    store(repo, TREE)
    return repo


def test_blocks_are_asked_for_ahead_and_the_copy_is_the_same(source: Repository) -> None:
    target, near, far = (new_repository(clock=Clock()) for _ in range(2)), source, Far(source.storage)
    one, other = target
    (done,) = copied(through(source, far), one)
    assert 1 < far.most <= 5
    assert read_back(one, done.id) == TREE
    assert check(one, read_data=1).good
    copied(near, other)
    sizes = [sorted(info.size for info in repo.storage.list("data")) for repo in (one, other)]
    assert len(sizes[0]) == len(sizes[1]) and sum(sizes[0]) == pytest.approx(sum(sizes[1]), rel=0.001)


def test_a_copy_from_afar_that_was_cut_off_goes_on_where_it_was(source: Repository) -> None:
    target = new_repository(clock=Clock())
    broken = Far(Misbehaving(source.storage, [fails("get", 4, folder="data", times=None)]))
    with pytest.raises(StorageUnavailable):
        copied(through(source, broken), target)
    assert names(target.storage, "snapshots") == []
    (done,) = copied(through(source, Far(source.storage)), target)
    assert read_back(target, done.id) == TREE
    assert [c.skipped for c in copied(source, target)] == [True]


def test_a_block_that_is_damaged_far_away_is_not_copied(source: Repository) -> None:
    stored = memory(source).copy()
    for name, data in stored.objects.items():
        if name.startswith("data/"):
            half = len(data) // 2
            stored.overwrite(name, data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :])
    target = new_repository(clock=Clock())
    with pytest.raises(Damaged):
        copied(through(source, Far(stored)), target)
    assert names(target.storage, "snapshots") == []


def test_no_thread_is_left_after_a_copy_that_failed(source: Repository) -> None:
    before = threading.active_count()
    broken = Far(Misbehaving(source.storage, [fails("get", 3, folder="data", times=None)]))
    with pytest.raises(StorageUnavailable) as caught:
        copied(through(source, broken), new_repository(clock=Clock()))
    end = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < end:  # that of the lease may take a moment
        time.sleep(0.01)
    assert threading.active_count() == before, caught


# -- what waits in memory ----------------------------------------------------------------------------------------------


def waiting_most(weight: int, limit: int, monkeypatch: pytest.MonkeyPatch, count: int = 30) -> int:
    """How many answers waited at most, when nobody is in a hurry to take them."""
    monkeypatch.setattr(parallel, "MOST_WAITING", limit)
    asked: list[int] = []
    most = taken = 0
    for item, answer in answers(Far(memory(new_repository())), range(count), asked_for(asked), lambda item: weight):
        assert answer() == item
        taken += 1
        time.sleep(0.002)
        most = max(most, len(asked) - taken)
    assert taken == count
    return most


def asked_for(asked: list[int]) -> Callable[[int], int]:
    def ask(item: int) -> int:
        asked.append(item)
        return item

    return ask


def test_light_answers_wait_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 <= waiting_most(0, 100, monkeypatch) <= 11


def test_heavy_answers_wait_by_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting_most(40, 100, monkeypatch) <= 2


def test_answers_heavier_than_all_that_may_wait_are_asked_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waiting_most(1000, 100, monkeypatch) <= 1
