"""Snapshots made to do harm, and people who plant and swap things in the target: nothing is ever written outside it,
what is refused is named, and the rest is restored.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from holdfast.archive import clearing, comparing, placing, writing
from holdfast.archive.beneath import _walk, open_beneath
from holdfast.repository.contents import hole
from holdfast.repository.format import Child, Entry, Leaf, Node
from holdfast.repository.pages import _encode
from holdfast.repository.writer import LARGE, TREE
from tests.archive.making import NOBODY, SECOND, make_house, reasons
from tests.support.storages import MemoryStorage
from tests.support.trees import MIB, contents, facts, noise, write

NAME = "is not one a file may have"


@pytest.fixture
def house(tmp_path):
    """What matters here is the target's disk, not the repository's."""
    return make_house(tmp_path, storage=MemoryStorage())


@pytest.fixture
def chunk(house):
    """The id of a chunk of 4 bytes in the repository."""
    with house.repo.writing() as session:
        chunk = session.writer.add(LARGE, b"evil")
        session.writer.flush()
        return chunk


@pytest.fixture
def file(chunk):
    """A file's entry, good but for what is given."""

    def make(name, **facts):
        facts = {"size": 4, "content": chunk, **facts}
        return Entry(name, facts.pop("kind", "f"), 0o644, os.geteuid(), os.getegid(), SECOND, 0, 0, **facts)

    return make


def folder(name, mode=0o755):
    return Entry(name, "d", mode, os.geteuid(), os.getegid(), SECOND, 0, 0)


def link(name, target, **facts):
    return Entry(name, "l", 0o777, os.geteuid(), os.getegid(), SECOND, 0, 0, target=target, **facts)


@pytest.fixture
def outside(house, monkeypatch):
    """What lies around the target, and must be the same after a test as before it."""
    around = write(house.folder / "around", {"etc/passwd": "root", "home/file": "precious", "empty/": ""})
    before = facts(around)
    house.folder = around / "target" / "deep"
    house.folder.mkdir(parents=True)
    yield around
    after = {path: found for path, found in facts(around).items() if not path.startswith(b"target")}
    del after[b""], before[b""]
    assert after == before
    assert not Path("/evil").exists()


def assert_restored_but_for(house, runs, expected, refused, **options):
    """The restore names exactly what was refused, and restores the rest."""
    done = house.restore(house.store_pages(*runs), **options)
    found = reasons(done)
    if options.get("delete") and refused:
        assert found.pop("") == "nothing is deleted, because not all of the snapshot could be read"
    assert found.keys() == refused.keys()
    for path, reason in refused.items():
        assert reason in found[path]
    assert contents(house.restored) == expected


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = [b"..", b".", b"../evil", b"/evil", b"a/b", b"a\0b", b"\0", b"../../home/file", b"n" * 256, b"a/", b"/"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["f", "d", "l"])
@pytest.mark.parametrize("delete", [False, True])
def test_names_that_lead_elsewhere_are_refused(house, outside, file, name, kind, delete):
    bad = {"f": file, "d": folder, "l": lambda n: link(n, b"/etc")}[kind](name)
    runs = [(b"", [folder(b""), file(b"a"), bad, file(b"z")])]
    assert_restored_but_for(house, runs, {"a": "evil", "z": "evil"}, {os.fsdecode(name): NAME}, delete=delete)


def test_an_entry_without_a_name_is_the_base_and_nothing_else(house, outside, file):
    runs = [(b"", [folder(b""), folder(b"d")]), (b"d", [file(b""), file(b"z")])]
    assert_restored_but_for(house, runs, {"d/z": "evil"}, {"d/": NAME})
    assert_restored_but_for(house, [(b"", [file(b""), file(b"z")])], {"d/z": "evil", "z": "evil"}, {})


DIRECTORIES = [b"..", b"../around", b"/etc", b"a//b", b"a/../..", b"./a", b"a/.", b"a/", b"/", b"a\0", b"../../home"]


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("delete", [False, True])
def test_directories_that_lead_elsewhere_are_refused(house, outside, file, directory, delete):
    runs = [(b"", [folder(b""), file(b"0")]), (directory, [file(b"evil"), folder(b"sub")])]
    done = house.restore(house.store_pages(*runs), delete=delete)
    assert reasons(done)[os.fsdecode(directory)].endswith(NAME)
    assert contents(house.restored) == {"0": "evil"}


