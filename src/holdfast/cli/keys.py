"""``holdfast key``: list, add, remove, passwd, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from holdfast.cli.output import Output, command, printable, time_json, time_text
from holdfast.errors import UsageError
from holdfast.repository import keys as room
from holdfast.repository.repository import Repository
from holdfast.wiring import app as wiring


@click.group("key")
def key() -> None:
    """List, add, remove, change and export keys.

    A full key reads everything. A write-only key adds backups and reads nothing: give it to machines that may be
    stolen.
    """


@command("list")
def list_keys(out: Output) -> int:
    """List the repository's keys."""
    repo = out.open()
    damaged: dict[str, str] = {}
    found = [k for k, _ in room.read_keys(repo.storage, damaged)]
    if out.as_json:
        out.document([_key_json(k, repo) for k in found])
    else:
        for k in found:
            mark = "*" if k.id == repo.key_id else " "
            made = time_text(k.header.created_ns)
            out.line(f"{mark}{k.id[:8]}  {k.header.way:8}  {k.header.grants:10}  {made}  {printable(k.header.label)}")
    for key_id, sentence in damaged.items():
        click.echo(f"holdfast: {sentence}\n  Remove it with `holdfast key remove {key_id[:8]}`.", err=True)
    return 1 if damaged else 0


def _key_json(k: room.Key, repo: Repository) -> dict[str, Any]:
    return {
        "id": k.id,
        "way": k.header.way,
        "grants": k.header.grants,
        "label": k.header.label,
        "created": time_json(k.header.created_ns),
        "current": k.id == repo.key_id,
    }


@command("add")
@click.option("--write-only", is_flag=True, help="The new key adds backups and reads nothing.")
@click.option("--label", default="", help="What to call the key.")
@click.option("--new-password-file", metavar="FILE", help="A file with the new password.")
@click.option("--new-key-file", metavar="FILE", help="Make this key file and add it.")
def add(out: Output, write_only: bool, label: str, new_password_file: str | None, new_key_file: str | None) -> int:
    """Add a key: a password, or a key file."""
    repo = out.open()
    made = _add(out, repo, write_only, label, new_password_file, new_key_file)
    out.event("summary", id=made.id, grants=made.header.grants)
    out.line(f"Added the {made.header.grants} key {made.id[:8]}.")
    return 0


def _add(
    out: Output, repo: Repository, write_only: bool, label: str, password_file: str | None, key_file: str | None
) -> room.Key:
    if password_file and key_file:
        raise UsageError("Give a new password or a new key file, not both.")
    credential: room.Password | room.KeyFile
    if key_file:
        path = Path(key_file).expanduser()
        wiring.write_key_file(path)
        read = wiring.read_key_file(path)
        assert isinstance(read, room.KeyFile)
        credential = read
    else:
        credential = room.Password(_new_password(out, password_file))
    bundle = room.without_private(repo.secrets.bundle) if write_only else repo.secrets.bundle
    return room.add_key(repo.storage, bundle, credential, label=label or repo.owner.host, now_ns=repo.now_ns())


def _new_password(out: Output, password_file: str | None) -> str:
    if password_file:
        return wiring.read_first_line(Path(password_file).expanduser(), "password file")
    password = out.app.ask_password("New password")
    if not password:
        raise UsageError("No new password was given.", "Give --new-password-file FILE, or --new-key-file FILE.")
    return password


@command("remove")
@click.argument("key_id", metavar="KEY")
def remove(out: Output, key_id: str) -> int:
    """Remove a key. Whoever copied the repository before can still use it on the copy."""
    repo = out.open()
    chosen = _choose(repo, key_id)
    room.remove_key(repo.storage, chosen, repo.key_id)
    out.event("summary", id=chosen)
    out.line(f"Removed the key {chosen[:8]}.")
    return 0


@command("passwd")
@click.option("--new-password-file", metavar="FILE", help="A file with the new password.")
def passwd(out: Output, new_password_file: str | None) -> int:
    """Change the password of the key in use: the new one is stored before the old one goes."""
    repo = out.open()
    old = repo.key_id
    if not old:
        raise UsageError("A recovery sheet has no password to change.", "Add one with `holdfast key add`.")
    used = next((k.header for k, _ in room.read_keys(repo.storage, {}) if k.id == old), None)
    if used is not None and used.way != "password":
        raise UsageError("The key in use is a key file; it has no password.", "Add one with `holdfast key add`.")
    label = used.label if used else ""
    made = _add(out, repo, False, label, new_password_file, None)
    repo.storage.delete(f"keys/{old}")
    out.event("summary", id=made.id, replaced=old)
    out.line(f"The password was changed; the key is now {made.id[:8]}.")
    return 0


@command("export")
def export(out: Output) -> int:
    """Print the recovery sheet: whoever holds it reads every backup, even when all keys and passwords are lost."""
    repo = out.open()
    sheet = room.recovery_sheet(repo.secrets.bundle, repo.storage.place)
    if out.as_json:
        out.document({"sheet": sheet})
    else:
        click.echo(sheet, nl=False)
    return 0


def _choose(repo: Repository, prefix: str) -> str:
    """The id of the one key that begins so; damaged ones count, for they can be removed."""
    damaged: dict[str, str] = {}
    known = [k.id for k, _ in room.read_keys(repo.storage, damaged)]
    fitting = [i for i in (*known, *damaged) if i.startswith(prefix.lower())]
    if len(fitting) != 1 or not prefix:
        what = "No key begins" if not fitting else f"{len(fitting)} keys begin"
        raise UsageError(f"{what} with {prefix!r}.", "`holdfast key list` shows them.")
    return fitting[0]


for _command in (list_keys, add, remove, passwd, export):
    key.add_command(_command)
