"""restic itself keeps its repositories in vaults: everything it does there, several at once, killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.restic import Restic
from tests.support.server import Running, running
from tests.support.trees import differences, noise
from tests.support.vaults import Person, listed, person

MIB = 1 << 20


@pytest.fixture(scope="module")
def ann(server: Running) -> Iterator[Person]:
    with contextlib.closing(person(server)) as found:
        yield found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some files, the same for each test."""
    root = tmp_path / "tree"
    for number in range(30):
        (root / f"folder {number % 5}").mkdir(parents=True, exist_ok=True)
        (root / f"folder {number % 5}" / f"file {number}").write_bytes(noise(number * 10_000, number))
    return root


@pytest.fixture
def restic(ann: Person, tmp_path: Path) -> Callable[..., Restic]:
    """restic for a vault of Ann's, or for whoever is named, each with a cache of its own."""
    made = iter(range(100))

    def for_vault(vault: str, who: Person = ann) -> Restic:
        home = tmp_path / f"home {next(made)}"
        home.mkdir()
        return Restic(who.restic_url(vault), home)

    return for_vault


def test_everything_restic_does_it_does_in_a_vault(
    ann: Person, restic: Callable[..., Restic], tmp_path: Path, tree: Path
):
    (tmp_path / "source").mkdir()
    tree.rename(tmp_path / "source" / "tree")
    mine = restic(f"/vault/{ann.name}/all-of-it/")
    mine.does("init")  # makes the vault, too
    mine.does("backup", str(tmp_path / "source"))
    mine.does("check", "--read-data")
    mine.does("restore", "latest", "--target", str(tmp_path / "out"))
    restored = Path(f"{tmp_path / 'out'}{tmp_path / 'source'}")
    assert differences(tmp_path / "source" / "tree", restored / "tree") == []
    other = restic(f"/vault/{ann.name}/all-of-it/")  # without the first one's cache
    other.does("dump", "latest", str(tmp_path / "source" / "tree" / "folder 1" / "file 1"))
    (tmp_path / "source" / "tree" / "folder 1" / "file 1").write_bytes(noise(3 * MIB))
    other.does("backup", str(tmp_path / "source"))
    assert "file 1" in mine.does("diff", *[s["short_id"] for s in mine.snapshots()])
    mine.does("tag", "--add", "kept")
    mine.does("forget", "--keep-last", "1", "--prune")
    mine.does("rebuild-index")
    mine.does("unlock")
    assert len(mine.snapshots()) == 1 and listed(ann.program, f"/vault/{ann.name}/all-of-it/", "locks") == {}
    other.does("check", "--read-data")
    about = ann.about(f"/vault/{ann.name}/all-of-it/")
    sizes = [listed(ann.program, f"/vault/{ann.name}/all-of-it/", k) for k in ("data", "keys", "snapshots", "index")]
    config = int(ann.program.head(f"/vault/{ann.name}/all-of-it/config").headers["content-length"])
    assert about["objects"] == sum(map(len, sizes)) + 1
    assert about["bytes"] == sum(sum(some.values()) for some in sizes) + config


def test_a_password_works_as_a_token_does(server: Running, tmp_path: Path, tree: Path, ann: Person):
    host = server.url.removeprefix("http://")
    mine = Restic(f"rest:http://{ann.name}:correct%20horse@{host}/vault/by-password/", tmp_path)
    mine.does("init")
    mine.does("backup", str(tree))
    wrong = Restic(f"rest:http://{ann.name}:wrong@{host}/vault/by-password/", tmp_path).tries("snapshots")
    assert wrong.returncode != 0 and "401" in wrong.stdout + wrong.stderr


def test_in_an_append_only_vault_restic_adds_and_forgets_nothing(
    ann: Person, restic: Callable[..., Restic], tree: Path, tmp_path: Path
):
    vault = ann.vault(append_only=True)
    mine = restic(vault)
    mine.does("init")
    mine.does("backup", str(tree))
    mine.does("backup", str(tree))
    before = {kind: listed(ann.program, vault, kind) for kind in ("data", "keys", "snapshots", "index")}
    process = mine.start("forget", "--keep-last", "1", "--prune")  # restic tries again for a quarter of an hour
    time.sleep(6)
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert "403" in said, said
    assert {kind: listed(ann.program, vault, kind) for kind in before} == before
    mine.does("unlock", "--remove-all")
    mine.does("check", "--read-data")
    mine.does("backup", str(tree))
    assert len(mine.snapshots()) == 3