def test_a_folder_asked_for_does_not_open_a_way_out(house, outside, file):
    runs = [(b"", [folder(b"")]), (b"..", [file(b"evil")]), (b"../..", [file(b"evil")]), (b"/etc", [file(b"evil")])]
    root = house.store_pages(*runs)
    for within in (b"..", b"../..", b"/etc", b"/"):
        house.restore(root, within=within, delete=True)
    assert contents(house.restored) == {}


# -- things tied together ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [True, False])
def test_a_link_that_is_also_a_folder_is_not_followed(house, outside, file, fresh):
    if not fresh:
        write(house.restored, {"other": "there"})
    away = os.fsencode(outside / "home")
    runs = [(b"", [folder(b""), link(b"x", away), folder(b"x"), file(b"z")]), (b"x", [file(b"file"), folder(b"d")])]
    done = house.restore(house.store_pages(*runs), delete=True)
    assert "twice" in reasons(done)["x"] or "link" in reasons(done)["x"]
    assert contents(house.restored) == {"x": f"->{outside}/home", "z": "evil"} | ({} if fresh else {"other": "there"})


def test_entries_below_a_link_or_a_file_are_not_restored_through_it(house, outside, file):
    away = os.fsencode(outside / "home")
    runs = [
        (b"", [folder(b""), file(b"f"), link(b"x", away), file(b"z")]),
        (b"f", [file(b"below")]),
        (b"x", [file(b"file"), link(b"more", b"/etc")]),
        (b"x/deep", [file(b"file")]),
    ]
    way = "a symbolic link stands in its way"
    refused = {"f": "File exists", "x": way, "x/deep": way}
    assert_restored_but_for(house, runs, {"f/below": "evil", "x": f"->{outside}/home", "z": "evil"}, refused)


@pytest.mark.parametrize("fresh", [True, False])
def test_of_two_entries_of_one_name_the_first_is_restored(house, outside, file, fresh):
    if not fresh:
        write(house.restored, {"x": "there"})
    entries = [folder(b""), file(b"x"), link(b"x", b"/etc/passwd"), file(b"x"), folder(b"x"), file(b"z")]
    assert_restored_but_for(house, [(b"", entries)], {"x": "evil", "z": "evil"}, {"x": "it stands twice"})


def test_entries_out_of_order_are_refused_and_named(house, outside, file):
    runs = [(b"", [folder(b""), file(b"b"), file(b"a"), folder(b"d"), folder(b"e")]), (b"e", [file(b"1")])]
    runs += [(b"d", [file(b"2")]), (b"", [file(b"c")]), (b"f", [file(b"3")])]
    refused = {"a": "out of order", "d": "out of order", "": "out of order"}
    assert_restored_but_for(house, runs, {"b": "evil", "e/1": "evil", "f/3": "evil"}, refused)


def test_a_link_and_a_file_of_one_identity_are_not_tied_together(house, outside, file):
    away = os.fsencode(outside / "home" / "file")
    entries = [folder(b""), link(b"a", away, links=(1, 2)), file(b"b", links=(1, 2)), file(b"c", links=(1, 2))]
    assert_restored_but_for(house, [(b"", entries)], {"a": f"->{away.decode()}", "b": "evil", "c": "evil"}, {})
    assert (house.restored / "b").samefile(house.restored / "c")


def test_hard_links_of_folders_are_folders(house, outside, file):
    one, other = folder(b"a"), folder(b"b")
    one.links = other.links = (1, 2)
    runs = [(b"", [folder(b""), one, other]), (b"b", [file(b"x")])]
    assert_restored_but_for(house, runs, {"b/x": "evil"}, {})
    assert (house.restored / "a").is_dir()


# -- numbers and contents ----------------------------------------------------------------------------------------------

WRONG: dict[str, list[int] | list[str]] = {
    "mode": [-1, 0o10000, 1 << 40],
    "uid": [-1, (1 << 32) - 1, 1 << 40],
    "gid": [-1, (1 << 32) - 1, 1 << 40],
    "size": [-1, 1 << 63],
    "device": [-1],
    "kind": ["x", "", "fd", "\0"],
}


@pytest.mark.parametrize(("fact", "value"), [(fact, value) for fact, values in WRONG.items() for value in values])
def test_numbers_no_file_can_have_are_refused(house, outside, file, fact, value):
    bad = file(b"bad")
    setattr(bad, fact, value)
    runs = [(b"", [folder(b""), file(b"a"), bad, file(b"z")])]
    assert_restored_but_for(house, runs, {"a": "evil", "z": "evil"}, {"bad": "not"})


