"""``holdfast restore``."""

from __future__ import annotations

import os
from typing import Any

import click

from holdfast.archive import restore as archive
from holdfast.archive.exclude import matcher
from holdfast.cli.output import Output, command, filter_options, make_filter, printable, progress_bar, size_text
from holdfast.errors import Incomplete, SnapshotMissing, UsageError
from holdfast.repository.format import Entry
from holdfast.repository.pages import Tree, split
from holdfast.repository.repository import Repository
from holdfast.repository.snapshots import Stored, choose

_MOST_WARNINGS = 50


def find_snapshot(
    out: Output, repo: Repository, name: str, hosts: tuple[str, ...], paths: tuple[str, ...], tags: tuple[str, ...]
) -> tuple[Stored, bytes]:
    """``latest``, an id's beginning, either with ``:path``: the snapshot and the path inside it."""
    snapshot, _, inside = name.partition(":")
    wanted = make_filter(hosts, paths, tags)
    chosen = choose((s for s in out.snapshots(repo) if wanted.matches(s.snapshot)), snapshot)
    path = os.fsencode(inside).strip(b"/")
    if b".." in path.split(b"/"):
        raise UsageError(f"{inside!r} leads out of the snapshot.")
    return chosen, path


@command("restore")
@click.argument("snapshot")
@click.option("-t", "--target", metavar="FOLDER", help="Where to restore to.")
@click.option("--in-place", is_flag=True, help="Restore to where the snapshot was taken.")
@click.option("-i", "--include", multiple=True, metavar="PATTERN", help="Only these, in gitignore syntax (repeatable).")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Not these, in gitignore syntax (repeatable).")
@click.option("--delete", is_flag=True, help="Remove from the target what the snapshot does not have.")
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; say what would be done.")
@click.option("--verify", is_flag=True, help="Read every restored file back and compare it.")
@filter_options
def restore(out: Output, snapshot: str, target: str | None, in_place: bool, **options: Any) -> int:
    """Restore SNAPSHOT (`latest` or the beginning of an id), or `SNAPSHOT:sub/folder`, into a folder.

    What is there already with the same size and time is kept; what differs is replaced. Nothing is written outside
    the target.
    """
    if bool(target) == in_place:
        raise UsageError("Say where to: --target FOLDER, or --in-place.")
    repo = out.open()
    chosen, within = find_snapshot(out, repo, snapshot, options["hosts"], options["paths"], options["tags"])
    progress = archive.Progress(
        expected_files=chosen.snapshot.totals.files, expected_bytes=chosen.snapshot.totals.bytes_total
    )

    def poll() -> tuple[float, float, str]:
        return progress.bytes, progress.expected_bytes, f"{progress.files} files  {printable(progress.current)[-40:]}"

    with repo.reading() as reader:
        base = chosen.snapshot.base
        wanted = make_wanted(options["include"], options["exclude"])
        within, wanted = _inside(Tree(reader.read, chosen.snapshot.root), within, wanted)
        where = os.path.join(base, within) if in_place else os.fsencode(os.path.abspath(target or ""))
        request = archive.Request(where, within, wanted, options["delete"], options["dry_run"], options["verify"])
        with progress_bar(out, "Restoring", poll):
            archive.restore(reader, chosen.snapshot.root, request, progress)
    return _tell(out, chosen, request, progress)


def _inside(tree: Tree, within: bytes, wanted: archive.Wanted | None) -> tuple[bytes, archive.Wanted | None]:
    """Check the path inside the snapshot; a file's path means its folder with only that file wanted."""
    entry = tree.find(within)
    if within and entry is None:
        raise SnapshotMissing(f"The snapshot has no {printable(within)}.", "`holdfast ls` shows what it has.")
    if entry is None or entry.kind == "d":
        return within, wanted
    return split(within)[0], lambda path, _: path == within


def make_wanted(include: tuple[str, ...], exclude: tuple[str, ...]) -> archive.Wanted | None:
    """A test of entries from --include and --exclude; None when everything is wanted."""
    included, excluded = matcher(include), matcher(exclude)
    if included is None and excluded is None:
        return None

    def wanted(path: bytes, entry: Entry) -> bool:
        folder = entry.kind == "d"
        if excluded is not None and excluded(path, folder):
            return False
        return included is None or included(path, folder)

    return wanted


def _tell(out: Output, chosen: Stored, request: archive.Request, p: archive.Progress) -> int:
    for what, path in p.changes:
        out.event("change", action=what, path=printable(path))
        if request.dry_run:
            out.line(f"{what:8}{printable(path)}")
    for trouble in p.troubles[:_MOST_WARNINGS]:
        out.warn(f"{printable(trouble.path)}: {trouble.reason}")
    if len(p.troubles) > _MOST_WARNINGS:
        out.warn(f"and {len(p.troubles) - _MOST_WARNINGS} more")
    for what, count in sorted(p.notes.items()):
        out.warn(f"{what}: could not be set on {count} files without being root")
    out.event(
        "summary",
        snapshot_id=chosen.id,
        files_restored=p.files,
        files_unchanged=p.unchanged,
        files_deleted=p.deleted,
        files_verified=p.verified,
        bytes_written=p.written,
        errors=len(p.troubles),
    )
    if request.dry_run:
        out.line(f"{len(p.changes)} changes, {p.unchanged} unchanged. Nothing was written: this was a dry run.")
    else:
        deleted = f", {p.deleted} deleted" if request.delete else ""
        verified = f", {p.verified} verified" if request.verify else ""
        out.line(
            f"Restored {chosen.short} to {printable(request.target)}: "
            f"{p.files} files ({size_text(p.written)}), {p.unchanged} unchanged{deleted}{verified}."
        )
    return Incomplete.exit_status if p.troubles else 0
