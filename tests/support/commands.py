"""The command line as a user calls it: a process of its own, with settings of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[2] / "src" / "holdfast" / "__main__.py"


@dataclass
class Done:
    """A command that ended."""

    status: int
    out: bytes
    error: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        """The one document."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The documents, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Commands:
    """Calls ``holdfast`` on the repository at ``place``, opened with the key file there; ``folder`` is its home."""

    place: Path | str
    key_file: Path
    folder: Path
    more: Mapping[str, str] = field(default_factory=dict)

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-I", str(PROGRAM), *map(os.fspath, map(_word, words))]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        mine = {"HOLDFAST_REPOSITORY": str(self.place), "HOLDFAST_KEY_FILE": str(self.key_file)}
        return {**kept, "HOME": str(self.folder), "TZ": "UTC", **mine, **self.more}

    def __call__(self, *words: object, status: int | None = 0, **options: Any) -> Done:
        """Call it and wait; another ``status`` than this one is a failure (None: any will do)."""
        done = subprocess.run(self.command(*words), env=self.environment, capture_output=True, timeout=60, **options)
        result = Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        assert status is None or result.status == status, f"{words}: {result.status}, {result.error}"
        return result


def _word(word: object) -> Any:
    return word if isinstance(word, str | bytes | os.PathLike) else str(word)
