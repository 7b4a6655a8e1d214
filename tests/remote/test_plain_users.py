"""Pushing and pulling without being root: what may be restored is, and the rest is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.remote.visiting import Visitor, described, noise, small_tree

NOBODY = 65534
# Another user may not be let into the folder of this Python: everything is imported before the user changes.
PROGRAM = f"""
import os, sys
import difflib, encodings.idna, encodings.unicode_escape, grp, pwd, httpx2, ijson, tenacity
import holdfast.remote.listing, holdfast.remote.pull, holdfast.wiring.remote
from holdfast.cli import login, main, manifests
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.umask(0o022)
main.main()
"""

pytestmark = pytest.mark.needs_root  # to become somebody else


@pytest.fixture
def nobody(ann: Visitor) -> Iterator[Visitor]:
    """In a folder that everybody may enter."""
    with tempfile.TemporaryDirectory() as where:
        home = Path(where)
        found = replace(ann, folder=home)
        small_tree(found.tree)
        (found.tree / "sub" / "deep").chmod(0o500)
        (found.tree / "plain").chmod(0o400)
        for path in (home, *home.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        yield found
        for path in home.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


def run(visitor: Visitor, *words: object, status: int = 0) -> list[dict[str, Any]]:
    command = [sys.executable, "-c", PROGRAM, "manifest", *map(str, words), "--json"]
    environment = visitor.apart.environment | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert done.returncode == status, (done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_tree_comes_back_with_folders_and_files_that_are_shut(nobody: Visitor) -> None:
    run(nobody, "push", nobody.tree)
    assert run(nobody, "pull", "tree", "-t", nobody.out)[-1]["files_pulled"] == 6
    assert described(nobody.out) == described(nobody.tree)
    (nobody.out / "sub" / "deep" / "large").unlink()
    (nobody.out / "plain").unlink()
    shutil.copy(nobody.tree / "sub" / "twin", nobody.out / "sub" / "deep" / "extra")
    again = run(nobody, "pull", "tree", "-t", nobody.out, "--delete")[-1]
    assert (again["files_pulled"], again["files_unchanged"], again["files_deleted"]) == (2, 4, 1)
    assert described(nobody.out) == described(nobody.tree)


def test_owners_that_may_not_be_given_are_noted(nobody: Visitor) -> None:
    (nobody.tree / "nothing").chmod(0o4755)
    os.chown(nobody.tree / "nothing", 12345, 12345)
    (nobody.tree / "nothing").chmod(0o4755)
    (nobody.tree / "sub" / "twin").write_bytes(noise(10))
    run(nobody, "push", nobody.tree)
    told = run(nobody, "pull", "tree", "-t", nobody.out)
    assert told[-2]["message"] == "owner could not be set on 1 files or folders"
    st = (nobody.out / "nothing").stat()
    assert (st.st_uid, oct(st.st_mode & 0o7777)) == (NOBODY, "0o755")
    assert run(nobody, "pull", "tree", "-t", nobody.out)[-1]["files_unchanged"] == 6


def test_what_may_not_be_read_or_written_is_named(nobody: Visitor) -> None:
    os.chown(nobody.tree / "plain", 0, 0)
    os.chown(nobody.tree / "empty", 0, 0)
    (nobody.tree / "empty").chmod(0o700)
    told = run(nobody, "push", nobody.tree, status=3)
    named = sorted(e["message"] for e in told if e["message_type"] == "warning")
    assert named == ["empty: Permission denied", "plain: Permission denied"]
    nobody.out.mkdir()
    (nobody.out / "sub").mkdir()
    os.chown(nobody.out, NOBODY, NOBODY)
    told = run(nobody, "pull", "tree", "-t", nobody.out, status=3)  # somebody else's folder stands there
    named = [e["message"] for e in told if e["message_type"] == "warning" and ": Permission denied" in e["message"]]
    assert any(n.startswith("sub/") for n in named) and (nobody.out / "nothing").exists()
