"""Two servers over one PostgreSQL and one data folder: a vault is the same vault by either. And what a vault's folder
is without any server.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support import postgres
from tests.support.restic import Restic
from tests.support.server import Running, running
from tests.support.trees import contents, noise
from tests.support.vaults import folder_of, listed, person, put


def test_a_vault_is_the_same_by_either_server(postgres_socket: str, tmp_path: Path):
    data = tmp_path / "data"
    with (
        postgres.fresh_database(postgres_socket) as url,
        running(data, "--database", url) as first,
        running(data, "--database", url) as second,
        contextlib.closing(person(first)) as ann,
        second.with_token(ann.token) as other,
    ):
        vault = ann.vault(quota_bytes=40_000_000)
        some = [noise(1_000_000, number) for number in range(24)]
        clients = [ann.program, other]
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda n: put(clients[n % 2], vault, some[n // 2]).status_code, range(48))
        assert sorted(answers) == [200] * 24 + [403] * 24
        assert listed(other, vault) == listed(ann.program, vault)
        assert (ann.about(vault)["bytes"], ann.used()) == (24_000_000, (24_000_000, 24))
        names = list(listed(other, vault))
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda n: clients[n % 2].delete(f"{vault}data/{names[n // 2]}").status_code, range(48))
        found = sorted(answers)
        assert found[:24] == [200] * 24 and set(found[24:]) <= {404, 503}
        assert (ann.about(vault)["bytes"], ann.used()) == (0, (0, 0))


def test_restic_opens_a_vaults_folder_without_a_server(server: Running, tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(noise(3_000_000))
    with contextlib.closing(person(server)) as ann:
        vault = ann.vault()
        mine = Restic(ann.restic_url(vault), tmp_path)
        mine.does("init")
        mine.does("backup", str(tmp_path / "source"))
        there = Restic(str(folder_of(server, vault)), tmp_path)
        there.does("check", "--read-data", "--no-lock")
        assert len(there.snapshots()) == 1


def test_another_holdfast_keeps_its_repository_in_a_vault(server: Running, tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for number in range(20):
        (source / f"file {number}").write_bytes(noise(number * 50_000, number))
    with contextlib.closing(person(server)) as ann:
        vault = ann.vault(append_only=True)
        variables = {"REST_USERNAME": ann.name, "REST_PASSWORD": ann.token, "PASSWORD": "what it encrypts with"}
        env = os.environ | {f"HOLDFAST_{name}": value for name, value in variables.items()}

        def does(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "holdfast", "-r", f"rest:{server.url}{vault}", *arguments]
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

        for arguments in (
            ("init",), ("backup", str(source)), ("backup", str(source)), ("check", "--read-data"),
            ("restore", "latest", "--target", str(out)),
        ):  # fmt: skip
            done = does(*arguments)
            assert done.returncode == 0, done.stderr
        assert contents(out) == contents(source)
        before = listed(ann.program, vault, "snapshots")
        done = does("forget", "--keep-last", "1")
        assert done.returncode != 0 and "append-only" in done.stderr
        assert listed(ann.program, vault, "snapshots") == before and len(before) == 2
