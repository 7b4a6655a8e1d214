"""``holdfast forget`` and ``holdfast prune``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.cli import pruning
from holdfast.repository.format import Snapshot
from holdfast.repository.snapshots import put_snapshot
from tests.cli.inside import Desk, Inside, demand_error, demand_run, make_desk
from tests.repository.making import names, read_back

DAY = 24 * 3600 * 1_000_000_000
NOON = 1_710_504_000_000_000_000  # 2024-03-15 12:00 UTC


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path)


def dated(desk: Desk, times: list[int], **about: Any) -> list[str]:
    """Snapshots of those times, all of one tree; their ids."""
    repo = desk.repo
    first = desk.store(1, **about)
    snapshot: Snapshot = next(s.snapshot for s in repo.snapshots() if s.id == first)
    repo.storage.delete(f"snapshots/{first}")
    ids = [put_snapshot(repo.storage, repo.secrets, msgspec.structs.replace(snapshot, time_ns=time)) for time in times]
    for snapshot_id, time in zip(ids, times, strict=True):
        os.utime(desk.locate(f"snapshots/{snapshot_id}"), ns=(time, time))
    return ids


def left(desk: Desk) -> set[str]:
    return {s["id"] for s in desk.call("--json", "snapshots").json}


# -- forget -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_forgotten_by_the_beginning_of_its_id(desk: Desk) -> None:
    ids = [desk.store(n) for n in range(3)]
    done = desk.call("forget", ids[0][:10], ids[2])
    assert f"remove {ids[0][:8]}" in done.text and "2 snapshots were removed" in done.text
    assert left(desk) == {ids[1]}


def test_latest_can_be_forgotten_among_those_of_a_host(desk: Desk) -> None:
    ids = [desk.store(n, host=f"h{n % 2}") for n in range(4)]
    desk.call("forget", "latest", "-H", "h0")
    assert left(desk) == {ids[0], ids[1], ids[3]}


def test_who_names_nothing_that_is_there_forgets_nothing(desk: Desk) -> None:
    ids = [desk.store(n) for n in range(2)]
    missing = next(c for c in "0123456789abcdef" if not any(i.startswith(c) for i in ids))
    assert f"No snapshot begins with {missing}" in desk.call("forget", ids[0], missing, status=1).error
    assert left(desk) == set(ids)


@pytest.mark.parametrize("words", [[], ["--keep-last", "0"], ["--prune"], ["-H", "here"]])
def test_without_names_or_rules_nothing_is_forgotten(desk: Desk, words: list[str]) -> None:
    ids = {desk.store(1)}
    assert "--keep rules" in desk.call("forget", *words, status=2).error
    assert left(desk) == ids


def test_rules_keep_what_any_of_them_keeps_and_say_why(desk: Desk) -> None:
    ids = dated(desk, [NOON - n * DAY // 2 for n in range(8)])  # two a day, newest first
    done = desk.call("forget", "--keep-last", "1", "--keep-daily", "3")
    assert left(desk) == {ids[0], ids[2], ids[4]}
    why = {line.split()[1]: line for line in done.lines if line.startswith("  ")}
    assert "last, daily" in why[ids[0][:8]] and "keep" in why[ids[2][:8]] and "remove" in why[ids[1][:8]]
    assert "host here  paths /tree" in done.text and "5 snapshots were removed" in done.text


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--keep-last", "2"], [0, 1]),
        (["-l", "-1"], [0, 1, 2, 3, 4, 5, 6, 7]),
        (["--keep-hourly", "3"], [0, 1, 2]),
        (["-d", "2"], [0, 2]),
        (["-w", "5"], [0, 7]),
        (["-m", "5"], [0]),
        (["-y", "5"], [0]),
        (["--keep-within", "1d"], [0, 1, 2]),
        (["--keep-within", "12h"], [0, 1]),
        (["--keep-tag", "t"], [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_every_rule_does_what_it_says(desk: Desk, words: list[str], kept: list[int]) -> None:
    ids = dated(desk, [NOON - n * DAY // 2 - (2 * DAY if n == 7 else 0) for n in range(8)], tags=["t"])
    desk.call("forget", *words)
    assert left(desk) == {ids[n] for n in kept}


def test_rules_apply_to_each_group_alone(desk: Desk) -> None:
    one, two = dated(desk, [NOON, NOON - DAY], host="a"), dated(desk, [NOON - 2 * DAY, NOON - 3 * DAY], host="b")
    events = desk.call("--json", "forget", "-n", "--keep-last", "1", "--group-by", "").events
    assert [e["id"] for e in events if e.get("keep")] == [one[0]]
    desk.call("forget", "--keep-last", "1")
    assert left(desk) == {one[0], two[0]}


def test_a_group_that_nobody_knows_is_refused(desk: Desk) -> None:
    desk.store(1)
    assert "not by 'colour'" in desk.call("forget", "--keep-last", "1", "--group-by", "host,colour", status=2).error


@pytest.mark.parametrize("text", ["yesterday", "7", "", "-1d", "9999999999d"])
def test_a_duration_that_is_none_is_refused(desk: Desk, text: str) -> None:
    ids = {desk.store(1)}
    desk.call("forget", "--keep-within", text, status=2)
    assert left(desk) == ids


@pytest.mark.parametrize(("zone", "kept"), [("UTC", [0]), ("Europe/Berlin", [0, 1]), ("America/New_York", [0, 2])])
def test_days_are_those_of_the_users_zone(desk: Desk, zone: str, kept: list[int]) -> None:
    """Of a winter's day in winter, whenever this is: 23:30, 22:30 and 00:30 UTC."""
    january, hour = 1_705_318_200_000_000_000, DAY // 24  # 2024-01-15 11:30 UTC
    ids = dated(desk, [january + 12 * hour, january + 11 * hour, january - 11 * hour])
    Inside(desk.place, desk.call.key_file, desk.folder, {"TZ": zone})("forget", "--keep-daily", "9")
    assert left(desk) == {ids[n] for n in kept}


