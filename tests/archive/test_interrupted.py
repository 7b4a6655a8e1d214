"""Backups and restores that are ended in the middle: nothing that was stored or restored is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from holdfast.archive import backup, files, writing
from holdfast.errors import HoldfastError, InterruptedByUser, StorageFull, UsageError
from holdfast.storage.local import LocalStorage
from tests.archive.making import KEY_TEXT, Ended, elsewhere, open_house, reasons
from tests.support.trees import KIB, MIB, contents, differences, everything, noise, write


@pytest.fixture
def source(house):
    """20 files of 3 MiB and 200 small ones, all of noise."""
    large = {f"large {i:02}": noise(3 * MIB, i) for i in range(20)}
    return write(house.folder / "source", large | {f"small {i:03}": noise(10 * KIB, i) for i in range(200)})


def interrupt_at(monkeypatch, name, error=KeyboardInterrupt):
    """Raise when the file of that name is about to be read."""
    really = files.FileReader._content

    def content(self, fd, st, path):
        if path[1] == os.fsencode(name):
            raise error
        return really(self, fd, st, path)

    monkeypatch.setattr(files.FileReader, "_content", content)


@pytest.mark.parametrize(("where", "read"), [("large 01", 3), ("large 15", 45), ("small 100", 61)])
def test_what_was_read_before_ctrl_c_is_stored_and_found_again(house, source, monkeypatch, where, read):
    with monkeypatch.context() as patch:
        interrupt_at(patch, where)
        with pytest.raises(InterruptedByUser, match="The backup was interrupted"):
            house.back_up(source)
    assert house.repo.snapshots() == []
    assert sum(house.packs().values()) >= read * 1_000_000
    before = sum(house.packs().values())
    report = house.back_up(source)
    assert report.snapshot.totals.bytes_stored < 63 * MIB - before
    house.restore(report)
    assert differences(source, house.restored) == []


def test_ctrl_c_at_the_last_moment_leaves_only_the_snapshot_to_be_stored(house, source, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, "small 199")
        with pytest.raises(InterruptedByUser):
            house.back_up(source)
    assert house.back_up(source).snapshot.totals.bytes_stored < 150 * KIB


def test_ctrl_c_of_a_real_process_leaves_what_was_stored_and_says_so(house, source):
    key = house.folder / "key"
    key.write_text(KEY_TEXT)
    pipe = source / "zz"
    command = [sys.executable, "-m", "holdfast", "-r", house.repo.storage.place, "--key-file", str(key)]
    pipe.write_bytes(noise(200 * MIB))
    process = subprocess.Popen([*command, "backup", str(source)], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(house.packs()) >= 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said.lower()
    assert "Traceback" not in said
    assert house.repo.snapshots() == []
    stored = sum(house.packs().values())
    report = house.back_up(source)
    assert report.snapshot.totals.bytes_stored < 263 * MIB - stored + 3 * MIB


def test_a_second_ctrl_c_ends_it_at_once(house, source, monkeypatch):
    interrupt_at(monkeypatch, "large 05")
    monkeypatch.setattr(
        "holdfast.repository.writer.ChunkWriter.flush", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        house.back_up(source)


def test_ctrl_c_on_a_full_disk_is_still_ctrl_c(house, source, monkeypatch):
    interrupt_at(monkeypatch, "large 01")
    really = LocalStorage.put

    def put(self, name, parts):
        if name.startswith("data/"):
            raise StorageFull("The disk is full.")
        really(self, name, parts)

    monkeypatch.setattr(LocalStorage, "put", put)
    with pytest.raises(InterruptedByUser):
        house.back_up(source)


@pytest.mark.parametrize("packs", [1, 2])
def test_packs_of_a_backup_that_was_killed_are_found_by_the_next(house, source, packs):
    kill_a_backup(house, source, packs)
    stored = sum(house.packs().values())
    assert len(house.packs()) >= packs
    assert list(house.repo.storage.list("index")) == []
    report = house.back_up(source)
    assert report.snapshot.totals.bytes_stored < 63 * MIB - stored
    house.restore(report, verify=True)
    assert differences(source, house.restored) == []
    assert house.back_up(source).snapshot.totals.bytes_stored < 20 * KIB


def test_what_killed_backups_stored_adds_up_until_one_ends(house, source):
    stored = 0
    for _ in range(2):
        kill_a_backup(house, source, 1)
        assert sum(house.packs().values()) > stored
        stored = sum(house.packs().values())
    report = house.back_up(source)
    assert sum(house.packs().values()) < 64 * MIB
    assert reasons(house.restore(report, verify=True)) == {}


def kill_a_backup(house, source, packs):
    """Back up in a process that gets a SIGKILL as soon as it has stored so many packs."""
    with pytest.raises(Ended) as ended:
        elsewhere(back_up_and_die, house.folder, source, packs)
    assert ended.value.number == signal.SIGKILL


def back_up_and_die(folder, source, packs):
    house = open_house(folder)
    kill_at_call(LocalStorage, "put", packs, lambda self, name, parts: name.startswith("data/"))
    house.back_up(source)


def kill_at_call(owner, function, number, counts=lambda *args: True):
    """Have this process killed right after the call of that number."""
    really, calls, lock = getattr(owner, function), [0], threading.Lock()

    def call(*args):
        answer = really(*args)
        with lock:
            calls[0] += counts(*args)
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, function, call)


# -- restore -----------------------------------------------------------------------------------------------------------


def test_a_restore_that_is_interrupted_leaves_no_half_file_and_can_go_on(house, source, monkeypatch):
    report = house.back_up(source)
    write(house.restored, {"large 03": "to be replaced", "small 005": "to be replaced"})
    with monkeypatch.context() as patch:
        interrupt_writing(patch, after=9)
        with pytest.raises(InterruptedByUser, match="The restore was interrupted"):
            house.restore(report)
    assert [name for name in os.listdir(house.restored) if name.endswith(".part")] == []
    whole = [
        name
        for name in os.listdir(house.restored)
        if (house.restored / name).stat().st_mtime_ns == (source / name).stat().st_mtime_ns
    ]
    assert all((house.restored / name).read_bytes() == (source / name).read_bytes() for name in whole)
    done = house.restore(report, delete=True)
    assert done.unchanged == len(whole)
    assert differences(source, house.restored) == []


def interrupt_writing(monkeypatch, after):
    really, left = writing._write_at, [after]

    def write_at(fd, data, offset):
        left[0] -= 1
        if left[0] == 0:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)
        return really(fd, data, offset)

    monkeypatch.setattr(writing, "_write_at", write_at)


def test_a_restore_that_was_killed_goes_on_where_it_was(house, source):
    report = house.back_up(source)
    with pytest.raises(Ended):
        elsewhere(restore_and_die, house.folder, report.snapshot.root)
    assert 0 < len(os.listdir(house.restored)) < 220
    house.restore(report, verify=True)
    assert differences(source, house.restored) == []


def restore_and_die(folder, root):
    kill_at_call(writing, "_write_at", 12)
    open_house(folder).restore(root)


# -- standard input ----------------------------------------------------------------------------------------------------


def stream(house, data, name=b"stdin", **options):
    reading, sending = os.pipe()

    def send():
        with open(sending, "wb") as f:
            f.write(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        return backup.back_up_stream(house.repo, backup.Request(paths=(), **options), name, reading)
    finally:
        os.close(reading)
        thread.join()


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 20 * MIB])
def test_a_stream_becomes_a_file(house, size):
    report = stream(house, noise(size), b"dump.sql", tags=("nightly",))
    house.restore(report)
    assert (house.restored / "dump.sql").read_bytes() == noise(size)
    assert (report.snapshot.base, report.snapshot.paths, report.snapshot.tags) == (b"/", [b"/dump.sql"], ["nightly"])


def test_the_same_stream_again_stores_nothing_new(house):
    stream(house, noise(20 * MIB))
    report = stream(house, noise(20 * MIB))
    assert report.snapshot.totals.bytes_stored < 10 * KIB


def test_a_dry_run_of_a_stream_stores_nothing(house):
    report = stream(house, noise(3 * MIB), dry_run=True)
    assert (report.snapshot_id, house.packs(), house.repo.snapshots()) == ("", {}, [])


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_a_stream_cannot_have_a_name_that_leads_elsewhere(house, name):
    with pytest.raises(UsageError, match="plain file name"):
        backup.back_up_stream(house.repo, backup.Request(paths=()), name, 0)


def test_a_stream_that_breaks_is_no_snapshot(house):
    fd = os.open(house.folder, os.O_RDONLY)
    with pytest.raises(HoldfastError, match="cannot be read: Is a directory"):
        backup.back_up_stream(house.repo, backup.Request(paths=()), b"name", fd)
    os.close(fd)
    assert house.repo.snapshots() == []


def test_a_stream_after_the_clock_was_set_back_is_still_the_latest(house):
    stream(house, b"first")
    house.clock.ahead_ns -= 10**13
    report = stream(house, b"second")
    assert house.repo.snapshots()[-1].id == report.snapshot_id


# -- a dry run ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_a_backup_would_do_and_stores_nothing(house):
    source = everything(house.folder / "source")
    before = contents(house.folder / "repository")
    report = house.back_up(source, dry_run=True)
    assert contents(house.folder / "repository") == before
    really = house.back_up(source)
    assert report.snapshot_id == ""
    for fact in ("files_new", "files", "directories", "others", "bytes_total", "bytes_read"):
        assert getattr(report.snapshot.totals, fact) == getattr(really.snapshot.totals, fact)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_backup_that_is_interrupted_closes_what_it_opened(house, source):
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InterruptedByUser), pytest.MonkeyPatch.context() as patch:
        interrupt_at(patch, "large 02")
        house.back_up(source)
    assert len(os.listdir("/proc/self/fd")) <= open_before
