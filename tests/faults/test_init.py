"""Something goes wrong while a repository is made: there is none yet, or a whole one, and making it again works."""

from __future__ import annotations

import contextlib
import os

import pytest

from holdfast.errors import HoldfastError, RepositoryExists, StorageFull
from holdfast.storage.local import LocalStorage
from tests.support.faults import WORKED
from tests.support.rounds import House, one_after_the_other
from tests.support.storages import MemoryStorage, Misbehaving, cuts_power, does, fails, loses_answer

FAULTS = {
    "fails": lambda n: fails("any", n),
    "answer lost": lambda n: loses_answer("any", n),
    "power cut": lambda n: cuts_power("write", n),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_the_next_try_gives_a_repository_that_opens(quick_folder, fault):
    for attempt in range(10):  # keys lie in the order of their random names
        for step in range(1, 6):
            memory = MemoryStorage()
            storage = Misbehaving(memory, [FAULTS[fault](step)])
            try:
                House(storage, quick_folder).create()
            except HoldfastError:
                storage.power_on()
            assert_can_be_made(House(memory, quick_folder, owner=one_after_the_other()), whole=attempt == 0)


def test_killed_at_any_step_the_next_try_gives_a_repository_that_opens(machine, quick_folder):
    for attempt in range(8):
        step, status = 0, -9
        while status == -9:
            step += 1
            local = LocalStorage(quick_folder / f"r-{attempt}-{step}")
            local.create()
            storage = Misbehaving(local, [does("write", kill_myself, step, moment="after")])
            status = machine.wait(machine.child(House(storage, quick_folder).create))
            assert_can_be_made(House(local, quick_folder), whole=False)
        assert status == WORKED


def kill_myself():
    os.kill(os.getpid(), 9)


def assert_can_be_made(house: House, *, whole: bool) -> None:
    with contextlib.suppress(RepositoryExists):
        house.create()
    house.open()
    if whole:
        house.assert_whole([house.back_up(1)])


@pytest.mark.needs_root
def test_wherever_the_inodes_run_out_the_next_try_makes_it(machine, quick_folder):
    disk = machine.tmpfs(size="8m", nr_inodes=10)
    refused = 0
    made = False
    while not made and refused < 40:
        disk.set(f"nr_inodes={10 + refused * 20 if refused < 12 else 200 + refused * 4}")
        storage = LocalStorage(disk.path / "repository")
        house = House(storage, quick_folder)
        try:
            storage.create()
            house.create()
            made = True
        except StorageFull:
            refused += 1
    assert refused > 12
    disk.set("nr_inodes=400")
    house.assert_whole([house.back_up(1)])
