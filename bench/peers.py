"""The programs that are compared: Holdfast and its peers restic, Borg and kopia, each by its own command
line.

    python -m bench.peers              says which are found, and where
    python -m bench.peers install      fetches restic and Borg into the work folder (see bench.install)

A peer is looked for in `$HOLDFAST_BENCH_PEERS` (default: `peers` in the work folder), in its `bin`, then on
PATH.

Promise: every program works on a repository, a cache and settings of its own below a `Place`, so nothing is
read from or left in the user's home. All of them encrypt, and all compress with zstd at its level 3: restic
and Holdfast do so by themselves, Borg and kopia (lz4 and nothing by default) are told to.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.measure import Command
from bench.work import CHECKOUT, HOLDFAST, work_folder

PASSWORD = "benchmark"
Steps = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Place:
    """A folder in which one program keeps one repository and its cache."""

    folder: Path

    @property
    def repository(self) -> Path:
        """Where the backups go."""
        return self.folder / "repository"

    @property
    def cache(self) -> Path:
        """Where the program's own cache and settings go."""
        return self.folder / "cache"


@dataclass(frozen=True)
class Program(ABC):
    """One backup program: what to type for each work. `number` counts its backups from 1."""

    program: Path

    name: ClassVar[str]
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)
    snapshots_a_backup: ClassVar[int] = 1
    """How many snapshots `multiply` makes of one."""

    def environment(self, place: Place) -> dict[str, str]:
        """What is added to the environment."""
        cache = str(place.cache)
        return {
            "XDG_CACHE_HOME": cache,
            "XDG_CONFIG_HOME": cache,
            "XDG_STATE_HOME": cache,
            **self.settings(place),
        }

    @abstractmethod
    def settings(self, place: Place) -> dict[str, str]:
        """The program's own variables: repository, password."""

    @abstractmethod
    def init(self, place: Place) -> Steps:
        """Make the repository."""

    @abstractmethod
    def backup(self, place: Place, source: Path, number: int) -> Steps:
        """Back up the source."""

    @abstractmethod
    def restore(self, place: Place, source: Path, number: int, target: Path) -> Steps:
        """Restore the latest backup below the target, which is also the folder the command runs in."""

    @abstractmethod
    def check(self, place: Place, *, data: bool) -> Steps:
        """Check the repository's structure, or all its data as well."""

    @abstractmethod
    def prune(self, place: Place, source: Path) -> Steps:
        """Forget all but the last backup and give the space back."""

    @abstractmethod
    def snapshots(self, place: Place) -> Steps:
        """List the backups."""

    def multiply(self, place: Place) -> list[Steps]:
        """Quick ways of getting `snapshots_a_backup` snapshots out of each, run one after the other."""
        return []

    def command(self, place: Place, steps: Steps, folder: Path | None = None) -> Command:
        """The steps with this program's environment."""
        place.cache.mkdir(parents=True, exist_ok=True)
        return Command(steps, self.environment(place), folder)

    def version(self) -> str:
        """What it says of itself, in one line."""
        argv = [str(self.program), *self.version_arguments]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return f"unknown ({error})"
        lines = done.stdout.strip().splitlines()
        return lines[0] if done.returncode == 0 and lines else "unknown"


class Holdfast(Program):
    """Holdfast, started from the checkout as a user starts it."""

    name = "holdfast"

    def settings(self, place: Place) -> dict[str, str]:
        return {"HOLDFAST_REPOSITORY": str(place.repository), "HOLDFAST_PASSWORD": PASSWORD}

    def init(self, place: Place) -> Steps:
        return [[str(self.program), "init"]]

    def backup(self, place: Place, source: Path, number: int) -> Steps:
        return [[str(self.program), "backup", str(source)]]

    def restore(self, place: Place, source: Path, number: int, target: Path) -> Steps:
        return [[str(self.program), "restore", "latest", "--target", str(target)]]

    def check(self, place: Place, *, data: bool) -> Steps:
        return [[str(self.program), "check", *(["--read-data"] if data else [])]]

    def prune(self, place: Place, source: Path) -> Steps:
        return [[str(self.program), "forget", "--keep-last", "1"], [str(self.program), "prune", "--now"]]

    def snapshots(self, place: Place) -> Steps:
        return [[str(self.program), "snapshots"]]

    def version(self) -> str:
        """Its version and the commit that is measured."""
        argv = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        commit = done.stdout.strip() if done.returncode == 0 else "not committed"
        return f"{super().version()} ({commit})"


class Restic(Program):
    """restic with its defaults: compression "auto", no deviating pack size, a cache."""

    name = "restic"
    version_arguments = ("version",)
    snapshots_a_backup = 25

    def settings(self, place: Place) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(place.repository),
            "RESTIC_PASSWORD": PASSWORD,
            "RESTIC_CACHE_DIR": str(place.cache),
        }

    def _run(self, *arguments: str) -> Steps:
        return [[str(self.program), "--quiet", *arguments]]

    def init(self, place: Place) -> Steps:
        return self._run("init")

    def backup(self, place: Place, source: Path, number: int) -> Steps:
        return self._run("backup", "--host", "bench", str(source))

    def restore(self, place: Place, source: Path, number: int, target: Path) -> Steps:
        return self._run("restore", "latest", "--target", str(target))

    def check(self, place: Place, *, data: bool) -> Steps:
        return self._run("check", *(["--read-data"] if data else []))

    def prune(self, place: Place, source: Path) -> Steps:
        return self._run("forget", "--keep-last", "1", "--prune")

    def snapshots(self, place: Place) -> Steps:
        return [[str(self.program), "snapshots"]]

    def multiply(self, place: Place) -> list[Steps]:
        copies = range(1, self.snapshots_a_backup)
        return [self._run("rewrite", "--host", "bench", "--new-host", f"copy-{number}") for number in copies]


