"""How commands fail: exit statuses, a sentence that names the thing, one that says what to do; never a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.archive import files
from holdfast.cli import main as edge
from holdfast.cli.commands import COMMANDS as COMMAND_NAMES
from holdfast.errors import HoldfastError
from holdfast.repository import keys
from holdfast.repository.repository import create
from holdfast.storage.local import LocalStorage
from holdfast.wiring.app import machine_owner
from tests.cli.inside import Desk, demand_error, demand_run, make_desk
from tests.repository.making import QUICK, names
from tests.support.commands import Commands

COMMANDS: list[list[str]] = [
    ["snapshots"], ["ls", "latest"], ["find", "x"], ["diff", "latest", "latest"], ["restore", "latest", "-t", "out"],
    ["dump", "latest", "file"], ["forget", "latest"], ["prune"], ["check"], ["repair"], ["stats"],
    ["copy", "--to", "elsewhere"], ["key", "list"], ["key", "export"], ["key", "add"], ["key", "remove", "ab"],
    ["key", "passwd"], ["tag", "latest", "--add", "x"], ["backup", "tree"],
]  # fmt: skip
IDS = [" ".join(c[:2]) if c[0] == "key" else c[0] for c in COMMANDS]
READING = [
    *(c for c in COMMANDS if c[0] not in ("backup", "key", "copy")),
    ["key", "export"], ["repair", "packs"], ["repair", "snapshots"],
]  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path)


@pytest.fixture
def locked(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The repository opens with the password ``right``, and quickly."""
    monkeypatch.setattr(keys, "Argon2", lambda: QUICK)
    shutil.rmtree(desk.place)
    storage = LocalStorage(desk.place)
    storage.create()
    create(storage, keys.Password("right"), machine_owner(), time.time_ns)
    return desk


# -- 10: no repository ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=IDS)
def test_no_repository_is_status_10_and_makes_none(tmp_path: Path, words: list[str]) -> None:
    desk = make_desk(tmp_path, repository=False)
    done = desk.call(*words, status=10)
    assert str(desk.place) in done.error and "holdfast init" in done.error
    assert not desk.place.exists()
    assert demand_error(desk.call("--json", *words, status=10), "no-repository")["hint"]


def test_a_folder_that_is_no_repository_is_left_alone(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, repository=False)
    desk.place.mkdir()
    (desk.place / "diary").write_text("mine")
    for words in COMMANDS:
        desk.call(*words, status=10)
    assert [p.name for p in desk.place.iterdir()] == ["diary"]


def test_nobody_is_asked_for_the_password_of_a_repository_that_is_not_there(tmp_path: Path) -> None:
    desk = make_desk(tmp_path, repository=False)
    desk.call("--password-command", f"touch {tmp_path}/asked", "--key-file", "", "check", status=10)
    assert not (tmp_path / "asked").exists()


# -- 12: the wrong key ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=IDS)
def test_a_wrong_password_is_status_12(locked: Desk, words: list[str]) -> None:
    done = locked.with_password("wrong-guess")(*words, status=12)
    assert str(locked.place) in done.error and "password" in done.error
    assert "wrong-guess" not in done.error + done.text
    error = demand_error(locked.with_password("wrong-guess")("--json", *words, status=12), "wrong-key")
    assert "wrong-guess" not in str(error)


def test_a_wrong_key_file_is_status_12(desk: Desk) -> None:
    other = desk.folder / "other key"
    other.write_text(keys.new_key_file())
    assert "this key file" in desk.with_key(other)("snapshots", status=12).error


@pytest.mark.parametrize("words", READING, ids=[" ".join(c[:2]) for c in READING])
def test_a_write_only_key_reads_nothing_and_is_status_12(desk: Desk, words: list[str]) -> None:
    desk.store(1)
    other = desk.folder / "adds only"
    desk.call("key", "add", "--write-only", "--new-key-file", other)
    before = desk.everything()
    done = desk.with_key(other)(*words, status=12)
    assert "write-only key" in done.error and "full key" in done.error
    demand_error(desk.with_key(other)("--json", *words, status=12), "key-cannot-read")
    assert desk.everything() == before
    assert not (desk.folder / "out").exists() or not any((desk.folder / "out").iterdir())


def test_a_write_only_key_backs_up(desk: Desk) -> None:
    other = desk.folder / "adds only"
    desk.call("key", "add", "--write-only", "--new-key-file", other)
    summary = demand_run(desk.with_key(other)("--json", "backup", desk.tree))
    assert [s["id"] for s in desk.call("--json", "snapshots").json] == [summary["snapshot_id"]]


