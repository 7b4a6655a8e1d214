"""One server for all tests of a module; each test visits it with an account, a home and a tree of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.remote.visiting import Visitor, visitor
from tests.support.server import Running, running

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def name() -> str:
    """A user name that nobody has."""
    return f"visitor{next(_numbers)}"


@pytest.fixture
def ann(server: Running, name: str, tmp_path: Path) -> Visitor:
    return visitor(server, name, tmp_path)
