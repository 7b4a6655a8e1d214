"""``holdfast init`` and ``holdfast copy``."""

from __future__ import annotations

import sys
from typing import Any

import click

from holdfast.cli.output import Output, command, filter_options, make_filter, progress_bar
from holdfast.errors import UsageError
from holdfast.repository.copy import copy_snapshots
from holdfast.repository.keys import recovery_sheet
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import choose


@command("init")
def init(out: Output) -> int:
    """Make a new repository at the place given with -r, or in your data folder."""
    repo = out.app.create()
    if out.app.uses_default:
        tell_new_repository(out, repo)
    out.event("summary", repository=repo.id, place=repo.storage.place)
    out.line(f"Made the repository {repo.id[:8]} at {repo.storage.place}.")
    if not out.app.uses_default:
        out.note(
            "Without its password or key file nothing in it can be read. `holdfast key export` prints a recovery sheet."
        )
    return 0


@command("copy")
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT]...")
@click.option("--to", "target", required=True, metavar="PLACE", help="The other repository.")
@click.option("--to-password-file", metavar="FILE", help="Its password (else the same as here).")
@click.option("--to-key-file", metavar="FILE", help="Its key file.")
@filter_options
def copy(out: Output, snapshots: tuple[str, ...], target: str, **options: Any) -> int:
    """Copy snapshots (all, or those named or filtered) into another repository. Copied ones are not copied again.

    Every chunk that is copied is verified on the way. A copy that was cut off goes on where it was. --to takes a
    folder, an address, or @NAME for the repository and the password of a profile.
    """
    source = out.open()
    other = out.app.other(target, options["to_password_file"] or "", options["to_key_file"] or "").open()
    if other.id == source.id:
        raise UsageError("Both are the same repository.")
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    found = [s for s in out.snapshots(source) if wanted.matches(s.snapshot)]
    chosen = [choose(found, name) for name in snapshots] if snapshots else found
    doing = [""]
    with progress_bar(out, "Copying", lambda: (0, 0, doing[0])):
        done = copy_snapshots(source, other, chosen, lambda text: doing.__setitem__(0, text))
    for one in done:
        out.event("copied", source=one.source.id, target=one.id, skipped=one.skipped)
        out.line(f"{one.source.short} -> {one.id[:8]}{'  was there already' if one.skipped else ''}")
    copied = sum(not d.skipped for d in done)
    out.event("summary", copied=copied, skipped=len(done) - copied)
    out.line(f"{copied} snapshots copied, {len(done) - copied} were there already.")
    return 0


def tell_new_repository(out: Output, repo: Repository) -> None:
    """Say where the first repository and its key are; show the recovery sheet, but only to a person: a log keeps it."""
    place, key = repo.storage.place, out.app.settings.default_key_file
    click.echo(f"Made your repository at {place}\nand its key at          {key}\n", err=True)
    if sys.stderr.isatty():
        sheet = recovery_sheet(repo.secrets.bundle, place)
        lost = "If you lose the key file, only this sheet opens your backups. `holdfast key export` prints it again."
        click.echo(f"{sheet}\n{lost}\n", err=True)
    else:
        click.echo("Print its recovery sheet with `holdfast key export`, and keep it on paper.\n", err=True)
