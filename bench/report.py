"""The report: tables of what was measured, the goals, the machine; as text, and as the page
docs/benchmarks.md.

Promise: nothing is computed here but medians and ratios, and both forms show the same figures.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.ballast import gives_memory_back
from bench.goals import GOALS, PEER, Key
from bench.measure import Series
from bench.scenarios import SCENARIOS

HEAD = ("work", "program", "seconds", "slowest", "x restic", "cpu s", "others s", "peak MB", "stored MB", "added MB")
Row = tuple[str, ...]


@dataclass
class Report:
    """All results of one run of the benchmark, and what has to be known to read them."""

    scale: str
    runs: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    skipped: Mapping[str, str]
    results: dict[Key, Series] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def rows(self, scenario: str) -> list[Row]:
        """The table of one scenario, steps in order, programs in the order they ran."""
        found = []
        for step in SCENARIOS[scenario].steps:
            other = self.results.get((scenario, step.name, PEER))
            for (where, what, who), series in self.results.items():
                if (where, what) == (scenario, step.name):
                    found.append(_row(what, who, series, other))
        return found

    def goals(self) -> list[str]:
        """One line a goal."""
        return [goal.line(self.results) for goal in GOALS]

    def disturbed(self) -> list[str]:
        """A warning when others used the machine during measures."""
        found = [" ".join(key) for key, series in self.results.items() if series.disturbed]
        if not found:
            return []
        return [f"disturbed by other work on the machine ({len(found)}): {'; '.join(found)}"]

    def text(self) -> str:
        """For the terminal."""
        parts = [f"{name}: {value}" for name, value in {**self.machine, **self.versions}.items()]
        parts += [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        for name, scenario in SCENARIOS.items():
            if rows := self.rows(name):
                parts += ["", f"{name}: {self._title(scenario.title)}", *_aligned([HEAD, *rows])]
        parts += ["", *self.failures, *self.goals(), *self.disturbed()]
        if self.scale != "full":
            parts += [f"({self.scale} scale: corpora ten times smaller; these ratios say nothing of the goals)"]
        return "\n".join(parts)

    def _title(self, title: str) -> str:
        return title if self.scale == "full" else f"a tenth of: {title}"

    def markdown(self) -> str:
        """The page docs/benchmarks.md."""
        parts = ["# Benchmarks", "", INTRODUCTION.format(runs=self.runs), "", "## Where", ""]
        parts += [f"- {name}: {value}" for name, value in {**self.machine, **self.versions}.items()]
        parts += [f"- {name}: not measured, {reason}" for name, reason in self.skipped.items()]
        parts += ["", "## Goals", "", *(f"- {line}" for line in [*self.goals(), *self.disturbed()])]
        for name, scenario in SCENARIOS.items():
            if rows := self.rows(name):
                parts += ["", f"## {name}: {scenario.title}", "", *_table([HEAD, *rows])]
        if self.failures:
            parts += ["", "## Failed", "", *(f"- {line}" for line in self.failures)]
        return "\n".join(parts) + "\n"


def with_words_of(old: str, new: str) -> str:
    """The new page with what people wrote at the end of the old one, from the heading FINDINGS on."""
    at = old.find(f"\n{FINDINGS}\n")
    return new if at < 0 else new + old[at:]


FINDINGS = "## What bounds the rest"
INTRODUCTION = """Written by `make bench` (`python -m bench.run --write`); bench/README.md says what is
measured, and how. Every figure is the median of {runs} runs taken in turn (peak memory and others: the highest), of
whole processes, with the corpus in the page cache and a fresh repository for each run. "x restic" is the wall time
divided by restic's. "stored" is the size of all files of the repository after the step, "added" what the step added,
"others" the CPU seconds of the rest of the machine meanwhile ("!": too many). Programs named like `zstd -3 -T2` are
limits: the least a plain tool could do, without encryption, deduplication or (but for `dd conv=fsync`) durability."""


def _row(step: str, program: str, series: Series, other: Series | None) -> Row:
    return (
        step,
        program,
        f"{series.wall:.2f}",
        f"{series.spread[1]:.2f}",
        f"{series.wall / other.wall:.2f}" if other and other.wall else "",
        f"{series.cpu:.2f}",
        f"{series.others:.2f}" + ("!" if series.disturbed else ""),
        f"{series.peak / 1e6:.0f}",
        f"{series.stored / 1e6:.1f}" if series.stored else "",
        f"{series.added / 1e6:.1f}" if series.added else "",
    )


def _aligned(rows: Sequence[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def _table(rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|---|---|" + "---:|" * (len(rows[0]) - 2), *lines[1:]]


def machine(folder: Path) -> dict[str, str]:
    """Date, processor, cores, memory, kernel, the work folder's filesystem, and how busy the machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": _filesystem(folder),
        "Python": platform.python_version(),
        "memory given back to a host": "yes" if gives_memory_back() else "no",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _filesystem(folder: Path) -> str:
    """The type of the mount that holds the folder: the longest mount point above it, of equals the last."""
    best, kind = "", "unknown"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return kind
    for line in mounts:
        before, after = line.split(" - ", 1)
        point = before.split()[4]
        inside = os.path.commonpath([point, folder.resolve()]) == point
        if inside and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
