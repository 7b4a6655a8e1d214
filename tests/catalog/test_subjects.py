"""Whom an outside provider of log-ins means. On SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.catalog import people
from holdfast.catalog.database import Database

ISSUER = "https://login.example.org"


@pytest.fixture
def ann(database: Database) -> int:
    with database.writing() as c:
        row: dict[str, Any] = {"name": "", "role": "user", "password": "-", "created_ns": 1}
        people.add_account(c, username="bob", email="", **row)
        number = people.add_account(c, username="ann", email="Ann@Example.org", **row)
    assert number is not None
    return number


def test_a_person_is_known_by_issuer_and_subject_and_stays_who_he_is(database: Database, ann: int) -> None:
    with database.writing() as c:
        assert people.account_of_subject(c, ISSUER, "1") is None
        people.know_subject(c, ISSUER, "1", ann)
        people.know_subject(c, ISSUER, "1", ann + 1000)  # what is known stays
        found = people.account_of_subject(c, ISSUER, "1")
        assert found is not None and found.username == "ann"
        assert people.account_of_subject(c, "https://other.example.org", "1") is None
        people.delete_account(c, ann)
        assert people.account_of_subject(c, ISSUER, "1") is None


def test_an_address_is_found_in_whatever_case(database: Database, ann: int) -> None:
    with database.reading() as c:
        assert [a.username for a in people.accounts_with_email(c, "aNN@eXAMPLE.ORG")] == ["ann"]
        assert people.accounts_with_email(c, "nobody@example.org") == []
