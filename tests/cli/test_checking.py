"""``holdfast check``, ``repair``, ``self-test``, ``completion``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from holdfast.archive import selftest
from holdfast.cli.commands import COMMANDS
from holdfast.errors import Damaged, StorageDenied
from holdfast.storage.local import LocalStorage
from tests.cli.inside import Desk, demand_error, demand_run, make_desk
from tests.repository.making import names, read_back
from tests.support.components import need


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path)


def flip(desk: Desk, name: str) -> None:
    path = desk.locate(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def data_pack(desk: Desk) -> str:
    """The pack with the files' content."""
    return max(names(desk.repo.storage, "data"), key=lambda n: desk.repo.storage.stat(n).size)


def large(desk: Desk) -> str:
    """A snapshot whose files take more than its pages."""
    (desk.tree / "many").write_bytes(bytes(range(256)) * 20)
    (desk.tree / "noise").write_bytes(os.urandom(20_000))
    return str(demand_run(desk.call("--json", "backup", desk.tree))["snapshot_id"])


# -- check ------------------------------------------------------------------------------------------------------------


def test_a_good_repository_is_good(desk: Desk) -> None:
    large(desk)
    done = desk.call("check")
    assert "No damage was found." in done.text and "content not read" in done.text and "1 snapshots" in done.text
    assert "2 read" in desk.call("check", "--read-data").text
    assert desk.call("check", "--read-data=50%").text.count("1 read") == 1


def test_check_for_programs(desk: Desk) -> None:
    large(desk)
    summary = demand_run(desk.call("--json", "check", "--read-data"))
    assert summary.keys() == {
        "message_type", "good", "snapshots", "packs", "packs_read", "bytes_read", "chunks", "findings", "affected"
    }  # fmt: skip
    assert summary["good"] is True and summary["packs"] == summary["packs_read"] == 2 and summary["findings"] == 0
    assert summary["bytes_read"] == sum(i.size for i in desk.repo.storage.list("data"))


def test_damage_is_status_1_and_names_the_object_and_the_files(desk: Desk) -> None:
    snapshot_id, name = large(desk), data_pack(desk)
    flip(desk, name)
    desk.call("check")
    done = desk.call("check", "--read-data", status=1)
    assert f"damaged: The pack {name}" in done.text
    assert f"affected: {snapshot_id[:8]}:noise: the chunk" in done.text
    assert "holdfast repair" in done.error and "No damage" not in done.text


def test_damage_for_programs(desk: Desk) -> None:
    snapshot_id, name = large(desk), data_pack(desk)
    flip(desk, name)
    done = desk.call("--json", "check", "--read-data", status=1)
    assert done.error == ""
    summary = demand_run(done)
    findings = [e for e in done.events if e["message_type"] == "finding"]
    affected = [e for e in done.events if e["message_type"] == "affected"]
    assert summary["good"] is False and summary["findings"] == len(findings) == 1
    assert findings[0]["object"] == name and name in findings[0]["message"]
    assert summary["affected"] == len(affected) and {e["snapshot"] for e in affected} == {snapshot_id}
    assert {"noise"} <= {e["path"] for e in affected}


def test_paths_are_printed_so_that_they_harm_no_terminal(desk: Desk) -> None:
    (desk.tree / "evil\x1b[2J\n").write_bytes(os.urandom(30_000))
    large(desk)
    flip(desk, data_pack(desk))
    done = desk.call("check", "--read-data", status=1)
    assert "evil\\x1b[2J\\n" in done.text and "\x1b" not in done.text


def test_a_check_changes_nothing(desk: Desk) -> None:
    large(desk)
    before = desk.everything()
    desk.call("check", "--read-data")
    assert desk.everything() == before


def test_a_repository_that_may_only_be_read_is_checked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    large(desk)

    def deny(*args: object) -> None:
        raise StorageDenied("It is mounted read-only.")

    monkeypatch.setattr(LocalStorage, "put", deny)
    monkeypatch.setattr(LocalStorage, "delete", deny)
    desk.call("check", "--read-data")
    desk.call("snapshots")
    desk.call("restore", "latest", "-t", desk.folder / "out")


# -- repair -----------------------------------------------------------------------------------------------------------


