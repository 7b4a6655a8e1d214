"""Numbers that are given once: what was read of something with a number can be done to it later, or to nothing."""

from __future__ import annotations

import sqlalchemy as sa

from holdfast.catalog.database import Connection
from holdfast.catalog.tables import counters


def next_number(connection: Connection, name: str) -> int:
    """The next number for a row of that table. Until the transaction ends nobody else draws one."""
    drawn = sa.update(counters).where(counters.c.name == name).values(value=counters.c.value + 1)
    return int(connection.execute(drawn.returning(counters.c.value)).scalar_one())
