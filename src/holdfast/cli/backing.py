"""``holdfast backup``."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from holdfast import __version__
from holdfast.archive import backup as archive
from holdfast.archive.exclude import Excludes
from holdfast.cli.output import Output, command, given_tags, printable, progress_bar, size_text
from holdfast.errors import HoldfastError, Incomplete, UsageError
from holdfast.repository.locking import keep_locked
from holdfast.repository.repository import Repository
from holdfast.settings import size_of
from holdfast.wiring.app import App, no_repository_yet

_MOST_WARNINGS = 50

Failed = tuple[str, HoldfastError]  # a repository's place, and what was wrong


@command("backup", several=True)
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
@click.option("--lock-days", type=click.IntRange(1, 36500), help="On S3: lock what is needed for so long.")
@click.option("--level", type=click.IntRange(1, 19), help="Compression level of zstd (default 3).")
def backup(out: Output, paths: tuple[str, ...], from_stdin: bool, stdin_name: str, **options: Any) -> int:
    """Back PATH... up into a new snapshot.

    One path is the snapshot's base: restoring gives its contents back. Unchanged files are recognised and not read
    again. The exit status is 3 when some files could not be read; they are named, and the snapshot holds all others.

    With -r given several times each file is read once and stored in all these repositories; each compares with its own
    last snapshot. They are opened with the same password or key file; -r @NAME takes the repository and the password
    of a profile. When some of them fail the others go on, and the exit status is 3: the next run catches up. What a
    profile excludes is as the first one named has it.
    """
    if bool(paths) == from_stdin:
        raise UsageError(
            "Name the paths to back up, or give --stdin." if not paths else "Give paths or --stdin, not both."
        )
    dry_run, days = options["dry_run"], options["lock_days"]
    if days:
        out = replace(out, apps=[app.locking(days) for app in out.apps])
    opened, failed = _opened(out, dry_run)
    request = _request(out, paths, options)
    request = replace(request, left_out=tuple(place for place, _ in failed))
    aims = [(repo, _request_for(app, repo, request, options)) for app, repo in opened]
    progress = archive.Progress()

    def poll() -> tuple[float, float, str]:
        totals = progress.totals
        return totals.bytes_total, progress.expected_bytes, f"{totals.files} files  {printable(progress.current)[-40:]}"

    with progress_bar(out, "Backing up", poll):
        if from_stdin:
            outcomes = archive.back_up_stream_to(aims, os.fsencode(stdin_name), sys.stdin.fileno(), progress)
        else:
            outcomes = archive.back_up_to(aims, progress)
    failed += [(o.place, o.failure) for o in outcomes if o.failure]
    reports = [(o.place, o.report) for o in outcomes if o.report]
    unlocked = _not_locked([repo for _, repo in opened], reports, days) if days and not dry_run else []
    return _tell_all(out, failed, reports, unlocked, dry_run)


def _tell_all(
    out: Output,
    failed: list[Failed],
    reports: list[tuple[str, archive.Report]],
    unlocked: list[Failed],
    dry_run: bool,
) -> int:
    """What became of each repository; the exit status."""
    _tell_failures(out, failed, bool(reports))
    troubles = _tell_troubles(out, [report for _, report in reports])
    for place, report in reports:
        _tell(out, report, dry_run, place if len(out.apps) > 1 else "")
    if troubles:
        out.note(f"{troubles} files could not be read as they were; everything else is in the snapshot.")
    for place, error in unlocked:
        out.warn(f"{printable(place)}: not all that the snapshot needs is locked: {error}")
    return Incomplete.exit_status if failed or troubles or unlocked else 0


def _not_locked(repos: list[Repository], reports: list[tuple[str, archive.Report]], days: int) -> list[Failed]:
    """Extend the locks of what each new snapshot needs; the repositories where that failed."""
    failed: list[Failed] = []
    of_place = dict(reports)
    for repo in repos:
        if report := of_place.get(repo.storage.place):
            try:
                keep_locked(repo, report.snapshot_id, report.packs, days)
            except HoldfastError as e:
                failed.append((repo.storage.place, e))
    return failed


def _opened(out: Output, dry_run: bool) -> tuple[list[tuple[App, Repository]], list[Failed]]:
    """Those of several repositories that can be opened, and those that cannot; an error when none can."""
    if len(out.apps) == 1:
        return [(out.app, _repository(out, dry_run))], []
    opened: list[tuple[App, Repository]] = []
    failed: list[Failed] = []
    for app in out.apps:
        try:
            opened.append((app, app.open(dry_run=dry_run)))
        except HoldfastError as e:
            failed.append((_place_of(app), e))
    if not opened:
        _tell_failures(out, failed, False)
    return opened, failed


def _place_of(app: App) -> str:
    """What a repository that could not be opened is called: its address may hold a password."""
    try:
        return app.storage().place
    except HoldfastError:
        return app.address.partition(":")[0] + ":…"


def _tell_failures(out: Output, failed: list[Failed], others: bool) -> None:
    """Warn about each; when there are no others the last error ends the command."""
    for place, error in failed if others else failed[:-1]:
        sentence = f"{printable(place)} has no new snapshot: {error}"
        if out.as_json:
            out.event("warning", message=sentence, repository=place, code=error.code)
        else:
            out.warn(sentence)
    if failed and not others:
        raise failed[-1][1]


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


def _request(out: Output, paths: tuple[str, ...], options: dict[str, Any]) -> archive.Request:
    """What is the same for all repositories."""
    patterns = [*out.app.settings.exclude, *options["exclude"]]
    for name in options["exclude_file"]:
        try:
            patterns += Path(name).read_text(errors="surrogateescape").splitlines()
        except OSError as e:
            raise UsageError(f"The exclude file {name} cannot be read: {e.strerror}.") from None
    limit = options["exclude_larger_than"]
    return archive.Request(
        paths=tuple(sorted({os.fsencode(os.path.abspath(p)) for p in paths})),
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
        program=f"holdfast {__version__}",
    )


def _request_for(app: App, repo: Repository, request: archive.Request, options: dict[str, Any]) -> archive.Request:
    level = options["level"] or app.settings.level
    return replace(request, level=level, remembered=app.remembered(repo, request.paths))


def _tell_troubles(out: Output, reports: list[archive.Report]) -> int:
    """Name what could not be read, once though it lacks in several snapshots; how many there are."""
    named = list(dict.fromkeys((r.snapshot.base, t.path, t.reason) for r in reports for t in r.troubles))
    for base, path, reason in named[:_MOST_WARNINGS]:
        out.warn(f"{printable(os.path.join(base, path))}: {reason}")
    if len(named) > _MOST_WARNINGS:
        out.warn(f"and {len(named) - _MOST_WARNINGS} more")
    return len(named)


def _tell(out: Output, report: archive.Report, dry_run: bool, place: str) -> None:
    """What is in a snapshot; ``place``: its repository, where there are several."""
    t = report.snapshot.totals
    out.event(
        "summary",
        **({"repository": place} if place else {}),
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
    if place:
        out.line(f"{printable(place)}:")
    out.line(f"Files:   {t.files_new} new, {t.files_changed} changed, {t.files_unmodified} unmodified")
    read, stored = size_text(t.bytes_read), size_text(t.bytes_stored)
    out.line(f"Content: {size_text(t.bytes_total)} in {t.files} files, {read} read, {stored} stored")
    if dry_run:
        out.line("Nothing was stored: this was a dry run.")
    else:
        out.line(f"Snapshot {report.snapshot_id[:8]} saved in {t.seconds:.1f} s.")
