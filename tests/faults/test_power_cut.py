"""The power goes at random moments of backups, prunes and puts: what was reported is there after the next boot, whole.

The repository lies on a disk of its own (a loop-mounted ext4 or XFS) that is shut down under the writers, unmounted and
mounted again; what was not flushed by then is gone. Trees, and the diary of what was reported, lie elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from holdfast.errors import HoldfastError
from holdfast.storage.base import FOLDERS
from holdfast.storage.local import LocalStorage
from tests.support.faults import FAILED_AS_IT_SHOULD, Disk, Machine
from tests.support.rounds import House

pytestmark = pytest.mark.needs_root

TREES = 6
KEPT = 3  # so many snapshots are not forgotten
KINDS = ["ext4", "xfs"]


class Diary:
    """What was reported, by whoever reported it, outside the disk that loses its power."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._until: list[tuple[int, int]] = []  # notes that do not count: made when the power was off already
        self.path.touch()

    def power_goes(self) -> None:
        self._until.append((self.path.stat().st_size, 0))

    def power_is_back(self) -> None:
        self._until[-1] = self._until[-1][0], self.path.stat().st_size

    def note(self, what: str, name: str) -> None:
        with self.path.open("a") as f:
            f.write(f"{what} {name}\n")

    def said(self, what: str) -> set[str]:
        """What was said while the power was on."""
        text, on = self.path.read_text(), ""
        for off, back in reversed(self._until):
            on, text = text[back:] + on, text[:off]
        return self._of(what, text + on)

    def ever_said(self, what: str) -> set[str]:
        """What was said at any time: what somebody had begun to do."""
        return self._of(what, self.path.read_text())

    def _of(self, what: str, text: str) -> set[str]:
        return {line.partition(" ")[2] for line in text.splitlines() if line.startswith(what + " ")}


# -- what goes on when the power is cut --------------------------------------------------------------------------------


def backups(house: House, diary: Diary) -> None:
    """Back up one tree after the other; forget the older snapshots."""
    mine: list[str] = []
    for number in itertools.count():
        tag = house.prepare_tree(number % TREES)
        mine.append(house.back_up_tree(tag))
        diary.note("reported", mine[-1])
        if len(mine) > KEPT:
            diary.note("forgotten", mine[0])
            house.forget(mine.pop(0))


def backups_and_prunes(house: House, diary: Diary) -> None:
    """The same, and prune after each forgetting: at once, or in two steps."""
    mine: list[str] = []
    for number in itertools.count():
        tag = house.prepare_tree(number % TREES)
        mine.append(house.back_up_tree(tag))
        diary.note("reported", mine[-1])
        for old in mine[:-2]:
            diary.note("forgotten", old)
            house.forget(old)
        mine = mine[-2:]
        house.prune(now=number % 2 == 0)


def prunes(house: House, diary: Diary) -> None:
    """Prune all the time, beside others who write."""
    while True:
        house.prune(now=False)


