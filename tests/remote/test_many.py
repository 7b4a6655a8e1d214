"""Many files: memory does not grow with them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.remote.visiting import Visitor

FILES, FOLDERS = 20_000, 200
MOST_KIB = 150 << 10


def run(ann: Visitor, *words: object) -> tuple[dict[str, object], int]:
    """The summary of a command, and the most memory it had, in KiB."""
    command = ann.apart.command(*words, "--json")
    with subprocess.Popen(command, env=ann.apart.environment, stdout=subprocess.PIPE) as process:
        assert process.stdout
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, out[-2000:]
    return json.loads(out.splitlines()[-1]), usage.ru_maxrss


def plant(root: Path) -> None:
    for number in range(FILES):
        folder = root / f"folder {number % FOLDERS}"
        folder.mkdir(exist_ok=True)
        (folder / f"file {number}").write_bytes(b"%d" % number * 50)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_small_files_go_there_and_back_in_little_memory(ann: Visitor) -> None:
    plant(ann.tree)
    time.sleep(2.1)  # what was written just now is not believed to stay
    pushed, memory = run(ann, "manifest", "push", ann.tree)
    assert (pushed["files_sent"], pushed["complete"], pushed["errors"]) == (FILES, True, 0)
    assert memory < MOST_KIB
    again, memory = run(ann, "manifest", "push", ann.tree)
    assert (again["files_sent"], again["files_hashed"]) == (0, 0) and memory < MOST_KIB
    pulled, memory = run(ann, "manifest", "pull", "tree", "-t", ann.out, "--delete")
    assert (pulled["files_pulled"], pulled["errors"]) == (FILES, 0) and memory < MOST_KIB
    again, memory = run(ann, "manifest", "pull", "tree", "-t", ann.out, "--delete", "--verify")
    assert (again["files_unchanged"], again["files_deleted"]) == (FILES, 0) and memory < MOST_KIB
    number = 12_345
    there = ann.out / f"folder {number % FOLDERS}" / f"file {number}"
    assert there.read_bytes() == b"12345" * 50
