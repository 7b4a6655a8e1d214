"""Lists of a bucket, against a simple model: a list in memory that is sorted and cut."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.accounts.directory import Identity
from holdfast.blobs.listing import MOST_PREFIX, SORTS, Item, Lister, Query
from holdfast.catalog import blobs as rows
from holdfast.catalog.blobs import Blob
from holdfast.catalog.database import Database
from holdfast.catalog.tables import blobs, buckets
from holdfast.errors import NoContent, UsageError
from tests.accounts.making import House
from tests.support import postgres

# -- the model ---------------------------------------------------------------------------------------------------------

Named = tuple[str, int]  # key and time of the last change


def model(there: Iterable[Named], query: Query) -> list[str]:
    """All that a list without a limit and a marker gives: keys, and common prefixes in their place."""
    chosen = [(key, when) for key, when in there if key.startswith(query.prefix)]
    if query.sort.endswith("lastModified"):
        chosen.sort(key=lambda one: one[0].encode())
        chosen.sort(key=lambda one: one[1], reverse=query.sort.startswith("-"))
        return [key for key, _ in chosen]
    found: list[str] = []
    for key in sorted((key for key, _ in chosen), key=str.encode, reverse=query.sort.startswith("-")):
        head, parted, _ = key[len(query.prefix) :].partition(query.delimiter) if query.delimiter else (key, "", "")
        item = query.prefix + head + parted if parted else key
        if item not in found[-1:]:
            found.append(item)
    return found


def name_of(item: Item) -> str:
    return (item.key if isinstance(item, Blob) else item).decode()


class Bucket:
    """A bucket whose rows are written straight into the catalog."""

    def __init__(self, database: Database) -> None:
        self.database, self.lister, self._numbers = database, Lister(database), itertools.count(1)
        self.ann: Identity = House(database).user("ann")
        self.name = ""

    def fill(self, there: Iterable[Named]) -> None:
        self.name = f"b{next(self._numbers)}"
        with self.database.writing() as c:
            number = rows.add_bucket(c, account=self.ann.account, name=self.name, filesystem="disk", created_ns=0)
            assert number is not None
            new = (
                {
                    "bucket": number, "key": key.encode(), "size": 1, "sha1": "", "modified_ns": when, "place": "x",
                    "chunks": b"", "depth": 0,
                }
                for key, when in there
            )  # fmt: skip
            while some := list(itertools.islice(new, 20_000)):
                c.execute(sa.insert(blobs), some)

    def page(self, query: Query) -> tuple[list[str], bool, str]:
        listing = self.lister.list(self.ann, self.name, query)
        found = [name_of(item) for item in listing.items]
        return found, listing.truncated, listing.next_marker.decode()

    def pages(self, query: Query) -> Iterator[list[str]]:
        """One after the other, as a client goes on."""
        while True:
            found, truncated, marker = self.page(query)
            yield found
            if not truncated:
                return
            query = Query(query.prefix, query.sort, query.limit, marker, query.delimiter)


@pytest.fixture(params=["SQLite", "PostgreSQL"], scope="module")
def bucket(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """One catalog for all tests of this module; each fills a bucket of its own."""
    if request.param == "SQLite":
        yield from _opened(f"sqlite:///{tmp_path_factory.mktemp('catalog')}/catalog.db")
    else:
        with postgres.fresh_database(request.getfixturevalue("postgres_socket")) as url:
            yield from _opened(url)


def _opened(url: str) -> Iterator[Bucket]:
    database = Database(url)
    database.migrate()
    yield Bucket(database)
    database.close()


# -- against the model -------------------------------------------------------------------------------------------------

TEXT = st.text(alphabet="ab/ßÿ\U0010ffff\x01 ", min_size=1, max_size=6)
SHORT = st.text(alphabet="ab/ß", max_size=3)


@st.composite
def questions(draw: st.DrawFn) -> Query:
    sort = draw(st.sampled_from(("", *SORTS)))
    delimiter = "" if sort.endswith("lastModified") else draw(st.sampled_from(["", "/", "a", "//", "ß"]))
    return Query(draw(SHORT), sort, draw(st.none() | st.integers(1, 5)), "", delimiter)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(there=st.dictionaries(TEXT, st.integers(1, 4), max_size=25), query=questions())
def test_lists_are_what_the_model_says_and_pages_give_each_item_once(
    bucket: Bucket, there: dict[str, int], query: Query
):
    bucket.fill(there.items())
    expected = model(there.items(), query)
    if query.sort:
        found, truncated, _ = bucket.page(query)
        assert found == expected[: query.limit]
        assert truncated == (query.limit is not None and len(expected) > query.limit)
    pages = list(bucket.pages(query))
    assert list(itertools.chain(*pages)) == expected
    assert all(len(page) == query.limit for page in pages[:-1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(there=st.lists(TEXT, max_size=20, unique=True), query=questions(), marker=TEXT)
def test_a_marker_need_not_be_there_in_the_order_of_keys(bucket: Bucket, there: list[str], query: Query, marker: str):
    """What comes behind it comes, whether or not something is called that any more."""
    bucket.fill((key, 1) for key in there)
    sort = query.sort if query.sort.endswith("key") else ""
    found, _, _ = bucket.page(Query(query.prefix, sort, None, marker, ""))
    backwards = sort.startswith("-")
    everything = sorted((key for key in there if key.startswith(query.prefix)), key=str.encode, reverse=backwards)
    at = marker.encode()
    assert found == [key for key in everything if (key.encode() < at if backwards else key.encode() > at)]


def test_more_than_the_catalog_gives_at_once_comes_in_order_and_once(bucket: Bucket):
    there = [(f"{number % 7}/{number:05}", number // 3) for number in range(4321)]
    bucket.fill(there)
    for sort in SORTS:
        for limit in (None, 999, 1000, 1001, 2500, 10**12):
            query = Query(sort=sort, limit=limit)
            assert list(itertools.chain(*bucket.pages(query))) == model(there, query), (sort, limit)
    for sort in ("+key", "-key"):
        assert bucket.page(Query(sort=sort, delimiter="/", limit=3)) == (
            [f"{n}/" for n in ((0, 1, 2) if sort == "+key" else (6, 5, 4))], True, "2/" if sort == "+key" else "4/"
        )  # fmt: skip


def test_ties_of_time_are_in_the_order_of_their_keys_both_ways(bucket: Bucket):
    bucket.fill([("b", 1), ("a", 1), ("d", 2), ("c", 2)])
    assert bucket.page(Query(sort="+lastModified"))[0] == ["a", "b", "c", "d"]
    assert bucket.page(Query(sort="-lastModified"))[0] == ["c", "d", "a", "b"]


def test_a_limit_of_nothing_gives_nothing(bucket: Bucket):
    bucket.fill([("a", 1)])
    assert bucket.page(Query(limit=0)) == ([], False, "")


def test_a_prefix_is_of_letters_not_of_folders(bucket: Bucket):
    bucket.fill([(key, 1) for key in ("prefix1/prefix2/big.blob", "prefix1/prefix2big.blob", "prefix1/prefix3", "p")])
    assert bucket.page(Query(prefix="prefix1/prefix2"))[0] == ["prefix1/prefix2/big.blob", "prefix1/prefix2big.blob"]
    assert bucket.page(Query(prefix="%"))[0] == bucket.page(Query(prefix="_"))[0] == []


@pytest.mark.parametrize("sort", ["key", "+Key", "+size", "+lastmodified", "++key", "+key ", "+", "-", "\0"])
def test_an_order_that_is_none_is_refused(bucket: Bucket, sort: str):
    bucket.fill([])
    with pytest.raises(UsageError):
        bucket.page(Query(sort=sort))


def test_questions_that_make_no_sense_are_refused(bucket: Bucket):
    bucket.fill([("a", 1)])
    long = "x" * (MOST_PREFIX + 1)
    for query in (
        Query(sort="+lastModified", delimiter="/"),
        Query(sort="+lastModified", marker="was deleted"),
        Query(prefix=long), Query(marker=long), Query(delimiter=long), Query(prefix="\ud800"),
    ):  # fmt: skip
        with pytest.raises(UsageError):
            bucket.page(query)
    with pytest.raises(NoContent):
        bucket.lister.list(bucket.ann, "nowhere", Query())


def test_what_comes_and_goes_while_a_list_is_read_breaks_nothing_and_repeats_nothing(bucket: Bucket):
    bucket.fill([(f"{number:05}", number) for number in range(3000)])
    listing = bucket.lister.list(bucket.ann, bucket.name, Query(sort="+key"))
    found = [name_of(item) for item in itertools.islice(listing.items, 500)]
    with bucket.database.writing() as c:
        here = sa.select(buckets.c.id).where(buckets.c.name == bucket.name).scalar_subquery()
        c.execute(sa.delete(blobs).where(blobs.c.bucket == here, blobs.c.key < b"02000"))
    found += [name_of(item) for item in listing.items]
    assert found == [f"{number:05}" for number in (*range(1000), *range(2000, 3000))]


# -- a million ---------------------------------------------------------------------------------------------------------

MANY = 1_000_000


@pytest.fixture(scope="module")
def million(bucket: Bucket) -> Bucket:
    """Keys in 1,000 folders; the times are in no order of the keys; every tenth is shared by ten."""
    bucket.fill((f"{number % 1000:03}/{number:07}", (number * 7919 % MANY) // 10) for number in range(MANY))
    with bucket.database.writing() as c:
        c.exec_driver_sql("ANALYZE")
    return bucket


QUESTIONS = {
    "any order": Query(prefix="500/", limit=100),
    "by key": Query(prefix="500/", sort="+key", limit=100),
    "by key backwards": Query(prefix="500/", sort="-key", limit=100),
    "far in": Query(sort="+key", limit=100, marker="999/0000999"),
    "far in a prefix": Query(prefix="5", sort="+key", limit=100, marker="599/0500599"),
    "far in a prefix, backwards": Query(prefix="5", sort="-key", limit=100, marker="500/0500500"),
    "no prefix": Query(limit=100),
    "folders": Query(delimiter="/", limit=100),
    "folders of a prefix": Query(prefix="5", delimiter="/", limit=100),
    "newest": Query(sort="-lastModified", limit=100),
    "oldest": Query(sort="+lastModified", limit=100),
    "newest of a prefix": Query(prefix="500/", sort="-lastModified", limit=100),
    "newest of a large prefix": Query(prefix="5", sort="-lastModified", limit=100),
    "newest, far in": Query(sort="-lastModified", limit=100, marker="500/0000500"),
    "oldest, far in": Query(sort="+lastModified", limit=100, marker="500/0500500"),
    "nothing": Query(prefix="x", sort="+lastModified", limit=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_list_out_of_a_million_takes_as_long_as_what_it_gives(million: Bucket, question: str):
    query, taken = QUESTIONS[question], list[float]()
    with asking() as asked:
        million.page(query)
    assert len(asked) < (2 * 101 if query.delimiter else 8)  # of each folder a little
    for _ in range(9):
        began = time.perf_counter()
        found, _, _ = million.page(query)
        taken.append((time.perf_counter() - began) * 1000)
    kind = "SQLite" if million.database.is_sqlite else "PostgreSQL"
    print(f"{kind}: {question}: {len(found)} of {MANY} in {sorted(taken)[4]:.1f} ms")
    assert len(found) == (0 if question == "nothing" else 100)
    assert min(taken) < 400  # far less on a machine of its own; through all of them it takes seconds


@pytest.mark.slow
def test_all_of_a_million_by_time_is_gone_through_once(million: Bucket):
    """Not from the beginning with each page: a page at the end takes no longer than one at the beginning."""
    for sort in ("+lastModified", "-lastModified"):
        began = time.perf_counter()
        listing = million.lister.list(million.ann, million.name, Query(sort=sort))
        times = [item.modified_ns for item in listing.items if isinstance(item, Blob)]
        print(f"{sort}: all in {time.perf_counter() - began:.1f} s")
        assert len(times) == MANY
        assert all(a <= b if sort[0] == "+" else a >= b for a, b in itertools.pairwise(times))


def test_pages_by_time_go_on_in_the_index(bucket: Bucket):
    """The catalog is not asked for what came before."""
    if not bucket.database.is_sqlite:
        return
    bucket.fill([("a", 5), ("b", 6)])
    for sort in ("+lastModified", "-lastModified"):
        with asking() as asked:
            bucket.page(Query(sort=sort, marker="a"))
        question = [text for text in asked if "ORDER BY" in text][-1]
        with bucket.database.reading() as c:
            plan = [row[3] for row in c.exec_driver_sql(f"EXPLAIN QUERY PLAN {question}", (1,) * question.count("?"))]
        assert any("ix_blobs_modified (bucket=? AND modified_ns" in line for line in plan), plan


@contextlib.contextmanager
def asking() -> Iterator[list[str]]:
    """What catalogs are asked in the block."""
    asked: list[str] = []

    def note(connection: object, cursor: object, statement: str, *more: object) -> None:
        asked.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield asked
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
