"""The database: how it is opened, brought up to date, and used in transactions.

What is promised: ``writing`` commits as a whole or not at all, durably (SQLite in WAL mode with full
synchronisation), and no two of them see each other half done. Trouble with the database itself is StorageUnavailable
or StorageFull, never a traceback; an error of a query names none of the values in it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from holdfast.errors import StorageFull, StorageUnavailable, UnknownVersion, UsageError

WRITES = "holdfast_writes"  # the option of a connection whose transaction changes something
BUSY_MS = 30_000  # a writer waits so long for another one
_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x486F6C64  # PostgreSQL's advisory lock while the schema changes ("Hold")

Connection = sa.Connection


class Database:
    """One database and its pool of connections. Safe to share between threads; ``close`` when done."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self.place = self._engine.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment and changes nothing."""
        with self._named_trouble(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that changes something. SQLite lets one in at a time; others wait up to BUSY_MS."""
        with self._named_trouble(), self._engine.connect() as opened:
            connection = opened.execution_options(**{WRITES: True})
            with connection.begin():
                yield connection

    def migrate(self) -> None:
        """Bring the tables up to date; safe when several nodes start at once. UnknownVersion when they are newer."""
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            script = ScriptDirectory(str(_MIGRATIONS))
            here = MigrationContext.configure(connection).get_current_revision()
            if here is not None and here not in {step.revision for step in script.walk_revisions()}:
                raise UnknownVersion(f"The catalog {self.place} was written by a newer Holdfast.", "Use that version.")
            config = Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def ping(self) -> None:
        """StorageUnavailable when the database does not answer."""
        with self.reading() as connection:
            connection.execute(sa.select(1))

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _named_trouble(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError:
            raise  # the query that met it knows what it means
        except DBAPIError as e:
            if _is_full(e):
                raise StorageFull(f"The catalog {self.place} has no room left.", "Free space on its disk.") from None
            reason = str(e.orig).strip().splitlines()[0] if e.orig else type(e).__name__
            raise StorageUnavailable(f"The catalog {self.place} cannot be used: {reason}.") from None


def _is_full(error: DBAPIError) -> bool:
    original: Any = error.orig
    return (
        getattr(original, "sqlite_errorname", "") == "SQLITE_FULL"
        or getattr(original, "sqlstate", "") in ("53100", "53200")
        or getattr(original, "errno", None) == errno.ENOSPC
    )


def _engine(url: str) -> sa.Engine:
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise UsageError("The catalog's URL must begin with sqlite:/// or postgresql://.")
        if parsed.get_backend_name() == "postgresql":
            return sa.create_engine(
                parsed, pool_pre_ping=True, isolation_level="READ COMMITTED", hide_parameters=True
            )  # fmt: skip
        return _sqlite(parsed)
    except (ArgumentError, NoSuchModuleError):
        raise UsageError("The catalog's URL must begin with sqlite:/// or postgresql://.") from None


def _sqlite(url: sa.URL) -> sa.Engine:
    """Python's own transactions are switched off: ours begin where they should, and writers say so at once, so that
    none has to give way in the middle.
    """
    waits = {"timeout": BUSY_MS / 1000, "check_same_thread": False}
    engine = sa.create_engine(url, connect_args=waits, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {BUSY_MS}"):
            connection.execute(f"PRAGMA {pragma}").close()

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
