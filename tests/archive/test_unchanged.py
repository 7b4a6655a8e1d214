"""How a backup knows what has not changed, and what it does when storage has lost what it counts on."""

from __future__ import annotations

import os
import secrets
import subprocess
import time

import pytest

from holdfast.archive import backup
from holdfast.archive.targets import TICK_NS
from holdfast.errors import KeyCannotRead
from tests.archive.making import SECOND, reasons
from tests.support.trees import KIB, MIB, contents, everything, noise, sparse, write


@pytest.fixture
def source(house):
    return write(house.folder / "source", {"a": "one", "b": "two", "c/d": "three", "large": noise(3 * MIB)})


def counts(report):
    totals = report.snapshot.totals
    return totals.files_new, totals.files_changed, totals.files_unmodified


def test_an_unchanged_tree_is_not_read_and_has_the_same_pages(house, source):
    first, second = house.back_up(source), house.back_up(source)
    assert (counts(first), counts(second)) == ((4, 0, 0), (0, 0, 4))
    assert second.snapshot.totals.bytes_read == 0
    assert second.snapshot.totals.bytes_total == first.snapshot.totals.bytes_total
    assert second.snapshot.root == first.snapshot.root
    assert second.snapshot.parent == first.snapshot_id


def test_only_what_changed_is_read(house, source):
    house.back_up(source)
    (source / "a").write_text("One")
    (source / "new").write_text("new")
    (source / "b").unlink()
    report = house.back_up(source)
    assert counts(report) == (1, 1, 2)
    assert report.snapshot.totals.bytes_read == 6
    house.restore(report)
    assert contents(house.restored) == contents(source)


