"""S3 servers for tests: moto, which checks signatures and knows conditions and Object Lock; rclone over a folder."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config

from holdfast.storage.select import Access
from tests.storage.places import fill_folder
from tests.support.openstack import python_of, shared
from tests.support.rclone import free_port, serving

HERE = Path(__file__).parent


@dataclass
class Moto:
    """A running moto. ``users``: access key ids and secrets: ``all`` may do everything, ``none`` nothing; ``role``."""

    port: int
    users: Mapping[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def access(self, **variables: str) -> Access:
        keys = {"AWS_ACCESS_KEY_ID": self.users["all"], "AWS_SECRET_ACCESS_KEY": self.users["all_secret"]}
        return Access({**keys, **variables})

    def client(self, service: str = "s3") -> Any:
        """A client of the test's own."""
        return botocore.session.Session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=self.users["all"],
            aws_secret_access_key=self.users["all_secret"],
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )

    def fill(self, bucket: str, prefix: str, names: Iterable[str]) -> None:
        """Have tiny objects of these names at once."""
        keys = [prefix + (f"data/{n[5:7]}/{n[5:]}" if n.startswith("data/") else n) for n in names]
        asked = urllib.request.Request(f"{self.url}/fill/{bucket}", json.dumps(keys).encode(), method="POST")
        urllib.request.urlopen(asked, timeout=60).close()


@contextlib.contextmanager
def moto(*certificate: str) -> Iterator[Moto]:
    """``certificate``: the files of a certificate and its key, for TLS."""
    port = free_port()
    command = [python_of("moto"), str(HERE / "moto_node.py"), str(port), *certificate]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout
        try:
            users = json.loads(process.stdout.readline())
            wait_until_ready(port, process)
            yield Moto(port, users)
        finally:
            process.kill()
            process.communicate()


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until somebody answers at the port."""
    end = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError("the server did not start")


_MOTO = pytest.StashKey[Moto]()
_RCLONE = pytest.StashKey["Rclone"]()
RCLONE_KEY, RCLONE_SECRET = "an-access-key", "a-secret-access-key"


def moto_of(request: pytest.FixtureRequest) -> Moto:
    """One for all tests of this process; each test takes a bucket of its own."""
    return shared(request, _MOTO, moto)


@dataclass
class Rclone:
    """A running ``rclone serve s3``. ``folder``: its folders are the buckets. ``control``: where it takes orders."""

    port: int
    folder: Path
    control: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def access(self) -> Access:
        return Access({"AWS_ACCESS_KEY_ID": RCLONE_KEY, "AWS_SECRET_ACCESS_KEY": RCLONE_SECRET})

    def fill(self, bucket: str, names: Iterable[str]) -> None:
        """Have tiny objects of these names at once: by the folder, and rclone told to look again."""
        fill_folder(self.folder / bucket, names)
        asked = urllib.request.Request(f"http://127.0.0.1:{self.control}/vfs/forget", b"", method="POST")
        urllib.request.urlopen(asked, timeout=60).close()


@contextlib.contextmanager
def _rclone() -> Iterator[Rclone]:
    keys, control = f"{RCLONE_KEY},{RCLONE_SECRET}", free_port()
    orders = ("--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{control}")
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-test-") as folder,
        serving("s3", Path(folder), "--auth-key", keys, "--log-file", "/dev/null", *orders) as port,
    ):
        yield Rclone(port, Path(folder), control)


def rclone_of(request: pytest.FixtureRequest) -> Rclone:
    """One for all tests of this process; each test takes a bucket of its own."""
    return shared(request, _RCLONE, _rclone)


def a_bucket() -> str:
    return f"b-{uuid.uuid4().hex}"
