"""What a backup takes and what it leaves out: paths, their common base, patterns, caches, file systems, sizes."""

from __future__ import annotations

import os
import subprocess

import pytest

from holdfast.archive import scan
from holdfast.archive.beneath import open_beneath
from holdfast.archive.exclude import Excludes, matcher
from holdfast.errors import UsageError
from tests.archive.making import reasons
from tests.support.trees import KIB, contents, sparse, write

CACHE_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# made by a test"


# -- patterns ----------------------------------------------------------------------------------------------------------

FILES = {
    "a.tmp": "",
    "a.txt": "",
    "build/out": "",
    "src/build/out": "",
    "src/a.tmp": "",
    "src/keep.tmp": "",
    "src/deep/er/x.log": "",
    "src/deep/x.log": "",
    "cache": "a file of that name",
    "src/cache/inside": "",
    "#notes#": "",
}
GITIGNORE = {
    ("*.tmp",): {"a.tmp", "src/a.tmp", "src/keep.tmp"},
    ("*.tmp", "!keep.tmp"): {"a.tmp", "src/a.tmp"},
    ("!keep.tmp", "*.tmp"): {"a.tmp", "src/a.tmp", "src/keep.tmp"},
    ("/build",): {"build/out"},
    ("build",): {"build/out", "src/build/out"},
    ("src/build",): {"src/build/out"},
    ("cache/",): {"src/cache/inside"},
    ("cache",): {"cache", "src/cache/inside"},
    ("src/**/x.log",): {"src/deep/er/x.log", "src/deep/x.log"},
    ("**/er",): {"src/deep/er/x.log"},
    ("src/deep/*",): {"src/deep/er/x.log", "src/deep/x.log"},
    ("src/**", "!src/keep.tmp"): {p for p in FILES if p.startswith("src/")} - {"src/keep.tmp"},
    ("build/", "!build/out"): {"build/out", "src/build/out"},  # below an excluded folder nothing is looked at
    ("*", "!*/", "!*.log"): set(FILES) - {"src/deep/er/x.log", "src/deep/x.log"},
    ("/*", "!/src", "/src/*", "!/src/deep"): set(FILES) - {"src/deep/er/x.log", "src/deep/x.log"},
    ("build", "!src"): {"build/out", "src/build/out"},
    ("*.tmp", "!src/"): {"a.tmp", "src/a.tmp", "src/keep.tmp"},
    ("[ab].t?t",): {"a.txt"},
    ("[!b].[[:alpha:]]x[s-u]",): {"a.txt"},
    ("[", "a.txt\\"): set(),
    ("# a comment", "", "   "): set(),
    (r"\#notes\#",): {"#notes#"},
    ("a.txt   ",): {"a.txt"},
}


@pytest.mark.parametrize("patterns", GITIGNORE, ids=" ".join)
def test_patterns_mean_what_they_mean_to_git(house, patterns):
    source = write(house.folder / "source", FILES)
    report = house.back_up(source, excludes=patterns)
    assert set(FILES) - set(house.names(report)) == GITIGNORE[patterns]


def test_git_itself_agrees(house, need):
    source = write(house.folder / "source", FILES)
    git = [need("git"), "-C", source, "-c", "core.quotePath=off"]
    subprocess.run([*git, "init", "-q"], check=True, capture_output=True)
    for patterns, excluded in GITIGNORE.items():
        write(source, {".git/info/exclude": "\n".join(patterns) + "\n"})
        listed = subprocess.run([*git, "ls-files", "-o", "--exclude-standard"], check=True, capture_output=True)
        assert set(FILES) - set(listed.stdout.decode().splitlines()) == excluded, patterns


def excluding(*patterns):
    found = matcher(patterns)
    assert found is not None
    return found


def test_names_that_are_no_text_or_hold_newlines_are_matched_too():
    excluded = excluding("*.tmp", "**/inner", "exactly")
    assert excluded(b"\xff.tmp", False)
    assert excluded(b"new\nline.tmp", False)
    assert excluded(b"new\nline/inner", True)
    assert not excluded(b"exactly\n", False)
    assert not excluded(b"\xff", False)
    assert excluding(r"a\ ")(b"a ", False)
    assert excluding("a\nb")(b"a\nb", False)
    assert excluding("?")("ö".encode(), False)


