"""ls, find, diff, stats and tag, as a user and as a program see them."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.archive.search import Search, glob_regex, name_matcher
from holdfast.cli.browsing import parse_time
from holdfast.errors import UsageError
from holdfast.repository.format import Entry
from holdfast.repository.pages import Tree
from tests.archive.making import KEY_TEXT, House, make_house
from tests.support.commands import Commands
from tests.support.trees import MIB, noise, write

NOW = 1_700_000_000_000_000_000


@dataclass
class Desk:
    """A repository with two snapshots of a tree, and the command line to look at them with."""

    house: House
    call: Commands
    tree: Path
    first: str
    second: str


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    house = make_house(tmp_path)
    (tmp_path / "key").write_text(KEY_TEXT)
    tree = write(tmp_path / "tree", {"a/b.txt": "text", "a/c/deep": "deep", "plain": "12345", "link": "->a/b.txt"})
    os.utime(tree / "plain", ns=(0, 1_600_000_000_000_000_001))
    (tree / "plain").chmod(0o640)
    first = house.back_up(tree, tags=("red", "old")).snapshot_id
    (tree / "plain").write_text("123456")
    (tree / "a/c/deep").unlink()
    (tree / os.fsdecode(b"odd\xff\n")).write_text("")
    second = house.back_up(tree).snapshot_id
    return Desk(house, Commands(tmp_path / "repository", tmp_path / "key", tmp_path), tree, first, second)


# -- ls ----------------------------------------------------------------------------------------------------------------


def test_ls_lists_everything_relative_to_the_base(desk: Desk) -> None:
    assert desk.call("ls", desk.first).lines == ["a", "link", "plain", "a/b.txt", "a/c", "a/c/deep"]
    assert desk.call("ls", "latest").lines == ["a", "link", "odd\\xff\\n", "plain", "a/b.txt", "a/c"]


def test_ls_of_a_path_inside_lists_only_that(desk: Desk) -> None:
    assert desk.call("ls", f"{desk.first}:a").lines == ["a/b.txt", "a/c", "a/c/deep"]
    assert desk.call("ls", "--no-recursive", f"{desk.first}:a").lines == ["a/b.txt", "a/c"]
    assert desk.call("ls", "--no-recursive", desk.first).lines == ["a", "link", "plain"]
    assert desk.call("ls", f"{desk.first}:a/b.txt").lines == ["a/b.txt"]
    assert desk.call("ls", f"{desk.first}:a/c/").lines == ["a/c/deep"]


def test_ls_names_a_path_or_a_snapshot_that_is_not_there(desk: Desk) -> None:
    done = desk.call("ls", "latest:nowhere", status=1)
    assert done.error.startswith("holdfast: The snapshot has no 'nowhere'.")
    assert "No snapshot begins with 000000." in desk.call("ls", "000000", status=1).error
    assert "leads out" in desk.call("ls", "latest:a/../..", status=2).error


def test_ls_long_shows_what_ls_shows(desk: Desk) -> None:
    lines = desk.call("ls", "-l", desk.first).lines
    [plain] = [line for line in lines if line.endswith(" plain")]
    assert re.fullmatch(r"-rw-r----- \S+ +\S+ +5 2020-09-13 12:26:40 plain", plain)
    [link] = [line for line in lines if " link" in line]
    assert link.startswith("lrwxrwxrwx") and link.endswith("link -> a/b.txt")


def test_ls_json_is_one_document_and_keeps_every_byte_of_a_name(desk: Desk) -> None:
    found = {entry["path"]: entry for entry in desk.call("ls", "--json", desk.first).json}
    plain = found["plain"]
    assert (plain["type"], plain["mode"], plain["size"]) == ("file", 0o640, 5)
    assert plain["mtime"] == "2020-09-13T12:26:40.000000001Z"
    assert (plain["uid"], plain["gid"]) == (os.getuid(), os.getgid())
    assert {"user", "group"} <= plain.keys()
    assert (found["link"]["type"], found["link"]["target"]) == ("symlink", "a/b.txt")
    assert found["a"]["type"] == "dir"
    names = [os.fsencode(entry["path"]) for entry in desk.call("--json", "ls", "latest").json]
    assert b"odd\xff\n" in names
    assert desk.call("ls", "--json", "latest:a/c").json == []


def test_ls_takes_the_latest_of_those_that_fit(desk: Desk) -> None:
    assert "a/c/deep" in desk.call("ls", "--tag", "red", "latest").lines
    assert "no snapshot yet that fits" in desk.call("ls", "--tag", "blue", "latest", status=1).error


# -- find --------------------------------------------------------------------------------------------------------------


def test_find_looks_into_all_snapshots(desk: Desk) -> None:
    done = desk.call("find", "*eep", "plai?")
    first, second = desk.first[:8], desk.second[:8]
    heads = [line.split()[2] for line in done.lines if line.startswith("In snapshot")]
    assert heads == [first, second]
    assert [line for line in done.lines if line.startswith("  ")] == ["  plain", "  a/c/deep", "  plain"]
    assert "3 found in 2 snapshots." in done.error


def test_find_json_names_each_snapshot_with_its_matches(desk: Desk) -> None:
    found = desk.call("find", "--json", "deep").json
    assert [(s["snapshot"], s["hits"]) for s in found] == [(desk.first, 1), (desk.second, 0)]
    assert found[0]["matches"][0]["path"] == "a/c/deep"
    assert [s["snapshot"] for s in desk.call("find", "--json", "x", "--snapshot", desk.second[:6]).json] == [
        desk.second
    ]


def test_find_by_path_type_and_time(desk: Desk) -> None:
    def paths(*words: str) -> list[str]:
        [found] = desk.call("find", "--json", "-s", desk.first, *words).json
        return [m["path"] for m in found["matches"]]

    assert paths("a/*") == ["a/b.txt", "a/c"]
    assert paths("/c/*") == []
    assert paths("c/*") == paths("/a/c/*") == paths("/**/deep") == ["a/c/deep"]
    assert paths("*", "--type", "l") == ["link"]
    assert paths("PLAIN") == []
    assert paths("PLAIN", "-i") == ["plain"]
    assert paths("*", "--type", "f", "--older", "2020-12-31") == ["plain"]
    assert paths("plain", "--newer", "2020-09-13T12:26:41Z") == []
    assert paths("plain", "--newer", "2020-09-13T12:26:40Z") == ["plain"]
    assert paths("deep", "--newer", "1d") == ["a/c/deep"]
    assert "is not a time" in desk.call("find", "x", "--newer", "soon", status=2).error
    assert "is no pattern" in desk.call("find", "/", status=2).error


def test_find_reads_shared_pages_once(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    tree = write(tmp_path / "tree", {f"folder {i}/file {j}": "" for i in range(20) for j in range(200)})
    reports = [house.back_up(tree)]
    (tree / "folder 7/new").touch()
    reports.append(house.back_up(tree))
    reader, asked = house.repo.reader(), list[bytes]()

    def read(page: bytes) -> bytes:
        asked.append(page)
        return reader.read(page)

    matched: list[bytes] = []
    fits = name_matcher(["file 19?", "new"])

    def matches(directory: bytes, entry: Entry) -> bool:
        matched.append(entry.name)
        return fits(directory, entry)

    search = Search(matches)
    first, second = (list(search.run(Tree(read, report.snapshot.root))) for report in reports)
    assert (len(first), len(second)) == (200, 201)
    assert {m.path for m in second} - {m.path for m in first} == {b"folder 7/new"}
    assert len(asked) == len(set(asked))
    # Two entries differ, the new file and its folder; each may stand in a page of its own, of up to 1024 entries.
    assert len(matched) <= 4021 + 2 * 1024 + 1


@pytest.mark.parametrize(
    ("pattern", "fits", "fits_not"),
    [
        ("*.txt", ["a.txt", ".txt"], ["a.txt.gz", "txt"]),
        ("a?c", ["abc"], ["ac", "a/c"]),
        ("[a-c]x", ["bx"], ["dx", "/x"]),
        ("[!a-c]x", ["dx"], ["bx", "/x"]),
        ("[]x]", ["]", "x"], ["[", "y"]),
        ("a[", ["a["], ["a"]),
        ("a+(b)", ["a+(b)"], ["aab"]),
        ("d/*", ["d/x", "up/d/x"], ["d/x/y", "ed/x", "d"]),
        ("/d/*", ["d/x"], ["up/d/x"]),
        ("d/**", ["d/x", "d/x/y"], ["d"]),
        ("/**/x", ["x", "a/x", "a/b/x"], ["a/xx"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab"]),
    ],
)
def test_globs_mean_what_a_shell_means(pattern: str, fits: list[str], fits_not: list[str]) -> None:
    regex = re.compile(glob_regex(pattern), re.DOTALL)
    assert [name for name in fits if not regex.fullmatch(name)] == []
    assert [name for name in fits_not if regex.fullmatch(name)] == []


@given(st.text("ab*?[]!-/^\\&~|.", min_size=1, max_size=12))
def test_any_pattern_is_understood_or_refused(pattern: str) -> None:
    try:
        re.compile(glob_regex(pattern))
    except UsageError:
        return


def test_times_are_dates_moments_or_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert parse_time("7d", NOW) == NOW - 7 * 86_400 * 10**9
        assert parse_time("90m", NOW) == NOW - 5_400 * 10**9
        assert parse_time("2023-11-14", NOW) == 1_699_938_000 * 10**9
        assert parse_time("2023-11-14 12:00", NOW) == 1_699_981_200 * 10**9
        assert parse_time("2023-11-14T12:00:00Z", NOW) == 1_699_963_200 * 10**9
        assert parse_time("2023-11-14T12:00:00.5+01:00", NOW) == 1_699_959_600 * 10**9 + 5 * 10**8
    finally:
        monkeypatch.undo()
        time.tzset()


# -- diff --------------------------------------------------------------------------------------------------------------


def test_diff_shows_changes_and_adds_them_up(desk: Desk) -> None:
    lines = desk.call("diff", desk.first, "latest").lines
    assert lines[:3] == ["+    odd\\xff\\n", "M    plain", "-    a/c/deep"]
    assert lines[4:] == [
        "Added:   1 files, 0 folders, 0 others, 6 B",
        "Removed: 1 files, 0 folders, 0 others, 9 B",
        "Changed: 1 content, 0 type, 0 only metadata",
    ]
    assert "U    ./" in desk.call("diff", "--metadata", desk.first, "latest").lines
    assert desk.call("diff", f"{desk.first}:a", "latest:a").lines[0] == "-    c/deep"


def test_diff_json_is_lines_that_end_in_a_summary(desk: Desk) -> None:
    *changes, summary = desk.call("diff", "--json", desk.first, desk.second).events
    assert {c["message_type"] for c in changes} == {"change"}
    assert [(c["modifier"], os.fsencode(c["path"])) for c in changes] == [
        ("+", b"odd\xff\n"),
        ("M", b"plain"),
        ("-", b"a/c/deep"),
    ]
    assert summary["message_type"] == "summary"
    assert (summary["source_snapshot"], summary["target_snapshot"]) == (desk.first, desk.second)
    assert summary["added"] == {"files": 1, "dirs": 0, "others": 0, "bytes": 6}
    assert (summary["changed_files"], summary["removed"]["files"]) == (1, 1)
    *none, summary = desk.call("diff", "--json", "latest", "latest").events
    assert none == [] and summary["changed_files"] == 0


# -- stats -------------------------------------------------------------------------------------------------------------


def test_stats_count_what_was_asked_for(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    (tmp_path / "key").write_text(KEY_TEXT)
    call = Commands(tmp_path / "repository", tmp_path / "key", tmp_path)
    large, same = noise(5 * MIB), "same " * 1000
    tree = write(tmp_path / "tree", {"large": large, "a": same, "b/a": same, "link": "->a", "empty": ""})
    os.link(tree / "large", tree / "b/large too")
    house.back_up(tree)
    write(tree, {"more": "more"})
    second = house.back_up(tree).snapshot_id
    size = 5 * MIB + 2 * len(same)

    restored = call("stats", "--json").json
    assert (restored["snapshots"], restored["files"], restored["bytes"]) == (2, 4 + 5, 2 * size + 4)
    assert (restored["dirs"], restored["others"]) == (4, 2)
    one = call("stats", "--json", second[:8]).json
    assert (one["snapshots"], one["files"], one["bytes"]) == (1, 5, size + 4)

    different = call("stats", "--json", "--mode", "files-by-contents").json
    assert (different["files"], different["bytes"]) == (4, 5 * MIB + len(same) + 4)

    raw, stock = call("stats", "--json", "--mode", "raw-data").json, restored["repository"]
    assert raw["chunks"] == stock["chunks"]
    assert raw["bytes"] == stock["bytes"] > 5 * MIB + len(same)
    assert 0.98 * stock["bytes_stored"] < raw["bytes_stored"] <= stock["bytes_stored"]
    assert stock["packs"] == len(house.packs()) and stock["bytes_stored"] == sum(house.packs().values())
    assert raw["chunks_missing"] == 0
    less = call("stats", "--json", "--mode", "raw-data", second[:8]).json
    assert less["chunks"] < raw["chunks"]
    assert "9 files" in call("stats").text and f"{stock['packs']} packs" in call("stats").text


def test_stats_say_how_many_chunks_are_missing(tmp_path: Path) -> None:
    house = make_house(tmp_path)
    (tmp_path / "key").write_text(KEY_TEXT)
    call = Commands(tmp_path / "repository", tmp_path / "key", tmp_path)
    tree = write(tmp_path / "tree", {"large": noise(3 * MIB)})
    house.back_up(tree)
    kept = {info.name for info in house.repo.storage.list("index")}
    chunks = call("stats", "--json", "--mode", "raw-data").json["chunks"]
    write(tree, {"more": "more"})
    house.back_up(tree)
    for name in kept:  # the index of the first backup is lost, and with it what the second one shares with it
        Path(house.repo.storage.place, name).unlink()
    raw = call("stats", "--json", "--mode", "raw-data", "latest").json
    assert 0 < raw["chunks_missing"] < chunks
    assert "are in no pack" in call("stats", "--mode", "raw-data", "latest").error


# -- tag ---------------------------------------------------------------------------------------------------------------


def test_tags_are_added_removed_and_set(desk: Desk) -> None:
    def tags() -> list[list[str]]:
        return [s["tags"] for s in desk.call("snapshots", "--json").json]

    desk.call("tag", desk.first, "--add", "blue,red", "--remove", "old")
    assert tags() == [["red", "blue"], []]
    desk.call("tag", "--set", "x", "--set", "y,x", "latest", "--tag", "blue")
    assert tags() == [["x", "y"], []]
    desk.call("tag", "--set", "", "--tag", "x", "latest")
    assert tags() == [[], []]


def test_a_tagged_snapshot_is_a_new_object_that_knows_the_first_one(desk: Desk) -> None:
    *changed, summary = desk.call("tag", "--json", desk.first[:8], "--add", "new").events
    [change] = changed
    assert (change["message_type"], change["old_snapshot_id"]) == ("changed", desk.first)
    assert (summary["message_type"], summary["changed_snapshots"]) == ("summary", 1)
    again = desk.call("tag", "--json", change["new_snapshot_id"], "--add", "newer").events[0]["new_snapshot_id"]
    stored = {s.id: s.snapshot for s in desk.house.repo.snapshots()}
    assert set(stored) == {again, desk.second}
    assert (stored[again].original, stored[again].tags) == (desk.first, ["red", "old", "new", "newer"])
    assert desk.call("ls", again).lines[0] == "a"


def test_a_snapshot_whose_tags_are_right_is_left_alone(desk: Desk) -> None:
    done = desk.call("tag", "--json", desk.first, "--add", "red")
    assert [e["message_type"] for e in done.events] == ["summary"]
    assert desk.first in {s.id for s in desk.house.repo.snapshots()}


def test_the_old_snapshot_goes_only_when_the_new_one_is_there(desk: Desk) -> None:
    from holdfast.archive.tagging import retag
    from holdfast.errors import StorageFull
    from tests.support.storages import Misbehaving, fails

    repo = desk.house.repo
    [stored] = [s for s in repo.snapshots() if s.id == desk.first]
    inner, repo.storage = repo.storage, Misbehaving(repo.storage, [fails("put", error=StorageFull)])
    with pytest.raises(StorageFull):
        retag(repo, stored, ["new"])
    repo.storage = Misbehaving(inner, [fails("delete")])
    with pytest.raises(Exception, match="as planned"):
        retag(repo, stored, ["new"])
    repo.storage = inner
    assert len(repo.snapshots()) == 3 and desk.first in {s.id for s in repo.snapshots()}


def test_tag_wants_to_know_what_to_do(desk: Desk) -> None:
    assert "--add, --remove or --set" in desk.call("tag", desk.first, status=2).error
    assert "--set replaces all" in desk.call("tag", desk.first, "--set", "a", "--add", "b", status=2).error
