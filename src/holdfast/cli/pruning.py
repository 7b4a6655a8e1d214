"""``holdfast forget`` and ``holdfast prune``."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.output import (
    Output,
    command,
    filter_options,
    make_filter,
    printable,
    progress_bar,
    size_text,
    time_text,
)
from holdfast.errors import UsageError
from holdfast.repository import prune as room
from holdfast.repository.repository import Repository
from holdfast.repository.retention import Decision, Policy, decide, groups, parse_duration
from holdfast.repository.snapshots import SHORT, Stored, choose

_CLOCKS_DIFFER_NS = 24 * 3600 * 1_000_000_000
_RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


@command("forget")
@click.argument("snapshots", nargs=-1, metavar="[SNAPSHOT]...")
@click.option("-l", "--keep-last", type=int, default=0, metavar="N", help="Keep the newest N (-1: all).")
@click.option("--keep-hourly", type=int, default=0, metavar="N", help="Keep the newest of each of the last N hours.")
@click.option("-d", "--keep-daily", type=int, default=0, metavar="N", help="… days.")
@click.option("-w", "--keep-weekly", type=int, default=0, metavar="N", help="… weeks.")
@click.option("-m", "--keep-monthly", type=int, default=0, metavar="N", help="… months.")
@click.option("-y", "--keep-yearly", type=int, default=0, metavar="N", help="… years.")
@click.option(
    "--keep-within", metavar="DURATION", help="Keep what is no older than this before the newest (1y6m2w3d12h)."
)
@click.option("--keep-tag", multiple=True, metavar="TAG", help="Keep what has this tag (repeatable).")
@click.option("-g", "--group-by", default="host,paths", show_default=True, help="Apply the rules to each group alone.")
@click.option("--prune", "then_prune", is_flag=True, help="Prune afterwards.")
@click.option("-n", "--dry-run", is_flag=True, help="Remove nothing; say what would go.")
@filter_options
def forget(out: Output, snapshots: tuple[str, ...], then_prune: bool, dry_run: bool, **options: Any) -> int:
    """Remove the snapshots named, or those that the --keep rules do not keep.

    The space is freed by `prune`. A snapshot is kept when any rule keeps it; with no rule nothing is removed.
    """
    policy = make_policy(options)
    if bool(snapshots) != policy.is_empty:
        raise UsageError(
            "Name snapshots, or give --keep rules." if policy.is_empty else "Name snapshots or give rules, not both."
        )
    repo = out.open(dry_run=dry_run)
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    readable = out.snapshots(repo)
    found = [s for s in readable if wanted.matches(s.snapshot)]
    if snapshots:
        gone = _named(out, found, _unreadable(repo, readable), snapshots)
    else:
        gone = _by_policy(out, _past(out, repo, found), policy, options["group_by"])
    for snapshot_id in gone:
        repo.storage.delete(f"snapshots/{snapshot_id}")
    out.event("summary", removed=gone, dry_run=dry_run)
    out.line(f"{len(gone)} snapshots {'would be' if dry_run else 'were'} removed.")
    if then_prune and not dry_run:
        return run_prune(out, repo, room.Request(now=room.is_alone(repo)))
    return 0


def make_policy(options: dict[str, Any]) -> Policy:
    within = options["keep_within"]
    return Policy(
        **{rule: options[f"keep_{rule}"] for rule in _RULES},
        within=parse_duration(within) if within else None,
        tags=tuple(options["keep_tag"]),
    )


def _unreadable(repo: Repository, readable: list[Stored]) -> list[str]:
    """The ids of snapshot objects that are damaged, or were never any: they can be named too."""
    ids = {s.id for s in readable}
    return [i for i in (info.name[10:] for info in repo.storage.list("snapshots")) if i not in ids]


def _named(out: Output, found: list[Stored], unreadable: list[str], names: tuple[str, ...]) -> list[str]:
    """The ids that are meant; of what cannot be read by at least as many digits as are shown."""
    chosen: dict[str, str] = {}
    for name in names:
        bad = [i for i in unreadable if len(name) >= SHORT and i.startswith(name)]
        if len(bad) == 1 and not any(s.id.startswith(name) for s in found):
            chosen[bad[0]] = "which cannot be read"
        else:
            stored = choose(found, name)
            chosen[stored.id] = time_text(stored.snapshot.time_ns)
    for snapshot_id, about in chosen.items():
        out.line(f"remove {snapshot_id[:SHORT]}  {about}")
    return list(chosen)


def _past(out: Output, repo: Repository, found: list[Stored]) -> list[Stored]:
    """The snapshots without those dated later than storage received them. Rules count from the newest: who stole a
    write-only key could otherwise push good snapshots out with ones of tomorrow. They are kept until they are named.
    """
    stored = {info.name[10:]: info.stored_ns for info in repo.storage.list("snapshots") if info.stored_ns}
    ahead = [s for s in found if s.snapshot.time_ns > stored.get(s.id, s.snapshot.time_ns) + _CLOCKS_DIFFER_NS]
    for one in ahead:
        out.warn(f"The snapshot {one.short} is dated in the future and was left out of the rules; forget it by its id.")
    return [s for s in found if s not in ahead]


def _by_policy(out: Output, found: list[Stored], policy: Policy, group_by: str) -> list[str]:
    by = tuple(b.strip() for b in group_by.split(",") if b.strip())
    zone = out.app.zone()
    gone: list[str] = []
    for key, members in groups(found, by).items():
        decisions = decide(members, policy, zone)
        _show_group(out, by, key, decisions)
        gone += [d.stored.id for d in decisions if not d.kept]
    return gone


def _show_group(out: Output, by: tuple[str, ...], key: tuple[object, ...], decisions: list[Decision]) -> None:
    names = [" ".join(printable(k) for k in part) if isinstance(part, tuple) else str(part) for part in key]
    out.line("  ".join(f"{b} {n}" for b, n in zip(by, names, strict=True)))
    for d in reversed(decisions):
        s = d.stored
        out.line(
            f"  {'keep  ' if d.kept else 'remove'} {s.short}  {time_text(s.snapshot.time_ns)}  {', '.join(d.reasons)}"
        )
        out.event("decision", id=s.id, keep=d.kept, reasons=d.reasons)


@command("prune")
@click.option("--now", is_flag=True, help="Delete at once, without the waiting time; needs to be alone.")
@click.option("--max-unused", default="5%", show_default=True, metavar="PERCENT", help="Unneeded bytes that may stay.")
@click.option(
    "--wait",
    "wait_hours",
    type=click.FloatRange(0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="How long condemned packs wait.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; say what would be done.")
def prune(out: Output, now: bool, max_unused: str, wait_hours: float, dry_run: bool) -> int:
    """Free the space that no snapshot needs.

    Backups go on meanwhile: what is not needed is condemned now and deleted by a later prune, when no backup that might
    still count on it is running. With --now both is done at once, if nobody else is at work.
    """
    request = room.Request(
        now=now, max_unused=parse_percent(max_unused), deadline_s=int(wait_hours * 3600), dry_run=dry_run
    )
    return run_prune(out, out.open(dry_run=dry_run), request)


def run_prune(out: Output, repo: Repository, request: room.Request) -> int:
    """Prune and tell."""
    doing = [""]
    with progress_bar(out, "Pruning", lambda: (0, 0, doing[0])):
        report = room.prune(repo, request, lambda text: doing.__setitem__(0, text))
    out.event("summary", dry_run=request.dry_run, **{f: getattr(report, f) for f in report.__dataclass_fields__})
    would = "would be " if request.dry_run else ""
    out.line(f"Needed:   {report.live_chunks} chunks; not needed: {report.dead_chunks}")
    condemned = f"{report.condemned_packs} {would}condemned ({size_text(report.condemned_bytes)})"
    out.line(f"Packs:    {condemned}, {report.rewritten_packs} of them {would}rewritten")
    out.line(f"Deleted:  {report.deleted_packs} packs ({size_text(report.deleted_bytes)})")
    if report.waiting_packs:
        out.line(
            f"Waiting:  {report.waiting_packs} packs, for a later prune (or `prune --now` when nobody else is at work)"
        )
    return 0


def parse_percent(text: str) -> float:
    """``5%`` or ``5`` as 0.05."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1
    if not 0 <= value <= 100:
        raise UsageError(f"{text!r} is not a percentage from 0 to 100.")
    return value / 100
