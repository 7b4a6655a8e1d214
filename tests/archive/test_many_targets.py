"""One backup into several repositories: everything is read once, and each repository stands or fails alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.archive import backup, files
from holdfast.archive.exclude import Excludes
from holdfast.errors import InterruptedByUser, SnapshotMissing, StorageUnavailable, UsageError
from holdfast.storage.local import LocalStorage
from tests.archive.making import FINE, House, make_house
from tests.support.storages import Misbehaving, does, fails
from tests.support.trees import KIB, MIB, contents, differences, everything, noise, sparse, write

BOTH = {0: "the first", 1: "the second"}


@pytest.fixture
def houses(tmp_path):
    """Two repositories; trees are made in the folder of both."""
    return [replace(make_house(tmp_path / name), folder=tmp_path) for name in ("a", "b")]


@pytest.fixture
def source(tmp_path):
    return write(
        tmp_path / "source", {"one": "1", "two": "22", "folder/three": "333", "large": noise(3 * MIB), "empty": ""}
    )


def back_up(houses, *paths, progress=None, **options):
    """What became of each; ``options`` may hold a list of ``remembered``, one for each."""
    remembered = options.pop("remembered", [""] * len(houses))
    request = backup.Request(paths=tuple(os.fsencode(p) for p in paths), **options)
    aims = [(h.repo, replace(request, remembered=r)) for h, r in zip(houses, remembered, strict=True)]
    return backup.back_up_to(aims, progress)


def good(outcomes):
    """The reports of those that all went well."""
    assert [o.failure for o in outcomes] == [None] * len(outcomes)
    return [o.report for o in outcomes]


def with_plan(house: House, *plan) -> House:
    """The same repository on a storage that misbehaves."""
    return replace(house, repo=replace(house.repo, storage=Misbehaving(house.repo.storage, plan)))


def counts(report):
    totals = report.snapshot.totals
    return totals.files_new, totals.files_changed, totals.files_unmodified


def demand_equal(houses, outcomes, source):
    """Each snapshot is whole: it restores, every byte verified, to what the source is."""
    for house, report in zip(houses, good(outcomes), strict=True):
        done = house.restore(report, delete=True, verify=True)
        assert done.troubles == []
        assert differences(source, house.restored) == []


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that were opened to be read."""
    names = []
    really = os.open

    def note(path, flags, *args, **options):
        if isinstance(path, bytes) and options.get("dir_fd") is not None and not flags & (os.O_DIRECTORY | os.O_PATH):
            names.append(os.fsdecode(path))
        return really(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", note)
    return names


# -- what each gets ----------------------------------------------------------------------------------------------------


@pytest.mark.needs_root
def test_every_repository_gets_everything_a_tree_holds(houses):
    source = everything(houses[0].folder / "source")
    demand_equal(houses, back_up(houses, source), source)
    again = back_up(houses, source)
    assert [r.snapshot.totals.bytes_read for r in good(again)] == [0, 0]
    demand_equal(houses, again, source)


def test_each_file_is_opened_once(houses, source, opened):
    reports = good(back_up(houses, source))
    assert sorted(opened) == ["empty", "large", "one", "three", "two"]
    assert [counts(r) for r in reports] == [(5, 0, 0)] * 2
    assert [r.snapshot.totals.bytes_read for r in reports] == [3 * MIB + 6] * 2


def test_a_second_run_opens_nothing(houses, source, opened):
    first = good(back_up(houses, source))
    opened.clear()
    second = good(back_up(houses, source))
    assert opened == []
    assert [counts(r) for r in second] == [(0, 0, 5)] * 2
    assert [r.snapshot.root for r in second] == [r.snapshot.root for r in first]
    assert [r.snapshot.parent for r in second] == [r.snapshot_id for r in first]
    assert [r.snapshot.totals.bytes_stored for r in second] == [0, 0]


def test_a_backup_into_several_is_the_one_that_each_would_have_made_alone(houses, source, tmp_path):
    alone = replace(houses[0], repo=make_house(tmp_path / "alone").repo)
    mine = alone.back_up(source).snapshot
    for report in good(back_up(houses, source)):
        theirs = report.snapshot
        totals = replace_totals(theirs.totals), replace_totals(mine.totals)
        assert totals[0] == totals[1]
        assert (theirs.base, theirs.paths, theirs.host) == (mine.base, mine.paths, mine.host)


def replace_totals(totals):
    facts = {f: getattr(totals, f) for f in totals.__struct_fields__}
    return {f: v for f, v in facts.items() if f not in ("seconds", "bytes_stored")}


def test_five_repositories(tmp_path, source, opened):
    houses = [replace(make_house(tmp_path / str(i)), folder=tmp_path) for i in range(5)]
    outcomes = back_up(houses, source)
    assert len(opened) == 5
    demand_equal(houses, outcomes, source)


def test_what_one_of_them_missed_is_read_for_it_alone(houses, source, opened):
    good(back_up(houses, source))
    (source / "two").write_text("changed")
    write(source, {"new": "something"})
    houses[0].back_up(source)
    opened.clear()
    outcomes = back_up(houses, source)
    assert sorted(opened) == ["new", "two"]
    assert [counts(r) for r in good(outcomes)] == [(0, 0, 6), (1, 1, 4)]
    assert [r.snapshot.totals.bytes_read for r in good(outcomes)] == [0, 16]
    demand_equal(houses, outcomes, source)


@pytest.mark.parametrize("known", [0, 1], ids=BOTH.get)
def test_a_new_repository_beside_one_that_knows_everything(houses, source, opened, known):
    first = houses[known].back_up(source)
    opened.clear()
    outcomes = back_up(houses, source)
    assert len(opened) == 5
    demand_equal(houses, outcomes, source)
    reports = good(outcomes)
    assert (counts(reports[known]), counts(reports[1 - known])) == ((0, 0, 5), (5, 0, 0))
    assert reports[known].snapshot.root == first.snapshot.root
    assert reports[known].snapshot.totals.bytes_stored == 0


def test_each_needs_something_else(houses, source, opened):
    good(back_up(houses, source))
    (source / "one").write_text("for the first")
    houses[1].back_up(source)
    (source / "two").write_text("for both")
    (source / "folder" / "three").unlink()
    os.symlink("one", source / "folder" / "three")
    opened.clear()
    outcomes = back_up(houses, source)
    assert sorted(opened) == ["one", "two"]
    demand_equal(houses, outcomes, source)
    assert [counts(r) for r in good(outcomes)] == [(0, 2, 2), (0, 1, 3)]


def test_force_reads_everything_once_and_stores_nothing_again(houses, source, opened):
    good(back_up(houses, source))
    opened.clear()
    reports = good(back_up(houses, source, force=True))
    assert len(opened) == 5
    assert [counts(r) for r in reports] == [(0, 5, 0)] * 2
    assert [r.snapshot.totals.bytes_stored for r in reports] == [0, 0]


def test_chunks_that_only_one_of_them_lost_are_read_again_for_it(houses, source):
    good(back_up(houses, source))
    packs = houses[1].packs()
    houses[1].repo.storage.delete(max(packs, key=packs.get))  # that of the content, not of the pages
    outcomes = back_up(houses, source)
    assert [counts(r)[2] for r in good(outcomes)] == [5, 1]  # the empty one needs no chunk
    demand_equal(houses, outcomes, source)


def test_large_sparse_and_tied_files(tmp_path, opened):
    houses = [replace(make_house(tmp_path / name, FINE), folder=tmp_path) for name in ("a", "b")]
    source = write(tmp_path / "source", {"large": noise(20 * MIB), "a": noise(MIB), "z": noise(MIB + 1)})
    sparse(source / "sparse", 30 * MIB, [(5 * MIB, noise(MIB)), (20 * MIB, noise(3 * MIB))])
    sparse(source / "small and sparse", 512 * KIB, [(256 * KIB, noise(8 * KIB))])
    os.link(source / "large", source / "tied")
    outcomes = back_up(houses, source)
    assert len(opened) == 6
    demand_equal(houses, outcomes, source)
    second = back_up(houses, source)
    assert [counts(r) for r in good(second)] == [(0, 0, 6)] * 2


def test_many_blocks_of_small_files_are_the_same_in_both(houses, tmp_path):
    """The first one's block is closed, and used again, while the second one copies from it."""
    source = write(tmp_path / "source", {f"{i:04}": noise(40 * KIB + i, i) for i in range(1500)})
    demand_equal(houses, back_up(houses, source), source)


def test_equal_files_are_stored_once_in_each(houses, tmp_path):
    source = write(tmp_path / "source", {f"{i}": noise(MIB) for i in range(9)})
    outcomes = back_up(houses, source)
    assert all(r.snapshot.totals.bytes_stored < 2 * MIB for r in good(outcomes))
    demand_equal(houses, outcomes, source)


def test_a_file_that_grows_while_it_is_read_is_the_same_in_both(houses):
    outcomes = back_up(houses, "/proc/self/mounts")
    for house, report in zip(houses, good(outcomes), strict=True):
        house.restore(report, delete=True)
        assert b"proc" in (house.restored / "mounts").read_bytes()
    assert len({r.snapshot.totals.bytes_total for r in good(outcomes)}) == 1


def test_a_key_that_cannot_read_beside_one_that_can(houses, source, opened, tmp_path):
    mixed = [houses[0].write_only(), houses[1]]
    remembered = [str(tmp_path / "cache" / "last"), ""]
    good(back_up(mixed, source, remembered=remembered))
    opened.clear()
    outcomes = back_up(mixed, source, remembered=remembered)
    assert opened == []
    assert [counts(r) for r in good(outcomes)] == [(0, 0, 5)] * 2
    demand_equal(houses, outcomes, source)


# -- what is walked ----------------------------------------------------------------------------------------------------


def test_the_folders_of_all_of_them_are_left_out(houses, tmp_path):
    write(tmp_path, {"file": "content", "elsewhere/config": "x"})
    outcomes = back_up(houses, tmp_path, left_out=(str(tmp_path / "elsewhere"), "s3:nowhere"))
    assert [h.names(r) for h, r in zip(houses, good(outcomes), strict=True)] == [["file"]] * 2


def test_excluded_files_are_in_none_of_them(houses, source):
    outcomes = back_up(houses, source, excludes=Excludes(("/large",), larger_than=2))
    expected = ["empty", "one", "two"]
    assert [h.names(r) for h, r in zip(houses, good(outcomes), strict=True)] == [expected] * 2


def test_a_path_that_is_not_there_is_an_error_of_all(houses, source):
    with pytest.raises(UsageError, match="does not exist"):
        back_up(houses, source / "nothing")


def test_a_parent_that_one_of_them_has_is_compared_with_there(houses, source):
    first = good(back_up(houses, source))
    (source / "one").write_text("changed")
    good(back_up(houses, source))
    outcomes = back_up(houses, source, parent=first[0].snapshot_id)
    assert [counts(r) for r in good(outcomes)] == [(0, 1, 4), (0, 0, 5)]
    demand_equal(houses, outcomes, source)


def test_a_parent_that_none_of_them_has_is_an_error(houses, source):
    good(back_up(houses, source))
    outcomes = back_up(houses, source, parent="0123456789abcdef")
    assert [type(o.failure) for o in outcomes] == [SnapshotMissing] * 2
    assert [o.report for o in outcomes] == [None] * 2


def test_repositories_that_cut_differently_are_refused_by_name(tmp_path, source):
    houses = [make_house(tmp_path / "a"), make_house(tmp_path / "b", FINE)]
    with pytest.raises(UsageError, match="cut files in different ways") as caught:
        back_up(houses, source)
    assert all(h.repo.storage.place in str(caught.value) for h in houses)


def test_one_repository_named_twice_is_refused(houses, source, tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        back_up([houses[0], houses[1], houses[0]], source)


def test_two_copies_of_one_repository_are_two_repositories(houses, source, tmp_path):
    houses[0].back_up(source)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    copy = replace(houses[0], repo=replace(houses[0].repo, storage=LocalStorage(tmp_path / "copy" / "repository")))
    write(source, {"new": "something"})
    demand_equal([houses[0], copy], back_up([houses[0], copy], source), source)


def test_trouble_with_a_file_is_of_those_that_need_it(houses, source, monkeypatch):
    houses[0].back_up(source)
    really = files.FileReader._open

    def refuse(self, folder, name, listed):
        if name == b"two":
            raise PermissionError(13, "Permission denied")
        return really(self, folder, name, listed)

    monkeypatch.setattr(files.FileReader, "_open", refuse)
    progress = backup.Progress()
    reports = good(back_up(houses, source, progress=progress))
    assert [[(t.path, t.reason) for t in r.troubles] for r in reports] == [[], [(b"two", "Permission denied")]]
    assert [r.snapshot.totals.errors for r in reports] == [0, 1]
    assert len(progress.troubles) == 1
    assert [h.names(r) for h, r in zip(houses, reports, strict=True)][1] == ["empty", "folder/three", "large", "one"]


# -- one of them fails -------------------------------------------------------------------------------------------------

FAULTS = {
    "its lease": fails("put", folder="locks"),
    "its index": fails("list", folder="index", times=None),
    "the first pack": fails("put", folder="data", times=None),
    "the second pack": fails("put", 2, folder="data", times=None),
    "its own index object": fails("put", folder="index"),
    "looking for its packs": fails("stat", folder="data", times=None),
    "its snapshot": fails("put", folder="snapshots"),
    "the last look": fails("list", 3, folder="locks", times=None),
}


@pytest.fixture
def much(tmp_path):
    """More than a pack's worth of small files and of large ones."""
    small = {f"small/{i:03}": noise(30 * KIB, i) for i in range(800)}
    return write(tmp_path / "source", small | {f"large {i:02}": noise(4 * MIB, i) for i in range(10)})


@pytest.mark.parametrize("bad", [0, 1], ids=BOTH.get)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_one_that_fails_is_the_only_one_to_fail_and_catches_up(houses, much, fault, bad, opened):
    planned = list(houses)
    planned[bad] = with_plan(houses[bad], fault)
    outcomes = back_up(planned, much)
    assert isinstance(outcomes[bad].failure, StorageUnavailable)
    assert "as planned" in str(outcomes[bad].failure)
    assert (outcomes[bad].report, outcomes[bad].place) == (None, houses[bad].repo.storage.place)
    assert len(opened) == 810
    demand_equal([houses[1 - bad]], [outcomes[1 - bad]], much)
    opened.clear()
    after = back_up(houses, much)
    assert len(opened) in (0, 810)  # a snapshot that was put before the last look counts
    assert counts(good(after)[1 - bad]) == (0, 0, 810)
    demand_equal(houses, after, much)


@pytest.mark.parametrize("bad", [0, 1], ids=BOTH.get)
def test_one_that_fails_among_small_files_costs_the_others_none_of_them(houses, tmp_path, bad, opened):
    """The first one's block is what small files are read into: then it is the other's."""
    source = write(tmp_path / "source", {f"{i:04}": noise(50 * KIB, i) for i in range(1200)})
    planned = list(houses)
    planned[bad] = with_plan(houses[bad], FAULTS["the first pack"])
    outcomes = back_up(planned, source)
    assert outcomes[bad].failure
    assert len(opened) == 1200
    demand_equal([houses[1 - bad]], [outcomes[1 - bad]], source)


def test_what_one_that_failed_has_stored_is_not_stored_again(houses, much):
    planned = [with_plan(houses[0], fails("put", 3, folder="data", times=None)), houses[1]]
    back_up(planned, much)
    before = sum(houses[0].packs().values())
    assert before > 15 * MIB
    report = good(back_up(houses, much))[0]
    assert report.snapshot.totals.bytes_stored < 64 * MIB - before


@pytest.mark.parametrize("folder", ["locks", "data", "snapshots"])
def test_all_of_them_may_fail_each_of_its_own(houses, source, folder):
    planned = [with_plan(houses[0], fails("put", folder=folder, times=None)), with_plan(houses[1], FAULTS["its index"])]
    outcomes = back_up(planned, source)
    for outcome, house in zip(outcomes, houses, strict=True):
        assert house.repo.storage.place in str(outcome.failure)
        assert (outcome.report, house.repo.snapshots()) == (None, [])


def test_when_all_have_failed_nothing_more_is_read(houses, tmp_path, opened):
    source = write(tmp_path / "source", {f"{i:03}": noise(4 * MIB, i) for i in range(40)})
    planned = [with_plan(h, fails("put", folder="data", times=None)) for h in houses]
    back_up(planned, source)
    assert 5 < len(opened) < 40


def test_one_that_fails_while_only_it_needs_a_file_does_not_end_the_others(houses, much):
    houses[1].back_up(much)
    write(much, {"zzz": "for both"})
    outcomes = back_up([with_plan(houses[0], FAULTS["the first pack"]), houses[1]], much)
    assert outcomes[0].failure
    assert counts(good(outcomes[1:])[0]) == (1, 0, 810)
    demand_equal(houses[1:], outcomes[1:], much)


def test_a_failure_leaves_no_lease_no_thread_and_no_open_file(houses, much):
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    back_up([houses[0], with_plan(houses[1], FAULTS["the second pack"])], much)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    end = time.monotonic() + 30
    while threading.active_count() > threads and time.monotonic() < end:  # those of the leases may take a moment
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert [[*h.repo.storage.list("locks")] for h in houses] == [[], []]


def test_progress_goes_on_with_those_that_are_left(houses, much):
    progress = backup.Progress()
    outcomes = back_up([with_plan(houses[0], FAULTS["the first pack"]), houses[1]], much, progress=progress)
    assert progress.totals is outcomes[1].report.snapshot.totals
    back_up([with_plan(houses[0], FAULTS["its lease"]), houses[1]], much, progress=progress)
    assert (progress.expected_files, progress.expected_bytes) == (810, outcomes[1].report.snapshot.totals.bytes_total)


@pytest.mark.parametrize("bad", [0, 1], ids=BOTH.get)
def test_one_whose_packs_vanish_meanwhile_is_tried_again_alone(houses, much, bad):
    real = houses[bad].repo.storage

    def lose():
        for info in [*real.list("data")]:
            real.delete(info.name)

    planned = list(houses)
    planned[bad] = with_plan(houses[bad], does("put", lose, folder="snapshots"))
    outcomes = back_up(planned, much)
    demand_equal(houses, outcomes, much)
    assert [[s.id for s in h.repo.snapshots()] for h in houses] == [[r.snapshot_id] for r in good(outcomes)]


def test_one_whose_packs_keep_vanishing_fails(houses, source):
    real = houses[1].repo.storage

    def lose():
        for info in [*real.list("data")]:
            real.delete(info.name)

    plan = [does("put", lose, nth, folder="snapshots") for nth in range(1, 9)]
    outcomes = back_up([houses[0], with_plan(houses[1], *plan)], source)
    assert "keep vanishing" in str(outcomes[1].failure)
    assert houses[1].repo.snapshots() == []
    demand_equal(houses[:1], outcomes[:1], source)


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_what_was_read_before_ctrl_c_is_stored_in_all_of_them(houses, much, monkeypatch):
    really = files.FileReader._content

    def content(self, fd, st, path):
        if path[1] == b"large 09":
            signal.raise_signal(signal.SIGINT)
        return really(self, fd, st, path)

    with monkeypatch.context() as patch:
        patch.setattr(files.FileReader, "_content", content)
        with pytest.raises(InterruptedByUser):
            back_up(houses, much)
    before = [sum(h.packs().values()) for h in houses]
    assert min(before) > 36 * MIB
    outcomes = back_up(houses, much)
    for report, stored in zip(good(outcomes), before, strict=True):
        assert report.snapshot.totals.bytes_stored < 65 * MIB - stored
    demand_equal(houses, outcomes, much)


def test_ctrl_c_after_one_has_failed_makes_the_other_durable(houses, much, monkeypatch):
    really = files.FileReader._content

    def content(self, fd, st, path):
        if path[1] == b"799":
            raise KeyboardInterrupt
        return really(self, fd, st, path)

    monkeypatch.setattr(files.FileReader, "_content", content)
    with pytest.raises(InterruptedByUser):
        back_up([with_plan(houses[0], FAULTS["the first pack"]), houses[1]], much)
    assert sum(houses[1].packs().values()) > 60 * MIB


# -- a dry run, and standard input -------------------------------------------------------------------------------------


def test_a_dry_run_says_what_each_would_store_and_stores_nothing(houses, source):
    houses[0].back_up(source)
    before = [contents(Path(h.repo.storage.place)) for h in houses]
    reports = good(back_up(houses, source, dry_run=True))
    assert [counts(r) for r in reports] == [(0, 0, 5), (5, 0, 0)]
    assert [r.snapshot_id for r in reports] == ["", ""]
    assert [contents(Path(h.repo.storage.place)) for h in houses] == before


def stream(houses, data, name=b"dump.sql", **options):
    reading, sending = os.pipe()

    def send():
        with contextlib.suppress(BrokenPipeError), open(sending, "wb", buffering=0) as f:  # nobody may read to the end
            f.write(data)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        aims = [(h.repo, backup.Request(paths=(), **options)) for h in houses]
        return backup.back_up_stream_to(aims, name, reading)
    finally:
        os.close(reading)
        thread.join()


@pytest.mark.parametrize("size", [0, 1, MIB, 20 * MIB])
def test_a_stream_is_read_once_into_all_of_them(houses, size):
    outcomes = stream(houses, noise(size), tags=("nightly",))
    for house, report in zip(houses, good(outcomes), strict=True):
        house.restore(report, delete=True)
        assert (house.restored / "dump.sql").read_bytes() == noise(size)
        assert (report.snapshot.paths, report.snapshot.tags) == ([b"/dump.sql"], ["nightly"])
        assert (report.snapshot.totals.bytes_read, counts(report)) == (size, (1, 0, 0))


@pytest.mark.parametrize("bad", [0, 1], ids=BOTH.get)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_stream_goes_on_without_one_that_fails(houses, fault, bad):
    if fault is FAULTS["the second pack"]:
        fault = fails("put", 3, folder="data", times=None)
    planned = list(houses)
    planned[bad] = with_plan(houses[bad], fault)
    outcomes = stream(planned, noise(60 * MIB))
    assert isinstance(outcomes[bad].failure, StorageUnavailable)
    (report,) = good([outcomes[1 - bad]])
    houses[1 - bad].restore(report)
    assert (houses[1 - bad].restored / "dump.sql").read_bytes() == noise(60 * MIB)


def test_a_stream_that_all_fail_to_take(houses):
    outcomes = stream([with_plan(h, FAULTS["its lease"]) for h in houses], b"x")
    assert all(isinstance(o.failure, StorageUnavailable) and o.report is None for o in outcomes)


def test_a_dry_run_of_a_stream_stores_nothing_anywhere(houses):
    assert [r.snapshot_id for r in good(stream(houses, noise(3 * MIB), dry_run=True))] == ["", ""]
    assert [h.packs() for h in houses] == [{}, {}]
