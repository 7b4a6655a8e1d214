"""Counters. Numbers that are given once: what was read of something with a number can be done to it later, or to
nothing. And a debt: how often something was given up since all snapshots of the shelf were merged.
"""

from __future__ import annotations

import sqlalchemy as sa

from holdfast.catalog.database import Connection
from holdfast.catalog.tables import counters

_owed = counters.c.name == "owed"


def next_number(connection: Connection, name: str) -> int:
    """The next number for a row of that table. Until the transaction ends nobody else draws one."""
    drawn = sa.update(counters).where(counters.c.name == name).values(value=counters.c.value + 1)
    return int(connection.execute(drawn.returning(counters.c.value)).scalar_one())


def owe_merging(connection: Connection) -> None:
    """Something was given up, and is still on the shelf."""
    connection.execute(sa.update(counters).where(_owed).values(value=counters.c.value + 1))


def owed_merging(connection: Connection) -> int:
    return int(connection.execute(sa.select(counters.c.value).where(_owed)).scalar_one())


def pay_merging(connection: Connection, owed: int) -> None:
    """All was merged that was there when so much was owed; what came since is owed still."""
    connection.execute(sa.update(counters).where(_owed, counters.c.value == owed).values(value=0))
