"""A fault at every single step that a backup or a prune takes on its storage.

Whatever goes wrong and wherever: the work ends with one of our errors or does its job; every snapshot reported before stays
whole, one that was not reported is whole or absent; no object holds anything but what its name says; the same work done
again without a fault succeeds and leaves nothing to do.
"""

from __future__ import annotations

import os
import shutil

import pytest

from holdfast.errors import HoldfastError, StorageDenied, StorageFull
from holdfast.storage.local import LocalStorage
from tests.support.faults import WORKED
from tests.support.rounds import WORKS, House
from tests.support.storages import (
    Misbehaving,
    breaks_listing,
    cuts_power,
    does,
    fails,
    flips_bit,
    lists_stale,
    loses_answer,
    says_exists,
    says_missing,
    truncates,
)

FAULTS = {
    "the disk is full": lambda n: fails("put", n, StorageFull, times=None),
    "the disk is full for a moment": lambda n: fails("put", n, StorageFull),
    "the disk becomes read-only": lambda n: fails("write", n, StorageDenied, times=None),
    "one call fails": lambda n: fails("any", n),
    "the storage goes away": lambda n: fails("any", n, times=None),
    "the answer to a write is lost": lambda n: loses_answer("write", n),
    "the answers to all writes are lost": lambda n: loses_answer("write", n, times=None),
    "the power goes before a write": lambda n: cuts_power("write", n, moment="before"),
    "the power goes when it is written": lambda n: cuts_power("write", n, moment="written"),
    "the power goes when it is durable": lambda n: cuts_power("write", n, moment="durable"),
    "an object is said to be missing": lambda n: says_missing("read", n),
    "a new object is said to exist": lambda n: says_exists(n),
    "a get is too short": lambda n: truncates(n),
    "a get is empty": lambda n: truncates(n, by=1 << 40),
    "a get has a wrong bit": lambda n: flips_bit(n, bit=7919 * n),
    "a listing breaks off": lambda n: breaks_listing(n),
    "a listing is stale": lambda n: lists_stale(3, n, times=1),
    "all listings are stale": lambda n: lists_stale(2, n),
}
# These make a storage say that it did what it did not: a snapshot reported then is beyond anybody's promise.
LIES = {"a new object is said to exist"}


@pytest.fixture(params=WORKS, ids=lambda work: work.name)
def work(request):
    return request.param


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_at_any_step_everything_reported_stays_whole(house, work, fault):
    kept = work.prepare(house)
    step = 1
    while goes_well_after(house, kept, work, fault, step):
        step += 1
    assert step > 3, "the fault never came"


def goes_well_after(house: House, kept: list[str], work, fault: str, step: int) -> bool:
    """One round; False when the work ended before the step was reached."""
    memory = house.storage.copy()
    now = house.copy(memory)
    planned = FAULTS[fault](step)
    storage = Misbehaving(memory, [planned])
    reported = set(kept)
    try:
        reported.add(work.run(now, storage))
    except HoldfastError as e:
        assert str(e).endswith("."), f"{e} is no sentence"
    reported.discard("")
    came = sum(planned.counts(s.kind, s.subject) for s in storage.steps) >= step
    storage.power_on()
    if fault in LIES:
        reported = set(kept)
        for snapshot_id in now.snapshots().keys() - reported:
            now.forget(snapshot_id)
    try:
        now.assert_no_garbage()
        now.assert_whole(reported)
        work.run(now, None)
        work.done(now)
        now.assert_whole(reported)
    except (HoldfastError, AssertionError) as e:
        e.add_note(f"after {fault} at step {step}: {[(s.kind, s.subject[:12]) for s in storage.steps]}")
        raise
    return came


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step_everything_reported_stays_whole(quick_folder, machine, work, moment):
    base = quick_folder / "base"
    storage = LocalStorage(base)
    storage.create()
    house = House(storage, quick_folder)
    house.create()
    kept = work.prepare(house)
    step, status = 0, -9
    while status == -9:
        step += 1
        now = house.copy(LocalStorage(clone(base, quick_folder / "now")))
        killed = Misbehaving(now.storage, [does("any", lambda: os.kill(os.getpid(), 9), step, moment=moment)])
        status = machine.wait(machine.child(lambda: work.run(now, killed)))  # noqa: B023 - it runs at once
        now.assert_no_garbage()
        now.assert_whole(kept)
        work.run(now, None)
        work.done(now)
    assert status == WORKED
    assert step > 10


def clone(folder, to):
    """A copy of a repository's folder, by hard links: objects never change."""
    if to.exists():
        shutil.rmtree(to)
    shutil.copytree(folder, to, copy_function=os.link)
    return to
