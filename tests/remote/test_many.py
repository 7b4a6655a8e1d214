"""Many files: memory does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.remote.visiting import Visitor

FILES, FOLDERS = 20_000, 200
MOST_KIB = 150 << 10


# A process counts as its own what it had as a copy of its parent: so the parent is a small one, and says what it saw.
MEASURING = "import os, sys; os.spawnvp(os.P_WAIT, sys.argv[1], sys.argv[1:]); import resource as r; " + (
    "print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
)


def run(ann: Visitor, *words: object) -> tuple[dict[str, object], int]:
    """The summary of a command, and the most memory it had, in KiB."""
    command = [sys.executable, "-c", MEASURING, *ann.apart.command(*words, "--json")]
    done = subprocess.run(command, env=ann.apart.environment, capture_output=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["message_type"] == "summary", done.stdout[-2000:]
    return summary, int(done.stderr.splitlines()[-1])


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
