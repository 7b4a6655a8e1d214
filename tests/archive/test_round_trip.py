"""What a backup and a restore keep of a tree: everything."""

from __future__ import annotations

import os
import stat
import struct
import subprocess

import pytest

from tests.archive.making import reasons
from tests.support.trees import (
    ACL,
    KIB,
    MIB,
    SECOND,
    contents,
    data_map,
    date_folders,
    deep,
    differences,
    everything,
    facts,
    noise,
    open_far,
    sparse,
    write,
)


@pytest.mark.needs_root
def test_everything_a_tree_holds_comes_back(house):
    source = everything(house.folder / "source")
    report = house.back_up(source)
    done = house.restore(report)
    assert reasons(report) == {}
    assert reasons(done) == {}
    assert done.notes == {}
    assert differences(source, house.restored) == []


@pytest.mark.needs_root
def test_everything_comes_back_into_a_tree_that_is_all_different(house):
    source = everything(house.folder / "source")
    report = house.back_up(source)
    everything(house.restored)
    for path, found in sorted(facts(house.restored).items(), reverse=True):
        if found.kind == "-":
            with open(os.path.join(os.fsencode(house.restored), path), "r+b") as f:
                f.write(b"overwritten")
        os.chown(os.path.join(os.fsencode(house.restored), path), 5, 5, follow_symlinks=False)
    assert reasons(house.restore(report)) == {}
    assert differences(source, house.restored) == []


@pytest.mark.needs_root
def test_everything_comes_back_through_a_second_backup_that_reads_nothing(house):
    source = everything(house.folder / "source")
    house.back_up(source)
    report = house.back_up(source)
    assert report.snapshot.totals.bytes_read == 0
    house.restore(report)
    assert differences(source, house.restored) == []


def test_a_second_restore_finds_nothing_to_do(house):
    source = everything(house.folder / "source")
    report = house.back_up(source)
    first = house.restore(report)
    again = house.restore(report)
    assert (again.files, again.written, reasons(again)) == (0, 0, {})
    assert again.unchanged == first.files
    assert differences(source, house.restored) == []


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 4 * MIB, 8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 17 * MIB])
def test_a_file_of_any_size_comes_back(house, size):
    source = write(house.folder / "source", {"file": noise(size)})
    house.restore(house.back_up(source), verify=True)
    assert differences(source, house.restored) == []


@pytest.mark.parametrize("chunks", [255, 256, 257, 5000])
def test_a_file_of_many_chunks_comes_back(fine, chunks):
    source = write(fine.folder / "source", {"file": noise(chunks * 5 * KIB)})
    report = fine.back_up(source)
    entry = fine.tree(report).find(b"file")
    assert entry.depth == 1
    done = fine.restore(report, verify=True)
    assert done.verified == 1
    assert differences(source, fine.restored) == []


def test_a_long_list_with_a_hole_at_the_end_keeps_its_size(fine):
    source = fine.folder / "source"
    source.mkdir()
    sparse(source / "file", 64 * MIB, [(0, noise(2 * MIB))])
    report = fine.back_up(source)
    assert fine.tree(report).find(b"file").depth == 1
    fine.restore(report)
    assert differences(source, fine.restored) == []


@pytest.mark.parametrize("name", ["leading", "middle", "trailing", "all hole", "small hole", "many", "many, trailing"])
def test_holes_stay_holes(house, name):
    source = everything(house.folder / "source") / "sparse" / name
    house.restore(house.back_up(source))
    there, here = (house.restored / name).stat(), source.stat()
    assert (there.st_size, there.st_blocks) == (here.st_size, here.st_blocks)
    with (house.restored / name).open("rb") as f, source.open("rb") as g:
        assert data_map(f.fileno(), there.st_size) == data_map(g.fileno(), here.st_size)


def test_a_file_of_more_holes_than_files_may_be_open_comes_back(house):
    source = house.folder / "source"
    source.mkdir()
    for number in range(1500):
        sparse(source / f"{number}", 64 * KIB, [(32 * KIB, b"%d" % number)])
    done = house.restore(house.back_up(source), verify=True)
    assert (done.verified, reasons(done)) == (1500, {})


@pytest.mark.needs_root
def test_sparse_files_that_claim_more_than_a_number_holds_do_not_end_the_backup(house, mounts):
    source = mounts.tmpfs(house.folder / "source")
    for number in range(2000):
        sparse(source / f"{number}", (1 << 63) - 1, [])
    report = house.back_up(source)
    assert reasons(report) == {}
    assert house.tree(report).find(b"1").size == (1 << 63) - 1


@pytest.mark.needs_root
def test_times_that_no_snapshot_can_hold_are_kept_as_near_as_it_can(house, mounts):
    source = mounts.tmpfs(house.folder / "source")
    for name, when in {
        "far future": "@999999999999999",
        "far past": "@-999999999999999",
        "soon": "@16999999999",
    }.items():
        (source / name).write_text(name)
        subprocess.run(["touch", "-d", when, source / name], check=True)
    report = house.back_up(source)
    assert reasons(report) == {}
    times = {e.name: e.mtime_ns for e in house.tree(report).directory(b"")}
    assert times == {b"far future": (1 << 64) - 1, b"far past": -(1 << 63), b"soon": 16_999_999_999 * SECOND}
    assert reasons(house.restore(report)) == {}
    assert contents(house.restored) == contents(source)


