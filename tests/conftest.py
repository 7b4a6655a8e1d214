"""For every test: ``needs_root`` is kept, ``need`` is at hand (tests/support/components.py has the rule), and nothing
of whoever runs the tests is met: no settings, no default repository, no password, no cache.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.catalog.database import Database
from tests.support import components, postgres

# A shell ignores Ctrl-C for what it runs in the background, and its children inherit that: here it is always heard.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("needs_root"):
            item.add_marker(pytest.mark.skip(reason="needs root: mounts, owners or device nodes"))


@pytest.fixture(scope="session")
def need() -> Callable[[str], str]:
    """``need("strace")``: the program's path; without it the test is skipped, or under CI=true fails."""
    return components.need


@pytest.fixture(autouse=True)
def a_home_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [n for n in os.environ if n.startswith("HOLDFAST_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home" / os.urandom(8).hex()  # made by whoever uses it
    for variable, folder in {"DATA": ".local/share", "CONFIG": ".config", "CACHE": ".cache"}.items():
        monkeypatch.setenv(f"XDG_{variable}_HOME", str(home / folder))


@pytest.fixture(scope="session")
def postgres_socket() -> Iterator[str]:
    """The socket's folder of one PostgreSQL server for all tests of this process."""
    programs = postgres.programs()
    if programs is None:
        components.missing("PostgreSQL is not installed (scripts/debian-packages.txt)")
    with postgres.serving(programs) as socket:
        yield socket


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty catalog, of each kind there is."""
    if request.param == "SQLite":
        yield f"sqlite:///{tmp_path}/catalog.db"
        return
    with postgres.fresh_database(request.getfixturevalue("postgres_socket")) as url:
        yield url


@pytest.fixture
def database(catalog_url: str) -> Iterator[Database]:
    """The same, open and up to date."""
    found = Database(catalog_url)
    found.migrate()
    yield found
    found.close()
