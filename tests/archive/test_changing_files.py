"""Trees that change while they are backed up: what went wrong is named and counted, and the snapshot is good."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys

import pytest

from holdfast.archive import files, scan
from tests.archive.making import KEY_TEXT, NOBODY, elsewhere, make_house, reasons
from tests.support.trees import KIB, MIB, contents, deep, noise, sparse, write

TURNED = "it turned into something else while it was looked at"


@pytest.fixture
def before(monkeypatch):
    """``before("open", "name", act)``: do something at the last moment before a file of that name is opened or read,
    or a folder is entered.
    """

    def plan(moment, name, act):
        owner, function = {
            "open": (files.FileReader, "_open"),
            "read": (files.FileReader, "_content"),
            "enter": (scan, "open_beneath"),
        }[moment]
        really = getattr(owner, function)
        left = [act]

        def change_first(*args):
            described = args[3] if moment == "read" else args[1] if moment == "enter" else args[2]
            path = os.path.join(*described) if isinstance(described, tuple) else described
            if path == os.fsencode(name) and left:
                left.pop()()
            return really(*args)

        monkeypatch.setattr(owner, function, change_first)

    return plan


@pytest.fixture
def source(house):
    return write(house.folder / "source", {"before": "good", "file": "content", "folder/inside": "x", "z": "good too"})


def assert_good_but_for(house, report, path, reason, *, kept=()):
    """The one trouble is named and counted; everything else restores, and is what it was."""
    assert reasons(report) == {path: reason}
    assert report.snapshot.totals.errors == 1
    assert reasons(house.restore(report, verify=True)) == {}
    found = contents(house.restored)
    assert {"before": "good", "z": "good too"}.items() <= found.items()
    assert (path in found) == (path in kept)


def test_a_file_that_vanishes_before_it_is_opened(house, source, before):
    before("open", "file", (source / "file").unlink)
    report = house.back_up(source)
    assert_good_but_for(house, report, "file", "No such file or directory")


def test_a_file_that_becomes_a_link_is_not_followed(house, source, before):
    secret = write(house.folder / "secret", {"file": "secret"})

    def swap():
        (source / "file").unlink()
        (source / "file").symlink_to(secret / "file")

    before("open", "file", swap)
    assert_good_but_for(house, house.back_up(source), "file", TURNED)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_a_file_that_becomes_something_else_stops_nothing(house, source, before, kind, monkeypatch):
    monkeypatch.chdir(source)

    def swap():
        (source / "file").unlink()
        if kind == "pipe":
            os.mkfifo(source / "file")
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind("file")
        else:
            (source / "file").mkdir()

    before("open", "file", swap)
    assert_good_but_for(house, house.back_up(source), "file", TURNED)


def test_a_file_that_grows_is_stored_as_it_was_read(house, source, before):
    before("read", "file", lambda: (source / "file").write_text("content, and more"))
    report = house.back_up(source)
    reason = "it changed from 7 to 17 bytes while it was read"
    assert_good_but_for(house, report, "file", reason, kept=["file"])
    assert contents(house.restored)["file"] == "content, and more"


def test_a_file_that_shrinks_is_stored_as_it_was_read(house, source, before):
    before("read", "file", lambda: os.truncate(source / "file", 3))
    report = house.back_up(source)
    assert_good_but_for(house, report, "file", "it changed from 7 to 3 bytes while it was read", kept=["file"])
    assert contents(house.restored)["file"] == "con"


def test_a_file_that_becomes_empty_is_stored_empty(house, source, before):
    before("read", "file", lambda: os.truncate(source / "file", 0))
    report = house.back_up(source)
    assert_good_but_for(house, report, "file", "it changed from 7 to 0 bytes while it was read", kept=["file"])


def test_a_small_file_that_becomes_large_is_stored_whole(house, source, before):
    before("read", "file", lambda: (source / "file").write_bytes(noise(3 * MIB)))
    report = house.back_up(source)
    reason = f"it changed from 7 to {3 * MIB} bytes while it was read"
    assert_good_but_for(house, report, "file", reason, kept=["file"])
    assert (house.restored / "file").read_bytes() == noise(3 * MIB)


def test_a_large_file_that_shrinks_while_it_is_read(house, source, monkeypatch):
    (source / "file").write_bytes(noise(20 * MIB))
    in_the_middle_of_reading(monkeypatch, lambda: os.truncate(source / "file", 9 * MIB))
    report = house.back_up(source)
    reason = f"it changed from {20 * MIB} to {9 * MIB} bytes while it was read"
    assert_good_but_for(house, report, "file", reason, kept=["file"])


def test_a_large_file_that_grows_is_read_as_far_as_it_was(house, source, monkeypatch):
    (source / "file").write_bytes(noise(20 * MIB))
    in_the_middle_of_reading(monkeypatch, lambda: append(source / "file", b"more" * MIB))
    report = house.back_up(source)
    assert_good_but_for(house, report, "file", "it changed while it was read", kept=["file"])
    assert (house.restored / "file").read_bytes() == noise(20 * MIB)


def test_a_file_that_grows_without_end_ends(house, source, monkeypatch):
    (source / "file").write_bytes(noise(20 * MIB))
    in_the_middle_of_reading(monkeypatch, lambda: append(source / "file", noise(3 * MIB)), times=1000)
    report = house.back_up(source)
    assert_good_but_for(house, report, "file", "it changed while it was read", kept=["file"])


def test_a_large_file_that_is_written_to_while_it_is_read(house, source, monkeypatch):
    (source / "file").write_bytes(noise(20 * MIB))
    in_the_middle_of_reading(monkeypatch, lambda: overwrite(source / "file", 15 * MIB, b"changed"))
    assert_good_but_for(house, house.back_up(source), "file", "it changed while it was read", kept=["file"])


def test_a_sparse_file_that_is_cut_off_while_it_is_read(house, source, monkeypatch):
    sparse(source / "file", 20 * MIB, [(MIB, noise(MIB)), (10 * MIB, noise(MIB)), (15 * MIB, noise(MIB))])
    in_the_middle_of_reading(monkeypatch, lambda: os.truncate(source / "file", 9 * MIB))
    report = house.back_up(source)
    reason = f"it changed from {20 * MIB} to {10 * MIB} bytes while it was read"
    assert_good_but_for(house, report, "file", reason, kept=["file"])
    assert (house.restored / "file").read_bytes()[: 9 * MIB] == (source / "file").read_bytes()


def test_a_file_written_to_at_the_wrong_moment_is_read_again_by_the_next_backup(house, source, before):
    before("read", "file", lambda: (source / "file").write_text("changed"))
    house.back_up(source)
    (source / "file").write_text("CHANGED")
    house.restore(house.back_up(source))
    assert contents(house.restored)["file"] == "CHANGED"


def test_a_folder_that_vanishes_before_it_is_entered(house, source, before):
    before("enter", "folder", lambda: shutil.rmtree(source / "folder"))
    assert_good_but_for(house, house.back_up(source), "folder", "No such file or directory")


def test_a_folder_that_becomes_a_link_is_not_followed(house, source, before):
    secret = write(house.folder / "secret", {"inside": "secret"})

    def swap():
        shutil.rmtree(source / "folder")
        (source / "folder").symlink_to(secret)

    before("enter", "folder", swap)
    assert_good_but_for(house, house.back_up(source), "folder", TURNED)


def test_a_folder_that_becomes_a_file(house, source, before):
    def swap():
        shutil.rmtree(source / "folder")
        (source / "folder").write_text("now a file")

    before("enter", "folder", swap)
    assert_good_but_for(house, house.back_up(source), "folder", TURNED)


def test_a_parent_folder_that_becomes_a_link_is_not_followed(house, source, before):
    write(source, {"a/b/c/file": "deep"})
    secret = write(house.folder / "secret", {"b/c/file": "secret"})

    def swap():
        shutil.rmtree(source / "a")
        (source / "a").symlink_to(secret)

    before("enter", "a/b/c", swap)
    report = house.back_up(source)
    assert_good_but_for(house, report, "a/b/c", TURNED)
    assert "a/b/c/file" not in house.names(report)


def test_a_link_that_becomes_a_file_before_it_is_read(house, source, monkeypatch):
    (source / "link").symlink_to("file")
    really = os.readlink

    def swap_first(path, **options):
        (source / "link").unlink()
        (source / "link").write_text("a file")
        return really(path, **options)

    monkeypatch.setattr(os, "readlink", swap_first)
    assert_good_but_for(house, house.back_up(source), "link", TURNED)


@pytest.mark.needs_root
def test_files_that_may_not_be_read_are_named_and_the_rest_is_backed_up(open_folder):
    os.chown(open_folder, NOBODY, NOBODY)
    troubles, restored, found = elsewhere(back_up_what_is_shut, open_folder, uid=NOBODY)
    assert troubles == {"shut": "Permission denied", "folder": "Permission denied"}
    assert (restored, found) == ({}, {"before": "good", "z": "good"})


def back_up_what_is_shut(folder):
    house = make_house(folder)
    source = write(folder / "source", {"before": "good", "shut": "x", "folder/inside": "x", "z": "good"})
    (source / "shut").chmod(0)
    (source / "folder").chmod(0)
    report = house.back_up(source)
    restored = house.restore(report)
    (house.restored / "folder").chmod(0o755)
    return reasons(report), reasons(restored), contents(house.restored)


def test_a_file_the_disk_cannot_read_is_named_and_the_rest_is_backed_up(house, source, need):
    (source / "large").write_bytes(noise(20 * MIB))
    key = house.folder / "key"
    key.write_text(KEY_TEXT)
    strace = [need("strace"), "-f", "-qq", "-o", "/dev/null", "-P", str(source / "file"), "-P", str(source / "large")]
    strace += ["-e", "trace=readv,preadv,preadv2", "-e", "inject=readv,preadv,preadv2:error=EIO:when=1+"]
    command = [sys.executable, "-m", "holdfast", "-r", house.repo.storage.place, "--key-file", str(key), "--json"]
    done = subprocess.run([*strace, *command, "backup", str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("Input/output error") == 2
    assert '"errors": 2' in done.stdout
    house.restore(house.repo.snapshots()[-1].snapshot.root)
    assert contents(house.restored) == {"before": "good", "folder/inside": "x", "z": "good too"}


def test_a_kernel_file_without_a_size_is_read(house):
    source = house.folder / "source"
    source.mkdir()
    (source / "link").write_text("x")
    report = house.back_up(source, *[type(source)("/proc/self/mounts")])
    assert any(reason.startswith("it changed from 0 to") for reason in reasons(report).values())


def test_a_folder_too_deep_for_one_open_that_vanishes_is_named(house, source, before):
    top = source / "deep"
    path = os.path.dirname(deep(top, 30, "n" * 250))
    before("enter", b"deep/" + path, lambda: os.rename(top, house.folder / "elsewhere"))
    report = house.back_up(source)
    assert list(reasons(report).values()) == ["No such file or directory"]


def in_the_middle_of_reading(monkeypatch, act, times=1):
    """Do something when the second piece of a large file is asked for."""
    really, asked = os.preadv, [0]

    def change_first(*args):
        asked[0] += 1
        if 1 < asked[0] <= 1 + times:
            act()
        return really(*args)

    monkeypatch.setattr(os, "preadv", change_first)


def append(path, data):
    with path.open("ab") as f:
        f.write(data)


def overwrite(path, offset, data):
    with path.open("r+b") as f:
        f.seek(offset)
        f.write(data)


def test_chunks_of_a_file_that_shrank_are_not_lost_to_the_next_backup(fine, monkeypatch):
    source = write(fine.folder / "source", {"file": noise(9 * MIB)})
    in_the_middle_of_reading(monkeypatch, lambda: os.truncate(source / "file", 8 * MIB + KIB))
    fine.back_up(source)
    monkeypatch.undo()
    (source / "file").write_bytes(noise(9 * MIB))
    report = fine.back_up(source)
    fine.restore(report)
    assert (fine.restored / "file").read_bytes() == noise(9 * MIB)
