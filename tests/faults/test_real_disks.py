"""Disks that fill up, run out of inodes, turn read-only or fail, under the command line: one sentence, the right exit
status, nothing harmed, and once the disk is well the same command works.
"""

from __future__ import annotations

import errno
import os
import random

import pytest

from holdfast.errors import HoldfastError, StorageDenied, StorageFull
from holdfast.storage.local import LocalStorage
from tests.support.faults import Ended, holdfast, injected, start_holdfast
from tests.support.rounds import KEY_TEXT, WORKS, House, one_after_the_other
from tests.support.storages import Misbehaving, does

CREATED = 300  # inodes a repository takes at least: its 256 folders


@pytest.fixture
def env(tmp_path):
    """What the command line needs to know; the key is the house's."""
    (tmp_path / "key").write_text(KEY_TEXT)
    return {"HOLDFAST_KEY_FILE": str(tmp_path / "key"), "HOLDFAST_HOST": "host"}


def house_on(folder, quick_folder, **how) -> House:
    """A repository in that folder with one snapshot in it, small."""
    storage = LocalStorage(folder / "repository")
    storage.create()
    house = House(storage, quick_folder, **how)
    house.create()
    return house


def back_up(house: House, env, *, before=()) -> Ended:
    """The house's tree, by the command line; the tag says which it is."""
    tag = max(house.trees, key=int)
    return holdfast("-r", house.storage.place, "backup", "--tag", tag, house.tree, env=env, before=before)


def assert_one_sentence(ended: Ended, *words: str) -> None:
    """An error as a person may see it: the sentence, a hint, nothing else."""
    lines = ended.err.splitlines()
    assert ended.status == 1, ended
    assert lines[0].startswith("holdfast: ") and lines[0].endswith("."), ended.err
    assert len(lines) <= 2 and all(line.startswith("  ") for line in lines[1:]), ended.err
    assert any(word in lines[0] for word in words), ended.err


def assert_harmless(house: House, kept: list[str]) -> None:
    house.assert_no_garbage()
    house.assert_whole(kept)


# -- full --------------------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
def test_a_full_disk_ends_the_backup_with_a_sentence_and_room_makes_it_work(machine, quick_folder, env):
    disk = machine.tmpfs(size="2600k")
    house = house_on(disk.path, quick_folder)
    kept = [house.back_up(0)]
    house.prepare_tree(1, kilobytes=4000)
    assert_one_sentence(back_up(house, env), "No space left on device")
    assert_harmless(house, kept)
    disk.set("size=16m")
    assert back_up(house, env).status == 0
    house.assert_whole(kept)
    assert len(house.snapshots()) == 2


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_wherever_the_disk_fills_up_nothing_is_harmed(machine, quick_folder, kind):
    """A ballast leaves less and less room, so that each write in turn is the one that finds none."""
    disk = machine.tmpfs(size="16m") if kind == "tmpfs" else machine.disk("ext4", 24, "-m", "0")
    house = house_on(disk.path, quick_folder)
    kept = [house.back_up(0)]
    ballast, failed = disk.path / "ballast", 0
    for room in [0, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 6144]:
        house.prepare_tree(1, kilobytes=1200)
        fill(ballast, disk.path, leave=room << 10)
        try:
            kept.append(house.back_up_tree("1"))
        except StorageFull:
            failed += 1
        ballast.unlink()
        assert_harmless(house, kept)
    assert 5 < failed < 14
    house.assert_check_is_good()


def fill(ballast, folder, *, leave: int) -> None:
    """Write until only about so many bytes are free."""
    with ballast.open("wb") as f:
        try:
            while (free := free_bytes(folder)) > leave:
                f.write(bytes(min(1 << 20, free - leave)))
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            assert e.errno == errno.ENOSPC


def free_bytes(folder) -> int:
    st = os.statvfs(folder)
    return st.f_bavail * st.f_frsize


@pytest.mark.needs_root
def test_wherever_the_inodes_run_out_nothing_is_harmed(machine, quick_folder):
    disk = machine.tmpfs(size="64m", nr_inodes=CREATED)
    house = house_on(disk.path, quick_folder)
    kept = [house.back_up(0)]
    failed = 0
    for left in range(12):
        house.prepare_tree(1 + left)
        free = os.statvfs(disk.path).f_ffree
        ballast = [disk.path / f"ballast-{i}" for i in range(free - left)]
        for path in ballast:
            path.touch()
        try:
            kept.append(house.back_up_tree(str(1 + left)))
        except StorageFull:
            failed += 1
        for path in ballast:
            path.unlink()
        assert_harmless(house, kept[:1] + kept[-1:])
        disk.set(f"nr_inodes={CREATED + 40 * (left + 1)}")
    assert 4 <= failed < 12, "each of the five objects of a backup should once have found no inode"
    house.assert_check_is_good()


@pytest.mark.needs_root
def test_a_repository_can_be_pruned_when_its_disk_is_full(machine, quick_folder):
    """Pruning must not need more room than there is left when all that it needs is to delete."""
    disk = machine.tmpfs(size="12m")
    house = house_on(disk.path, quick_folder)
    ids = [house.back_up(i, kilobytes=800) for i in (0, 2, 4)]
    for snapshot_id in ids[:2]:
        house.forget(snapshot_id)
    fill(disk.path / "ballast", disk.path, leave=64 << 10)
    before = house.pack_bytes()
    house.prune(max_unused=1.0)
    assert house.pack_bytes() < before
    assert_harmless(house, ids[2:])