def test_a_file_of_the_same_size_and_time_is_known_to_have_changed_by_its_ctime(house, source):
    house.back_up(source)
    times = (source / "a").stat()
    time.sleep(0.02)
    (source / "a").write_text("ONE")
    os.utime(source / "a", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert counts(house.back_up(source)) == (0, 1, 3)


def test_a_file_put_in_the_place_of_another_is_known_to_be_another(house, source):
    house.back_up(source)
    os.rename(source / "a", source / "kept")
    os.rename(source / "b", source / "a")
    report = house.back_up(source)
    house.restore(report)
    assert contents(house.restored)["a"] == "two"


def test_a_change_of_mode_owner_or_attributes_is_seen(house, source):
    house.back_up(source)
    (source / "a").chmod(0o600)
    os.setxattr(source / "b", "user.note", b"x")
    os.setxattr(source / "c", "user.note", b"on a folder")
    report = house.back_up(source)
    assert counts(report) == (0, 2, 2)
    tree = house.tree(report)
    assert (tree.find(b"a").mode, tree.find(b"b").xattrs) == (0o600, {b"user.note": b"x"})
    assert tree.find(b"c").xattrs == {b"user.note": b"on a folder"}


def test_a_file_made_within_the_clocks_tick_is_read_again_once(house, source):
    time.sleep(0.05)
    (source / "a").write_text("now")
    house.clock.stands_ns = (source / "a").stat().st_ctime_ns + TICK_NS // 10
    house.back_up(source)
    house.clock.stands_ns += SECOND
    assert counts(house.back_up(source)) == (0, 1, 3)
    assert counts(house.back_up(source)) == (0, 0, 4)


def test_a_file_changed_within_the_tick_after_it_was_read_is_not_missed(house, source, monkeypatch):
    """The worst case: the same size, and a file system whose clock did not move between reading and writing."""
    house.back_up(source)
    (source / "a").write_text("ONE")
    house.clock.stands_ns = (source / "a").stat().st_ctime_ns
    read = backup._Pass._file

    def ticks_slowly(self, folder, name, st, needing):
        read(self, folder, name, st, needing)
        if name == b"a":
            (source / "a").write_text("now")
            os.utime(source / "a", ns=(0, st.st_mtime_ns))

    with monkeypatch.context() as patch:
        patch.setattr(backup._Pass, "_file", ticks_slowly)
        house.back_up(source)
    house.clock.stands_ns = None
    house.restore(house.back_up(source))
    assert contents(house.restored)["a"] == "now"


def test_force_reads_everything_and_stores_nothing_twice(house, source):
    first = house.back_up(source)
    report = house.back_up(source, force=True)
    assert counts(report) == (0, 4, 0)
    assert report.snapshot.totals.bytes_read == first.snapshot.totals.bytes_total
    assert report.snapshot.root == first.snapshot.root


def test_a_parent_can_be_chosen(house, source):
    first = house.back_up(source)
    (source / "a").write_text("changed")
    house.back_up(source)
    report = house.back_up(source, parent=first.snapshot_id[:8])
    assert (report.snapshot.parent, counts(report)) == (first.snapshot_id, (0, 1, 3))


def test_another_host_or_other_paths_have_parents_of_their_own(house, source):
    house.back_up(source)
    assert counts(house.back_up(source, host="another")) == (4, 0, 0)
    assert counts(house.back_up(source / "c")) == (1, 0, 0)
    assert counts(house.back_up(source)) == (0, 0, 4)


# -- storage that lost something ---------------------------------------------------------------------------------------


@pytest.fixture
def full_of_everything(house):
    return everything(house.folder / "source")


def test_a_backup_heals_a_repository_that_lost_all_its_content(house, full_of_everything):
    house.back_up(full_of_everything)
    for pack in house.packs():
        house.path_of(pack).unlink()
    report = house.back_up(full_of_everything)
    assert report.snapshot.totals.files_unmodified <= 3  # those without content
    assert reasons(house.restore(report, verify=True)) == {}


def test_each_pack_that_is_lost_is_healed_by_the_next_backup(fine):
    source = fine.folder / "source"
    write(source, {f"small {i}": noise(20 * KIB, i) for i in range(50)} | {"large": noise(6 * MIB), "empty": ""})
    sparse(source / "sparse", 30 * MIB, [(20 * MIB, noise(3 * MIB, "sparse"))])
    first = fine.back_up(source)
    for number, pack in enumerate(sorted(fine.packs())):
        fine.path_of(pack).unlink()
        report = fine.back_up(source)
        target = fine.folder / f"restored {number}"
        assert reasons(fine.restore(report, target, verify=True)) == {}
        assert reasons(fine.restore(first, target, verify=True)) == {}, "the older snapshot is healed too"
    assert number >= 1


def test_a_pack_that_shrank_counts_as_lost(house, source):
    house.back_up(source)
    largest = max(house.packs(), key=house.packs().__getitem__)
    os.truncate(house.path_of(largest), 1000)
    house.restore(house.back_up(source), verify=True)
    assert contents(house.restored) == contents(source)


def test_a_long_list_whose_own_chunks_are_gone_is_read_again(fine):
    for attempt in range(30):  # where a list is cut depends on the repository's key: two of three are one piece
        source = write(fine.folder / f"source {attempt}", {"large": secrets.token_bytes(3 * MIB // 2)})
        report = fine.back_up(source)
        entry = fine.tree(report).find(b"large")
        if (entry.depth, len(entry.content)) == (1, 24):
            break
    assert (entry.depth, len(entry.content)) == (1, 24), "one piece of a list: it looks like one chunk"
    lists_pack = f"data/{pack_of(fine, entry.content)}"
    for pack in fine.packs():
        if pack != lists_pack:
            fine.path_of(pack).unlink()
    report = fine.back_up(source)
    assert counts(report) == (0, 1, 0)
    assert reasons(fine.restore(report, verify=True)) == {}


def pack_of(house, chunk_id):
    reader = house.repo.reader()
    return reader._index.packs[reader.locate(chunk_id).pack].name.hex()


# -- a key that cannot read --------------------------------------------------------------------------------------------


@pytest.fixture
def blind(house):
    return house.write_only()


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "last"


def test_a_key_that_cannot_read_knows_its_own_last_snapshot(house, blind, source, memory):
    first = blind.back_up(source, remembered=str(memory))
    second = blind.back_up(source, remembered=str(memory))
    assert (counts(first), counts(second)) == ((4, 0, 0), (0, 0, 4))
    assert second.snapshot.totals.bytes_read == 0
    assert second.snapshot.root == first.snapshot.root
    assert (memory.stat().st_mode & 0o777, memory.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert os.listdir(memory.parent) == ["last"]
    house.restore(second)
    assert contents(house.restored) == contents(source)


def test_what_is_remembered_can_be_damaged_anywhere_and_is_never_believed(house, blind, source, memory):
    blind.back_up(source, remembered=str(memory))
    good = memory.read_bytes()
    for at in range(0, len(good), 29):
        memory.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        report = blind.back_up(source, remembered=str(memory))
        assert [e.mode for e in house.tree(report).directory(b"")] == [0o644, 0o644, 0o755, 0o644], at
    last = blind.back_up(source, remembered=str(memory))
    assert counts(last) == (0, 0, 4)


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 40, 100, -1])
def test_what_is_remembered_can_be_cut_off(blind, source, memory, cut):
    blind.back_up(source, remembered=str(memory))
    memory.write_bytes(memory.read_bytes()[:cut])
    report = blind.back_up(source, remembered=str(memory))
    assert sum(counts(report)) == 4
    assert counts(blind.back_up(source, remembered=str(memory))) == (0, 0, 4)


def test_what_another_key_remembers_is_not_believed(house, blind, source, memory, tmp_path):
    from tests.archive.making import make_house

    blind.back_up(source, remembered=str(memory))
    other = make_house(tmp_path / "other").write_only()
    assert counts(other.back_up(source, remembered=str(memory))) == (4, 0, 0)


def test_a_key_that_cannot_read_remembers_the_lists_of_large_files(fine, memory):
    blind = fine.write_only()
    source = write(fine.folder / "source", {"large": noise(6 * MIB), "small": "x"})
    blind.back_up(source, remembered=str(memory))
    for _ in range(2):
        (source / "small").write_text((source / "small").read_text() + "x")
        report = blind.back_up(source, remembered=str(memory))
        assert counts(report) == (0, 1, 1)
    content = next(iter(fine.tree(report).directory(b"")))
    lists_pack = f"data/{pack_of(fine, content.content[:24])}"
    for pack in fine.packs():
        if pack != lists_pack:
            fine.path_of(pack).unlink()
    report = blind.back_up(source, remembered=str(memory))
    assert counts(report) == (0, 2, 0), "that its list is there is not enough"
    assert reasons(fine.restore(report, verify=True)) == {}


def test_a_memory_that_cannot_be_written_is_no_reason_not_to_back_up(blind, source, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    report = blind.back_up(source, remembered=str(tmp_path / "cache" / "last"))
    assert (reasons(report), counts(report)) == ({}, (4, 0, 0))


@pytest.mark.needs_root
def test_a_full_disk_for_the_memory_is_no_reason_not_to_back_up(blind, source, mounts, tmp_path):
    cache = mounts.tmpfs(tmp_path / "cache", "size=4k")
    write(source, {f"{i}": "x" for i in range(500)})
    report = blind.back_up(source, remembered=str(cache / "last"))
    assert (reasons(report), counts(report)) == ({}, (504, 0, 0))
    assert os.listdir(cache) == []


def test_a_key_that_cannot_read_cannot_choose_a_parent(blind, source, memory):
    report = blind.back_up(source, remembered=str(memory))
    with pytest.raises(KeyCannotRead):
        blind.back_up(source, remembered=str(memory), parent=report.snapshot_id)


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_a_clock_set_back_keeps_the_order_of_snapshots_and_misses_nothing(house, source):
    first = house.back_up(source)
    house.clock.ahead_ns = -3600 * SECOND
    (source / "a").write_text("ONE")
    second = house.back_up(source)
    assert second.snapshot.time_ns > first.snapshot.time_ns
    assert house.repo.snapshots()[-1].id == second.snapshot_id
    (source / "a").write_text("EIN")
    house.restore(house.back_up(source))
    assert contents(house.restored)["a"] == "EIN"


def test_a_clock_far_ahead_and_then_right_again_misses_nothing(house, source):
    house.clock.ahead_ns = 365 * 86400 * SECOND
    house.back_up(source)
    house.clock.ahead_ns = 0
    (source / "a").write_text("ONE")
    house.restore(house.back_up(source))
    assert contents(house.restored)["a"] == "ONE"


@pytest.mark.needs_root
def test_a_file_system_remade_with_the_same_numbers_is_read_anew(house, mounts):
    source = mounts.tmpfs(house.folder / "source")
    write(source, {"a": "one"})
    house.back_up(source)
    subprocess.run(["umount", source], check=True)
    mounts.made.remove(source)
    write(mounts.tmpfs(source), {"a": "two"})
    house.restore(house.back_up(source))
    assert contents(house.restored) == {"a": "two"}
