"""``holdfast serve``: started, stopped, configured, refused."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from tests.support import postgres
from tests.support.server import ADMIN_PASSWORD, running


def serve(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it where it is expected to end by itself."""
    command = [sys.executable, "-m", "holdfast", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_first_start_makes_a_password_and_shows_it_once(tmp_path: Path):
    with running(tmp_path / "data", HOLDFAST_ADMIN_PASSWORD="") as server:
        (first,) = [line for line in server.first_lines if line["message_type"] == "first_start"]
        with server.client("admin", str(first["password"])) as admin:
            assert admin.get("/accounts/me").json()["role"] == "admin"
        assert str(first["password"]) not in "".join(server.log)
    with running(tmp_path / "data", HOLDFAST_ADMIN_PASSWORD="") as server:
        assert [line["message_type"] for line in server.first_lines] == ["serving"]
        with server.client("admin", str(first["password"])) as admin:
            assert admin.get("/accounts/me").status_code == 200


def test_a_password_that_was_preset_is_not_shown(tmp_path: Path):
    with running(tmp_path / "data") as server:
        assert ADMIN_PASSWORD not in json.dumps(server.first_lines)
        with server.client() as admin:
            assert admin.get("/accounts/me").status_code == 200


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly(tmp_path: Path, end: signal.Signals):
    with running(tmp_path / "data") as server:
        server.process.send_signal(end)
        assert server.process.wait(30) == 0
    assert "Traceback" not in "".join(server.log)


def test_what_it_keeps_is_for_its_owner_only(tmp_path: Path):
    with running(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "data/key").stat().st_mode & 0o777 == 0o600


def test_a_port_that_is_taken_is_said(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--port", str(port), "--data", str(tmp_path / "data"))
    assert done.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "postgresql://localhost:1/none"])
def test_a_catalog_that_cannot_be_used_is_said_without_its_password(tmp_path: Path, url: str):
    done = serve("--port", "0", "--data", str(tmp_path / "data"), "--database", url.replace("//l", "//u:secret@l"))
    assert done.returncode in (1, 2)
    assert "catalog" in done.stderr and "secret" not in done.stderr and "Traceback" not in done.stderr


def test_a_catalog_of_a_newer_version_is_left_alone(tmp_path: Path):
    with running(tmp_path / "data"):
        pass
    with sqlite3.connect(tmp_path / "data/catalog.db") as catalog:
        catalog.execute("UPDATE alembic_version SET version_num = '9999'")
    catalog.close()
    done = serve("--port", "0", "--data", str(tmp_path / "data"))
    assert done.returncode == 1 and "newer Holdfast" in done.stderr


def test_settings_come_from_the_file_and_the_environment(tmp_path: Path):
    (tmp_path / "holdfast.toml").write_text(f'[server]\ndata = "{tmp_path}/there"\nmost_bytes = 10\n')
    command = [sys.executable, "-m", "holdfast", "--config", str(tmp_path / "holdfast.toml"), "serve", "--json"]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    try:
        said = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert said[1]["data"] == f"{tmp_path}/there"
        data = b"x" * 3_000_000
        with httpx2.Client(base_url=said[1]["url"], auth=("admin", said[0]["password"])) as admin:
            assert admin.put(f"/files/{hashlib.sha256(data).hexdigest()}", content=data).status_code == 413
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def test_an_unknown_setting_is_named(tmp_path: Path):
    (tmp_path / "holdfast.toml").write_text("[server]\nprot = 8000\n")
    command = [sys.executable, "-m", "holdfast", "--config", str(tmp_path / "holdfast.toml"), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "prot" in done.stderr


def test_it_has_as_many_files_open_as_it_may(tmp_path: Path):
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))
    try:
        with running(tmp_path / "data") as server, server.anonymous() as anybody:
            assert anybody.get("/healthz").status_code == 200
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (most, most)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


@pytest.mark.parametrize(("name", "value"), [("PATIENCE", "0"), ("PATIENCE", "long"), ("CONNECTIONS", "0")])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, name: str, value: str):
    command = [sys.executable, "-m", "holdfast", "serve", "--port", "0", "--data", str(tmp_path / "data")]
    env = {**os.environ, f"HOLDFAST_SERVER__{name}": value}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 2 and f"$.{name.lower()}" in done.stderr


def test_it_runs_on_postgresql(tmp_path: Path, postgres_socket: str):
    with postgres.fresh_database(postgres_socket) as url:
        for _ in range(2):
            with running(tmp_path / "data", "--database", url) as server, server.client() as admin:
                name = hashlib.sha256(b"x").hexdigest()
                assert admin.put(f"/files/{name}", content=b"x").status_code in (200, 201)
                assert admin.get(f"/files/{name}").content == b"x"
                assert admin.post("/manifests", json={"name": "m", "files": {}}).status_code == 201
        assert not (tmp_path / "data/catalog.db").exists()


@pytest.mark.parametrize(
    ("proxies", "seen"), [("", "127.0.0.1"), ("10.0.0.0/8", "127.0.0.1"), ("127.0.0.1", "203.0.113.9")]
)
def test_only_a_proxy_that_was_named_may_say_where_a_request_comes_from(tmp_path: Path, proxies: str, seen: str):
    (tmp_path / "holdfast.toml").write_text(f"[server]\nproxies = {json.dumps(proxies.split())}\n")
    with (
        running(tmp_path / "data", "--config", str(tmp_path / "holdfast.toml")) as server,
        server.anonymous() as client,
    ):
        client.get("/healthz", headers={"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"})
    (line,) = [json.loads(entry) for entry in server.log if '"/healthz"' in entry]
    assert line["address"] == seen


def test_a_lost_catalog_is_made_anew_from_the_repository(tmp_path: Path):
    name = hashlib.sha256(b"of ann").hexdigest()
    manifest = {"name": "m", "files": {"a": {"hash": name, "size": 6}}, "note": "to the letter"}
    with running(tmp_path / "data") as server, server.user("ann") as ann:
        assert ann.put(f"/files/{name}", content=b"of ann").status_code == 201
        before = ann.post("/manifests", json=manifest).json()
        usage = ann.get("/accounts/me").json()["usage"]
    for file in (tmp_path / "data").glob("catalog.db*"):
        file.unlink()
    with running(tmp_path / "data") as server, server.user("ann") as ann:
        assert ann.get("/manifests").json()["manifests"] == []
    with running(tmp_path / "data") as server, server.client("ann", "correct horse") as ann:
        deadline = time.monotonic() + 30
        while not ann.get("/manifests").json()["manifests"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ann.get("/manifests/m").json() == before
        assert ann.get(f"/files/{name}").content == b"of ann"
        assert ann.get("/accounts/me").json()["usage"] == usage and usage["objects"] == 2
