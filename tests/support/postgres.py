"""A PostgreSQL of the tests' own: on a socket in a folder, without a port, ended when the tests are."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg

USER = "postgres"


def programs() -> Path | None:
    """The folder of the newest version's programs; Debian keeps them off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return Path(there).resolve().parent if there else None


@contextlib.contextmanager
def serving(programs: Path) -> Iterator[str]:
    """The socket's folder, while the server runs: as the user ``postgres`` where we are root, as which it refuses."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    owner = pwd.getpwnam(USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    folder.chmod(0o755)
    identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "cwd": folder}
    make = [programs / "initdb", "-D", folder / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*make, "--locale=C"], check=True, **identity, **quiet)  # type: ignore[call-overload]
    options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off -c max_connections=60"
    server = subprocess.Popen(
        [programs / "postgres", "-D", folder / "data", *options.split()],
        stderr=subprocess.DEVNULL, start_new_session=True, **identity, **quiet,  # type: ignore[call-overload]
    )  # fmt: skip
    try:
        _wait_until_ready(folder)
        yield str(folder)
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host=str(folder), user=USER, dbname=USER).close()
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def fresh_database(socket: str) -> Iterator[str]:
    """The URL of an empty database, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(host=socket, user=USER, dbname=USER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        try:
            yield f"postgresql://{USER}@/{name}?host={socket}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")
