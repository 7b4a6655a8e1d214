"""``holdfast init`` and ``holdfast copy``."""

from __future__ import annotations

import click

from holdfast.cli.output import Output, command
from holdfast.repository.keys import recovery_sheet
from holdfast.repository.repository import Repository


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


def tell_new_repository(out: Output, repo: Repository) -> None:
    """Say where the first repository and its key are, and show the recovery sheet."""
    settings = out.app.settings
    click.echo(
        f"Made your repository at {repo.storage.place}\n"
        f"and its key at          {settings.default_key_file}\n\n"
        f"{recovery_sheet(repo.secrets.bundle, repo.storage.place)}\n"
        "If you lose the key file, only this sheet opens your backups. `holdfast key export` prints it again.\n",
        err=True,
    )