def test_a_path_longer_than_the_kernel_takes_comes_back(house):
    source = house.folder / "source"
    path = deep(source, 30, "n" * 250)
    report = house.back_up(source)
    done = house.restore(report, verify=True)
    assert (reasons(report), reasons(done), done.verified) == ({}, {}, 1)
    assert differences(source, house.restored) == []
    os.close(open_far(house.restored, path))


def test_a_tree_deeper_than_any_stack_comes_back_and_is_removed_again(house, bottomless):
    source, target = bottomless / "source", bottomless / "restored"
    path = deep(source, 1200)
    report = house.back_up(source)
    done = house.restore(report, target)
    assert (reasons(report), reasons(done)) == ({}, {})
    with open(open_far(target, path), "rb") as f:
        assert f.read() == b"at the bottom"
    (house.folder / "empty").mkdir()
    done = house.restore(house.back_up(house.folder / "empty"), target, delete=True)
    assert (reasons(done), done.deleted) == ({}, 1201)
    assert list(target.iterdir()) == []


def test_hard_links_across_folders_come_back_as_one_file(house):
    source = write(house.folder / "source", {"z/first": "shared", "other": "alone"})
    (source / "a").mkdir()
    os.link(source / "z" / "first", source / "a" / "second")
    done = house.restore(house.back_up(source))
    assert (house.restored / "a" / "second").samefile(house.restored / "z" / "first")
    assert (house.restored / "other").stat().st_nlink == 1
    assert done.files == 3


def test_a_link_whose_first_name_is_not_wanted_comes_back_with_its_content(house):
    source = write(house.folder / "source", {"a": "shared"})
    os.link(source / "a", source / "b")
    os.link(source / "a", source / "c")
    house.restore(house.back_up(source), wanted=lambda path, entry: path != b"a")
    assert contents(house.restored) == {"b": "shared", "c": "shared"}
    assert (house.restored / "b").samefile(house.restored / "c")


def test_a_default_acl_of_the_target_is_not_inherited(house):
    source = everything(house.folder / "source")
    report = house.back_up(source)
    house.restored.mkdir()
    os.setxattr(house.restored, "system.posix_acl_default", ACL)
    house.restore(report)
    assert differences(source, house.restored) == []


@pytest.mark.needs_root
def test_a_set_group_id_bit_of_the_target_is_not_inherited(house):
    source = everything(house.folder / "source")
    report = house.back_up(source)
    house.restored.mkdir()
    os.chown(house.restored, 0, 1234)
    house.restored.chmod(0o2775)
    house.restore(report)
    assert differences(source, house.restored) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_umask_changes_nothing_and_is_not_changed(house, umask):
    source = write(house.folder / "source", {"file": "x", "folder/file": "y"})
    (source / "file").chmod(0o1666)
    (source / "folder").chmod(0o777)
    report = house.back_up(source)
    old = os.umask(umask)
    try:
        house.restore(report)
        assert os.umask(umask) == umask
    finally:
        os.umask(old)
    assert differences(source, house.restored) == []


@pytest.mark.needs_root
def test_a_capability_that_the_snapshot_does_not_have_is_taken_away(house):
    source = write(house.folder / "source", {"tool": "#!/bin/sh"})
    report = house.back_up(source)
    house.restore(report)
    capability = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(house.restored / "tool", "security.capability", capability)
    house.restore(report)
    assert os.listxattr(house.restored / "tool") == []


@pytest.mark.needs_root
def test_more_attributes_than_an_entry_holds_are_named_and_the_rest_is_kept(house, need):
    need("mkfs.xfs")
    image, source = house.folder / "image", house.folder / "source"
    source.mkdir()
    with image.open("wb") as f:
        f.truncate(320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, source], check=True)
    try:
        for name in ["file", *map(str, range(100))]:
            (source / name).write_text("content")
            for number in range(8 if name == "file" else 4):
                os.setxattr(source / name, f"user.{number}", bytes([number]) * 60_000)
        report = house.back_up(source)
    finally:
        subprocess.run(["umount", source], check=True)
    assert reasons(report).keys() == {"file"}
    assert "extended attributes are larger" in reasons(report)["file"]
    entry = house.tree(report).find(b"file")
    assert entry.size == 7
    assert sorted(entry.xattrs) == [b"user.0", b"user.1", b"user.2", b"user.3"]


def test_sockets_and_pipes_are_noted_and_made_again(house):
    source = everything(house.folder / "source", privileged=False)
    house.restore(house.back_up(source))
    assert stat.S_ISSOCK((house.restored / "socket").stat().st_mode)
    assert stat.S_ISFIFO((house.restored / "pipe").stat().st_mode)


def test_the_base_itself_keeps_its_attributes(house):
    source = write(house.folder / "source", {"file": "x"})
    source.chmod(0o2750)
    os.setxattr(source, "user.note", b"of the base")
    date_folders(source)
    house.restore(house.back_up(source))
    assert differences(source, house.restored, of=[b""]) == []


def test_access_times_are_not_moved_by_a_backup(house):
    source = write(house.folder / "source", {"file": "x"})
    os.utime(source / "file", ns=(1_000_000_000, 2_000_000_000))
    house.back_up(source)
    assert (source / "file").stat().st_atime_ns == 1_000_000_000
