"""Azurite: Azure Blob Storage of Microsoft's own making, in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest

from holdfast.storage.select import Access
from tests.support.components import missing, need
from tests.support.openstack import shared
from tests.support.rclone import free_port
from tests.support.s3 import wait_until_ready

PROGRAM = Path(__file__).parents[2] / ".test-servers" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # everybody's


@dataclass
class Azurite:
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def access(self, **variables: str) -> Access:
        usual = {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": self.url,
        }
        return Access({**usual, **variables})

    def make_container(self, name: str) -> None:
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
        lines = "".join(f"{k}:{headers[k]}\n" for k in sorted(headers))
        text = "PUT" + "\n" * 12 + lines + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        digest = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        url = f"{self.url}/{name}?restype=container"
        asked = urllib.request.Request(url, b"", {**headers, "Content-Type": ""}, method="PUT")
        urllib.request.urlopen(asked, timeout=30).close()


@contextlib.contextmanager
def azurite() -> Iterator[Azurite]:
    if shutil.which("npm") is None and not PROGRAM.exists():
        pytest.skip("Azurite is not installed: there is no npm")
    if not PROGRAM.exists():
        missing("Azurite is not installed (scripts/install-test-servers)")
    port = free_port()
    options = ("--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck")
    command = [need("node"), str(PROGRAM.resolve()), "--blobPort", str(port), "--blobHost", "127.0.0.1", *options]
    with tempfile.TemporaryDirectory(prefix="holdfast-test-") as folder:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait_until_ready(port, process)
            yield Azurite(port)
        finally:
            process.kill()
            process.communicate()


_AZURITE = pytest.StashKey[Azurite]()


def azurite_of(request: pytest.FixtureRequest) -> Azurite:
    """One for all tests of this process; each test takes a container of its own."""
    return shared(request, _AZURITE, azurite)
