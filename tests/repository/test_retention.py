"""Which snapshots a policy keeps, against an oracle that was written from the rules alone and is slow."""

from __future__ import annotations

import calendar
import datetime
import zoneinfo
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import UsageError
from holdfast.repository.format import Snapshot, Totals
from holdfast.repository.retention import Duration, Policy, decide, groups, parse_duration
from holdfast.repository.snapshots import Stored
from tests.support.components import missing

UTC = datetime.UTC
SECOND = 1_000_000_000


def zone(name: str) -> datetime.tzinfo:
    try:
        return zoneinfo.ZoneInfo(name)
    except zoneinfo.ZoneInfoNotFoundError:
        missing(f"the time zone {name} is not installed (tzdata)")


def at(text: str, number: int = 0, *, tags: Iterable[str] = (), host: str = "h", paths: Iterable[bytes] = ()) -> Stored:
    """A snapshot of a time as ``2024-03-31T01:30`` in UTC."""
    return taken(int(datetime.datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()), number, tags, host, paths)


def taken(
    seconds: int, number: int = 0, tags: Iterable[str] = (), host: str = "h", paths: Iterable[bytes] = ()
) -> Stored:
    snapshot = Snapshot(
        time_ns=seconds * SECOND, host=host, user="", base=b"/", paths=[*paths], tags=[*tags], root=b"", totals=Totals()
    )
    return Stored(f"{number:064x}", snapshot)


def kept(snapshots: Iterable[Stored], policy: Policy, where: datetime.tzinfo = UTC) -> dict[int, list[str]]:
    """Reasons by the snapshot's number, of those that are kept."""
    return {int(d.stored.id, 16): d.reasons for d in decide(snapshots, policy, where) if d.kept}


# -- the oracle -------------------------------------------------------------------------------------------------------


def clock(seconds: int, where: datetime.tzinfo) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, UTC).astimezone(where)