def test_a_dry_run_of_forget_removes_nothing_and_says_what_would_go(desk: Desk) -> None:
    ids = dated(desk, [NOON, NOON - DAY, NOON - 2 * DAY])
    before = desk.everything()
    done = desk.call("forget", "--dry-run", "--keep-last", "1", "--prune")
    assert "2 snapshots would be removed" in done.text
    summary = demand_run(desk.call("--json", "forget", "-n", "--keep-last", "1"))
    assert summary["dry_run"] is True and set(summary["removed"]) == set(ids[1:])
    assert "1 snapshots would be removed" in desk.call("forget", "-n", ids[0]).text
    assert desk.everything() == before


def test_forget_for_programs(desk: Desk) -> None:
    ids = dated(desk, [NOON, NOON - DAY])
    done = desk.call("--json", "forget", "--keep-last", "1")
    assert demand_run(done) == {"message_type": "summary", "removed": [ids[1]], "dry_run": False}
    assert [(e["id"], e["keep"], e["reasons"]) for e in done.events[:-1]] == [
        (ids[1], False, []),
        (ids[0], True, ["last"]),
    ]


def test_forgetting_and_pruning_at_once_frees_the_space(desk: Desk) -> None:
    gone, kept = desk.store(1), desk.store(2)
    done = desk.call("forget", gone, "--prune")
    assert "Deleted:  2 packs" in done.text
    assert read_back(desk.repo, kept)[b"file"][:1] == b"2" and desk.call("check", "--read-data").status == 0
    events = desk.call("--json", "forget", kept, "--prune").events
    assert [e["message_type"] for e in events] == ["summary", "summary"]
    assert names(desk.repo.storage, "data") == []


def test_forgetting_and_pruning_while_others_work_leaves_the_space_for_later(desk: Desk) -> None:
    gone, _ = desk.store(1), desk.store(2)
    for info in desk.repo.storage.list("data"):
        old = info.stored_ns - DAY
        os.utime(desk.locate(info.name), ns=(old, old))
    with desk.repo.leases.hold("backup"):
        done = desk.call("forget", gone, "--prune")
    assert "Waiting:" in done.text and "Deleted:  0 packs" in done.text
    assert "Deleted:  0 packs" not in desk.call("prune", "--now").text


