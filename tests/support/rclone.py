"""``rclone serve``: a server of another make, over a folder."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.components import missing

PROGRAM = Path(__file__).parents[2] / ".test-servers" / "rclone" / "bin" / "rclone"


def need_rclone() -> str:
    if not PROGRAM.exists():
        missing("rclone is not installed (scripts/install-test-servers)")
    return str(PROGRAM)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(kind: str, folder: Path, *options: str) -> Iterator[int]:
    """``rclone serve KIND`` over the folder; its port, once somebody answers there."""
    port = free_port()
    command = [need_rclone(), "serve", kind, str(folder), "--addr", f"127.0.0.1:{port}", "--config", "/dev/null"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.02)
        else:
            raise AssertionError(f"rclone serve {kind} did not start")
        yield port
    finally:
        process.kill()
        process.wait()
