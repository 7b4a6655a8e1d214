"""Fetches the peers: restic from Debian's sid suite, Borg into a Python environment of its own.

Promise: everything lands below one folder, programs as links in its `bin`. The machine's own apt sources
and lists are not touched: sid is read through a private apt configuration, with the mirror the machine's
sources already name. Only what Borg's build needs (or, failing that, the distribution's Borg) is installed
into the system, as root only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.work import remove

BORG = "borgbackup==1.4.5"
BORG_NEEDS = ["gcc", "pkg-config", "libacl1-dev", "libssl-dev", "liblz4-dev", "libzstd-dev", "libxxhash-dev"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class InstallError(Exception):
    """A peer could not be installed; the message says why."""


def install(folder: Path) -> None:
    """Install what is missing, and say what could not be."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    for name, way in (("restic", install_restic), ("borg", install_borg)):
        if (folder / "bin" / name).exists():
            continue
        try:
            program = way(folder)
        except (InstallError, OSError) as error:
            print(f"{name}: not installed: {error}", file=sys.stderr)
            continue
        link = folder / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(program)


def call(argv: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Run a program, return its output; raises `InstallError` with the last of what it said."""
    merged = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(argv, cwd=folder, env=merged, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(str(error)) from error
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise InstallError(f"{' '.join(argv[:4])} ...: " + " / ".join(line.strip() for line in said[-4:]))
    return done.stdout


def install_restic(folder: Path) -> Path:
    """restic of Debian sid, unpacked from its package (a single static program)."""
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial", "download"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} sid main\n")
    settings = {
        "Dir::Etc::SourceList": f"{apt / 'sources.list'}",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": f"{apt / 'lists'}",
        "Dir::Cache": f"{apt / 'cache'}",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
    }
    (apt / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    environment = {"APT_CONFIG": f"{apt / 'apt.conf'}"}
    call(["apt-get", "update"], environment=environment)
    call(["apt-get", "download", "restic"], apt / "download", environment)
    package = max((apt / "download").glob("restic_*.deb"))
    call(["dpkg", "-x", f"{package}", f"{folder / 'restic'}"])
    remove(apt)
    return folder / "restic" / "usr" / "bin" / "restic"


def mirror() -> str:
    """The Debian mirror of the machine's apt sources."""
    listed = call(["apt-get", "indextargets", "--format", "$(ORIGIN) $(SUITE) $(REPO_URI)", "Created-By: Packages"])
    for line in listed.splitlines():
        origin, suite, address = line.split(" ", 2)
        if origin == "Debian" and not suite.endswith("-security"):
            return address
    raise InstallError("the machine's apt lists name no Debian mirror (run apt-get update first)")


def install_borg(folder: Path) -> Path:
    """Borg by pip, which compiles it; where that fails, the distribution's package."""
    root = os.geteuid() == 0
    try:
        if root:
            apt_install(BORG_NEEDS)
        home = folder / "borg"
        venv.create(home, clear=True, with_pip=True)
        call([f"{home / 'bin' / 'python'}", "-m", "pip", "install", "--quiet", BORG])
        return home / "bin" / "borg"
    except InstallError as error:
        if not root:
            raise InstallError(f"{error} (it needs {' '.join(BORG_NEEDS)})") from error
        print(f"borg: pip failed ({error}), taking the distribution's package", file=sys.stderr)
    apt_install(["borgbackup"])
    if program := shutil.which("borg"):
        return Path(program)
    raise InstallError("the distribution's package brought no borg")


def apt_install(packages: list[str]) -> None:
    """Install Debian packages into the system."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    call(["apt-get", "install", "--yes", "--no-install-recommends", *packages], environment=quiet)