def test_what_lies_below_an_excluded_folder_is_excluded_whoever_asks_first():
    excluded = excluding("cache/", "!cache/kept")
    assert excluded(b"cache/kept", False)
    assert excluded(b"a/b/cache/c/d", False)
    assert not excluded(b"a/b", False)
    assert not excluded(b"cache", False)
    assert excluded(b"cache/kept", False)


def test_a_pattern_that_means_nothing_is_refused():
    for pattern in ("!", "/", "!/"):
        with pytest.raises(UsageError, match="stands for nothing"):
            matcher([pattern])


def test_an_excluded_folder_is_not_even_opened(house, monkeypatch):
    source = write(house.folder / "source", {"a/file": "", "b/file": ""})
    opened = []

    def noting(fd, path, flags):
        opened.append(path)
        return open_beneath(fd, path, flags)

    monkeypatch.setattr(scan, "open_beneath", noting)
    house.back_up(source, excludes=["/a"])
    assert opened == [b"", b"b"]


# -- caches, sizes, file systems ---------------------------------------------------------------------------------------


def test_of_a_cache_folder_only_its_tag_is_kept(house):
    files = {"c/CACHEDIR.TAG": CACHE_TAG, "c/content": "", "c/sub/content": "", "d/CACHEDIR.TAG": "no", "d/content": ""}
    source = write(house.folder / "source", files)
    report = house.back_up(source, excludes=Excludes(caches=True))
    assert house.names(report) == ["c/CACHEDIR.TAG", "d/CACHEDIR.TAG", "d/content"]


def test_a_cache_tag_that_is_a_link_or_a_pipe_tags_nothing(house):
    source = write(house.folder / "source", {"tag": CACHE_TAG, "c/content": "", "p/content": ""})
    (source / "c" / "CACHEDIR.TAG").symlink_to("../tag")
    os.mkfifo(source / "p" / "CACHEDIR.TAG")
    report = house.back_up(source, excludes=Excludes(caches=True))
    assert {"c/content", "p/content"} <= set(house.names(report))


def test_a_cache_folder_that_was_named_is_taken(house):
    source = write(house.folder / "source", {"c/CACHEDIR.TAG": CACHE_TAG, "c/content": "", "other/x": ""})
    report = house.back_up(source / "c", excludes=Excludes(caches=True))
    assert house.names(report) == ["CACHEDIR.TAG", "content"]
    report = house.back_up(source / "c" / "content", source / "other", excludes=Excludes(caches=True))
    assert house.names(report) == ["c/content", "other/x"]


def test_files_larger_than_a_limit_are_left_out(house):
    source = write(house.folder / "source", {"at": b"x" * KIB, "above": b"x" * (KIB + 1)})
    sparse(source / "sparse", 1 << 30, [])
    (source / "link").symlink_to("x" * 2000)
    report = house.back_up(source, excludes=Excludes(larger_than=KIB))
    assert house.names(report) == ["at", "link"]
    assert reasons(report) == {}


@pytest.mark.needs_root
def test_other_file_systems_are_left_out_and_their_folders_kept(house, mounts):
    source = write(house.folder / "source", {"file": "", "mounted/hidden": ""})
    write(mounts.tmpfs(source / "mounted"), {"file": "", "sub/file": ""})
    report = house.back_up(source, excludes=Excludes(one_file_system=True))
    assert house.names(report) == ["file"]
    assert house.tree(report).find(b"mounted").kind == "d"
    assert house.names(house.back_up(source)) == ["file", "mounted/file", "mounted/sub/file"]


@pytest.mark.needs_root
def test_every_named_path_may_have_a_file_system_of_its_own(house, mounts):
    top = write(house.folder / "top", {"here/file": "", "x/y/": "", "not named": ""})
    write(mounts.tmpfs(top / "x" / "y"), {"file": "", "z/": ""})
    write(mounts.tmpfs(top / "x" / "y" / "z"), {"file": ""})
    report = house.back_up(top / "here", top / "x" / "y", excludes=Excludes(one_file_system=True))
    assert house.names(report) == ["here/file", "x/y/file"]


