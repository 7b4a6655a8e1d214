"""``holdfast key``: list, add, remove, passwd, export."""

from __future__ import annotations

import itertools
import re
import stat
from pathlib import Path

import pytest

from holdfast.repository import keys
from tests.cli.inside import Desk, Inside, demand_error, demand_run, make_desk
from tests.repository.making import QUICK


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(keys, "Argon2", lambda: QUICK)
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path)


def password_file(desk: Desk, text: str) -> Path:
    path = desk.folder / f"file of {text.strip()}"
    path.write_text(text)
    return path


def add_password(desk: Desk, text: str, *more: str) -> str:
    """The new key's id."""
    done = desk.call("--json", "key", "add", "--new-password-file", password_file(desk, text), *more)
    return str(demand_run(done)["id"])


def test_keys_are_listed_with_the_one_in_use_marked(desk: Desk) -> None:
    added = add_password(desk, "second", "--write-only", "--label", "laptop\x1b[31m")
    (first,) = {k["id"] for k in desk.call("--json", "key", "list").json} - {added}
    lines = {line[1:9]: line for line in desk.call("key", "list").lines}
    assert lines[first[:8]].startswith("*") and "file" in lines[first[:8]] and "full" in lines[first[:8]]
    mine = lines[added[:8]]
    assert mine.startswith(" ") and "password" in mine and "write-only" in mine and "laptop\\x1b[31m" in mine


