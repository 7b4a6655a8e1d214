"""``holdfast snapshots``, ``ls``, ``find``, ``diff``, ``stats``, ``tag``."""

from __future__ import annotations

import os
from typing import Any

import click

from holdfast.cli.output import Output, command, filter_options, make_filter, printable, size_text, time_json, time_text
from holdfast.repository.snapshots import Stored


@command("snapshots")
@filter_options
def snapshots(out: Output, **options: Any) -> int:
    """List snapshots, oldest first."""
    wanted = make_filter(options["hosts"], options["paths"], options["tags"])
    damaged: list[str] = []
    found = [s for s in out.open().snapshots(damaged) if wanted.matches(s.snapshot)]
    if out.as_json:
        out.document([snapshot_json(s) for s in found])
    else:
        _table(out, found)
    for sentence in damaged:
        click.echo(f"holdfast: {sentence}", err=True)
    return 1 if damaged else 0


def snapshot_json(stored: Stored) -> dict[str, Any]:
    """A snapshot for programs."""
    s = stored.snapshot
    return {
        "id": stored.id,
        "short_id": stored.short,
        "time": time_json(s.time_ns),
        "host": s.host,
        "user": s.user,
        "base": os.fsdecode(s.base),
        "paths": [os.fsdecode(p) for p in s.paths],
        "tags": s.tags,
        "parent": s.parent or None,
        "files": s.totals.files,
        "bytes": s.totals.bytes_total,
        "program": s.program,
    }


def _table(out: Output, found: list[Stored]) -> None:
    rows = [("ID", "Time", "Host", "Tags", "Files", "Size", "Paths")]
    for s in found:
        t = s.snapshot
        rows.append(
            (
                s.short,
                time_text(t.time_ns),
                printable(t.host),
                printable(",".join(t.tags)),
                str(t.totals.files),
                size_text(t.totals.bytes_total),
                " ".join(printable(p) for p in t.paths),
            )
        )
    widths = [max(len(r[i]) for r in rows) for i in range(6)]
    for row in rows:
        out.line(
            "  ".join(
                c.rjust(w) if i in (4, 5) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))
            )
            + "  "
            + row[6]
        )
    out.line(f"{len(found)} snapshots")