@pytest.mark.parametrize("target", [b"", b"a\0b", b"x" * 4096])
def test_links_to_what_is_no_path_are_refused(house, outside, file, target):
    runs = [(b"", [folder(b""), link(b"bad", target), file(b"z")])]
    assert_restored_but_for(house, runs, {"z": "evil"}, {"bad": "no path"})


@pytest.mark.parametrize("mtime_ns", [-(1 << 63), (1 << 63) - 1, (1 << 64) - 1])
def test_any_time_can_be_restored(house, outside, file, mtime_ns):
    entry = file(b"file")
    entry.mtime_ns = mtime_ns
    assert_restored_but_for(house, [(b"", [folder(b""), entry])], {"file": "evil"}, {})


def lists(chunk):
    """Contents that contradict themselves, by what is wrong with them."""
    return {
        "larger than it is": {"size": 5},
        "smaller than it is": {"size": 3},
        "empty": {"size": 0},
        "larger than a list": {"size": 100, "content": chunk * 3},
        "smaller than a list": {"size": 5, "content": chunk * 3},
        "a hole too long": {"size": 10, "content": chunk + hole(7)},
        "a hole beyond everything": {"size": 10, "content": hole((1 << 64) - 1) + chunk},
        "holes that go round": {"size": 4, "content": hole(1 << 63) + hole(1 << 63) + chunk},
        "no such chunk": {"content": b"\1" * 24},
        "a ragged list": {"content": chunk + b"x"},
        "a list that is no list": {"depth": 1},
        "a list of nothing": {"depth": 1, "content": b"\2" * 24},
        "much too deep": {"depth": 7},
        "deep below zero": {"depth": -1},
    }


@pytest.mark.parametrize("what", lists(b""))
@pytest.mark.parametrize("there", [None, b"", b"evil", b"something else that is there"])
def test_contents_that_contradict_themselves_make_no_file(house, outside, file, chunk, what, there):
    if there is not None:
        write(house.restored, {"bad": there})
    bad = file(b"bad", **lists(chunk)[what])
    done = house.restore(house.store_pages((b"", [folder(b""), file(b"a"), bad, file(b"z")])))
    assert reasons(done).keys() == {"bad"}
    expected = {"a": "evil", "z": "evil"} | ({} if there is None else {"bad": os.fsdecode(there)})
    assert contents(house.restored) == expected
    assert house.restore(house.store_pages((b"", [folder(b""), bad])), verify=True).verified == 0


def test_a_list_that_holds_itself_ends(house, outside, file):
    """A list cannot hold its own id; one that holds lists as if they were content comes closest."""
    with house.repo.writing() as session:
        leaf = session.writer.add(LARGE, b"x" * 24)
        nested = session.writer.add(TREE, leaf * 100)
        deeper = session.writer.add(TREE, nested * 100)
        session.writer.flush()
    entries = [folder(b""), file(b"a", size=1 << 40, depth=1, content=deeper * 100), file(b"z")]
    done = house.restore(house.store_pages((b"", entries)))
    assert reasons(done).keys() == {"a"}
    assert contents(house.restored) == {"z": "evil"}


def test_a_huge_file_made_of_one_chunk_over_and_over_costs_no_memory(house, outside, file, chunk):
    entry = file(b"huge", size=4 * 100_000, content=chunk * 100_000)
    house.restore(house.store_pages((b"", [folder(b""), entry])), verify=True)
    assert (house.restored / "huge").read_bytes() == b"evil" * 100_000


@pytest.mark.parametrize("name", [b"user.a\0b", b"nonsense", b"", b"system.nonsense", b"user." + b"n" * 300])
def test_attributes_of_odd_names_are_named_or_noted_and_the_file_is_restored(house, outside, file, name):
    odd = file(b"file", xattrs={name: b"x", b"user.good": b"y"})
    done = house.restore(house.store_pages((b"", [folder(b""), odd])))
    assert len(done.troubles) + len(done.notes) == 1
    assert contents(house.restored) == {"file": "evil"}
    assert os.getxattr(house.restored / "file", "user.good") == b"y"


# -- pages -------------------------------------------------------------------------------------------------------------


def store(session, page):
    return session.writer.add(TREE, _encode(page))


def test_pages_listed_over_and_over_end(house, outside, file):
    """Twelve levels of 256 times the same page would be 2^88 entries."""
    with house.repo.writing() as session:
        page = store(session, Leaf({}, {}, [(b"", [folder(b""), file(b"a")])]))
        for level in range(1, 9):
            page = store(session, Node(level, [Child(b"", b"%03d" % i if i else b"", page, 1, 1) for i in range(256)]))
        session.writer.flush()
    started = time.monotonic()
    done = house.restore(page, delete=True)
    assert time.monotonic() - started < 20
    assert contents(house.restored) == {"a": "evil"}
    assert all("does not begin where it should" in r for p, r in reasons(done).items() if p)