def test_keys_are_listed_for_programs(desk: Desk) -> None:
    added = add_password(desk, "second", "--label", "my label")
    found = {k["id"]: k for k in desk.call("--json", "key", "list").json}
    assert (
        found[added]["way"] == "password" and found[added]["grants"] == "full" and found[added]["label"] == "my label"
    )
    assert [k["current"] for i, k in found.items() if i != added] == [True] and not found[added]["current"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", found[added]["created"])
    assert set(found[added]) == {"id", "way", "grants", "label", "created", "current"}


def test_a_password_is_added_and_opens(desk: Desk) -> None:
    add_password(desk, "second\nnot this line")
    assert desk.with_password("second")("key", "list").status == 0
    desk.with_password("second\nnot this line")("key", "list", status=12)


def test_a_key_file_is_made_for_its_owner_alone_and_opens(desk: Desk) -> None:
    new = desk.folder / "new folder" / "key"
    desk.call("key", "add", "--new-key-file", new)
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert desk.with_key(new)("key", "list").status == 0


def test_a_key_file_that_is_there_is_not_overwritten(desk: Desk) -> None:
    there = desk.folder / "there"
    there.write_text("mine")
    assert "File exists" in desk.call("key", "add", "--new-key-file", there, status=1).error
    assert there.read_text() == "mine" and len(desk.call("key", "list").lines) == 1


def test_a_password_and_a_key_file_at_once_are_refused(desk: Desk) -> None:
    words = ["--new-password-file", password_file(desk, "x"), "--new-key-file", desk.folder / "new"]
    assert "not both" in desk.call("key", "add", *words, status=2).error
    assert not (desk.folder / "new").exists()


@pytest.mark.parametrize("text", ["", "\n", "\r\n"])
def test_an_empty_password_is_refused(desk: Desk, text: str) -> None:
    path = desk.folder / "empty"
    path.write_bytes(text.encode())
    assert "is empty" in desk.call("key", "add", "--new-password-file", path, status=2).error


def test_with_nobody_to_ask_a_new_password_must_be_given(desk: Desk) -> None:
    assert "--new-password-file" in desk.call("key", "add", status=2).error


def test_a_key_is_removed_by_the_beginning_of_its_id(desk: Desk) -> None:
    added = add_password(desk, "second")
    assert added[:8] in desk.call("key", "remove", added[:6].upper()).text
    desk.with_password("second")("key", "list", status=12)
    removed = add_password(desk, "third")
    assert demand_run(desk.call("--json", "key", "remove", removed))["id"] == removed


def test_what_is_no_key_is_not_removed(desk: Desk) -> None:
    for number in range(17):
        add_password(desk, f"password {number}")
    before = desk.everything()
    assert "No key begins with 'xyz'" in desk.call("key", "remove", "xyz", status=2).error
    first = sorted(k["id"] for k in desk.call("--json", "key", "list").json)
    twice = next(a[0] for a, b in itertools.pairwise(first) if a[0] == b[0])
    assert f"keys begin with {twice!r}" in desk.call("key", "remove", twice, status=2).error
    assert desk.everything() == before


def test_the_key_in_use_and_the_last_full_one_stay(desk: Desk) -> None:
    (mine,) = (k["id"] for k in desk.call("--json", "key", "list").json)
    assert "using now" in desk.call("key", "remove", mine, status=2).error
    add_password(desk, "adds only", "--write-only")
    done = desk.with_password("adds only")("key", "remove", mine, status=2)
    assert "last full key" in done.error
    assert len(desk.call("key", "list").lines) == 2


def test_a_damaged_key_is_named_listed_around_and_can_be_removed(desk: Desk) -> None:
    added = add_password(desk, "second")
    path = desk.locate(f"keys/{added}")
    path.chmod(0o600)
    path.write_bytes(b"rubbish")
    done = desk.call("key", "list", status=1)
    assert len(done.lines) == 1 and added in done.error and f"key remove {added[:8]}" in done.error
    assert len(desk.call("--json", "key", "list", status=1).json) == 1
    assert f"key remove {added[:8]}" in desk.call("check", status=1).text
    desk.call("key", "remove", added[:8])
    desk.call("check")


def test_a_password_is_changed_and_the_old_one_opens_nothing(desk: Desk) -> None:
    add_password(desk, "old", "--label", "kept label")
    call = desk.with_password("old")
    summary = demand_run(call("--json", "key", "passwd", "--new-password-file", password_file(desk, "new")))
    desk.with_password("old")("key", "list", status=12)
    found = {k["id"]: k for k in desk.with_password("new")("--json", "key", "list").json}
    assert summary["replaced"] not in found and found[summary["id"]]["label"] == "kept label"
    assert found[summary["id"]]["current"] and len(found) == 2


def test_a_write_only_password_stays_write_only_when_it_changes(desk: Desk) -> None:
    add_password(desk, "old", "--write-only")
    desk.with_password("old")("key", "passwd", "--new-password-file", password_file(desk, "new"))
    desk.store(1)
    desk.with_password("new")("snapshots", status=12)


def test_a_key_file_has_no_password_to_change(desk: Desk) -> None:
    before = desk.everything()
    done = desk.call("key", "passwd", "--new-password-file", password_file(desk, "new"), status=2)
    assert "key file" in done.error and "key add" in done.error and desk.everything() == before


# -- the recovery sheet -----------------------------------------------------------------------------------------------


def test_the_recovery_sheet_opens_the_repository_without_any_key(desk: Desk) -> None:
    snapshot_id = desk.store(1)
    sheet = desk.folder / "sheet"
    sheet.write_text(desk.call("key", "export").text)
    assert desk.call("--json", "key", "export").json == {"sheet": sheet.read_text()}
    for path in (desk.place / "keys").iterdir():
        path.unlink()
    desk.call("snapshots", status=12)
    call = desk.with_key(sheet)
    assert [s["id"] for s in call("--json", "snapshots").json] == [snapshot_id]
    call("check", "--read-data")
    call("key", "add", "--new-password-file", password_file(desk, "again"))
    desk.with_password("again")("restore", "latest", "-t", desk.folder / "out")
    assert (desk.folder / "out" / "file").read_bytes() == b"1" * 5000
    assert "recovery sheet" in call("key", "passwd", "--new-password-file", password_file(desk, "x"), status=2).error


def test_a_mistyped_sheet_says_which_line(desk: Desk) -> None:
    lines = desk.call("key", "export").lines
    at = next(i for i, line in enumerate(lines) if line.startswith("03 "))
    lines[at] = lines[at].replace(lines[at][3], "A" if lines[at][3] != "A" else "B", 1)
    sheet = desk.folder / "sheet"
    sheet.write_text("\n".join(lines))
    assert "Line 03" in desk.with_key(sheet)("snapshots", status=2).error
    demand_error(desk.with_key(sheet)("--json", "snapshots", status=2), "usage")


def test_the_first_repository_tells_where_its_key_is_and_keeps_it_from_logs(tmp_path: Path) -> None:
    call = Inside(Path(), Path(), tmp_path, {"HOLDFAST_REPOSITORY": "", "HOLDFAST_KEY_FILE": ""})
    (tmp_path / "tree").mkdir()
    done = call("backup", tmp_path / "tree")
    key = tmp_path / ".config" / "holdfast" / "key"
    assert str(key) in done.error and "key export" in done.error
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    sheet = call("key", "export").text
    assert not any(line in done.error + done.text for line in sheet.splitlines()[5:])
    assert len(call("--json", "snapshots").json) == 1
