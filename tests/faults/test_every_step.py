"""A fault at every single step that a backup or a prune takes on its storage.

Whatever goes wrong and wherever: the work ends with one of our errors or does its job; every snapshot reported before
stays whole, one that was not reported is whole or absent; no object holds anything but what its name says; the same
work done again without a fault succeeds and leaves nothing to do.
"""

from __future__ import annotations

import os
import shutil

import pytest

from holdfast.errors import HoldfastError, StorageDenied, StorageFull
from holdfast.storage.local import LocalStorage
from tests.support.faults import WORKED
from tests.support.rounds import BACK_UP, PRUNE_NOW, SWEEP, WORKS, House, Work
from tests.support.storages import (
    Fault,
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
    "the disk becomes read-only": lambda n: fails("write", n, StorageDenied, times=None),
    "one call fails": lambda n: fails("any", n),
    "the answer to a write is lost": lambda n: loses_answer("write", n),
    "the power goes when it is written": lambda n: cuts_power("write", n, moment="written"),
    "an object is said to be missing": lambda n: says_missing("read", n),
    "a new pack is said to exist": lambda n: says_exists(n, folder="data"),
    "a get has a wrong bit": lambda n: flips_bit(n, bit=7919 * n),
    "a listing is stale": lambda n: lists_stale(3, n, times=1),
}
MORE_FAULTS = {
    "the disk is full for a moment": lambda n: fails("put", n, StorageFull),
    "a new object is said to exist": lambda n: says_exists(n),
    "the storage goes away": lambda n: fails("any", n, times=None),
    "the answers to all writes are lost": lambda n: loses_answer("write", n, times=None),
    "the power goes before a write": lambda n: cuts_power("write", n, moment="before"),
    "the power goes when it is durable": lambda n: cuts_power("write", n, moment="durable"),
    "a get is too short": lambda n: truncates(n),
    "a get is empty": lambda n: truncates(n, by=1 << 40),
    "a listing breaks off": lambda n: breaks_listing(n),
    "all listings are stale": lambda n: lists_stale(2, n),
}


every_work = pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
some_works = pytest.mark.parametrize("work", [BACK_UP, PRUNE_NOW, SWEEP], ids=lambda work: work.name)


@some_works
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_at_any_step_everything_reported_stays_whole(house, work, fault):
    disturb_every_step(house, work, fault, FAULTS[fault])


@pytest.mark.slow
@every_work
@pytest.mark.parametrize("fault", FAULTS | MORE_FAULTS)
def test_whatever_else_goes_wrong_at_any_step_everything_reported_stays_whole(house, work, fault):
    disturb_every_step(house, work, fault, (FAULTS | MORE_FAULTS)[fault])


def disturb_every_step(house, work, fault, plan):
    kept = work.prepare(house)
    step = 1
    while came_and_went(house, kept, work, plan(step), f"{fault} (step {step})"):
        step += 1
    assert step > 1 or work.name == "sweep", "the fault never came"


def came_and_went(house, kept: list[str], work: Work, fault: Fault, what: str) -> bool:
    """One round; False when the work ended before the fault came."""
    memory = house.storage.copy()
    now = house.copy(memory)
    storage = Misbehaving(memory, [fault])
    reported = set(kept)
    try:
        reported.add(work.run(now, storage))
    except HoldfastError as e:
        assert str(e).endswith("."), f"{e} is no sentence"
    reported.discard("")
    storage.power_on()
    try:
        now.assert_no_garbage()
        now.assert_whole(reported)
        work.run(now, None)
        work.done(now)
        now.assert_whole(reported)
    except (HoldfastError, AssertionError) as e:
        e.add_note(f"after {what} in {[(s.kind, s.subject[:12]) for s in storage.steps]}")
        raise
    return sum(1 for s in storage.steps if fault.counts(s.kind, s.subject)) >= fault.nth


@every_work
def test_killed_after_any_write_everything_reported_stays_whole(quick_folder, machine, work):
    base = quick_folder / "base"
    storage = LocalStorage(base)
    storage.create()
    house = House(storage, quick_folder)
    house.create()
    kept = work.prepare(house)
    writes, status = 0, -9
    while status == -9:
        writes += 1
        now = house.copy(LocalStorage(clone(base, quick_folder / "now")))
        killed = Misbehaving(now.storage, [does("write", kill_myself, writes, moment="after")])
        status = machine.wait(machine.child(lambda: work.run(now, killed)))  # noqa: B023 - it runs at once
        now.assert_no_garbage()
        now.assert_whole(kept)
        work.run(now, None)
        work.done(now)
    assert status == WORKED
    assert writes > 5


def kill_myself():
    os.kill(os.getpid(), 9)


def clone(folder, to):
    """A copy of a repository's folder, by hard links: objects never change. Empty folders are left out."""
    if to.exists():
        shutil.rmtree(to)
    for top, _, files in os.walk(folder):
        for name in files:
            path = to / os.path.relpath(top, folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(os.path.join(top, name), path)
    return to
