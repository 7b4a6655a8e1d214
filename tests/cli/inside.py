"""The command line called inside the test's own process: as ``tests.support.commands``, but many times a second.

``Desk`` is what these tests sit at: a repository in a folder, a tree to back up, and the command line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from holdfast.cli.main import main
from holdfast.repository.repository import Repository, create, open_repository
from holdfast.storage.local import LocalStorage
from holdfast.wiring.app import machine_owner
from tests.repository.making import FINE, KEY, store
from tests.support.commands import Commands, Done

KEY_TEXT = "holdfast-key-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"  # that of tests.repository.making.KEY


class Inside(Commands):
    """Calls ``main`` here. ``stdin``: what the command may read; nobody sits at a terminal."""

    def __call__(self, *words: object, status: int | None = 0, stdin: bytes = b"", **options: Any) -> Done:
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        said = [os.fspath(w) if isinstance(w, os.PathLike) else str(w) for w in words]
        with _as_process(said, self.environment), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as caught:
                main()
        out.flush()
        code = caught.value.code
        done = Done(code if isinstance(code, int) else 0, out.buffer.getvalue(), err.getvalue())
        assert "Traceback" not in done.error
        assert status is None or done.status == status, f"{words}: {done.status}, {done.text}{done.error}"
        return done


@contextlib.contextmanager
def _as_process(words: list[str], environment: dict[str, str]) -> Iterator[None]:
    """A process's arguments, environment, zone and signals, for a while."""
    signals = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["holdfast", *words])
        time.tzset()
        try:
            yield
        finally:
            for number, handler in signals.items():
                signal.signal(number, handler)
    time.tzset()


@dataclass
class Desk:
    """See the module. ``call`` opens the repository with its key file."""

    folder: Path
    call: Inside

    @property
    def place(self) -> Path:
        return Path(self.call.place)

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def repo(self) -> Repository:
        return open_repository(LocalStorage(self.place), KEY, machine_owner(), time.time_ns)

    def store(self, number: int, **about: Any) -> str:
        """A snapshot of a few files, straight into the repository; its id."""
        return store(self.repo, {b"file": b"%d" % number * 5000, b"same": b"same" * 1000}, **about)

    def locate(self, name: str) -> Path:
        """Where an object lies."""
        folder, _, digits = name.partition("/")
        return self.place / folder / digits[:2] / digits if folder == "data" else self.place / folder / digits

    def with_key(self, key_file: Path) -> Inside:
        return Inside(self.place, key_file, self.folder)

    def with_password(self, password: str) -> Inside:
        return Inside(self.place, Path(), self.folder, {"HOLDFAST_KEY_FILE": "", "HOLDFAST_PASSWORD": password})

    def everything(self) -> dict[str, bytes]:
        """Every file below the repository's folder."""
        return {str(p.relative_to(self.place)): p.read_bytes() for p in sorted(self.place.rglob("*")) if p.is_file()}


def make_desk(folder: Path, *, repository: bool = True) -> Desk:
    key_file = folder / "key"
    key_file.write_text(KEY_TEXT)
    desk = Desk(folder, Inside(folder / "repository", key_file, folder))
    desk.tree.mkdir()
    (desk.tree / "file").write_bytes(b"content" * 1000)
    if repository:
        storage = LocalStorage(desk.place)
        storage.create()
        create(storage, KEY, machine_owner(), time.time_ns, chunker=FINE)
    return desk


def demand_run(done: Done) -> dict[str, Any]:
    """What every command that runs prints for programs: lines with a ``message_type``, the last one the summary."""
    assert all(isinstance(e.get("message_type"), str) for e in done.events)
    assert [e["message_type"] for e in done.events].count("summary") == 1
    assert done.events[-1]["message_type"] == "summary"
    return done.events[-1]


def demand_error(done: Done, code: str) -> dict[str, str]:
    """What every command that fails says to programs: one line on standard error, nothing on standard output."""
    (line,) = done.error.splitlines()
    error: dict[str, str] = json.loads(line)
    assert error["message_type"] == "error" and error["code"] == code
    assert error.keys() == {"message_type", "code", "message", "hint"} and error["message"]
    assert done.out == b""
    return error
