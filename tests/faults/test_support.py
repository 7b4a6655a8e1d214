"""The machinery of these tests: what is missing is told as it should be, and everything is taken back."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.components import need_module
from tests.support.faults import FAILED_AS_IT_SHOULD, FAULT, WORKED, machine_in, run


def test_a_missing_component_skips_with_its_reason(need, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not installed"):
        need("no-such-program")
    with pytest.raises(pytest.skip.Exception, match="no_such_module"):
        need_module("no_such_module")


def test_a_missing_component_fails_under_ci(need, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        need("no-such-program")


def test_a_component_that_is_there_is_found(need):
    assert Path(need("sh")).is_absolute()
    need_module("json")


def test_nobodys_settings_are_met():
    assert not [name for name in os.environ if name.startswith("HOLDFAST_")]
    assert not Path(os.environ["XDG_DATA_HOME"]).exists()


@pytest.mark.needs_root
def test_disks_and_children_are_taken_back_after_a_failure(tmp_path, need):
    loops = loop_devices(need)
    with pytest.raises(ZeroDivisionError), machine_in(tmp_path / "m") as machine:
        disks = [machine.disk("ext4"), machine.tmpfs(size="1m")]
        (disks[0].path / "file").write_text("x")
        child = machine.child(lambda: time.sleep(60))
        raise ZeroDivisionError
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line]
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    for _ in range(100):  # the kernel lets go of the device a moment after the mount
        if not loop_devices(need) - loops:
            return
        time.sleep(0.02)
    assert not [device for device in loop_devices(need) - loops if str(tmp_path) in device]


def loop_devices(need) -> set[str]:
    return set(subprocess.run([need("losetup"), "-a"], capture_output=True, text=True, check=True).stdout.splitlines())


def test_a_child_tells_how_it_ended(tmp_path, capfd):
    def fail(error):
        raise error

    with machine_in(tmp_path) as machine:
        assert machine.wait(machine.child(lambda: None)) == WORKED
        assert machine.wait(machine.child(lambda: fail(KeyError("as it should")), (KeyError,))) == FAILED_AS_IT_SHOULD
        assert machine.wait(machine.child(lambda: fail(KeyError("a fault")))) == FAULT
        assert machine.end(machine.child(lambda: time.sleep(60))) == -9


def test_a_program_that_fails_is_told_with_what_it_said(tmp_path):
    with pytest.raises(OSError, match="cannot access"):
        run("ls", tmp_path / "none")