# -- read-only ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_disk_that_turns_read_only_before_any_write_harms_nothing(machine, quick_folder, work):
    disk = machine.tmpfs(size="64m")
    house = house_on(disk.path, quick_folder, owner=one_after_the_other())
    kept = work.prepare(house)
    step = refused = 0
    while refused == step:
        step += 1
        storage = Misbehaving(house.storage, [does("write", lambda: disk.set("ro"), step)])
        try:
            work.run(house, storage)
        except StorageDenied:
            refused += 1
        assert_harmless(house, kept)
        disk.set("rw")
        if work.name != "backup" and step > 3:
            break  # a prune that was cut off has less to do the next time
    assert step > 3
    work.run(house, None)
    work.done(house)


@pytest.mark.needs_root
def test_the_command_says_that_the_disk_is_read_only_and_restores_from_it(machine, quick_folder, env):
    disk = machine.tmpfs(size="64m")
    house = house_on(disk.path, quick_folder)
    kept = [house.back_up(0)]
    house.prepare_tree(1)
    disk.set("ro")
    assert_one_sentence(back_up(house, env), "Read-only file system")
    assert_harmless(house, kept)
    target = quick_folder / "out"
    assert holdfast("-r", house.storage.place, "restore", "latest", "--target", target, env=env).status == 0
    disk.set("rw")
    assert back_up(house, env).status == 0


# -- system calls that fail --------------------------------------------------------------------------------------------

CALLS = {
    "writev:error=ENOSPC": "No space left on device",
    "write:error=EIO": "",  # large parts go past the page cache; other threads write too
    "fsync:error=EIO": "Input/output error",
    "linkat:error=EROFS": "Read-only file system",
    "linkat:error=EDQUOT": "Disk quota exceeded",
    "fsync:signal=KILL": "",
    "linkat:signal=KILL": "",
}
SOME = [("writev:error=ENOSPC", 2), ("fsync:error=EIO", 3), ("linkat:error=EROFS", 1), ("linkat:signal=KILL", 2)]


@pytest.mark.parametrize(("call", "nth"), SOME)
def test_a_system_call_that_fails_ends_the_backup_with_a_sentence(quick_folder, tmp_path, env, call, nth):
    let_a_call_fail(house_on(tmp_path, quick_folder), env, call, nth)


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("call", CALLS)
def test_any_system_call_of_a_backup_may_fail(quick_folder, tmp_path, env, call, nth):
    let_a_call_fail(house_on(tmp_path, quick_folder), env, call, nth)


def let_a_call_fail(house: House, env, call: str, nth: int) -> None:
    kept = [house.back_up(0)]
    house.prepare_tree(1, kilobytes=3000)
    ended = back_up(house, env, before=injected(f"{call}:when={nth}+"))
    if ended.status == 1 and CALLS[call]:
        assert_one_sentence(ended, CALLS[call])
    elif ended.status == 0:  # fewer such calls in each thread
        assert len(house.snapshots()) == 2
    else:
        assert ended.status in (1, -9, 137), ended
    assert "Traceback" not in ended.err and "fault in Holdfast" not in ended.err, ended.err
    assert_harmless(house, kept)
    assert back_up(house, env).status == 0
    assert_harmless(house, kept)
    house.assert_check_is_good()


# -- two at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trees", ["the same tree", "different trees"])
def test_two_who_back_up_at_once_both_have_whole_snapshots(quick_folder, tmp_path, env, trees):
    first = house_on(tmp_path, quick_folder / "first")
    first.tree.parent.mkdir(exist_ok=True)
    first.prepare_tree(1, kilobytes=6000)
    second = House(first.storage, quick_folder / "second", first.trees)
    second.folder.mkdir()
    if trees == "different trees":
        second.prepare_tree(2, kilobytes=6000)
    other = second.tree if trees == "different trees" else first.tree
    place = first.storage.place
    for _ in range(2):
        running = [
            start_holdfast("-r", place, "backup", "--tag", tag, tree, env=env)
            for tag, tree in (("1", first.tree), ("1" if other == first.tree else "2", other))
        ]
        for process in running:
            with process:
                _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
    assert len(first.snapshots()) == 4
    first.assert_whole([])
    first.assert_no_garbage()
    first.assert_check_is_good()


@pytest.mark.slow
def test_backups_prunes_and_forgets_of_many_processes_at_once_keep_everything_reported(machine, quick_folder, tmp_path):
    """Six processes, each at its own moment, for some seconds; what was reported and not forgotten is whole."""
    house = house_on(tmp_path, quick_folder)
    said = tmp_path / "said"
    said.mkdir()

    def writer(number: int) -> None:
        dice = random.Random(number)
        mine = House(house.storage, quick_folder / str(number))
        mine.folder.mkdir()
        kept: list[str] = []
        for generation in range(8):
            kept.append(mine.back_up(dice.randrange(6)))
            if len(kept) > 2:
                mine.forget(kept.pop(0))
            if dice.random() < 0.5:
                try:
                    mine.prune(now=False)
                except HoldfastError as e:
                    assert e.exit_status == 11, e
            (said / str(number)).write_text("\n".join(kept) + f"\n{generation}")

    children = [machine.child(lambda n=n: writer(n)) for n in range(4)]
    assert [machine.wait(child) for child in children] == [0] * 4
    for tag in range(6):
        house.prepare_tree(tag)
    reported = [line for path in said.iterdir() for line in path.read_text().splitlines()[:-1]]
    assert len(reported) == 8
    house.assert_whole(reported)
    house.assert_no_garbage()
    house.prune()
    house.assert_whole(reported)
    house.assert_check_is_good()