def test_after_a_repair_the_check_is_good_and_what_was_lost_was_named(desk: Desk) -> None:
    snapshot_id, name = large(desk), data_pack(desk)
    flip(desk, name)
    done = desk.call("repair")
    assert name in done.text and f"lost: {snapshot_id[:8]}:noise" in done.text
    assert "No damage was found." in desk.call("check", "--read-data").text
    (left,) = desk.call("--json", "snapshots").json
    assert left["tags"] == ["repaired"] and left["id"] != snapshot_id
    desk.call("restore", "latest", "-t", desk.folder / "out", "--verify")


def test_repair_for_programs(desk: Desk) -> None:
    large(desk)
    name = data_pack(desk)
    flip(desk, name)
    summary = demand_run(desk.call("--json", "repair"))
    assert summary.keys() == {"message_type", "done", "lost", "dry_run"} and summary["dry_run"] is False
    assert any(name in text for text in summary["done"]) and any("noise" in text for text in summary["lost"])


def test_one_step_at_a_time_and_then_a_backup_that_heals(desk: Desk) -> None:
    snapshot_id = large(desk)
    flip(desk, data_pack(desk))
    desk.call("repair", "index")
    desk.call("repair", "packs")
    desk.call("check", status=1)
    desk.call("backup", desk.tree)
    desk.call("check", "--read-data")
    assert read_back(desk.repo, snapshot_id)[b"noise"] == (desk.tree / "noise").read_bytes()
    assert "lost" not in desk.call("repair", "snapshots").text
    assert len(desk.call("--json", "snapshots").json) == 2


def test_a_repository_without_its_index_is_repaired(desk: Desk) -> None:
    snapshot_id = large(desk)
    for path in (desk.place / "index").iterdir():
        path.unlink()
    assert "no index object names it" in desk.call("check", status=1).text
    assert "written anew from 2 packs" in desk.call("repair", "index").text
    desk.call("check", "--read-data")
    assert read_back(desk.repo, snapshot_id)


@pytest.mark.parametrize("what", ["index", "packs", "snapshots", "all"])
def test_a_dry_run_of_repair_changes_nothing(desk: Desk, what: str) -> None:
    large(desk)
    flip(desk, data_pack(desk))
    flip(desk, names(desk.repo.storage, "index")[0])
    before = desk.everything()
    desk.call("repair", what, "--dry-run")
    assert demand_run(desk.call("--json", "repair", "-n", what))["dry_run"] is True
    assert desk.everything() == before


def test_a_dry_run_says_what_would_be_done(desk: Desk) -> None:
    large(desk)
    flip(desk, data_pack(desk))
    done = desk.call("repair", "-n")
    assert "would be written" in done.text and "would be saved" in done.text


# -- self-test, completion --------------------------------------------------------------------------------------------


def test_the_self_test_goes_through(desk: Desk) -> None:
    done = desk.call("self-test")
    assert done.text.count("ok  ") >= 5 and "works on this machine" in done.text
    done = desk.call("--json", "self-test")
    assert demand_run(done)["good"] is True
    assert all(e["message_type"] == "step" and e["name"] for e in done.events[:-1])


def test_a_self_test_that_fails_says_so(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> object:
        yield "this worked"
        raise Damaged("Two and two are five.")

    monkeypatch.setattr(selftest, "run", fail)
    assert "FAILED  Two and two are five." in desk.call("self-test", status=1).text
    summary = demand_run(desk.call("--json", "self-test", status=1))
    assert summary["good"] is False and "five" in summary["message"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(desk: Desk, shell: str) -> None:
    script = desk.call("completion", shell).text
    assert "_HOLDFAST_COMPLETE" in script and "holdfast" in script
    if shutil.which(shell):
        program = need(shell)
        flag = "--no-execute" if shell == "fish" else "-n"
        done = subprocess.run([program, flag], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr


def test_completion_needs_no_repository(desk: Desk) -> None:
    shutil.rmtree(desk.place)
    desk.call("completion", "bash")
    demand_error(desk.call("--json", "completion", "tcsh", status=2), "usage")


def test_every_command_has_a_line_of_help_and_loads(desk: Desk) -> None:
    text = desk.call("--help").text
    for name, (_, line) in COMMANDS.items():
        assert name in text and line.split()[0] in text
