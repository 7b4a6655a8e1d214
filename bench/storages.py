"""Backing up to servers, beside `rclone copy` of the same packs to the same server, on loopback.

    python -m bench.storages [--runs N] [--bytes N] [--write]

For each kind of storage a real server is started in this checkout's test environments: OpenStack Swift, its S3
interface, rclone's S3 server, OpenSSH's SFTP server, and rclone's server of restic's REST protocol. `holdfast backup`
of a file of random bytes into a new repository there is timed, and `rclone copy` of the packs of the same file, in
turn. rclone is no client of the REST protocol: it copies to its own WebDAV server over the same kind of folder instead.
Client and server share the machine's processors. The goal: at least 0.7 of rclone's speed, at most 300 MB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import Command, Usage, run
from bench.work import CHECKOUT, HOLDFAST, work_folder
from tests.support import rclone, sshd
from tests.support.openstack import swift_node

PAGE = CHECKOUT / "docs" / "benchmarks-storages.md"
GOAL, MOST_MEMORY = 0.7, 300_000_000


@dataclass
class Server:
    """A server that runs: the repository's address, what Holdfast is told, and rclone's name of the same place."""

    name: str
    address: str
    variables: Mapping[str, str]
    remote: str
    options: tuple[str, ...] = ()


@dataclass
class Figures:
    holdfast: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Holdfast's speed as a part of rclone's."""
        return statistics.median(self.peer) / statistics.median(self.holdfast)


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[Server]:
    with swift_node() as node:
        options = (f"--swift-auth={node.url}/auth/v1.0", "--swift-user=test:tester", "--swift-key=testing")
        yield Server("Swift", "swift://bench/repo", node.variables, ":swift:copy", options)


@contextlib.contextmanager
def s3_swift(folder: Path) -> Iterator[Server]:
    with swift_node() as node:
        yield Server("S3 (Swift's)", f"s3:{node.url}/bench/repo", node.s3_variables, ":s3:copy", _s3(node.url))


@contextlib.contextmanager
def s3_rclone(folder: Path) -> Iterator[Server]:
    key = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench secret"}
    (folder / "served" / "bench").mkdir(parents=True)
    with rclone.serving("s3", folder / "served", "--auth-key", "bench,bench secret") as port:
        url = f"http://127.0.0.1:{port}"
        login = "--s3-access-key-id=bench", "--s3-secret-access-key=bench secret"
        options = ("--s3-provider=Rclone", f"--s3-endpoint={url}", *login)
        yield Server("S3 (rclone's)", f"s3:{url}/bench/repo", key, ":s3:bench/copy", options)


@contextlib.contextmanager
def sftp(folder: Path) -> Iterator[Server]:
    with sshd.serving(folder) as server:
        root = folder / "storage"
        key = server.home / ".ssh" / "id_ed25519"
        options = ("--sftp-host=127.0.0.1", f"--sftp-port={server.port}", f"--sftp-key-file={key}", "--sftp-user=root")
        variables = {**server.access().variables, "HOME": str(server.home)}
        yield Server("SFTP (OpenSSH)", server.address(root), variables, f":sftp:{folder}/copy", options)


@contextlib.contextmanager
def rest(folder: Path) -> Iterator[Server]:
    for name in ("rest", "dav"):
        (folder / name).mkdir()
    with rclone.serving("restic", folder / "rest") as port, rclone.serving("webdav", folder / "dav") as other:
        options = (f"--webdav-url=http://127.0.0.1:{other}", "--webdav-vendor=other")
        yield Server("REST (rclone's)", f"rest:http://127.0.0.1:{port}/repo", {}, ":webdav:copy", options)


SERVERS = (swift, s3_swift, s3_rclone, sftp, rest)


def _s3(url: str) -> tuple[str, ...]:
    return (
        *("--s3-provider=Other", f"--s3-endpoint={url}", "--s3-access-key-id=test:tester"),
        *("--s3-secret-access-key=testing", "--s3-region=us-east-1", "--s3-force-path-style=true"),
    )


def back_up(server: Server, source: Path, folder: Path) -> Usage:
    """A new repository, and the file backed up into it."""
    home = {"HOME": str(folder), "HOLDFAST_CACHE_DIR": str(folder / "cache"), "HOLDFAST_PASSWORD": "bench"}
    environment = {**home, **server.variables}
    subprocess.run(
        [HOLDFAST, "-q", "-r", server.address, "init"], env={"PATH": "/usr/bin:/bin", **environment}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return run(Command([[str(HOLDFAST), "-q", "-r", server.address, "backup", str(source)]], environment))


def copy(server: Server, packs: Path) -> Usage:
    command = [rclone.need_rclone(), "copy", "--config", "/dev/null", "--transfers", "4", *server.options]
    return run(Command([[*command, str(packs), server.remote]]))


def packs_of(source: Path, folder: Path) -> Path:
    """The packs that Holdfast makes of the file, in a folder."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "HOLDFAST_PASSWORD": "bench"}
    for words in (["init"], ["backup", str(source)]):
        subprocess.run(
            [HOLDFAST, "-q", "-r", str(folder / "local"), *words],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return folder / "local" / "data"


def measure(runs: int, size: int, work: Path) -> dict[str, Figures]:
    source = work / "random-for-storages"
    whole = work / "random"
    if not source.exists() or source.stat().st_size != size:
        subprocess.run(["head", "-c", str(size), str(whole)], stdout=source.open("wb"), check=True)
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(dir=work) as top:
        packs = packs_of(source, Path(top))
        for number in range(runs):
            for opening in SERVERS:
                folder = Path(top) / f"{opening.__name__}-{number}"
                folder.mkdir()
                with opening(folder) as server:
                    figures = found.setdefault(server.name, Figures())
                    ours = back_up(server, source, folder)
                    theirs = copy(server, packs)
                    figures.holdfast.append(ours.wall)
                    figures.peer.append(theirs.wall)
                    figures.memory.append(ours.peak)
                    print(
                        f"  {server.name:16} holdfast {ours.wall:6.2f} s, {ours.peak / 1e6:4.0f} MB; "
                        f"rclone {theirs.wall:6.2f} s",
                        flush=True,
                    )
                shutil.rmtree(folder)
    return found


def report(found: Mapping[str, Figures], runs: int, size: int) -> str:
    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# Storages: the figures",
        "",
        f"`python -m bench.storages --runs {runs}`, {today}, {platform.machine()}, Python {platform.python_version()},"
        f" 2 processors that client and server share. A file of {size >> 20} MiB of random bytes; medians.",
        "",
        "| server | `holdfast backup`, MB/s | `rclone copy`, MB/s | ratio (goal 0.7) | memory, MB (goal 300) |",
        "|---|---|---|---|---|",
    ]
    for name, f in found.items():
        speeds = (size / 1e6 / statistics.median(times) for times in (f.holdfast, f.peer))
        ours, theirs = (f"{s:.0f}" for s in speeds)
        lines.append(f"| {name} | {ours} | {theirs} | {f.ratio:.2f} | {max(f.memory) / 1e6:.0f} |")
    return "\n".join([*lines, "", __doc__.split("\n\n", 2)[2].strip(), ""])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=2 << 30)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = measure(options.runs, options.bytes, work_folder())
    page = report(found, options.runs, options.bytes)
    print(page)
    if options.write:
        PAGE.write_text(page)
    missed = [n for n, f in found.items() if f.ratio < GOAL or max(f.memory) > MOST_MEMORY]
    print("Every goal is met." if not missed else f"Not met: {', '.join(missed)}.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
