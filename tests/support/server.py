"""A real server for tests: ``holdfast serve`` as a process of its own, on a free port, ended by SIGTERM."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

ADMIN_PASSWORD = "the admin's password"


@dataclass
class Running:
    """A server that runs. ``log``: the lines it has logged so far."""

    url: str
    data: Path
    process: subprocess.Popen[str]
    first_lines: list[dict[str, object]]
    log: list[str] = field(default_factory=list)

    def client(self, username: str = "admin", password: str = ADMIN_PASSWORD) -> httpx2.Client:
        """A client that sends a name and password with every request."""
        return httpx2.Client(base_url=self.url, auth=(username, password), timeout=60)

    def with_token(self, token: str) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def anonymous(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60)

    def user(self, username: str, password: str = "correct horse", **about: str) -> httpx2.Client:
        """A client of a new account."""
        with self.client() as admin:
            made = admin.post("/accounts/users", json={"username": username, "password": password, **about})
            assert made.status_code == 201, made.text
        return self.client(username, password)


@contextlib.contextmanager
def running(data: Path, *options: str, **environment: str) -> Iterator[Running]:
    """Start a server over a data folder (made on the first start) and end it when the block ends."""
    command = [sys.executable, "-m", "holdfast", "serve", "--json", "--port", "0", "--data", str(data), *options]
    env = {**os.environ, "HOLDFAST_ADMIN_PASSWORD": ADMIN_PASSWORD, **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout and process.stderr
    lines, log = [], list[str]()
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        for line in process.stdout:
            lines.append(json.loads(line))
            if lines[-1]["message_type"] == "serving":
                break
        assert lines and lines[-1]["message_type"] == "serving", log
        yield Running(str(lines[-1]["url"]), data, process, lines, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(5)
        process.stdout.close()
        process.stderr.close()