def test_a_snapshot_that_cannot_be_read_is_warned_of_and_can_be_forgotten(desk: Desk) -> None:
    ids = [desk.store(n) for n in range(3)]
    path = desk.locate(f"snapshots/{ids[1]}")
    path.chmod(0o600)
    path.write_bytes(b"rubbish")
    assert ids[1] in desk.call("forget", "-n", "--keep-last", "5").error
    assert ids[1] in desk.call("prune", status=1).error
    desk.call("forget", ids[1][:7], status=1)  # fewer digits than are shown: it might be a slip
    assert "which cannot be read" in desk.call("forget", ids[1][:8]).text
    assert left(desk) == {ids[0], ids[2]}
    desk.call("prune")
    desk.call("check")


def test_a_snapshot_of_tomorrow_pushes_nobody_out(desk: Desk) -> None:
    """Whoever stole a write-only key could make one."""
    ids = dated(desk, [NOON, NOON - DAY])
    (ahead,) = dated(desk, [NOON + 30 * DAY])
    os.utime(desk.locate(f"snapshots/{ahead}"), ns=(NOON, NOON))
    done = desk.call("forget", "--keep-last", "1")
    assert "dated in the future" in done.error and ahead[:8] in done.error
    assert left(desk) == {ids[0], ahead}


# -- prune ------------------------------------------------------------------------------------------------------------


def garbage(desk: Desk) -> str:
    """A snapshot that is kept; the packs of another one are needed no more."""
    gone, kept = desk.store(1), desk.store(2)
    desk.call("forget", gone)
    return kept


def test_prune_in_two_steps(desk: Desk) -> None:
    kept = garbage(desk)
    done = desk.call("prune")
    assert "condemned" in done.text and "Waiting:" in done.text and "Deleted:  0 packs" in done.text
    for path in (desk.place / "locks").iterdir():
        os.utime(path, ns=(1, 1))
    assert "Deleted:  0 packs" not in desk.call("prune").text
    assert read_back(desk.repo, kept)[b"file"][:1] == b"2"
    desk.call("check", "--read-data")


def test_prune_now(desk: Desk) -> None:
    garbage(desk)
    done = desk.call("prune", "--now")
    assert "Waiting" not in done.text and "Deleted:  0 packs" not in done.text
    desk.call("check", "--read-data")
    assert names(desk.repo.storage, "locks") == []


def test_prune_that_waits_no_time_deletes_at_once(desk: Desk) -> None:
    garbage(desk)
    assert "Deleted:  0 packs" not in desk.call("prune", "--wait", "0").text


def test_prune_for_programs(desk: Desk) -> None:
    garbage(desk)
    summary = demand_run(desk.call("--json", "prune", "--now"))
    assert summary.keys() == {
        "message_type", "dry_run", "packs", "bytes", "live_chunks", "dead_chunks", "condemned_packs", "condemned_bytes",
        "rewritten_packs", "copied_bytes", "deleted_packs", "deleted_bytes", "pardoned_packs", "waiting_packs",
        "index_objects",
    }  # fmt: skip
    assert summary["deleted_packs"] > 0 and summary["dry_run"] is False


@pytest.mark.parametrize("words", [[], ["--now"], ["--max-unused", "0"]])
def test_a_dry_run_of_prune_changes_nothing(desk: Desk, words: list[str]) -> None:
    garbage(desk)
    before = desk.everything()
    assert "would be condemned" in desk.call("prune", "-n", *words).text
    assert demand_run(desk.call("--json", "prune", "--dry-run", *words))["dry_run"] is True
    assert desk.everything() == before


def test_as_much_waste_stays_as_may(desk: Desk) -> None:
    garbage(desk)
    summary = demand_run(desk.call("--json", "prune", "-n", "--max-unused", "100%"))
    assert summary["rewritten_packs"] == 0 < summary["condemned_packs"]
    assert demand_run(desk.call("--json", "prune", "-n", "--max-unused", "0"))["rewritten_packs"] > 0


@pytest.mark.parametrize("text", ["lots", "-1", "101%", "", "%", "nan", "5 percent", "inf"])
def test_a_percentage_that_is_none_is_refused(desk: Desk, text: str) -> None:
    assert "percentage" in desk.call("prune", "--max-unused", text, status=2).error
    demand_error(desk.call("--json", "prune", "--max-unused", text, status=2), "usage")


@pytest.mark.parametrize(("text", "part"), [("5%", 0.05), ("5", 0.05), (" 0 % ", 0), ("100", 1), ("2.5%", 0.025)])
def test_a_percentage_is_read(text: str, part: float) -> None:
    assert pruning.parse_percent(text) == part
