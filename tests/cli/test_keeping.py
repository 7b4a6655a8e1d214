"""``holdfast init`` and ``holdfast copy``."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.repository import keys
from holdfast.repository.repository import open_repository
from holdfast.storage.local import LocalStorage
from holdfast.wiring.app import machine_owner
from tests.cli.inside import KEY_TEXT, Desk, demand_error, demand_run, make_desk
from tests.repository.making import KEY, QUICK, Clock, read_back


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(keys, "Argon2", lambda: QUICK)
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path)


def elsewhere(desk: Desk, name: str = "elsewhere") -> Path:
    """Another repository with the same key file."""
    desk.call("-r", desk.folder / name, "init")
    return desk.folder / name


# -- init -------------------------------------------------------------------------------------------------------------


def test_init_makes_a_repository_at_a_place_and_says_which(desk: Desk) -> None:
    new = desk.folder / "deep" / "new"
    done = desk.call("-r", new, "init")
    assert str(new) in done.text and "key export" in done.error
    assert desk.call("-r", new, "--json", "snapshots").json == []


def test_init_for_programs(desk: Desk) -> None:
    new = desk.folder / "new"
    summary = demand_run(desk.call("-r", new, "--json", "init"))
    assert summary == {"message_type": "summary", "repository": summary["repository"], "place": str(new)}
    assert open_repository(LocalStorage(new), KEY, machine_owner(), Clock()).id == summary["repository"]


def test_init_leaves_what_is_there_alone(desk: Desk) -> None:
    desk.store(1)
    before = desk.everything()
    assert "already" in desk.call("init", status=1).error
    demand_error(desk.call("--json", "init", status=1), "repository-exists")
    assert desk.everything() == before


def test_init_over_a_repository_without_its_config_is_refused(desk: Desk) -> None:
    """It would make what is left of it unreadable for good."""
    desk.store(1)
    (desk.place / "config").unlink()
    before = desk.everything()
    done = desk.call("init", status=1)
    assert "config is missing" in done.error and "copy" in done.error
    assert desk.everything() == before


def test_init_needs_somebody_to_give_it_a_key(desk: Desk) -> None:
    call = desk.with_password("")
    done = call("-r", desk.folder / "new", "init", status=2)
    assert "password or a key file" in done.error and "HOLDFAST_PASSWORD" in done.error
    assert not (desk.folder / "new").exists()


def test_a_recovery_sheet_makes_no_repository(desk: Desk) -> None:
    sheet = desk.folder / "sheet"
    sheet.write_text(desk.call("key", "export").text)
    assert "cannot make one" in desk.with_key(sheet)("-r", desk.folder / "new", "init", status=2).error
    assert not (desk.folder / "new").exists()


# -- copy -------------------------------------------------------------------------------------------------------------


def test_everything_is_copied_once(desk: Desk) -> None:
    ids, target = [desk.store(n) for n in range(3)], elsewhere(desk)
    done = desk.call("copy", "--to", target)
    assert "3 snapshots copied, 0 were there already" in done.text
    assert all(i[:8] in done.text for i in ids)
    assert "0 snapshots copied, 3 were there already" in desk.call("copy", "--to", target).text
    assert desk.call("-r", target, "check", "--read-data").status == 0
    other = open_repository(LocalStorage(target), KEY, machine_owner(), Clock())
    assert sorted(read_back(other, s.id)[b"file"][:1] for s in other.snapshots()) == [b"0", b"1", b"2"]


def test_copy_for_programs(desk: Desk) -> None:
    ids, target = [desk.store(n) for n in range(2)], elsewhere(desk)
    desk.call("copy", "--to", target, ids[0])
    done = desk.call("--json", "copy", "--to", target)
    assert demand_run(done) == {"message_type": "summary", "copied": 1, "skipped": 1}
    copied = [e for e in done.events if e["message_type"] == "copied"]
    assert [(e["source"], e["skipped"]) for e in copied] == [(ids[0], True), (ids[1], False)]
    assert {e["target"] for e in copied} == {s["id"] for s in desk.call("-r", target, "--json", "snapshots").json}


def test_only_what_is_named_or_filtered_is_copied(desk: Desk) -> None:
    ids = [desk.store(n, host=f"h{n}", tags=[f"t{n}"]) for n in range(4)]
    target = elsewhere(desk)
    for words in ([ids[0][:12]], ["-H", "h1"], ["--tag", "t2"], ["latest", "-H", "h3"]):
        assert "1 snapshots copied" in desk.call("copy", "--to", target, *words).text
    assert len(desk.call("-r", target, "--json", "snapshots").json) == 4


def test_each_side_has_its_own_key(desk: Desk) -> None:
    desk.store(1)
    password, key = desk.folder / "password", desk.folder / "other key"
    password.write_text("theirs\n")
    key.write_text(keys.new_key_file())
    desk.call("-r", desk.folder / "a", "--password-file", password, "--key-file", "", "init")
    desk.with_key(key)("-r", desk.folder / "b", "init")
    assert "1 snapshots copied" in desk.call("copy", "--to", desk.folder / "a", "--to-password-file", password).text
    assert "1 snapshots copied" in desk.call("copy", "--to", desk.folder / "b", "--to-key-file", key).text
    desk.call("copy", "--to", desk.folder / "a", status=12)
    desk.call("copy", "--to", desk.folder / "b", status=12)


@pytest.mark.parametrize("by", ["the same path", "a link"])
def test_a_repository_is_not_copied_into_itself(desk: Desk, by: str) -> None:
    desk.store(1)
    (desk.folder / "link").symlink_to(desk.place)
    place = desk.place if by == "the same path" else desk.folder / "link"
    assert "the same repository" in desk.call("copy", "--to", place, status=2).error


def test_where_there_is_no_repository_none_is_copied_to(desk: Desk) -> None:
    desk.store(1)
    done = desk.call("copy", "--to", desk.folder / "nothing", status=10)
    assert str(desk.folder / "nothing") in done.error and not (desk.folder / "nothing").exists()


def test_a_write_only_key_neither_copies_nor_takes_copies_in(desk: Desk) -> None:
    desk.store(1)
    target, adds = elsewhere(desk), desk.folder / "adds only"
    desk.call("key", "add", "--write-only", "--new-key-file", adds)
    desk.with_key(adds)("copy", "--to", target, "--to-key-file", desk.call.key_file, status=12)
    adds_there = desk.folder / "adds only there"
    desk.call("-r", target, "key", "add", "--write-only", "--new-key-file", adds_there)
    assert "write-only" in desk.call("copy", "--to", target, "--to-key-file", adds_there, status=12).error
    assert desk.call("-r", target, "--json", "snapshots").json == []


def test_a_damaged_snapshot_does_not_keep_the_others(desk: Desk) -> None:
    ids, target = [desk.store(n) for n in range(2)], elsewhere(desk)
    path = desk.locate(f"snapshots/{ids[0]}")
    path.chmod(0o600)
    path.write_bytes(b"rubbish")
    done = desk.call("copy", "--to", target)
    assert ids[0] in done.error and "1 snapshots copied" in done.text


def test_the_key_of_these_tests_is_the_one_of_its_text() -> None:
    assert keys.parse_key_file(KEY_TEXT) == KEY
