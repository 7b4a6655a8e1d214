"""Which snapshots a policy keeps. Pure: snapshots and a time zone in, decisions with reasons out.

As restic's users know it: ``last`` keeps the newest n; ``hourly`` to ``yearly`` keep the newest of each of the last n
hours, days, weeks (ISO), months or years that have one; ``within`` keeps what is no older than a duration before the
newest; ``tags`` keeps what has any of the tags. A number below 0 means: all. A snapshot is kept when any rule keeps
it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from holdfast.errors import UsageError
from holdfast.repository.format import Snapshot
from holdfast.repository.snapshots import Stored

_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in "ymwdh") + r"\Z")
_BEGINNING = datetime.datetime.min.replace(tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Duration:
    """A span as people say it. Years, months and days are the calendar's, hours the clock's."""

    years: int = 0
    months: int = 0
    days: int = 0
    hours: int = 0

    def before(self, moment: datetime.datetime) -> datetime.datetime:
        """The moment that long before, in UTC; the last day of a shorter month where the day is missing."""
        months = moment.year * 12 + moment.month - 1 - self.years * 12 - self.months
        if months < 12:
            return _BEGINNING
        moved = _in_month(moment, months) if self.years or self.months else moment
        try:
            if self.days:
                moved -= datetime.timedelta(days=self.days)
            return moved.astimezone(datetime.UTC) - datetime.timedelta(hours=self.hours)
        except OverflowError:
            return _BEGINNING


def _in_month(moment: datetime.datetime, months: int) -> datetime.datetime:
    """The same day and time in another month, counted from year 0; its last day where it is shorter."""
    day = moment.day
    while True:
        try:
            return moment.replace(year=months // 12, month=months % 12 + 1, day=day, fold=0)
        except ValueError:
            day -= 1


def parse_duration(text: str) -> Duration:
    """``1y6m2w3d12h`` and parts of it."""
    match = _DURATION.match(text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"{text!r} is not a duration: write it like 7d, 12h or 1y6m.")
    years, months, weeks, days, hours = (int(g or 0) for g in match.groups())
    if max(years, months, weeks, days, hours) > 100_000:
        raise UsageError(f"{text!r} is longer than any backup lasts.")
    return Duration(years, months, days + 7 * weeks, hours)


@dataclass(frozen=True)
class Policy:
    """What to keep; see the module."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: Duration | None = None
    tags: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return self == Policy()


@dataclass
class Decision:
    """A snapshot and why it is kept; without reasons it goes."""

    stored: Stored
    reasons: list[str] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return bool(self.reasons)


Bucket = Callable[[datetime.datetime], object]
_BUCKETS: dict[str, Bucket] = {
    "hourly": lambda t: (t.year, t.month, t.day, t.hour, t.utcoffset()),
    "daily": lambda t: (t.year, t.month, t.day),
    "weekly": lambda t: t.isocalendar()[:2],
    "monthly": lambda t: (t.year, t.month),
    "yearly": lambda t: t.year,
}


def decide(snapshots: Iterable[Stored], policy: Policy, zone: datetime.tzinfo) -> list[Decision]:
    """Apply the policy to one group; decisions newest first."""
    decisions = [Decision(s) for s in sorted(snapshots, key=lambda s: (s.snapshot.time_ns, s.id), reverse=True)]
    times = [moment(d.stored.snapshot.time_ns, zone) for d in decisions]
    for decision in decisions[: policy.last if policy.last >= 0 else len(decisions)]:
        decision.reasons.append("last")
    for rule, bucket in _BUCKETS.items():
        _keep_buckets(decisions, times, rule, getattr(policy, rule), bucket)
    if policy.within and decisions:
        limit = policy.within.before(times[0])
        for decision, time in zip(decisions, times, strict=True):
            if time.astimezone(datetime.UTC) >= limit:  # in one zone Python compares what the clocks showed
                decision.reasons.append("within")
    for decision in decisions:
        decision.reasons += [f"tag {t}" for t in policy.tags if t in decision.stored.snapshot.tags]
    return decisions


def _keep_buckets(
    decisions: list[Decision], times: list[datetime.datetime], rule: str, count: int, bucket: Bucket
) -> None:
    previous: object = None
    for decision, time in zip(decisions, times, strict=True):
        if count == 0:
            return
        this = bucket(time)
        if this != previous:
            decision.reasons.append(rule)
            previous = this
            count -= 1


def moment(time_ns: int, zone: datetime.tzinfo) -> datetime.datetime:
    """A snapshot's time in a zone, to the microsecond."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (epoch + datetime.timedelta(microseconds=time_ns // 1000)).astimezone(zone)


def groups(snapshots: Iterable[Stored], by: tuple[str, ...]) -> dict[tuple[object, ...], list[Stored]]:
    """Snapshots by host, paths or tags, in the order they come."""
    found: dict[tuple[object, ...], list[Stored]] = {}
    for stored in snapshots:
        found.setdefault(tuple(_group_key(stored.snapshot, b) for b in by), []).append(stored)
    return found


def _group_key(snapshot: Snapshot, by: str) -> object:
    if by == "host":
        return snapshot.host
    if by == "paths":
        return tuple(sorted(snapshot.paths))
    if by == "tags":
        return tuple(sorted(snapshot.tags))
    raise UsageError(f"Snapshots can be grouped by host, paths and tags, not by {by!r}.")
