"""Cut off in the middle: the client killed, the server killed, connections broken. It goes on and ends right."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.remote.visiting import MIB, Visitor, described, noise, requests_of, sha256, small_tree, summary, visitor
from tests.support.proxy import Proxy, proxy_to
from tests.support.server import Running, running


@pytest.fixture
def proxy(server: Running) -> Iterator[Proxy]:
    with proxy_to(server.url) as made:
        yield made


@pytest.fixture
def through(ann: Visitor, proxy: Proxy) -> Visitor:
    """Ann behind the proxy, with a tree that takes a while."""
    small_tree(ann.tree)
    for number in range(30):
        (ann.tree / f"small {number}").write_bytes(noise(10_000, number))
    (ann.tree / "large").write_bytes(noise(40 * MIB))
    (ann.tree / "large too").write_bytes(noise(10 * MIB, 2))
    return replace(ann, url=proxy.url)


@contextlib.contextmanager
def held(visitor: Visitor, proxy: Proxy, *words: object, at: int) -> Iterator[subprocess.Popen[bytes]]:
    """A command that waits in the middle of a connection to the server."""
    proxy.holds = [at]
    command = visitor.apart.command(*words)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=visitor.apart.environment, stdout=pipe, stderr=pipe) as process:
        assert proxy.held.wait(60)
        try:
            yield process
        finally:
            process.kill()
            proxy.go.set()


def test_a_client_that_was_killed_goes_on_where_it_was(ann: Visitor, through: Visitor, proxy: Proxy, server: Running):
    with held(through, proxy, "manifest", "push", ann.tree, at=25 * MIB) as process:
        process.kill()
        process.wait()
    time.sleep(0.5)
    again = ann.push()
    assert again["complete"] and again["version"] == 2 and again["errors"] == 0
    assert again["bytes_sent"] < 40 * MIB  # of 53 MiB
    ann.pull()
    assert described(ann.out) == described(ann.tree)


def test_ctrl_c_ends_a_push_soon_and_the_next_one_goes_on(ann: Visitor, through: Visitor, proxy: Proxy) -> None:
    with held(through, proxy, "manifest", "push", ann.tree, at=25 * MIB) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        proxy.go.set()
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Interrupted" in error
    assert ann.push()["complete"]


def test_connections_that_break_are_made_again(ann: Visitor, through: Visitor, proxy: Proxy, server: Running) -> None:
    proxy.budgets = [10_000, 10_000, 3 * MIB, 2 * MIB, 9 * MIB, 100_000]
    pushed = summary(through.call("manifest", "push", ann.tree, "--json"))
    assert pushed["complete"] and pushed["errors"] == 0
    assert proxy.broken == 6
    assert any(told["status"] == 201 for told in requests_of(server, "PATCH", f"/files/{sha256(noise(40 * MIB))}"))
    proxy.broken, proxy.back_budgets = 0, [5 * MIB, 100_000, 3 * MIB, 7 * MIB]
    pulled = summary(through.call("manifest", "pull", "tree", "-t", ann.out, "--json"))
    assert pulled["errors"] == 0 and proxy.broken == 4
    assert described(ann.out) == described(ann.tree)
    assert any(told["status"] == 206 for told in requests_of(server, "GET", "/files/"))


def test_a_manifest_whose_answer_is_lost_is_not_posted_twice(ann: Visitor, through: Visitor, proxy: Proxy) -> None:
    for number in range(3000):
        (ann.tree / f"many {number}").write_bytes(b"")
    proxy.back_budgets = [64 << 10]
    pushed = summary(through.call("manifest", "push", ann.tree, "--json"))
    assert proxy.broken == 1 and pushed["complete"] and pushed["version"] == 1
    assert ann.push()["version"] == 2


def test_a_pull_that_was_killed_goes_on_where_it_was(ann: Visitor, through: Visitor, proxy: Proxy, server: Running):
    ann.push()
    pull = ("manifest", "pull", "tree", "-t", ann.out)
    with subprocess.Popen(through.apart.command(*pull), env=through.apart.environment) as process:
        part = waited_for_a_part(ann.out, 5 * MIB)
        process.kill()
    assert part and not (ann.out / "large").exists()
    again = ann.pull()
    assert again["errors"] == 0 and described(ann.out) == described(ann.tree)
    assert not list(ann.out.rglob(".holdfast-*"))


def waited_for_a_part(folder: Path, size: int) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for path in folder.rglob(".holdfast-*.part"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_size >= size:
                    return True
    return False


def test_what_a_killed_pull_has_left_is_resumed_by_range(ann: Visitor, server: Running) -> None:
    from holdfast.remote.downloading import part_name
    from holdfast.remote.reading import FileLine

    data = noise(20 * MIB)
    (ann.tree / "large").write_bytes(data)
    ann.push()
    ann.out.mkdir()
    part = ann.out / os.fsdecode(part_name(FileLine(path=b"large", hash=sha256(data), size=len(data))))
    part.write_bytes(data[: 15 * MIB])
    assert ann.pull()["bytes_received"] == 5 * MIB
    assert (ann.out / "large").read_bytes() == data
    (ann.out / "large").unlink()
    part.write_bytes(noise(15 * MIB, "something else"))
    assert ann.pull()["bytes_received"] == 25 * MIB  # what is there is not believed
    assert (ann.out / "large").read_bytes() == data


def test_a_part_that_is_a_link_to_elsewhere_is_not_written_to(ann: Visitor, tmp_path: Path) -> None:
    from holdfast.remote.downloading import part_name
    from holdfast.remote.reading import FileLine

    data = noise(2 * MIB)
    (ann.tree / "large").write_bytes(data)
    ann.push()
    ann.out.mkdir()
    part = ann.out / os.fsdecode(part_name(FileLine(path=b"large", hash=sha256(data), size=len(data))))
    for plant in (os.symlink, os.link):
        victim = tmp_path / "victim"
        victim.write_bytes(b"mine")
        plant(victim, part)
        ann.pull()
        assert victim.read_bytes() == b"mine" and (ann.out / "large").read_bytes() == data
        (ann.out / "large").unlink()
        victim.unlink()


def test_parts_behind_a_gap_that_somebody_else_has_sent_are_completed(ann: Visitor, server: Running) -> None:
    data = noise(6 * MIB)
    (ann.tree / "large").write_bytes(data)
    with server.with_token(ann.token) as client:
        for start, stop in ((0, MIB), (2 * MIB, 3 * MIB), (4 * MIB, 5 * MIB)):
            part = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            assert client.put(f"/files/{sha256(data)}", content=data[start:stop], headers=part).status_code == 202
    pushed = ann.push()
    assert pushed["complete"] and pushed["errors"] == 0


@pytest.mark.parametrize("moment", ["while it sends", "while it pulls"])
def test_a_server_that_is_killed_and_comes_back_is_waited_for(moment: str, tmp_path: Path) -> None:
    data, home = tmp_path / "data", tmp_path / "home"
    home.mkdir()
    with running(data) as first, proxy_to(first.url) as proxy:
        ann = visitor(first, "ann", home)
        large = noise(60 * MIB)
        (ann.tree / "large").write_bytes(large)
        for number in range(50):
            (ann.tree / f"small {number}").write_bytes(noise(1000, number))
        words: tuple[object, ...] = ("manifest", "push", ann.tree, "--json")
        if moment == "while it pulls":
            ann.push()
            words = ("manifest", "pull", "tree", "-t", ann.out, "--json")
        through = replace(ann, url=proxy.url)
        pipe = subprocess.PIPE
        command = through.apart.command(*words)
        with subprocess.Popen(command, env=through.apart.environment, stdout=pipe, stderr=pipe) as process:
            if moment == "while it sends":
                time.sleep(0.8)
            else:
                waited_for_a_part(ann.out, 2 * MIB)
            first.process.kill()
            first.process.wait()
            time.sleep(1)
            with running(data) as second:
                proxy.lead_to(second.url)
                out, error = process.communicate(timeout=120)
                assert process.returncode == 0, (out, error)
                ann = replace(ann, url=second.url)
                assert ann.push()["complete"]
                ann.pull()
                assert described(ann.out) == described(ann.tree)
                assert (ann.out / "large").read_bytes() == large
