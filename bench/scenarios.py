"""What is measured: the scenarios, their steps, and the limits each step is held against.

Promise: a table and nothing else. Adding a step here is all it takes to have it measured and reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Action = Literal["backup", "restore", "check", "check-data", "prune", "snapshots"]

SHARE_CHANGED = 0.01


@dataclass(frozen=True)
class Limit:
    """A plain tool doing the least that could be done; the shell finds $SOURCE, $PARENT/$NAME and $OUT."""

    name: str
    shell: str


@dataclass(frozen=True)
class Step:
    """One measured work; with `change`, 1 % of the corpus is changed before it."""

    name: str
    action: Action
    limits: tuple[Limit, ...] = ()
    change: bool = False


@dataclass(frozen=True)
class Scenario:
    """Steps on one corpus, in order, on one fresh repository for each program."""

    name: str
    title: str
    steps: tuple[Step, ...]


TAR_ZSTD = Limit("tar | zstd -3 -T2", 'tar -C "$PARENT" -cf - "$NAME" | zstd -3 -T2 -q -o "$OUT"')
SPARSE_ZSTD = Limit("tar -S | zstd -3 -T2", 'tar -C "$PARENT" -S -cf - "$NAME" | zstd -3 -T2 -q -o "$OUT"')
ZSTD = Limit("zstd -3 -T2", 'exec zstd -3 -T2 -q -o "$OUT" "$SOURCE"')
DD = Limit("dd conv=fsync", 'exec dd if="$SOURCE" of="$OUT" bs=4M conv=fsync status=none')
FIND = Limit("find -printf", "exec find \"$SOURCE\" -printf '%p %y %m %U %G %s %T@ %C@ %i %l\\n'")
COPY = Limit("cp -a", 'exec cp -a "$SOURCE" "$OUT"')

SCENARIOS: dict[str, Scenario] = {
    one.name: one
    for one in (
        Scenario(
            "small",
            "100,000 small files of /usr, 965 MB",
            (
                Step("first", "backup", (TAR_ZSTD,)),
                Step("unchanged", "backup", (FIND,)),
                Step("changed", "backup", change=True),
                Step("restore", "restore", (COPY,)),
                Step("check", "check"),
                Step("check-data", "check-data"),
                Step("prune", "prune"),
            ),
        ),
        Scenario(
            "random",
            "one file of 2 GiB of random bytes",
            (Step("first", "backup", (DD, ZSTD)), Step("restore", "restore", (COPY, DD))),
        ),
        Scenario("eighth", "one file of 256 MiB of random bytes", (Step("first", "backup", (DD,)),)),
        Scenario(
            "tar",
            "the first 2 GiB of a tar of /usr",
            (Step("first", "backup", (ZSTD, DD)), Step("restore", "restore", (COPY, DD))),
        ),
        Scenario(
            "million",
            "a tree of 1,000,000 entries, mostly empty files",
            (Step("first-scan", "backup", (FIND,)), Step("unchanged", "backup", (FIND,))),
        ),
        Scenario(
            "vm",
            "a sparse image of 10 GB with 2 GB of data; then 1 % of that data overwritten in place",
            (Step("first", "backup", (SPARSE_ZSTD,)), Step("changed", "backup", change=True)),
        ),
        Scenario("snapshots", "a repository of 1,000 snapshots", (Step("list", "snapshots"),)),
    )
}