# -- 2: usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["no-such-command"], ["--no-such-option", "check"], ["check", "--no-such-option"], ["restore"],
        ["restore", "latest"], ["backup"], ["backup", "not there"], ["forget"], ["prune", "--wait", "-1"],
        ["forget", "latest", "--keep-last", "1"], ["forget", "--keep-last", "many"], ["check", "--read-data=lots"],
        ["repair", "everything"], ["key", "remove", ""], ["key", "add"],
        ["ls", "not-a-snapshot"], ["key", "remove", "zz"], ["--key-file", "not there", "check"],
        ["--password-file", "not there", "check"], ["--profile", "not there", "check"], ["-r", "ftp://host/x", "check"],
        ["--password-command", "false", "check"], ["--password-command", "true", "check"],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_status_2(desk: Desk, words: list[str]) -> None:
    desk.store(1)
    before = desk.everything()
    done = desk.call(*words, status=2)
    assert done.error.startswith("holdfast: ") and done.out == b""
    demand_error(desk.call("--json", *words, status=2), "usage")
    assert desk.everything() == before


def test_help_and_version_are_no_errors(desk: Desk) -> None:
    assert "Exit status" in desk.call("--help").text
    assert desk.call("--version").text.startswith("holdfast ")
    for name in COMMAND_NAMES:
        assert "Usage" in desk.call(name, "--help").text


# -- 1, 3, 11 ---------------------------------------------------------------------------------------------------------


def test_a_snapshot_that_is_not_there_is_status_1(desk: Desk) -> None:
    assert "`holdfast backup`" in desk.call("ls", "latest", status=1).error
    desk.store(1)
    demand_error(desk.call("--json", "ls", "0123456789abcdef", status=1), "no-snapshot")


def test_a_damaged_config_is_status_1_and_says_what_to_do(desk: Desk) -> None:
    config = desk.place / "config"
    data = config.read_bytes()
    config.chmod(0o600)
    config.write_bytes(data.replace(b'"avg_size":1024', b'"avg_size":2048'))
    done = desk.call("snapshots", status=1)
    assert "config" in done.error and "copy" in done.error


def test_a_newer_repository_is_status_1_and_says_so(desk: Desk) -> None:
    config = desk.place / "config"
    config.write_bytes(config.read_bytes().replace(b'"version":1', b'"version":2'))
    for words in COMMANDS:
        assert "newer Holdfast" in desk.call(*words, status=1).error
    demand_error(desk.call("--json", "check", status=1), "unknown-version")


def test_files_that_could_not_be_read_are_status_3_and_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.tree / "secret").write_bytes(b"x")
    real = files.FileReader.read

    def refuse(self: files.FileReader, folder: int, path: tuple[bytes, bytes], listed: os.stat_result) -> object:
        if path[1] == b"secret":
            raise PermissionError(13, "Permission denied")
        return real(self, folder, path, listed)

    monkeypatch.setattr(files.FileReader, "read", refuse)
    done = desk.call("backup", desk.tree, status=3)
    assert str(desk.tree / "secret") in done.error and "Permission denied" in done.error
    done = desk.call("--json", "backup", desk.tree, status=3)
    assert demand_run(done)["errors"] == 1
    assert any("secret" in e["message"] for e in done.events if e["message_type"] == "warning")


def test_who_is_in_the_way_is_status_11_and_named(desk: Desk) -> None:
    gone = desk.store(1)
    desk.store(2)
    desk.call("forget", gone)
    with desk.repo.leases.hold("backup"):
        done = desk.call("prune", "--now", status=11)
        assert "backup on" in done.error and f"process {os.getpid()}" in done.error and "without --now" in done.error
        demand_error(desk.call("--json", "prune", "--now", status=11), "busy")
    with desk.repo.leases.hold_alone():
        for words in (["prune"], ["repair", "index"], ["repair", "packs"]):
            assert "running already" in desk.call(*words, status=11).error
    assert names(desk.repo.storage, "locks") == []


def test_an_error_of_the_system_is_a_sentence(desk: Desk) -> None:
    (desk.folder / "file").write_text("in the way")
    done = desk.call("key", "add", "--new-key-file", desk.folder / "file", status=1)
    assert done.error.count("\n") == 1 and "File exists" in done.error and "file" in done.error


