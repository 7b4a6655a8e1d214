"""The benchmark: measures Holdfast, its peers and the limits on every corpus, and holds the goals against it.

    python -m bench.run [--quick] [--only NAME ...] [--programs NAME ...] [--runs N] [--write]

Promise: in each round every program does a step before any does the next (A B C, A B C), each on a
repository made fresh for the round and deleted at its end; corpora are left as they were found. A program
that is not installed or fails is named with the reason, and the others go on. Holdfast is not imported,
only run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import report as reports
from bench.changes import Journal, change_files, change_image, undo
from bench.corpora import FULL, QUICK, Corpora, need_space
from bench.ground import Ground
from bench.measure import Failed, Series, Usage
from bench.peers import PEERS, Holdfast, Program, programs
from bench.report import Report, with_words_of
from bench.scenarios import SCENARIOS, SHARE_CHANGED, Scenario, Step
from bench.session import Session, hold_against
from bench.work import CHECKOUT, work_folder

PAGE = CHECKOUT / "docs" / "benchmarks.md"


class Bench:
    """One run of the benchmark."""

    def __init__(self, corpora: Corpora, found: Sequence[Program], report: Report) -> None:
        self.corpora = corpora
        self.programs = found
        self.report = report
        self.desk = work_folder() / "desk"
        self.ground = Ground(work_folder(), careful=corpora.scale is FULL)

    def measure_all(self, names: Sequence[str]) -> bool:
        """The named scenarios; false when Ctrl-C ended them (the report has what came before)."""
        try:
            for name in names:
                self.measure(SCENARIOS[name])
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return False
        return True

    def measure(self, scenario: Scenario) -> None:
        """All rounds of one scenario."""
        if scenario.name == "snapshots":
            self._listing(scenario)
            return
        source = self.corpora.path(scenario.name)
        for number in range(self.report.runs):
            self.ground.clear(self.desk)
            self.desk.mkdir()
            try:
                self._round(scenario, source, number)
            finally:
                undo(self._journal(scenario))
                self.ground.clear(self.desk)

    def _round(self, scenario: Scenario, source: Path, number: int) -> None:
        sessions = self._sessions(scenario)
        for step in scenario.steps:
            if step.change:
                self._change(scenario, source, number)
            self._each(scenario, step, sessions, source, contents=number == 0)
            for limit in step.limits:
                try:
                    self._note(scenario, step, limit.name, hold_against(limit, source, self.desk, self.ground))
                except Failed as error:
                    self._failed(scenario, step, limit.name, error)

    def _each(self, scenario: Scenario, step: Step, sessions: list[Session], source: Path, *, contents: bool) -> None:
        """Every program in turn; one that fails takes no further part in this round."""
        for session in list(sessions):
            try:
                usage = session.perform(step, source, contents=contents)
                self._note(scenario, step, session.program.name, usage)
            except Failed as error:
                self._failed(scenario, step, session.program.name, error)
                sessions.remove(session)

    def _listing(self, scenario: Scenario) -> None:
        """A repository of many snapshots, made once, listed several times."""
        self.ground.clear(self.desk)
        self.desk.mkdir()
        try:
            sessions = self._sessions(scenario)
            for session in list(sessions):
                count = self.corpora.scale.snapshots
                print(f"  making {count} snapshots with {session.program.name} ...", file=sys.stderr, flush=True)
                try:
                    session.fill(self.desk / "trees", count)
                except Failed as error:
                    self._failed(scenario, scenario.steps[0], session.program.name, error)
                    sessions.remove(session)
            for _ in range(self.report.runs):
                self._each(scenario, scenario.steps[0], sessions, self.desk, contents=False)
        finally:
            self.ground.clear(self.desk)

    def _sessions(self, scenario: Scenario) -> list[Session]:
        made = []
        for program in self.programs:
            try:
                made.append(Session(program, self.desk / program.name, self.ground))
            except Failed as error:
                self._failed(scenario, scenario.steps[0], program.name, error)
        return made

    def _change(self, scenario: Scenario, source: Path, number: int) -> None:
        journal = Journal(self._journal(scenario))
        change = change_files if source.is_dir() else change_image
        try:
            change(source, journal, SHARE_CHANGED, f"{scenario.name} {number}")
        finally:
            journal.close()

    def _journal(self, scenario: Scenario) -> Path:
        return self.corpora.folder / f"{scenario.name}.undo"

    def _note(self, scenario: Scenario, step: Step, who: str, usage: Usage) -> None:
        self.report.results.setdefault((scenario.name, step.name, who), Series()).runs.append(usage)
        where = f"{scenario.name} {step.name}"
        print(
            f"  {where:20} {who:22} {usage.wall:8.2f} s  peak {usage.peak / 1e6:5.0f} MB",
            file=sys.stderr,
            flush=True,
        )

    def _failed(self, scenario: Scenario, step: Step, who: str, error: Failed) -> None:
        line = f"{scenario.name} {step.name}: {who} failed: {error}"
        self.report.failures.append(line)
        print(f"  {line}", file=sys.stderr, flush=True)


def save(report: Report, path: Path) -> None:
    """Keep the single runs, as JSON, for whoever wants to look closer."""
    found = [
        {"scenario": scenario, "step": step, "program": program, "runs": [asdict(one) for one in series.runs]}
        for (scenario, step, program), series in report.results.items()
    ]
    facts = {
        "scale": report.scale,
        **report.machine,
        **report.versions,
        "results": found,
        "failures": report.failures,
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")


def options() -> argparse.Namespace:
    """The command line."""
    names = [Holdfast.name, *(peer.name for peer in PEERS)]
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="measure Holdfast against its peers")
    parser.add_argument("--quick", action="store_true", help="corpora ten times smaller, one run: checks the harness")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(SCENARIOS), help=" ".join(SCENARIOS))
    parser.add_argument("--programs", nargs="+", metavar="NAME", choices=names, help=" ".join(names))
    parser.add_argument("--runs", type=int, help="runs of each scenario (default: 3, quick: 1)")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    chosen = parser.parse_args()
    if chosen.write and (chosen.quick or chosen.only):
        parser.error("--write needs a full run: the page holds every scenario at full scale")
    if chosen.runs is not None and chosen.runs < 1:
        parser.error("--runs must be at least 1")
    return chosen


def main() -> int:
    """Measure, print, and write when asked; the exit status tells whether all steps ran, not of goals."""
    chosen = options()
    corpora = Corpora(work_folder(), QUICK if chosen.quick else FULL)
    need_space(work_folder(), corpora.scale)
    found, skipped = programs()
    if chosen.programs:
        skipped |= {one.name: "not asked for" for one in found if one.name not in chosen.programs}
        found = [one for one in found if one.name in chosen.programs]
    versions = {one.name: one.version() for one in found}
    runs = chosen.runs or (1 if chosen.quick else 3)
    report = Report(corpora.scale.name, runs, reports.machine(work_folder()), versions, skipped)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    bench = Bench(corpora, found, report)
    whole = bench.measure_all(chosen.only or list(SCENARIOS))
    save(report, work_folder() / f"results-{corpora.scale.name}.json")
    print(report.text())
    if not whole:
        return 130
    if chosen.write:
        PAGE.parent.mkdir(exist_ok=True)
        old = PAGE.read_text() if PAGE.exists() else ""
        PAGE.write_text(with_words_of(old, report.markdown()))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
