"""A Redis of the tests' own: on a socket in a folder, without a port, keeping nothing."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.support.components import need


@contextlib.contextmanager
def serving(folder: Path | None = None) -> Iterator[str]:
    """Its URL, while it runs. ``folder``: where its socket is to be; it may be one that is served no more."""
    program, own = need("redis-server"), folder or Path(tempfile.mkdtemp(prefix="holdfast-redis-"))
    path = own / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(own)]
    server = subprocess.Popen([program, *options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"unix://{path}"
    try:
        _wait_until_it_answers(url)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        if folder is None:
            shutil.rmtree(own, ignore_errors=True)


def _wait_until_it_answers(url: str) -> None:
    end = time.monotonic() + 30
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