def test_a_fault_of_ours_is_one_line_without_what_it_was_about(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("holdfast.repository.check.check", fault)
    done = desk.call("check", status=1)
    assert "fault in Holdfast: RuntimeError" in done.error and "HOLDFAST_DEBUG" in done.error
    assert "hunter2" not in done.error
    demand_error(desk.call("--json", "check", status=1), "bug")


def test_every_error_has_its_own_code_and_a_status_that_is_documented() -> None:
    def below(kind: type[HoldfastError]) -> list[type[HoldfastError]]:
        return [kind, *(found for sub in kind.__subclasses__() for found in below(sub))]

    kinds = [kind for kind in below(HoldfastError) if kind.__module__ == "holdfast.errors"]  # rooms may refine them
    assert len(kinds) > 30
    assert len({k.code for k in kinds}) == len(kinds)
    assert {k.exit_status for k in kinds} <= {1, 2, 3, 10, 11, 12, 130}
    for status in (
        "0 good",
        "1 failed",
        "2 usage",
        "3 incomplete",
        "10 no repository",
        "11 busy",
        "12 wrong key",
        "130",
    ):
        assert status in edge._EPILOG


# -- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["environment", "file", "command"])
def test_a_password_is_in_no_output_no_error_and_no_childs_argv(
    locked: Desk, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, spy = "right", locked.folder / "spy"
    monkeypatch.setattr(keys.Password, "__repr__", lambda self: f"Password({self.text!r})")
    (locked.folder / "secret.txt").write_text(secret + "\n")
    spy.write_text(
        f'#!/bin/sh\ntr "\\0" "\\n" < /proc/$$/cmdline > {spy}.seen\nenv >> {spy}.seen\n'
        f"cat {locked.folder}/secret.txt\n"
    )
    spy.chmod(0o700)
    call = locked.with_password(secret if way == "environment" else "")
    options = {
        "environment": [],
        "file": ["--password-file", str(locked.folder / "secret.txt")],
        "command": ["--password-command", str(spy)],
    }[way]
    said = ""
    for words in [
        ["backup", str(locked.tree)],
        ["snapshots"],
        ["key", "list"],
        ["check"],
        ["ls", "nothing"],
        ["prune"],
    ]:
        for json in ([], ["--json"]):
            done = call(*json, *options, *words, status=None)
            assert done.status in (0, 2)
            said += done.text + done.error
    assert secret not in said.replace("Copyright", "")
    if way == "command":
        assert secret not in Path(f"{spy}.seen").read_text()


def test_a_password_command_is_not_given_our_secrets(locked: Desk) -> None:
    seen = locked.folder / "seen"
    call = locked.with_password("hunter2")
    done = call("--password-command", f"sh -c 'env > {seen}; echo right'", "snapshots")
    assert done.status == 0 and "hunter2" not in seen.read_text()


def test_secrets_of_the_repository_are_in_no_output(desk: Desk) -> None:
    desk.store(1)
    bundle = desk.repo.secrets.bundle
    hidden = [bundle.shared.hex(), bundle.epochs[0].private.hex(), keys.recovery_sheet(bundle, "x").split()[30]]
    for words in [
        ["snapshots"],
        ["key", "list"],
        ["check"],
        ["stats"],
        ["prune"],
        ["repair"],
        ["forget", "--keep-last", "1"],
    ]:
        for json in ([], ["--json"]):
            done = desk.call(*json, *words)
            assert not any(secret in done.text + done.error for secret in hidden)


# -- 130, pipes: real processes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_interrupted_ends_with_130_and_without_a_traceback(desk: Desk, number: signal.Signals) -> None:
    call = Commands(desk.call.place, desk.call.key_file, desk.folder)
    process = subprocess.Popen(
        call.command("backup", "--stdin"), env=call.environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        assert process.stdin and process.stderr
        process.stdin.write(b"some of it" * 100_000)
        process.stdin.flush()
        while not names(desk.repo.storage, "locks"):
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(30) == 130
        said = process.stderr.read().decode()
    assert "nterrupted" in said and "Traceback" not in said
    assert names(desk.repo.storage, "locks") == [] and desk.repo.snapshots() == []


def test_a_reader_that_has_seen_enough_is_no_fault(desk: Desk) -> None:
    for number in range(3):
        desk.store(number)
    call = Commands(desk.call.place, desk.call.key_file, desk.folder)
    done = subprocess.run(
        f"{sys.executable} -I {call.command('snapshots')[2]} snapshots | true",
        shell=True, env=call.environment, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == b""
