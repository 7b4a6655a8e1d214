"""What a restore does to a target: as little as is needed, everything that is asked for, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.archive import restore
from holdfast.cli.restoring import make_wanted
from holdfast.errors import Damaged, StorageDenied, StorageFull, StorageUnavailable, UsageError
from tests.archive.making import NOBODY, elsewhere, make_house, open_house, reasons
from tests.support.trees import KIB, MIB, contents, differences, everything, facts, noise, sparse, write


@pytest.fixture
def source(house):
    return write(
        house.folder / "source",
        {"a.txt": "a", "b.log": "b", "sub/c.txt": "c", "sub/deep/d.txt": "d", "sub/deep/e.log": "e", "empty/": ""},
    )


@pytest.fixture
def report(house, source):
    return house.back_up(source)


# -- how much ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_the_snapshot_goes_into_the_target(house, report, source):
    house.restore(report, within=b"sub")
    assert differences(source / "sub", house.restored) == []
    house.restore(report, house.folder / "deep", within=b"sub/deep")
    assert contents(house.folder / "deep") == {"d.txt": "d", "e.log": "e"}


def test_folders_whose_names_begin_alike_are_not_taken_for_one_another(house):
    source = write(house.folder / "source", {"sub/a": "", "sub!/b": "", "sub/x/c": "", "subway/d": "", "su/e": ""})
    report = house.back_up(source)
    house.restore(report, within=b"sub")
    assert contents(house.restored).keys() == {"a", "x/c"}


def test_an_empty_folder_of_the_snapshot_makes_an_empty_target(house, report):
    assert reasons(house.restore(report, within=b"empty")) == {}
    assert list(house.restored.iterdir()) == []


@pytest.mark.slow
def test_one_folder_of_many_pages_is_found_without_reading_them_all(house):
    source = write(house.folder / "source", {f"{i:03}/{j}": f"{i} {j}" for i in range(200) for j in range(30)})
    report = house.back_up(source)
    for folder in ("000", "077", "199"):
        target = house.folder / f"restored {folder}"
        assert reasons(house.restore(report, target, within=folder.encode())) == {}
        assert differences(source / folder, target) == []


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*.txt",), (), {"a.txt", "sub/c.txt", "sub/deep/d.txt"}),
        (("sub/deep",), (), {"sub/deep/d.txt", "sub/deep/e.log"}),
        (("/a.txt", "e.log"), (), {"a.txt", "sub/deep/e.log"}),
        ((), ("*.log",), {"a.txt", "sub/c.txt", "sub/deep/d.txt"}),
        (("sub/",), ("deep",), {"sub/c.txt"}),
        (("nothing",), (), set()),
    ],
)
def test_patterns_choose_what_is_restored(house, report, include, exclude, expected):
    house.restore(report, wanted=make_wanted(include, exclude))
    assert contents(house.restored).keys() == expected


def test_folders_on_the_way_to_what_is_wanted_have_their_attributes_too(house, source):
    (source / "sub").chmod(0o711)
    house.restore(house.back_up(source), wanted=make_wanted(("d.txt",), ()))
    paths = [b"sub", b"sub/deep", b"sub/deep/d.txt"]
    assert differences(source, house.restored, of=paths) == []
    assert sorted(os.listdir(house.restored)) == ["sub"]


# -- only what differs -------------------------------------------------------------------------------------------------


def test_only_what_differs_is_written(house, source, report):
    house.restore(report)
    (house.restored / "a.txt").write_text("A")
    (house.restored / "sub" / "c.txt").unlink()
    (house.restored / "more").write_text("stays")
    untouched = (house.restored / "sub" / "deep" / "d.txt").stat().st_ctime_ns
    done = house.restore(report)
    assert (done.files, done.written, done.unchanged) == (2, 2, 3)
    assert (house.restored / "sub" / "deep" / "d.txt").stat().st_ctime_ns == untouched
    assert contents(house.restored) == {**contents(source), "more": "stays"}


def test_attributes_that_differ_are_set_without_writing_the_content(house, source, report):
    house.restore(report)
    (house.restored / "a.txt").chmod(0o600)
    os.setxattr(house.restored / "b.log", "user.note", b"not in the snapshot")
    (house.restored / "sub").chmod(0o700)
    done = house.restore(report)
    assert (done.files, done.written) == (0, 0)
    assert differences(source, house.restored) == []


def test_of_a_large_file_only_the_chunks_that_differ_are_written(house):
    source = write(house.folder / "source", {"image": noise(40 * MIB)})
    report = house.back_up(source)
    house.restore(report)
    inode = (house.restored / "image").stat().st_ino
    with (house.restored / "image").open("r+b") as f:
        f.seek(21 * MIB)
        f.write(b"damaged")
    done = house.restore(report, verify=True)
    assert 0 < done.written <= 4 * MIB
    assert (house.restored / "image").stat().st_ino == inode
    assert (done.verified, differences(source, house.restored)) == (1, [])


@pytest.mark.parametrize("size", [0, 5 * MIB, 60 * MIB])
def test_a_large_file_of_another_length_becomes_right_in_its_place(house, size):
    source = write(house.folder / "source", {"image": noise(40 * MIB)})
    report = house.back_up(source)
    house.restore(report)
    os.truncate(house.restored / "image", size)
    house.restore(report)
    assert differences(source, house.restored) == []


def test_holes_are_made_again_where_something_was_written_into_them(house):
    source = house.folder / "source"
    source.mkdir()
    sparse(source / "image", 20 * MIB, [(4 * MIB, noise(4 * MIB))])
    report = house.back_up(source)
    house.restore(report)
    with (house.restored / "image").open("r+b") as f:
        f.seek(12 * MIB)
        f.write(noise(4 * MIB, "in the hole"))
    done = house.restore(report)
    assert done.written == 0
    assert differences(source, house.restored) == []


def test_a_large_file_that_runs_or_may_not_be_written_to_is_replaced(house, need):
    source = write(house.folder / "source", {"program": Path(need("sleep")).read_bytes() + bytes(3 * MIB)})
    (source / "program").chmod(0o555)
    report = house.back_up(source)
    house.restore(report)
    (house.restored / "program").chmod(0o755)
    with (house.restored / "program").open("ab") as f:
        f.write(b"more")
    running = subprocess.Popen([house.restored / "program", "60"])
    try:
        assert reasons(house.restore(report)) == {}
    finally:
        running.kill()
        running.wait()
    assert differences(source, house.restored) == []


def test_a_file_with_another_name_elsewhere_is_replaced_not_written_into(house, source):
    (source / "large").write_bytes(noise(3 * MIB))
    report = house.back_up(source)
    house.restore(report)
    for name in ("a.txt", "large"):
        os.link(house.restored / name, house.folder / f"outside {name}")
        with (house.restored / name).open("r+b") as f:
            f.write(b"Z")
    before = facts(house.folder / "source")
    house.restore(report)
    assert (house.folder / "outside a.txt").read_text() == "Z"
    assert (house.folder / "outside large").read_bytes()[:1] == b"Z"
    assert facts(source) == before
    assert differences(source, house.restored) == []


@pytest.mark.parametrize(
    "changed", [["first"], ["second"], ["third"], ["first", "third"], ["first", "second", "third"]]
)
def test_hard_links_that_came_apart_are_one_file_again(house, changed):
    source = write(house.folder / "source", {"first": noise(3 * MIB), "sub/": ""})
    os.link(source / "first", source / "second")
    os.link(source / "first", source / "sub" / "third")
    report = house.back_up(source)
    house.restore(report)
    for name in changed:
        path = next(house.restored.rglob(name))
        path.unlink()
        path.write_bytes(b"apart")
    done = house.restore(report)
    assert done.files == len(changed) if "first" not in changed else 3
    assert differences(source, house.restored) == []


# -- things in the way -------------------------------------------------------------------------------------------------

KINDS = ["file", "folder", "link", "pipe", "device"]


def put(path, kind):
    if kind == "file":
        path.write_text("in the way")
    elif kind == "folder":
        write(path, {"deep/er": "in the way"})
    elif kind == "link":
        path.symlink_to("/nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mknod(path, 0o020600, os.makedev(1, 3))


@pytest.mark.needs_root
@pytest.mark.parametrize("there", KINDS)
def test_whatever_stands_in_the_way_of_a_thing_goes(house, there):
    source = house.folder / "source"
    source.mkdir()
    for kind in KINDS:
        put(source / kind, kind)
    (source / "large").write_bytes(noise(3 * MIB))
    os.link(source / "file", source / "linked")
    report = house.back_up(source)
    house.restored.mkdir()
    for name in [*KINDS, "large", "linked"]:
        put(house.restored / name, there)
    done = house.restore(report, delete=True)
    assert reasons(done) == {}
    assert differences(source, house.restored) == []


def test_a_folder_in_the_way_stays_unless_it_may_be_deleted(house, source, report):
    write(house.restored, {"a.txt/precious": "kept"})
    done = house.restore(report)
    assert reasons(done) == {"a.txt": "a folder is in its place; --delete would remove it"}
    assert (house.restored / "a.txt" / "precious").read_text() == "kept"
    assert differences(source / "sub", house.restored / "sub") == []
    done = house.restore(report, delete=True)
    assert (reasons(done), done.deleted) == ({}, 2)
    assert differences(source, house.restored) == []


def test_a_link_in_the_way_of_a_folder_is_replaced_and_never_followed(house, source, report):
    outside = write(house.folder / "outside", {"c.txt": "outside", "x": "outside"})
    before = facts(outside)
    house.restored.mkdir()
    (house.restored / "sub").symlink_to(outside)
    (house.restored / "a.txt").symlink_to(outside / "x")
    assert reasons(house.restore(report, delete=True)) == {}
    assert differences(source, house.restored) == []
    assert facts(outside) == before


def test_a_link_on_the_way_to_what_is_wanted_is_named_and_not_followed(house, report):
    outside = write(house.folder / "outside", {"deep/x": "outside"})
    before = facts(outside)
    house.restored.mkdir()
    (house.restored / "sub").symlink_to(outside)
    done = house.restore(report, wanted=make_wanted(("d.txt",), ()))
    assert reasons(done) == {"sub/deep": "a symbolic link stands in its way"}
    assert facts(outside) == before


# -- deleting ----------------------------------------------------------------------------------------------------------


def test_what_the_snapshot_does_not_have_is_deleted_when_asked(house, source, report):
    house.restore(report)
    write(house.restored, {"extra": "", "extra folder/a/b/c": "", "sub/extra": "", "empty/extra": "", "sub!/x": ""})
    (house.restored / "extra link").symlink_to("sub")
    os.mkfifo(house.restored / "sub" / "deep" / "extra pipe")
    done = house.restore(report, delete=True)
    assert done.deleted == 11
    assert differences(source, house.restored) == []


def test_links_that_are_deleted_are_not_followed(house, report):
    outside = write(house.folder / "outside", {"deep/x": "precious", "y": "precious"})
    house.restore(report)
    (house.restored / "extra").symlink_to(outside)
    write(house.restored, {"more/": ""})
    (house.restored / "more" / "link").symlink_to(outside / "deep")
    before = facts(outside)
    os.link(outside / "y", house.restored / "more" / "y")
    house.restore(report, delete=True)
    assert facts(outside) == before
    assert sorted(os.listdir(house.restored)) == ["a.txt", "b.log", "empty", "sub"]


def test_deleting_stays_within_the_folder_that_is_restored(house, report):
    house.restore(report, within=b"sub")
    write(house.restored, {"extra": "", "deep/extra": ""})
    done = house.restore(report, within=b"sub", delete=True)
    assert done.deleted == 2
    assert contents(house.restored).keys() == {"c.txt", "deep/d.txt", "deep/e.log"}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (("*.txt",), (), {"x.log", "sub/x.log", "new/x.log", "new/in/x.log"}),
        ((), ("*.log",), {"x.log", "sub/x.log", "new/x.log", "new/in/x.log"}),
        ((), ("new/",), {"new/x.txt", "new/x.log", "new/in/x.log", "new/in/x.txt"}),
        (("/new",), (), {"x.txt", "x.log", "sub/x.txt", "sub/x.log"}),
        (
            ("sub",),
            ("*.txt",),
            {"x.txt", "x.log", "sub/x.txt", "new/x.txt", "new/x.log", "new/in/x.log", "new/in/x.txt"},
        ),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_deleting_respects_the_patterns(house, source, report, include, exclude, left, dry_run):
    house.restore(report)
    extra = {f"{folder}x.{ending}": "" for folder in ("", "sub/", "new/", "new/in/") for ending in ("txt", "log")}
    write(house.restored, extra)
    done = house.restore(report, wanted=make_wanted(include, exclude), delete=True, dry_run=dry_run)
    found = contents(house.restored).keys() - contents(source).keys()
    told = [os.fsdecode(path) for what, path in done.changes if what == "delete"]
    assert {path for path in extra if any(path == t or path.startswith(t + "/") for t in told)} == extra.keys() - left
    assert found == (extra.keys() if dry_run else left)


def test_a_folder_in_the_way_keeps_what_the_patterns_leave_out(house, report):
    write(house.restored, {"a.txt/keep.log": "precious", "a.txt/go": ""})
    done = house.restore(report, wanted=make_wanted((), ("*.log",)), delete=True)
    assert reasons(done) == {"a.txt": "a folder is in its place, with things in it that the patterns leave out"}
    assert (house.restored / "a.txt" / "keep.log").read_text() == "precious"


# -- dry runs ----------------------------------------------------------------------------------------------------------


def change_everything(target):
    """One of every change that a restore can meet."""
    write(target, {"extra": "", "extra folder/x": "", "sub/extra": ""})
    (target / "a.txt").write_text("longer")
    (target / "b.log").unlink()
    shutil.rmtree(target / "sub" / "deep")
    (target / "sub" / "deep").symlink_to("/nowhere")
    (target / "sub" / "c.txt").chmod(0o600)
    (target / "empty").rmdir()
    (target / "linked").unlink()
    shutil.copy2(target / "link target", target / "linked")
    (target / "link").unlink()
    (target / "link").symlink_to("elsewhere")
    (target / "pipe").unlink()
    write(target, {"pipe/inside": ""})
    os.setxattr(target / "kept folder", "user.note", b"x")


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("patterns", [((), ()), (("*.txt", "deep", "pipe"), ()), ((), ("*.log", "sub"))])
def test_a_dry_run_says_exactly_what_a_restore_then_does(house, source, delete, patterns):
    write(source, {"link target": "shared", "kept folder/": "", "same": "same"})
    os.link(source / "link target", source / "linked")
    (source / "link").symlink_to("a.txt")
    os.mkfifo(source / "pipe")
    report = house.back_up(source)
    house.restore(report)
    change_everything(house.restored)
    before = facts(house.restored)
    options = {"delete": delete, "wanted": make_wanted(*patterns)}
    told = house.restore(report, dry_run=True, **options)
    assert facts(house.restored) == before, "a dry run changes nothing"
    done = house.restore(report, **options)
    after = facts(house.restored)
    told_paths = {path: what for what, path in told.changes}
    really = dict.fromkeys(after.keys() - before.keys(), "new")
    really |= dict.fromkeys(before.keys() - after.keys(), "delete")
    really |= {p: "changed" for p in before.keys() & after.keys() if before[p] != after[p]}
    really = {p: w for p, w in really.items() if not only_by_its_entries(p, told_paths, before, after)}
    gone_with_its_folder = {
        p for p in really if any(p.startswith(q + b"/") for q, w in told_paths.items() if w == "delete")
    }
    assert told_paths == {p: w for p, w in really.items() if p not in gone_with_its_folder}
    assert reasons(told) == reasons(done)
    assert told.unchanged <= done.unchanged


def only_by_its_entries(path, told, before, after):
    """Whether a folder changed only in that its entries did: what was done below it is told, not that."""
    one, other = before.get(path), after.get(path)
    if one is None or other is None:
        return False
    if path in told or (one.names != other.names and one.kind == "-"):
        return path not in told
    return one.kind == other.kind == "d"


def test_a_dry_run_into_a_folder_that_is_not_there_says_that_all_is_new(house, report):
    told = house.restore(report, dry_run=True, delete=True)
    assert {what for what, _ in told.changes} == {"new"}
    assert len(told.changes) == 8
    assert not house.restored.exists()


def test_a_dry_run_on_what_is_right_already_says_nothing(house):
    source = everything(house.folder / "source")
    report = house.back_up(source)
    house.restore(report)
    told = house.restore(report, dry_run=True, delete=True)
    assert (told.changes, reasons(told)) == ([], {})


# -- verifying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one byte", "small", "large", "hole", "list"])
def test_a_byte_that_flipped_on_the_disk_is_found(fine, name):
    source = write(fine.folder / "source", {"one byte": "x", "small": noise(100 * KIB), "good": "good"})
    write(source, {"large": noise(9 * MIB), "list": noise(3 * MIB)})
    sparse(source / "hole", 20 * MIB, [(0, noise(MIB, 1)), (18 * MIB, noise(MIB, 2))])
    report = fine.back_up(source)
    assert fine.restore(report, verify=True).verified == 6
    flip(fine.restored / name)
    done = fine.restore(report, verify=True)
    assert done.verified == 5
    assert "it differs from the snapshot near byte" in reasons(done).pop(name)


def flip(path):
    """Change a bit in the middle behind the file system's back: no time tells of it."""
    st = path.stat()
    with path.open("r+b") as f:
        f.seek(st.st_size // 2)
        byte = f.read(1)
        f.seek(st.st_size // 2)
        f.write(bytes([byte[0] ^ 4]))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


# -- what cannot be had ------------------------------------------------------------------------------------------------


def test_files_whose_chunks_are_gone_are_named_and_the_rest_is_restored(house):
    source = write(house.folder / "source", {"large": noise(9 * MIB), "folder/": ""})
    house.back_up(source)
    lost = list(house.packs())
    write(source, {"small": "good", "folder/other": noise(3 * MIB, 2)})
    os.link(source / "large", source / "same as large")
    report = house.back_up(source)
    write(house.restored, {"large": "older"})
    for pack in lost:
        house.path_of(pack).unlink()
    done = house.restore(report)
    assert reasons(done).keys() == {"large", "same as large"}
    assert "which could not be restored" in reasons(done)["same as large"]
    assert contents(house.restored) == {
        "large": "older",
        "small": "good",
        "folder/other": os.fsdecode(noise(3 * MIB, 2)),
    }


def test_a_file_that_cannot_become_right_is_left_as_it_is(house):
    source = write(house.folder / "source", {"large": noise(9 * MIB)})
    report = house.back_up(source)
    write(house.restored, {"large": noise(8 * MIB, "older")})
    largest = max(house.packs(), key=house.packs().__getitem__)
    house.path_of(largest).unlink()
    done = house.restore(report)
    assert reasons(done).keys() == {"large"}


def test_a_damaged_page_costs_its_own_entries_and_nothing_is_deleted(fine):
    source = write(fine.folder / "source", {f"{i:04}": f"{i}" for i in range(3000)})
    report = fine.back_up(source)
    tree = fine.tree(report)
    children = tree.page(report.snapshot.root).children  # how many there are is chance: the key decides where pages end
    lost = children[len(children) // 2]
    write(fine.restored, {"extra": "stays"})
    with fine.repo.reading() as reader:
        really = reader.read

        def read(chunk_id):
            if chunk_id == lost.page:
                raise Damaged("A page is damaged.")
            return really(chunk_id)

        reader.read = read
        done = restore.restore(reader, report.snapshot.root, restore.Request(os.fsencode(fine.restored), delete=True))
    found = reasons(done)
    assert "cannot be restored: A page is damaged." in found.pop(os.fsdecode(lost.name))
    assert found == {"": "nothing is deleted, because not all of the snapshot could be read"}
    assert len(contents(fine.restored)) == 3000 - lost.entries + 1


def test_a_storage_that_goes_away_ends_the_restore_with_one_error(house, monkeypatch):
    source = write(house.folder / "source", {f"{i}": noise(100 * KIB, i) for i in range(400)})
    report = house.back_up(source)
    shutil.copytree(house.folder / "repository", house.folder / "copy")
    with house.repo.reading() as reader:
        monkeypatch.setattr(reader, "fetch", gone)
        with pytest.raises(StorageUnavailable):
            restore.restore(reader, report.snapshot.root, restore.Request(os.fsencode(house.restored)))


def gone(pack, number):
    raise StorageUnavailable("The disk is gone.")


@pytest.mark.needs_root
@pytest.mark.parametrize("sizes", [[100 * KIB] * 40, [9 * MIB], [600 * KIB, 3 * MIB, 10]])
def test_a_full_target_is_one_error_and_leaves_no_half_files(house, mounts, sizes):
    source = write(house.folder / "source", {f"{i}": noise(size, i) for i, size in enumerate(sizes)})
    report = house.back_up(source)
    target = mounts.tmpfs(house.folder / "target", "size=1m")
    with pytest.raises(StorageFull, match="The target has no space left"):
        house.restore(report, target)
    for path in target.iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()
    mounts.remount(target, "size=64m")
    house.restore(report, target, verify=True)
    assert contents(target) == contents(source)


@pytest.mark.needs_root
def test_a_target_without_inodes_left_is_one_error(house, mounts):
    source = write(house.folder / "source", {f"{i}/file": "x" for i in range(100)})
    report = house.back_up(source)
    target = mounts.tmpfs(house.folder / "target", "size=1m,nr_inodes=20")
    with pytest.raises(StorageFull, match="The target has no space left"):
        house.restore(report, target)


@pytest.mark.needs_root
def test_a_read_only_target_is_one_error(house, mounts, report):
    target = mounts.tmpfs(house.folder / "target", "size=1m")
    mounts.remount(target, "ro")
    with pytest.raises(StorageDenied, match="mounted read-only"):
        house.restore(report, target)
    with pytest.raises(StorageDenied, match="cannot be used: Read-only file system"):
        house.restore(report, target / "new")


@pytest.mark.needs_root
def test_a_read_only_folder_within_the_target_costs_what_lies_in_it(house, mounts, source, report):
    house.restore(report)
    shutil.rmtree(house.restored / "sub")
    mounts.remount(mounts.tmpfs(house.restored / "sub"), "ro")
    done = house.restore(report)
    assert set(reasons(done).values()) == {"Read-only file system"}
    assert contents(house.restored).keys() == {"a.txt", "b.log"}


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_target_that_is_no_folder_is_refused(house, report, kind):
    put(house.restored, kind)
    with pytest.raises(UsageError, match="is not a folder"):
        house.restore(report)


@pytest.mark.needs_root
def test_a_root_who_may_not_give_files_away_keeps_the_content_and_notes_the_rest(open_folder):
    house = make_house(open_folder)
    source = write(open_folder / "source", {"file": "x", "mine": "y", "large": noise(3 * MIB), "folder/inside": "z"})
    for name in ("file", "large", "folder"):
        os.chown(source / name, 1234, 1234)
    os.setxattr(source / "mine", "trusted.note", b"x")
    os.mknod(source / "device", 0o020600, os.makedev(1, 3))
    report = house.back_up(source)
    troubles, notes = elsewhere(
        restore_elsewhere, open_folder, report.snapshot.root, within=["unshare", "--user", "-r"]
    )
    assert troubles == {}
    assert notes == {"owner": 3, "attribute trusted.note": 1, "device file": 1}
    paths = facts(source).keys() - {b"device"}
    assert differences(source, house.restored, but=["owner", "xattrs"], of=paths) == []


@pytest.mark.needs_root
def test_a_root_who_may_not_leave_access_times_alone_backs_up_all_the_same(open_folder):
    house = make_house(open_folder)
    source = write(open_folder / "source", {"file": "somebody else's"})
    os.chown(source / "file", 1234, 1234)
    troubles = elsewhere(back_up_elsewhere, open_folder, source, within=["unshare", "--user", "-r"])
    assert troubles == {}
    assert house.names(house.back_up(source)) == ["file"]


def back_up_elsewhere(folder, source):
    return reasons(open_house(folder).back_up(source))


# -- without being root ------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
def test_without_being_root_all_that_may_be_restored_is_and_the_rest_is_noted(open_folder):
    house = make_house(open_folder)
    source = everything(open_folder / "source")
    report = house.back_up(source)
    shared(open_folder)
    troubles, notes = elsewhere(restore_elsewhere, open_folder, report.snapshot.root, uid=NOBODY)
    assert troubles == {}
    assert notes.keys() == {
        "owner",
        "device file",
        "attribute trusted.overlay",
        "attribute trusted.note",
        "attribute security.capability",
    }
    here, there = facts(source), facts(house.restored)
    assert here.keys() - there.keys() == {b"root/null", b"root/disk"}
    for path, found in there.items():
        expected = here[path]
        expected.mode &= ~0o6000 if found.kind != "l" else 0o7777
        expected.owner = (NOBODY, NOBODY)
        for attribute in [a for a in expected.xattrs if a.startswith((b"trusted.", b"security."))]:
            del expected.xattrs[attribute]
        assert found == expected


def shared(folder):
    subprocess.run(["chmod", "-R", "a+rX", folder / "repository"], check=True)
    (folder / "restored").mkdir()
    os.chown(folder / "restored", NOBODY, NOBODY)


def restore_elsewhere(folder, root, **options):
    done = open_house(folder).restore(root, **options)
    return reasons(done), done.notes


@pytest.mark.needs_root
def test_without_being_root_a_second_restore_finds_nothing_to_do(open_folder):
    house = make_house(open_folder)
    report = house.back_up(everything(open_folder / "source"))
    shared(open_folder)
    elsewhere(restore_elsewhere, open_folder, report.snapshot.root, uid=NOBODY)
    before = facts(house.restored)
    assert elsewhere(count_elsewhere, open_folder, report.snapshot.root, uid=NOBODY) == (0, 0, {})
    assert facts(house.restored) == before


def count_elsewhere(folder, root):
    done = open_house(folder).restore(root)
    return done.files, done.written, reasons(done)


@pytest.mark.needs_root
def test_without_being_root_folders_shut_by_an_earlier_restore_are_opened_and_shut_again(open_folder):
    house = make_house(open_folder)
    source = write(open_folder / "source", {"shut/file": "old", "shut/deep/file": "old"})
    for folder in ("shut/deep", "shut"):
        (source / folder).chmod(0o500)
    first = house.back_up(source)
    (source / "shut" / "deep" / "file").write_text("new")
    (source / "shut" / "deep" / "more").write_text("new")
    second = house.back_up(source)
    shared(open_folder)
    elsewhere(restore_elsewhere, open_folder, first.snapshot.root, uid=NOBODY)
    assert elsewhere(restore_elsewhere, open_folder, second.snapshot.root, uid=NOBODY)[0] == {}
    assert (
        differences(
            source, house.restored, but=["owner"], of=[b"shut", b"shut/deep/file", b"shut/deep/more", b"shut/deep"]
        )
        == []
    )