class Borg(Program):
    """Borg 1.x, with zstd instead of its lz4, so that it compresses as the others do."""

    name = "borg"

    def settings(self, place: Place) -> dict[str, str]:
        return {
            "BORG_REPO": str(place.repository),
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": str(place.cache),
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def init(self, place: Place) -> Steps:
        return [[str(self.program), "init", "--encryption", "repokey-blake2"]]

    def backup(self, place: Place, source: Path, number: int) -> Steps:
        return [[str(self.program), "create", "--compression", "zstd,3", f"::bench-{number}", str(source)]]

    def restore(self, place: Place, source: Path, number: int, target: Path) -> Steps:
        return [[str(self.program), "extract", f"::bench-{number}"]]

    def check(self, place: Place, *, data: bool) -> Steps:
        return [[str(self.program), "check", *(["--verify-data"] if data else [])]]

    def prune(self, place: Place, source: Path) -> Steps:
        return [[str(self.program), "prune", "--keep-last", "1"], [str(self.program), "compact"]]

    def snapshots(self, place: Place) -> Steps:
        return [[str(self.program), "list"]]


class Kopia(Program):
    """kopia, with zstd instead of no compression. Written from its manual; no machine so far has run it."""

    name = "kopia"

    def settings(self, place: Place) -> dict[str, str]:
        return {
            "KOPIA_PASSWORD": PASSWORD,
            "KOPIA_CONFIG_PATH": str(place.cache / "repository.config"),
            "KOPIA_CACHE_DIRECTORY": str(place.cache / "kopia"),
            "KOPIA_LOG_DIR": str(place.cache / "logs"),
            "KOPIA_CHECK_FOR_UPDATES": "false",
        }

    def _run(self, *arguments: str) -> list[str]:
        return [str(self.program), "--no-progress", *arguments]

    def init(self, place: Place) -> Steps:
        return [
            self._run("repository", "create", "filesystem", "--path", str(place.repository)),
            self._run("policy", "set", "--global", "--compression", "zstd"),
        ]

    def backup(self, place: Place, source: Path, number: int) -> Steps:
        return [self._run("snapshot", "create", str(source))]

    def restore(self, place: Place, source: Path, number: int, target: Path) -> Steps:
        return [self._run("restore", str(source), str(target / source.name), "--snapshot-time", "latest")]

    def check(self, place: Place, *, data: bool) -> Steps:
        return [self._run("snapshot", "verify", *(["--verify-files-percent", "100"] if data else []))]

    def prune(self, place: Place, source: Path) -> Steps:
        none = [f"--keep-{unit}=0" for unit in ("hourly", "daily", "weekly", "monthly", "annual")]
        return [
            self._run("policy", "set", "--global", "--keep-latest=1", *none),
            self._run("snapshot", "expire", "--delete", str(source)),
            self._run("maintenance", "run", "--full", "--safety=none"),
        ]

    def snapshots(self, place: Place) -> Steps:
        return [self._run("snapshot", "list")]


PEERS: tuple[type[Program], ...] = (Restic, Borg, Kopia)


def peers_folder() -> Path:
    """Where peers are installed and looked for first."""
    chosen = os.environ.get("HOLDFAST_BENCH_PEERS")
    return Path(chosen).absolute() if chosen else work_folder() / "peers"


def find(name: str) -> Path | None:
    """The peer's program, from the peers' folder or from PATH."""
    folder = peers_folder()
    found = shutil.which(name, path=f"{folder / 'bin'}{os.pathsep}{folder}") or shutil.which(name)
    return Path(found) if found else None


def programs() -> tuple[list[Program], dict[str, str]]:
    """Every program that can be measured, Holdfast first, and for each that cannot be the reason."""
    found: list[Program] = []
    missing: dict[str, str] = {}
    if not HOLDFAST.is_file():
        missing["holdfast"] = "the checkout has no ./holdfast"
    else:
        done = subprocess.run([str(HOLDFAST), "--help"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found.append(Holdfast(HOLDFAST))
        else:
            missing["holdfast"] = f"./holdfast --help failed: {(done.stderr.strip() or 'no word').splitlines()[-1]}"
    for peer in PEERS:
        if program := find(peer.name):
            found.append(peer(program))
        else:
            missing[peer.name] = "not installed"
    return found, missing


def main() -> None:
    """Say what is there, or install."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="find or install the peers")
    parser.add_argument("work", nargs="?", choices=["list", "install"], default="list")
    if parser.parse_args().work == "install":
        from bench.install import install

        install(peers_folder())
    found, missing = programs()
    for program in found:
        print(f"{program.name:10} {program.program}  {program.version()}")
    for name, reason in missing.items():
        print(f"{name:10} skipped: {reason}")


if __name__ == "__main__":
    main()
