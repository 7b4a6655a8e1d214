"""OpenStack Swift on loopback, with its own log-in and its S3 interface. ``openstack_identity`` has Keystone for it.

``swift_of(request)`` gives one node for all tests of this process; each test takes a container of its own. Swift's
account, container and proxy server are one process, its object server is another one, so
that it can be stopped.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.components import missing

T = TypeVar("T")

HOME = Path(__file__).parents[2] / ".test-servers"
HERE = Path(__file__).parent
TEMPAUTH = "s3api tempauth"
PIPELINE = (
    "catch_errors gatekeeper healthcheck cache listing_formats bulk {login} copy container-quotas account-quotas slo "
    "dlo proxy-server"
)
FILTERS = (
    *("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "s3api"),
    *("copy", "container_quotas", "account_quotas", "slo", "dlo"),
)
SETTINGS = """
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
error_suppression_limit = 1000000
node_timeout = 5
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
user_test_reader = reading
storage_url_scheme = http
[filter:cache]
paste.filter_factory = openstack_node:no_memcached
"""


def shared(
    request: pytest.FixtureRequest, key: pytest.StashKey[T], opening: Callable[[], AbstractContextManager[T]]
) -> T:
    """One for all tests of this process, ended with it."""
    stash = request.config.stash
    if key not in stash:
        ending = ExitStack()
        stash[key] = ending.enter_context(opening())
        request.config.add_cleanup(ending.close)
    return stash[key]


def python_of(server: str) -> str:
    program = HOME / server / "bin" / "python"
    if not program.exists():
        missing(f"{server} is not installed (scripts/install-test-servers)")
    return str(program)


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        taken = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in taken]


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server, from when it says that it is ready until it was ended and waited for."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    assert process.stdin and process.stdout
    try:
        if process.stdout.readline() != b"ready\n":
            raise AssertionError(f"A server did not start: {log.read_text()[-2000:]}")
        yield process
    finally:
        process.kill()
        process.communicate()


class SwiftNode:
    """A node below ``folder``. ``port``: of its proxy server. ``variables``: who one is there, by its own log-in, and
    ``s3_variables`` at its S3 interface, which has the same address.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self._account, self._container, self._object = free_ports(4)
        self.url = f"http://127.0.0.1:{self.port}"
        self.variables = {"ST_AUTH": f"{self.url}/auth/v1.0", "ST_USER": "test:tester", "ST_KEY": "testing"}
        keys = {"AWS_ACCESS_KEY_ID": "test:tester", "AWS_SECRET_ACCESS_KEY": "testing"}
        self.s3_variables = {**keys, "AWS_REGION": "us-east-1"}
        self._objects = ExitStack()
        (folder / "node" / "disk").mkdir(parents=True)
        (folder / "objects-port").write_text(str(self._object))
        (folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
            "[storage-policy:0]\nname = gold\ndefault = yes\n[storage-policy:1]\nname = silver\n"
            "[swift-constraints]\nmax_file_size = 5368709122\n"
        )
        for name in ("account", "container", "object"):
            self.configure(name, f"{name}-server", f"[app:{name}-server]\nuse = egg:swift#{name}\n")
        self.configure("proxy", PIPELINE.format(login=TEMPAUTH), SETTINGS)

    def configure(self, name: str, pipeline: str, settings: str) -> None:
        filters = "".join(f"[filter:{f.replace('_quotas', '-quotas')}]\nuse = egg:swift#{f}\n" for f in FILTERS)
        (self.folder / f"{name}.conf").write_text(
            f"[DEFAULT]\nswift_dir = {self.folder}\ndevices = {self.folder}/node\nmount_check = false\n"
            f"disable_fallocate = true\nlog_level = ERROR\nlog_requests = false\nuser = {getpass.getuser()}\n"
            f"[pipeline:main]\npipeline = {pipeline}\n{settings}{filters if 'proxy' in name else ''}"
        )

    def process(self, **ports: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        servers = [f"{name.replace('_', '-')}={port}" for name, port in ports.items()]
        command = [python_of("swift"), str(HERE / "openstack_node.py"), str(self.folder), *servers]
        return running(command, self.folder / "log")

    def start_objects(self) -> None:
        self._objects.enter_context(self.process(object=self._object))

    def stop_objects(self) -> None:
        self._objects.close()

    @contextlib.contextmanager
    def without_objects(self) -> Iterator[None]:
        """The object server is down meanwhile: a real 503."""
        self.stop_objects()
        try:
            yield
        finally:
            self.start_objects()

    @contextlib.contextmanager
    def serving(self) -> Iterator[SwiftNode]:
        with self.process(account=self._account, container=self._container, proxy=self.port):
            try:
                self.start_objects()
                yield self
            finally:
                self.stop_objects()

    def forget_tokens(self) -> None:
        urllib.request.urlopen(f"{self.url}/forget-tokens").close()

    def fill(self, container: str, prefix: str, names: Iterable[str], account: str = "AUTH_test") -> None:
        """Have the listing of a container name these, as if they had been put: straight into its database."""
        whole = hashlib.md5(f"a/{account}/{container}b".encode()).hexdigest()
        (path,) = (self.folder / "node").glob(f"**/{whole}.db")
        rows = []
        for name in names:
            folder, _, digits = name.partition("/")
            below = f"data/{digits[:2]}/{digits}" if folder == "data" else name
            rows.append((f"{prefix}{below}", "1700000000.00000", 1, "text/plain", hashlib.md5(b"x").hexdigest()))
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.create_function("chexor", 3, lambda old, name, when: old)
            database.executemany(
                "INSERT INTO object (name, created_at, size, content_type, etag) VALUES (?, ?, ?, ?, ?)", rows
            )


@contextlib.contextmanager
def swift_node() -> Iterator[SwiftNode]:
    python_of("swift")
    folder = Path(tempfile.mkdtemp(prefix="holdfast-swift-"))
    try:
        with SwiftNode(folder).serving() as node:
            yield node
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SWIFT = pytest.StashKey[SwiftNode]()


def swift_of(request: pytest.FixtureRequest) -> SwiftNode:
    return shared(request, _SWIFT, swift_node)


def a_container() -> str:
    return f"c-{uuid.uuid4().hex}"