def test_pages_deeper_than_any_tree_are_refused(house, outside, file):
    with house.repo.writing() as session:
        page = store(session, Leaf({}, {}, [(b"", [folder(b""), file(b"a")])]))
        for level in range(1, 20):
            page = store(session, Node(level, [Child(b"", b"", page, 1, 1)]))
        session.writer.flush()
    done = house.restore(page)
    assert "deeper than any tree" in reasons(done)[""]
    assert contents(house.restored) == {}


# -- people who plant things -------------------------------------------------------------------------------------------


@pytest.fixture
def victims(house, outside, file):
    """A snapshot of one of each, and where each would go."""
    pipe = Entry(b"pipe", "p", 0o666, os.geteuid(), os.getegid(), SECOND, 0, 0)
    entries = [folder(b""), folder(b"d", 0o777), file(b"file"), link(b"link", b"x"), pipe, file(b"zz", links=(1, 1))]
    inner = [file(b"file"), file(b"large", size=2 * len(noise(MIB)), content=large(house)), file(b"zz", links=(1, 1))]
    return house.store_pages((b"", entries), (b"d", inner))


def large(house):
    with house.repo.writing() as session:
        chunk = session.writer.add(LARGE, noise(MIB))
        session.writer.flush()
        return chunk * 2


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "dangling link", "hard link"])
@pytest.mark.parametrize("delete", [False, True])
def test_what_is_planted_under_a_name_is_replaced_and_what_it_leads_to_is_not_touched(
    house, outside, victims, kind, delete
):
    house.restored.mkdir()
    write(house.restored, {"d/": ""})
    names = ["file", "link", "pipe", "zz", "d/file", "d/large", "d/zz"]
    for name in names:
        plant(house.restored / name, kind, outside)
    before = facts(outside / "home")
    done = house.restore(victims, delete=delete)
    assert reasons(done) == {}
    assert (house.restored / "file").read_text() == "evil"
    assert stat.S_ISFIFO((house.restored / "pipe").lstat().st_mode)
    assert not (house.restored / "d" / "large").is_symlink()
    after = facts(outside / "home")
    for found in (*before.values(), *after.values()):
        found.names = []
    assert after == before


def plant(path, kind, outside):
    if kind == "link to a file":
        path.symlink_to(outside / "home" / "file")
    elif kind == "link to a folder":
        path.symlink_to(outside / "home")
    elif kind == "dangling link":
        path.symlink_to(outside / "empty" / "made by a restore")
    else:
        os.link(outside / "home" / "file", path)


@pytest.mark.needs_root
def test_a_hard_link_to_somebody_elses_file_is_not_given_away_with_it(house, outside, file):
    """Of the size and time of the file in the snapshot it would pass for unchanged, and get its owner and mode."""
    private = write(house.folder, {"private": "root"}) / "private"
    os.utime(private, ns=(SECOND, SECOND))
    house.restored.mkdir()
    os.link(private, house.restored / "file")
    entry = file(b"file", links=(7, 7))
    entry.mode, entry.uid = 0o666, NOBODY
    house.restore(house.store_pages((b"", [folder(b""), entry])))
    assert (private.stat().st_uid, private.read_text()) == (0, "root")
    assert (house.restored / "file").read_text() == "evil"


@pytest.mark.needs_root
@pytest.mark.parametrize("kind", ["p", "s", "c"])
def test_a_hard_link_to_somebody_elses_pipe_or_device_is_not_given_away_with_it(house, outside, kind):
    types = {"p": stat.S_IFIFO, "s": stat.S_IFSOCK, "c": stat.S_IFCHR}
    private = house.folder / "private"
    os.mknod(private, types[kind] | 0o600, os.makedev(1, 3))
    house.restored.mkdir()
    os.link(private, house.restored / "node")
    entry = Entry(b"node", kind, 0o666, NOBODY, NOBODY, SECOND, 0, 0, device=os.makedev(1, 3))
    assert reasons(house.restore(house.store_pages((b"", [folder(b""), entry])))) == {}
    assert (private.stat().st_uid, stat.S_IMODE(private.stat().st_mode)) == (0, 0o600)
    assert (house.restored / "node").stat().st_uid == NOBODY