# -- paths -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def top(house):
    return write(
        house.folder / "top",
        {"a/b/one": "1", "a/b/two": "2", "a/bc/three": "3", "d/four": "4", "d.txt": "5", "link": "->a/b"},
    )


def test_one_folder_is_the_base_itself(house, top):
    report = house.back_up(top / "a")
    assert (report.snapshot.base, house.names(report)) == (os.fsencode(top / "a"), ["b/one", "b/two", "bc/three"])


def test_one_file_lies_in_its_folder(house, top):
    report = house.back_up(top / "a" / "b" / "one")
    assert (report.snapshot.base, house.names(report)) == (os.fsencode(top / "a" / "b"), ["one"])
    house.restore(report)
    assert contents(house.restored) == {"one": "1"}


def test_several_paths_lie_in_their_deepest_common_folder(house, top):
    report = house.back_up(top / "d", top / "a" / "b" / "two", top / "a" / "bc")
    assert report.snapshot.base == os.fsencode(top)
    assert house.names(report) == ["a/b/two", "a/bc/three", "d/four"]


def test_names_that_begin_alike_are_no_common_folder(house, top):
    report = house.back_up(top / "a" / "b", top / "a" / "bc")
    assert (report.snapshot.base, house.names(report)) == (os.fsencode(top / "a"), ["b/one", "b/two", "bc/three"])


def test_a_path_within_another_one_changes_nothing(house, top):
    report = house.back_up(top, top / "a" / "b", top / "a")
    assert (report.snapshot.base, len(house.names(report))) == (os.fsencode(top), 6)
    report = house.back_up(top / "a" / "b" / "one", top / "a", top / "d")
    assert house.names(report) == ["a/b/one", "a/b/two", "a/bc/three", "d/four"]


def test_the_order_and_the_spelling_of_paths_change_nothing(house, top):
    first = house.back_up(top / "d", top / "a")
    second = house.back_up(top / "a" / ".." / "a", top / "a", top / "d")
    assert first.snapshot.root == second.snapshot.root


def test_folders_above_the_paths_are_kept_with_their_attributes(house, top):
    (top / "a").chmod(0o710)
    house.restore(house.back_up(top / "a" / "b", top / "d"))
    assert (house.restored / "a").stat().st_mode & 0o777 == 0o710
    assert (house.restored / "a").stat().st_mtime_ns == (top / "a").stat().st_mtime_ns


def test_a_link_that_is_named_is_taken_as_a_link(house, top):
    report = house.back_up(top / "link")
    assert report.snapshot.base == os.fsencode(top)
    house.restore(report)
    assert contents(house.restored) == {"link": "->a/b"}


def test_paths_behind_a_link_are_found_where_they_really_are(house, top):
    report = house.back_up(top / "link" / "one", top / "d")
    assert reasons(report) == {}
    assert house.names(report) == ["a/b/one", "d/four"]


def test_the_base_may_lie_behind_a_link(house, top):
    report = house.back_up(top / "link" / "one", top / "link" / "two")
    assert (report.snapshot.base, house.names(report)) == (os.fsencode(top / "link"), ["one", "two"])


def test_a_path_that_is_not_there_is_refused_before_anything_is_stored(house, top):
    with pytest.raises(UsageError, match="not there does not exist"):
        house.back_up(top, top / "not there")
    assert house.packs() == {}


def test_no_path_at_all_is_refused(house):
    with pytest.raises(UsageError, match="Nothing to back up was named"):
        house.back_up()


def test_the_repository_itself_is_left_out_of_a_tree_that_holds_it(house):
    write(house.folder, {"file": "x", "sub/file": "y"})
    first = house.back_up(house.folder)
    again = house.back_up(house.folder)
    assert house.names(first) == house.names(again) == ["file", "sub/file"]
    assert house.tree(first).find(b"repository").kind == "d"


def test_a_repository_that_is_named_is_taken(house):
    report = house.back_up(house.folder / "repository")
    assert "config" in house.names(report)
