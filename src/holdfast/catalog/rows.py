"""From rows to typed values: a struct's fields are the columns it is made from. And rows that may be there already."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from holdfast.catalog.database import Connection

Row = TypeVar("Row", bound=msgspec.Struct)


def columns(kind: type[msgspec.Struct], table: sa.Table) -> list[sa.Column[Any]]:
    """The columns that a struct has fields for."""
    return [table.c[name] for name in kind.__struct_fields__]


def one(connection: Connection, kind: type[Row], query: sa.Select[Any]) -> Row | None:
    """The only row there is; None when there is none."""
    row = connection.execute(query).one_or_none()
    return None if row is None else kind(**row._mapping)


def every(connection: Connection, kind: type[Row], query: sa.Select[Any]) -> list[Row]:
    return [kind(**row._mapping) for row in connection.execute(query)]


def insert_new(connection: Connection, table: sa.Table, row: dict[str, Any]) -> bool:
    """Insert a row unless it is there; whether it is new."""
    insert = _inserting_new(table, is_sqlite=connection.dialect.name == "sqlite")
    return connection.execute(insert, row).first() is not None


@functools.cache
def _inserting_new(table: sa.Table, *, is_sqlite: bool) -> Any:
    key = next(iter(table.primary_key.columns))
    made = sqlite.insert(table) if is_sqlite else postgresql.insert(table)
    return made.on_conflict_do_nothing().returning(key)
