"""``holdfast backup``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from holdfast import __version__
from holdfast.archive import backup as archive
from holdfast.archive.exclude import Excludes
from holdfast.cli.output import Output, command, given_tags, printable, progress_bar, size_text
from holdfast.errors import Incomplete, UsageError
from holdfast.repository.repository import Repository
from holdfast.settings import size_of
from holdfast.wiring.app import no_repository_yet

_MOST_WARNINGS = 50


@command("backup")
@click.argument("paths", nargs=-1, metavar="PATH...")
@click.option("-e", "--exclude", multiple=True, metavar="PATTERN", help="Leave out, in gitignore syntax (repeatable).")
@click.option("--exclude-file", multiple=True, metavar="FILE", help="A file of such patterns, one a line.")
@click.option("--exclude-caches", is_flag=True, help="Leave out what lies in folders with a CACHEDIR.TAG.")
@click.option("--exclude-larger-than", metavar="SIZE", help="Leave out larger files (500K, 10M, 2G).")
@click.option("-x", "--one-file-system", is_flag=True, help="Do not cross into other file systems.")
@click.option("--stdin", "from_stdin", is_flag=True, help="Back standard input up as one file.")
@click.option("--stdin-name", default="stdin", show_default=True, metavar="NAME", help="The name of that file.")
@click.option("--tag", "tags", multiple=True, metavar="TAG[,TAG]", help="Tag the snapshot.")
@click.option("-H", "--host", metavar="HOST", help="The host to note in the snapshot.")
@click.option("--parent", default="", metavar="SNAPSHOT", help="Compare with this snapshot, not the last one.")
@click.option("-f", "--force", is_flag=True, help="Read every file again.")
@click.option("-n", "--dry-run", is_flag=True, help="Store nothing; say what would be done.")
@click.option("--level", type=click.IntRange(1, 19), help="Compression level of zstd (default 3).")
def backup(out: Output, paths: tuple[str, ...], from_stdin: bool, stdin_name: str, **options: Any) -> int:
    """Back PATH... up into a new snapshot.

    One path is the snapshot's base: restoring gives its contents back. Unchanged files are recognised and not read
    again. The exit status is 3 when some files could not be read; they are named, and the snapshot holds all others.
    """
    if bool(paths) == from_stdin:
        raise UsageError(
            "Name the paths to back up, or give --stdin." if not paths else "Give paths or --stdin, not both."
        )
    repo = _repository(out, options["dry_run"])
    request = _request(out, repo, paths, options)
    progress = archive.Progress()

    def poll() -> tuple[float, float, str]:
        totals = progress.totals
        return totals.bytes_total, progress.expected_bytes, f"{totals.files} files  {printable(progress.current)[-40:]}"

    with progress_bar(out, "Backing up", poll):
        if from_stdin:
            report = archive.back_up_stream(repo, request, os.fsencode(stdin_name), sys.stdin.fileno(), progress)
        else:
            report = archive.back_up(repo, request, progress)
    return _tell(out, report, options["dry_run"])


def _repository(out: Output, dry_run: bool) -> Repository:
    """The repository; the default one is made on first use, with a key file, and its recovery sheet is shown once."""
    if not no_repository_yet(out.app):
        return out.open(dry_run=dry_run)
    if dry_run:
        raise UsageError("There is no repository yet to try against.", "Run `holdfast init` first.")
    repo = out.app.create()
    from holdfast.cli.keeping import tell_new_repository

    tell_new_repository(out, repo)
    return repo


def _request(out: Output, repo: Repository, paths: tuple[str, ...], options: dict[str, Any]) -> archive.Request:
    patterns = [*out.app.settings.exclude, *options["exclude"]]
    for name in options["exclude_file"]:
        try:
            patterns += Path(name).read_text(errors="surrogateescape").splitlines()
        except OSError as e:
            raise UsageError(f"The exclude file {name} cannot be read: {e.strerror}.") from None
    limit = options["exclude_larger_than"]
    absolute = tuple(sorted({os.fsencode(os.path.abspath(p)) for p in paths}))
    return archive.Request(
        paths=absolute,
        excludes=Excludes(
            tuple(patterns),
            options["exclude_caches"],
            options["one_file_system"],
            size_of(limit) if limit else None,
        ),
        tags=tuple(given_tags(options["tags"])),
        host=options["host"] or "",
        parent=options["parent"],
        force=options["force"],
        dry_run=options["dry_run"],
        level=options["level"] or out.app.settings.level,
        program=f"holdfast {__version__}",
        remembered=out.app.remembered(repo, absolute),
    )


def _tell(out: Output, report: archive.Report, dry_run: bool) -> int:
    for trouble in report.troubles[:_MOST_WARNINGS]:
        out.warn(f"{printable(os.path.join(report.snapshot.base, trouble.path))}: {trouble.reason}")
    if len(report.troubles) > _MOST_WARNINGS:
        out.warn(f"and {len(report.troubles) - _MOST_WARNINGS} more")
    t = report.snapshot.totals
    out.event(
        "summary",
        snapshot_id=report.snapshot_id,
        dry_run=dry_run,
        files_new=t.files_new,
        files_changed=t.files_changed,
        files_unmodified=t.files_unmodified,
        directories=t.directories,
        bytes_total=t.bytes_total,
        bytes_read=t.bytes_read,
        bytes_stored=t.bytes_stored,
        seconds=t.seconds,
        errors=len(report.troubles),
    )
    out.line(f"Files:   {t.files_new} new, {t.files_changed} changed, {t.files_unmodified} unmodified")
    read, stored = size_text(t.bytes_read), size_text(t.bytes_stored)
    out.line(f"Content: {size_text(t.bytes_total)} in {t.files} files, {read} read, {stored} stored")
    if dry_run:
        out.line("Nothing was stored: this was a dry run.")
    else:
        out.line(f"Snapshot {report.snapshot_id[:8]} saved in {t.seconds:.1f} s.")
    if report.troubles:
        out.note(f"{len(report.troubles)} files could not be read as they were; everything else is in the snapshot.")
        return Incomplete.exit_status
    return 0