@pytest.mark.needs_root
@pytest.mark.parametrize("name", ["small", "large"])
def test_a_file_that_somebody_else_has_open_gets_nothing_of_the_snapshot(house, outside, file, name):
    content = {"content": large(house), "size": 2 * MIB} if name == "large" else {}
    secret = file(name.encode(), **content)
    secret.mode = 0o600
    write(house.restored, {name: b"x" * secret.size})
    os.chown(house.restored / name, NOBODY, NOBODY)
    with (house.restored / name).open("rb") as spying:
        house.restore(house.store_pages((b"", [folder(b""), secret])))
        assert spying.read() == b"x" * secret.size
    assert (house.restored / name).stat().st_uid == 0


@pytest.mark.needs_root
def test_a_file_of_the_right_size_and_time_that_somebody_else_made_is_not_trusted(house, outside, file):
    write(house.restored, {"tool": "EVIL"})
    os.utime(house.restored / "tool", ns=(SECOND, SECOND))
    os.chown(house.restored / "tool", NOBODY, NOBODY)
    house.restore(house.store_pages((b"", [folder(b""), file(b"tool")])))
    assert contents(house.restored) == {"tool": "evil"}


CALLS = ["open", "mkdir", "stat", "unlink", "symlink", "mkfifo", "link", "rename", "rmdir", "chmod", "chown", "utime"]
CALLS += ["fchown", "fchmod", "setxattr", "listxattr", "ftruncate", "pwrite", "close", "scandir", "listdir", "readlink"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_swapped_for_a_link_at_any_step_leads_nowhere(house, outside, victims, monkeypatch, fresh):
    """The folder is swapped before every single step that a restore takes, in one restore after the other."""
    before, step = facts(outside / "home"), 1
    while step_with_a_swap(house, outside, victims, monkeypatch, step, fresh):
        after = facts(outside / "home")
        assert after == before, f"swapped before step {step}"
        step += 1
    assert step > 50


def step_with_a_swap(house, outside, root, monkeypatch, number, fresh):
    """Restore with the folder swapped before the step of that number; False when there are not so many."""
    os.system(f"rm -rf '{house.restored}'")
    house.restored.mkdir()
    if not fresh:
        write(house.restored, {"d/file": "older", "d/large": noise(MIB), "d/extra/x": "", "file": "older"})
    really_rename, really_symlink, lock = os.rename, os.symlink, threading.Lock()
    taken = [0]

    def step():
        with lock:
            taken[0] += 1
            if taken[0] == number and os.path.lexists(house.restored / "d"):
                really_rename(house.restored / "d", house.restored / "moved away")
                really_symlink(outside / "home", house.restored / "d")

    def before(function):
        def call(*args, **options):
            step()
            return function(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, before(getattr(os, name)))
        for module in (placing, writing, clearing, comparing):
            patch.setattr(module, "open_beneath", before(open_beneath))
        house.restore(root, delete=True)
    return taken[0] >= number


@pytest.mark.slow
def test_a_folder_that_somebody_keeps_swapping_leads_nowhere(house, outside, victims):
    before, stop = facts(outside / "home"), threading.Event()

    def swap():
        there, away = house.restored / "d", house.restored / "moved away"
        while not stop.is_set():
            try:
                os.rename(there, away)
                os.symlink(outside / "home", there)
                os.unlink(there)
                os.rename(away, there)
            except OSError:
                time.sleep(0.0001)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            house.restore(victims)
    finally:
        stop.set()
        thread.join()
    assert facts(outside / "home") == before


# -- opening beneath ---------------------------------------------------------------------------------------------------


def by_walking(fd, path, flags):
    return _walk(fd, path, flags, 0)


@pytest.mark.parametrize("way", [open_beneath, by_walking])
def test_opening_beneath_never_leaves_the_folder(tmp_path, way):
    write(tmp_path, {"out": "", "in/a/b": "", "in/up": "->..", "in/abs": "->/etc", "in/a/back": "->../a"})
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    out = [b"..", b"a/../..", b"../out", b"/etc/passwd", b"/", b"up/out", b"abs/passwd", b"up", b"abs", b"a/back/b"]
    for path in out:
        with pytest.raises(OSError):
            os.close(way(fd, path, os.O_RDONLY | os.O_NOFOLLOW))
    for path in (b"", b".", b"a", b"a/b", b"./a/./b"):
        os.close(way(fd, path, os.O_RDONLY | os.O_NOFOLLOW))
    os.close(fd)


def test_a_name_is_not_cut_off_at_a_nul(tmp_path):
    write(tmp_path, {"a": ""})
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        open_beneath(fd, b"a\0b", os.O_RDONLY)
    os.close(fd)
