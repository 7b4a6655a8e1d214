"""Patience with a storage that fails at times."""

from __future__ import annotations

import threading
import time

import pytest

from holdfast.errors import ObjectExists, StorageDenied, StorageUnavailable
from holdfast.storage.retrying import Patience, Retrying
from holdfast.storage.wrappers import Passing, hurry
from tests.storage.writing import an_object
from tests.support.storages import (
    Counting,
    MemoryStorage,
    Misbehaving,
    breaks_listing,
    does,
    fails,
    list_of,
    loses_answer,
)

QUICK = Patience(first=2.0, later=5.0, longest=0.02)


def patient(*faults, memory=None, patience=QUICK):
    """A patient storage over one that misbehaves as planned, and the count of what reaches it."""
    counted = Counting(Misbehaving(memory or MemoryStorage(), list(faults)))
    return Retrying(counted, patience), counted


@pytest.fixture
def memory():
    return MemoryStorage()


def test_what_fails_for_a_moment_is_tried_until_it_succeeds(memory):
    storage, _ = patient(*(fails(kind, 1, times=2) for kind in ("put", "get", "stat", "delete", "list")), memory=memory)
    name, data = an_object()
    storage.put(name, [data])
    assert storage.get(name) == data
    assert storage.stat(name).size == len(data)
    assert [i.name for i in list_of(storage, "data")] == [name]
    storage.delete(name)
    assert not memory.objects


@pytest.mark.parametrize("error", [StorageDenied("No."), ObjectExists("Yes.")])
def test_what_will_not_become_better_is_not_tried_again(error):
    class Refusing(MemoryStorage):
        asked = 0

        def get(self, name, start=0, length=None):
            self.asked += 1
            raise error

    inner = Refusing()
    with pytest.raises(type(error)):
        Retrying(inner, QUICK).get("config")
    assert inner.asked == 1


def test_a_put_whose_answer_was_lost_is_recognised_as_done(memory):
    storage, _ = patient(loses_answer("put"), memory=memory)
    name, data = an_object()
    storage.put(name, [data[:10], data[10:]])
    assert memory.objects == {name: data}


def test_an_object_that_was_there_before_is_not_taken_for_ones_own(memory):
    name, data = an_object()
    memory.put(name, [data])
    with pytest.raises(ObjectExists):
        patient(memory=memory)[0].put(name, [data])


@pytest.mark.parametrize("other", [b"another", b"other content of the same size"])
def test_what_somebody_else_stored_while_ones_own_put_failed_is_not_ones_own(memory, other):
    """Only config could be like that: two who make a repository at the same moment."""
    storage, _ = patient(fails("put", 1), memory=memory)
    memory.put("config", [other])
    with pytest.raises(ObjectExists):
        storage.put("config", [b"my own content, the same size."])


def test_what_is_there_in_part_after_a_put_that_broke_is_waited_for(memory):
    """As on a server that shows objects while they come: it goes away again, or becomes whole."""
    name, data = an_object()

    def leave_a_part():
        memory.overwrite(name, data[:10])

    def clear():
        memory.delete(name)

    faults = fails("put", 1), does("put", leave_a_part, 2), does("put", clear, 4)
    storage, _ = patient(*faults, memory=memory)
    storage.put(name, [data])
    assert memory.objects == {name: data}


def test_a_listing_that_breaks_off_goes_on_and_names_nothing_twice(memory):
    names = set()
    for _ in range(20):
        name, data = an_object()
        memory.put(name, [data])
        names.add(name)
    storage, _ = patient(breaks_listing(1, 5), breaks_listing(2, 9), memory=memory)
    found = [i.name for i in storage.list("data")]
    assert len(found) == 20
    assert set(found) == names


def test_a_wrong_address_is_given_up_soon_and_a_lost_connection_late(memory):
    patience = Patience(first=0.1, later=60.0, longest=0.02)
    storage, counted = patient(fails("stat", 1, times=None), memory=memory, patience=patience)
    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        storage.stat("config")
    assert time.monotonic() - began < 20
    storage, counted = patient(fails("stat", 2, times=40), memory=memory, patience=patience)
    memory.put("config", [b"x"])
    storage.stat("config")
    storage.stat("config")
    assert counted.inner.inner is memory


def test_what_refuses_has_answered(memory):
    """The patience of later begins with any answer, a refusal too."""
    storage, _ = patient(fails("stat", 1, times=30), memory=memory, patience=Patience(0.05, 60.0, 0.02))
    name, data = an_object()
    memory.put(name, [data])
    with pytest.raises(ObjectExists):
        storage.put(name, [data])
    assert storage.stat(name).size == len(data)


def test_it_is_told_of_each_wait(memory):
    told = []
    patience = Patience(2.0, 5.0, 0.02, lambda error, seconds: told.append((str(error), seconds)))
    storage, _ = patient(fails("stat", 1, times=2), memory=memory, patience=patience)
    memory.put("config", [b"x"])
    storage.stat("config")
    assert len(told) == 2
    assert all(0 <= seconds <= 0.02 for _, seconds in told)


@pytest.mark.parametrize("end", [lambda storage: storage.close(), hurry, lambda storage: hurry(Passing(storage))])
def test_closing_and_hurrying_end_the_waiting_of_every_thread(memory, end):
    storage, _ = patient(fails("stat", 1, times=None), memory=memory, patience=Patience(600.0, 600.0, 600.0))
    ended = []

    def ask():
        try:
            storage.stat("config")
        except StorageUnavailable:
            ended.append(True)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    end(storage)
    for thread in threads:
        thread.join(30)
    assert len(ended) == 3
