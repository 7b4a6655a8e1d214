"""``holdfast backup -r A -r B``, and profiles named as places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.archive import files
from holdfast.cli.commands import COMMANDS
from holdfast.errors import StorageFull
from holdfast.repository import keys
from holdfast.settings import load
from holdfast.storage.local import LocalStorage
from holdfast.wiring.profiles import settings_at
from tests.cli.inside import Desk, demand_error, make_desk
from tests.repository.making import QUICK
from tests.support.commands import Commands


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setattr(keys, "Argon2", lambda: QUICK)
    monkeypatch.chdir(tmp_path)
    desk = make_desk(tmp_path)
    (desk.tree / "folder").mkdir()
    (desk.tree / "folder" / "inside").write_text("inside")
    for name in ("a", "b"):
        desk.call("-r", name, "init")
    return desk


def profiles(desk: Desk, text: str) -> None:
    """The settings file."""
    folder = desk.folder / ".config" / "holdfast"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "holdfast.toml").write_text(text)


def ids(desk: Desk, *place: object) -> list[str]:
    """The snapshots at a place."""
    found = desk.call(*place, "--json", "snapshots").json
    return [s["id"] for s in found]


# -- several repositories ----------------------------------------------------------------------------------------------


def test_every_place_gets_a_snapshot_and_is_told_of_by_its_place(desk: Desk) -> None:
    done = desk.call("backup", "-r", "a", "-r", "b", desk.tree)
    for name in ("a", "b"):
        (snapshot,) = ids(desk, "-r", name)
        assert f"{desk.folder / name}:" in done.lines
        assert f"Snapshot {snapshot[:8]} saved" in done.text
        desk.call("-r", name, "restore", "latest", "--target", desk.folder / f"out {name}")
        assert (desk.folder / f"out {name}" / "folder" / "inside").read_text() == "inside"
    assert ids(desk) == []


def test_places_may_be_named_before_and_after_the_command(desk: Desk) -> None:
    desk.call("-r", "a", "backup", "-r", "b", "-r", "a", desk.tree)
    assert [len(ids(desk, "-r", name)) for name in ("a", "b")] == [1, 1]


def test_for_programs_there_is_a_summary_for_each(desk: Desk) -> None:
    done = desk.call("--json", "backup", "-r", "a", "-r", "b", desk.tree)
    summaries = [e for e in done.events if e["message_type"] == "summary"]
    assert [s["repository"] for s in summaries] == [str(desk.folder / name) for name in ("a", "b")]
    assert [s["snapshot_id"] for s in summaries] == [ids(desk, "-r", name)[0] for name in ("a", "b")]
    assert [s["files_new"] for s in summaries] == [2, 2]


def test_the_summary_of_a_single_one_is_as_it_was(desk: Desk) -> None:
    done = desk.call("--json", "backup", "-r", "a", desk.tree)
    assert "repository" not in done.events[-1]
    assert str(desk.folder / "a") not in desk.call("-r", "a", "backup", desk.tree).text


def test_standard_input_goes_into_all_of_them(desk: Desk) -> None:
    """A process of its own: standard input is read by its number."""
    call = Commands(desk.place, desk.call.key_file, desk.folder)
    call("backup", "-r", desk.folder / "a", "-r", desk.folder / "b", "--stdin", input=b"a stream")
    for name in ("a", "b"):
        assert call("-r", desk.folder / name, "dump", "latest", "stdin").out == b"a stream"


def test_a_dry_run_stores_nothing_anywhere(desk: Desk) -> None:
    done = desk.call("backup", "-n", "-r", "a", "-r", "b", desk.tree)
    assert done.text.count("this was a dry run") == 2
    assert [ids(desk, "-r", name) for name in ("a", "b")] == [[], []]


@pytest.mark.parametrize("order", [("a", "missing"), ("missing", "a")])
def test_one_that_is_not_there_is_warned_of_and_the_others_go_on(desk: Desk, order: tuple[str, str]) -> None:
    places = [word for name in order for word in ("-r", name)]
    done = desk.call("backup", *places, desk.tree, status=3)
    (warning,) = done.error.splitlines()
    missing = desk.folder / "missing"
    assert warning == f"holdfast: {missing} has no new snapshot: There is no repository at {missing}."
    assert len(ids(desk, "-r", "a")) == 1


def test_one_that_fails_later_is_warned_of_and_catches_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    really = LocalStorage.put

    def put(self: LocalStorage, name: str, parts: list[bytes]) -> None:
        if name.startswith("data/") and self.place.endswith("/b"):
            raise StorageFull(f"{self.place}: no space left.")
        really(self, name, parts)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", put)
        done = desk.call("backup", "-r", "a", "-r", "b", desk.tree, status=3)
    assert done.error == f"holdfast: {desk.folder / 'b'} has no new snapshot: {desk.folder / 'b'}: no space left.\n"
    assert f"{desk.folder / 'a'}:" in done.lines and f"{desk.folder / 'b'}:" not in done.lines
    assert [len(ids(desk, "-r", name)) for name in ("a", "b")] == [1, 0]
    done = desk.call("backup", "-r", "a", "-r", "b", desk.tree)
    assert "0 new, 0 changed, 2 unmodified" in done.text and "2 new, 0 changed, 0 unmodified" in done.text


def test_for_programs_a_failure_is_a_warning_with_its_place_and_code(desk: Desk) -> None:
    done = desk.call("--json", "backup", "-r", "missing", "-r", "a", desk.tree, status=3)
    warning, summary = (e for e in done.events if e["message_type"] != "status")
    assert (warning["message_type"], warning["code"]) == ("warning", "no-repository")
    assert warning["repository"] == str(desk.folder / "missing") and warning["repository"] in warning["message"]
    assert summary["repository"] == str(desk.folder / "a")


def test_when_all_fail_the_status_is_that_of_the_last_error(desk: Desk) -> None:
    done = desk.call("backup", "-r", "none", "-r", "missing", desk.tree, status=10)
    assert f"{desk.folder / 'none'} has no new snapshot" in done.error
    assert f"There is no repository at {desk.folder / 'missing'}." in done.error
    done = desk.call("--json", "backup", "-r", "none", "-r", "missing", desk.tree, status=10)
    assert [e["code"] for e in done.events] == ["no-repository"]
    assert json.loads(done.error)["code"] == "no-repository"


def test_the_wrong_password_for_one_of_them(desk: Desk) -> None:
    other = desk.with_password("another")
    other("-r", "c", "init")
    done = desk.call("backup", "-r", "a", "-r", "c", desk.tree, status=3)
    assert f"{desk.folder / 'c'} has no new snapshot" in done.error
    assert len(ids(desk, "-r", "a")) == 1


def test_a_password_in_an_address_is_not_said(desk: Desk) -> None:
    done = desk.call("backup", "-r", "a", "-r", "odd://somebody:secret@example.org/", desk.tree, status=3)
    assert "secret" not in done.error and "odd:…" in done.error


def test_their_own_folders_are_left_out_also_of_one_that_fails(desk: Desk) -> None:
    (desk.folder / "c").mkdir()
    (desk.folder / "c" / "config").write_text("damaged")
    (desk.folder / "c" / "seen").write_text("x")
    desk.call("backup", "-r", "a", "-r", "b", "-r", "c", desk.folder, status=3)
    listed = desk.call("-r", "a", "ls", "latest").text
    assert "tree/folder/inside" in listed
    assert not any(f"{name}/config" in listed for name in ("a", "b", "c")) and "seen" not in listed


def test_files_that_cannot_be_read_are_named_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: files.FileReader, folder: int, name: bytes, listed: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.FileReader, "_open", refuse)
    done = desk.call("backup", "-r", "a", "-r", "b", desk.tree, status=3)
    assert done.error.count("Permission denied") == 2
    assert "2 files could not be read" in done.error


def test_the_same_place_twice_is_refused(desk: Desk) -> None:
    (desk.folder / "link").symlink_to(desk.folder / "a")
    assert "named twice" in desk.call("backup", "-r", "a", "-r", "link", desk.tree, status=2).error


WORDS = {
    "ls": ["latest"],
    "find": ["x"],
    "diff": ["1", "2"],
    "restore": ["latest", "--target", "x"],
    "dump": ["latest", "x"],
    "mount": ["x"],
    "copy": ["--to", "c"],
    "key": ["list"],
    "tag": ["latest", "--add", "x"],
    "login": ["https://example.org"],
    "logout": ["https://example.org"],
    "manifest": ["list"],
    "completion": ["bash"],
    "bench-storage": ["x"],
    "blob": ["ls"],
    "share": ["ls"],
}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"backup"}))
def test_every_other_command_takes_one_repository(desk: Desk, name: str) -> None:
    words = [name, *WORDS.get(name, [])]
    for line in (["-r", "a", "-r", "b", *words], ["-r", "a", *words, "-r", "b"]):
        assert "works on one repository" in desk.call(*line, status=2).error
    demand_error(desk.call("--json", "-r", "a", "-r", "b", *words, status=2), "usage")


# -- profiles as places ------------------------------------------------------------------------------------------------


def test_a_profile_named_as_a_place_has_its_own_password(desk: Desk) -> None:
    (desk.folder / "password").write_text("another\n")
    profiles(desk, f'[profile.offsite]\nrepository = "{desk.folder}/c"\npassword_file = "{desk.folder}/password"\n')
    desk.call("-r", "@offsite", "init")
    done = desk.call("backup", "-r", "a", "-r", "@offsite", desk.tree)
    assert f"{desk.folder / 'c'}:" in done.lines
    assert len(ids(desk, "-r", "@offsite")) == len(ids(desk, "-r", "a")) == 1
    assert len(json.loads(desk.with_password("another")("-r", "c", "--json", "snapshots").out)) == 1


def test_copies_go_to_a_profile_too(desk: Desk) -> None:
    (desk.folder / "password").write_text("another\n")
    profiles(desk, f'[profile.offsite]\nrepository = "{desk.folder}/c"\npassword_file = "{desk.folder}/password"\n')
    desk.call("-r", "@offsite", "init")
    desk.call("-r", "a", "backup", desk.tree)
    assert "1 snapshots copied" in desk.call("-r", "a", "copy", "--to", "@offsite").text


def test_a_profile_without_a_credential_takes_the_one_that_is_given(desk: Desk) -> None:
    profiles(desk, f'[profile.b]\nrepository = "{desk.folder}/b"\nlevel = 9\n')
    desk.call("backup", "-r", "a", "-r", "@b", desk.tree)
    assert len(ids(desk, "-r", "b")) == 1


def test_what_is_excluded_is_what_the_first_one_says(desk: Desk) -> None:
    profiles(desk, f'[profile.b]\nrepository = "{desk.folder}/b"\nexclude = ["inside"]\n')
    desk.call("backup", "-r", "@b", "-r", "a", desk.tree)
    assert "inside" not in desk.call("-r", "a", "ls", "latest").text
    desk.call("backup", "-r", "a", "-r", "@b", desk.tree)
    assert "inside" in desk.call("-r", "b", "ls", "latest").text


@pytest.mark.parametrize(
    ("place", "said"),
    [("@nobody", "has no profile 'nobody'"), ("@empty", "'empty'"), ("@circle", "'circle'"), ("@", "write @NAME")],
)
def test_a_profile_that_leads_nowhere_is_refused(desk: Desk, place: str, said: str) -> None:
    profiles(desk, '[profile.empty]\nlevel = 3\n[profile.circle]\nrepository = "@circle"\n')
    assert said in desk.call("-r", place, "snapshots", status=2).error
    assert said in desk.call("backup", "-r", "a", "-r", place, desk.tree, status=2).error
    assert ids(desk, "-r", "a") == []


def test_a_folder_whose_name_begins_like_a_profile_is_named_by_its_path(desk: Desk) -> None:
    desk.call("-r", "./@odd", "init")
    assert (desk.folder / "@odd" / "config").exists()


def test_what_a_profile_says_of_its_storage_counts_there_only(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text(
        '[profile.one]\nrepository = "s3:one"\npassword_file = "/one"\n'
        '[profile.one.storage]\nAWS_ACCESS_KEY_ID = "of one"\n'
        '[profile.two]\nrepository = "s3:two"\nlimit_upload = "5M"\n'
    )
    environment = {
        "HOLDFAST_CONFIG": str(tmp_path / "holdfast.toml"),
        "HOLDFAST_PASSWORD": "given",
        "AWS_ACCESS_KEY_ID": "given",
        "AWS_SECRET_ACCESS_KEY": "given",
    }
    one, two, other = (
        settings_at(load({"repository": place}, environment), {"repository": place}, environment)
        for place in ("@one", "@two", "s3:three")
    )
    assert (one.repository, one.password, one.password_file) == ("s3:one", "", "/one")
    assert one.storage == {"AWS_ACCESS_KEY_ID": "of one", "AWS_SECRET_ACCESS_KEY": "given"}
    assert (two.repository, two.password, two.limit_upload) == ("s3:two", "given", "5M")
    assert two.storage["AWS_ACCESS_KEY_ID"] == "given"
    assert (other.repository, other.password) == ("s3:three", "given")


def test_a_person_is_asked_once_for_the_password_of_all(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    no_key = type(desk.call)(desk.place, Path(), desk.folder, {"HOLDFAST_KEY_FILE": ""})
    made = desk.with_password("shared")
    for name in ("c", "d"):
        made("-r", name, "init")

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "shared"

    monkeypatch.setattr("holdfast.cli.output._ask", ask)
    no_key("backup", "-r", "c", "-r", "d", desk.tree)
    assert asked == ["Password"]
