"""Measuring: one command as a whole process, several in turn, and the medians and ratios of what came out.

    python -m bench.measure [--runs N] [--steady] 'COMMAND A' 'COMMAND B' ...

runs shell commands in turn (A B A B ...) and prints their medians and their ratios to the first.

Promise: wall time is from the start of the process to its end, as a user waits for it. CPU seconds are those of
the process and of every child it waited for; what the rest of the machine used meanwhile (the kernel's own
writing included) is noted beside it. The peak is the largest resident set of any one process of the tree, so for
a program of many processes it is not their sum. Between two runs the disk is synced, outside the measure.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.ground import Ground
from bench.work import work_folder

T = TypeVar("T")
SPAWN = Path(__file__).with_name("spawn.py")
TIME_LIMIT = 3600.0
SETTINGS = ("HOLDFAST_", "RESTIC_", "BORG_", "KOPIA_")


class Failed(Exception):
    """A measured command ended with an error; the message is its status and the last of what it said."""


@dataclass(frozen=True)
class Command:
    """What to run, one program after the other, with which additions to the environment, and where."""

    steps: Sequence[Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def argv(self) -> list[str]:
        """One argv; several steps become a shell's `a && b`."""
        if len(self.steps) == 1:
            return list(self.steps[0])
        return ["sh", "-c", " && ".join(shlex.join(step) for step in self.steps)]


@dataclass(frozen=True)
class Usage:
    """What one run cost, and what the repository held after it."""

    wall: float
    cpu: float
    peak: int
    others: float = 0.0
    stored: int = 0
    added: int = 0


@dataclass
class Series:
    """The runs of one thing; every figure is the median of its runs, but the peak is the highest."""

    runs: list[Usage] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Seconds."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def spread(self) -> tuple[float, float]:
        """The quickest and the slowest run."""
        return min(run.wall for run in self.runs), max(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """User and system seconds."""
        return statistics.median(run.cpu for run in self.runs)

    @property
    def others(self) -> float:
        """CPU seconds the rest of the machine used in the worst of the runs."""
        return max(run.others for run in self.runs)

    @property
    def disturbed(self) -> bool:
        """Whether, in any run, others had more than a quarter of a core: then the figures mean little."""
        return any(run.others > max(0.25 * run.wall, 0.1) for run in self.runs)

    @property
    def peak(self) -> int:
        """Bytes of the largest process."""
        return max(run.peak for run in self.runs)

    @property
    def stored(self) -> int:
        """Bytes the repository (or output) has."""
        return round(statistics.median(run.stored for run in self.runs))

    @property
    def added(self) -> int:
        """Bytes by which the repository grew."""
        return round(statistics.median(run.added for run in self.runs))


def run(command: Command) -> Usage:
    """Run it once, output thrown away; raises `Failed` when it says it failed or takes over an hour."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        result = Path(folder) / "result"
        before = busy_seconds()
        with open(Path(folder) / "errors", "w+b") as errors:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SPAWN), str(result), *command.argv()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**_plain_environment(), **command.environment},
                cwd=command.folder,
                start_new_session=True,
            )
            _wait(process)
            busy = busy_seconds() - before
            errors.seek(0)
            said = _last_words(errors.read())
        try:
            wall, user, system, peak, status = json.loads(result.read_bytes())
        except (OSError, ValueError):
            raise Failed(said or "did not start, or ran for over an hour") from None
    if status != 0:
        raise Failed(f"exit status {status}: {said or 'nothing said'}")
    return Usage(wall, user + system, peak, max(0.0, busy - user - system))


def busy_seconds() -> float:
    """CPU seconds all processes and the kernel have used since the machine was started."""
    with open("/proc/stat", "rb") as file:
        user, nice, system, _, _, interrupts, soft = (int(word) for word in file.readline().split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _last_words(said: bytes) -> str:
    lines = [line.strip() for line in said[-4000:].decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-3:])


def _plain_environment() -> dict[str, str]:
    """Our environment without anybody's own settings of the programs that are measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the helper; on a time-out or Ctrl-C end its whole process group, which is our own child's."""
    try:
        process.wait(TIME_LIMIT)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def in_turn(jobs: Mapping[str, Callable[[], T]], runs: int, before: Callable[[], None]) -> dict[str, list[T]]:
    """Call the jobs A B C, A B C, ..., `before` each of them, so that a slow minute hits all."""
    found: dict[str, list[T]] = {name: [] for name in jobs}
    for _ in range(runs):
        for name, job in jobs.items():
            before()
            found[name].append(job())
    return found


def main() -> None:
    """Compare shell commands."""
    parser = argparse.ArgumentParser(prog="python -m bench.measure", description="run commands in turn and compare")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steady", action="store_true", help="settle memory and disk before each (bench.ground)")
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    jobs = {text: partial(run, Command([["sh", "-c", text]])) for text in options.commands}
    ground = Ground(work_folder(), careful=options.steady)
    found = in_turn(jobs, options.runs, ground.settle)
    series = {text: Series(runs) for text, runs in found.items()}
    first = next(iter(series.values())).wall
    for text, one in series.items():
        low, high = one.spread
        print(
            f"{one.wall:8.3f} s ({low:.3f}-{high:.3f})  cpu {one.cpu:7.3f} s  peak {one.peak / 1e6:6.0f} MB"
            f"  x {one.wall / first if first else 0:.3f}  {text}"
        )


if __name__ == "__main__":
    main()
