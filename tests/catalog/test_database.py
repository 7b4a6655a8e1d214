"""The catalog's database: tables, transactions, and what goes wrong with them. On SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from holdfast.catalog import people
from holdfast.catalog.database import Database
from holdfast.catalog.tables import metadata
from holdfast.errors import StorageFull, StorageUnavailable, UnknownVersion, UsageError


def add(database: Database, name: str) -> int | None:
    with database.writing() as c:
        return people.add_account(c, username=name, email="", name="", role="user", password="-", created_ns=1)


def names(database: Database) -> list[str]:
    with database.reading() as c:
        return [account.username for account in people.list_accounts(c)]


def test_the_steps_lead_to_the_tables_as_they_are(database: Database) -> None:
    with database.reading() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True, "compare_server_default": False})
        assert compare_metadata(context, metadata) == []


def test_coming_up_to_date_again_changes_nothing(database: Database) -> None:
    add(database, "ann")
    database.migrate()
    assert names(database) == ["ann"]


def test_nodes_that_start_at_once_make_the_tables_once(catalog_url: str) -> None:
    nodes = [Database(catalog_url) for _ in range(4)]
    failures: list[BaseException] = []

    def start(node: Database) -> None:
        try:
            node.migrate()
        except BaseException as e:  # noqa: BLE001 - told by the assertion
            failures.append(e)

    threads = [threading.Thread(target=start, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    add(nodes[0], "ann")
    assert names(nodes[3]) == ["ann"]
    for node in nodes:
        node.close()


def test_a_catalog_of_a_newer_version_is_refused(database: Database) -> None:
    with database.writing() as c:
        c.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UnknownVersion, match="newer"):
        database.migrate()


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as c:
        people.add_account(c, username="ann", email="", name="", role="user", password="-", created_ns=1)
        raise ZeroDivisionError
    assert names(database) == []


def test_writers_at_once_lose_nothing(database: Database) -> None:
    """Each reads, then writes what it read and one more."""
    number = add(database, "ann")
    assert number is not None

    def charge() -> None:
        for _ in range(10):
            with database.writing() as c:
                assert people.charge(c, number, 1, 1)

    threads = [threading.Thread(target=charge) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as c:
        account = people.account_by_id(c, number)
    assert account is not None and (account.used_bytes, account.used_objects) == (80, 80)


def test_a_name_that_is_taken_does_not_end_the_transaction(database: Database) -> None:
    assert add(database, "ann") is not None
    with database.writing() as c:
        row: dict[str, Any] = {"email": "", "name": "", "role": "user", "password": "-", "created_ns": 1}
        assert people.add_account(c, username="ann", **row) is None
        assert people.add_account(c, username="bob", **row) is not None
    assert names(database) == ["ann", "bob"]


def test_what_belongs_to_an_account_goes_with_it(database: Database) -> None:
    number = add(database, "ann")
    assert number is not None
    with database.writing() as c:
        people.add_token(c, account=number, name="t", digest=b"d", scopes="", created_ns=1, expires_ns=None)
        people.add_session(c, digest=b"s", account=number, created_ns=1, expires_ns=9)
        people.delete_account(c, number)
    with database.reading() as c:
        assert people.token_by_digest(c, b"d") is None
        assert people.session_account(c, b"s", 2) is None


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://host/db", "sqlite", "http://host/", "postgres//x"])
def test_an_address_that_is_none_says_what_one_looks_like(url: str) -> None:
    with pytest.raises(UsageError, match="sqlite:///"):
        Database(url)


def test_a_password_in_the_address_is_not_shown() -> None:
    database = Database("postgresql://user:s3cret@127.0.0.1:1/db")
    with pytest.raises(StorageUnavailable) as caught, database.reading():
        pass
    assert "s3cret" not in str(caught.value) + database.place and "127.0.0.1" in str(caught.value)


def test_a_database_that_is_away_is_said_to_be_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/nowhere/catalog.db")
    with pytest.raises(StorageUnavailable, match="unable to open"):
        database.migrate()


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").write_bytes(b"these are not the tables you are looking for" * 100)
    with pytest.raises(StorageUnavailable, match="not a database"):
        Database(f"sqlite:///{tmp_path}/catalog.db").migrate()


def test_a_catalog_that_is_full_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    add(database, "ann")
    with database.reading() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar_one()
    with pytest.raises(StorageFull, match="no room"), database.writing() as c:
        c.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        for number in range(10_000):
            people.add_account(
                c, username=f"user{number}", email="e" * 200, name="", role="user", password="-", created_ns=1
            )
    assert names(database) == ["ann"]
    database.close()


def test_what_was_acknowledged_is_flushed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/catalog.db")
    database.migrate()
    with database.reading() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert c.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    database.close()


def test_an_accounts_number_is_never_given_again(database: Database) -> None:
    def add(name: str) -> int | None:
        with database.writing() as c:
            return people.add_account(
                c, username=name, email="", name="", role="user", password="", created_ns=1
            )  # fmt: skip

    first = add("first")
    assert first is not None and add("first") is None
    with database.writing() as c:
        people.delete_account(c, first)
    second = add("second")
    assert second is not None and second > first
