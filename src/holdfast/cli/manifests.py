"""``holdfast manifest``: push, pull, list, delete. Folders on a server, by its manifests API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.login import insecure_option, needing_http
from holdfast.cli.output import Output, command, printable, progress_bar, size_text
from holdfast.errors import Incomplete, NoContent, UsageError

if TYPE_CHECKING:
    from holdfast.remote.listing import Row
    from holdfast.remote.progress import Progress
    from holdfast.remote.push import Pushed

_MOST_WARNINGS = 50


@click.group("manifest")
def manifest() -> None:
    """Push folders to a server, pull them back, list and delete what is there.

    The server is the one named, or HOLDFAST_SERVER, or the only one you are logged in to (`holdfast login`). The token
    may also come from HOLDFAST_TOKEN.
    """


@command("push")
@click.argument("folder", metavar="DIR")
@click.option("--to", "url", metavar="URL", help="The server.")
@click.option("--name", metavar="NAME", help="The manifest's name. [default: the folder's]")
@click.option("--omit", "omit", multiple=True, metavar="SPEC", help="Leave out, in gitignore syntax (repeatable).")
@click.option("--omit-file", multiple=True, metavar="FILE", help="A file of such specs, one a line.")
@click.option("-n", "--dry-run", is_flag=True, help="Send nothing; say what would be sent.")
@insecure_option
def push(out: Output, folder: str, url: str | None, name: str | None, insecure: bool, **options: Any) -> int:
    """Push DIR to a server: its manifest, and of its files those that the server does not have.

    Cut off, it goes on when it is run again. What is omitted becomes part of the manifest: a pull leaves it alone. The
    exit status is 3 when some files could not be read or sent; they are named.
    """
    with needing_http():
        from holdfast.remote import push as room
        from holdfast.remote.progress import Progress
        from holdfast.wiring import remote
    loaded, now_ns, p = out.app.settings, out.app.now_ns, Progress()
    path = os.path.abspath(folder)
    omit = _specs(options["omit"], options["omit_file"])
    request = room.Request(os.fsencode(path), _name(name or os.path.basename(path)), omit, options["dry_run"])
    with remote.connect(loaded, remote.address(loaded, url, insecure=insecure), now_ns) as server:
        server.who()  # nobody waits for a folder to be hashed to hear that the log-in has ended
        with progress_bar(out, "Pushing", lambda: _shown(p)):
            done = room.push(server, request, p, remote.machine(loaded, now_ns))
    return _tell_push(out, path, request.name, p, done, options["dry_run"])


@command("pull")
@click.argument("name", metavar="NAME")
@click.option("--from", "url", metavar="URL", help="The server.")
@click.option("-t", "--target", required=True, metavar="OUT", help="The folder to pull into.")
@click.option("--version", type=click.IntRange(1), metavar="N", help="An older version. [default: the newest]")
@click.option("--delete", is_flag=True, help="Remove from OUT what the manifest does not name; what it omits stays.")
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; say what would be done.")
@click.option("--verify", is_flag=True, help="Hash what is there already, too.")
@insecure_option
def pull(out: Output, name: str, url: str | None, target: str, insecure: bool, **options: Any) -> int:
    """Pull the manifest NAME with its files into a folder.

    What is there already with the same size and time is kept. A file is put in place when all of it is here and its
    hash is right; nothing is written outside OUT. Cut off, it goes on when it is run again.
    """
    with needing_http():
        from holdfast.remote import pull as room
        from holdfast.remote.progress import Progress
        from holdfast.wiring import remote
    loaded, now_ns, p = out.app.settings, out.app.now_ns, Progress()

    def tell(what: str, path: bytes) -> None:
        out.event("change", action=what, path=printable(path))
        if options["dry_run"]:
            out.line(f"{what:8}{printable(path)}")

    p.tell = tell
    request = room.Request(_name(name), os.fsencode(os.path.abspath(target)), **options)
    with remote.connect(loaded, remote.address(loaded, url, insecure=insecure), now_ns) as server:
        server.who()
        with progress_bar(out, "Pulling", lambda: _shown(p)):
            version = room.pull(server, request, p, remote.machine(loaded, now_ns))
    return _tell_pull(out, request, p, version)


@command("list")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--from", "url", metavar="URL", help="The server.")
@insecure_option
def list_manifests(out: Output, name: str | None, url: str | None, insecure: bool) -> int:
    """List the manifests on a server, the newest version of each, or every version of NAME."""
    with needing_http():
        from holdfast.remote.listing import manifests
        from holdfast.wiring import remote
    loaded = out.app.settings
    with remote.connect(loaded, remote.address(loaded, url, insecure=insecure), out.app.now_ns) as server:
        server.who()
        found = list(manifests(server, _name(name) if name else None))
    if out.as_json:
        out.document([row.json for row in found])
    elif found:
        _tell_rows(out, found)
    else:
        out.line(f"There is no manifest {printable(name)}." if name else "There are no manifests.")
    return 0


@command("delete")
@click.argument("name", metavar="NAME")
@click.option("--from", "url", metavar="URL", help="The server.")
@click.option("--version", type=click.IntRange(1), metavar="N", help="The version to delete.")
@click.option("--all-versions", is_flag=True, help="Delete every version.")
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; say what would be deleted.")
@insecure_option
def delete(out: Output, name: str, url: str | None, insecure: bool, **options: Any) -> int:
    """Delete a version of the manifest NAME from a server, or all of them.

    Of its files those go with it that no other manifest of yours names.
    """
    with needing_http():
        from holdfast.remote import listing
        from holdfast.wiring import remote
    version, dry_run = options["version"], options["dry_run"]
    if (version is None) != options["all_versions"]:
        raise UsageError("Say what to delete: --version N or --all-versions.")
    loaded = out.app.settings
    with remote.connect(loaded, remote.address(loaded, url, insecure=insecure), out.app.now_ns) as server:
        server.who()
        there = [row.version for row in listing.manifests(server, _name(name))]
        gone = sorted(number for number in there if version in (None, number))
        if not gone:
            which = "" if version is None else f" version {version} of"
            raise NoContent(f"You have no{which} manifest {printable(name)}.", "`holdfast manifest list` lists them.")
        if not dry_run:
            listing.delete(server, name, version)
    out.event("summary", name=name, versions=gone, dry_run=dry_run)
    shown = f"{printable(name)}, version{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}"
    out.line(f"Would delete {shown}. Nothing was: this was a dry run." if dry_run else f"Deleted {shown}.")
    return 0


manifest.add_command(push)
manifest.add_command(pull)
manifest.add_command(list_manifests)
manifest.add_command(delete)


def _name(name: str) -> str:
    if not 1 <= len(name) <= 255 or "/" in name or "\0" in name or not name.isprintable():
        raise UsageError("A manifest's name has 1 to 255 characters and no slash.", "Give one with --name.")
    return name


def _specs(given: tuple[str, ...], files: tuple[str, ...]) -> tuple[str, ...]:
    """Specs from the command line and from files, whose comments and empty lines are left out."""
    specs = list(given)
    for name in files:
        try:
            lines = Path(name).read_text().splitlines()
        except OSError as e:
            raise UsageError(f"The omit file {name} cannot be read: {e.strerror}.") from None
        except UnicodeDecodeError:
            raise UsageError(f"The omit file {name} is no UTF-8 text, as a manifest must be.") from None
        specs += [line for line in lines if line.strip() and not line.startswith("#")]
    for spec in specs:
        if not spec.isprintable():
            raise UsageError(f"The spec {printable(spec)} is no text that a manifest can hold.")
    return tuple(specs)


def _shown(p: Progress) -> tuple[float, float, str]:
    done, expected = (p.done, p.expected) if p.stage != "Looking" else (p.size, 0)
    return done, expected, f"{p.stage}  {p.moved or p.files} files  {printable(p.current)[-40:]}"


def _tell_troubles(out: Output, p: Progress) -> None:
    for named in (p.troubles, p.left_out):
        for path, reason in named.first[:_MOST_WARNINGS]:
            joint = " " if named is p.left_out else ": "
            out.warn(f"{printable(path)}{joint}{printable(reason)}")
        if named.count > _MOST_WARNINGS:
            out.warn(f"and {named.count - _MOST_WARNINGS} more")


def _tell_rows(out: Output, rows: list[Row]) -> None:
    width = max(len(printable(row.name)) for row in rows)
    out.line(f"{'name':{width}}  version  timestamp                   files  available  size")
    for row in rows:
        when, name = printable(row.timestamp)[:19].replace("T", " "), printable(row.name)
        out.line(
            f"{name:{width}}  {row.version:7}  {when:19}  {row.files:12}  {row.available:9}  {size_text(row.size)}"
        )


def _tell_push(out: Output, path: str, name: str, p: Progress, done: Pushed, dry_run: bool) -> int:
    _tell_troubles(out, p)
    for sentence in p.notes:
        out.note(f"{sentence}.")
    if p.with_xattrs:
        out.note(f"{p.with_xattrs} files and folders have extended attributes, which a manifest cannot hold.")
    out.event(
        "summary", name=name, version=done.version, dry_run=dry_run, complete=done.complete, files=p.files,
        directories=p.directories, symlinks=p.links, bytes_total=p.size, files_hashed=p.hashed,
        bytes_hashed=p.hashed_bytes, files_sent=p.moved, bytes_sent=p.moved_bytes, files_to_send=done.to_send[0],
        bytes_to_send=done.to_send[1], left_out=p.left_out.count, errors=p.troubles.count,
    )  # fmt: skip
    out.line(f"Content: {size_text(p.size)} in {p.files} files, {size_text(p.hashed_bytes)} read")
    if dry_run:
        files, size = done.to_send
        out.line(f"At most {files} files ({size_text(size)}) would be sent. Nothing was: this was a dry run.")
    else:
        out.line(f"Sent:    {p.moved} files, {size_text(p.moved_bytes)}; the server had the others")
        state = {True: ", complete", False: ", not complete yet", None: ""}[done.complete]
        out.line(f"Pushed {printable(path)} as {name}, version {done.version}{state}.")
    return Incomplete.exit_status if p.troubles.count or done.complete is False else 0


def _tell_pull(out: Output, request: Any, p: Progress, version: int) -> int:
    _tell_troubles(out, p)
    for what, count in sorted(p.notes.items()):
        out.warn(f"{printable(what)} could not be set on {count} files or folders")
    out.event(
        "summary", name=request.name, version=version, dry_run=request.dry_run, files_pulled=p.moved,
        files_unchanged=p.unchanged, files_deleted=p.deleted, symlinks=p.links, bytes_received=p.moved_bytes,
        errors=p.troubles.count,
    )  # fmt: skip
    if request.dry_run:
        out.line(f"{p.changes} changes, {p.unchanged} unchanged. Nothing was written: this was a dry run.")
    else:
        deleted = f", {p.deleted} deleted" if request.delete else ""
        out.line(
            f"Pulled {request.name}, version {version}, to {printable(request.target)}: "
            f"{p.moved} files ({size_text(p.moved_bytes)}), {p.unchanged} unchanged{deleted}."
        )
    return Incomplete.exit_status if p.troubles.count else 0