LABELS = {
    "hourly": "%Y-%m-%d %H %z",  # the hour that comes twice in autumn is two hours
    "daily": "%Y-%m-%d",
    "weekly": "%G week %V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}


def days_earlier(day: datetime.date, years: int, months: int, days: int) -> datetime.date:
    """Month by month, day by day."""
    year, month = day.year - years, day.month
    for _ in range(months):
        year, month = (year, month - 1) if month > 1 else (year - 1, 12)
    return datetime.date.fromordinal(
        datetime.date(year, month, min(day.day, calendar.monthrange(year, month)[1])).toordinal() - days
    )


def oracle(snapshots: list[Stored], policy: Policy, where: datetime.tzinfo) -> dict[int, set[str]]:
    """For every rule: the newest of every period there is, then the newest periods."""
    reasons: dict[int, set[str]] = {int(s.id, 16): set() for s in snapshots}
    times = {int(s.id, 16): s.snapshot.time_ns // SECOND for s in snapshots}
    newest_first = sorted(times, key=lambda n: (times[n], n), reverse=True)
    for place, n in enumerate(newest_first):
        if policy.last < 0 or place < policy.last:
            reasons[n].add("last")
    for rule, label in LABELS.items():
        best: dict[str, int] = {}
        for n in newest_first:
            best.setdefault(clock(times[n], where).strftime(label), n)
        count = getattr(policy, rule)
        winners = sorted(best.values(), key=newest_first.index)
        for n in winners if count < 0 else winners[:count]:
            reasons[n].add(rule)
    if policy.within and newest_first:
        w, newest = policy.within, clock(times[newest_first[0]], where)
        limit = newest
        if w.years or w.months or w.days:
            day = days_earlier(newest.date(), w.years, w.months, w.days)
            fold = newest.fold if not (w.years or w.months or w.days) else 0
            limit = datetime.datetime.combine(day, newest.time(), where).replace(fold=fold)
        seconds = limit.timestamp() - 3600 * w.hours
        for n in newest_first:
            if times[n] >= seconds:
                reasons[n].add("within")
    for s in snapshots:
        reasons[int(s.id, 16)] |= {f"tag {t}" for t in s.snapshot.tags if t in policy.tags}
    return {n: r for n, r in reasons.items() if r}


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia"]
# Around what is hard: summer time beginning and ending, New Year after 52 and 53 weeks, leap days, ends of months.
HARD = [
    "2024-03-31T01:00", "2024-10-27T01:00", "2023-11-05T06:00", "2024-04-06T15:00", "2024-10-05T15:30",
    "2020-12-31T23:00", "2021-01-03T23:59", "2024-12-30T00:00", "2026-12-31T12:00", "2024-02-29T12:00",
    "2023-03-31T10:00", "2011-12-30T10:00", "1970-01-01T00:00",
]  # fmt: skip
MOMENTS = st.builds(
    lambda base, hours, minutes: (
        int(datetime.datetime.fromisoformat(base).replace(tzinfo=UTC).timestamp()) + hours * 3600 + minutes * 60
    ),
    st.sampled_from(HARD),
    st.integers(-60, 60) | st.integers(-24 * 800, 24 * 800),
    st.sampled_from([0, 1, 29, 30, 31, 59]),
)
SNAPSHOTS = st.lists(st.tuples(MOMENTS, st.sets(st.sampled_from("abc"), max_size=2)), max_size=30).map(
    lambda found: [taken(seconds, n, tags) for n, (seconds, tags) in enumerate(found)]
)
COUNTS = st.sampled_from([0, 0, 1, 2, 3, 7, -1])
DURATIONS = st.builds(
    Duration, st.integers(0, 3), st.integers(0, 14), st.integers(0, 40), st.integers(0, 100) | st.just(0)
)
POLICIES = st.builds(
    Policy,
    last=COUNTS, hourly=COUNTS, daily=COUNTS, weekly=COUNTS, monthly=COUNTS, yearly=COUNTS,
    within=st.none() | DURATIONS,
    tags=st.lists(st.sampled_from("abcd"), max_size=2, unique=True).map(tuple),
)  # fmt: skip


def agree(snapshots: list[Stored], policy: Policy, name: str) -> None:
    where = zone(name)
    decisions = kept(snapshots, policy, where)
    assert {n: set(reasons) for n, reasons in decisions.items()} == oracle(snapshots, policy, where)
    assert all(len(set(r)) == len(r) for r in decisions.values())


@settings(max_examples=300, deadline=None)
@given(SNAPSHOTS, POLICIES, st.sampled_from(ZONES))
def test_it_keeps_what_the_oracle_keeps(snapshots: list[Stored], policy: Policy, name: str) -> None:
    agree(snapshots, policy, name)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(SNAPSHOTS, POLICIES, st.sampled_from(ZONES))
def test_it_keeps_what_the_oracle_keeps_in_many_cases(snapshots: list[Stored], policy: Policy, name: str) -> None:
    agree(snapshots, policy, name)


@settings(max_examples=100, deadline=None)
@given(SNAPSHOTS, POLICIES, st.randoms())
def test_the_order_snapshots_come_in_does_not_matter(snapshots: list[Stored], policy: Policy, dice: object) -> None:
    shuffled = list(snapshots)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert kept(shuffled, policy) == kept(snapshots, policy)


@settings(max_examples=100, deadline=None)
@given(SNAPSHOTS, POLICIES)
def test_forgetting_twice_removes_nothing_more(snapshots: list[Stored], policy: Policy) -> None:
    left = [s for s in snapshots if int(s.id, 16) in kept(snapshots, policy)]
    assert kept(left, policy).keys() == {int(s.id, 16) for s in left}


@settings(max_examples=100, deadline=None)
@given(SNAPSHOTS, POLICIES)
def test_the_newest_is_kept_by_any_rule_but_tags(snapshots: list[Stored], policy: Policy) -> None:
    newest = max(snapshots, key=lambda s: (s.snapshot.time_ns, s.id), default=None)
    if newest and policy != Policy(tags=policy.tags):
        assert int(newest.id, 16) in kept(snapshots, policy)


# -- examples that say what is meant ----------------------------------------------------------------------------------


def test_daily_keeps_the_newest_of_each_day_that_has_one() -> None:
    snapshots = [at("2024-05-01T10:00", 1), at("2024-05-01T20:00", 2), at("2024-05-03T08:00", 3)]
    assert kept(snapshots, Policy(daily=2)) == {3: ["daily"], 2: ["daily"]}


def test_a_week_that_spans_two_years_is_one_week() -> None:
    snapshots = [at("2024-12-29T12:00", 1), at("2024-12-30T12:00", 2), at("2025-01-05T12:00", 3)]
    assert kept(snapshots, Policy(weekly=5)).keys() == {1, 3}


def test_the_first_days_of_january_may_belong_to_the_last_week_of_december() -> None:
    snapshots = [at("2020-12-31T12:00", 1), at("2021-01-03T12:00", 2), at("2021-01-04T12:00", 3)]
    assert kept(snapshots, Policy(weekly=-1)).keys() == {2, 3}
    assert kept(snapshots, Policy(yearly=-1)).keys() == {1, 3}


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    snapshots = [at("2024-10-27T00:30", 1), at("2024-10-27T01:30", 2)]  # both 02:30 in Berlin
    assert kept(snapshots, Policy(hourly=5), zone("Europe/Berlin")).keys() == {1, 2}


def test_days_are_those_of_the_zone_in_summer_and_winter() -> None:
    berlin = zone("Europe/Berlin")
    winter = [at("2024-01-10T22:30", 1), at("2024-01-10T23:30", 2)]  # 23:30, and 00:30 of the next day
    summer = [at("2024-07-10T21:30", 3), at("2024-07-10T22:30", 4)]
    assert kept(winter, Policy(daily=9), berlin).keys() == {1, 2}
    assert kept(summer, Policy(daily=9), berlin).keys() == {3, 4}


def test_of_two_taken_at_the_same_moment_one_counts() -> None:
    snapshots = [at("2024-05-01T10:00", n) for n in (1, 2, 3)]
    assert kept(snapshots, Policy(last=1)) == {3: ["last"]}
    assert kept(snapshots, Policy(daily=2)) == {3: ["daily"]}


def test_a_clock_that_jumped_back_does_not_cost_the_newest() -> None:
    """Order is by time: what was taken with the clock set back counts as older."""
    snapshots = [at("2024-05-02T10:00", 1), at("1999-01-01T00:00", 2), at("2024-05-03T10:00", 3)]
    assert kept(snapshots, Policy(last=2)).keys() == {1, 3}
    assert kept(snapshots, Policy(yearly=2)).keys() == {2, 3}


def test_minus_one_keeps_one_of_every_period() -> None:
    snapshots = [at(f"2024-05-{d:02}T{h:02}:00", d * 100 + h) for d in (1, 2, 3) for h in (1, 2)]
    assert kept(snapshots, Policy(daily=-1)).keys() == {102, 202, 302}
    assert kept(snapshots, Policy(last=-1)).keys() == {int(s.id, 16) for s in snapshots}


def test_within_counts_from_the_newest_and_not_from_now() -> None:
    snapshots = [at("2020-01-01T00:00", 1), at("2020-01-03T00:00", 2), at("2020-01-10T00:00", 3)]
    assert kept(snapshots, Policy(within=Duration(days=7))).keys() == {2, 3}


def test_a_month_before_the_end_of_march_is_the_end_of_february() -> None:
    snapshots = [at("2023-02-28T11:59", 1), at("2023-02-28T12:00", 2), at("2023-03-31T12:00", 3)]
    assert kept(snapshots, Policy(within=Duration(months=1))).keys() == {2, 3}


def test_an_hour_is_an_hour_also_when_the_clocks_are_set_back() -> None:
    berlin = zone("Europe/Berlin")
    snapshots = [at("2024-10-26T23:45", 1), at("2024-10-27T00:30", 2), at("2024-10-27T01:15", 3)]
    assert kept(snapshots, Policy(within=Duration(hours=1)), berlin).keys() == {2, 3}


def test_a_duration_longer_than_the_calendar_keeps_everything() -> None:
    snapshots = [at("1970-01-01T00:00", 1), at("2024-01-01T00:00", 2)]
    for duration in (Duration(years=100_000), Duration(days=800_000), Duration(hours=100_000_000)):
        assert kept(snapshots, Policy(within=duration)).keys() == {1, 2}


def test_tags_keep_for_ever() -> None:
    snapshots = [at("2020-01-01T00:00", 1, tags=["keep", "x"]), at("2024-01-01T00:00", 2, tags=["x"])]
    assert kept(snapshots, Policy(tags=("keep", "gold"))) == {1: ["tag keep"]}


def test_an_empty_policy_knows_that_it_is() -> None:
    assert Policy().is_empty
    assert not Policy(last=-1).is_empty and not Policy(within=Duration(hours=0)).is_empty


# -- durations and groups ---------------------------------------------------------------------------------------------


@given(st.builds(Duration, *[st.integers(0, 500)] * 2, st.integers(1, 500), st.integers(0, 500)))
def test_a_duration_is_read_as_it_is_written(duration: Duration) -> None:
    text = f"{duration.years}y{duration.months}m{duration.days}d{duration.hours}h"
    assert parse_duration(text) == parse_duration(f" {text}\n") == duration


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7d", Duration(days=7)),
        ("12h", Duration(hours=12)),
        ("2w", Duration(days=14)),
        ("2w3d", Duration(days=17)),
        ("1y6m", Duration(years=1, months=6)),
        ("0d", Duration()),
    ],
)
def test_parts_of_a_duration_may_be_left_out(text: str, wanted: Duration) -> None:
    assert parse_duration(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "7",
        "d",
        "7x",
        "-7d",
        "7d7d",
        "3d1y",
        "1.5d",
        "7 d",
        "7D",
        "1y 6m",
        "٣d",
        "²h",
        "9" * 5000 + "d",
        "100001d",
    ],
)
def test_what_is_no_duration_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a duration|longer than any backup"):
        parse_duration(text)


def test_groups_are_by_what_was_asked_for() -> None:
    snapshots = [
        at("2024-01-01T00:00", 1, host="a", paths=[b"/x", b"/y"], tags=["t", "s"]),
        at("2024-01-01T00:00", 2, host="a", paths=[b"/y", b"/x"], tags=["s", "t"]),
        at("2024-01-01T00:00", 3, host="b", paths=[b"/x"], tags=["t"]),
    ]

    def numbers(*by: str) -> list[list[int]]:
        return [[int(s.id, 16) for s in members] for members in groups(snapshots, by).values()]

    assert numbers("host", "paths") == numbers("tags") == numbers("host") == [[1, 2], [3]]
    assert numbers() == [[1, 2, 3]]
    with pytest.raises(UsageError, match="not by 'colour'"):
        numbers("colour")
