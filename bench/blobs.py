"""Blobs' benchmark: buckets of `holdfast serve` beside `rclone serve s3` and OpenStack Swift, on loopback.

    python -m bench.blobs [--runs N] [--write]

Measured: one blob of 1 GiB put and got over one connection; blobs of 4 KiB put, and got, over 32 connections. What
Holdfast answers is durable; rclone makes nothing durable before it answers, so a second figure of rclone has the time
in it that a `sync` of its folder takes afterwards. The client is that of `bench.server`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.server import LARGE, PASSWORD, Results, Target, disk, large, rclone, serving, small, small_back, swift
from bench.work import CHECKOUT, remove, work_folder

PAGE = CHECKOUT / "docs" / "benchmarks-blobs.md"
PUT_LARGE, GET_LARGE = "PUT of 1 GiB, GB/s", "GET of 1 GiB, GB/s"
PUT_SMALL, GET_SMALL = "PUTs of 4 KiB a second", "GETs of 4 KiB a second"
FLUSHED = "rclone s3 + sync"
Start = Callable[[Path], contextlib.AbstractContextManager[Target]]


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[Target]:
    """A bucket on disk."""
    with _bucket(folder, "disk") as target:
        yield target


@contextlib.contextmanager
def in_repository(folder: Path) -> Iterator[Target]:
    """A bucket in the repository."""
    with _bucket(folder, "repository") as target:
        yield target


@contextlib.contextmanager
def _bucket(folder: Path, filesystem: str) -> Iterator[Target]:
    with serving(folder) as (pid, said, headers):
        basic = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        body = f'{{"filesystem": "{filesystem}"}}'.encode()
        asked = urllib.request.Request(
            f"{said['blobs_url']}/bench", body, {"Authorization": f"Basic {basic}"}, method="PUT"
        )
        urllib.request.urlopen(asked, timeout=30).close()
        host, _, port = said["blobs_url"].removeprefix("http://").rpartition(":")
        yield Target(f"holdfast {filesystem}", (host, int(port)), pid, lambda name: f"/bench/{name}", headers)


def measure(runs: int) -> Results:
    """Everything, in turn, so many times, each time over fresh folders."""
    results, desk = Results(), work_folder() / "blobs-desk"
    starts: list[Start] = [on_disk, rclone, swift, in_repository]
    for run in range(runs):
        remove(desk)
        desk.mkdir()
        data = os.urandom(LARGE)
        disk(desk, results)
        for start in starts:
            folder = desk / getattr(start, "__name__", "server")
            with start(folder) as target:
                large(target, data, results)
                if start is rclone:
                    _flush(folder, results)
                small(target, run, results)
                small_back(target, run, results)
                results.add("most memory, MB", target.name, target.peak() / 1e6)
            os.sync()
    remove(desk)
    return results


def _flush(folder: Path, results: Results) -> None:
    """What rclone has still to do for its blob to be durable."""
    began = time.perf_counter()
    subprocess.run(["sync", "-f", str(folder)], check=True)
    taken = LARGE / 1e9 / results.figures[PUT_LARGE, "rclone s3"][-1] + time.perf_counter() - began
    results.add(PUT_LARGE, FLUSHED, LARGE / 1e9 / taken)


def goals(results: Results) -> list[tuple[str, float, str]]:
    """What is held against what: the figure, ours by theirs, and the goal. Medians of the ratios of each run."""
    held = []
    for what, many, slower in (
        (PUT_SMALL, ("rclone s3", "Swift"), min), (GET_SMALL, ("rclone s3", "Swift"), min),
        (PUT_LARGE, (FLUSHED, "Swift"), max), (GET_LARGE, ("rclone s3", "Swift"), max),
    ):  # fmt: skip
        ours, theirs = results.figures[what, "holdfast disk"], [results.figures[what, one] for one in many]
        ratios = [mine / slower(others) for mine, *others in zip(ours, *theirs, strict=True)]
        goal = (
            "of the slower of the two, at least 1"
            if slower is min
            else f"of the faster of {' and '.join(many)}, above 1"
        )
        held.append((what, statistics.median(ratios), goal))
    return held


def report(results: Results, runs: int) -> str:
    """The page: medians, and the goals."""
    whom = list(dict.fromkeys(w for _, w in results.figures))
    lines = [
        "# Blobs, measured", "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} processors, kernel {platform.release()}, "
        f"medians of {runs} runs, by `python -m bench.blobs`. The client runs on the same processors.", "",
        f"| | {' | '.join(whom)} |", f"|---|{'---|' * len(whom)}",
    ]  # fmt: skip
    for what in dict.fromkeys(w for w, _ in results.figures):
        cells = [f"{v:,.2f}" if (v := results.median(what, w)) is not None else "–" for w in whom]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    lines += ["", "| buckets on disk, of the peers in the same run | ratio | goal | |", "|---|---|---|---|"]
    for what, ratio, goal in goals(results):
        met = ratio >= 1 if "at least" in goal else ratio > 1
        lines.append(f"| {what} | {ratio:.2f} | {goal} | {'met' if met else '**not met**'} |")
    lines += [
        "", "What Holdfast and Swift answer is durable; rclone makes nothing durable before it answers: `+ sync` has",
        "the time in it that this takes afterwards. Holdfast verifies what it gives back; rclone and Swift do not.", "",
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