def puts(house: House, diary: Diary) -> None:
    """Store objects of all sizes and delete some, from four threads."""
    storage, lock = house.storage, threading.Lock()

    def work(number: int) -> None:
        dice = random.Random(os.urandom(8))
        while True:
            data = dice.randbytes(dice.choice([0, 100, 5000, 70_000, 1_500_000]))
            name = f"{dice.choice(['data', 'index', 'locks'])}/{hashlib.sha256(data).hexdigest()}"
            if data:
                storage.put(name, [data])
                with lock:
                    diary.note("stored", name)
                if dice.random() < 0.3:
                    with lock:
                        diary.note("deleting", name)
                    storage.delete(name)
                    with lock:
                        diary.note("deleted", name)

    threads = [threading.Thread(target=lambda n=n: suppressing(work, n), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raise HoldfastError("All have ended.")


def suppressing(work: Callable[[int], None], number: int) -> None:
    try:
        work(number)
    except HoldfastError:
        pass  # the power went
    except BaseException:
        os.kill(os.getpid(), signal.SIGABRT)
        raise


Work = Callable[[House, Diary], None]


# -- rounds ------------------------------------------------------------------------------------------------------------


class Rounds:
    """A disk with a repository, and rounds of: start the writers, cut the power, boot, look."""

    def __init__(self, machine: Machine, folder: Path, kind: str) -> None:
        self.machine, self.folder = machine, folder
        self.disk: Disk = machine.disk(kind)
        storage = LocalStorage(self.disk.path / "repository")
        storage.create()
        self.house = House(storage, folder)
        self.house.create()
        for number in range(TREES):
            self.house.prepare_tree(number)
        self.diary = Diary(folder / "diary")
        self.dice, self.number = random.Random(os.urandom(8)), 0

    def run(self, *works: Work, longest_s: float = 0.25) -> None:
        """One round up to the boot; each work is done by a process of its own."""
        children = []
        for number, work in enumerate(works):
            house = House(self.house.storage, self.folder / f"writer-{number}")
            house.folder.mkdir(exist_ok=True)
            children.append(self.machine.child(partial(work, house, self.diary), fine=(HoldfastError,)))
        self.number += 1
        if self.number % 2:  # else the power may go before anything is reported
            self._wait_for_a_note()
        time.sleep(self.dice.uniform(0.01, longest_s))
        self.disk.cut_power(self.diary.power_goes)
        ended = [self.machine.wait(child) for child in children]
        assert set(ended) == {FAILED_AS_IT_SHOULD}, f"the writers ended with {ended}: an error that is none of ours"
        self.diary.power_is_back()
        self.disk.come_back()

    def _wait_for_a_note(self) -> None:
        before, deadline = self.diary.path.stat().st_size, time.monotonic() + 10
        while self.diary.path.stat().st_size == before and time.monotonic() < deadline:
            time.sleep(0.001)

    def look(self) -> None:
        """Everything reported and not forgotten is there; everything that is there is whole; work goes on."""
        house = self.house
        house.assert_no_garbage()
        house.assert_whole(self.diary.said("reported") - self.diary.ever_said("forgotten"))
        for snapshot_id in sorted(house.snapshots())[KEPT:]:  # few enough for the next round
            self.diary.note("forgotten", snapshot_id)
            house.forget(snapshot_id)

    def end(self) -> None:
        """After all rounds: a prune and a backup find nothing wrong, and neither does check."""
        house = self.house
        house.prune()
        kept = set(house.snapshots())
        kept.add(house.back_up(1))
        house.assert_whole(kept)
        house.assert_check_is_good()


@pytest.fixture
def rounds(machine, quick_folder) -> Callable[[str], Rounds]:
    return lambda kind: Rounds(machine, quick_folder, kind)


TOGETHER = [(backups,), (backups_and_prunes,), (backups, prunes)]
MANY_TOGETHER = [*TOGETHER, (backups, backups), (backups, backups, prunes)]


def names_of(works: tuple[Work, ...]) -> str:
    return " and ".join(work.__name__ for work in works)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("works", TOGETHER, ids=names_of)
def test_after_a_power_cut_every_snapshot_that_was_reported_is_whole(rounds, kind, works):
    some_rounds(rounds(kind), works, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("works", MANY_TOGETHER, ids=names_of)
def test_after_many_power_cuts_every_snapshot_that_was_reported_is_whole(rounds, kind, works):
    some_rounds(rounds(kind), works, 60)


def some_rounds(made: Rounds, works: tuple[Work, ...], rounds: int) -> None:
    for _ in range(rounds):
        made.run(*works)
        made.look()
    made.end()
    assert made.diary.said("reported"), "the power always went before anything was done"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_after_a_power_cut_every_object_that_was_stored_is_there_and_every_deleted_one_is_not(rounds, kind, named):
    made = rounds(kind)
    made.house.storage._unnamed = not named
    for _ in range(4):
        made.run(puts, longest_s=0.1)
        diary, storage = made.diary, made.house.storage
        made.house.assert_no_garbage()
        found = {info.name for folder in FOLDERS for info in storage.list(folder)}
        assert diary.said("stored") - diary.ever_said("deleting") <= found
        assert not diary.said("deleted") & found
    assert diary.said("stored") and diary.said("deleted")


# -- the rounds themselves are sharp -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_power_cut_takes_what_was_not_flushed(machine, kind):
    disk = machine.disk(kind)
    kept, lost = disk.path / "kept", disk.path / "lost"
    kept.write_bytes(b"x" * 5000)
    for path in (kept, disk.path):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    lost.write_bytes(b"x" * 5000)
    disk.cut_power()
    with pytest.raises(OSError, match=r"Input/output error|shutdown"):
        kept.read_bytes()
        (disk.path / "new").write_bytes(b"x")
    disk.come_back()
    assert kept.read_bytes() == b"x" * 5000
    assert not lost.exists() or lost.read_bytes() != b"x" * 5000


@pytest.mark.parametrize("kind", KINDS)
def test_the_rounds_notice_a_storage_that_does_not_flush(rounds, kind, monkeypatch):
    made = rounds(kind)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    with pytest.raises((AssertionError, HoldfastError)):
        for _ in range(8):
            made.run(backups)
            made.look()
