"""From rows to typed values: a struct's fields are the columns it is made from."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

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
