"""restic as a client of a vault: the real program, with a cache and a password of its own for each repository."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.support.components import need

PASSWORD = "what restic encrypts with"


class Restic:
    """restic over a repository. ``home``: a folder for its cache."""

    def __init__(self, url: str, home: Path) -> None:
        self._program = need("restic")
        self._env = {
            "PATH": os.environ["PATH"], "HOME": str(home), "RESTIC_CACHE_DIR": str(home / "cache"),
            "RESTIC_REPOSITORY": url, "RESTIC_PASSWORD": PASSWORD,
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """It runs in a process group of its own."""
        return subprocess.Popen(
            [self._program, *arguments], env=self._env, text=True, start_new_session=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def tries(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *arguments], env=self._env, text=True, errors="replace", capture_output=True, timeout=240
        )

    def does(self, *arguments: str) -> str:
        """What it says; an error when it fails."""
        done = self.tries(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.does("snapshots", "--json", "--no-lock"))
        return found
