"""The command line and a storage far away: what is said while it waits, and that nobody waits who does not want to."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time

import pytest

from tests.support.commands import Commands
from tests.support.proxy import proxy_to
from tests.support.rclone import free_port, serving
from tests.support.trees import contents, noise, write

PASSWORD = {"HOLDFAST_PASSWORD": "far", "HOLDFAST_KEY_FILE": ""}


@pytest.fixture
def proxy(tmp_path):
    (tmp_path / "served").mkdir()
    with serving("restic", tmp_path / "served") as port, proxy_to(f"http://127.0.0.1:{port}") as made:
        yield made


@pytest.fixture
def holdfast(proxy, tmp_path):
    called = Commands(f"rest:{proxy.url}/repo", tmp_path / "no-key", tmp_path, PASSWORD)
    called("init")
    return called


def nobody(tmp_path):
    return Commands(f"rest:http://127.0.0.1:{free_port()}/repo", tmp_path / "no-key", tmp_path, PASSWORD)


def test_a_wrong_address_is_said_within_seconds(tmp_path):
    began = time.monotonic()
    done = nobody(tmp_path)("snapshots", status=1)
    assert time.monotonic() - began < 40
    assert "cannot be reached" in done.error
    assert "Traceback" not in done.error


def test_as_json_the_error_has_its_code_and_nothing_else_is_said(tmp_path):
    done = nobody(tmp_path)("snapshots", "--json", status=1)
    assert json.loads(done.error)["code"] == "unavailable"


def test_a_password_in_the_address_is_never_said(tmp_path):
    commands = nobody(tmp_path)
    commands.place = str(commands.place).replace("//", "//me:s3cret@")
    done = commands("snapshots", status=1)
    assert "s3cret" not in done.error + done.text


def test_who_interrupts_twice_does_not_wait_for_a_server_that_is_gone(holdfast, proxy, tmp_path):
    source = write(tmp_path / "source", {f"f{n}": noise(4_000_000, n) for n in range(30)})
    proxy.holds.append(5_000_000)
    process = subprocess.Popen(
        holdfast.command("backup", source), env=holdfast.environment, stderr=subprocess.PIPE, text=True
    )
    assert proxy.held.wait(60)
    proxy.lead_to(f"http://127.0.0.1:{free_port()}")  # nobody is there any more
    proxy.budgets[:] = [1] * 10_000
    proxy.go.set()
    time.sleep(3)
    assert process.poll() is None  # it is patient
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None  # what was read is still to be stored
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 130
    assert "Trying again" in said and "Traceback" not in said


def test_the_caches_folder_is_made_and_not_with_no_cache(holdfast, tmp_path):
    source = write(tmp_path / "source", {"a": "a"})
    shutil.rmtree(tmp_path / ".cache")
    holdfast("backup", source, "--no-cache")
    assert not (tmp_path / ".cache" / "holdfast" / "storage").exists()
    holdfast("backup", source)
    assert contents(tmp_path / ".cache" / "holdfast" / "storage")
    holdfast("restore", "latest", "--target", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)


def test_limits_hold_and_nonsense_is_refused(holdfast, tmp_path):
    source = write(tmp_path / "source", {"a": noise(3_000_000)})
    holdfast("backup", source, "--limit-upload", "fast", status=2)
    began = time.monotonic()
    holdfast("backup", source, "--limit-upload", "1M", "--limit-download", "1M")
    assert time.monotonic() - began > 2


def test_an_empty_place_is_measured_and_left_empty_and_a_repository_is_not_touched(holdfast, tmp_path):
    before = contents(tmp_path / "served")
    done = holdfast("bench-storage", holdfast.place, status=2)
    assert "There is a repository" in done.error
    assert contents(tmp_path / "served") == before
    figures = holdfast("bench-storage", f"{holdfast.place}-beside", "--packs", "2", "--json").events
    assert {f["name"] for f in figures} >= {"latency of a question", "put of packs", "get of packs", "a listing"}
    assert all(f["value"] > 0 for f in figures)
    assert contents(tmp_path / "served") == before
