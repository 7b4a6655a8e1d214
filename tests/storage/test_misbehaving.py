"""The fakes of tests/support/storages.py do what they say: nothing else could be believed of tests that use them."""

from __future__ import annotations

import hashlib
import time

import pytest

from holdfast.errors import ObjectExists, ObjectMissing, StorageDenied, StorageFull, StorageUnavailable
from holdfast.storage.wrappers import DryRun
from tests.support.storages import (
    Counting,
    MemoryStorage,
    Misbehaving,
    breaks_listing,
    cuts_power,
    does,
    fails,
    flips_bit,
    is_slow,
    lists_stale,
    loses_answer,
    says_exists,
    says_missing,
    truncates,
)


def name_of(number: int, folder: str = "data") -> str:
    return f"{folder}/{hashlib.sha256(str(number).encode()).hexdigest()}"


A, B, C = name_of(1), name_of(2), name_of(3)


@pytest.fixture
def memory():
    return MemoryStorage()


def names(storage, folder="data"):
    return {info.name for info in storage.list(folder)}


def test_without_a_plan_it_behaves(memory):
    storage = Misbehaving(memory)
    storage.put(A, [b"a"])
    assert (storage.get(A), storage.stat(A), names(storage)) == (b"a", memory.stat(A), {A})
    storage.delete(A)
    assert names(storage) == set()
    assert [(s.kind, s.subject) for s in storage.steps[:2]] == [("put", A), ("get", A)]


def test_the_nth_call_of_a_kind_fails_and_is_not_done(memory):
    storage = Misbehaving(memory, [fails("put", 2, StorageFull)])
    storage.put(A, [b"a"])
    with pytest.raises(StorageFull):
        storage.put(B, [b"b"])
    storage.put(C, [b"c"])
    assert names(memory) == {A, C}


def test_a_failure_can_last_and_can_be_for_one_folder(memory):
    storage = Misbehaving(memory, [fails("write", 2, StorageDenied, times=None, folder="index")])
    storage.put(name_of(1, "index"), [b"x"])
    storage.put(A, [b"a"])
    for _ in range(3):
        with pytest.raises(StorageDenied):
            storage.put(name_of(2, "index"), [b"x"])
    with pytest.raises(StorageDenied):
        storage.delete(name_of(1, "index"))
    assert storage.get(A) == b"a"


def test_a_lost_answer_is_an_error_of_something_that_was_done(memory):
    storage = Misbehaving(memory, [loses_answer("put"), loses_answer("delete")])
    with pytest.raises(StorageUnavailable):
        storage.put(A, [b"a"])
    assert names(memory) == {A}
    with pytest.raises(ObjectExists):
        storage.put(A, [b"a"])
    with pytest.raises(StorageUnavailable):
        storage.delete(A)
    assert names(memory) == set()


def test_it_lies_about_existence(memory):
    memory.put(A, [b"a"])
    storage = Misbehaving(memory, [says_missing("read", times=3), says_exists()])
    assert names(storage) == set()
    for call in (storage.get, storage.stat):
        with pytest.raises(ObjectMissing):
            call(A)
    assert storage.get(A) == b"a"
    with pytest.raises(ObjectExists):
        storage.put(B, [b"b"])
    assert names(memory) == {A}


def test_it_gives_too_little_and_wrong_bits(memory):
    memory.put(A, [b"abc"])
    storage = Misbehaving(memory, [truncates(1, by=2), flips_bit(2, bit=8), flips_bit(3, bit=24)])
    assert [storage.get(A) for _ in range(4)] == [b"a", b"acc", b"`bc", b"abc"]


def test_it_is_slow(memory):
    memory.put(A, [b"a"])
    storage = Misbehaving(memory, [is_slow("get", 0.05)])
    started = time.monotonic()
    assert storage.get(A) == b"a"
    assert time.monotonic() - started >= 0.05


def test_something_else_happens_before_or_after_a_call(memory):
    memory.put(A, [b"a"])
    storage = Misbehaving(
        memory,
        [does("get", lambda: memory.delete(A)), does("put", lambda: memory.delete(B), moment="after")],
    )
    with pytest.raises(ObjectMissing):
        storage.get(A)
    storage.put(B, [b"b"])
    assert names(memory) == set()