def test_who_may_only_read_restores_and_checks_with_locks(
    server: Running, ann: Person, restic: Callable[..., Restic], tree: Path, tmp_path: Path
):
    vault = ann.vault()
    mine = restic(vault)
    mine.does("init")
    mine.does("backup", str(tree))
    bob = person(server)
    theirs = restic(vault, bob)
    assert "does not exist" in theirs.tries("snapshots").stderr
    ann.grant(bob, "read", vault)
    theirs.does("restore", "latest", "--target", str(tmp_path / "out"))
    assert differences(tree, Path(f"{tmp_path / 'out'}{tree}")) == []
    theirs.does("check", "--read-data")
    assert listed(ann.program, vault, "locks") == {}
    ann.grant(bob, "append", vault)
    theirs.does("backup", str(tree))
    assert len(mine.snapshots()) == 2
    bob.close()


def test_two_back_up_into_one_vault_at_once(ann: Person, restic: Callable[..., Restic], tmp_path: Path):
    vault = ann.vault()
    restic(vault).does("init")
    sources = [tmp_path / f"source {number}" for number in range(2)]
    for number, source in enumerate(sources):
        source.mkdir()
        for file in range(4):
            (source / str(file)).write_bytes(noise(8 * MIB, f"{number} {file}"))
    clients = [restic(vault) for _ in sources]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda client, source: client.does("backup", str(source)), clients, sources))
    clients[0].does("check", "--read-data")
    assert len(clients[0].snapshots()) == 2


@pytest.mark.parametrize("after_s", [0.4, 1.2])
def test_a_client_that_is_killed_leaves_nothing_half(
    ann: Person, restic: Callable[..., Restic], tmp_path: Path, after_s: float
):
    vault = ann.vault()
    mine = restic(vault)
    mine.does("init")
    for file in range(10):
        (tmp_path / f"file {file}").write_bytes(noise(8 * MIB, f"{file}"))
    process = mine.start("backup", str(tmp_path), "--limit-upload", "20000")
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    mine.does("unlock", "--remove-all")
    mine.does("check", "--read-data")
    mine.does("backup", str(tmp_path))
    mine.does("check", "--read-data")
    _is_counted(ann, vault)


def test_a_server_that_is_killed_leaves_nothing_half_and_counts_anew(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    for file in range(10):
        (source / f"file {file}").write_bytes(noise(8 * MIB, f"{file}"))
    with running(tmp_path / "data") as first:
        ann = person(first)
        vault = ann.vault("v")
        mine = Restic(ann.restic_url(vault), tmp_path)
        mine.does("init")
        process = mine.start("backup", str(source), "--limit-upload", "20000")
        _wait_for(lambda: len(list((tmp_path / "data").glob("vaults/*/*/data/*/*"))) > 1)
        first.process.kill()
        first.process.wait()
        _kill(process)
        ann.close()
    assert list((tmp_path / "data").glob("vaults/*/*/tmp/*"))
    with running(tmp_path / "data") as second:
        again = Person(
            second, ann.name, ann.token, second.client(ann.name, "correct horse"), second.with_token(ann.token)
        )
        _is_counted(again, vault)
        mine = Restic(again.restic_url(vault), tmp_path)
        mine.does("unlock", "--remove-all")
        mine.does("check", "--read-data")
        mine.does("backup", str(source))
        mine.does("check", "--read-data")
        _is_counted(again, vault)
        assert list((tmp_path / "data").glob("vaults/*/*/tmp/*")) == []
        again.close()


def _is_counted(who: Person, vault: str) -> None:
    """What the catalog says of a vault, and of its owner, is what lies in it."""
    found = [listed(who.program, vault, kind) for kind in ("data", "keys", "locks", "snapshots", "index")]
    config = int(who.program.head(f"{vault}config").headers["content-length"])
    size, objects = sum(sum(some.values()) for some in found) + config, sum(map(len, found)) + 1
    about = who.about(vault)
    assert (about["bytes"], about["objects"]) == (size, objects)


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
