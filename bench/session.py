"""One program at work on one fresh repository, step by step, each step measured.

Promise: the ground is settled before every measure. What a step leaves behind outside its repository (a restored
tree, an output) is deleted or put aside, outside the measure. A restore is compared with its source, and counts
only if it is equal.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench import measure
from bench.ground import Ground
from bench.measure import Command, Failed, Usage
from bench.peers import Place, Program, Steps
from bench.scenarios import COPY, Limit, Step
from bench.verify import differences, restored_root
from bench.work import stored_bytes


class Session:
    """A program, its repository, and how many backups it holds."""

    def __init__(self, program: Program, folder: Path, ground: Ground) -> None:
        self.program = program
        self.ground = ground
        self.place = Place(folder)
        self.backups = 0
        folder.mkdir(parents=True)
        self._quietly(program.init(self.place))
        self.stored = stored_bytes(self.place.repository)

    def perform(self, step: Step, source: Path, *, contents: bool) -> Usage:
        """Do the step and say what it cost; raises `Failed`."""
        if step.action == "restore":
            return self._restore(source, contents=contents)
        if step.action == "backup":
            self.backups += 1
        self.ground.settle(source, self.place.repository)
        usage = measure.run(self.program.command(self.place, self._steps(step, source)))
        before, self.stored = self.stored, stored_bytes(self.place.repository)
        return dataclasses.replace(usage, stored=self.stored, added=self.stored - before)

    def _steps(self, step: Step, source: Path) -> Steps:
        program, place = self.program, self.place
        if step.action == "backup":
            return program.backup(place, source, self.backups)
        if step.action == "prune":
            return program.prune(place, source)
        if step.action == "snapshots":
            return program.snapshots(place)
        return program.check(place, data=step.action == "check-data")

    def _restore(self, source: Path, *, contents: bool) -> Usage:
        target = self.place.folder / "restored"
        target.mkdir()
        try:
            steps = self.program.restore(self.place, source, self.backups, target)
            self.ground.settle(source, self.place.repository, creates_files=source.is_dir())
            usage = measure.run(self.program.command(self.place, steps, target))
            if wrong := differences(source, restored_root(target, source), contents=contents):
                raise Failed(f"restored something else: {'; '.join(wrong)}")
        finally:
            self.ground.put_aside(target, self.place.folder / "aside")
        return dataclasses.replace(usage, stored=self.stored)

    def fill(self, source: Path, count: int) -> None:
        """Make `count` snapshots of a small tree that changes a little each time; not measured."""
        tree = source / self.program.name
        tree.mkdir(parents=True)
        (tree / "constant").write_text("this stays as it is\n")
        for number in range(1, count // self.program.snapshots_a_backup + 1):
            (tree / "changing").write_text(f"backup {number}\n")
            self.backups += 1
            self._quietly(self.program.backup(self.place, tree, self.backups))
        for steps in self.program.multiply(self.place):
            self._quietly(steps)

    def _quietly(self, steps: Steps) -> None:
        measure.run(self.program.command(self.place, steps))


def hold_against(limit: Limit, source: Path, desk: Path, ground: Ground) -> Usage:
    """Measure a limit; raises `Failed`, as when its tool is not installed."""
    output = desk / "limit"
    variables = {"SOURCE": str(source), "PARENT": str(source.parent), "NAME": source.name, "OUT": str(output)}
    try:
        ground.settle(source, creates_files=source.is_dir() and limit is COPY)
        usage = measure.run(Command([["sh", "-c", limit.shell]], variables))
        size = output.stat().st_size if output.is_file() else 0
        return dataclasses.replace(usage, stored=size)
    finally:
        ground.put_aside(output, desk / "aside")