def test_a_listing_breaks_off(memory):
    for name in (A, B, C):
        memory.put(name, [b"x"])
    listing = Misbehaving(memory, [breaks_listing(after=2)]).list("data")
    assert len({next(listing), next(listing)}) == 2
    with pytest.raises(StorageUnavailable):
        next(listing)


def test_a_stale_listing_lacks_what_is_new_and_has_what_is_gone(memory):
    memory.put(A, [b"a"])
    storage = Misbehaving(memory, [lists_stale(2, times=1)])
    storage.put(B, [b"b"])
    storage.put(C, [b"c"])
    storage.delete(A)
    assert names(storage) == {A, B}
    assert names(storage) == {B, C}


def test_a_power_cut_takes_what_was_written_but_not_durable(memory):
    storage = Misbehaving(memory, [cuts_power("put", 2)])
    storage.put(A, [b"a"])
    with pytest.raises(StorageUnavailable):
        storage.put(B, [b"b"])
    assert names(memory) == {A, B}  # others saw it
    with pytest.raises(StorageUnavailable):
        storage.get(A)
    storage.power_on()
    assert names(storage) == {A}


@pytest.mark.parametrize(("moment", "left"), [("before", set()), ("written", set()), ("durable", {A})])
def test_the_moment_of_a_power_cut_decides(memory, moment, left):
    storage = Misbehaving(memory, [cuts_power("put", moment=moment)])
    with pytest.raises(StorageUnavailable):
        storage.put(A, [b"a"])
    storage.power_on()
    assert names(storage) == left


def test_a_power_cut_brings_back_what_was_not_durably_deleted(memory):
    memory.put(A, [b"a"])
    storage = Misbehaving(memory, [cuts_power("delete")])
    with pytest.raises(StorageUnavailable):
        storage.delete(A)
    assert names(memory) == set()
    storage.power_on()
    assert storage.get(A) == b"a"


def test_what_was_not_durable_may_survive(memory):
    storage = Misbehaving(memory, [cuts_power("put")])
    with pytest.raises(StorageUnavailable):
        storage.put(A, [b"a"])
    storage.power_on(survives=lambda name: True)
    assert names(storage) == {A}


def test_a_disk_that_lies_about_flushing_forgets_the_last_acknowledged_writes(memory):
    storage = Misbehaving(memory, cache=2)
    for name in (A, B, C):
        storage.put(name, [b"x"])
    storage.power_off()
    storage.power_on()
    assert names(storage) == {A}


def test_the_clock_of_the_memory_is_set_by_the_test(memory):
    memory.now_ns = 5
    memory.put(A, [b"a"])
    memory.now_ns = 9
    assert memory.stat(A).stored_ns == 5
    memory.age(A, 3)
    assert [i.stored_ns for i in memory.list("data")] == [2]


def test_the_memory_can_be_full(memory):
    memory.capacity = 3
    memory.put(A, [b"ab"])
    with pytest.raises(StorageFull):
        memory.put(B, [b"cd"])
    assert memory.free_space() == 1


def test_counting_notes_calls_and_bytes(memory):
    storage = Counting(memory)
    storage.put(A, [b"abc", b"de"])
    storage.get(A, 1, 2)
    list(storage.list("data"))
    assert storage.calls == {"put": 1, "get": 1, "list": 1}
    assert (storage.bytes_put, storage.bytes_got) == (5, 2)
    assert [(n.kind, n.subject, n.size) for n in storage.log] == [("put", A, 5), ("get", A, 2), ("list", "data", 0)]


def test_a_dry_run_reads_and_changes_nothing(memory):
    memory.put(A, [b"a"])
    dry = DryRun(memory)
    dry.put(B, [b"b"])
    dry.delete(A)
    assert (dry.get(A), dry.stat(A).size, names(dry), dry.place) == (b"a", 1, {A}, "memory")
    assert dry.free_space() is None
    assert memory.objects == {A: b"a"}
