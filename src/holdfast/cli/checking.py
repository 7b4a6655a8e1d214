"""``holdfast check``, ``repair``, ``self-test``, ``completion``."""

from __future__ import annotations

import os
import secrets
import tempfile
from typing import Any

import click

from holdfast.cli.output import Output, command, printable, progress_bar, size_text
from holdfast.cli.pruning import parse_percent
from holdfast.errors import HoldfastError
from holdfast.repository import check as room
from holdfast.repository import repair as mending

_MOST_NAMED = 200


@command("check")
@click.option(
    "--read-data",
    is_flag=False,
    flag_value="100%",
    default="0",
    metavar="[PERCENT]",
    help="Read packs too: all of them, or a part chosen by chance (--read-data=5%).",
)
def check(out: Output, read_data: str) -> int:
    """Verify the repository; exit status 1 when anything is wrong.

    Every object but the content of packs is always read. What is damaged is named, and every file it makes incomplete.
    """
    state: list[Any] = [0, 0, ""]
    part = parse_percent(read_data)
    repo = out.app.uncached().open()  # what this machine keeps of it proves nothing
    with progress_bar(out, "Checking", lambda: (state[1], state[2], "")):
        report = room.check(repo, read_data=part, tick=lambda what, d, n: state.__setitem__(slice(0, 3), [what, d, n]))
    for finding in report.findings:
        out.event("finding", object=finding.object, message=finding.text)
        out.line(f"damaged: {finding.text}")
    for affected in report.affected[:_MOST_NAMED]:
        out.line(f"affected: {affected.snapshot[:8]}:{printable(affected.path)}: {affected.reason}")
    for affected in report.affected:
        out.event("affected", snapshot=affected.snapshot, path=os.fsdecode(affected.path), reason=affected.reason)
    if len(report.affected) > _MOST_NAMED:
        out.line(f"… and {len(report.affected) - _MOST_NAMED} more files")
    for note in report.notes:
        out.note(note)
    out.event(
        "summary",
        good=report.good,
        snapshots=report.snapshots,
        packs=report.packs,
        packs_read=report.packs_read,
        bytes_read=report.bytes_read,
        chunks=report.chunks,
        findings=len(report.findings),
        affected=len(report.affected),
    )
    read = f"{report.packs_read} read ({size_text(report.bytes_read)})" if part else "content not read"
    out.line(f"{report.snapshots} snapshots, {report.packs} packs, {read}, {report.chunks} chunks.")
    if report.good:
        out.line("No damage was found.")
        return 0
    out.note("A new backup of files that still exist brings their content back; `holdfast repair` mends the rest.")
    return 1


@command("repair")
@click.argument("what", type=click.Choice(["index", "packs", "snapshots", "all"]), default="all")
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; say what would be done.")
def repair(out: Output, what: str, dry_run: bool) -> int:
    """Mend the repository: write the index anew from the packs, save what is whole out of damaged packs, and replace
    snapshots that lost files by ones without them. Copy the repository first if you can.
    """
    repo = out.app.uncached().open(dry_run=dry_run)
    if what != "index":
        repo.secrets.need_private(f"repair {'packs and snapshots' if what == 'all' else what}")
    steps = {"index": mending.repair_index, "packs": mending.repair_packs, "snapshots": mending.repair_snapshots}
    done: list[str] = []
    lost: list[str] = []
    doing = [""]
    with progress_bar(out, "Repairing", lambda: (0, 0, doing[0])):
        for name, step in steps.items():
            if what in (name, "all"):
                report = step(repo, dry_run=dry_run, tick=lambda text: doing.__setitem__(0, text))
                done += report.done
                lost += report.lost
    for text in done:
        out.line(printable(text))
    for text in lost:
        out.line(f"lost: {printable(text)}")
    out.event("summary", done=done, lost=lost, dry_run=dry_run)
    return 0


@command("self-test")
def self_test(out: Output) -> int:
    """Back up a small tree, check it, restore it, compare it, and find a planted fault: all in a temporary folder."""
    from holdfast.archive.selftest import run

    with tempfile.TemporaryDirectory(prefix="holdfast-self-test-") as folder:
        try:
            for step in run(folder, secrets.token_hex(16), out.app.owner(), out.app.now_ns):
                out.event("step", name=step)
                out.line(f"ok  {step}")
        except HoldfastError as e:
            out.event("summary", good=False, message=str(e))
            out.line(f"FAILED  {e}")
            return 1
    out.event("summary", good=True)
    out.line("Holdfast works on this machine.")
    return 0


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(out: Output, shell: str) -> int:
    """Print the completion script of a shell. For bash: `eval "$(holdfast completion bash)"` in ~/.bashrc."""
    from click.shell_completion import get_completion_class

    from holdfast.cli.main import cli

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(cli, {}, "holdfast", "_HOLDFAST_COMPLETE").source())
    return 0
